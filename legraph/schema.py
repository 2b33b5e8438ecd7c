"""The graph file format, version 1, as data: what keys there are, what they hold, what they mean.

`GraphFile` is a file with everything spelled out: what `expand` makes of the language of a file (variables,
loops, selectors, includes), and what is checked and compiled. `WrittenGraph` is a file as people write it;
the JSON Schema is made from it.

This module knows single values only. What needs the whole file (names that repeat, parents that do not
exist, cycles) is in `links`, and where a value stands in the file is in `source`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

FORMAT_VERSION = 1
NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_.\-]*$"
# As written, with variables in it.
WRITTEN_NAME_PATTERN = r"^([A-Za-z_]|\$\{[^{}]*\})([A-Za-z0-9_.\-]|\$\{[^{}]*\})*$"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
LINT_CODE_PATTERN = r"^LG[0-9]{3}$"
WRITTEN_LINT_CODE_PATTERN = r"^LG[0-9]{3}$|\$\{"
MAX_NAME_LENGTH = 256
BOS_NAME = "bos"
# Means something in `parents`, so that no chunk can be called so.
ALL_BEFORE = "all-before"
SCHEMA_ID = "https://legraph.dev/schemas/graph.schema.json"

PositionPolicy = Literal["causal", "flat", "local"]
Role = Literal["system", "user", "assistant"]
Name = Annotated[
    str,
    Field(
        pattern=NAME_PATTERN,
        max_length=MAX_NAME_LENGTH,
        json_schema_extra={"pattern": WRITTEN_NAME_PATTERN},
    ),
]
Scalar = str | int | float | bool
VariableName = Annotated[str, Field(pattern=VARIABLE_PATTERN)]
# pydantic leaves keys of other patterns open in the JSON Schema.
_ONLY_VARIABLES: dict[str, Any] = {"propertyNames": {"pattern": VARIABLE_PATTERN}}


def _given(*keys: str) -> dict[str, Any]:
    """The JSON Schema of a mapping in which these keys stand; null is as good as nothing."""
    return {"required": list(keys), "properties": {key: {"not": {"type": "null"}} for key in keys}}


def _or_variable(schema: dict[str, Any]) -> None:
    """One of some words; or a variable, which may hold one of them."""
    choices = schema.setdefault("anyOf", [])
    if "enum" in schema:
        choices.append({key: schema.pop(key) for key in ("enum", "type")})
    choices.append({"type": "string", "pattern": r"\$\{"})


# Two selectors: who, and whom.
Pair = Annotated[tuple[str, ...], Field(strict=False, min_length=2, max_length=2)]


LintCode = Annotated[
    str, Field(pattern=LINT_CODE_PATTERN, json_schema_extra={"pattern": WRITTEN_LINT_CODE_PATTERN})
]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GenerateSpec(Spec):
    """How the model continues a chunk."""

    max_new_tokens: int = Field(
        default=32,
        ge=1,
        lt=2**31,
        description="Most tokens the model may write in this chunk.",
        examples=[64],
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        strict=False,
        description="Strings that end the generation; the one that was met stays in the output.",
        examples=[["\n"]],
    )
    temperature: float | None = Field(
        default=None,
        ge=0,
        description="Sampling temperature; 0 is greedy. Default: that of the run, else 1 with top_k or "
        "top_p, else greedy.",
        examples=[0.7],
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Sample among the k most likely tokens only.",
        examples=[50],
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample among the most likely tokens that together hold this probability.",
        examples=[0.95],
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Seed of this chunk's random numbers. Default: made from the run's seed and the name.",
        examples=[7],
    )


class LintSpec(Spec):
    """What `legraph lint` does not report."""

    ignore: tuple[LintCode, ...] = Field(
        strict=False,
        description="Codes of findings that are meant to be so.",
        examples=[["LG001"]],
    )


_ASSERTIONS = ("sees", "not_sees", "influences", "not_influences", "max_tokens")


class AssertSpec(Spec):
    """One thing that must hold of the graph. Selectors that match several chunks mean every pair of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [_given(key) for key in _ASSERTIONS],
            "if": _given("of"),
            "then": _given("max_tokens"),
        }
    )

    sees: Pair | None = Field(
        default=None,
        description="[q, k]: q attends to k: they are the same chunk, or k is a direct parent of q.",
        examples=[["question", "doc1"]],
    )
    not_sees: Pair | None = Field(
        default=None,
        description="[q, k]: q does not attend to k.",
        examples=[["doc1", "@docs"]],
    )
    influences: Pair | None = Field(
        default=None,
        description="[a, b]: what a says can reach b, through any number of chunks between them.",
        examples=[["doc1", "answer"]],
    )
    not_influences: Pair | None = Field(
        default=None,
        description="[a, b]: nothing of a reaches b.",
        examples=[["secret", "answer"]],
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="The graph has no more tokens, or each of the chunks of 'of'. Needs a tokenizer.",
        examples=[4096],
    )
    of: str | None = Field(
        default=None,
        description="The chunks that max_tokens is about, each by itself.",
        examples=["@docs"],
    )


class ChunkSpec(Spec):
    """One chunk of text: it attends causally to itself and fully to its direct parents, to nothing else."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["text"]}, {"required": ["file"]}],
            "not": _given("start", "end"),
        }
    )

    name: Name = Field(
        description="Unique name of the chunk. Quote names that YAML reads as something else, such as 'no'.",
        examples=["doc1"],
    )
    text: str | None = Field(
        default=None,
        description="The text. Special tokens written in it (such as <|eot_id|>) are recognised.",
        examples=["The fox says ring-ding-ding."],
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        description="Path of a UTF-8 text file, instead of text; relative to the graph file.",
        examples=["docs/two.txt"],
    )
    role: Role | None = Field(
        default=None,
        json_schema_extra=_or_variable,
        description="Write the markers that the tokenizer's own chat template has for this role around the "
        "text. An assistant's text may be empty: the model, or the completion, writes it.",
        examples=["user"],
    )
    group: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        max_length=MAX_NAME_LENGTH,
        json_schema_extra={"pattern": WRITTEN_NAME_PATTERN},
        description="Name of a set that the chunk belongs to; '@name' in parents means all of it.",
        examples=["docs"],
    )
    completion: str | None = Field(
        default=None,
        min_length=1,
        description="What follows the text as if the model had written it there: the answer to learn, or one "
        "written before. It is tokenized apart from the text.",
        examples=[" Ring-ding-ding.<|eos|>"],
    )
    loss: bool = Field(
        default=False,
        description="Label the completion's tokens for training; without a completion, the text's. A chunk's "
        "first token is never labelled: no single token comes before it.",
        examples=[True],
    )
    parents: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="The chunks this one sees in full: names, globs (doc*), groups (@docs), all-before, "
        "ancestors(x); ^x takes out again. Nothing is inherited: a grandparent is invisible unless it is "
        "listed too.",
        examples=[["doc1", "doc2"], ["@docs", "^doc3"]],
    )
    start: int | None = Field(
        default=None,
        ge=0,
        lt=2**31,
        description="Position id of the chunk's first token. Excludes end.",
        examples=[40],
    )
    end: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="Position id just past the chunk's last text token. Excludes start.",
        examples=[64],
    )
    generate: GenerateSpec | None = Field(
        default=None,
        description="Let the model continue this chunk; its children see the text and what was generated.",
        examples=[{"max_new_tokens": 32, "stop": ["\n"]}],
    )
    lint: LintSpec | None = Field(
        default=None,
        description="Findings of 'legraph lint' about this chunk that are meant to be so.",
        examples=[{"ignore": ["LG001"]}],
    )


class GraphFile(Spec):
    """A prompt graph: a DAG of text chunks."""

    legraph: Literal[1] = Field(description="Version of the file format.", examples=[FORMAT_VERSION])
    tokenizer: str | None = Field(
        default=None,
        min_length=1,
        description="Path or hub id of the tokenizer; --tokenizer and --model override it.",
        examples=["meta-llama/Llama-3.2-1B"],
    )
    positions: PositionPolicy = Field(
        default="causal",
        json_schema_extra=_or_variable,
        description="causal: a chunk starts after the last position of its parents, so parallel chunks share "
        "a range. flat: 0..N-1 in token order. local: every chunk starts at 0.",
        examples=["causal"],
    )
    bos: bool = Field(
        default=False,
        description="Add one root chunk named 'bos' (the tokenizer's BOS token) as a parent of every chunk.",
        examples=[True],
    )
    chunks: tuple[ChunkSpec, ...] = Field(
        strict=False,
        min_length=1,
        description="The chunks, in any order; among chunks that are ready, the first declared comes first.",
        examples=[[{"name": "question", "text": "What does the fox say?"}]],
    )
    assertions: tuple[AssertSpec, ...] = Field(
        default=(),
        alias="assert",
        strict=False,
        description="What must hold of the graph; checked by check, compile and run.",
        examples=[[{"not_influences": ["secret", "answer"]}]],
    )
    lint: LintSpec | None = Field(
        default=None,
        description="Findings of 'legraph lint' about any chunk that are meant to be so.",
        examples=[{"ignore": ["LG001"]}],
    )

    @field_validator("legraph", mode="before")
    @classmethod
    def _is_whole(cls, version: Any) -> Any:
        """To Python, True and 1.0 equal 1."""
        if type(version) is not int:
            raise ValueError("not a whole number")
        return version


class RangeSpec(Spec):
    """Whole numbers, as Python's range: [stop], [start, stop] or [start, stop, step]."""

    range: int | Annotated[tuple[int, ...], Field(strict=False, min_length=1, max_length=3)] = Field(
        description="A number n for 0..n-1, or start, stop and step.", examples=[3, [1, 11]]
    )


LoopSource = (
    Annotated[str, Field(min_length=1)]
    | Annotated[tuple[Scalar | dict[str, Any], ...], Field(strict=False, min_length=1)]
    | RangeSpec
)
Loops = Annotated[dict[VariableName, LoopSource], Field(min_length=1)]
_FOR = Field(
    default=None,
    alias="for",
    json_schema_extra=_ONLY_VARIABLES,
    description="One chunk for each item: files by a glob (docs/*.txt), rows of a .jsonl, .json or .csv "
    "file, a list, or a range. The entry's strings use ${doc}, ${doc.path}, ${doc.index}, ...",
    examples=[{"doc": "docs/*.txt"}, {"row": "rows.jsonl"}, {"i": {"range": 3}}],
)


class ChunkEntry(ChunkSpec):
    """One chunk of text, or one for each item of a loop. It attends causally to itself and fully to its
    direct parents, to nothing else."""

    loops: Loops | None = _FOR


class IncludeEntry(Spec):
    """The chunks of another graph file."""

    include: str = Field(
        min_length=1, description="Path of the graph file, relative to this one.", examples=["doc.yaml"]
    )
    prefix: Name | None = Field(
        default=None,
        alias="as",
        description="Its names stand behind this one and a point, and @name means all of its chunks.",
        examples=["doc1"],
    )
    variables: dict[VariableName, Scalar] | None = Field(
        default=None,
        alias="vars",
        json_schema_extra=_ONLY_VARIABLES,
        description="Its variables; it sees none of this file's.",
        examples=[{"path": "a.txt"}],
    )
    parents: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Chunks of this file that each of its chunks sees as well.",
        examples=[["head"]],
    )
    group: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        max_length=MAX_NAME_LENGTH,
        json_schema_extra={"pattern": WRITTEN_NAME_PATTERN},
        description="Name of a set that all of its chunks belong to.",
        examples=["docs"],
    )
    loops: Loops | None = _FOR


class WrittenGraph(GraphFile):
    """A prompt graph: a DAG of text chunks, as a file says it."""

    variables: dict[VariableName, Scalar] = Field(
        default={},
        alias="vars",
        json_schema_extra=_ONLY_VARIABLES,
        description="Variables and their values, for ${name} in any string of the file; --var overrides.",
        examples=[{"title": "The fox"}],
    )
    chunks: tuple[ChunkEntry | IncludeEntry, ...] = Field(  # type: ignore[assignment]
        strict=False,
        min_length=1,
        description="The chunks, in any order; among chunks that are ready, the first declared comes first.",
        examples=[[{"name": "question", "text": "What does the fox say?"}]],
    )


def keys_of(model: type[BaseModel]) -> list[str]:
    """The keys of a model as they are written."""
    return [each.alias or name for name, each in model.model_fields.items()]


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a graph file, for editors and validators."""
    schema = WrittenGraph.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID} | schema
