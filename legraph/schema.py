"""The graph file format, version 1, as data: what keys there are, what they hold, what they mean.

This module knows single values only. What needs the whole file (names that repeat, parents that do not
exist, cycles) is in `links`, and where a value stands in the file is in `source`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

FORMAT_VERSION = 1
NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9_.\-]*$"
MAX_NAME_LENGTH = 256
BOS_NAME = "bos"
SCHEMA_ID = "https://legraph.dev/schemas/graph.schema.json"

PositionPolicy = Literal["causal", "flat", "local"]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]


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


class ChunkSpec(Spec):
    """One chunk of text: it attends causally to itself and fully to its direct parents, to nothing else."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["text"]}, {"required": ["file"]}],
            "not": {"required": ["start", "end"]},
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
        description="Names of the chunks this one sees in full. Nothing is inherited: a grandparent is "
        "invisible unless it is listed too.",
        examples=[["doc1", "doc2"]],
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

    @field_validator("legraph", mode="before")
    @classmethod
    def _is_whole(cls, version: Any) -> Any:
        """To Python, True and 1.0 equal 1."""
        if type(version) is not int:
            raise ValueError("not a whole number")
        return version


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a graph file, for editors and validators."""
    schema = GraphFile.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID} | schema
