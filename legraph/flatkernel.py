"""A Triton kernel for a few queries over a long shared cache: each visible block of keys is read once.

Run side: imports torch and, inside functions, triton. All queries of a tile, and all query heads that share
a key head, go through the same block of keys together; blocks that none of them sees are never read; the
blocks of a tile are dealt out over many programs, because a handful of queries alone would keep one or two
of the chip's processors busy (the split of flash-decoding, Dao et al. 2023; that tokens of different
sequences share one reading of a common prefix is the idea of Hydragen, Juravsky et al. 2024). Which slot a
query sees is read from a bool matrix, so any graph is served by the same compiled code.

Shapes: T queries, S slots, H query heads, J key heads (H = G * J), D channels of keys, E of values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

BLOCK = 64
# Programs that fill a large GPU twice over.
_WANTED_PROGRAMS = 264
_MAX_SPLITS = 64


def is_available() -> bool:
    """Whether triton is installed; torch brings it along where it has CUDA."""
    try:
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Tiles:
    """The rows of a pass, and for each tile of queries the blocks of slots that some query of it sees.

    Attributes:
        rows_TS: uint8 [T, S], 1 where the query sees the slot.
        blocks: int32 [tiles, ceil(S / BLOCK)], block numbers, ascending, at the front of each row.
        counts: int32 [tiles], how many of them.
        queries_per_tile: T = 0..queries_per_tile - 1 is the first tile, and so on.
    """

    rows_TS: torch.Tensor
    blocks: torch.Tensor
    counts: torch.Tensor
    queries_per_tile: int


def tiles(rows_TS: torch.Tensor, group_size: int) -> Tiles:
    """Finds the blocks that tiles of queries see, on the device, without waiting for it.

    Args:
        rows_TS: bool [T, S].
        group_size: query heads per key head.
    """
    num_queries, num_slots = rows_TS.shape
    per_tile = max(1, _rows_per_program(num_queries, group_size) // group_size)
    num_tiles, num_blocks = -(-num_queries // per_tile), -(-num_slots // BLOCK)
    padding = (0, num_blocks * BLOCK - num_slots, 0, num_tiles * per_tile - num_queries)
    padded = torch.nn.functional.pad(rows_TS, padding) if any(padding) else rows_TS
    seen = padded.view(num_tiles, per_tile, num_blocks, BLOCK).any(-1).any(1)
    # Seen blocks move to the front, in order; the others land in a column that is cut off.
    place = torch.where(seen, seen.cumsum(1) - 1, num_blocks)
    blocks = torch.zeros((num_tiles, num_blocks + 1), dtype=torch.int32, device=rows_TS.device)
    numbers = torch.arange(num_blocks, dtype=torch.int32, device=rows_TS.device)
    blocks.scatter_(1, place, numbers.expand(num_tiles, -1))
    return Tiles(rows_TS.view(torch.uint8), blocks[:, :-1], seen.sum(1, dtype=torch.int32), per_tile)


def attend(
    q_HTD: torch.Tensor,
    k_JSD: torch.Tensor,
    v_JSE: torch.Tensor,
    tiled: Tiles,
    scale: float,
    softcap: float | None = None,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of T queries over S slots.

    Args:
        tiled: what the queries see; every query must see something.
        softcap: scores are squeezed into (-softcap, softcap) (Gemma 2).
        sinks_H: scores of a key without a value, one for each head (gpt-oss).

    Returns:
        [T, H, E], contiguous, in the queries' dtype.
    """
    from legraph import flattriton

    rows_partial: Any = flattriton.rows_partial
    rows_combine: Any = flattriton.rows_combine

    num_heads, num_queries, k_channels = q_HTD.shape
    num_groups, num_slots, v_channels = v_JSE.shape
    group_size = num_heads // num_groups
    num_tiles = len(tiled.counts)
    wanted = -(-_WANTED_PROGRAMS // (num_tiles * num_groups))
    splits = power_of_two(min(_MAX_SPLITS, wanted, -(-num_slots // BLOCK)))
    # Softmaxes of the parts: their outputs, and the logarithm (base 2) of their denominators.
    partial = q_HTD.new_empty((splits, num_queries, num_heads, v_channels), dtype=torch.float32)
    log_sums = q_HTD.new_empty((splits, num_queries, num_heads), dtype=torch.float32)
    is_float32 = q_HTD.dtype == torch.float32
    rows_partial[(num_tiles, num_groups, splits)](
        q_HTD, k_JSD, v_JSE, tiled.rows_TS, tiled.blocks, tiled.counts, partial, log_sums,
        q_HTD.stride(0), q_HTD.stride(1), k_JSD.stride(0), k_JSD.stride(1), v_JSE.stride(0), v_JSE.stride(1),
        tiled.rows_TS.stride(0), tiled.blocks.stride(0),
        scale, softcap or 0.0, num_queries, num_slots,
        NUM_HEADS=num_heads,
        GROUP=group_size,
        PER_TILE=tiled.queries_per_tile,
        M=max(16, power_of_two(tiled.queries_per_tile * group_size)),
        D=k_channels,
        D_POW=power_of_two(k_channels),
        E=v_channels,
        E_POW=power_of_two(v_channels),
        BLOCK_N=BLOCK,
        # Half a block at a time where the tiles of keys and values would not fit beside each other.
        STEP_N=BLOCK // 2 if is_float32 or k_channels > 128 else BLOCK,
        SPLITS=splits,
        SOFTCAP=softcap is not None,
        PRECISION="ieee" if is_float32 else "tf32",
        num_warps=4,
        num_stages=2,
    )  # fmt: skip
    out = q_HTD.new_empty((num_queries, num_heads, v_channels))
    rows_combine[(num_queries, num_heads)](
        partial, log_sums, sinks_H if sinks_H is not None else log_sums, out, num_queries,
        NUM_HEADS=num_heads,
        E=v_channels,
        E_POW=power_of_two(v_channels),
        SPLITS=splits,
        SINKS=sinks_H is not None,
        num_warps=1,
    )  # fmt: skip
    return out


def power_of_two(number: int) -> int:
    """The smallest that is no smaller."""
    return 1 << max(0, number - 1).bit_length()


def _rows_per_program(num_queries: int, group_size: int) -> int:
    """Rows of scores that a program holds: query heads of one group times queries."""
    return min(64, max(16, power_of_two(num_queries * group_size), power_of_two(group_size)))
