"""The mask as FlexAttention wants it: a `mask_mod` and a `BlockMask`, both made without an N x N matrix.

Run side: imports torch. The mask_mod is always the same code with the graph in tensors, so that another
graph does not mean another compilation; only the number of search steps (log2 of the most stretches a
chunk sees, rounded up to one of a few numbers) is part of the code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from legraph.blocks import DEFAULT_BLOCK_SIZE, ActiveBlocks, active_blocks
from legraph.mask import ChunkMask, Int64Array

MaskMod = Callable[[Any, Any, Any, Any], Any]

# Each number of search steps is compiled once in a process; torch gives up after 8 versions of a function.
_SEARCH_STEPS = (0, 3, 8, 24)


def mask_mod(
    mask: ChunkMask,
    device: torch.device | str,
    position_ids: Int64Array | None = None,
    window: int | None = None,
) -> MaskMod:
    """A `mask_mod(b, h, q, k)` for `torch.nn.attention.flex_attention`.

    With `window`, a key is visible only if it lies less than `window` positions from the query: the sliding
    window of a model, measured in position ids.

    Visibility is looked up in the query's stretches (`ChunkMask.intervals`) by a binary search that is
    unrolled into the code: memory O(tokens + edges), where an adjacency matrix would take O(chunks ** 2).
    """
    intervals = mask.intervals()
    lengths = np.diff(mask.span_offsets)
    num_stretches = np.diff(intervals.offsets)
    steps = next(steps for steps in _SEARCH_STEPS if intervals.max_per_chunk() < 2**steps)
    # One stretch past the end that sees nothing, for queries that have none and for the search's upper end.
    never = mask.num_tokens + 1
    as_tensor = _tensor_maker(device)
    first = as_tensor(np.repeat(intervals.first, lengths))
    low_of = as_tensor(np.repeat(intervals.offsets[:-1], lengths))
    size_of = as_tensor(np.repeat(num_stretches, lengths))
    starts = as_tensor(np.append(intervals.starts, never))
    ends = as_tensor(np.append(intervals.ends, never))

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        """`low` becomes the number of the query's stretches that start at or before k."""
        seen = (first[q] <= k) & (k <= q)
        if steps == 0:
            return seen
        base, size = low_of[q], size_of[q]
        low = torch.zeros_like(k + q)
        for step in reversed(range(steps)):
            probe = low + (1 << step)
            index = base + torch.minimum(probe, size) - 1
            low = torch.where((probe <= size) & (starts[torch.clamp(index, min=0)] <= k), probe, low)
        last = torch.clamp(base + low - 1, min=0)
        return seen | ((low > 0) & (k < ends[last]))

    if window is None:
        return visible
    assert position_ids is not None
    position = as_tensor(position_ids)

    def visible_in_window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return visible(b, h, q, k) & (torch.abs(position[q] - position[k]) < window)

    return visible_in_window


def block_mask(
    mask: ChunkMask,
    device: torch.device | str,
    block_size: int = DEFAULT_BLOCK_SIZE,
    position_ids: Int64Array | None = None,
    window: int | None = None,
) -> BlockMask:
    """The `BlockMask` that `create_block_mask` would find by looking at every pair, in closed form.

    With `window`, blocks that lie wholly outside it are dropped, and a block is full only if it lies wholly
    inside; a block in between is partial.
    """
    blocks = active_blocks(mask, block_size)
    is_full = blocks.is_full
    q_block, kv_block = blocks.q_block, blocks.kv_block
    if window is not None:
        assert position_ids is not None
        nearest, farthest = _position_distances(blocks, position_ids)
        keep = nearest < window
        is_full = (is_full & (farthest < window))[keep]
        q_block, kv_block = q_block[keep], kv_block[keep]
    num_blocks = blocks.num_blocks
    partial, full = (q_block[~is_full], kv_block[~is_full]), (q_block[is_full], kv_block[is_full])
    kv_num_blocks, kv_indices = _ordered(partial, num_blocks, device)
    q_num_blocks, q_indices = _ordered((partial[1], partial[0]), num_blocks, device)
    full_kv_num_blocks, full_kv_indices = _ordered(full, num_blocks, device)
    full_q_num_blocks, full_q_indices = _ordered((full[1], full[0]), num_blocks, device)
    return BlockMask(
        seq_lengths=(mask.num_tokens, mask.num_tokens),
        kv_num_blocks=kv_num_blocks,
        kv_indices=kv_indices,
        full_kv_num_blocks=full_kv_num_blocks,
        full_kv_indices=full_kv_indices,
        q_num_blocks=q_num_blocks,
        q_indices=q_indices,
        full_q_num_blocks=full_q_num_blocks,
        full_q_indices=full_q_indices,
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=mask_mod(mask, device, position_ids, window),
    )


def _ordered(
    pairs: tuple[Int64Array, Int64Array], num_blocks: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block pairs as torch's ragged rows: how many columns a row has, and which, at the front of the row.

    Returns:
        int32 [1, 1, num_blocks] and int32 [1, 1, num_blocks, num_blocks]. The width must be the whole
        width, because torch reads the mask's shape off it; only the used part is ever written.
    """
    row, column = pairs
    order = np.lexsort((column, row))
    row, column = row[order], column[order]
    num_columns = np.bincount(row, minlength=num_blocks)
    slot = np.arange(len(row)) - (np.cumsum(num_columns) - num_columns)[row]
    if torch.device(device).type == "cpu":
        # numpy's zeros are pages that the system hands out when they are written to; torch's are written.
        indices = torch.from_numpy(np.zeros((1, 1, num_blocks, num_blocks), dtype=np.int32))
    else:
        indices = torch.zeros((1, 1, num_blocks, num_blocks), dtype=torch.int32, device=device)
    rows, slots = torch.from_numpy(row).to(device), torch.from_numpy(slot).to(device)
    indices[0, 0, rows, slots] = torch.from_numpy(column.astype(np.int32)).to(device)
    counts = torch.from_numpy(num_columns.astype(np.int32)).to(device)
    return counts[None, None], indices


def _position_distances(blocks: ActiveBlocks, position_ids: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Smallest and largest distance in positions that two tokens of each block can have (bounds)."""
    edges = np.arange(0, len(position_ids), blocks.block_size)
    low = np.minimum.reduceat(position_ids, edges)
    high = np.maximum.reduceat(position_ids, edges)
    q, k = blocks.q_block, blocks.kv_block
    nearest = np.maximum(0, np.maximum(low[q] - high[k], low[k] - high[q]))
    farthest = np.maximum(high[q] - low[k], high[k] - low[q])
    return nearest, farthest


def _tensor_maker(device: torch.device | str) -> Callable[[Int64Array], torch.Tensor]:
    # 32-bit indices: half the registers and loads of 64-bit ones in the kernel's innermost loop.
    return lambda array: torch.from_numpy(array.astype(np.int32)).to(device)
