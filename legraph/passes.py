"""One forward pass over the flat cache, as plain numbers: which tokens, in which slots, seeing which slots.

A pass is a list of segments. Here they are cut into parts that fit, and turned into the mask that a pass
needs: bool rows over the slots, or, where no token sees anything from before the pass, the `ChunkMask` of
the pass alone. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from legraph.mask import BoolArray, ChunkMask, Int64Array
from legraph.seen import SeenIntervals
from legraph.slots import Extent


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one chunk, in neighbouring slots.

    Attributes:
        ids, positions: int64 [T].
        slot: where the first of them goes.
        own_start: the first slot of the chunk; the tokens see the chunk's own from there up to themselves.
        seen: slots of the chunk's parents.
        wants_logits: the last token's are needed.
    """

    ids: Int64Array
    positions: Int64Array
    slot: int
    own_start: int
    seen: tuple[Extent, ...] = ()
    wants_logits: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def slots(self) -> Int64Array:
        return np.arange(self.slot, self.slot + len(self), dtype=np.int64)

    def cut(self, first: int, end: int) -> Segment:
        """Its tokens `first:end`; only a part with the last token wants logits."""
        return replace(
            self,
            ids=self.ids[first:end],
            positions=self.positions[first:end],
            slot=self.slot + first,
            wants_logits=self.wants_logits and end >= len(self),
        )


def columns(segments: Sequence[Segment]) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Ids, positions and slots of all tokens of a pass: int64 [T] each."""
    ids = np.concatenate([segment.ids for segment in segments])
    positions = np.concatenate([segment.positions for segment in segments])
    return ids, positions, np.concatenate([segment.slots for segment in segments])


def wanted_tokens(segments: Sequence[Segment]) -> Int64Array:
    """The tokens of a pass whose logits are needed: int64 [W], ascending."""
    lasts = np.cumsum([len(segment) for segment in segments]) - 1
    return lasts[[segment.wants_logits for segment in segments]]


def split(segments: Sequence[Segment], max_tokens: int) -> Iterator[list[Segment]]:
    """The same tokens in parts of at most `max_tokens`.

    A segment is cut only if it is longer than a part: a part of whole chunks may see nothing but itself.
    """
    part, room = list[Segment](), max_tokens
    for segment in segments:
        at = 0
        while at < len(segment):
            if room < min(len(segment) - at, max_tokens):
                yield part
                part, room = [], max_tokens
            end = min(len(segment), at + room)
            part.append(segment.cut(at, end))
            room -= end - at
            at = end
    if part:
        yield part


def visible_rows(segments: Sequence[Segment], num_slots: int) -> BoolArray:
    """What the tokens of a pass see: bool [T, num_slots], slots of the pass itself included."""
    rows = np.zeros((sum(map(len, segments)), num_slots), dtype=np.bool_)
    at = 0
    for segment in segments:
        length = len(segment)
        block = rows[at : at + length]
        for extent in segment.seen:
            block[:, extent.start : extent.end] = True
        block[:, segment.own_start : segment.slot] = True
        block[:, segment.slot : segment.slot + length] = np.tri(length, dtype=np.bool_)
        at += length
    return rows


def seen_intervals(segments: Sequence[Segment]) -> SeenIntervals:
    """The mask of a pass in closed form. Says the same as `visible_rows`."""
    counts = np.array([len(segment) for segment in segments], dtype=np.int64)
    causal_starts, offsets, stretches = list[int](), [0], list[Extent]()
    for segment in segments:
        seen = segment.seen
        first = segment.own_start
        if seen and seen[-1].end == first:
            # A parent that lies directly before the chunk is one with the chunk's own stretch.
            first, seen = seen[-1].start, seen[:-1]
        causal_starts.append(first)
        stretches += seen
        offsets.append(len(stretches))
    return SeenIntervals(
        np.cumsum(counts) - counts,
        counts,
        np.array([segment.slot for segment in segments], dtype=np.int64),
        np.array(causal_starts, dtype=np.int64),
        np.array(offsets, dtype=np.int64),
        np.array([extent.start for extent in stretches], dtype=np.int64),
        np.array([extent.end for extent in stretches], dtype=np.int64),
    )


def own_mask(segments: Sequence[Segment]) -> ChunkMask | None:
    """The mask of a pass that sees nothing from before it, or None if it does.

    Segments must be whole chunks in the order of their slots, parents before children.
    """
    starts = np.array([segment.slot for segment in segments], dtype=np.int64)
    lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
    if np.any(np.diff(starts) <= 0) or any(segment.own_start != segment.slot for segment in segments):
        return None
    rows = list[Int64Array]()
    for i, segment in enumerate(segments):
        parents = list[Int64Array]()
        for extent in segment.seen:
            first, end = np.searchsorted(starts, [extent.start, extent.end])
            if end > i or lengths[first:end].sum() != len(extent):
                return None
            parents.append(np.arange(first, end, dtype=np.int64))
        rows.append(np.concatenate(parents) if parents else np.empty(0, dtype=np.int64))
    return ChunkMask(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.concatenate(rows),
    )
