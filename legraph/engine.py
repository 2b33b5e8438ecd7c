"""`Engine`: a causal LM and its tokenizer, ready to run bundles; several at once, from several threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from pydantic import ValidationError

from legraph.branch import Branch, Piece
from legraph.bundle import Bundle
from legraph.errors import BundleError, InputError, LegraphError, ModelError, Problem
from legraph.forward import Choice, Forward
from legraph.graph import Generate
from legraph.job import Job, check_positions
from legraph.kvstore import KVStore
from legraph.model import (
    check_obeys,
    check_place,
    is_offloaded,
    load_model,
    max_positions,
    supported_attention,
)
from legraph.parallel import check_choice, no_kv
from legraph.result import RunResult
from legraph.reuse import Reuse, usable
from legraph.scheduler import Scheduler
from legraph.schema import GenerateSpec
from legraph.slots import Residents, SlotPool
from legraph.tokens import SHIPPED_MODEL, check_tokenizer, fingerprint, load_tokenizer, tokenizer_id

# Runs that wait for slots while others are under way: enough that slots that become free are taken at once.
RUNS_AHEAD = 16
# Of a batch. On a CPU, more only takes more memory.
_CPU_CACHE_TOKENS = 16_384
_CPU_PREFILL_TOKENS = 1024
# Of the memory that is free once the model is there; the rest is for prefill passes and the mask. And what
# keeps a GPU busy: with more, a step looks at more slots than it gains branches.
_GPU_CACHE_SHARE, _GPU_CACHE_TOKENS = 0.6, 131_072


class Submission:
    """A run that was handed to an engine. It advances while somebody waits for it, or for another one.

    All methods may be called from any thread; events go to one reader.
    """

    def __init__(self, scheduler: Scheduler, job: Job) -> None:
        self._scheduler, self.job = scheduler, job

    def events(self) -> Iterator[Piece | RunResult]:
        """Each token's text as it comes, and the result at the end; that of a cancelled run says so.

        Raises:
            ModelError: the run failed.
        """
        while True:
            self._scheduler.wait(self.job)
            if self.job.events:
                event = self.job.events.popleft()
                yield event
                if isinstance(event, RunResult):
                    return
            elif self.job.error is not None:
                raise self.job.error
            else:
                yield self.job.result()
                return

    def result(self) -> RunResult:
        """Waits for the end. A run that was cancelled gives what it had, with `finish` "cancelled".

        Raises:
            ModelError: the run failed.
        """
        return next(event for event in self.events() if isinstance(event, RunResult))

    def partial(self) -> RunResult:
        """What there is so far, without waiting."""
        return self.job.result()

    def cancel(self) -> None:
        """Ends the run after the pass that is under way, and frees its slots."""
        self._scheduler.cancel(self.job)

    @property
    def is_done(self) -> bool:
        return self.job.is_done

    @property
    def num_branches(self) -> int:
        """How many chunks generate."""
        return len(self.job.branches)


class Engine:
    """A causal LM and its tokenizer, ready to run bundles.

    All runs share one KV cache, whose slots are taken when a run starts and given back when it ends. It is
    safe to call from several threads.

    Args:
        model: a Hugging Face causal LM. It is put into evaluation mode, and its attention implementation is
            changed as needed.
        tokenizer: the fast tokenizer that bundles for this model are compiled with.
        attn: "sdpa" and "eager" use transformers' own attention with the mask spelled out, everywhere: slow,
            and right for every model. "flex" prefills with FlexAttention and decodes with legraph's own
            attention; "auto" does so where flex pays.
        kv: where keys and values of chunks are kept for other runs: a `KVStore`, or a folder. Chunks then
            also stay in the cache itself, as long as nobody else needs their slots. None keeps nothing.
        prefill_tokens: most tokens of one prefill pass. Default: 8,192 on a GPU, elsewhere all; either is
            halved when memory runs out.
        cache_tokens: tokens that the cache has room for from the start; it grows when a graph needs more.

    Raises:
        ModelError: the model cannot honour a graph, or does not offer `attn`.
        TokenizerError: the tokenizer is a slow one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        attn: Choice = "auto",
        *,
        kv: KVStore | str | Path | None = None,
        prefill_tokens: int | None = None,
        cache_tokens: int = 0,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = check_tokenizer(tokenizer)
        supported = supported_attention(model)
        if attn != "auto" and attn not in supported:
            raise ModelError(
                f"{type(model).__name__} cannot use {attn!r} attention", f"use one of {', '.join(supported)}"
            )
        self.attn = attn
        check_place(model)
        check_obeys(model)
        self.end_ids = _end_ids(model, tokenizer)
        self._fingerprint = fingerprint(tokenizer)
        self.kv = KVStore(disk=kv) if isinstance(kv, str | Path) else kv
        if not isinstance(self.kv, KVStore | None):
            raise TypeError(f"kv is a {type(kv).__name__}; expected a KVStore or a folder")
        self._forward = Forward(model, attn, prefill_tokens)
        if self._forward.team is not None and self.kv is not None:
            raise InputError(no_kv())
        if self.kv is not None and is_offloaded(model):
            raise ModelError(
                "the weights of this model are not all in memory, so keys and values cannot be named by them",
                "run it without a KV store; a batch: with --no-reuse",
            )
        self._fitting_tokens: int | None = None
        pool = SlotPool()
        reuse = None if self.kv is None else Reuse(self._forward, self.kv, Residents(pool))
        self._scheduler = Scheduler(self._forward, pool, reuse, cache_tokens)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        tokenizer: str | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
        tp: str | None = None,
        attn: Choice = "auto",
        kv: KVStore | str | Path | None = None,
        prefill_tokens: int | None = None,
        cache_tokens: int = 0,
    ) -> Engine:
        """Loads model and tokenizer by path or hub id; without `tokenizer`, the model's own.

        Without a model, `recall` is loaded, the small one that ships with legraph.

        Args:
            tp: "auto" shares the model out to the processes that `torchrun` has started (see `parallel`).
                Each of them must then make the same calls in the same order, from one thread.

        Raises:
            InputError: `tp` together with `device` or `kv`.
            ModelError, TokenizerError: they cannot be loaded or used.
        """
        model = model or SHIPPED_MODEL
        check_choice(tp, device, has_kv=kv is not None)
        loaded = load_model(model, device, dtype, tp)
        return cls(
            loaded,
            load_tokenizer(tokenizer or model),
            attn,
            kv=kv,
            prefill_tokens=prefill_tokens,
            cache_tokens=cache_tokens,
        )

    @overload
    def run(self, bundle: Bundle, settings: Generate | None = None) -> RunResult: ...

    @overload
    def run(self, bundle: Sequence[Bundle], settings: Generate | None = None) -> list[RunResult]: ...

    def run(
        self, bundle: Bundle | Sequence[Bundle], settings: Generate | None = None
    ) -> RunResult | list[RunResult]:
        """Runs one bundle, or several side by side, to the end.

        Args:
            settings: holds for every leaf without `generate` of its own, and fills the temperature, top_k,
                top_p, seed and stop that a chunk's own settings leave open. Default: greedy, 32 tokens.

        Raises:
            InputError: settings that a graph file could not have.
            BundleError: the bundle was made with another tokenizer.
            ModelError: positions that the model does not know, out of memory.
        """
        if isinstance(bundle, Bundle):
            return self.submit(bundle, settings).result()
        for one in bundle:
            self.check(one)
        submissions = [self.submit(one, settings) for one in bundle]
        try:
            return [submission.result() for submission in submissions]
        finally:
            for submission in submissions:
                submission.cancel()

    def stream(self, bundle: Bundle, settings: Generate | None = None) -> Iterator[Piece | RunResult]:
        """As `run`, piece by piece: yields each token's text as it comes, and the result at the end.

        Whoever stops reading ends the run.
        """
        submission = self.submit(bundle, settings)
        try:
            yield from submission.events()
        finally:
            submission.cancel()

    def follow(
        self, submissions: Iterable[Submission | LegraphError | None]
    ) -> Iterator[tuple[int, Piece | RunResult | LegraphError]]:
        """The events of several runs as they come, each with the number of its run.

        A run that fails gives its error as its last event, and the others go on.

        Args:
            submissions: may be made on the way, for any number of runs: it is asked for another one when
                fewer than `RUNS_AHEAD` of those before wait for slots. An error stands for a run that could
                not be submitted, and is its only event. None says that there is none yet: it is asked again
                after a pass; where nothing is under way it should wait instead.
        """
        unfinished, coming, is_over = dict[int, Submission](), _Counted(submissions), False
        while unfinished or not is_over:
            while not is_over and sum(not one.job.is_settled for one in unfinished.values()) < RUNS_AHEAD:
                new = next(coming, _END)
                is_over = new is _END
                if isinstance(new, Submission):
                    unfinished[coming.last] = new
                elif isinstance(new, LegraphError):
                    yield coming.last, new
                else:
                    break
            if not unfinished:
                continue
            self._scheduler.wait(*(submission.job for submission in unfinished.values()))
            for number, submission in list(unfinished.items()):
                job = submission.job
                # In this order: what is done gets no more events.
                is_done = job.is_done
                while job.events:
                    yield number, job.events.popleft()
                if is_done:
                    del unfinished[number]
                    if isinstance(job.error, ModelError):
                        yield number, job.error
                    elif job.error is not None:
                        raise job.error

    def submit(self, bundle: Bundle, settings: Generate | None = None) -> Submission:
        """Hands a run to the engine and returns at once. Raises what `run` raises before it computes."""
        if not isinstance(bundle, Bundle):
            raise TypeError(f"a run takes a Bundle, not {type(bundle).__name__}: compile the graph first")
        settings = settings or Generate()
        check_settings(settings)
        self.check(bundle)
        known = max_positions(self.model.config)
        branches = self._branches(bundle, settings, known)
        last = int(bundle.position_ids.max()) + sum(b.settings.max_new_tokens for b in branches.values())
        reuse = self._scheduler.reuse if usable(self._forward, last) else None
        job = Job(bundle, branches, known, self._forward.border, reuse)
        self._scheduler.submit(job)
        return Submission(self._scheduler, job)

    def _branches(self, bundle: Bundle, settings: Generate, known: int | None) -> dict[int, Branch]:
        """The chunks that generate: every leaf, and those that say so."""
        leaves = set(bundle.leaves)
        return {
            i: Branch(bundle, i, settings, self.tokenizer, self.end_ids, known, has_children=i not in leaves)
            for i, name in enumerate(bundle.span_names)
            if i in leaves or name in bundle.meta.generate
        }

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
        check_positions(bundle.position_ids, max_positions(self.model.config))

    def limit_cache(self, num_tokens: int) -> None:
        """From now on, runs wait for others to end rather than have the cache grow beyond so many tokens.

        A run that needs more by itself still gets them, when it is alone. On a CPU, prefill passes become no
        larger than its caches are good for, unless something else was asked for, and chunks are kept in the
        memory of the store, if it has any, instead of in the cache.
        """
        # Slot 0 is scratch space.
        self._scheduler.max_slots = num_tokens + 1
        if self.model.device.type == "cuda":
            # At once: to grow it later takes room for both.
            self._scheduler.num_slots = max(self._scheduler.num_slots, num_tokens + 1)
        elif self.kv is not None and self.kv.memory_bytes and self._scheduler.reuse is not None:
            # Here a copy from the store costs little, and runs with stretches of their own are computed one
            # by one (`flatattention.row_groups`); where they share slots, each looks at the slots of all.
            self._scheduler.reuse.makes_residents = False
        self._forward.prefill_tokens = self._forward.prefill_tokens or _CPU_PREFILL_TOKENS

    def default_cache_tokens(self) -> int:
        """What `limit_cache` may be given: what keeps the device busy, if it fits into its free memory."""
        if self.model.device.type != "cuda":
            return _CPU_CACHE_TOKENS
        if self._fitting_tokens is None:
            import torch

            # Once: of what is free then, this cache takes a part, and asked again, it would take more.
            free = torch.cuda.mem_get_info(self.model.device)[0]
            fitting = int(_GPU_CACHE_SHARE * free / self._forward.shape.bytes_per_token())
            self._fitting_tokens = min(self._forward.capacity + fitting, _GPU_CACHE_TOKENS)
        return self._fitting_tokens

    @property
    def prefill_tokens(self) -> int | None:
        """Most tokens of one prefill pass; None if there is no limit. Halved when memory runs out."""
        return self._forward.prefill_tokens

    def compilations(self) -> dict[str, int]:
        """How many versions of code this engine has made so far, of each kind; bounded by shape buckets.

        `flex`: lengths that FlexAttention was compiled for. `cuda_graphs`: recordings of small passes.
        """
        steps = self._forward.steps
        return {
            "flex": len(self._forward.flex_lengths),
            "cuda_graphs": 0 if steps is None else steps.num_recordings,
        }


_END = object()


class _Counted(Iterator[Submission | LegraphError | None]):
    """`last` is the number, from 0, of the one that came last, where None does not count."""

    def __init__(self, submissions: Iterable[Submission | LegraphError | None]) -> None:
        self._coming, self.last = iter(submissions), -1

    def __next__(self) -> Submission | LegraphError | None:
        new = next(self._coming)
        self.last += new is not None
        return new


def check_settings(settings: Generate) -> None:
    """Raises InputError for settings that a graph file could not have."""
    try:
        GenerateSpec.model_validate(asdict(settings))
    except ValidationError as error:
        raise InputError(
            Problem(f"{'.'.join(map(str, details['loc']))} is {details['input']!r}", details["msg"])
            for details in error.errors(include_url=False)
        ) from None


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a generation: the model's and the tokenizer's."""
    found = set[int]()
    for config in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(found)
