"""The mask as a `mask_mod` for FlexAttention: a function of one pair of tokens.

Run side: imports torch. There is one function for each form of `maskform`, and it is always the same code
with the graph in tensors, so that another graph of that form does not mean another compilation. Part of the
code are only the numbers of stretches and the tensors' sizes, both rounded up to one of a few numbers.

Each value is used once or twice: torch's compiler writes a value out again wherever it is used, so that a
search (every step uses the one before several times) would grow exponentially with its steps. So a few
stretches are compared one after the other, and where that is not enough, edges are looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from legraph.blocks import edge_bits
from legraph.mask import ChunkMask, Int64Array
from legraph.maskform import Bounds, MaskForm, bounds, cheapest_form

MaskMod = Callable[[Any, Any, Any, Any], Any]

# Starts and ends of stretches, int32 [N] each, by query or by key.
_Stretches = list[tuple[torch.Tensor, torch.Tensor]]

_MIN_TENSOR_SIZE = 1024
_MIN_TABLE_SIZE = 16
_MIN_ADJACENCY_SIZE = 64
# Past every token.
_NEVER = np.iinfo(np.int32).max


def mask_mod(
    mask: ChunkMask,
    device: torch.device | str,
    position_ids: Int64Array | None = None,
    window: int | None = None,
) -> MaskMod:
    """A `mask_mod(b, h, q, k)` for `torch.nn.attention.flex_attention`, in the form that suits the graph.

    With `window`, a key is visible only if it lies less than `window` positions from the query: the sliding
    window of a model, measured in position ids.

    Memory O(tokens + active blocks + edges), and a table of chunks x chunks where few chunks need one.
    """
    visible = mask_mod_of_form(mask, cheapest_form(mask), device)
    if window is None:
        return visible
    assert position_ids is not None
    position = _as_tensor(position_ids, device)

    def visible_in_window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return visible(b, h, q, k) & (torch.abs(position[q] - position[k]) < window)

    return visible_in_window


def mask_mod_of_form(mask: ChunkMask, form: MaskForm, device: torch.device | str) -> MaskMod:
    """The same mask in a form that the graph has, the cheapest or not."""
    if form.name == "adjacency":
        return _by_adjacency(mask, device)
    if form.name == "bits":
        return _by_edge_bits(mask, device)
    told = bounds(mask, form)
    first, until, by_query, by_key = _by_token(told, np.diff(mask.span_offsets), device)
    if form.name == "query":
        return _by_query(first, by_query)
    if form.name == "key":
        return _by_key(until, by_key)
    return _by_either(first, until, by_query, by_key)


def _by_token(
    told: Bounds, lengths: Int64Array, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, _Stretches, _Stretches]:
    """The bounds of chunks, written out for their tokens."""

    def of(values: Int64Array) -> torch.Tensor:
        return _as_tensor(np.repeat(values, lengths), device)

    # Past the last token queries see keys there, themselves at least: a row that sees nothing is a special
    # case for every kernel.
    until = _as_tensor(np.repeat(told.until, lengths), device, filler=_NEVER)
    by_query, by_key = (
        [(of(start), of(end)) for start, end in each] for each in (told.by_query, told.by_key)
    )
    return of(told.first), until, by_query, by_key


def _by_query(first: torch.Tensor, stretches: _Stretches) -> MaskMod:
    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = (first[q] <= k) & (k <= q)
        for start, end in stretches:
            seen = seen | ((start[q] <= k) & (k < end[q]))
        return seen

    return visible


def _by_key(until: torch.Tensor, stretches: _Stretches) -> MaskMod:
    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = (k <= q) & (q < until[k])
        for start, end in stretches:
            seen = seen | ((start[k] <= q) & (q < end[k]))
        return seen

    return visible


def _by_either(first: torch.Tensor, until: torch.Tensor, by_query: _Stretches, by_key: _Stretches) -> MaskMod:
    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        seen = (k <= q) & ((first[q] <= k) | (q < until[k]))
        for start, end in by_query:
            seen = seen | ((start[q] <= k) & (k < end[q]))
        for start, end in by_key:
            seen = seen | ((start[k] <= q) & (q < end[k]))
        return seen

    return visible


def _by_adjacency(mask: ChunkMask, device: torch.device | str) -> MaskMod:
    chunk = _as_tensor(mask.chunk_of(np.arange(mask.num_tokens)), device)
    size = max(_MIN_ADJACENCY_SIZE, 1 << (mask.num_chunks - 1).bit_length())
    table = np.zeros((size, size), dtype=np.bool_)
    table[mask.children_of_edges(), mask.parent_indices] = True
    is_parent = _static(table, device)

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        q_chunk, k_chunk = chunk[q], chunk[k]
        return ((q_chunk == k_chunk) & (k <= q)) | is_parent[q_chunk, k_chunk]

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


def _as_tensor(array: NDArray[Any], device: torch.device | str, filler: int | None = None) -> torch.Tensor:
    """int32, repeating the filler, or else the last entry, up to a power of two.

    The size is marked as static: on a CPU torch generates code that does not compile when the size of a
    tensor in a mask_mod is dynamic (torch 2.13).
    """
    size = max(_MIN_TENSOR_SIZE, 1 << (len(array) - 1).bit_length())
    # 32-bit indices: half the registers and loads of 64-bit ones in the kernel's innermost loop.
    padded = np.full(size, array[-1] if filler is None else filler, dtype=np.int32)
    padded[: len(array)] = array
    return _static(padded, device)


def _as_table(table: NDArray[np.int32], filler: int, device: torch.device | str) -> torch.Tensor:
    """As `_as_tensor`, for a square: filled up with `filler`."""
    size = max(_MIN_TABLE_SIZE, 1 << (len(table) - 1).bit_length())
    padded = np.full((size, size), filler, dtype=np.int32)
    padded[: len(table), : len(table)] = table
    return _static(padded, device)


def _static(array: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    from torch._dynamo import mark_static

    tensor = torch.from_numpy(array).to(device)
    mark_static(tensor)
    return tensor
