"""One flat KV cache for a whole graph, and the rows of the mask for the tokens that are appended to it.

The keys and values of all chunks share one sequence of slots, in the order in which they were computed:
no batch padding, no copy for each branch. Which slots a token may see follows from its chunk and the
chunk's direct parents alone; a chunk's slots need not be neighbours, because branches grow side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from legraph.mask import BoolArray, ChunkMask, Int64Array


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of one chunk: ids and positions, int64 [T]. `wants_logits`: the last one's are needed."""

    chunk: int
    ids: Int64Array
    positions: Int64Array
    wants_logits: bool = False

    def __len__(self) -> int:
        return len(self.ids)


class FlatCache:
    """Slots of the tokens computed so far.

    Attributes:
        kv: the transformers cache that holds keys and values; slot i is its i-th token in every layer.
        positions: int64 [S], position id of each slot.
    """

    def __init__(self, mask: ChunkMask) -> None:
        from transformers import DynamicCache

        # Without a config every layer keeps all its tokens. With one, the layers of a sliding-window model
        # would drop the oldest slots, which in a graph are not the farthest ones.
        self.kv: Any = DynamicCache()
        self.positions: Int64Array = np.empty(0, dtype=np.int64)
        self._mask = mask
        # For each chunk its slots, as [start, end) pairs in ascending order.
        self._runs: list[list[tuple[int, int]]] = [[] for _ in range(mask.num_chunks)]
        # What a growing chunk saw when it began to grow: from then on only its own slots are added.
        self._seen_before: dict[int, BoolArray] = {}

    def __len__(self) -> int:
        return len(self.positions)

    def append(self, segments: Sequence[Segment]) -> None:
        """Gives the tokens of `segments` the next slots. Their keys and values must follow in `kv`."""
        at = len(self)
        for segment in segments:
            self._extend(segment.chunk, at, len(segment))
            at += len(segment)
        self.positions = np.concatenate([self.positions, *(segment.positions for segment in segments)])

    def append_with_rows(self, segments: Sequence[Segment]) -> BoolArray:
        """As `append`, and returns what the new tokens may see: bool [T, S], S counting the new ones."""
        num_new = sum(len(segment) for segment in segments)
        num_slots = len(self) + num_new
        rows = np.zeros((num_new, num_slots), dtype=np.bool_)
        at = 0
        for segment in segments:
            length, start = len(segment), num_slots - num_new + at
            block = rows[at : at + length]
            self._show_past(block, segment.chunk)
            block[:, start : start + length] = np.tri(length, dtype=np.bool_)
            # Registered one by one: a segment may be the parent of a later one.
            self._extend(segment.chunk, start, length)
            at += length
        self.positions = np.concatenate([self.positions, *(segment.positions for segment in segments)])
        return rows

    def close(self, chunk: int) -> None:
        """The chunk is complete: forget what only its growing needs."""
        self._seen_before.pop(chunk, None)

    def _show_past(self, block: BoolArray, chunk: int) -> None:
        """Marks, in all rows of a chunk's block, the slots of its parents and its own earlier ones."""
        if not self._runs[chunk]:
            for parent in self._mask.parents(chunk):
                for start, end in self._runs[parent]:
                    block[:, start:end] = True
            return
        if chunk not in self._seen_before:
            seen = np.zeros(len(self.positions), dtype=np.bool_)
            for parent in self._mask.parents(chunk):
                for start, end in self._runs[parent]:
                    seen[start:end] = True
            self._seen_before[chunk] = seen
        seen = self._seen_before[chunk]
        block[:, : len(seen)] = seen
        for start, end in self._runs[chunk]:
            block[:, start:end] = True

    def _extend(self, chunk: int, start: int, length: int) -> None:
        runs = self._runs[chunk]
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + length)
        else:
            runs.append((start, start + length))
