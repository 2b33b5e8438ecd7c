"""`Graph`: chunks and their direct parents as indices, in declared order. What the compiler starts from.

Made from a parsed file or from `Chunk` objects (`chunks`). Knows nothing of tokens, and imports neither
numpy nor torch: checking a file must stay instant.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields

from legraph.links import topological_order
from legraph.parse import ParsedFile
from legraph.schema import BOS_NAME, GenerateSpec, PositionPolicy
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


@dataclass(frozen=True, slots=True)
class Graph:
    """A valid prompt graph: unique names, no cycle. `chunks` keeps the declared order, BOS first."""

    chunks: tuple[GraphChunk, ...]
    positions: PositionPolicy = "causal"
    tokenizer: str | None = None
    # Where it came from is not what it is.
    source: SourceText | None = field(default=None, compare=False, repr=False)

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
        chunks.append(GraphChunk(chunk.name, text, bos + parents, *pinned, generate, *learned))
    return Graph(tuple(chunks), spec.positions, spec.tokenizer, parsed.source)
