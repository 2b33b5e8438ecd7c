"""Who may attend to whom: the one rule, in several exact forms.

`ChunkMask` holds the structure (spans of chunks, direct parents in CSR form). From it come

- `dense()`: the reference, N x N, written for reading; every other form is tested against it,
- `visible(q, k)`: single pairs, without a matrix,
- `intervals()`: for each chunk, the stretches of tokens it sees. Parents that are neighbours in token order
  melt into one stretch, so a question over 500 documents is one interval, not 500 edges,
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
        children = np.repeat(np.arange(self.num_chunks), np.diff(self.parent_offsets))
        return children * self.num_chunks + self.parent_indices

    def intervals(self) -> Intervals:
        """The stretches of tokens that each chunk sees. O(chunks + edges)."""
        num_chunks = self.num_chunks
        children = np.repeat(np.arange(num_chunks), np.diff(self.parent_offsets))
        parents = self.parent_indices
        opens = np.ones(len(parents), dtype=np.bool_)
        opens[1:] = (parents[1:] != parents[:-1] + 1) | (children[1:] != children[:-1])
        closes = np.ones(len(parents), dtype=np.bool_)
        closes[:-1] = opens[1:]
        owner = children[opens]
        starts = self.span_offsets[parents[opens]]
        ends = self.span_offsets[parents[closes] + 1]
        # A stretch that ends where its chunk starts is one with the chunk's own causal stretch.
        touches = ends == self.span_offsets[owner]
        first = self.span_offsets[:-1].copy()
        first[owner[touches]] = starts[touches]
        rest = ~touches
        offsets = np.zeros(num_chunks + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner[rest], minlength=num_chunks), out=offsets[1:])
        return Intervals(first, offsets, starts[rest], ends[rest])

    def num_visible_pairs(self) -> int:
        """Number of (query, key) pairs that may attend: the arithmetic attention cannot avoid."""
        lengths = np.diff(self.span_offsets)
        children = np.repeat(np.arange(self.num_chunks), np.diff(self.parent_offsets))
        triangles = int((lengths * (lengths + 1) // 2).sum())
        return triangles + int((lengths[children] * lengths[self.parent_indices]).sum())
