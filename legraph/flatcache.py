"""One flat KV cache for every graph that runs: preallocated, and written slot by slot.

Run side: imports torch. The keys and values of all tokens share one sequence of slots: no batch padding, no
copy for each branch, no growing. Who may see which slot is not known here.

Layers whose keys and values have the same shape share one tensor (a *stack*), so that the keys and values of
a chunk, over all layers, are one slice of it: [n, H, T, D] for n key or value tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from legraph.errors import ModelError
from legraph.slots import Extent

# Sizes are rounded up to an eighth of a power of two: few sizes, and little that nobody uses.
_STEPS_PER_OCTAVE = 8
_MIN_CAPACITY = 512


def rounded_capacity(num_slots: int) -> int:
    """The capacity that a cache for so many slots gets, at most an eighth more than asked for."""
    if num_slots <= _MIN_CAPACITY:
        return _MIN_CAPACITY
    step = (1 << (num_slots - 1).bit_length()) // 2 // _STEPS_PER_OCTAVE
    return -(-num_slots // step) * step


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a model caches for each token.

    Attributes:
        layers: for each layer (heads, channels of a key, channels of a value), or None if it caches nothing
            (layers that share the keys of another one).
        dtype: of keys and values.
    """

    layers: tuple[tuple[int, int, int] | None, ...]
    dtype: torch.dtype

    def stacks(self) -> list[tuple[int, int]]:
        """(heads, channels) of each stack."""
        return list(dict.fromkeys(part for layer in self.layers for part in _parts(layer)))

    def places(self) -> list[list[tuple[int, int]]]:
        """For each layer, (stack, index in the stack) of its keys and of its values; empty without any."""
        stacks, used = self.stacks(), dict[int, int]()
        places = list[list[tuple[int, int]]]()
        for layer in self.layers:
            row = list[tuple[int, int]]()
            for part in _parts(layer):
                stack = stacks.index(part)
                row.append((stack, used.get(stack, 0)))
                used[stack] = used.get(stack, 0) + 1
            places.append(row)
        return places

    def bytes_per_token(self) -> int:
        return (
            sum(heads * size for layer in self.layers for heads, size in _parts(layer)) * self.dtype.itemsize
        )


def _parts(layer: tuple[int, int, int] | None) -> list[tuple[int, int]]:
    """(heads, channels) of a layer's keys and of its values."""
    return [] if layer is None else [(layer[0], layer[1]), (layer[0], layer[2])]


@torch.inference_mode()
def kv_shape(model: Any, cache_argument: str) -> KVShape:
    """Asks the model: runs one token, and looks at what it has cached.

    Raises:
        ModelError: it caches something else than keys and values of that token, layer by layer.
    """
    cache = DynamicCache()
    inputs = {"input_ids": torch.zeros((1, 1), dtype=torch.int64, device=model.device)}
    inputs["position_ids"] = torch.zeros_like(inputs["input_ids"])
    try:
        model(**inputs, use_cache=True, **{cache_argument: cache})
    except (TypeError, ValueError, AttributeError) as error:
        raise _no_cache(model) from error
    layers = list[tuple[int, int, int] | None]()
    dtype = model.dtype
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4:
            layers.append(None)
            continue
        # Some models write a layer several times a pass (Dory's loops).
        if keys.shape[2] != 1 or keys.shape[1] != values.shape[1]:
            raise _no_cache(model)
        layers.append((keys.shape[1], keys.shape[3], values.shape[3]))
        dtype = keys.dtype
    if not any(layers):
        raise _no_cache(model)
    return KVShape(tuple(layers), dtype)


def _no_cache(model: Any) -> ModelError:
    return ModelError(
        f"{type(model).__name__} caches no keys and values that legraph knows how to keep",
        "use a decoder-only attention model",
    )


@dataclass(slots=True)
class Writing:
    """What the layers do with the tokens of the pass that is under way.

    Attributes:
        slots: int64 [T] on the device, where they go.
        num_shown: number of slots that attention is given back; None gives it the new tokens alone.
    """

    slots: torch.Tensor
    num_shown: int | None


class _FlatLayer(CacheLayerMixin):
    """One layer's slots. transformers' attention classes call `update`."""

    is_sliding = False

    def __init__(self, cache: FlatCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.cache = cache
        # [1, H, S, D], views of the stacks.
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise AssertionError("a flat cache is made whole")

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        writing = self.cache.writing
        assert writing is not None and self.keys is not None and self.values is not None
        # Under autocast keys come in another dtype than values.
        self.keys.index_copy_(2, writing.slots, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, writing.slots, value_states.to(self.values.dtype))
        if writing.num_shown is None:
            return key_states, value_states
        return self.keys[:, :, : writing.num_shown], self.values[:, :, : writing.num_shown]

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        """What `get_max_length` was called before transformers 5.2x."""
        return -1

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        raise AssertionError("a flat cache is used with a mask of our own")


class FlatCache(Cache):
    """Slots 0..capacity-1 in every layer. Slot 0 is scratch space: padding is written there.

    Attributes:
        stacks: [n, H, S, D] each.
        positions: int64 [S] on the device, position id of each slot.
        writing: what the pass under way does; set by whoever starts it.
    """

    def __init__(self, shape: KVShape, device: torch.device, capacity: int) -> None:
        self.shape, self.capacity = shape, capacity
        self.writing: Writing | None = None
        places = shape.places()
        sizes = [0] * len(shape.stacks())
        for stack, index in (place for row in places for place in row):
            sizes[stack] = max(sizes[stack], index + 1)
        # Zeros, because a hidden slot has weight 0 in a masked softmax, and 0 times garbage may be NaN.
        self.stacks = [
            torch.zeros((size, heads, capacity, channels), dtype=shape.dtype, device=device)
            for size, (heads, channels) in zip(sizes, shape.stacks(), strict=True)
        ]
        self.positions = torch.zeros(capacity, dtype=torch.int64, device=device)
        layers = [
            _FlatLayer(self, *(self.stacks[stack][index : index + 1] for stack, index in row))
            if row
            else _FlatLayer(self, self.positions[:0], self.positions[:0])
            for row in places
        ]
        super().__init__(layers=layers)  # type: ignore[arg-type]

    @property
    def num_bytes(self) -> int:
        return self.capacity * self.shape.bytes_per_token()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def read(self, extent: Extent) -> tuple[torch.Tensor, ...]:
        """The keys and values in some slots, over all layers: a view [n, H, T, D] of each stack."""
        return tuple(stack[:, :, extent.start : extent.end] for stack in self.stacks)

    def write(self, extent: Extent, tensors: Sequence[torch.Tensor]) -> None:
        """Fills slots with what `read` gave, from this or another cache of the same shape."""
        for own, given in zip(self.read(extent), tensors, strict=True):
            own.copy_(given, non_blocking=True)

    def copy_from(self, other: FlatCache) -> None:
        """Takes over all slots of a smaller cache."""
        self.write(Extent(0, other.capacity), other.stacks)
        self.positions[: other.capacity] = other.positions

    def is_finite(self, extent: Extent) -> bool:
        """Whether no key or value in some slots is NaN or infinite. Makes no copy: a sum shows either."""
        return all(bool(own.sum(dtype=torch.float32).isfinite()) for own in self.read(extent))

    def clear(self, extent: Extent) -> None:
        """Makes slots harmless whose keys or values may be NaN."""
        for own in self.read(extent):
            own.zero_()
