"""A Triton kernel for many queries: each chunk walks the intervals of keys that it sees, and nothing else.

Run side: imports torch and, inside functions, triton. `tiles` says how the work is cut. Every tile holds all
the query heads that share a key head, so that short chunks fill it too; no mask is ever read from memory, and
most blocks need none.

Shapes: B batch, T queries, S keys, H query heads, J key heads (H = G * J), D channels of keys, E of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from legraph.flatkernel import power_of_two
from legraph.mask import Int64Array
from legraph.seen import SeenIntervals
from legraph.tiles import FLOAT32_VARIANTS, VARIANTS, WIDE_VARIANTS, Variant, Variants, lay_tiles


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel's programs do; see `tiles` for the columns.

    Attributes:
        groups: for each variant in use, the queries of a tile, whether tiles have several chunks' queries,
            and the tiles, int32 [P, 10] on the device.
        ranges: int32 [R, 2]; listed: int32 [L], slots; joins: int32 [J, 4]; all on the device.
        causal_starts: int32 [T] on the device, the first slot of each query's causal stretch; empty if no
            tile has queries of several chunks.
        num_partial: rows of scratch space.
    """

    groups: tuple[tuple[Variant, int, bool, torch.Tensor], ...]
    ranges: torch.Tensor
    listed: torch.Tensor
    joins: torch.Tensor
    causal_starts: torch.Tensor
    num_partial: int


def plan(
    seen: SeenIntervals,
    group_size: int,
    num_groups: int,
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    channels: int = 128,
    variants: Variants | None = None,
    max_keys: int | None = None,
) -> Plan:
    """Lays out the work of a pass, without waiting for the device.

    Args:
        group_size, num_groups: query heads per key head, and key heads (times batch).
        dtype, channels: of keys and values; the larger number if they differ.
        variants, max_keys: see `tiles.lay_tiles`.
    """
    if variants is None:
        is_wide = channels > 128
        variants = FLOAT32_VARIANTS if dtype == torch.float32 else WIDE_VARIANTS if is_wide else VARIANTS
    made = lay_tiles(seen, group_size, num_groups, variants, max_keys)
    is_packed = any(group.is_packed for group in made.groups)
    segments = (
        np.stack([seen.causal_starts, seen.counts], axis=1) if is_packed else np.zeros((0, 2), np.int64)
    )
    tables = [made.ranges, made.listed, made.joins, segments, *(group.tiles for group in made.groups)]
    ranges, listed, joins, starts, *tiles = _on_device(tables, device)
    total = int(made.listed[:, 1].sum())
    return Plan(
        tuple(
            (one.variant, one.per_tile, one.is_packed, t) for one, t in zip(made.groups, tiles, strict=True)
        ),
        ranges,
        _expanded(listed, total),
        joins,
        torch.repeat_interleave(starts[:, 0], starts[:, 1], output_size=seen.num_queries * is_packed),
        made.num_partial,
    )


def _on_device(tables: list[Int64Array], device: torch.device | str) -> list[torch.Tensor]:
    """The tables as int32, in one copy, each where 16 divides the address: else triton compiles anew."""
    sizes = [-(-table.size // 4) * 4 for table in tables]
    flat = np.zeros(sum(sizes), dtype=np.int32)
    for table, size, end in zip(tables, sizes, np.cumsum(sizes), strict=True):
        flat[end - size : end - size + table.size] = table.ravel()
    parts = torch.from_numpy(flat).to(device).split(sizes)
    return [part[: table.size].view(table.shape) for part, table in zip(parts, tables, strict=True)]


def _expanded(stretches: torch.Tensor, total: int) -> torch.Tensor:
    """int32 [total]: the slots of stretches [L, 2] (first slot, length), one after the other."""
    starts, lengths = stretches[:, 0], stretches[:, 1]
    shift = starts - (lengths.cumsum(0, dtype=torch.int32) - lengths)
    slots = torch.repeat_interleave(shift, lengths, output_size=total)
    return slots + torch.arange(total, dtype=torch.int32, device=stretches.device)


def attend(
    q_BHTD: torch.Tensor,
    k_BJSD: torch.Tensor,
    v_BJSE: torch.Tensor,
    plan: Plan,
    scale: float,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of all planned queries. `scale` must be positive.

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
    partial = log_sums = out
    if plan.num_partial:
        partial = out.new_empty((batch, plan.num_partial, num_heads, v_channels), dtype=torch.float32)
        log_sums = out.new_empty((batch, plan.num_partial, num_heads), dtype=torch.float32)
    sinks = sinks_H if sinks_H is not None else out
    for variant, per_tile, is_packed, tiles in plan.groups:
        intervals[(len(tiles), batch * num_groups)](
            q_BHTD, k_BJSD, v_BJSE, tiles, plan.ranges, plan.listed, plan.causal_starts,
            out, partial, log_sums, sinks,
            q_BHTD.stride(0), q_BHTD.stride(1), q_BHTD.stride(2),
            k_BJSD.stride(0), k_BJSD.stride(1), k_BJSD.stride(2),
            v_BJSE.stride(0), v_BJSE.stride(1), v_BJSE.stride(2),
            scale, softcap or 0.0, num_queries, plan.num_partial,
            NUM_GROUPS=num_groups, GROUP=group_size, M=max(16, power_of_two(per_tile * group_size)),
            D=k_channels, D_POW=max(16, power_of_two(k_channels)),
            E=v_channels, E_POW=max(16, power_of_two(v_channels)),
            BLOCK_N=variant.block, PACKED=is_packed, SOFTCAP=softcap is not None, SINKS=sinks_H is not None,
            PRECISION="ieee" if q_BHTD.dtype == torch.float32 else "tf32",
            num_warps=variant.warps, num_stages=variant.stages,
        )  # fmt: skip
    if plan.num_partial:
        intervals_join[(len(plan.joins), num_heads, batch)](
            partial, log_sums, sinks, plan.joins, out, num_queries, plan.num_partial,
            NUM_HEADS=num_heads, E=v_channels, E_POW=max(16, power_of_two(v_channels)),
            SINKS=sinks_H is not None, num_warps=1,
        )  # fmt: skip
    return out
