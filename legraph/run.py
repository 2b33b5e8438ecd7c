"""One run of a bundle: prefill of what is ready, parallel decoding of branches, chunks that generate.

One mechanism. A pass appends tokens to one flat cache: the text of every chunk whose parents are complete,
and one new token for each branch that still generates. A chunk whose generating parents have finished joins
the next pass. Nothing here knows how a mask reaches a model (`attention`) or how a token is drawn
(`sampling`).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from legraph.attention import (
    Attention,
    attention_mask,
    dense_form,
    for_each_layer_kind,
    many_flex_versions,
    within_window,
)
from legraph.branch import Branch, Output, Piece
from legraph.bundle import Bundle
from legraph.errors import ModelError
from legraph.flatcache import FlatCache, Segment
from legraph.flexattention import is_compile_error, padded_length
from legraph.layout import start_after
from legraph.mask import Int64Array
from legraph.model import (
    cache_argument,
    dense_attention,
    max_positions,
    rotary_border,
    run_errors,
    use_attention,
)

# A pass with more mask entries than this (64 MiB as bool) is split into several.
_MAX_MASK_ENTRIES = 2**26


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        outputs: for each chunk that generated, in token order, what it generated.
        timing: seconds: `prefill_s` (the first pass), `decode_s` (all later passes), `total_s`.
        tokens: counts: `prompt`, `generated`, `passes`.
    """

    outputs: dict[str, Output]
    timing: dict[str, float]
    tokens: dict[str, int]


class Run:
    """One bundle on its way through the model.

    Args:
        branches: the chunks that generate, by index.
        prefill: attention of the first pass; if torch cannot compile it and it `may_fall_back`, the dense
            one is taken instead.
    """

    def __init__(
        self, model: Any, bundle: Bundle, branches: dict[int, Branch], prefill: Attention, may_fall_back: bool
    ) -> None:
        self.model, self.bundle, self.branches = model, bundle, branches
        self.prefill: Attention = prefill
        self.may_fall_back = may_fall_back
        mask = bundle.mask
        self.cache = FlatCache(mask)
        self.known_positions = max_positions(self.model.config)
        self.unfed_ends: list[Branch] = []
        self.num_waiting = np.diff(mask.parent_offsets)
        self.ready = [int(i) for i in np.flatnonzero(self.num_waiting == 0)]
        # Children of chunk i: child_of[child_offsets[i]:child_offsets[i + 1]].
        children = np.repeat(np.arange(mask.num_chunks), np.diff(mask.parent_offsets))
        self.children = children[np.argsort(mask.parent_indices, kind="stable")]
        self.child_offsets = np.searchsorted(np.sort(mask.parent_indices), np.arange(mask.num_chunks + 1))
        # Position just past the last token of each chunk: as compiled, and as really used.
        self.compiled_ends = bundle.position_ids[mask.span_offsets[1:] - 1] + 1
        self.ends = self.compiled_ends.copy()
        self.border = rotary_border(self.model.config)
        self.beyond_border: bool | None = None

    def events(self) -> Iterator[Piece | RunResult]:
        started = time.perf_counter()
        first_pass_s, num_passes = 0.0, 0
        live: list[Branch] = []
        while True:
            segments = [branch.next_segment() for branch in live]
            segments += self._placed()
            if not segments:
                break
            with run_errors("running the graph"):
                logits = self._forward(segments)
            num_passes += 1
            asked = [self.branches[segment.chunk] for segment in segments if segment.wants_logits]
            for branch, logits_V in zip(asked, logits, strict=True):
                piece = branch.accept(logits_V)
                if piece is not None:
                    yield piece
            live = [branch for branch in asked if branch.finish is None]
            for branch in asked:
                if branch.finish is not None:
                    self._finish(branch)
            if num_passes == 1:
                first_pass_s = time.perf_counter() - started
        total_s = time.perf_counter() - started
        outputs = {branch.name: branch.output() for branch in self.branches.values()}
        generated = sum(len(output.token_ids) for output in outputs.values())
        yield RunResult(
            outputs,
            {"prefill_s": first_pass_s, "decode_s": total_s - first_pass_s, "total_s": total_s},
            {"prompt": len(self.bundle), "generated": generated, "passes": num_passes},
        )

    def _placed(self) -> list[Segment]:
        """What becomes part of the cache in this pass besides living branches: unfed ends, ready chunks."""
        unfed = [branch.next_segment() for branch in self.unfed_ends]
        self.unfed_ends = []
        placed = list[Segment]()
        while self.ready:
            chunk = heapq.heappop(self.ready)
            placed.append(self._text_segment(chunk))
            if chunk not in self.branches:
                self._release_children(chunk)
        return unfed + placed

    def _text_segment(self, chunk: int) -> Segment:
        span = self.bundle.span(chunk)
        positions = self.bundle.position_ids[span] + self._shift(chunk)
        self.ends[chunk] = positions[-1] + 1
        branch = self.branches.get(chunk)
        if branch is not None:
            branch.next_position = int(self.ends[chunk])
        return Segment(chunk, self.bundle.input_ids[span], positions, wants_logits=branch is not None)

    def _shift(self, chunk: int) -> int:
        """How far a chunk's positions move because its ancestors generated something before it."""
        meta = self.bundle.meta
        parents = self.bundle.parents(chunk)
        if meta.positions != "causal" or self.bundle.span_names[chunk] in meta.pinned or not len(parents):
            return 0
        compiled = start_after([int(end) for end in self.compiled_ends[parents]], "causal", 0)
        return start_after([int(end) for end in self.ends[parents]], "causal", 0) - compiled

    def _finish(self, branch: Branch) -> None:
        self.cache.close(branch.chunk)
        self.ends[branch.chunk] = branch.end_position()
        if branch.has_unfed_end():
            self.unfed_ends.append(branch)
        self._release_children(branch.chunk)

    def _release_children(self, chunk: int) -> None:
        for child in self.children[self.child_offsets[chunk] : self.child_offsets[chunk + 1]]:
            self.num_waiting[child] -= 1
            if self.num_waiting[child] == 0:
                heapq.heappush(self.ready, int(child))

    def _forward(self, segments: list[Segment]) -> list[torch.Tensor]:
        """One pass. Returns logits [V] for each segment that wants them, in their order."""
        num_new = sum(len(segment) for segment in segments)
        attn: Attention | None = self.prefill if len(self.cache) == 0 else None
        if attn == "flex":
            try:
                return self._flex_prefill(segments)
            except Exception as error:
                if not is_compile_error(error):
                    raise
                if not self.may_fall_back:
                    raise _cannot_compile(error) from None
            # What the first layers have cached is dropped.
            self.cache, attn = FlatCache(self.bundle.mask), None
        attn = attn or dense_attention(self.model)
        logits = list[torch.Tensor]()
        max_tokens = max(1, _MAX_MASK_ENTRIES // (len(self.cache) + num_new))
        for part in _split(segments, max_tokens):
            logits += self._call(part, self._rows(part, attn), attn)
        return logits

    def _flex_prefill(self, segments: list[Segment]) -> list[torch.Tensor]:
        mask = self.bundle.select([segment.chunk for segment in segments]).mask
        self.cache.append(segments)
        masks = attention_mask(
            mask,
            self.cache.positions,
            self.model.device,
            "flex",
            self.model.config,
            padded_length=padded_length(mask.num_tokens),
        )
        return self._call(segments, masks, "flex")

    def _rows(self, segments: list[Segment], attn: Attention) -> Any:
        """The mask of a pass: its tokens' rows over all slots so far."""
        device = self.model.device
        visible = torch.from_numpy(self.cache.append_with_rows(segments)).to(device)
        k_positions = torch.from_numpy(self.cache.positions).to(device)
        q_positions = k_positions[-len(visible) :]
        return for_each_layer_kind(
            self.model.config,
            lambda window: dense_form(
                visible & within_window(q_positions, k_positions, window), attn, self.model.dtype
            ),
        )

    def _call(self, segments: Sequence[Segment], masks: Any, attn: Attention) -> list[torch.Tensor]:
        ids = np.concatenate([segment.ids for segment in segments])
        positions = np.concatenate([segment.positions for segment in segments])
        check_positions(positions, self.known_positions)
        self._check_border(positions)
        lasts = np.cumsum([len(segment) for segment in segments]) - 1
        wanted = lasts[[segment.wants_logits for segment in segments]]
        device = self.model.device
        use_attention(self.model, attn)
        versions = many_flex_versions() if attn == "flex" else nullcontext()
        with torch.inference_mode(), versions:
            output = self.model(
                input_ids=torch.from_numpy(ids)[None].to(device),
                position_ids=torch.from_numpy(positions)[None].to(device),
                attention_mask=masks,
                use_cache=True,
                # The vocabulary's projection, the largest product of a pass, for the tokens that need it.
                logits_to_keep=torch.from_numpy(wanted if len(wanted) else lasts[-1:]).to(device),
                **{cache_argument(self.model): self.cache.kv},
            )
        return list(output.logits[0]) if len(wanted) else []

    def _check_border(self, positions: Int64Array) -> None:
        if self.border is None:
            return
        beyond = int(positions.max()) >= self.border
        if self.beyond_border is None:
            self.beyond_border = beyond
        if beyond != self.beyond_border:
            raise ModelError(
                f"the model's rotary embedding changes at position {self.border}, and the run would cross it",
                "keep the whole run on one side (fewer tokens, or other 'start' positions), or use a model "
                "without dynamic or LongRoPE scaling",
            )


def _cannot_compile(error: Exception) -> ModelError:
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ModelError(
        f"flex attention cannot be compiled here: {first_line}",
        "install a C++ compiler, such as g++ (torch's compiler needs one), or use --attn sdpa",
    )


def _split(segments: Sequence[Segment], max_tokens: int) -> Iterator[list[Segment]]:
    """The same tokens in parts of at most `max_tokens`; long segments are cut."""
    part, room = list[Segment](), max_tokens
    for segment in segments:
        at = 0
        while at < len(segment):
            end = min(len(segment), at + room)
            is_last = end == len(segment)
            ids, positions = segment.ids[at:end], segment.positions[at:end]
            part.append(Segment(segment.chunk, ids, positions, segment.wants_logits and is_last))
            room -= end - at
            at = end
            if room == 0:
                yield part
                part, room = [], max_tokens
    if part:
        yield part


def check_positions(positions: Int64Array, known: int | None) -> None:
    highest = int(positions.max())
    if known is not None and highest >= known:
        raise ModelError(
            f"the graph uses position {highest}, and the model knows positions up to {known - 1}",
            "shorten the graph, use 'positions: causal' so that parallel chunks share positions, "
            "or take a model with a longer context",
        )
