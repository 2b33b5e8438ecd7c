"""Where the keys and values of a chunk come from: the cache itself, memory, disk, or the model.

Run side: imports torch. Found by key (`keys`), at any position that the model's keys can be moved to
(`rotary`); a model whose keys cannot be moved finds only what was computed at the same position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from legraph.flatattention import DENSE_ENOUGH
from legraph.forward import Forward
from legraph.keys import chunk_key, model_fingerprint
from legraph.kvdisk import ChunkKV
from legraph.kvstore import KVStore
from legraph.mask import Int64Array
from legraph.model import use_attention
from legraph.rotary import KeyShift, find_shift
from legraph.slots import Extent, Residents

Origin = Literal["device", "memory", "disk", "computed", "unused"]


@dataclass(frozen=True, slots=True)
class ChunkSource:
    """Where a chunk's keys and values came from.

    Attributes:
        origin: "device" (they lay in the cache already), "memory", "disk", "computed", or "unused": nothing
            that had to be computed sees the chunk.
        reused: tokens that were not computed; `tokens` is how many the chunk had when it was placed.
        num_bytes: keys and values that were reused.
        shift: by how many positions they were moved.
    """

    chunk: str
    origin: Origin
    tokens: int
    reused: int
    num_bytes: int
    shift: int


@dataclass(frozen=True, slots=True)
class Hit:
    """Keys and values that were found.

    Attributes:
        origin: see `ChunkSource`.
        start: position at which they were computed.
        extent: the slots they lie in; None for those from memory or disk.
        tensors: [n, H, T, D] for each stack; None for those in the cache.
    """

    origin: Literal["device", "memory", "disk"]
    start: int
    extent: Extent | None = None
    tensors: tuple[torch.Tensor, ...] | None = None


class Reuse:
    """What an engine knows about keys and values that it has computed before.

    Args:
        store: memory and disk.
        residents: chunks that stayed in the cache.

    Attributes:
        makes_residents: whether the chunks of a run stay in the cache after it; else they are only kept in
            the store, and other runs get copies of their own.
    """

    def __init__(self, forward: Forward, store: KVStore, residents: Residents) -> None:
        self.forward, self.store, self.residents = forward, store, residents
        self.makes_residents = True

    @cached_property
    def model(self) -> str:
        """Fingerprint of the model. Takes one pass over its weights, when it is first asked for."""
        return model_fingerprint(self.forward.model)

    @cached_property
    def shift(self) -> KeyShift | str:
        """How keys are moved, or why they cannot be."""
        use_attention(self.forward.model, self.forward.dense)
        return find_shift(self.forward.model, self.forward.shape, self.forward.cache_argument)

    def key(self, ids: Int64Array, start: int, parents: Iterable[tuple[str, int]]) -> str:
        """The key of a chunk. `parents`: key and first position of each."""
        absolute = None if isinstance(self.shift, KeyShift) else start
        return chunk_key(self.model, ids, ((key, at - start) for key, at in parents), absolute)

    def find(self, key: str, start: int, num_tokens: int) -> Hit | None:
        """Looks in the cache, in memory and on disk."""
        starts = self.residents.starts(key)
        if starts:
            at = start if start in starts else starts[0]
            return Hit("device", at, self.residents.use((key, at)))
        found = self.store.get(key)
        if found is None:
            return None
        kept, tier = found
        if [tuple(t.shape) for t in kept.tensors] != self._shapes(num_tokens):
            return None
        return Hit(tier, kept.start, tensors=kept.tensors)

    def _shapes(self, num_tokens: int) -> list[tuple[int, ...]]:
        cache = self.forward.cache
        stacks = [] if cache is None else cache.stacks
        return [(s.shape[0], s.shape[1], num_tokens, s.shape[3]) for s in stacks]

    def pays_in_place(self, extents: Sequence[Extent]) -> bool:
        """Whether slots should be used where they are. On a CPU each step gathers those that lie scattered
        (see `flatattention`), which a single copy saves."""
        if not extents or self.forward.model.device.type == "cuda":
            return True
        stretch = max(extent.end for extent in extents) - min(extent.start for extent in extents)
        return sum(map(len, extents)) >= DENSE_ENOUGH * stretch

    @torch.inference_mode()
    def fill(self, hit: Hit, extent: Extent, start: int) -> None:
        """Writes what was found, or its first tokens, into `extent`, as it is at position `start`."""
        cache, device = self.forward.cache, self.forward.model.device
        assert cache is not None
        tensors: Sequence[torch.Tensor]
        if hit.tensors is not None:
            tensors = [tensor[:, :, : len(extent)].to(device, non_blocking=True) for tensor in hit.tensors]
        else:
            assert hit.extent is not None
            tensors = cache.read(Extent(hit.extent.start, hit.extent.start + len(extent)))
        if hit.start != start:
            assert isinstance(self.shift, KeyShift)
            tensors = self.shift.moved(tensors, hit.start, start)
        cache.write(extent, tensors)
        cache.positions[extent.start : extent.end] = torch.arange(start, start + len(extent), device=device)

    def keep(self, entries: Iterable[tuple[str, int, Extent]]) -> None:
        """Puts chunks (key, first position, slots) into memory and on disk, if they are not there yet."""
        cache, config = self.forward.cache, self.forward.model.config
        assert cache is not None
        name = str(getattr(config, "_name_or_path", "") or config.model_type)
        # Of a folder, what tells it from others.
        name = Path(name).name if Path(name).is_absolute() else name
        self.store.put(
            (key, ChunkKV(cache.read(extent), start, self.model, name)) for key, start, extent in entries
        )


def usable(forward: Any, last_position: int) -> bool:
    """Whether what a run computes is the same in every run.

    Beyond the border of a rotary embedding that depends on the length it is not.
    """
    return forward.border is None or last_position < forward.border
