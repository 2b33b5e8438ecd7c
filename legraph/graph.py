"""`Graph`: chunks and their direct parents as indices, in declared order. What the compiler starts from.

Made from a parsed file or from `Chunk` objects (`chunks`). Knows nothing of tokens, and imports neither
numpy nor torch: checking a file must stay instant.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from legraph.assertions import Assertion
from legraph.errors import Source
from legraph.links import topological_order
from legraph.origin import Places
from legraph.parse import ParsedFile
from legraph.schema import BOS_NAME, GenerateSpec, PositionPolicy, Role
from legraph.source import SourceText


@dataclass(frozen=True, slots=True)
class Generate:
    """How the model continues a chunk. None means: as the run says."""

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    @classmethod
    def from_spec(cls, spec: GenerateSpec) -> Generate:
        return cls(**spec.model_dump())


@dataclass(frozen=True, slots=True)
class GraphChunk:
    """A chunk whose parents are indices into `Graph.chunks`. `text` is None for the BOS chunk only."""

    name: str
    text: str | None
    parents: tuple[int, ...] = ()
    start: int | None = None
    end: int | None = None
    generate: Generate | None = None
    completion: str | None = None
    loss: bool = False
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """A valid prompt graph: unique names, no cycle. `chunks` keeps the declared order, BOS first."""

    chunks: tuple[GraphChunk, ...]
    positions: PositionPolicy = "causal"
    tokenizer: str | None = None
    # Where it came from is not what it is.
    source: SourceText | Places | None = field(default=None, compare=False, repr=False)
    # What is said about it, and holds or does not.
    assertions: tuple[Assertion, ...] = field(default=(), compare=False, repr=False)
    # Codes of findings that are meant to be so: of the whole graph, and by index of a chunk.
    ignored: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    ignored_of: Mapping[int, frozenset[str]] = field(
        default_factory=dict[int, frozenset[str]], compare=False, repr=False
    )

    def place(self, chunk: int, *keys: str | int) -> Source | None:
        """Where the value at the first keys that the chunk has stands in its file, if it came from one."""
        declared = chunk - 1 if self.chunks[0].text is None else chunk
        if self.source is None or declared < 0:
            return None
        return self.source.place(("chunks", declared, *keys))

    def order(self) -> list[int]:
        """Stable topological order of the chunks, as indices."""
        return topological_order([chunk.parents for chunk in self.chunks])

    def num_edges(self) -> int:
        return sum(len(chunk.parents) for chunk in self.chunks)

    def leaves(self) -> list[int]:
        """The chunks that nobody sees."""
        seen = {parent for chunk in self.chunks for parent in chunk.parents}
        return [i for i in range(len(self.chunks)) if i not in seen]

    def sha256(self) -> str:
        """Hash of the content, equal for YAML and TOML twins: of the meaning, not of the file's bytes."""
        # Attribute by attribute: `asdict` copies every part of every chunk.
        content = [
            self.positions,
            [
                [getattr(chunk, part.name) for part in fields(chunk) if part.name != "generate"]
                + [asdict(chunk.generate) if chunk.generate else None]
                for chunk in self.chunks
            ],
        ]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def build_graph(parsed: ParsedFile) -> Graph:
    """The graph of a parsed file. Nothing can fail here: `parse` has found every problem."""
    spec = parsed.spec
    shift = 1 if spec.bos else 0
    index_by_name = {chunk.name: i + shift for i, chunk in enumerate(spec.chunks)}
    bos = (0,) if spec.bos else ()
    chunks = [GraphChunk(BOS_NAME, None)] if spec.bos else []
    for chunk, text in zip(spec.chunks, parsed.texts, strict=True):
        parents = tuple(index_by_name[parent] for parent in chunk.parents if parent in index_by_name)
        generate = Generate.from_spec(chunk.generate) if chunk.generate else None
        pinned = chunk.start, chunk.end
        learned = chunk.completion, chunk.loss
        chunks.append(GraphChunk(chunk.name, text, bos + parents, *pinned, generate, *learned, chunk.role))
    ignored = {
        i + shift: frozenset(chunk.lint.ignore)
        for i, chunk in enumerate(spec.chunks)
        if chunk.lint is not None
    }
    return Graph(
        tuple(chunks),
        spec.positions,
        spec.tokenizer,
        parsed.source,
        tuple(_shifted(assertion, shift) for assertion in parsed.assertions),
        frozenset(spec.lint.ignore if spec.lint is not None else ()),
        ignored,
    )


def _shifted(assertion: Assertion, shift: int) -> Assertion:
    """The same, with the BOS chunk in front of the others."""
    chunks = assertion.chunks
    return replace(
        assertion,
        pairs=tuple((one + shift, other + shift) for one, other in assertion.pairs),
        chunks=None if chunks is None else tuple(chunk + shift for chunk in chunks),
    )
