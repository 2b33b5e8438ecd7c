"""The JSON Schema of the format: complete, valid, and of one mind with the reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from legraph.errors import GraphError
from legraph.parse import parse, parse_file
from legraph.schema import BOS_NAME, FORMAT_VERSION, ChunkSpec, GenerateSpec, GraphFile, json_schema
from legraph.source import SourceText

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
A = {"name": "a", "text": "x"}


def is_valid(data: Any) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(data)


def parses(data: Any) -> bool:
    try:
        parse(SourceText("g", json.dumps(data), "yaml", Path()))
    except GraphError:
        return False
    return True


def properties(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for owner in [schema, *schema["$defs"].values()]:
        yield from owner["properties"].items()


def test_the_file_in_schemas_is_the_schema():
    file = ROOT / "schemas" / "graph.schema.json"
    assert file.read_text(encoding="utf-8") == json.dumps(json_schema(), indent=2) + "\n"


def test_the_schema_is_a_valid_one_of_draft_2020_12():
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_the_keys_are_those_of_the_format():
    schema = json_schema()
    assert list(schema["properties"]) == ["legraph", "tokenizer", "positions", "bos", "chunks"]
    assert list(schema["$defs"]["ChunkSpec"]["properties"]) == [
        "name",
        "text",
        "file",
        "completion",
        "loss",
        "parents",
        "start",
        "end",
        "generate",
    ]
    assert list(schema["$defs"]["GenerateSpec"]["properties"]) == [
        "max_new_tokens",
        "stop",
        "temperature",
        "top_k",
        "top_p",
        "seed",
    ]
    assert (FORMAT_VERSION, BOS_NAME) == (1, "bos")


@pytest.mark.parametrize("name, schema", list(properties(json_schema())))
def test_every_property_has_a_description_and_an_example(name: str, schema: dict[str, Any]):
    assert schema["description"].endswith(".") and len(schema["description"]) > 15
    assert schema["examples"]


@pytest.mark.parametrize("model", [GraphFile, ChunkSpec, GenerateSpec])
def test_every_example_of_a_property_may_stand_there(model: type[GraphFile | ChunkSpec | GenerateSpec]):
    required: dict[str, Any] = {
        GraphFile: {"legraph": 1, "chunks": [A]},
        ChunkSpec: {"name": "a"},
        GenerateSpec: {},
    }[model]
    examples = [(name, each) for name, field in model.model_fields.items() for each in field.examples or ()]
    assert len(examples) >= len(model.model_fields)
    for name, example in examples:
        model.model_validate(required | {name: example})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_accepted_by_schema_and_reader(path: Path):
    assert is_valid(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert parse_file(path).spec.legraph == FORMAT_VERSION


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize(
    "data",
    [
        {"legraph": 1, "chunks": [A]},
        {"legraph": 1, "positions": "local", "bos": True, "tokenizer": "x", "chunks": [A]},
        {"legraph": 1, "chunks": [A | {"completion": "y", "loss": True}]},
        {"legraph": 1, "chunks": [A | {"start": 0}, {"name": "b", "text": "", "end": 1}]},
        {"legraph": 1, "chunks": [A, A | {"name": "b", "parents": ["a"], "generate": {"stop": ["x"]}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"temperature": 0, "top_p": 1, "top_k": 1, "seed": 0}}]},
    ],
)
def test_the_schema_accepts_what_the_reader_accepts(data: Any):
    assert is_valid(data) and parses(data)


@pytest.mark.parametrize(
    "data",
    [
        [],
        "text",
        {},
        {"chunks": [A]},
        {"legraph": 1},
        {"legraph": 2, "chunks": [A]},
        {"legraph": "1", "chunks": [A]},
        {"legraph": True, "chunks": [A]},
        {"legraph": 1, "chunks": []},
        {"legraph": 1, "chunks": {"a": "x"}},
        {"legraph": 1, "chunks": [A], "other": 1},
        {"legraph": 1, "chunks": [A], "positions": "casual"},
        {"legraph": 1, "chunks": [A], "bos": "yes"},
        {"legraph": 1, "chunks": [A], "tokenizer": ""},
        {"legraph": 1, "chunks": ["a"]},
        {"legraph": 1, "chunks": [{"name": "a"}]},
        {"legraph": 1, "chunks": [{"text": "x"}]},
        {"legraph": 1, "chunks": [A | {"file": "x.txt"}]},
        {"legraph": 1, "chunks": [{"name": "a", "file": ""}]},
        {"legraph": 1, "chunks": [A | {"name": "1a"}]},
        {"legraph": 1, "chunks": [A | {"name": ""}]},
        {"legraph": 1, "chunks": [A | {"name": "a" * 257}]},
        {"legraph": 1, "chunks": [A | {"name": 1}]},
        {"legraph": 1, "chunks": [A | {"text": 1}]},
        {"legraph": 1, "chunks": [A | {"completion": ""}]},
        {"legraph": 1, "chunks": [A | {"loss": 1}]},
        {"legraph": 1, "chunks": [A | {"parents": "a"}]},
        {"legraph": 1, "chunks": [A | {"parents": [1]}]},
        {"legraph": 1, "chunks": [A | {"start": -1}]},
        {"legraph": 1, "chunks": [A | {"start": 1.5}]},
        {"legraph": 1, "chunks": [A | {"end": 0}]},
        {"legraph": 1, "chunks": [A | {"start": 1, "end": 3}]},
        {"legraph": 1, "chunks": [A | {"prents": []}]},
        {"legraph": 1, "chunks": [A | {"generate": True}]},
        {"legraph": 1, "chunks": [A | {"generate": {"max_new_tokens": 0}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"stop": "x"}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"stop": [""]}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"temperature": -1}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"top_k": 0}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"top_p": 0}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"top_p": 1.1}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"seed": -1}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"other": 1}}]},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_reader_refuses(data: Any):
    assert not is_valid(data) and not parses(data)
