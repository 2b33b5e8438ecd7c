"""Forward passes of one model over one flat cache: prefill of segments, decode steps of lanes.

Run side: imports torch. Takes slots as they are given; which chunk a token belongs to, and what comes next,
is decided elsewhere (`job`, `scheduler`). There are three ways through a pass, exact all of them:

- `flex`: FlexAttention over the new keys and values, where the tokens of the pass see nothing but each other
  and the user wants it, or where layers have windows and there are many tokens,
- `flat`: our own attention over the slots (`flatattention`); on a GPU small passes are replayed as CUDA
  graphs (`cudasteps`),
- `sdpa`, `eager`: transformers' own attention with the rows of the mask spelled out. The slow and readable
  reference, and the only way for models whose classes take no attention function from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch

from legraph.attention import (
    Attention,
    attention_mask,
    dense_form,
    for_each_layer_kind,
    layer_windows,
    within_window,
)
from legraph.blocks import active_blocks
from legraph.cost import chunks_ms, dense_ms
from legraph.cudasteps import MAX_SMALL_PASS, CudaSteps
from legraph.errors import ModelError
from legraph.flatattention import RowMask
from legraph.flatcache import FlatCache, Writing, kv_shape, rounded_capacity
from legraph.flexattention import is_compile_error, many_flex_versions, padded_length
from legraph.lanes import Lanes
from legraph.logits import Logits
from legraph.mask import ChunkMask, Int64Array
from legraph.model import (
    cache_argument,
    dense_attention,
    is_offloaded,
    is_out_of_memory,
    rotary_border,
    run_errors,
    supported_attention,
    use_attention,
)
from legraph.parallel import is_lost, team_of
from legraph.passes import (
    Segment,
    columns,
    own_mask,
    seen_intervals,
    split,
    visible_rows,
    wanted_tokens,
)
from legraph.seen import SeenIntervals
from legraph.slots import Extent

Choice = Literal["auto", "flex", "sdpa", "eager"]

# A pass with more mask entries than this (64 MiB as bool) is split into several.
_MAX_MASK_ENTRIES = 2**26
# On a GPU, fewer tokens than this are not worth the compilation of flex.
_MIN_FLEX_TOKENS = 2048
# On a GPU, unless told otherwise: enough to keep it busy; more only takes more memory.
_GPU_PREFILL_TOKENS = 8192
# After running out of memory a pass is halved, down to this many tokens.
_MIN_RETRY_TOKENS = 64
# On a CPU: seconds that dense attention takes for one (query, key) pair in one layer and one channel, and
# seconds that the first compilation of flex takes. Measured on two cores; they decide `auto`, never a result.
_CPU_SECONDS_PER_PAIR_CHANNEL = 3.2e-11
_CPU_COMPILE_SECONDS = 20.0
# Slots that the kernel's blocks divide.
_SLOT_STEP = 64


class Forward:
    """A model with its flat cache.

    Attributes:
        cache: None until `fit` has been called.
        lanes: rows of the chunks that are being continued.
        dense: transformers' own attention that takes any mask.
        team: the processes that share the model, or None.
        uses_flat: whether our own attention runs this model; else transformers' own does.
        prefill_tokens: most tokens of one prefill pass; halved when memory runs out.
    """

    def __init__(self, model: Any, attn: Choice, prefill_tokens: int | None = None) -> None:
        self.model, self.attn, self.team = model, attn, team_of(model)
        is_gpu = model.device.type == "cuda"
        self.prefill_tokens = prefill_tokens or (_GPU_PREFILL_TOKENS if is_gpu else None)
        self.border = rotary_border(model.config)
        self.cache_argument = cache_argument(model)
        self.dense: Attention = attn if attn in ("sdpa", "eager") else dense_attention(model)  # type: ignore[assignment]
        use_attention(model, self.dense)
        self.shape = kv_shape(model, self.cache_argument)
        self.cache: FlatCache | None = None
        self.lanes = Lanes(model.device)
        self._group_size = _group_size(model, next(layer for layer in self.shape.layers if layer)[0])
        self.steps: CudaSteps | None = None
        self._has_windows = any(layer_windows(model.config).values())
        self.uses_flat = self._choose_attention()
        is_graphable = self.uses_flat and model.device.type == "cuda" and self.border is None
        # Sums over several devices have not been tried in a recording; weights that come and go cannot be
        # in one.
        if is_graphable and self.team is None and not is_offloaded(model):
            self.steps = CudaSteps(self)
        self.flex_lengths = set[int]()

    # Memory

    @property
    def capacity(self) -> int:
        return 0 if self.cache is None else self.cache.capacity

    def fit(self, num_slots: int, keep: bool = True) -> None:
        """Makes the cache at least so large. Unless `keep`, what is in it is lost, and less memory needed.

        Raises:
            ModelError: there is not enough memory, with the numbers.
        """
        if num_slots <= self.capacity:
            return
        capacity = rounded_capacity(num_slots)
        previous = self.capacity
        if not keep:
            self._replace_cache(None)
        grown = self._new_cache(capacity)
        if grown is None:
            need = capacity * self.shape.bytes_per_token()
            if previous and self.cache is None:
                # There was memory for this one.
                self._replace_cache(FlatCache(self.shape, self.model.device, previous))
            raise ModelError(
                f"out of memory: {num_slots:,} tokens need {need / 2**30:.1f} GiB of keys and values"
                + self._free_memory(),
                "use fewer or shorter chunks, fewer --max-new-tokens, a smaller --dtype or a larger device",
            )
        if self.cache is not None:
            grown.copy_from(self.cache)
        self._replace_cache(grown)
        self.lanes.fit(0, capacity)

    def _new_cache(self, capacity: int) -> FlatCache | None:
        """None if there is not enough memory, here or where the other heads are."""
        try:
            made = FlatCache(self.shape, self.model.device, capacity)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            made = None
        return made if self.team is None or self.team.all(made is not None) else None

    def _replace_cache(self, cache: FlatCache | None) -> None:
        """Recordings refer to the tensors of the one before."""
        if self.steps is not None:
            self.steps.forget()
        self.cache = cache

    def _free_memory(self) -> str:
        if self.model.device.type != "cuda":
            return ""
        free, total = torch.cuda.mem_get_info(self.model.device)
        return f", and {free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"

    # Passes

    @torch.inference_mode()
    def prefill(self, segments: Sequence[Segment], num_used: int) -> Logits:
        """Runs the segments; logits for those that want them, in their order.

        Args:
            num_used: all slots that are in use lie before this one.

        Raises:
            ModelError: out of memory even with few tokens at a time.
        """
        num_tokens = sum(map(len, segments))
        while True:
            limit = min(num_tokens, self.prefill_tokens or num_tokens)
            try:
                return Logits.joined([self._prefill(part, num_used) for part in split(segments, limit)])
            except (RuntimeError, MemoryError) as error:
                # The others are in the middle of the pass.
                if not is_out_of_memory(error) or self.team is not None:
                    raise
            # Outside the handler: it holds on to the tensors of the pass that failed.
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()
            if limit <= _MIN_RETRY_TOKENS:
                raise ModelError(
                    f"out of memory in a pass of {limit} tokens over {num_used:,}" + self._free_memory(),
                    "use a smaller --dtype (bfloat16), a shorter graph or a larger device",
                )
            self.prefill_tokens = max(_MIN_RETRY_TOKENS, limit // 2)

    def _prefill(self, segments: list[Segment], num_used: int) -> Logits:
        logits = self._as_whole(segments)
        if logits is not None:
            return logits
        max_tokens = max(1, _MAX_MASK_ENTRIES // num_used)
        parts = [self._with_rows(part, num_used) for part in split(segments, max_tokens)]
        return Logits.joined(parts)

    def _as_whole(self, segments: list[Segment]) -> Logits | None:
        """A pass whose mask is not spelled out; None if it must be, or if that is as cheap."""
        if self.attn == "auto" and self.steps is not None:
            logits = self.steps.prefill(segments)
            if logits is not None:
                return logits
        mask = own_mask(segments) if self._may_use_flex() else None
        if mask is not None and self._wants_flex(mask):
            try:
                return self._flex(segments, mask)
            except Exception as error:
                # FlexAttention lacks something here: a compiler, or, on a CPU, attention sinks.
                if not (is_compile_error(error) or isinstance(error, ModelError)):
                    raise
                if self.attn == "flex":
                    raise _cannot_compile(error) if is_compile_error(error) else error from None
        if self.uses_flat and not self._has_windows:
            seen = seen_intervals(segments)
            if self._intervals_pay(seen):
                return self._with_intervals(segments, seen)
        return None

    def _may_use_flex(self) -> bool:
        # Without windows, our own attention does better and compiles less.
        if self.attn == "auto" and (not self._has_windows or not self.uses_flat):
            return False
        return self.attn in ("auto", "flex") and "flex" in supported_attention(self.model)

    def _wants_flex(self, mask: ChunkMask) -> bool:
        if self.attn == "flex":
            return True
        if self.model.device.type == "cuda":
            return mask.num_tokens >= _MIN_FLEX_TOKENS
        return self.model.device.type == "cpu" and flex_pays_on_cpu(mask, self.model.config)

    def _intervals_pay(self, seen: SeenIntervals) -> bool:
        """On a GPU the kernel for rows is made for few tokens; elsewhere each chunk is a call of its own."""
        num_tokens = int(seen.counts.sum())
        if self.model.device.type == "cuda":
            return num_tokens > MAX_SMALL_PASS
        num_groups, channels, _ = next(layer for layer in self.shape.layers if layer)
        by_chunks, spelled_out = (
            time(seen, num_groups * self._group_size, channels) for time in (chunks_ms, dense_ms)
        )
        return by_chunks < spelled_out

    def _with_intervals(self, segments: list[Segment], seen: SeenIntervals) -> Logits:
        num_groups = next(layer for layer in self.shape.layers if layer)[0]
        channels = max(channels for layer in self.shape.layers if layer for channels in layer[1:])
        mask = RowMask.of_intervals(
            seen, self._group_size, num_groups, self.model.device, self.shape.dtype, channels
        )
        masks = for_each_layer_kind(self.model.config, lambda window: mask)
        self._set_positions(segments)
        return self._call(segments, masks, "flat", self.capacity)

    def _set_positions(self, segments: Sequence[Segment]) -> None:
        assert self.cache is not None
        _, positions, slots = map(self._on_device, columns(segments))
        self.cache.positions[slots] = positions

    def _flex(self, segments: list[Segment], mask: ChunkMask) -> Logits:
        positions = np.concatenate([segment.positions for segment in segments])
        self._set_positions(segments)
        length = padded_length(mask.num_tokens)
        self.flex_lengths.add(length)
        masks = attention_mask(
            mask, positions, self.model.device, "flex", self.model.config, padded_length=length
        )
        return self._call(segments, masks, "flex", None)

    def _with_rows(self, segments: list[Segment], num_used: int) -> Logits:
        """A pass whose mask is spelled out over the slots."""
        num_shown = min(self.capacity, -(-num_used // _SLOT_STEP) * _SLOT_STEP)
        rows = torch.from_numpy(visible_rows(segments, num_shown)).to(self.model.device)
        positions = self._on_device(np.concatenate([segment.positions for segment in segments]))
        self._set_positions(segments)
        masks = self.masks(rows, positions)
        return self._call(segments, masks, self._kind(), num_shown)

    def _call(
        self, segments: Sequence[Segment], masks: Any, attn: Attention, num_shown: int | None
    ) -> Logits:
        wanted = wanted_tokens(segments)
        ids, positions, slots = map(self._on_device, columns(segments))
        # The vocabulary's projection, the largest product of a pass, for the tokens that need it.
        keep = self._on_device(wanted) if len(wanted) else torch.tensor([len(ids) - 1], device=ids.device)
        rows = self.model_call(ids, positions, slots, masks, attn, num_shown, keep)
        return Logits.of(rows) if len(wanted) else Logits(rows, [], [])

    @torch.inference_mode()
    def decode(self, ids: Int64Array, positions: Int64Array, slots: Int64Array, num_used: int) -> Logits:
        """One step: the newest token of each lane, at its slot. Logits for every lane, in their order."""
        with run_errors(f"decoding {len(ids)} branches over {num_used:,} tokens"):
            if self.steps is not None:
                logits = self.steps.decode(ids, positions, slots)
                if logits is not None:
                    return logits
            assert self.cache is not None
            ids_T, positions_T, slots_T = map(self._on_device, (ids, positions, slots))
            self.cache.positions[slots_T] = positions_T
            num_shown = min(self.capacity, -(-num_used // _SLOT_STEP) * _SLOT_STEP)
            rows = self.lanes.rows[: len(ids)]
            rows.scatter_(1, slots_T[:, None], True)
            masks = self.masks(rows[:, :num_shown], positions_T)
            return Logits.of(self.model_call(ids_T, positions_T, slots_T, masks, self._kind(), num_shown))

    def masks(self, rows_TS: torch.Tensor, positions_T: torch.Tensor) -> Any:
        """The model's `attention_mask` argument, from what the queries see by the graph alone."""
        assert self.cache is not None
        k_positions = self.cache.positions[: rows_TS.shape[1]]

        def of_window(window: int | None) -> Any:
            rows = rows_TS if window is None else rows_TS & within_window(positions_T, k_positions, window)
            if self.uses_flat:
                return RowMask.make(rows, self._group_size)
            return dense_form(rows, self.dense, self.model.dtype)

        return for_each_layer_kind(self.model.config, of_window)

    def model_call(
        self,
        ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        slots_T: torch.Tensor,
        masks: Any,
        attn: Attention,
        num_shown: int | None,
        keep: torch.Tensor | int = 0,
    ) -> torch.Tensor:
        """Runs the model once. Returns logits [W, V] of the tokens in `keep`; 0 keeps all."""
        assert self.cache is not None
        use_attention(self.model, attn)
        self.cache.writing = Writing(slots_T, num_shown)
        versions = many_flex_versions() if attn == "flex" else nullcontext()
        with versions:
            output = self.model(
                input_ids=ids_T[None],
                position_ids=positions_T[None],
                attention_mask=masks,
                use_cache=True,
                logits_to_keep=keep,
                **{self.cache_argument: self.cache},
            )
        return output.logits[0]

    def _kind(self) -> Attention:
        return "flat" if self.uses_flat else self.dense

    def _on_device(self, array: Int64Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self.model.device)

    @torch.inference_mode()
    def _choose_attention(self) -> bool:
        """Whether the model's class hands our attention function what it needs: tries a few tokens.

        The same small graph is run without a cache, and with the flat one; both must agree, whichever
        attention is used over it.

        Raises:
            ModelError: transformers' own attention computes something else with a cache.
        """
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = np.arange(3, 9, dtype=np.int64) % vocabulary
        document = Segment(ids[:3], np.arange(3), 1, 1)
        question = Segment(ids[3:], np.arange(3, 6), 4, 4, (Extent(1, 4),), wants_logits=True)
        expected = self._without_cache(ids)

        def agrees(is_flat: bool) -> bool:
            self.uses_flat = is_flat
            self.cache = FlatCache(self.shape, self.model.device, _SLOT_STEP)
            try:
                self._with_rows([document], 4)
                found = self._with_rows([question], 7).rows[0].float()
            # Whatever a class raises that cannot take it.
            except Exception as error:
                if is_out_of_memory(error) or is_lost(error):
                    raise
                return False
            finally:
                self.cache = None
            is_close = bool((found - expected).abs().max() <= 0.05 * expected.abs().max().clamp_min(1e-3))
            return is_close if self.team is None else self.team.all(is_close)

        takes_functions = bool({"flex", "sdpa"} & set(supported_attention(self.model)))
        if self.attn in ("auto", "flex") and takes_functions and agrees(is_flat=True):
            return True
        if agrees(is_flat=False):
            return False
        raise ModelError(
            f"{type(self.model).__name__} computes something else with a cache than without",
            "use a decoder-only attention model",
        )

    @torch.inference_mode()
    def _without_cache(self, ids: Int64Array) -> torch.Tensor:
        """Logits [V] of the last token of one causal sequence."""
        use_attention(self.model, self.dense)
        positions = torch.arange(len(ids), device=self.model.device)
        causal = positions[:, None] >= positions[None]
        masks = for_each_layer_kind(
            self.model.config,
            lambda window: dense_form(
                causal & within_window(positions, positions, window), self.dense, self.model.dtype
            ),
        )
        output = self.model(
            input_ids=self._on_device(ids)[None],
            position_ids=positions[None],
            attention_mask=masks,
            use_cache=False,
        )
        return output.logits[0, -1].float()


def _group_size(model: Any, num_groups: int) -> int:
    """Query heads for each key head. Only how the work is cut depends on it.

    Args:
        num_groups: key heads that are here; where several processes share a model, a part of them may be.
    """
    text, team = model.config.get_text_config(), team_of(model)
    try:
        num_heads = text.num_attention_heads
        all_groups = getattr(text, "num_key_value_heads", None) or num_heads
        if team is not None and num_groups * team.size == all_groups:
            num_heads //= team.size
        return max(1, num_heads // num_groups)
    except (AttributeError, TypeError, RuntimeError):  # transformers refuses what differs between layers
        return 1


def flex_pays_on_cpu(mask: ChunkMask, config: Any) -> bool:
    """Whether the pairs that flex skips take longer to compute than flex takes to compile."""
    blocks = active_blocks(mask)
    skipped_pairs = max(0, mask.num_tokens**2 - len(blocks) * blocks.block_size**2)
    text = config.get_text_config()
    saved = skipped_pairs * text.num_hidden_layers * text.hidden_size * _CPU_SECONDS_PER_PAIR_CHANNEL
    return saved > _CPU_COMPILE_SECONDS


def _cannot_compile(error: Exception) -> ModelError:
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ModelError(
        f"flex attention cannot be compiled here: {first_line}",
        "install a C++ compiler, such as g++ (torch's compiler needs one), or use --attn sdpa",
    )
