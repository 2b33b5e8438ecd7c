"""The mask as FlexAttention wants it: a `mask_mod` and a `BlockMask`, both made without an N x N matrix.

Run side: imports torch. A mask_mod is always the same code with the graph in tensors, so that another graph
does not mean another compilation. There are two forms. Where every chunk sees a few stretches of tokens at
most, they are compared one after the other; else the edges are looked up in `blocks.EdgeBits`. Part of the
code are only the number of stretches and the tensors' sizes, and both are rounded up to one of a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask

from legraph.blocks import DEFAULT_BLOCK_SIZE, ActiveBlocks, active_blocks, edge_bits
from legraph.mask import ChunkMask, Int64Array

MaskMod = Callable[[Any, Any, Any, Any], Any]

# Chunks that see up to so many stretches are served by comparing them all.
_STRETCHES = (0, 1, 2, 4)
_MIN_TENSOR_SIZE = 1024
_MIN_TABLE_SIZE = 16


def mask_mod(
    mask: ChunkMask,
    device: torch.device | str,
    position_ids: Int64Array | None = None,
    window: int | None = None,
) -> MaskMod:
    """A `mask_mod(b, h, q, k)` for `torch.nn.attention.flex_attention`.

    With `window`, a key is visible only if it lies less than `window` positions from the query: the sliding
    window of a model, measured in position ids.

    Memory O(tokens + active blocks + edges), where an adjacency matrix would take O(chunks ** 2). Each value
    is used once or twice: torch's compiler writes a value out again wherever it is used, so that a search
    (every step uses the one before several times) would grow exponentially with its steps.
    """
    most = mask.intervals().max_per_chunk()
    visible = _by_stretches(mask, device) if most <= _STRETCHES[-1] else _by_edge_bits(mask, device)
    if window is None:
        return visible
    assert position_ids is not None
    position = _as_tensor(position_ids, device)

    def visible_in_window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return visible(b, h, q, k) & (torch.abs(position[q] - position[k]) < window)

    return visible_in_window


def _by_stretches(mask: ChunkMask, device: torch.device | str) -> MaskMod:
    intervals = mask.intervals()
    lengths = np.diff(mask.span_offsets)
    sizes = np.diff(intervals.offsets)
    first = _as_tensor(np.repeat(intervals.first, lengths), device)
    stretches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i in range(next(most for most in _STRETCHES if intervals.max_per_chunk() <= most)):
        # A chunk without an i-th stretch has an empty one there.
        starts, ends = np.zeros((2, mask.num_chunks), dtype=np.int64)
        has = sizes > i
        starts[has] = intervals.starts[intervals.offsets[:-1][has] + i]
        ends[has] = intervals.ends[intervals.offsets[:-1][has] + i]
        stretches.append(
            (_as_tensor(np.repeat(starts, lengths), device), _as_tensor(np.repeat(ends, lengths), device))
        )

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = (first[q] <= k) & (k <= q)
        for start, end in stretches:
            seen = seen | ((start[q] <= k) & (k < end[q]))
        return seen

    return visible


def _by_edge_bits(mask: ChunkMask, device: torch.device | str) -> MaskMod:
    bits = edge_bits(mask)
    chunk = _as_tensor(mask.chunk_of(np.arange(mask.num_tokens)), device)
    first_chunk = _as_tensor(bits.first_chunk, device)
    num_words = _as_tensor(bits.num_words, device)
    offsets = _as_table(bits.offsets, bits.nothing, device)
    words = _as_tensor(bits.words.view(np.int32), device)
    size = bits.block_size

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        q_block, k_block = q // size, k // size
        q_chunk, k_chunk = chunk[q], chunk[k]
        column = k_chunk - first_chunk[k_block]
        row = (q_chunk - first_chunk[q_block]) * num_words[k_block]
        word = words[offsets[q_block, k_block] + row + column // 32]
        return ((q_chunk == k_chunk) & (k <= q)) | (((word >> (column % 32)) & 1) == 1)

    return visible


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


def _as_tensor(array: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    """int32, repeating the last entry up to a power of two.

    The size is marked as static: on a CPU torch generates code that does not compile when the size of a
    tensor in a mask_mod is dynamic (torch 2.13).
    """
    size = max(_MIN_TENSOR_SIZE, 1 << (len(array) - 1).bit_length())
    # 32-bit indices: half the registers and loads of 64-bit ones in the kernel's innermost loop.
    padded = np.full(size, array[-1], dtype=np.int32)
    padded[: len(array)] = array
    return _static(padded, device)


def _as_table(table: NDArray[np.int32], filler: int, device: torch.device | str) -> torch.Tensor:
    """As `_as_tensor`, for a square: filled up with `filler`."""
    size = max(_MIN_TABLE_SIZE, 1 << (len(table) - 1).bit_length())
    padded = np.full((size, size), filler, dtype=np.int32)
    padded[: len(table), : len(table)] = table
    return _static(padded, device)


def _static(array: NDArray[np.int32], device: torch.device | str) -> torch.Tensor:
    from torch._dynamo import mark_static

    tensor = torch.from_numpy(array).to(device)
    mark_static(tensor)
    return tensor
