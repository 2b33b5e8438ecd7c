"""Runs a bundle on a model: prefill of what is ready, parallel decoding of branches, chunks that generate.

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
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from legraph.attention import (
    Attention,
    attention_mask,
    dense_form,
    for_each_layer_kind,
    many_flex_versions,
    within_window,
)
from legraph.blocks import active_blocks
from legraph.branch import Branch, Output, Piece
from legraph.bundle import Bundle
from legraph.errors import BundleError, InputError, ModelError, Problem
from legraph.flatcache import FlatCache, Segment
from legraph.flexattention import is_compile_error, padded_length
from legraph.graph import Generate
from legraph.layout import start_after
from legraph.mask import Int64Array
from legraph.model import (
    cache_argument,
    check_obeys,
    dense_attention,
    load_model,
    max_positions,
    rotary_border,
    run_errors,
    supported_attention,
    use_attention,
)
from legraph.schema import GenerateSpec
from legraph.tokens import SHIPPED_MODEL, check_tokenizer, fingerprint, load_tokenizer, tokenizer_id

# A pass with more mask entries than this (64 MiB as bool) is split into several.
_MAX_MASK_ENTRIES = 2**26
# On a CPU: seconds that sdpa takes for one (query, key) pair in one layer and one channel, and seconds that
# the first compilation of flex takes. Measured on two cores; they decide `auto`, never a result.
_CPU_SECONDS_PER_PAIR_CHANNEL = 3.2e-11
_CPU_COMPILE_SECONDS = 20.0


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


class Engine:
    """A causal LM and its tokenizer, ready to run bundles.

    Args:
        model: a Hugging Face causal LM. It is put into evaluation mode, and its attention implementation is
            changed as needed.
        tokenizer: the fast tokenizer that bundles for this model are compiled with.
        attn: "flex", "sdpa" or "eager" for prefill; "auto" takes flex on a GPU, and on a CPU what is
            expected to answer soonest. Decoding uses sdpa, or eager where the model's class needs it.

    Raises:
        ModelError: the model cannot honour a graph, or does not offer `attn`.
        TokenizerError: the tokenizer is a slow one.
    """

    def __init__(self, model: Any, tokenizer: Any, attn: str = "auto") -> None:
        self.model = model.eval()
        self.tokenizer = check_tokenizer(tokenizer)
        supported = supported_attention(model)
        if attn != "auto" and attn not in supported:
            raise ModelError(
                f"{type(model).__name__} cannot use {attn!r} attention", f"use one of {', '.join(supported)}"
            )
        self.attn = attn
        check_obeys(model)
        self.end_ids = _end_ids(model, tokenizer)
        self._fingerprint = fingerprint(tokenizer)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        tokenizer: str | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
        attn: str = "auto",
    ) -> Engine:
        """Loads model and tokenizer by path or hub id; without `tokenizer`, the model's own.

        Without a model, `recall` is loaded, the small one that ships with legraph.

        Raises:
            ModelError, TokenizerError: they cannot be loaded or used.
        """
        model = model or SHIPPED_MODEL
        loaded = load_model(model, device, dtype)
        return cls(loaded, load_tokenizer(tokenizer or model), attn)

    def run(self, bundle: Bundle, settings: Generate | None = None) -> RunResult:
        """Runs a bundle to the end.

        Args:
            settings: holds for every leaf without `generate` of its own, and fills the temperature, top_k,
                top_p, seed and stop that a chunk's own settings leave open. Default: greedy, 32 tokens.

        Raises:
            InputError: settings that a graph file could not have.
            BundleError: the bundle was made with another tokenizer.
            ModelError: positions that the model does not know, out of memory.
        """
        for event in self.stream(bundle, settings):
            if isinstance(event, RunResult):
                return event
        raise AssertionError("a run ends with its result")

    def stream(self, bundle: Bundle, settings: Generate | None = None) -> Iterator[Piece | RunResult]:
        """As `run`, piece by piece: yields each token's text as it comes, and the result at the end."""
        settings = settings or Generate()
        _check_settings(settings)
        self.check(bundle)
        return _Run(self, bundle, settings).events()

    def check(self, bundle: Bundle) -> None:
        """Raises what `run` would raise before it computes anything."""
        if bundle.meta.tokenizer_fingerprint != self._fingerprint:
            raise BundleError(
                f"the bundle was compiled with tokenizer {bundle.meta.tokenizer!r}, and this model is run "
                f"with {tokenizer_id(self.tokenizer)!r}: the ids would mean other tokens; "
                "compile the graph again with the model's tokenizer"
            )
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if int(bundle.input_ids.max()) >= vocabulary:
            raise BundleError(
                f"the bundle has token id {int(bundle.input_ids.max())}, and the model knows {vocabulary} ids"
            )
        _check_positions(bundle.position_ids, max_positions(self.model.config))

    def prefill_attention(self, bundle: Bundle) -> Attention:
        """The implementation that the first pass over a bundle uses."""
        if self.attn != "auto":
            return self.attn  # type: ignore[return-value]
        supported = supported_attention(self.model)
        if "flex" not in supported or "sdpa" not in supported:
            return dense_attention(self.model)
        if self.model.device.type == "cuda":
            return "flex"
        if self.model.device.type != "cpu":
            return "sdpa"
        blocks = active_blocks(bundle.mask)
        skipped_pairs = max(0, len(bundle) ** 2 - len(blocks) * blocks.block_size**2)
        config = self.model.config.get_text_config()
        channels = config.num_hidden_layers * config.hidden_size
        saved = skipped_pairs * channels * _CPU_SECONDS_PER_PAIR_CHANNEL
        return "flex" if saved > _CPU_COMPILE_SECONDS else "sdpa"


def _check_settings(settings: Generate) -> None:
    try:
        GenerateSpec.model_validate(asdict(settings))
    except ValidationError as error:
        raise InputError(
            Problem(f"{'.'.join(map(str, details['loc']))} is {details['input']!r}", details["msg"])
            for details in error.errors(include_url=False)
        ) from None


def _check_positions(positions: Int64Array, known: int | None) -> None:
    highest = int(positions.max())
    if known is not None and highest >= known:
        raise ModelError(
            f"the graph uses position {highest}, and the model knows positions up to {known - 1}",
            "shorten the graph, use 'positions: causal' so that parallel chunks share positions, "
            "or take a model with a longer context",
        )


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a generation: the model's and the tokenizer's."""
    found = set[int]()
    for config in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(found)


class _Run:
    """One bundle on its way through the model."""

    def __init__(self, engine: Engine, bundle: Bundle, settings: Generate) -> None:
        self.engine, self.model, self.bundle = engine, engine.model, bundle
        mask = bundle.mask
        self.cache = FlatCache(mask)
        leaves = set(bundle.leaves)
        self.known_positions = max_positions(self.model.config)
        self.branches = {
            i: Branch(
                bundle, i, settings, engine.tokenizer, engine.end_ids, self.known_positions, i not in leaves
            )
            for i, name in enumerate(bundle.span_names)
            if i in leaves or name in bundle.meta.generate
        }
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
        attn = self.engine.prefill_attention(self.bundle) if len(self.cache) == 0 else None
        if attn == "flex":
            try:
                return self._flex_prefill(segments)
            except Exception as error:
                if not is_compile_error(error):
                    raise
                if self.engine.attn == "flex":
                    raise _cannot_compile(error) from None
            # "auto" is free to take another way. What the first layers have cached is dropped.
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
        _check_positions(positions, self.known_positions)
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
