"""The JSON Schema of the format: complete, valid, and of one mind with the reader."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from legraph.errors import GraphError
from legraph.parse import parse, parse_file
from legraph.schema import (
    BOS_NAME,
    FORMAT_VERSION,
    AssertSpec,
    ChunkEntry,
    GenerateSpec,
    IncludeEntry,
    LintSpec,
    RangeSpec,
    WrittenGraph,
    json_schema,
)
from legraph.source import SourceText

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".yaml", ".toml"))
A = {"name": "a", "text": "x"}


def is_valid(data: Any) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(data)


def parses(data: Any, folder: Path = Path()) -> bool:
    try:
        parse(SourceText("g", json.dumps(data), "yaml", folder))
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
    assert list(schema["properties"]) == [
        "legraph",
        "tokenizer",
        "positions",
        "bos",
        "chunks",
        "assert",
        "lint",
        "vars",
    ]
    chunk = "name text file role group completion loss parents start end generate lint for"
    assert list(schema["$defs"]["ChunkEntry"]["properties"]) == chunk.split()
    assert list(schema["$defs"]["IncludeEntry"]["properties"]) == [
        "include",
        "as",
        "vars",
        "parents",
        "group",
        "for",
    ]
    assertion = "sees not_sees influences not_influences max_tokens of"
    assert list(schema["$defs"]["AssertSpec"]["properties"]) == assertion.split()
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


REQUIRED: dict[type[BaseModel], dict[str, Any]] = {
    WrittenGraph: {"legraph": 1, "chunks": [A]},
    ChunkEntry: {"name": "a"},
    IncludeEntry: {"include": "a.yaml"},
    AssertSpec: {},
    LintSpec: {"ignore": []},
    RangeSpec: {"range": 1},
    GenerateSpec: {},
}


@pytest.mark.parametrize("model", REQUIRED)
def test_every_example_of_a_property_may_stand_there(model: type[BaseModel]):
    fields = [(field.alias or name, field.examples or ()) for name, field in model.model_fields.items()]
    examples = [(name, each) for name, written in fields for each in written]
    assert len(examples) >= len(fields)
    for name, example in examples:
        model.model_validate(REQUIRED[model] | {name: example})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_accepted_by_schema_and_reader(path: Path):
    text = path.read_text(encoding="utf-8")
    assert is_valid(tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text))
    assert parse_file(path).spec.legraph == FORMAT_VERSION


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


B = {"name": "b", "text": "y"}


def loop(*more: Any, **over: Any) -> dict[str, Any]:
    return {"legraph": 1, "chunks": [{"for": over, "name": "c${i.index}", "text": "${i}"}, *more]}


@pytest.mark.parametrize(
    "data",
    [
        {"legraph": 1, "chunks": [A]},
        {"legraph": 1, "positions": "local", "bos": True, "tokenizer": "x", "chunks": [A]},
        {"legraph": 1, "chunks": [A | {"completion": "y", "loss": True}]},
        {"legraph": 1, "chunks": [A | {"start": 0}, {"name": "b", "text": "", "end": 1}]},
        {"legraph": 1, "chunks": [A, A | {"name": "b", "parents": ["a"], "generate": {"stop": ["x"]}}]},
        {"legraph": 1, "chunks": [A | {"generate": {"temperature": 0, "top_p": 1, "top_k": 1, "seed": 0}}]},
        {
            "legraph": 1,
            "vars": {"a": 1, "b": "x", "c": True},
            "chunks": [{"name": "n${a}", "text": "${b} ${c}"}],
        },
        loop(i=["x", 2]),
        loop(i={"range": 3}),
        loop(i={"range": [1, 9, 2]}),
        {"legraph": 1, "chunks": [{"for": {"i": [{"k": "v"}]}, "name": "${i.k}", "text": "x"}]},
        {"legraph": 1, "chunks": [A | {"group": "g"}, B | {"parents": ["@g"]}]},
        {"legraph": 1, "chunks": [A, B | {"parents": ["all-before", "^a"]}]},
        {
            "legraph": 1,
            "chunks": [A | {"role": "user", "lint": {"ignore": ["LG001"]}}],
            "lint": {"ignore": []},
        },
        {"legraph": 1, "chunks": [A, B], "assert": [{"not_sees": ["a", "b"]}, {"max_tokens": 1, "of": "a"}]},
        {"legraph": 1, "chunks": [A], "assert": []},
    ],
    ids=str,
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
        {"legraph": 1, "vars": [], "chunks": [A]},
        {"legraph": 1, "vars": {"a": []}, "chunks": [A]},
        {"legraph": 1, "vars": {"a b": 1}, "chunks": [A]},
        loop(),
        loop(i=[]),
        loop(i=[[1]]),
        loop(i=1),
        loop(i=""),
        loop(i={"range": []}),
        loop(i={"range": 1.5}),
        loop(i={"other": 1}),
        {"legraph": 1, "chunks": [A | {"group": 1}]},
        {"legraph": 1, "chunks": [A | {"group": "a b"}]},
        {"legraph": 1, "chunks": [A | {"role": "robot"}]},
        {"legraph": 1, "chunks": [A | {"lint": {}}]},
        {"legraph": 1, "chunks": [A | {"lint": {"ignore": ["X"]}}]},
        {"legraph": 1, "chunks": [A, {"include": ""}]},
        {"legraph": 1, "chunks": [A, {"include": "x.yaml", "other": 1}]},
        {"legraph": 1, "chunks": [A, {"include": "x.yaml", "as": "1"}]},
        {"legraph": 1, "chunks": [A], "assert": {}},
        {"legraph": 1, "chunks": [A], "assert": [{}]},
        {"legraph": 1, "chunks": [A], "assert": [{"sees": ["a"]}]},
        {"legraph": 1, "chunks": [A], "assert": [{"sees": ["a", "a", "a"]}]},
        {"legraph": 1, "chunks": [A], "assert": [{"sees": ["a", "a"], "not_sees": ["a", "a"]}]},
        {"legraph": 1, "chunks": [A], "assert": [{"sees": ["a", "a"], "of": "a"}]},
        {"legraph": 1, "chunks": [A], "assert": [{"max_tokens": 0}]},
        {"legraph": 1, "chunks": [A], "assert": [{"of": "a"}]},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_reader_refuses(data: Any):
    assert not is_valid(data) and not parses(data)
