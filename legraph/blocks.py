"""Which blocks of the mask hold anything, in closed form.

A block is a square of `block_size` queries by `block_size` keys. Kernels skip empty blocks, run full ones
without a mask, and apply the mask in partial ones. The number of visible pairs in every block follows from
geometry: the mask is one rectangle for each stretch of parents (`ChunkMask.intervals`) and one triangle for
each chunk, so each adds (rows in block) x (columns in block) to the blocks it crosses. Cost O(active blocks
+ chunks + edges); no N x N matrix, not even a row of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legraph.mask import ChunkMask, Int64Array

DEFAULT_BLOCK_SIZE = 128


@dataclass(frozen=True, slots=True)
class ActiveBlocks:
    """The blocks with at least one visible pair, sorted by query block, then key block.

    Attributes:
        q_block, kv_block: int64 [B], block row and block column.
        num_pairs: int64 [B], visible pairs in the block, 1..block_size ** 2.
        num_blocks: blocks on one side of the mask.
    """

    q_block: Int64Array
    kv_block: Int64Array
    num_pairs: Int64Array
    num_blocks: int
    block_size: int

    def __len__(self) -> int:
        return len(self.q_block)

    @property
    def is_full(self) -> np.ndarray:
        """bool [B]. A block that sticks out over the last token is never full."""
        return self.num_pairs == self.block_size**2


def active_blocks(mask: ChunkMask, block_size: int = DEFAULT_BLOCK_SIZE) -> ActiveBlocks:
    """Counts the visible pairs of every block that has any."""
    num_blocks = -(-mask.num_tokens // block_size)
    parts = [_rectangle_counts(mask, block_size), _triangle_counts(mask, block_size)]
    q_block, kv_block, num_pairs = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    key = q_block * num_blocks + kv_block
    order = np.argsort(key, kind="stable")
    key, num_pairs = key[order], num_pairs[order]
    is_first = np.ones(len(key), dtype=np.bool_)
    is_first[1:] = key[1:] != key[:-1]
    firsts = np.flatnonzero(is_first)
    totals = np.add.reduceat(num_pairs, firsts)
    return ActiveBlocks(key[firsts] // num_blocks, key[firsts] % num_blocks, totals, num_blocks, block_size)


def num_active_blocks(mask: ChunkMask, size: int = DEFAULT_BLOCK_SIZE) -> int:
    """`len(active_blocks(mask, size))`, without the blocks themselves.

    Every stretch is a range of blocks in each row of blocks that its chunk crosses. With the rows laid end to
    end, ranges in other rows are apart, and the answer is the length of the union of all ranges.
    Cost O(R log R) for R ranges, whatever their length.
    """
    intervals = mask.intervals()
    chunks, start, end = np.arange(mask.num_chunks), mask.span_offsets[:-1], mask.span_offsets[1:]
    owner = np.concatenate([chunks, np.repeat(chunks, np.diff(intervals.offsets))])
    first_key = np.concatenate([intervals.first, intervals.starts]) // size
    last_key = (np.concatenate([end, intervals.ends]) - 1) // size
    first_row = start[owner] // size
    num_rows = (end[owner] - 1) // size - first_row + 1
    index = np.repeat(np.arange(len(owner)), num_rows)
    row = first_row[index] + np.arange(len(index)) - (np.cumsum(num_rows) - num_rows)[index]
    width = mask.num_tokens // size + 2
    # The causal stretch ends at the query: no block right of the diagonal.
    range_end = row * width + np.minimum(last_key[index], row) + 1
    range_start = row * width + first_key[index]
    by_start = np.argsort(range_start, kind="stable")
    range_start, range_end = range_start[by_start], range_end[by_start]
    covered = np.zeros(len(range_end) + 1, dtype=np.int64)
    np.maximum.accumulate(range_end, out=covered[1:])
    return int(np.maximum(covered[1:] - np.maximum(range_start, covered[:-1]), 0).sum())


@dataclass(frozen=True, slots=True)
class EdgeBits:
    """For every block, which of the chunks among its queries see which of those among its keys, a bit a pair.

    Query chunk c of a block sees key chunk p iff bit `column % 32` of
    `words[offsets[q_block, kv_block] + (c - first_chunk[q_block]) * num_words[kv_block] + column // 32]` is
    set, where `column = p - first_chunk[kv_block]`. A chunk's own triangle is not part of it.

    Attributes:
        first_chunk: int64 [num_blocks], the chunk of each block's first token.
        num_words: int64 [num_blocks], words for all chunks among a block's keys.
        offsets: int32 [num_blocks, num_blocks]; `nothing` where no chunk sees another.
        words: uint32 [W], those at `nothing` are zeros, as many as any block needs.
    """

    first_chunk: Int64Array
    num_words: Int64Array
    offsets: NDArray[np.int32]
    words: NDArray[np.uint32]
    nothing: int
    block_size: int


def edge_bits(mask: ChunkMask, block_size: int = DEFAULT_BLOCK_SIZE) -> EdgeBits:
    """Cost O(edges, each times the blocks it crosses)."""
    num_blocks = -(-mask.num_tokens // block_size)
    firsts = np.arange(num_blocks) * block_size
    first_chunk = mask.chunk_of(firsts)
    num_rows = mask.chunk_of(np.minimum(firsts + block_size, mask.num_tokens) - 1) - first_chunk + 1
    num_words = -(-num_rows // 32)
    children = mask.children_of_edges()
    start, end = mask.span_offsets[:-1], mask.span_offsets[1:]
    edge, q_block, _ = _cut(start[children], end[children], block_size)
    piece, kv_block, _ = _cut(start[mask.parent_indices[edge]], end[mask.parent_indices[edge]], block_size)
    edge, q_block = edge[piece], q_block[piece]
    block, slot = np.unique(q_block * num_blocks + kv_block, return_inverse=True)
    sizes = num_rows[block // num_blocks] * num_words[block % num_blocks]
    slot_offsets = np.cumsum(sizes) - sizes
    nothing = int(sizes.sum())
    words = np.zeros(nothing + int(num_rows.max() * num_words.max()), dtype=np.uint32)
    column = mask.parent_indices[edge] - first_chunk[kv_block]
    row = (children[edge] - first_chunk[q_block]) * num_words[kv_block]
    # Every bit is met once, so adding is setting.
    np.add.at(words, slot_offsets[slot] + row + column // 32, np.uint32(1) << (column % 32).astype(np.uint32))
    offsets = np.full(num_blocks * num_blocks, nothing, dtype=np.int32)
    offsets[block] = slot_offsets
    return EdgeBits(
        first_chunk, num_words, offsets.reshape(num_blocks, num_blocks), words, nothing, block_size
    )


def _rectangle_counts(mask: ChunkMask, size: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """(query block, key block, pairs) of every full rectangle: a chunk's queries by a stretch of parents."""
    intervals = mask.intervals()
    own_start, own_end = mask.span_offsets[:-1], mask.span_offsets[1:]
    owner = np.repeat(np.arange(mask.num_chunks), np.diff(intervals.offsets))
    # The part of the causal stretch before the chunk itself is a rectangle like any other.
    reaching = np.flatnonzero(intervals.first < own_start)
    owner = np.concatenate([owner, reaching])
    k_start = np.concatenate([intervals.starts, intervals.first[reaching]])
    k_end = np.concatenate([intervals.ends, own_start[reaching]])
    rect, q_block, num_rows = _cut(own_start[owner], own_end[owner], size)
    strip, kv_block, num_columns = _cut(k_start[rect], k_end[rect], size)
    return q_block[strip], kv_block, num_rows[strip] * num_columns


def _triangle_counts(mask: ChunkMask, size: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """(query block, key block, pairs) of every chunk's own causal triangle."""
    start, end = mask.span_offsets[:-1], mask.span_offsets[1:]
    chunk, q_block, num_rows = _cut(start, end, size)
    # In the blocks before the diagonal one a query sees all the keys of its chunk.
    q_low = np.maximum(q_block * size, start[chunk])
    strip, kv_block, num_columns = _cut(start[chunk], q_low, size)
    off_diagonal = q_block[strip], kv_block, num_rows[strip] * num_columns
    on_diagonal = q_block, q_block, num_rows * (num_rows + 1) // 2
    q, kv, pairs = (np.concatenate(columns) for columns in zip(off_diagonal, on_diagonal, strict=True))
    return q, kv, pairs


def _cut(start: Int64Array, end: Int64Array, size: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Cuts each range [start, end) at the multiples of `size`.

    Returns, for each piece: the index of its range, its block, its length. Empty ranges give no piece.
    """
    first = start // size
    num_pieces = np.where(end > start, (end - 1) // size - first + 1, 0)
    index = np.repeat(np.arange(len(start)), num_pieces)
    before = np.cumsum(num_pieces) - num_pieces
    block = first[index] + np.arange(len(index)) - before[index]
    low = np.maximum(start[index], block * size)
    high = np.minimum(end[index], (block + 1) * size)
    return index, block, high - low
