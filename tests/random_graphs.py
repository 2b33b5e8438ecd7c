"""Random graphs for property tests, and the mask of a graph written a second way.

`dags()` gives the bare structure, `graphs()` a `Graph` with texts, positions and settings, in any order of
declaration, `bundles()` what the compiler makes of such a graph, and `running()` bundles for an engine.

`content` and `drawn` are what tests compare bundles and masks by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from legraph.bundle import Bundle
from legraph.compiler import compile_graph
from legraph.graph import Generate, Graph, GraphChunk
from legraph.mask import ChunkMask
from legraph.tokens import bytes_tokenizer

MAX_CHUNKS = 30
MAX_LENGTH = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@cache
def tokenizer() -> Any:
    """One token for each byte, so a text's length is its number of tokens."""
    return bytes_tokenizer()


@dataclass(frozen=True)
class Dag:
    """Chunk i has `lengths[i]` tokens and sees `parents[i]`, ascending, all smaller than i."""

    lengths: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def mask(self) -> ChunkMask:
        """The structure with the chunks in their own order, which is a topological one."""
        return ChunkMask(
            np.array([sum(self.lengths[:i]) for i in range(len(self.lengths) + 1)], dtype=np.int64),
            np.array([sum(map(len, self.parents[:i])) for i in range(len(self.parents) + 1)], dtype=np.int64),
            np.array([parent for row in self.parents for parent in row], dtype=np.int64),
        )


def brute_force_mask(dag: Dag) -> np.ndarray:
    """bool [N, N]: the rule, applied to one pair of tokens after the other."""
    chunk_of = [chunk for chunk, length in enumerate(dag.lengths) for _ in range(length)]
    seen_by = [set(parents) for parents in dag.parents]
    rows = [
        [k_chunk in seen_by[q_chunk] or (k_chunk == q_chunk and k <= q) for k, k_chunk in enumerate(chunk_of)]
        for q, q_chunk in enumerate(chunk_of)
    ]
    return np.array(rows, dtype=np.bool_)


@st.composite
def dags(draw: st.DrawFn, max_chunks: int = MAX_CHUNKS, max_length: int = MAX_LENGTH) -> Dag:
    """1 to `max_chunks` chunks of 1 to `max_length` tokens: roots, chains, diamonds, several leaves."""
    num_chunks = draw(st.integers(1, max_chunks))
    lengths = draw(st.lists(st.integers(1, max_length), min_size=num_chunks, max_size=num_chunks))
    parents = [()]
    for i in range(1, num_chunks):
        before = st.integers(0, i - 1)
        some = st.lists(before, unique=True, max_size=4)
        many = st.lists(before, unique=True, min_size=i // 2)
        chain, everything = st.just([i - 1]), st.just(range(i))
        parents.append(tuple(sorted(draw(some | many | chain | everything))))
    return Dag(tuple(lengths), tuple(parents))


@st.composite
def graphs(
    draw: st.DrawFn,
    dag: st.SearchStrategy[Dag] | None = None,
    policies: tuple[str, ...] = ("causal", "flat", "local"),
    plain: bool = False,
) -> Graph:
    """A `Graph` whose chunk `c{i}` is chunk i of the DAG: one token a letter, declared in any order.

    Unless `plain`, some chunks have a `start`, an `end` or settings to generate.
    """
    structure = draw(dag if dag is not None else dags())
    num_chunks = len(structure.lengths)
    declared = draw(st.permutations(range(num_chunks)))
    place = {i: at for at, i in enumerate(declared)}
    chunks = []
    for i in declared:
        length = structure.lengths[i]
        text = "".join(LETTERS[(i + step) % len(LETTERS)] for step in range(length))
        start = end = generate = None
        if not plain:
            pinned = draw(st.sampled_from(["no", "no", "no", "start", "end"]))
            start = draw(st.integers(0, 99)) if pinned == "start" else None
            end = draw(st.integers(length, length + 99)) if pinned == "end" else None
            size = draw(st.none() | st.integers(1, 40))
            generate = Generate(size) if size else None
        parents = draw(st.permutations([place[parent] for parent in structure.parents[i]]))
        chunks.append(GraphChunk(f"c{i}", text, tuple(parents), start, end, generate))
    return Graph(tuple(chunks), draw(st.sampled_from(policies)))  # pyright: ignore[reportArgumentType]


def bundles(
    max_chunks: int = MAX_CHUNKS, max_length: int = MAX_LENGTH, plain: bool = True
) -> st.SearchStrategy[Bundle]:
    """Compiled graphs, with the `bytes` tokenizer."""
    made = graphs(dags(max_chunks, max_length), plain=plain)
    return made.map(lambda graph: compile_graph(graph, tokenizer()))


def dag_in_order(graph: Graph, names: Sequence[str]) -> Dag:
    """What a graph of ASCII texts says of lengths and parents, with its chunks in the given order."""
    chunk_by_name = {chunk.name: chunk for chunk in graph.chunks}
    place = {name: at for at, name in enumerate(names)}
    chunks = [chunk_by_name[name] for name in names]
    return Dag(
        tuple(len(chunk.text or "") for chunk in chunks),
        tuple(tuple(sorted(place[graph.chunks[i].name] for i in chunk.parents)) for chunk in chunks),
    )


def content(bundle: Bundle) -> dict[str, Any]:
    """Everything a bundle holds, as values that can be compared."""
    arrays = ("input_ids", "position_ids", "span_offsets", "parent_offsets", "parent_indices")
    return {key: getattr(bundle, key).tolist() for key in arrays} | {
        "span_names": bundle.span_names,
        "meta": bundle.meta,
    }


def drawn(mask: Any) -> str:
    """A bool matrix as text: a line for each query, `#` where it sees the key, `.` where it does not."""
    return "\n".join("".join("#" if seen else "." for seen in row) for row in np.asarray(mask).tolist())


@st.composite
def running(draw: st.DrawFn, max_chunks: int = 7, max_length: int = 5, most: int = 4) -> Bundle:
    """Bundles of every position policy in which some chunks are pinned, and some generate up to `most`."""
    bundle = draw(bundles(max_chunks, max_length, plain=False))
    generate = {
        name: replace(how, max_new_tokens=min(how.max_new_tokens, most))
        for name, how in bundle.meta.generate.items()
    }
    return replace(bundle, meta=replace(bundle.meta, generate=generate))
