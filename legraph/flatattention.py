"""Attention of new tokens over the flat cache, for transformers' models: "legraph_flat_attention".

Run side: imports torch and transformers. What the tokens of a pass see comes in one of two forms:

- rows of bools over the slots: for few tokens, for windows, and for decoding. On a GPU `flatkernel` works on
  them, elsewhere torch's SDPA, over the slots that are seen at all, once for each stretch of the cache that
  some queries have to themselves (those of one graph among many);
- intervals of slots (`seen.SeenIntervals`): for text. On a GPU `intervalkernel` works on them, elsewhere
  SDPA, once for each chunk, over what the chunk sees.

Where SDPA lacks something that a model needs (soft caps, attention sinks), the plain formula takes its place
(`plain_attention`), which is also the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from legraph import flatkernel, intervalkernel
from legraph.errors import ModelError
from legraph.seen import SeenIntervals

NAME = "legraph_flat_attention"
# Where less than this share of the slots between the first and the last seen one is seen, the seen ones are
# copied out first.
DENSE_ENOUGH = 0.5
# A call of its own costs about as much as so many pairs of a query and a key, in a small model.
_PAIRS_PER_CALL = 4096
# A part's own mask has no more entries than this.
_MAX_PART_ENTRIES = 2**26


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of one chunk and all that they see.

    Attributes:
        queries: their rows in the pass.
        keys: the slots that they see, in the order of `visible`'s columns.
        visible: bool [t, keys]; None where the t-th query sees the first t keys (plain causal attention).
    """

    queries: slice
    keys: tuple[slice, ...]
    visible: torch.Tensor | None

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part's keys or values [1, J, keys, D] of those of all slots."""
        if len(self.keys) == 1:
            return tensor[:, :, self.keys[0]]
        return torch.cat([tensor[:, :, piece] for piece in self.keys], 2)


def parts(seen: SeenIntervals, device: torch.device | str) -> list[Part]:
    """A pass chunk by chunk; a chunk that sees very much in several parts."""
    return [part for i in range(len(seen.counts)) for part in _parts_of(seen, i, device)]


def _parts_of(seen: SeenIntervals, i: int, device: torch.device | str) -> Iterator[Part]:
    ranges = range(int(seen.range_offsets[i]), int(seen.range_offsets[i + 1]))
    before = tuple(slice(int(seen.range_starts[j]), int(seen.range_ends[j])) for j in ranges)
    num_before = sum(piece.stop - piece.start for piece in before)
    first, slot, query = int(seen.causal_starts[i]), int(seen.slots[i]), int(seen.queries[i])
    count = int(seen.counts[i])
    step = max(1, _MAX_PART_ENTRIES // (num_before + slot + count - first))
    for at in range(0, count, step):
        end = min(count, at + step)
        keys = (*before, slice(first, slot + end))
        visible = None
        if before or slot + at > first:
            known = num_before + slot + at - first
            visible = np.ones((end - at, known + end - at), dtype=np.bool_)
            visible[:, known:] = np.tri(end - at, dtype=np.bool_)
            visible = torch.from_numpy(visible).to(device)
        yield Part(slice(query + at, query + end), keys, visible)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Queries that see one stretch of slots, of which no others see anything.

    Attributes:
        queries: their places in `RowGroups.order`.
        keys: the stretch.
        visible: bool [t, keys]; None where a single query sees all of it.
    """

    queries: slice
    keys: slice
    visible: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class RowGroups:
    """A pass group by group.

    Attributes:
        order: the rows of the pass in the order of the groups, int64 [T].
        places: the place of each row in it, int64 [T].
    """

    order: torch.Tensor
    places: torch.Tensor
    groups: list[RowGroup]


class RowMask(torch.Tensor):
    """What the queries of a pass see, in the form that is worked on, made once for all layers.

    A tensor, because that is what transformers hands through to the attention function untouched: bool
    [1, 1, T, S], True where a query sees a slot, or [1, 1, T, 0] for intervals.

    Attributes:
        tiled: rows, on a GPU.
        seen: rows, elsewhere: the slots that some query sees, a slice or their numbers (int64).
        groups: instead, where queries see stretches of their own.
        plan: intervals, on a GPU.
        parts: intervals, elsewhere, and plain causal attention everywhere.
    """

    tiled: flatkernel.Tiles | None
    seen: slice | torch.Tensor | None
    groups: RowGroups | None
    plan: intervalkernel.Plan | None
    parts: list[Part] | None

    # What is computed from it is an ordinary tensor.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def make(rows_TS: torch.Tensor, group_size: int) -> RowMask:
        """
        Args:
            rows_TS: bool [T, S].
            group_size: query heads per key head.
        """
        mask = RowMask._of(rows_TS[None, None])
        if rows_TS.is_cuda and flatkernel.is_available():
            mask.tiled = flatkernel.tiles(rows_TS, group_size)
        else:
            mask.groups = row_groups(rows_TS) if rows_TS.device.type == "cpu" else None
            mask.seen = _seen(rows_TS) if mask.groups is None else None
        return mask

    @staticmethod
    def of_intervals(
        seen: SeenIntervals,
        group_size: int,
        num_groups: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        channels: int = 128,
    ) -> RowMask:
        """
        Args:
            group_size, num_groups: query heads per key head, and key heads.
            dtype, channels: of keys and values; the larger number if they differ.
        """
        seen = seen.melted()
        num_queries = int(seen.counts.sum())
        mask = RowMask._of(torch.empty((1, 1, num_queries, 0), dtype=torch.bool, device=device))
        has_kernel = torch.device(device).type == "cuda" and flatkernel.is_available()
        if has_kernel:
            mask.plan = intervalkernel.plan(
                seen, group_size, num_groups, device, dtype=dtype, channels=channels
            )
        # Plain causal attention is what FlashAttention is made for.
        if not has_kernel or seen.is_causal():
            mask.parts = parts(seen, device)
        return mask

    @staticmethod
    def _of(tensor: torch.Tensor) -> RowMask:
        mask: RowMask = torch.Tensor._make_subclass(RowMask, tensor)
        mask.tiled = mask.seen = mask.groups = mask.plan = mask.parts = None
        return mask


def _seen(rows_TS: torch.Tensor) -> slice | torch.Tensor:
    slots = rows_TS.any(0).nonzero()[:, 0]
    first, last = int(slots[0]), int(slots[-1])
    return slice(first, last + 1) if len(slots) > DENSE_ENOUGH * (last + 1 - first) else slots


def row_groups(rows_TS: torch.Tensor) -> RowGroups | None:
    """Queries by the stretches of slots that they have to themselves; None where one call for all is cheaper.

    Args:
        rows_TS: bool [T, S] on a CPU; every query sees something.
    """
    rows = rows_TS.numpy()
    if len(rows) < 2:
        return None
    firsts, ends = rows.argmax(1), rows.shape[1] - rows[:, ::-1].argmax(1)
    order = np.argsort(firsts, kind="stable")
    # A query begins a stretch if all before it, in the order of their first slots, have ended.
    ended = np.maximum.accumulate(ends[order])
    starts = np.concatenate([[0], np.flatnonzero(firsts[order][1:] >= ended[:-1]) + 1, [len(rows)]])
    queries = [slice(*pair) for pair in pairwise(starts.tolist())]
    keys = [slice(int(firsts[order[some.start]]), int(ended[some.stop - 1])) for some in queries]
    pairs = sum((q.stop - q.start) * (k.stop - k.start) for q, k in zip(queries, keys, strict=True))
    if pairs + _PAIRS_PER_CALL * len(keys) >= len(rows) * (int(ended[-1]) - keys[0].start):
        return None
    groups = list[RowGroup]()
    for some, stretch in zip(queries, keys, strict=True):
        visible = rows[order[some], stretch]
        is_whole = len(visible) == 1 and visible.all()
        groups.append(RowGroup(some, stretch, None if is_whole else torch.from_numpy(visible)))
    return RowGroups(torch.from_numpy(order), torch.from_numpy(np.argsort(order)), groups)


def flat_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: queries [1, H, T, D], keys and values [1, J, S, D] of all slots.

    Args:
        attention_mask: a `RowMask`.
        softcap: scores are squeezed into (-softcap, softcap) (Gemma 2).
        s_aux: attention sinks [H]: scores of a key without a value (gpt-oss).

    Returns:
        [1, T, H, D].

    Raises:
        ModelError: another mask, or attention dropout.
    """
    if not isinstance(attention_mask, RowMask) or dropout:
        raise ModelError(f"{NAME} takes a RowMask and no dropout", "run the model with a legraph.Engine")
    query = query.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask.tiled is not None:
        out = flatkernel.attend(query[0], key[0], value[0], attention_mask.tiled, scale, softcap, s_aux)
        return out[None], None
    is_plain = softcap is None and s_aux is None
    if attention_mask.plan is not None and not (attention_mask.parts and is_plain):
        return intervalkernel.attend(query, key, value, attention_mask.plan, scale, softcap, s_aux), None
    if attention_mask.parts is not None:
        return by_parts(query, key, value, attention_mask.parts, scale, softcap, s_aux), None
    if attention_mask.groups is not None:
        return by_groups(query, key, value, attention_mask.groups, scale, softcap, s_aux), None
    seen = attention_mask.seen
    assert seen is not None
    key, value, rows = key[:, :, seen], value[:, :, seen], attention_mask[:, :, :, seen]
    return torch_attention(query, key, value, rows[0, 0], scale, softcap, s_aux).transpose(1, 2), None


def by_parts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    parts: list[Part],
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention one part after the other, with torch's SDPA. Gradients flow through it.

    Takes [B, H, T, D] over [B, J, S, D] and gives [B, T, H, D].
    """
    batch, num_heads, num_queries, _ = query.shape
    out = query.new_empty((batch, num_queries, num_heads, value.shape[3]))
    for part in parts:
        k, v = part.gathered(key), part.gathered(value)
        some = torch_attention(query[:, :, part.queries], k, v, part.visible, scale, softcap, sinks)
        out[:, part.queries] = some.transpose(1, 2)
    return out


def by_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_groups: RowGroups,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `by_parts`, one group of queries after the other."""
    query = query[:, :, row_groups.order]
    attended = list[torch.Tensor]()
    for group in row_groups.groups:
        q, k, v = query[:, :, group.queries], key[:, :, group.keys], value[:, :, group.keys]
        attended.append(torch_attention(q, k, v, group.visible, scale, softcap, sinks))
    return torch.cat(attended, 2)[:, :, row_groups.places].transpose(1, 2)


def torch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, H, T, D] over [B, J, S, D]; `visible` is bool [T, S].

    None is causal attention where T = S, and for a single query all keys.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    assert visible is not None or num_queries in (1, num_keys)
    if softcap is not None or sinks is not None:
        if visible is None:
            visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
            visible = visible.tril(num_keys - num_queries)
        return plain_attention(query, key, value, visible[None, None], scale, softcap, sinks)
    groups = query.shape[1] // key.shape[1]
    # With a mask, SDPA has no fast kernel for groups of heads on a GPU. On a CPU it has; there copies of the
    # keys would take far longer than the attention of a few queries.
    has_groups = groups > 1 and (visible is None or not query.is_cuda)
    if groups > 1 and not has_groups:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    mask, is_causal = (None, num_queries > 1) if visible is None else (visible[None, None], False)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, is_causal=is_causal, enable_gqa=has_groups
    )


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The formula, in float32: [1, H, T, D] over [1, J, S, D] with bool [1, 1, T, S] gives [1, H, T, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is None:
        return (scores.softmax(-1) @ value.float()).to(value.dtype)
    sink_scores = sinks.float()[None, :, None, None].expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, sink_scores], -1).softmax(-1)[..., :-1]
    return (weights @ value.float()).to(value.dtype)


AttentionInterface.register(NAME, flat_attention_forward)
# Without a mask function of its own, transformers would pass no mask at all, without a word.
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
