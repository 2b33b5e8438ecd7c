"""Small passes replayed as CUDA graphs: launching a model's kernels one by one takes longer than they run.

Run side: imports torch. A pass is recorded once for each number of tokens (rounded up to a power of two);
after that, ids, positions, slots and, for prefill, rows are copied into place and the recording is played.
What pads a pass to its size writes to slot 0 and sees slot 0, which nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from legraph.logits import Logits, best_and_highest
from legraph.mask import Int64Array
from legraph.passes import Segment, columns, visible_rows, wanted_tokens

if TYPE_CHECKING:
    from legraph.forward import Forward

Kind = Literal["decode", "prefill"]
_MAX_LANES = 256
_PREFILL_SIZES = (16, 32, 64, 128, 256)
MAX_SMALL_PASS = _PREFILL_SIZES[-1]
# A pass that comes once is not worth recording.
_RECORD_AT_USE = 2


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: Any
    inputs: torch.Tensor  # int64 [3, T]: ids, positions, slots
    logits: torch.Tensor  # [T, V]
    best: torch.Tensor  # float64 [2, T]


class CudaSteps:
    """Attributes:
    num_recordings: passes recorded so far.
    refused: why this model cannot be recorded, once that is known; passes then run one kernel at a time.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.num_recordings = 0
        self.refused: str | None = None
        self._recordings: dict[tuple[Kind, int], _Recording] = {}
        self._uses: dict[tuple[Kind, int], int] = {}
        self._lane_rows: torch.Tensor | None = None
        self._prefill_rows: torch.Tensor | None = None
        self._memory = torch.cuda.graph_pool_handle()
        # Page-locked, so that copying from it does not wait. It is free again when a pass's tokens are read.
        self._staging = torch.empty((3, _MAX_LANES), dtype=torch.int64, pin_memory=True)

    def forget(self) -> None:
        """The tensors that recordings refer to are about to be replaced."""
        self._recordings.clear()
        self._prefill_rows = None

    def decode(self, ids: Int64Array, positions: Int64Array, slots: Int64Array) -> Logits | None:
        """See `Forward.decode`; None if the step cannot be replayed."""
        lanes = self.forward.lanes
        size = 1 << max(0, len(ids) - 1).bit_length()
        if size > _MAX_LANES:
            return None
        lanes.fit(size, self.forward.capacity)
        if lanes.rows is not self._lane_rows:
            self._lane_rows = lanes.rows
            self._recordings = {key: value for key, value in self._recordings.items() if key[0] != "decode"}
        recording = self._recording("decode", size, lanes.rows)
        return None if recording is None else self._play(recording, ids, positions, slots)

    def prefill(self, segments: Sequence[Segment]) -> Logits | None:
        """See `Forward.prefill`; None if the pass cannot be replayed."""
        num_tokens = sum(map(len, segments))
        size = next((size for size in _PREFILL_SIZES if size >= num_tokens), None)
        if size is None:
            return None
        capacity = self.forward.capacity
        if self._prefill_rows is None:
            device = self.forward.model.device
            self._prefill_rows = torch.zeros((_PREFILL_SIZES[-1], capacity), dtype=torch.bool, device=device)
        recording = self._recording("prefill", size, self._prefill_rows)
        if recording is None:
            return None
        rows = torch.from_numpy(visible_rows(segments, capacity))
        self._prefill_rows[:num_tokens].copy_(rows)
        self._prefill_rows[num_tokens:size] = False
        logits = self._play(recording, *columns(segments))
        wanted = wanted_tokens(segments).tolist()
        return Logits(
            logits.rows[wanted], [logits.best[i] for i in wanted], [logits.highest[i] for i in wanted]
        )

    def _recording(self, kind: Kind, size: int, rows: torch.Tensor) -> _Recording | None:
        key = kind, size
        if self.refused is not None or key in self._recordings:
            return self._recordings.get(key)
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] < _RECORD_AT_USE:
            return None
        try:
            self._recordings[key] = self._record(size, rows[:size])
        except Exception as error:  # whatever a model does that cannot be recorded: waiting, above all
            torch.cuda.synchronize()
            self.refused = str(error).strip().partition("\n")[0]
            self._recordings.clear()
            return None
        self.num_recordings += 1
        return self._recordings[key]

    def _record(self, size: int, rows: torch.Tensor) -> _Recording:
        inputs = torch.zeros((3, size), dtype=torch.int64, device=rows.device)
        cache = self.forward.cache
        assert cache is not None

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            ids, positions, slots = inputs
            cache.positions.index_copy_(0, slots, positions)
            rows.scatter_(1, slots[:, None], True)
            masks = self.forward.masks(rows, positions)
            logits = self.forward.model_call(ids, positions, slots, masks, "flat", cache.capacity)
            return logits, best_and_highest(logits)

        kept = rows.clone()
        try:
            # A first time apart, for everything that is set up when it is first used.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                logits, best = step()
        finally:
            # The trial step has marked slot 0 in every row, also where the model cannot be recorded.
            rows.copy_(kept)
        return _Recording(graph, inputs, logits, best)

    def _play(
        self, recording: _Recording, ids: Int64Array, positions: Int64Array, slots: Int64Array
    ) -> Logits:
        num_tokens, size = len(ids), recording.inputs.shape[1]
        staging = self._staging[:, :size]
        staging[:, :num_tokens] = torch.from_numpy(np.stack([ids, positions, slots]))
        staging[:, num_tokens:] = 0
        recording.inputs.copy_(staging, non_blocking=True)
        recording.graph.replay()
        return Logits.of(recording.logits[:num_tokens], recording.best[:, :num_tokens])
