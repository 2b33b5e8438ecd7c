"""Attention that is watched: plain softmax attention over a graph that adds up what goes from chunk to chunk.

Run side: imports torch and transformers. It is "legraph_observed_attention" for transformers' models. Weights
exist for the queries of one chunk and one layer at a time, and are summed at once, so what is kept is
O(heads x (chunks + edges)) a layer, whatever the number of tokens. All in float32, like the reference in
`flatattention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from legraph.errors import ModelError
from legraph.mask import ChunkMask, Int64Array

NAME = "legraph_observed_attention"
# Weights that are held at a time: 256 MiB on a GPU, 64 MiB elsewhere.
_MAX_GPU_WEIGHTS, _MAX_WEIGHTS = 2**26, 2**24


@dataclass(frozen=True, slots=True)
class Look:
    """Queries of one chunk, and all that they may see by the graph.

    Attributes:
        chunk: its index.
        first, end: the queries, as tokens of the graph.
        keys: stretches of tokens: of the parents, ascending, then the chunk's own up to the last query.
        lengths: int64, how many keys each of the chunk's pairs has, in the same order.
    """

    chunk: int
    first: int
    end: int
    keys: tuple[slice, ...]
    lengths: Int64Array


class Recorder:
    """Sums of attention, layer by layer.

    Attributes:
        mass: for each layer float32 [H, E + K], summed over the queries of the query chunk.
        sinks: for each layer float32 [H, K], likewise; empty for a model without sinks.
        tokens: for each layer float32 [H, N, N] on the host, if they are wanted.
    """

    def __init__(self, mask: ChunkMask, positions: Int64Array, device: Any, keeps_tokens: bool) -> None:
        self.mask, self.keeps_tokens = mask, keeps_tokens
        self.positions = torch.from_numpy(positions).to(device)
        self.mass, self.sinks, self.tokens = (list[torch.Tensor]() for _ in range(3))
        self._num_pairs = mask.num_edges + mask.num_chunks
        # The layers of a pass call one after the other.
        self._layer, self._looks = 0, list[Look]()
        self._first = 0

    def begin(self, first: int, end: int) -> None:
        """The tokens `first:end` are computed next, in every layer."""
        self._layer, self._first = 0, first
        self._looks = list(looks(self.mask, first, end))

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
        """One layer: [1, H, T, D] over [1, J, N, D]; adds up its weights, and returns [1, T, H, E]."""
        num_heads, num_queries = query.shape[1], query.shape[2]
        self._make_room(num_heads, how)
        out = value.new_empty((num_queries, num_heads, value.shape[3]))
        most = (_MAX_GPU_WEIGHTS if query.is_cuda else _MAX_WEIGHTS) // num_heads
        for look in self._looks:
            k, v = (torch.cat([tensor[0, :, at] for at in look.keys], 1).float() for tensor in (key, value))
            # However many keys there are, some queries at a time.
            for first in range(look.first, look.end, step := max(1, most // k.shape[1])):
                end = min(look.end, first + step)
                at = slice(first - self._first, end - self._first)
                weights_HTn = self._weights(look, first, query[0, :, at], k, how)
                out[at] = _weighted(weights_HTn, v).transpose(0, 1).to(out.dtype)
        self._layer += 1
        return out[None]

    def _make_room(self, num_heads: int, how: How) -> None:
        if self._layer < len(self.mass):
            return
        device, num_tokens = self.positions.device, self.mask.num_tokens
        self.mass.append(torch.zeros((num_heads, self._num_pairs), device=device))
        if how.sinks is not None:
            self.sinks.append(torch.zeros((num_heads, self.mask.num_chunks), device=device))
        if self.keeps_tokens:
            self.tokens.append(torch.zeros((num_heads, num_tokens, num_tokens)))

    def _weights(
        self, look: Look, first: int, query_HTD: torch.Tensor, key_JnD: torch.Tensor, how: How
    ) -> torch.Tensor:
        """Probabilities [H, T, n] of some queries over all keys of their look; their sums are added."""
        num_heads, num_queries, _ = query_HTD.shape
        grouped = query_HTD.float().reshape(key_JnD.shape[0], -1, query_HTD.shape[2])
        scores = (grouped @ key_JnD.transpose(1, 2) * how.scale).reshape(num_heads, num_queries, -1)
        if how.softcap is not None:
            scores = how.softcap * torch.tanh(scores / how.softcap)
        scores.masked_fill_(~self._visible(look, first, num_queries, how.window), float("-inf"))
        weights = _softmax(scores, how.sinks)
        mass_Hn = weights.sum(1)
        start = int(self.mask.parent_offsets[look.chunk]) + look.chunk
        # Made anew each time: kept for all chunks, it would take a number for every pair of chunk and key.
        pair_of_key = np.repeat(np.arange(start, start + len(look.lengths)), look.lengths)
        self.mass[self._layer].index_add_(1, torch.from_numpy(pair_of_key).to(mass_Hn.device), mass_Hn)
        if how.sinks is not None:
            self.sinks[self._layer][:, look.chunk] += num_queries - mass_Hn.sum(1)
        if self.keeps_tokens:
            keys = torch.cat([torch.arange(at.start, at.stop) for at in look.keys])
            self.tokens[self._layer][:, first : first + num_queries, keys] = weights.cpu()
        return weights

    def _visible(self, look: Look, first: int, num_queries: int, window: int | None) -> torch.Tensor:
        """bool [T, n]"""
        device = self.positions.device
        queries = torch.arange(first, first + num_queries, device=device)
        keys = torch.cat([torch.arange(at.start, at.stop, device=device) for at in look.keys])
        visible = keys[None] <= queries[:, None]
        if window is not None:
            visible &= (self.positions[queries][:, None] - self.positions[keys][None]).abs() < window
        return visible


@dataclass(frozen=True, slots=True)
class How:
    """What a layer does with scores: their factor, a soft cap, sinks [H], a window in positions."""

    scale: float
    softcap: float | None
    sinks: torch.Tensor | None
    window: int | None


def looks(mask: ChunkMask, first: int, end: int) -> Iterator[Look]:
    """What the tokens `first:end` see, chunk by chunk."""
    chunks = mask.chunk_of([first, end - 1])
    for chunk in range(int(chunks[0]), int(chunks[1]) + 1):
        own, parents = mask.span(chunk), mask.parents(chunk)
        q_first, q_end = max(first, own.start), min(end, own.stop)
        spans = [*(mask.span(int(parent)) for parent in parents), slice(own.start, q_end)]
        lengths = np.array([span.stop - span.start for span in spans], dtype=np.int64)
        yield Look(chunk, q_first, q_end, _melted(spans), lengths)


def _melted(spans: list[slice]) -> tuple[slice, ...]:
    """The same tokens in as few stretches as can be."""
    melted = [spans[0]]
    for span in spans[1:]:
        if span.start == melted[-1].stop:
            melted[-1] = slice(melted[-1].start, span.stop)
        else:
            melted.append(span)
    return tuple(melted)


def _softmax(scores_HTn: torch.Tensor, sinks_H: torch.Tensor | None) -> torch.Tensor:
    if sinks_H is None:
        return scores_HTn.softmax(-1)
    sinks = sinks_H.float()[:, None, None].expand(*scores_HTn.shape[:2], 1)
    return torch.cat([scores_HTn, sinks], -1).softmax(-1)[..., :-1]


def _weighted(weights_HTn: torch.Tensor, value_JnE: torch.Tensor) -> torch.Tensor:
    """[H, T, E]"""
    num_heads, num_queries, num_keys = weights_HTn.shape
    grouped = weights_HTn.reshape(value_JnE.shape[0], -1, num_keys) @ value_JnE
    return grouped.reshape(num_heads, num_queries, -1)


class ObservedMask(torch.Tensor):
    """Stands where a model expects its mask, and says who watches, and which window the layer has.

    A tensor, because that is what transformers hands through to the attention function untouched.
    """

    recorder: Recorder
    window: int | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(recorder: Recorder, window: int | None) -> ObservedMask:
        empty = torch.empty((1, 1, 1, 0), dtype=torch.bool, device=recorder.positions.device)
        mask: ObservedMask = torch.Tensor._make_subclass(ObservedMask, empty)
        mask.recorder, mask.window = recorder, window
        return mask


def observed_attention_forward(
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
    """What transformers calls in each layer; see `flatattention.flat_attention_forward`.

    Raises:
        ModelError: another mask, or attention dropout.
    """
    if not isinstance(attention_mask, ObservedMask) or dropout:
        raise ModelError(f"{NAME} takes an ObservedMask and no dropout", "use legraph.observe")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    how = How(scale, softcap, s_aux, attention_mask.window)
    return attention_mask.recorder.attend(query, key, value, how), None


AttentionInterface.register(NAME, observed_attention_forward)
# Without a mask function of its own, transformers would pass no mask at all, without a word.
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
