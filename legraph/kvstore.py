"""The KV store: keys and values of chunks by key, in memory and, if wanted, on disk, for exact reuse.

A key says everything that a chunk's keys and values depend on, so what is found under it is what would be
computed. How keys are made, and what is done with the tensors, the store does not know.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from legraph.kvdisk import ChunkKV, DiskTier, check_key

if TYPE_CHECKING:
    import torch

Tier = Literal["memory", "disk"]

DEFAULT_MEMORY_BYTES = 2**31
# How long a chunk may be used from memory before its file is marked as used too: chunks that are used all the
# time must not look, on disk, as if nobody wanted them.
_TOUCH_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What the store holds now, and how `get` went so far. Without a disk tier its numbers are 0."""

    memory_entries: int
    memory_bytes: int
    disk_entries: int
    disk_bytes: int
    hits_memory: int
    hits_disk: int
    misses: int


@dataclass(slots=True)
class _Held:
    kv: ChunkKV
    touched: float


class KVStore:
    """Chunks' keys and values: the most recently used in memory, all that fits on disk. Threads may share it.

    Args:
        memory_bytes: of tensors kept in memory; the least recently used go first, and one that is larger
            than all of it is not kept there.
        disk: a folder for the disk tier, see `DiskTier`; None: memory only.
        disk_bytes: of files kept there; None: no limit.

    Raises:
        InputError: `disk` is a file, or cannot be made.
    """

    def __init__(
        self,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        disk: str | Path | None = None,
        disk_bytes: int | None = None,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.disk = None if disk is None else DiskTier(disk, disk_bytes)
        # Guards all below; never held while tensors are copied or files are read or written.
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}  # the least recently used first
        self._held_bytes = 0
        self._hits: dict[Tier, int] = {"memory": 0, "disk": 0}
        self._misses = 0

    def __contains__(self, key: str) -> bool:
        """Whether the key is in a tier. Counts as no use; a file that is there may still prove damaged."""
        return check_key(key) in self._held or (self.disk is not None and key in self.disk)

    def __len__(self) -> int:
        """How many keys there are, those in both tiers once. Lists the folder."""
        on_disk = set[str]() if self.disk is None else self.disk.keys()
        with self._lock:
            return len(on_disk | self._held.keys())

    def get(self, key: str) -> tuple[ChunkKV, Tier] | None:
        """The chunk's keys and values on the host, and where they were; None where there are none.

        The tensors are shared with the store and must not be written to. What is found on disk is copied to
        memory if it fits there: the checksum has been verified now, and pages that the system drops and
        reads again later would not be. What does not fit is returned memory-mapped.
        """
        held = self._from_memory(check_key(key))
        if held is not None:
            return held, "memory"
        kv = None if self.disk is None else self.disk.read(key)
        if kv is not None and self._fits(kv):
            (kv,) = _to_host([kv])
        with self._lock:
            if kv is None:
                self._misses += 1
                return None
            self._hits["disk"] += 1
            self._hold(key, kv)
        return kv, "disk"

    def put(self, entries: Iterable[tuple[str, ChunkKV]]) -> None:
        """Keeps copies of chunks' keys and values, in memory and on disk.

        The tensors may be views and may be on any device; nothing of them is referred to afterwards. Copies
        from CUDA go to pinned memory, all at once, and are waited for once. What is in both tiers already
        is skipped. A disk that cannot be written to is a `KVStoreWarning`, and the memory tier goes on.
        """
        wanted = {check_key(key): kv for key, kv in entries}
        with self._lock:
            held = {key: self._held[key].kv for key in wanted.keys() & self._held.keys()}
        unwritten = set() if self.disk is None else {key for key in wanted if key not in self.disk}
        copied = [key for key in wanted if key not in held and (key in unwritten or self._fits(wanted[key]))]
        copies = dict(zip(copied, _to_host([wanted[key] for key in copied]), strict=True))
        with self._lock:
            for key, kv in copies.items():
                self._hold(key, kv)
        if self.disk is not None:
            for key, kv in (held | copies).items():
                if key in unwritten:
                    self.disk.write(key, kv)

    def stats(self) -> StoreStats:
        """Looks at the folder for the numbers of the disk tier."""
        disk_entries, disk_bytes = (0, 0) if self.disk is None else self.disk.usage()
        with self._lock:
            return StoreStats(
                len(self._held),
                self._held_bytes,
                disk_entries,
                disk_bytes,
                self._hits["memory"],
                self._hits["disk"],
                self._misses,
            )

    def clear_memory(self) -> None:
        """Empties the memory tier. Tensors that others still use stay theirs."""
        with self._lock:
            self._held.clear()
            self._held_bytes = 0

    def _from_memory(self, key: str) -> ChunkKV | None:
        now = time.monotonic()
        with self._lock:
            held = self._held.pop(key, None)
            if held is None:
                return None
            self._held[key] = held
            self._hits["memory"] += 1
            is_due = now - held.touched > _TOUCH_EVERY_S
            if is_due:
                held.touched = now
        if is_due and self.disk is not None:
            self.disk.touch(key)
        return held.kv

    def _fits(self, kv: ChunkKV) -> bool:
        return kv.num_bytes <= self.memory_bytes

    def _hold(self, key: str, kv: ChunkKV) -> None:
        """Under the lock: takes the chunk into memory, and lets go of others until all fit."""
        if not self._fits(kv):
            return
        replaced = self._held.pop(key, None)
        if replaced is not None:
            self._held_bytes -= replaced.kv.num_bytes
        self._held[key] = _Held(kv, time.monotonic())
        self._held_bytes += kv.num_bytes
        while self._held_bytes > self.memory_bytes:
            oldest = self._held.pop(next(iter(self._held)))
            self._held_bytes -= oldest.kv.num_bytes


def _to_host(chunks: Sequence[ChunkKV]) -> list[ChunkKV]:
    """Copies in host memory; from CUDA they run side by side, and each device is waited for once."""
    import torch

    copies = [replace(kv, tensors=tuple(_copy(tensor) for tensor in kv.tensors)) for kv in chunks]
    for device in {tensor.device for kv in chunks for tensor in kv.tensors if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copies


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    # Only from pinned memory, and into it, does a copy run by itself.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
