"""A Triton kernel for many queries: each chunk walks the intervals of keys that it sees, and nothing else.

Run side: imports torch and, inside functions, triton. What a chunk sees is a few stretches of keys, seen
whole, and one causal stretch that ends at the query itself. A *tile* is some queries of one chunk, with all
the query heads that share a key head, so that short chunks fill it too. A tile never straddles two chunks and
its key blocks begin where a stretch begins: only the last block of a stretch, and those on the diagonal, need
a mask at all, and no mask is ever read from memory. A tile that sees much more than others is dealt out to
several programs, whose softmaxes are joined afterwards (as in flash-decoding, Dao et al. 2023).

Shapes: B batch, T queries, S keys, H query heads, J key heads (H = G * J), D channels of keys, E of values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from legraph.flatkernel import power_of_two
from legraph.mask import Int64Array
from legraph.passes import SeenIntervals

_NOT_SPLIT = -1
# Programs that a whole GPU is busy with a few times over.
_WANTED_PROGRAMS = 528
_MIN_KEYS_OF_A_PIECE = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel's programs do.

    Attributes:
        tiles: int32 [tiles, 8] on the device, one program's work: first query, number of queries, key of the
            first query, first key of the causal stretch, first and end row of `ranges`, whether the causal
            stretch is part of it, and the first row of scratch space (-1: not split).
        ranges: int32 [R, 2] on the device, first key and the one past the last of each stretch.
        joins: int32 [queries of split tiles, 4] on the device: query, first row of scratch space, number of
            rows to join, and the distance between them.
        num_partial: rows of scratch space.
        per_tile: most queries of a tile.
    """

    tiles: torch.Tensor
    ranges: torch.Tensor
    joins: torch.Tensor
    num_partial: int
    per_tile: int


def plan(
    seen: SeenIntervals,
    group_size: int,
    num_groups: int,
    device: torch.device | str,
    rows: int | None = None,
    max_keys: int | None = None,
) -> Plan:
    """Cuts chunks into tiles, the largest first, and tiles that see very much into pieces.

    Args:
        group_size, num_groups: query heads per key head, and key heads (times batch).
        rows: query heads times queries of a tile; default by the chunks' lengths.
        max_keys: a tile that sees more keys is split; default by what keeps the chip busy.
    """
    per_tile = max(1, (rows or _default_rows(seen.counts, group_size)) // group_size)
    num_tiles = -(-seen.counts // per_tile)
    chunk = np.repeat(np.arange(len(seen.counts)), num_tiles)
    at = (np.arange(len(chunk)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)) * per_tile
    count = np.minimum(per_tile, seen.counts[chunk] - at)
    slot = seen.slots[chunk] + at
    before = np.concatenate([[0], np.cumsum(seen.range_ends - seen.range_starts)])
    in_ranges = before[seen.range_offsets[1:]] - before[seen.range_offsets[:-1]]
    keys = in_ranges[chunk] + slot + count - seen.causal_starts[chunk]
    if max_keys is None:
        max_keys = max(_MIN_KEYS_OF_A_PIECE, int(keys.sum()) * num_groups // _WANTED_PROGRAMS)
    first, end = seen.range_offsets[:-1][chunk], seen.range_offsets[1:][chunk]
    ones, whole = np.ones_like(slot), np.full_like(slot, _NOT_SPLIT)
    query = seen.queries[chunk] + at
    tiles = np.stack([query, count, slot, seen.causal_starts[chunk], first, end, ones, whole], axis=1)
    order = np.argsort(-keys, kind="stable")
    num_long = int((keys > max_keys).sum())
    pieces = _Pieces(seen, max_keys)
    for tile in tiles[order[:num_long]].tolist():
        pieces.add(*tile[:6])
    all_tiles = np.concatenate([_table(pieces.tiles, 8), tiles[order[num_long:]]])
    ranges = np.stack([seen.range_starts, seen.range_ends], axis=1)
    ranges = np.concatenate([ranges, _table(pieces.ranges, 2)])

    def on_device(table: Int64Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(table, dtype=np.int32)).to(device)

    joins = on_device(_table(pieces.joins, 4))
    return Plan(on_device(all_tiles), on_device(ranges), joins, pieces.num_partial, per_tile)


def _table(rows: list[tuple[int, ...]], columns: int) -> Int64Array:
    return np.array(rows, dtype=np.int64).reshape(-1, columns)


class _Pieces:
    """Tiles that see too much, cut into pieces of `max_keys` keys; the last one has the causal stretch."""

    def __init__(self, seen: SeenIntervals, max_keys: int) -> None:
        self.seen, self.max_keys = seen, max_keys
        self.tiles, self.ranges, self.joins = [], [], []  # type: ignore[var-annotated]
        self.num_partial = 0

    def add(self, query: int, count: int, slot: int, causal: int, first: int, end: int) -> None:
        stretches = list(
            zip(
                self.seen.range_starts[first:end].tolist(),
                self.seen.range_ends[first:end].tolist(),
                strict=True,
            )
        )
        # What lies before the tile's own first query is seen whole as well.
        pieces = [*self._cut([*stretches, (causal, slot)])]
        start, num_known = self.num_partial, len(self.seen.range_starts)
        for i, piece in enumerate(pieces):
            at = num_known + len(self.ranges)
            self.ranges += piece
            is_last = i == len(pieces) - 1
            self.tiles.append((query, count, slot, slot, at, at + len(piece), int(is_last), self.num_partial))
            self.num_partial += count
        self.joins += [(query + t, start + t, len(pieces), count) for t in range(count)]

    def _cut(self, stretches: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        piece, room = list[tuple[int, int]](), self.max_keys
        for begin, stop in stretches:
            while begin < stop:
                cut = min(stop, begin + room)
                piece.append((begin, cut))
                room -= cut - begin
                begin = cut
                if room == 0:
                    yield piece
                    piece, room = [], self.max_keys
        yield piece


def _default_rows(counts: Int64Array, group_size: int) -> int:
    """Large tiles where the chunks that most tokens are in fill them."""
    typical = float((counts.astype(np.float64) ** 2).sum() / max(1, counts.sum())) * group_size
    return next((rows for rows in (16, 32, 64) if typical <= rows), 128)


def attend(
    q_BHTD: torch.Tensor,
    k_BJSD: torch.Tensor,
    v_BJSE: torch.Tensor,
    plan: Plan,
    scale: float,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of all planned queries.

    Returns:
        [B, T, H, E], contiguous, in the queries' dtype; rows that no tile has are not written.
    """
    from legraph import intervaltriton

    intervals: Any = intervaltriton.intervals
    intervals_join: Any = intervaltriton.intervals_join

    batch, num_heads, num_queries, k_channels = q_BHTD.shape
    num_groups, v_channels = k_BJSD.shape[1], v_BJSE.shape[3]
    group_size = num_heads // num_groups
    out = q_BHTD.new_empty((batch, num_queries, num_heads, v_channels))
    partial = q_BHTD.new_empty((batch, max(1, plan.num_partial), num_heads, v_channels), dtype=torch.float32)
    log_sums = q_BHTD.new_empty((batch, max(1, plan.num_partial), num_heads), dtype=torch.float32)
    is_float32 = q_BHTD.dtype == torch.float32
    m = max(16, power_of_two(plan.per_tile * group_size))
    wide = k_channels > 128 or is_float32
    block, warps, stages = 32 if wide else 64, 8 if m >= 128 else 4, 2 if wide else 3
    sinks = sinks_H if sinks_H is not None else log_sums
    intervals[(len(plan.tiles), batch * num_groups)](
        q_BHTD, k_BJSD, v_BJSE, plan.tiles, plan.ranges, out, partial, log_sums, sinks,
        q_BHTD.stride(0), q_BHTD.stride(1), q_BHTD.stride(2),
        k_BJSD.stride(0), k_BJSD.stride(1), k_BJSD.stride(2),
        v_BJSE.stride(0), v_BJSE.stride(1), v_BJSE.stride(2),
        scale, softcap or 0.0, num_queries, max(1, plan.num_partial),
        NUM_GROUPS=num_groups, GROUP=group_size, M=m,
        D=k_channels, D_POW=max(16, power_of_two(k_channels)),
        E=v_channels, E_POW=max(16, power_of_two(v_channels)),
        BLOCK_N=block, SOFTCAP=softcap is not None, SINKS=sinks_H is not None,
        PRECISION="ieee" if is_float32 else "tf32",
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    if plan.num_partial:
        intervals_join[(len(plan.joins), num_heads, batch)](
            partial, log_sums, sinks, plan.joins, out, num_queries, plan.num_partial,
            NUM_HEADS=num_heads, E=v_channels, E_POW=max(16, power_of_two(v_channels)),
            SINKS=sinks_H is not None, num_warps=1,
        )  # fmt: skip
    return out
