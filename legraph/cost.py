"""What attention over a mask costs: counted exactly, and timed by constants that were measured. numpy only.

Nothing here decides what a kernel computes, only which one is taken where several are exact. The constants
are those of `benchmarks/attention.py` on one kind of GPU and one CPU; on others the times are off, and the
order mostly holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from legraph.blocks import DEFAULT_BLOCK_SIZE, active_blocks
from legraph.mask import ChunkMask
from legraph.seen import SeenIntervals
from legraph.tiles import (
    COUNT,
    END_LISTED,
    END_RANGE,
    FIRST_LISTED,
    FIRST_RANGE,
    OWN_START,
    SLOT,
    VARIANTS,
    WHOLE_START,
    Tiling,
    Variant,
    lay_tiles,
)

Kernel = Literal["intervals", "causal", "chunks", "dense", "flex"]
Device = Literal["gpu", "cpu"]


class AttentionShape(NamedTuple):
    """Query heads, key heads, channels of a head, bytes of a number."""

    heads: int
    groups: int
    channels: int
    itemsize: int


# What estimates are given for when no model is named: a Llama of 8 billion parameters, and a small model.
GPU_SHAPE = AttentionShape(32, 8, 128, 2)
CPU_SHAPE = AttentionShape(8, 8, 64, 4)

# One H100 or H200, bfloat16, 128 channels. Microseconds of one of its 132 processors for a program of a
# variant, for a block of keys without and with a mask, fitted to the workloads of the benchmark (within 5%).
_PROGRAM_US: dict[Variant, tuple[float, float, float]] = {
    VARIANTS.short: (1.2, 0.4, 0.45),
    VARIANTS.medium: (2.8, 0.53, 0.85),
    VARIANTS.large: (5.3, 1.07, 1.88),
}
_PROCESSORS = 132
_LAUNCH_MS = 0.015
# The same of a partial and of a full block of 128 x 128 in FlexAttention, for one query head. Up to 40% off,
# and far more where edges are looked up bit by bit.
_FLEX_BLOCK_US = (7.7, 2.7)
# Plain causal attention, and attention with a mask spelled out: multiply-adds times two, a second.
_GPU_CAUSAL_FLOPS, _GPU_DENSE_FLOPS = 539e12, 150e12
# Two CPU cores, float32: microseconds of a (query, key) pair, channel and head; of reading a mask's entry for
# one head; of a call of SDPA, and of a chunk's call, which has slices to take and results to put in place.
_CPU_PAIR_US, _CPU_MASK_US, _CPU_CALL_US, _CPU_CHUNK_US = 2.4e-5, 2.0e-4, 8.0, 20.0
# torch's kernel skips what lies above the diagonal in blocks of so many queries.
_CPU_CAUSAL_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Estimate:
    """The predicted time of one kernel for one layer, in milliseconds, and how it would go about it."""

    kernel: Kernel
    milliseconds: float
    how: str


def estimates(mask: ChunkMask, shape: AttentionShape, device: Device) -> list[Estimate]:
    """For every kernel that is exact for the mask, the fastest first."""
    seen = SeenIntervals.of(mask).melted()
    found = _on_gpu(mask, seen, shape) if device == "gpu" else _on_cpu(seen, shape)
    return sorted(found, key=lambda one: one.milliseconds)


def choose(seen: SeenIntervals, device: Device, heads: int, channels: int) -> Kernel:
    """The kernel that `auto` takes where no gradients are wanted. `seen` is melted."""
    if seen.is_causal():
        return "causal"
    if device == "gpu":
        return "intervals"
    return "chunks" if chunks_ms(seen, heads, channels) < dense_ms(seen, heads, channels) else "dense"


def plain_causal(num_tokens: int, shape: AttentionShape, device: Device) -> Estimate:
    """What a prompt of as many tokens without a structure costs, which is something else."""
    pairs = num_tokens * (num_tokens + 1) // 2
    if device == "gpu":
        ms = _LAUNCH_MS + 4e3 * pairs * shape.heads * shape.channels / _GPU_CAUSAL_FLOPS
    else:
        ms = (_CPU_CALL_US + _CPU_PAIR_US * shape.heads * shape.channels * _causal_pairs(num_tokens)) / 1e3
    return Estimate("causal", ms, "one call, no mask")


def _on_gpu(mask: ChunkMask, seen: SeenIntervals, shape: AttentionShape) -> list[Estimate]:
    tiling = lay_tiles(seen, shape.heads // shape.groups, shape.groups, VARIANTS)
    scale = max(0.5, shape.channels / 128)
    blocks = active_blocks(mask)
    num_full = int(blocks.is_full.sum())
    flex_us = (len(blocks) - num_full) * _FLEX_BLOCK_US[0] + num_full * _FLEX_BLOCK_US[1]
    size = DEFAULT_BLOCK_SIZE
    found = [
        Estimate("intervals", _tiling_ms(tiling, shape.groups, scale), _describe(tiling)),
        Estimate(
            "flex",
            _LAUNCH_MS + flex_us * scale * shape.heads / _PROCESSORS / 1e3,
            f"{len(blocks):,} blocks of {size} x {size}, {num_full:,} of them full",
        ),
        Estimate(
            "dense",
            _LAUNCH_MS + 4e3 * seen.num_queries**2 * shape.heads * shape.channels / _GPU_DENSE_FLOPS,
            "the mask spelled out",
        ),
    ]
    if seen.is_causal():
        found.append(plain_causal(seen.num_queries, shape, "gpu"))
    return found


def _tiling_ms(tiling: Tiling, num_groups: int, scale: float) -> float:
    total = 0.0
    for group in tiling.groups:
        block, tiles = group.variant.block, group.tiles
        whole = np.append(0, np.cumsum((tiling.ranges[:, 1] - tiling.ranges[:, 0]) // block))
        num_whole = whole[tiles[:, END_RANGE]] - whole[tiles[:, FIRST_RANGE]]
        num_whole = num_whole + (tiles[:, OWN_START] - tiles[:, WHOLE_START]) // block
        rest = tiles[:, END_LISTED] - tiles[:, FIRST_LISTED] + tiles[:, SLOT] + tiles[:, COUNT]
        num_masked = -(-(rest - tiles[:, OWN_START]) // block)
        program, unmasked, masked = _PROGRAM_US[group.variant]
        each = program + scale * (unmasked * num_whole + masked * num_masked)
        # However few there are, the longest one takes its time.
        total += _LAUNCH_MS + max(each.sum() * num_groups / _PROCESSORS, each.max()) / 1e3
    return total + bool(tiling.num_partial) * _LAUNCH_MS


def _describe(tiling: Tiling) -> str:
    parts = list[str]()
    for group in tiling.groups:
        shared = ", shared by chunks" if group.is_packed else ""
        parts.append(f"{len(group.tiles):,} tiles of {group.per_tile} queries{shared}")
    if len(tiling.joins):
        parts.append(f"the keys of {len(tiling.joins):,} queries split")
    return "; ".join(parts)


def _on_cpu(seen: SeenIntervals, shape: AttentionShape) -> list[Estimate]:
    found = [
        Estimate("chunks", chunks_ms(seen, shape.heads, shape.channels), f"{len(seen.counts):,} calls"),
        Estimate("dense", dense_ms(seen, shape.heads, shape.channels), "one call, the mask spelled out"),
    ]
    if seen.is_causal():
        found.append(plain_causal(seen.num_queries, shape, "cpu"))
    return found


def _causal_pairs(num_tokens: Any) -> Any:
    """Pairs that one call of plain causal attention computes on a CPU."""
    return num_tokens * (num_tokens + np.minimum(num_tokens, _CPU_CAUSAL_BLOCK)) / 2


def chunks_ms(seen: SeenIntervals, heads: int, channels: int) -> float:
    """Attention chunk by chunk on a CPU."""
    is_plain = seen.num_keys() == seen.counts
    pairs = np.where(is_plain, _causal_pairs(seen.counts), seen.counts * seen.num_keys())
    num_masked = float(pairs[~is_plain].sum())
    us = _CPU_CHUNK_US * len(pairs) + heads * (
        _CPU_PAIR_US * channels * pairs.sum() + _CPU_MASK_US * num_masked
    )
    return float(us) / 1e3


def dense_ms(seen: SeenIntervals, heads: int, channels: int) -> float:
    """Attention of all queries over all slots between the first and the last seen one, on a CPU."""
    first = min(int(seen.causal_starts.min()), *seen.range_starts.tolist(), seen.num_slots)
    pairs = seen.num_queries * (seen.num_slots - first)
    return (_CPU_CALL_US + heads * pairs * (_CPU_PAIR_US * channels + _CPU_MASK_US / 2)) / 1e3
