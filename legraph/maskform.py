"""The cheapest exact form of the mask for a kernel that asks about one pair of tokens after the other.

Every form is the whole mask, and the graph decides which is the cheapest. In order of what they are for:

- "query": a query compares a key with the stretches of keys that its chunk sees (`ChunkMask.intervals`).
  Questions over documents: parents that are neighbours are one stretch.
- "key": a key compares a query with the stretches of queries that see its chunk (`ChunkMask.seen_by`).
  Trees in depth-first order; a question over documents that lie scattered.
- "mixed": a few stretches of either. Each edge of the graph is told from one of its ends, or from both.
- "adjacency": a table of chunks x chunks, up to 4,096 chunks (16 MB). What LE-ATTENTION does for every graph.
- "bits": the adjacency of chunks within active blocks, a bit an edge (`blocks.EdgeBits`). Always possible, in
  memory for edges and blocks only; four times the time of the table.

With R stretches for each query and C for each key, query q sees key k iff

    query   first[q] <= k <= q                                or  start_i[q] <= k < end_i[q]  for an i < R
    key     k <= q < until[k]                                 or  start_j[k] <= q < end_j[k]  for a  j < C
    mixed   k <= q and (first[q] <= k or q < until[k])        or  either of these

`first` and `until` hold a chunk's own causal triangle, with the parents directly before it or the children
directly behind it. Each is exact by itself, so either will do, and "mixed" reads both: for one comparison
more neighbours of both kinds are told, and what is told twice does no harm.

Who tells an edge in the mixed form: first `first` and `until`, which are there anyway. Then in turns, a
query chunk that needs R stretches at most for what is left tells all its edges, and a key chunk that needs C
at most tells all of its own. What nobody could tell before may be little enough after the others have told
theirs; where edges are left in the end, the graph does not have this form.

For example documents in any order, each of which sees the header of its source, and a question about some of
them. Too many documents see a header for its key to tell, and the question sees too many for its query. But a
document's query tells the one header, and a document's key the one question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from legraph.mask import BoolArray, ChunkMask, Int64Array, Intervals, SeenBy

FormName = Literal["query", "key", "mixed", "adjacency", "bits"]

# R and C are one of these, and in the mixed form the same one. Every form is a program of its own, which
# takes seconds to compile for each shape, and torch keeps a limited number of them.
STRETCHES = (0, 1, 2, 4)
# A table of more chunks is too large for a cache, and for something that is made for every graph.
MAX_ADJACENCY_CHUNKS = 4096
# Graphs are told in a round or two; only one made for the purpose needs more than this.
_MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class MaskForm:
    """A form, with the most stretches that a query chunk (R) and a key chunk (C) compare in it."""

    name: FormName
    query_stretches: int = 0
    key_stretches: int = 0

    @property
    def num_reads(self) -> int:
        """How many arrays are read for a pair, which is what a form of stretches costs."""
        return 2 * (self.query_stretches + self.key_stretches) + (2 if self.name == "mixed" else 1)


ADJACENCY, BITS = MaskForm("adjacency"), MaskForm("bits")
_WIDEST = MaskForm("mixed", STRETCHES[-1], STRETCHES[-1])
# From the cheapest on. Where two cost the same, the one that asks more of queries and less of keys.
STRETCH_FORMS = sorted(
    [
        *(MaskForm("query", query_stretches=most) for most in STRETCHES),
        *(MaskForm("key", key_stretches=most) for most in STRETCHES),
        *(MaskForm("mixed", most, most) for most in STRETCHES[1:]),
    ],
    key=lambda form: (form.num_reads, form.key_stretches),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What pairs are compared with in a form of stretches, for each of K chunks, in tokens.

    Attributes:
        first, until: int64 [K], see the module.
        by_query: int64 [R, 2, K], start and end of the i-th stretch of keys that the chunk's queries see. A
            chunk that has fewer has an empty one there: 0, 0.
        by_key: int64 [C, 2, K], start and end of the j-th stretch of queries that see the chunk's keys.
    """

    first: Int64Array
    until: Int64Array
    by_query: Int64Array
    by_key: Int64Array


def cheapest_form(mask: ChunkMask) -> MaskForm:
    """The form that reads the fewest arrays for a pair, or else the table, or bits.

    O((chunks + edges) log edges).
    """
    return next(forms_of(mask))


def forms_of(mask: ChunkMask) -> Iterator[MaskForm]:
    """All forms that the graph has, from the cheapest on."""
    edges = _Edges(mask)
    # A graph that has any form of stretches has the widest one too.
    if edges.fits(_WIDEST):
        yield from (form for form in STRETCH_FORMS if edges.fits(form))
    if mask.num_chunks <= MAX_ADJACENCY_CHUNKS:
        yield ADJACENCY
    yield BITS


def bounds(mask: ChunkMask, form: MaskForm) -> Bounds:
    """What a form of stretches compares with; the graph must have that form."""
    edges = _Edges(mask)
    told = edges.told_by(form)
    assert told is not None, f"the graph does not have the form {form}"
    by_query, by_key = (
        _side_by_side(stretches, needed, most)
        for stretches, needed, most in zip(
            (edges.rows, edges.columns), told, (form.query_stretches, form.key_stretches), strict=True
        )
    )
    return Bounds(edges.rows.first, edges.columns.until, by_query, by_key)


class _Edges:
    """The edges of a graph, each with the stretch that could tell it from either end."""

    def __init__(self, mask: ChunkMask):
        self.mask = mask
        self.rows, self.columns = mask.intervals(), mask.seen_by()

    @cached_property
    def _ends(self) -> tuple[tuple[Int64Array, Int64Array, Int64Array], ...]:
        """For queries and for keys: the chunk of each stretch [S], of each edge [E], its stretch [E].

        An edge that `first` or `until` tells has the stretch -1.
        """
        starts, num_tokens = self.mask.span_offsets[:-1], self.mask.num_tokens
        children, parents = self.mask.children_of_edges(), self.mask.parent_indices
        by_query = _stretch_of(self.rows, children, starts[parents], num_tokens)
        by_key = _stretch_of(self.columns, parents, starts[children], num_tokens)
        return (_owners(self.rows), children, by_query), (_owners(self.columns), parents, by_key)

    def fits(self, form: MaskForm) -> bool:
        return self.told_by(form) is not None

    def told_by(self, form: MaskForm) -> tuple[BoolArray, BoolArray] | None:
        """Which stretches of queries and of keys the form needs, or None if the graph does not have it."""
        all_rows, all_columns = (np.ones(len(each.starts), np.bool_) for each in (self.rows, self.columns))
        if form.name == "query":
            fits = self.rows.max_per_chunk() <= form.query_stretches
            return (all_rows, ~all_columns) if fits else None
        if form.name == "key":
            fits = self.columns.max_per_chunk() <= form.key_stretches
            return (~all_rows, all_columns) if fits else None
        return self._told_in_turns(form.query_stretches, form.key_stretches)

    def _told_in_turns(self, by_query: int, by_key: int) -> tuple[BoolArray, BoolArray] | None:
        """As `told_by`, with so many stretches at most for a query chunk and for a key chunk."""
        (row_owner, _, row), (column_owner, _, column) = self._ends
        told = np.zeros(len(row_owner), dtype=np.bool_), np.zeros(len(column_owner), dtype=np.bool_)
        left = (row >= 0) & (column >= 0)
        for _ in range(_MAX_ROUNDS):
            for tells, most, end in zip(told, (by_query, by_key), self._ends, strict=True):
                owner, edge_owner, stretch = end
                needed = np.zeros(len(owner), dtype=np.bool_)
                needed[stretch[left]] = True
                able = np.bincount(owner[needed], minlength=self.mask.num_chunks) <= most
                tells |= needed & able[owner]
                left &= ~able[edge_owner]
            if not left.any():
                return told
        return None


def _owners(stretches: Intervals | SeenBy) -> Int64Array:
    """int64 [S], the chunk of each stretch."""
    return np.repeat(np.arange(len(stretches.offsets) - 1), np.diff(stretches.offsets))


def _stretch_of(
    stretches: Intervals | SeenBy, owner: Int64Array, token: Int64Array, num_tokens: int
) -> Int64Array:
    """The stretch of each owner that holds the token; -1 where it has none."""
    # One ascending line of numbers, on which every chunk has room for all tokens.
    room = _owners(stretches) * num_tokens
    place = owner * num_tokens + token
    found = np.searchsorted(room + stretches.starts, place, side="right").astype(np.int64) - 1
    inside = found >= 0
    inside[inside] = place[inside] < (room + stretches.ends)[found[inside]]
    return np.where(inside, found, -1)


def _side_by_side(stretches: Intervals | SeenBy, needed: BoolArray, most: int) -> Int64Array:
    """int64 [most, 2, K], starts and ends of the needed stretches of each chunk, of which it has `most`."""
    owner = _owners(stretches)[needed]
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    table = np.zeros((most, 2, len(stretches.offsets) - 1), dtype=np.int64)
    table[place, 0, owner] = stretches.starts[needed]
    table[place, 1, owner] = stretches.ends[needed]
    return table
