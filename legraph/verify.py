"""`verify`: changes one chunk after the other, and looks in the model itself at who notices.

A chunk's tokens are replaced by as many others, at the same positions and under the same mask, and the whole
graph is prefilled as a run would do it. The last hidden states of every token are then compared with those
of the graph as it is: only the chunk and its descendants may have changed, and all of them must have.

        a b c            c sees b, b sees a, d sees nothing;
    a   ● ● ●            row: the chunk that was changed,
    d   · · ·  ...       column: the chunk that was looked at

A layer carries influence over one edge, so that a model of L layers cannot show it farther than L edges, and
a sliding window may end it earlier. Such pairs may change and need not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from legraph.attention import layer_windows
from legraph.bundle import Bundle
from legraph.errors import InputError, ModelError, Problem
from legraph.mask import BoolArray, ChunkMask, Int64Array
from legraph.prefill import last_hidden_states, own_forward

if TYPE_CHECKING:
    from legraph.engine import Engine
    from legraph.forward import Forward

# More chunks than this are not all changed, unless asked for.
DEFAULT_SAMPLE = 64
# Where equal inputs need not give equal numbers: how far above the noise of a repetition, and how many
# roundings of the largest hidden state, a change must be.
_TIMES_NOISE, _TIMES_ROUNDING = 8, 8

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Violation:
    """A pair of chunks that is not as it should be.

    Attributes:
        kind: "leak" if `observed` changed although it is no descendant of `perturbed`; "no effect" if it did
            not change although it should have: the mask hides too much, or the model computes nearly the
            same from whatever text.
        change: the largest change of a hidden state.
    """

    kind: Literal["leak", "no effect"]
    perturbed: str
    observed: str
    change: float


@dataclass(frozen=True, eq=False, slots=True)
class Verified:
    """What changed in K chunks when S of them were replaced, one at a time.

    Attributes:
        names: K, in token order.
        perturbed: S indices of the chunks that were replaced, ascending.
        changes: float64 [S, K], largest change of a last hidden state in a chunk.
        influenced: bool [S, K], the chunk itself and its descendants: may change, and nothing else may.
        expected: bool [S, K], those of them that must change with the layers and windows of this model.
        tolerance: a change is one above this; 0 where results are equal bit by bit.
    """

    names: tuple[str, ...]
    perturbed: tuple[int, ...]
    changes: Float64Array
    influenced: BoolArray
    expected: BoolArray
    tolerance: float

    @property
    def changed(self) -> BoolArray:
        """bool [S, K]"""
        return self.changes > self.tolerance

    @property
    def leaks(self) -> BoolArray:
        """bool [S, K]"""
        return self.changed & ~self.influenced

    @property
    def without_effect(self) -> BoolArray:
        """bool [S, K]"""
        return ~self.changed & self.expected

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Leaks first."""
        found = list[Violation]()
        kinds: Sequence[tuple[Literal["leak", "no effect"], BoolArray]]
        kinds = ("leak", self.leaks), ("no effect", self.without_effect)
        for kind, cells in kinds:
            for row, column in np.argwhere(cells).tolist():
                name = self.names[self.perturbed[row]]
                found.append(Violation(kind, name, self.names[column], float(self.changes[row, column])))
        return tuple(found)

    @property
    def is_ok(self) -> bool:
        return not (self.leaks | self.without_effect).any()


def verify(
    engine: Engine,
    bundle: Bundle,
    sample: int | None = None,
    *,
    run_as: Bundle | None = None,
    advance: Callable[[int], object] = lambda done: None,
) -> Verified:
    """Changes chunks of a bundle, one at a time, and looks at what changes in the engine's model.

    The engine must not run anything meanwhile. Text is prefilled, and nothing generated.

    Args:
        sample: change so many chunks, evenly chosen; default all, or 64 if there are more.
        run_as: what the model is given instead of `bundle`: the same chunks of the same tokens under another
            mask. To see that a wrong mask is found.
        advance: called with the number of forward passes done since the last call; `num_passes` says how
            many there are.

    Raises:
        InputError: a sample of no chunk.
        BundleError: the bundle was made with another tokenizer.
        ModelError: positions that the model does not know, out of memory, hidden states that are no numbers.
    """
    engine.check(bundle)
    chosen = sampled(bundle.mask.num_chunks, sample)
    given = bundle if run_as is None else run_as
    forward = own_forward(engine)
    base, noise = _base(forward, given, advance)
    changes = np.empty((len(chosen), bundle.mask.num_chunks))
    for row, chunk in enumerate(chosen):
        changed = last_hidden_states(forward, _perturbed(given, chunk, engine))
        changes[row] = np.maximum.reduceat(_change(base, changed), bundle.span_offsets[:-1])
        advance(1)
    return Verified(
        bundle.span_names,
        chosen,
        changes,
        influenced(bundle.mask, chosen),
        reached(bundle, chosen, windows_of_layers(engine.model.config)),
        _tolerance(engine.model, base, noise),
    )


def sampled(num_chunks: int, sample: int | None = None) -> tuple[int, ...]:
    """The chunks that are changed, ascending: all, or so many of them, evenly chosen."""
    if sample is not None and sample < 1:
        raise InputError(Problem(f"a sample of {sample} chunks", "at least one chunk"))
    number = min(num_chunks, DEFAULT_SAMPLE if sample is None else sample)
    return tuple(np.linspace(0, num_chunks - 1, number).round().astype(int).tolist())


def num_passes(num_chunks: int, sample: int | None = None) -> int:
    """How many forward passes over the graph `verify` does: two over the graph as it is, one for a change."""
    return 2 + len(sampled(num_chunks, sample))


def influenced(mask: ChunkMask, sources: Sequence[int]) -> BoolArray:
    """bool [S, K]: each source and its descendants."""
    found = np.zeros((mask.num_chunks, len(sources)), dtype=np.bool_)
    found[list(sources), np.arange(len(sources))] = True
    # Parents come first in token order, so once is enough.
    for chunk in range(mask.num_chunks):
        found[chunk] |= found[mask.parents(chunk)].any(axis=0)
    return found.T


def reached(bundle: Bundle, sources: Sequence[int], windows: Sequence[int | None]) -> BoolArray:
    """bool [S, K]: the chunks with a token that the sources influence in a model with these layers.

    Args:
        windows: for each layer the window, as a distance in positions, or None if it has none.
    """
    mask = bundle.mask
    chunk_of = mask.chunk_of(np.arange(len(bundle)))
    reached_NS = chunk_of[:, None] == np.asarray(sources)[None]
    for window in windows:
        reached_NS = _one_layer(bundle, reached_NS, window)
    return np.logical_or.reduceat(reached_NS, mask.span_offsets[:-1], axis=0).T


def _one_layer(bundle: Bundle, reached_NS: BoolArray, window: int | None) -> BoolArray:
    """What is influenced after a layer, by what was before it."""
    mask, positions = bundle.mask, bundle.position_ids
    after = reached_NS.copy()
    in_chunk = np.logical_or.reduceat(reached_NS, mask.span_offsets[:-1], axis=0)
    for chunk in range(mask.num_chunks):
        span, parents = mask.span(chunk), mask.parents(chunk)
        if window is None:
            own = np.logical_or.accumulate(reached_NS[span], axis=0)
            after[span] = own | in_chunk[parents].any(axis=0)
            continue
        spans = [mask.span(int(parent)) for parent in parents]
        keys = np.concatenate([np.arange(one.start, one.stop) for one in (*spans, span)])
        queries = np.arange(span.start, span.stop)
        near = np.abs(positions[queries][:, None] - positions[keys][None]) < window
        # Of its own tokens, a token sees those before it; all its parents' stand before it anyhow.
        sees = near & (keys[None] <= queries[:, None])
        after[span] |= sees.astype(np.float32) @ reached_NS[keys].astype(np.float32) > 0
    return after


def windows_of_layers(config: Any) -> list[int | None]:
    """For each layer of a model its sliding window in positions, or None."""
    text, windows = config.get_text_config(), layer_windows(config)
    kinds = getattr(text, "layer_types", None) or list(windows) * text.num_hidden_layers
    return [windows[kind] for kind in kinds]


def other_ids(ids: Int64Array, tokenizer: Any, vocabulary: int) -> Int64Array:
    """As many token ids, each another one, none of a special token."""
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    plain = np.setdiff1d(np.arange(min(len(tokenizer), vocabulary)), sorted(special))
    if len(plain) < 2:
        plain = np.arange(vocabulary)
    # Half the vocabulary farther, so that it is no neighbour, which may be nearly the same word.
    at = np.searchsorted(plain, ids) + max(1, len(plain) // 2)
    return plain[at % len(plain)].astype(np.int64)


def _perturbed(bundle: Bundle, chunk: int, engine: Engine) -> Bundle:
    ids, span = bundle.input_ids.copy(), bundle.span(chunk)
    vocabulary = engine.model.get_input_embeddings().weight.shape[0]
    ids[span] = other_ids(ids[span], engine.tokenizer, vocabulary)
    return Bundle(ids, bundle.position_ids, bundle.span_names, bundle.mask, bundle.meta)


def _base(forward: Forward, bundle: Bundle, advance: Callable[[int], object]) -> tuple[Any, float]:
    """Hidden states [N, D] of the graph as it is, and by how much they differ when computed again."""
    base = last_hidden_states(forward, bundle)
    advance(1)
    if not bool(base.isfinite().all()):
        raise ModelError(
            f"{type(forward.model).__name__} computes NaN or infinity for this graph",
            "use another --dtype (float32, or bfloat16 instead of float16)",
        )
    noise = float(_change(base, last_hidden_states(forward, bundle)).max())
    advance(1)
    return base, noise


def _change(base_ND: Any, found_ND: Any) -> Float64Array:
    """float64 [N]: the largest change in each token. A number that became NaN has changed."""
    change_N = (found_ND.float() - base_ND.float()).abs().amax(-1)
    return change_N.nan_to_num(float("inf")).double().cpu().numpy()


def _tolerance(model: Any, base: Any, noise: float) -> float:
    """Above which a change is one.

    Shapes, positions and mask stay the same, and a row of a product does not depend on the values of others,
    so what no change reaches is equal bit by bit. There are two exceptions: kernels that add in another order
    each time, which the repetition shows, and experts, whose number of tokens depends on what the tokens are.
    """
    import torch

    if noise == 0 and not _has_experts(model.config.get_text_config()):
        return 0.0
    rounding = torch.finfo(base.dtype).eps * float(base.abs().max())
    return max(_TIMES_NOISE * noise, _TIMES_ROUNDING * rounding)


def _has_experts(config: Any) -> bool:
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(config, name, None) or 0) > 1 for name in names)
