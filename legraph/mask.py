"""Who may attend to whom: the one rule, in several exact forms.

`ChunkMask` holds the structure (spans of chunks, direct parents in CSR form). From it come

- `dense()`: the reference, N x N, written for reading; every other form is tested against it,
- `visible(q, k)`: single pairs, without a matrix,
- `intervals()`: for each chunk, the stretches of tokens it sees. Parents that are neighbours in token order
  melt into one stretch, so a question over 500 documents is one interval, not 500 edges,
- `seen_by()`: the same the other way round, for each chunk the stretches of tokens that see it,
- `num_visible_pairs()`.

    chunks: a | b (sees a) | c (sees a, b)        a b c <- keys
                                                a \\ . .
    one triangle a chunk,                       b # \\ .
    one full rectangle an edge                  c # # \\
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Intervals:
    """What each chunk sees, as stretches of tokens.

    A token q of chunk c sees key k iff `first[c] <= k <= q`, or k lies in one of the stretches
    `starts[i] <= k < ends[i]` for i in `offsets[c]:offsets[c + 1]`.

    Attributes:
        first: int64 [K], start of the stretch that ends at the query itself; it reaches back over parents
            that stand directly before the chunk.
        offsets: int64 [K + 1]
        starts, ends: int64 [R], ascending and disjoint within a chunk, never touching each other or `first`.
    """

    first: Int64Array
    offsets: Int64Array
    starts: Int64Array
    ends: Int64Array

    def max_per_chunk(self) -> int:
        return int(np.diff(self.offsets).max())


@dataclass(frozen=True, slots=True)
class SeenBy:
    """Who sees each chunk, as stretches of tokens: the mask by its columns, as `Intervals` is by its rows.

    A token k of chunk p is seen by query q iff `k <= q < until[p]`, or q lies in one of the stretches
    `starts[i] <= q < ends[i]` for i in `offsets[p]:offsets[p + 1]`. Of a tree in depth-first order, in which
    chunks see all their ancestors, `until` tells everything: it is the end of the chunk's subtree.

    Attributes:
        until: int64 [K], end of the stretch that begins at the key itself; it reaches on over children that
            stand directly behind the chunk.
        offsets: int64 [K + 1]
        starts, ends: int64 [C], ascending and disjoint within a chunk, never touching each other or `until`.
    """

    until: Int64Array
    offsets: Int64Array
    starts: Int64Array
    ends: Int64Array

    def max_per_chunk(self) -> int:
        return int(np.diff(self.offsets).max())


@dataclass(frozen=True)
class ChunkMask:
    """The attention structure of a bundle.

    Attributes:
        span_offsets: int64 [K + 1], chunk i holds tokens `span_offsets[i]:span_offsets[i + 1]`.
        parent_offsets, parent_indices: int64 [K + 1], int64 [E], CSR of direct parents, ascending in a row,
            each smaller than the row's own index.
    """

    span_offsets: Int64Array
    parent_offsets: Int64Array
    parent_indices: Int64Array

    @property
    def num_tokens(self) -> int:
        return int(self.span_offsets[-1])

    @property
    def num_chunks(self) -> int:
        return len(self.span_offsets) - 1

    @property
    def num_edges(self) -> int:
        return len(self.parent_indices)

    def parents(self, chunk: int) -> Int64Array:
        """Indices of the direct parents of a chunk, ascending."""
        return self.parent_indices[self.parent_offsets[chunk] : self.parent_offsets[chunk + 1]]

    def span(self, chunk: int) -> slice:
        return slice(int(self.span_offsets[chunk]), int(self.span_offsets[chunk + 1]))

    def chunk_of(self, tokens: ArrayLike) -> Int64Array:
        """Index of the chunk that holds each token."""
        return np.searchsorted(self.span_offsets, np.asarray(tokens), side="right").astype(np.int64) - 1

    def dense(self) -> BoolArray:
        """The reference: bool [N, N], True where query (row) may attend to key (column)."""
        mask = np.zeros((self.num_tokens, self.num_tokens), dtype=np.bool_)
        for chunk in range(self.num_chunks):
            queries = self.span(chunk)
            length = queries.stop - queries.start
            mask[queries, queries] = np.tri(length, dtype=np.bool_)
            for parent in self.parents(chunk):
                mask[queries, self.span(parent)] = True
        return mask

    def visible(self, query: ArrayLike, key: ArrayLike) -> Any:
        """Whether query tokens may attend to key tokens; both are token indices and broadcast.

        Returns a bool for two integers, else a bool array. O(log edges) a pair.

        Raises:
            IndexError: an index is not in 0..N-1.
        """
        q, k = np.broadcast_arrays(np.asarray(query), np.asarray(key))
        for index in (q, k):
            if index.size and (index.min() < 0 or index.max() >= self.num_tokens):
                raise IndexError(f"token indices must lie in 0..{self.num_tokens - 1}")
        q_chunk, k_chunk = self.chunk_of(q), self.chunk_of(k)
        seen = ((q_chunk == k_chunk) & (k <= q)) | self._is_parent(q_chunk, k_chunk)
        return bool(seen) if seen.ndim == 0 else seen

    def _is_parent(self, child: Int64Array, parent: Int64Array) -> BoolArray:
        edges = self._edge_keys
        wanted = child * self.num_chunks + parent
        at = np.searchsorted(edges, wanted)
        found = np.zeros(wanted.shape, dtype=np.bool_)
        inside = at < len(edges)
        found[inside] = edges[at[inside]] == wanted[inside]
        return found

    @cached_property
    def _edge_keys(self) -> Int64Array:
        """Every edge as one ascending number: child * K + parent."""
        return self.children_of_edges() * self.num_chunks + self.parent_indices

    def intervals(self) -> Intervals:
        """The stretches of tokens that each chunk sees. O(chunks + edges)."""
        children, parents = self.children_of_edges(), self.parent_indices
        opens, closes = runs(children, parents)
        owner = children[opens]
        starts = self.span_offsets[parents[opens]]
        ends = self.span_offsets[parents[closes] + 1]
        # A stretch that ends where its chunk starts is one with the chunk's own causal stretch.
        touches = ends == self.span_offsets[owner]
        first = self.span_offsets[:-1].copy()
        first[owner[touches]] = starts[touches]
        rest = ~touches
        return Intervals(first, _row_offsets(owner[rest], self.num_chunks), starts[rest], ends[rest])

    def seen_by(self) -> SeenBy:
        """The stretches of tokens that see each chunk. O(chunks + edges log edges)."""
        # Edges are sorted by child, and a stable sort by parent keeps the children of a parent ascending.
        order = np.argsort(self.parent_indices, kind="stable")
        children, parents = self.children_of_edges()[order], self.parent_indices[order]
        opens, closes = runs(parents, children)
        owner = parents[opens]
        starts = self.span_offsets[children[opens]]
        ends = self.span_offsets[children[closes] + 1]
        # A stretch that starts where its chunk ends is one with the chunk's own causal stretch.
        touches = starts == self.span_offsets[owner + 1]
        until = self.span_offsets[1:].copy()
        until[owner[touches]] = ends[touches]
        rest = ~touches
        return SeenBy(until, _row_offsets(owner[rest], self.num_chunks), starts[rest], ends[rest])

    def children_of_edges(self) -> Int64Array:
        """int64 [E], the child of each edge, as `parent_indices` has the parents."""
        return np.repeat(np.arange(self.num_chunks), np.diff(self.parent_offsets))

    def num_visible_pairs(self) -> int:
        """Number of (query, key) pairs that may attend: the arithmetic attention cannot avoid."""
        lengths = np.diff(self.span_offsets)
        triangles = int((lengths * (lengths + 1) // 2).sum())
        return triangles + int((lengths[self.children_of_edges()] * lengths[self.parent_indices]).sum())


def runs(owner: Int64Array, other: Int64Array) -> tuple[BoolArray, BoolArray]:
    """Runs of neighbours among the other ends of edges, which are sorted by owner, then by the other end.

    Returns:
        bool [E], bool [E]: whether an edge is the first of its run, and whether it is the last.
    """
    opens = np.ones(len(other), dtype=np.bool_)
    opens[1:] = (other[1:] != other[:-1] + 1) | (owner[1:] != owner[:-1])
    closes = np.ones(len(other), dtype=np.bool_)
    closes[:-1] = opens[1:]
    return opens, closes


def _row_offsets(owner: Int64Array, num_rows: int) -> Int64Array:
    """CSR offsets int64 [num_rows + 1] of entries that are sorted by their row."""
    offsets = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=num_rows), out=offsets[1:])
    return offsets
