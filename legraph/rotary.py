"""Moves cached keys to other positions: a rotary embedding is a rotation, so a key is turned by the rest.

Run side: imports torch. Which channels turn by which frequencies differs between models (halves or pairs, a
part of the channels, other frequencies for windowed layers, none in some layers). Instead of a table of
models, `find_shift` asks the model itself: it computes the keys of a few tokens at two places and looks for
the rotation that takes one to the other, layer by layer. Where there is none, nothing is shifted.
Rotary embedding: Su et al., RoFormer, 2021. Shifting cached keys: StreamingLLM, Xiao et al., 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.cache_utils import DynamicCache

from legraph.flatcache import KVShape
from legraph.model import dense_attention, max_positions, use_attention

Layout = Literal["halves", "pairs"]
# The frequencies of the others (dynamic, longrope) depend on the length of the input.
_SHIFTABLE = {"default", "linear", "llama3", "yarn", "proportional"}
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}
# What rounds the angles, which are float32, adds to it for each position.
_TOLERANCE_PER_POSITION = 2e-8
# The last probe is as far away as the model goes: some scale queries by a logarithm of the position.
_PROBE_TOKENS, _PROBE_SHIFTS, _FARTHEST = 5, (0, 3, 97), 2**17


@dataclass(frozen=True, slots=True)
class Rotation:
    """How one layer turns its keys: channel pairs, and float32 [R / 2] radians per position for each."""

    inv_freq: torch.Tensor
    layout: Layout

    def turned(self, keys: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Keys [..., T, D] of positions `old` (int64 [T]) as they are at positions `new`.

        transformers multiplies position and frequency in float32. The angle turned by is the difference of
        two such products, so that the result is what the model would have computed, up to one rounding.
        """
        inv_freq = self.inv_freq.to(keys.device).float()
        angles = [(positions[:, None].float() * inv_freq).double() for positions in (old, new)]
        turn = angles[1] - angles[0]
        cos, sin = turn.cos().float(), turn.sin().float()
        size = 2 * len(inv_freq)
        rotary, rest = keys[..., :size].float(), keys[..., size:]
        if self.layout == "halves":
            first, second = rotary.chunk(2, dim=-1)
        else:
            first, second = rotary[..., 0::2], rotary[..., 1::2]
        turned = first * cos - second * sin, second * cos + first * sin
        joined = torch.cat(turned, -1) if self.layout == "halves" else torch.stack(turned, -1).flatten(-2)
        return torch.cat([joined.to(keys.dtype), rest], -1)


@dataclass(frozen=True, slots=True)
class KeyShift:
    """How the keys of a whole model move.

    Attributes:
        layers: for each layer the rotation of its keys and of its values; None where there are no positions
            in them. Latent attention (DeepSeek) caches its rotary keys in the place of values.
    """

    shape: KVShape
    layers: tuple[tuple[Rotation | None, Rotation | None], ...]

    def moved(self, tensors: Sequence[torch.Tensor], old_start: int, new_start: int) -> list[torch.Tensor]:
        """Keys and values of a chunk ([n, H, T, D] for each stack) at another place."""
        length, device = tensors[0].shape[2], tensors[0].device
        old = torch.arange(old_start, old_start + length, device=device)
        moved = [tensor.clone() for tensor in tensors]
        for rotation, indices in self._rows_by_rotation():
            for stack, rows in indices.items():
                part = tensors[stack][rows]
                moved[stack][rows] = rotation.turned(part, old, old + (new_start - old_start))
        return moved

    def _rows_by_rotation(self) -> list[tuple[Rotation, dict[int, list[int]]]]:
        """Layers that turn alike are turned together: stack -> rows of the stack."""
        groups = dict[int, tuple[Rotation, dict[int, list[int]]]]()
        for rotations, places in zip(self.layers, self.shape.places(), strict=True):
            # A layer that caches nothing has no places.
            for rotation, (stack, row) in zip(rotations, places, strict=False):
                if rotation is not None:
                    groups.setdefault(id(rotation), (rotation, {}))[1].setdefault(stack, []).append(row)
        return list(groups.values())


def find_shift(model: Any, shape: KVShape, cache_argument: str) -> KeyShift | str:
    """How the model's keys are moved, or why they cannot be."""
    kinds = _rope_types(model.config)
    refused = sorted(kinds - _SHIFTABLE)
    if refused:
        return f"its rotary embedding is of type {', '.join(refused)}"
    candidates = _candidates(model)
    if candidates == [None]:
        return "it has no rotary embedding that legraph knows"
    use_attention(model, dense_attention(model))
    known = max_positions(model.config) or _FARTHEST
    shifts = [*_PROBE_SHIFTS, max(_PROBE_SHIFTS[-1], min(known, _FARTHEST) - _PROBE_TOKENS)]
    probes = [_probe(model, shift, cache_argument) for shift in shifts]
    layers = list[tuple[Rotation | None, Rotation | None]]()
    for i, layer in enumerate(shape.layers):
        if layer is None:
            layers.append((None, None))
            continue
        found = list[Rotation | None]()
        for part in (0, 1):
            tensors = {shift: probe[i][part] for shift, probe in zip(shifts, probes, strict=True)}
            fitting = [one for one in candidates if _fits(one, tensors, shape.dtype)]
            if not fitting:
                if part == 1:
                    return f"what layer {i} computes depends on absolute positions"
                return f"the keys of layer {i} do not turn with the position in a way that legraph knows"
            found.append(fitting[0])
        layers.append((found[0], found[1]))
    return KeyShift(shape, tuple(layers))


def _rope_types(config: Any) -> set[str]:
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    by_layer = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    return {part.get("rope_type", "default") for part in by_layer}


def _candidates(model: Any) -> list[Rotation | None]:
    """No rotation, and every table of frequencies that the model holds, in both layouts and directions."""
    found = list[Rotation | None]([None])
    tables = list[torch.Tensor]()
    for name, buffer in model.named_buffers():
        last = name.rpartition(".")[2]
        if not last.endswith("inv_freq") or "original" in last:
            continue
        if not any(table.shape == buffer.shape and torch.equal(table, buffer) for table in tables):
            tables.append(buffer)
    for table in tables:
        # Nearly all turn keys forward; NanoChat turns them back.
        for inv_freq in (table, -table):
            found += [Rotation(inv_freq, "halves"), Rotation(inv_freq, "pairs")]
    return found


@torch.inference_mode()
def _probe(model: Any, shift: int, cache_argument: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values [H, T, D] of each layer for a few tokens that start at position `shift`."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(_PROBE_TOKENS, device=model.device) * 7 + 3)[None] % vocabulary
    positions = torch.arange(shift, shift + _PROBE_TOKENS, device=model.device)[None]
    cache = DynamicCache()
    model(input_ids=ids, position_ids=positions, use_cache=True, **{cache_argument: cache})
    return [(layer.keys[0], layer.values[0]) if layer.keys is not None else () for layer in cache.layers]  # type: ignore


def _fits(rotation: Rotation | None, tensors: dict[int, torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether the rotation takes keys (or values) [H, T, D] at position 0 to those at the other positions."""
    first = tensors[0]
    if rotation is not None and 2 * len(rotation.inv_freq) > first.shape[-1]:
        return False
    old = torch.arange(_PROBE_TOKENS, device=first.device)
    return all(
        _distance(first if rotation is None else rotation.turned(first, old, old + shift), moved)
        <= max(_TOLERANCE[dtype], _TOLERANCE_PER_POSITION * shift)
        for shift, moved in tensors.items()
    )


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-9))
