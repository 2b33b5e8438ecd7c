"""Cuts what a pass sees into the work of a GPU kernel's programs (`intervalkernel`). numpy only.

A *tile* is some neighbouring queries, with all the query heads that share a key head: the rows of one matrix
product. It first goes through whole blocks of keys that all of its queries see, which need no mask, and then
through what is left over, which does:

- *whole blocks*: the part of each stretch that is a multiple of a block, and of the causal stretch what lies
  before the tile's first query,
- *the rest*: the ends of the stretches, one after the other in a list, whatever their places (so that forty
  short stretches fill blocks as well as one long one), and the causal stretch around the diagonal.

Short chunks that see the same stretches share a tile. A tile that sees much more than others is dealt out to
several programs, whose softmaxes are joined afterwards (the split of flash-decoding, Dao et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from legraph.mask import BoolArray, Int64Array
from legraph.seen import SeenIntervals


class Variant(NamedTuple):
    """One compilation of the kernel: rows of a tile, keys of a block; warps and pipeline stages."""

    rows: int
    block: int
    warps: int
    stages: int


class Variants(NamedTuple):
    """For chunks that share tiles, for others, and for very long ones."""

    short: Variant
    medium: Variant
    large: Variant


# Found by measuring all that fit: rows, keys of a block, warps, stages.
VARIANTS = Variants(Variant(64, 32, 4, 1), Variant(64, 64, 4, 3), Variant(128, 64, 8, 3))
# For keys or values of more than 128 channels.
WIDE_VARIANTS = Variants(*[Variant(64, 32, 4, 2)] * 3)
# float32 is not pipelined: with two stages, triton 3.6 makes a program that races (tiles of 128 rows).
FLOAT32_VARIANTS = Variants(*[Variant(64, 32, 4, 1)] * 3)

NOT_SPLIT = -1
# Columns of a tile.
QUERY, COUNT, SLOT, WHOLE_START, OWN_START = range(5)
FIRST_RANGE, END_RANGE, FIRST_LISTED, END_LISTED, PART = range(5, 10)
NUM_COLUMNS = 10
# Programs that a whole GPU is busy with a few times over.
_WANTED_PROGRAMS = 528
_MIN_KEYS_OF_A_PIECE = 2048
# A stretch with fewer whole blocks than this is listed: a loop of its own costs more than looking slots up.
MIN_WHOLE_BLOCKS = 2
# Work that is less than this share of the whole is done by another variant: a launch costs too.
_MIN_SHARE = 1 / 16
# Chunks of so many queries are worth the largest tiles.
_LARGE_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Tiles of one variant, those that see most first.

    Attributes:
        tiles: int64 [P, 10]: first query, number of queries, slot of the first query; first slot of the
            whole blocks of the causal stretch, and first slot of the part of it that needs a mask (to the
            tile's last query); first and end row of `ranges`; first and end entry of the list; first row of
            scratch space (-1: not split).
        is_packed: there are tiles with queries of several chunks.
    """

    variant: Variant
    per_tile: int
    is_packed: bool
    tiles: Int64Array


@dataclass(frozen=True, slots=True)
class Tiling:
    """The work of a pass.

    Attributes:
        ranges: int64 [R, 2], first and end slot of whole blocks.
        listed: int64 [L, 2], first slot and length of each stretch in the list.
        joins: int64 [J, 4]: query, first row of scratch space, rows to join, distance between them.
        num_partial: rows of scratch space.
    """

    groups: tuple[TileGroup, ...]
    ranges: Int64Array
    listed: Int64Array
    joins: Int64Array
    num_partial: int


def lay_tiles(
    seen: SeenIntervals,
    group_size: int,
    num_groups: int,
    variants: Variants,
    max_keys: int | None = None,
) -> Tiling:
    """
    Args:
        group_size, num_groups: query heads per key head, and key heads (times batch).
        max_keys: a tile that sees more keys is split; default by what keeps the chip busy.
    """
    seen = seen.melted()
    is_like_previous = seen.is_like_previous()
    may_share = _may_share(seen, is_like_previous, max(1, variants.short.rows // group_size))
    choice = _choose(seen, may_share, group_size, variants)
    shares = may_share & (choice == 0)
    joins = is_like_previous & shares & np.append(False, shares[:-1])
    made = _Made(num_groups, max_keys)
    for number in np.unique(choice):
        made.add(seen, np.flatnonzero(choice == number), joins, variants[number], group_size)
    return made.tiling()


def _choose(seen: SeenIntervals, may_share: BoolArray, group_size: int, variants: Variants) -> Int64Array:
    """The number of a variant for each chunk."""
    rows = np.array([variant.rows for variant in variants])
    blocks = np.array([variant.block for variant in variants])
    choice = np.where(may_share, 0, np.where(seen.counts < _LARGE_CHUNK, 1, 2))
    # What a tile costs beside its keys is worth a few blocks of them. No launch for next to nothing.
    tiles = seen.counts * group_size / rows[choice]
    work = np.where(may_share, tiles, np.ceil(tiles)) * (seen.num_keys() + 4 * blocks[choice])
    share = np.bincount(choice, weights=work, minlength=len(rows)) / work.sum()
    kept = np.flatnonzero(share >= _MIN_SHARE)
    nearest = np.abs(kept[None, :] - np.arange(len(rows))[:, None]).argmin(1)
    return kept[nearest][choice]


def _may_share(seen: SeenIntervals, is_like_previous: BoolArray, per_tile: int) -> BoolArray:
    """bool [C]: short chunks that can share a tile with a neighbour, and reach back no further than that."""
    is_short = (seen.counts <= 2 * per_tile) & (seen.slots - seen.causal_starts <= 2 * per_tile)
    has_previous = is_like_previous & is_short & np.append(False, is_short[:-1])
    return has_previous | np.append(has_previous[1:], False)


@dataclass
class _Made:
    """The parts of a tiling, growing."""

    num_groups: int
    max_keys: int | None
    groups: list[TileGroup] = field(default_factory=list[TileGroup])
    ranges: list[Int64Array] = field(default_factory=list[Int64Array])
    listed: list[Int64Array] = field(default_factory=list[Int64Array])
    joins: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])
    num_ranges: int = 0
    num_listed: int = 0
    num_partial: int = 0

    def tiling(self) -> Tiling:
        joins = np.array(self.joins, dtype=np.int64).reshape(-1, 4)
        return Tiling(
            tuple(self.groups),
            np.concatenate(self.ranges),
            np.concatenate(self.listed),
            joins,
            self.num_partial,
        )

    def add(
        self,
        seen: SeenIntervals,
        chunks: Int64Array,
        joins: BoolArray,
        variant: Variant,
        group_size: int,
    ) -> None:
        """The tiles of some chunks, of which those that `joins` says are cut as one with the one before."""
        per_tile = max(1, variant.rows // group_size)
        first_range, end_range, first_listed, end_listed = self._add_stretches(seen, chunks, variant.block)
        first = np.flatnonzero(~joins[chunks])
        is_packed = np.diff(np.append(first, len(chunks))) > 1
        count = np.add.reduceat(seen.counts[chunks], first)
        num_tiles = -(-count // per_tile)
        unit = np.repeat(np.arange(len(first)), num_tiles)
        at = (np.arange(len(unit)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)) * per_tile
        chunk = chunks[first[unit]]
        query, slot = seen.queries[chunk] + at, seen.slots[chunk] + at
        num_queries = np.minimum(per_tile, count[unit] - at)
        start = np.where(
            is_packed[unit], _lowest(seen, query, num_queries, is_packed[unit]), seen.causal_starts[chunk]
        )
        whole = (slot + 1 - start) // variant.block * variant.block
        own = np.where(is_packed[unit], start, start + whole)
        place = first[unit]
        columns = [query, num_queries, slot, start, own, first_range[place], end_range[place]]
        columns += [first_listed[place], end_listed[place], np.full_like(slot, NOT_SPLIT)]
        tiles = np.stack(columns, axis=1)
        keys = seen.num_in_ranges()[chunk] + slot + num_queries - start
        # Largest first, so that no large one is left over at the end; but tiles of a chunk stay together, so
        # that its keys are read from memory once.
        most = np.maximum.reduceat(keys, np.cumsum(num_tiles) - num_tiles)[unit]
        order = np.lexsort((-keys, unit, -most))
        tiles, keys = tiles[order], keys[order]
        limit = self.max_keys
        if limit is None:
            limit = max(_MIN_KEYS_OF_A_PIECE, int(keys.sum()) * self.num_groups // _WANTED_PROGRAMS)
        limit = max(1, limit // variant.block) * variant.block
        is_long = keys > (limit if self.max_keys else 2 * limit)
        ranges = np.concatenate(self.ranges)
        pieces = [piece for tile in tiles[is_long].tolist() for piece in self._split(tile, ranges, limit)]
        split = np.array(pieces, dtype=np.int64).reshape(-1, NUM_COLUMNS)
        tiles = np.concatenate([split, tiles[~is_long]])
        self.groups.append(TileGroup(variant, per_tile, bool(is_packed.any()), tiles))

    def _add_stretches(
        self, seen: SeenIntervals, chunks: Int64Array, block: int
    ) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
        """Whole blocks and ends of what the chunks see; returns where each chunk's are."""
        sizes = np.diff(seen.range_offsets)[chunks]
        owner = np.repeat(np.arange(len(chunks)), sizes)
        at = np.arange(len(owner)) + np.repeat(seen.range_offsets[chunks] - (np.cumsum(sizes) - sizes), sizes)
        starts, ends = seen.range_starts[at], seen.range_ends[at]
        num_whole = (ends - starts) // block
        num_whole[num_whole < MIN_WHOLE_BLOCKS] = 0
        middle = starts + num_whole * block
        has_whole, has_rest = num_whole > 0, middle < ends
        self.ranges.append(np.stack([starts, middle], axis=1)[has_whole])
        self.listed.append(np.stack([middle, ends - middle], axis=1)[has_rest])
        in_list = np.where(has_rest, ends - middle, 0)
        whole = _offsets(np.bincount(owner[has_whole], minlength=len(chunks))) + self.num_ranges
        rest = _offsets(np.bincount(owner, weights=in_list, minlength=len(chunks))) + self.num_listed
        self.num_ranges, self.num_listed = int(whole[-1]), int(rest[-1])
        return whole[:-1], whole[1:], rest[:-1], rest[1:]

    def _split(self, tile: list[int], ranges: Int64Array, max_keys: int) -> list[tuple[int, ...]]:
        """A tile that sees too much, as pieces of `max_keys` keys; the last one has what needs a mask."""
        known = ranges[tile[FIRST_RANGE] : tile[END_RANGE]].tolist()
        pieces: list[list[tuple[int, int]]] = [[]]
        room = max_keys
        for begin, stop in [*known, (tile[WHOLE_START], tile[OWN_START])]:
            while begin < stop:
                if room == 0:
                    pieces.append([])
                    room = max_keys
                cut = min(stop, begin + room)
                pieces[-1].append((begin, cut))
                room -= cut - begin
                begin = cut
        end, count = tile[SLOT] + tile[COUNT], tile[COUNT]
        made = list[tuple[int, ...]]()
        for i, piece in enumerate(pieces):
            is_last = i == len(pieces) - 1
            self.ranges.append(np.array(piece, dtype=np.int64).reshape(-1, 2))
            first, self.num_ranges = self.num_ranges, self.num_ranges + len(piece)
            own = tile[OWN_START] if is_last else end
            listed = (tile[FIRST_LISTED], tile[END_LISTED]) if is_last else (0, 0)
            part = self.num_partial + i * count
            made.append((*tile[:WHOLE_START], own, own, first, self.num_ranges, *listed, part))
        self.joins += [(tile[QUERY] + t, self.num_partial + t, len(pieces), count) for t in range(count)]
        self.num_partial += len(pieces) * count
        return made


def _lowest(seen: SeenIntervals, query: Int64Array, count: Int64Array, wanted: BoolArray) -> Int64Array:
    """The lowest start of the causal stretches of each tile's queries, for the wanted tiles; else 0."""
    found = np.zeros_like(query)
    if wanted.any():
        starts = np.append(np.repeat(seen.causal_starts, seen.counts), np.iinfo(np.int64).max)
        bounds = np.stack([query[wanted], query[wanted] + count[wanted]], axis=1).ravel()
        found[wanted] = np.minimum.reduceat(starts, bounds)[::2]
    return found


def _offsets(sizes: np.ndarray) -> Int64Array:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
