"""Graph + token counts -> `Layout`: where every chunk's tokens lie, and which position ids they have.

Knows nothing of token ids or tokenizers; numpy only. Cost O(tokens + (chunks + edges) log edges).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, get_args

import numpy as np

from legraph.graph import Graph, GraphChunk
from legraph.mask import ChunkMask, Int64Array
from legraph.order import arranged, cheapest_order
from legraph.schema import PositionPolicy

TokenOrder = Literal["declared", "locality"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Tokens of a graph in token order.

    Attributes:
        order: int64 [K], index into `graph.chunks` of the i-th chunk in token order.
        mask: spans and parents in token order.
        position_ids: int64 [N].
    """

    order: Int64Array
    mask: ChunkMask
    position_ids: Int64Array


def build_layout(
    graph: Graph,
    lengths: Int64Array,
    order: TokenOrder = "declared",
    text_lengths: Int64Array | None = None,
) -> Layout:
    """Lays a graph out.

    Args:
        lengths: int64 [K], number of tokens of each chunk, in declared order.
        text_lengths: the same without completions: `end` fixes where the text ends. No chunk's `end` may be
            smaller (`negative_starts`). Default: `lengths`.
        order: "declared" is the stable topological order; "locality" is the one that attention costs least
            in, of those that `order` knows, and "declared" if none costs less (`order.estimated_cost`). It
            moves tokens and nothing else: position ids are those of "declared" under every policy.
    """
    if order not in get_args(TokenOrder):
        raise ValueError(f"order is {order!r}; expected one of {', '.join(get_args(TokenOrder))}")
    declared = graph.order()
    chosen = np.array(declared, dtype=np.int64)
    mask = _structure(graph, lengths, chosen)
    if order == "locality":
        best, mask = cheapest_order(mask)
        chosen = chosen[best]
    starts = _starts(graph, lengths, lengths if text_lengths is None else text_lengths, declared)[chosen]
    position_ids = np.arange(mask.num_tokens) + np.repeat(starts - mask.span_offsets[:-1], lengths[chosen])
    return Layout(chosen, mask, position_ids)


def negative_starts(graph: Graph, text_lengths: Int64Array) -> dict[int, int]:
    """The chunks (in declared order) whose `end` is smaller than their text, and where they would start."""
    ends = ((i, chunk.end) for i, chunk in enumerate(graph.chunks) if chunk.end is not None)
    return {i: end - int(text_lengths[i]) for i, end in ends if end < text_lengths[i]}


def start_after(ends: Sequence[int], policy: PositionPolicy, next_flat: int) -> int:
    """First position of a chunk without `start` or `end`.

    Args:
        ends: for each parent, the position just past its last token.
        next_flat: the position just past everything before it in token order.
    """
    if policy == "causal":
        return max(ends, default=0)
    return next_flat if policy == "flat" else 0


def _structure(graph: Graph, lengths: Int64Array, order: Int64Array) -> ChunkMask:
    rows = [chunk.parents for chunk in graph.chunks]
    num_parents = np.array([len(row) for row in rows], dtype=np.int64)
    return arranged(order, lengths, num_parents, np.array(list(chain.from_iterable(rows)), dtype=np.int64))


def _starts(graph: Graph, lengths: Int64Array, text_lengths: Int64Array, order: list[int]) -> Int64Array:
    """First position of every chunk, by its index in the graph. `order` is topological; "flat" follows it."""
    has_child = {parent for chunk in graph.chunks for parent in chunk.parents}
    starts = np.zeros(len(order), dtype=np.int64)
    end_of = [0] * len(order)
    next_flat = 0
    for i in order:
        chunk, length = graph.chunks[i], int(lengths[i])
        start = _explicit_start(chunk, int(text_lengths[i]))
        if start is None:
            start = start_after([end_of[parent] for parent in chunk.parents], graph.positions, next_flat)
        starts[i] = start
        end_of[i] = start + length
        next_flat += length
        if chunk.generate is not None and i in has_child:
            # What is generated here comes before the children in flat order too, so its room is kept.
            next_flat += chunk.generate.max_new_tokens
    return starts


def _explicit_start(chunk: GraphChunk, text_length: int) -> int | None:
    if chunk.end is None:
        return chunk.start
    assert chunk.end >= text_length
    return chunk.end - text_length
