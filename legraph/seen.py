"""What the queries of a pass see, as stretches of key slots. numpy only.

The form that every kernel of ours starts from: O(segments + stretches), whatever is seen. A bundle by itself
is such a pass too, with token i in slot i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from legraph.mask import BoolArray, ChunkMask, Int64Array


@dataclass(frozen=True, slots=True)
class SeenIntervals:
    """What each query sees.

    Query `queries[i] + t` of segment i (t < counts[i]) sees `causal_starts[i]:slots[i] + t + 1`, and
    `range_starts[j]:range_ends[j]` for j in `range_offsets[i]:range_offsets[i + 1]`.

    Attributes:
        queries, counts, slots, causal_starts: int64 [C].
        range_offsets: int64 [C + 1]; range_starts, range_ends: int64 [R], disjoint within a segment.
    """

    queries: Int64Array
    counts: Int64Array
    slots: Int64Array
    causal_starts: Int64Array
    range_offsets: Int64Array
    range_starts: Int64Array
    range_ends: Int64Array

    @staticmethod
    def of(mask: ChunkMask) -> SeenIntervals:
        """All tokens of a bundle, with their keys in token order."""
        found, starts = mask.intervals(), mask.span_offsets[:-1]
        lengths = np.diff(mask.span_offsets)
        return SeenIntervals(starts, lengths, starts, found.first, found.offsets, found.starts, found.ends)

    @property
    def num_queries(self) -> int:
        return int(self.counts.sum())

    @property
    def num_slots(self) -> int:
        """All keys lie before this slot."""
        return int((self.slots + self.counts).max())

    def num_keys(self) -> Int64Array:
        """Slots that the last query of each segment sees: int64 [C]."""
        return self.num_in_ranges() + self.slots + self.counts - self.causal_starts

    def num_in_ranges(self) -> Int64Array:
        """Slots that all queries of each segment see, the causal stretch left out: int64 [C]."""
        before = np.concatenate([[0], np.cumsum(self.range_ends - self.range_starts)])
        return before[self.range_offsets[1:]] - before[self.range_offsets[:-1]]

    def num_pairs(self) -> int:
        """Visible (query, key) pairs."""
        return int((self.counts * self.num_keys() - self.counts * (self.counts - 1) // 2).sum())

    def is_causal(self) -> bool:
        """Whether it is plain causal attention: one segment, whose t-th query sees the first t keys."""
        return len(self.counts) == 1 and bool(self.num_keys()[0] == self.counts[0])

    def is_like_previous(self) -> BoolArray:
        """bool [C]: the segment goes on in the slots after the previous one, and has the same ranges."""
        sizes = np.diff(self.range_offsets)
        follows = self.slots[1:] == self.slots[:-1] + self.counts[:-1]
        follows &= self.queries[1:] == self.queries[:-1] + self.counts[:-1]
        follows &= sizes[1:] == sizes[:-1]
        # Row i + 1 lies as far behind row i as row i is long.
        owner = np.repeat(np.arange(len(sizes) - 1), sizes[:-1])
        at = np.arange(len(owner))
        after = np.minimum(at + sizes[owner], len(self.range_starts) - 1)
        differs = self.range_starts[at] != self.range_starts[after]
        differs |= self.range_ends[at] != self.range_ends[after]
        follows &= np.bincount(owner[differs], minlength=len(follows)) == 0
        return np.concatenate([[False], follows])

    def melted(self) -> SeenIntervals:
        """The same with neighbours that see the same made one: a fully causal graph becomes one segment."""
        starts_anew = ~self.is_like_previous()
        starts_anew[1:] |= self.causal_starts[1:] != self.causal_starts[:-1]
        if starts_anew.all():
            return self
        firsts = np.flatnonzero(starts_anew)
        sizes = np.diff(self.range_offsets)
        kept = np.repeat(starts_anew, sizes)
        return SeenIntervals(
            self.queries[firsts],
            np.add.reduceat(self.counts, firsts),
            self.slots[firsts],
            self.causal_starts[firsts],
            np.concatenate([[0], np.cumsum(sizes[firsts])]),
            self.range_starts[kept],
            self.range_ends[kept],
        )
