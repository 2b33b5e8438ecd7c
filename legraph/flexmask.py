"""The mask as FlexAttention wants it: a `BlockMask`, made without an N x N matrix.

Run side: imports torch. Which blocks are empty, partial or full is known in closed form (`blocks`); what is
seen in a partial one is asked pair by pair (`maskmod`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from legraph.blocks import DEFAULT_BLOCK_SIZE, ActiveBlocks, active_blocks
from legraph.mask import ChunkMask, Int64Array
from legraph.maskmod import mask_mod


def block_mask(
    mask: ChunkMask,
    device: torch.device | str,
    block_size: int = DEFAULT_BLOCK_SIZE,
    position_ids: Int64Array | None = None,
    window: int | None = None,
    padded_length: int | None = None,
) -> BlockMask:
    """The `BlockMask` that `create_block_mask` would find by looking at every pair, in closed form.

    With `window`, blocks that lie wholly outside it are dropped, and a block is full only if it lies wholly
    inside; a block in between is partial. With `padded_length`, the mask is for so many tokens; no token
    sees those past the bundle's own, and what those see (the rest of the last block) means nothing.
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
    length = padded_length or mask.num_tokens
    num_blocks = -(-length // block_size)
    partial, full = (q_block[~is_full], kv_block[~is_full]), (q_block[is_full], kv_block[is_full])
    kv_num_blocks, kv_indices = _ordered(partial, num_blocks, device)
    q_num_blocks, q_indices = _ordered((partial[1], partial[0]), num_blocks, device)
    full_kv_num_blocks, full_kv_indices = _ordered(full, num_blocks, device)
    full_q_num_blocks, full_q_indices = _ordered((full[1], full[0]), num_blocks, device)
    return BlockMask(
        seq_lengths=(length, length),
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
