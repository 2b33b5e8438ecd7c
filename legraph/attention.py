"""A bundle's mask in the form that a model's attention takes, for each kind of layer the model has.

Run side: imports torch. A 4-D mask or a `BlockMask` passes through transformers untouched, so a model with
a sliding window drops the window without a word when it is given our mask. Here the window is put back, as
a distance in position ids; layers that are not attention over keys (linear, chunked, recurrent) are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch

from legraph import flatattention, flexattention, observedattention
from legraph.errors import ModelError
from legraph.flexmask import block_mask
from legraph.mask import ChunkMask, Int64Array

Attention = Literal["flex", "flat", "observed", "sdpa", "eager"]

# What each of them is called in transformers.
IMPLEMENTATIONS: dict[Attention, str] = {
    "flex": flexattention.NAME,
    "flat": flatattention.NAME,
    "observed": observedattention.NAME,
    "sdpa": "sdpa",
    "eager": "eager",
}

# "flat" and "observed" work over an engine's cache only.
_FOR_ANY_MODEL: tuple[Attention, ...] = ("flex", "sdpa", "eager")

_FULL, _SLIDING = "full_attention", "sliding_attention"
T = TypeVar("T")


def layer_windows(config: Any) -> dict[str, int | None]:
    """The sliding window of each kind of layer of a model, in positions; None sees everything.

    Args:
        config: `model.config`.

    Raises:
        ModelError: some layers are neither full nor sliding-window attention.
    """
    text = config.get_text_config()
    try:
        window = getattr(text, "sliding_window", None)
    except RuntimeError:  # transformers says so when every layer has a value of its own
        raise ModelError(
            f"model type {text.model_type!r} has windows of different sizes, and legraph knows one size",
            "use a model whose windowed layers have the same window",
        ) from None
    if not getattr(text, "use_sliding_window", True):
        window = None
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        return {_FULL: window}
    unknown = sorted(set(kinds) - {_FULL, _SLIDING})
    if unknown:
        raise ModelError(
            f"model type {text.model_type!r} has layers of type {', '.join(unknown)}: they do not take an "
            "attention mask over single tokens, so the graph would be ignored there",
            "use a model whose layers are full or sliding-window attention",
        )
    return {kind: window if kind == _SLIDING else None for kind in sorted(set(kinds))}


def for_each_layer_kind(config: Any, make: Callable[[int | None], T]) -> T | dict[str, T]:
    """What `make(window)` gives, once for each different window of the model.

    Returns:
        One mask where all layers are alike, else a dict by layer type, which such models take.
    """
    windows = {_FULL: None} if config is None else layer_windows(config)
    made = {window: make(window) for window in dict.fromkeys(windows.values())}
    if len(made) == 1:
        return made[next(iter(made))]
    return {kind: made[window] for kind, window in windows.items()}


def dense_form(visible_QK: torch.Tensor, attn: Attention, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A bool mask [Q, K] as "sdpa" (bool) or "eager" (additive, in the model's dtype) takes it, 4-D."""
    if attn == "sdpa":
        return visible_QK[None, None]
    dtype = dtype or torch.float32
    hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=visible_QK.device)
    zero = torch.zeros((), dtype=dtype, device=visible_QK.device)
    return torch.where(visible_QK, zero, hidden)[None, None]


def within_window(q_positions: torch.Tensor, k_positions: torch.Tensor, window: int | None) -> torch.Tensor:
    """bool [Q, K] (or [1, 1] without a window): the two tokens are less than `window` positions apart."""
    if window is None:
        return torch.ones((1, 1), dtype=torch.bool, device=q_positions.device)
    return (q_positions[:, None] - k_positions[None, :]).abs() < window


def attention_mask(
    mask: ChunkMask,
    position_ids: Int64Array,
    device: torch.device | str,
    attn: Attention,
    config: Any = None,
    dtype: torch.dtype | None = None,
    padded_length: int | None = None,
) -> Any:
    """The `attention_mask` argument for a forward pass over all tokens of `mask`, without a cache.

    Args:
        padded_length: for "flex", number of tokens of the `BlockMask`, if not that of the bundle; only
            legraph's own implementation (`flexattention`) takes a longer one.
    """
    if attn == "flex":
        return for_each_layer_kind(
            config,
            lambda window: block_mask(
                mask, device, position_ids=position_ids, window=window, padded_length=padded_length
            ),
        )
    visible = torch.from_numpy(mask.dense()).to(device)
    positions = torch.from_numpy(position_ids).to(device)
    return for_each_layer_kind(
        config,
        lambda window: dense_form(visible & within_window(positions, positions, window), attn, dtype),
    )


def model_inputs(
    input_ids: Int64Array,
    position_ids: Int64Array,
    labels: Int64Array | None,
    mask: ChunkMask,
    device: torch.device | str,
    attn: str,
    config: Any = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """See `Bundle.model_inputs`."""
    if attn not in _FOR_ANY_MODEL:
        raise ValueError(f"attn is {attn!r}; expected one of {', '.join(_FOR_ANY_MODEL)}")
    inputs = {
        "input_ids": torch.from_numpy(input_ids)[None].to(device),
        "position_ids": torch.from_numpy(position_ids)[None].to(device),
        "attention_mask": attention_mask(mask, position_ids, device, attn, config, dtype),
    }
    if labels is not None:
        inputs["labels"] = torch.from_numpy(labels)[None].to(device)
    return inputs
