"""`observe`: where a model's attention goes in a graph, from chunk to chunk.

A run is not watched while it goes on: its kernels never have the weights. What was run is computed once more,
as one prefill of the finished graph, in which every token sees what it saw in the run, with attention that is
watched (`observedattention`). torch is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from legraph.attentionmass import AttentionMass
from legraph.bundle import Bundle
from legraph.errors import InputError, ModelError, Problem, count
from legraph.kvshow import format_size
from legraph.prefill import fit

if TYPE_CHECKING:
    from legraph.engine import Engine
    from legraph.forward import Forward
    from legraph.observedattention import Recorder

# Attention of single tokens takes layers x heads x N x N numbers; more than this (1 GiB) is not asked for.
MAX_TOKEN_WEIGHTS = 2**28
# Numbers for pairs of chunks, layers x heads x (chunks + edges), likewise.
MAX_PAIR_WEIGHTS = 2**29


def observe(
    engine: Engine,
    bundle: Bundle,
    tokens: bool = False,
    *,
    advance: Callable[[int], object] = lambda done: None,
) -> AttentionMass:
    """The attention of an engine's model over a graph; nothing is generated.

    The engine must not run anything meanwhile. After a run, `RunResult.bundle` is the graph to look at.

    Args:
        tokens: keep the attention of single tokens too, for small graphs.
        advance: called with the number of tokens done since the last call.

    Raises:
        InputError: too many chunks or tokens for what would have to be kept.
        BundleError: the bundle was made with another tokenizer.
        ModelError: the model's class computes attention in a way of its own, where nobody can look; positions
            that the model does not know; out of memory; weights that are no numbers.
    """
    from legraph.forward import Forward
    from legraph.model import run_errors
    from legraph.observedattention import Recorder

    engine.check(bundle)
    _check_size(engine.model.config, bundle, tokens)
    forward = Forward(engine.model, "auto", engine.prefill_tokens)
    if forward.team is not None:
        raise ModelError(
            f"{forward.team.size} processes share the model, and each sees its own heads only",
            "observe a model on one device",
        )
    if not forward.uses_flat:
        raise ModelError(
            f"{type(engine.model).__name__} computes attention in a way of its own, so nobody can look at it",
            "use a model whose class takes transformers' attention functions, such as Llama, Qwen or Mistral",
        )
    fit(forward, bundle)
    recorder = Recorder(bundle.mask, bundle.position_ids, engine.model.device, tokens)
    with run_errors(f"observing {len(bundle):,} tokens"):
        _prefill(forward, bundle, recorder, advance)
        return _result(engine.model, bundle, recorder)


def _check_size(config: Any, bundle: Bundle, tokens: bool) -> None:
    text = config.get_text_config()
    planes = text.num_hidden_layers * text.num_attention_heads
    mask = bundle.mask
    num_pairs = planes * (mask.num_chunks + mask.num_edges)
    if num_pairs > MAX_PAIR_WEIGHTS:
        raise InputError(
            Problem(
                f"{planes:,} heads in all layers and {count(mask.num_edges, 'edge')} make "
                f"{format_size(4 * num_pairs)} of attention",
                f"at most {format_size(4 * MAX_PAIR_WEIGHTS)}",
                "observe a part of the graph (Bundle.select), or a smaller model",
            )
        )
    num_weights = planes * len(bundle) ** 2
    if tokens and num_weights > MAX_TOKEN_WEIGHTS:
        raise InputError(
            Problem(
                f"the attention of {len(bundle):,} single tokens in {planes:,} heads takes "
                f"{format_size(4 * num_weights)}",
                f"at most {format_size(4 * MAX_TOKEN_WEIGHTS)}",
                "observe chunks only, which needs no more than a number for each edge",
            )
        )


def _prefill(forward: Forward, bundle: Bundle, recorder: Recorder, advance: Callable[[int], object]) -> None:
    """All tokens, in passes as large as those of a run. Token t lies in slot t."""
    import torch

    from legraph.attention import for_each_layer_kind
    from legraph.observedattention import ObservedMask

    device, num_tokens = forward.model.device, len(bundle)
    ids, positions, slots = (
        torch.from_numpy(array).to(device)
        for array in (bundle.input_ids, bundle.position_ids, np.arange(num_tokens, dtype=np.int64))
    )
    masks = for_each_layer_kind(forward.model.config, lambda window: ObservedMask.of(recorder, window))
    step = forward.prefill_tokens or num_tokens
    with torch.inference_mode():
        for first in range(0, num_tokens, step):
            at = slice(first, min(num_tokens, first + step))
            recorder.begin(at.start, at.stop)
            # Of the logits, those of one token: they are not looked at.
            forward.model_call(ids[at], positions[at], slots[at], masks, "observed", num_tokens, 1)
            advance(at.stop - at.start)


def _result(model: Any, bundle: Bundle, recorder: Recorder) -> AttentionMass:
    lengths = np.diff(bundle.span_offsets)
    rows = np.diff(bundle.parent_offsets) + 1
    if len({len(layer) for layer in recorder.mass}) != 1:
        raise ModelError(
            f"the layers of {type(model).__name__} have different numbers of heads",
            "use a model whose layers are alike",
        )
    mass = np.stack([layer.cpu().numpy() for layer in recorder.mass]) / np.repeat(lengths, rows)
    if not np.isfinite(mass).all():
        raise ModelError(
            f"{type(model).__name__} computes NaN or infinity for this graph",
            "use another --dtype (float32, or bfloat16 instead of float16)",
        )
    sinks = np.stack([layer.cpu().numpy() for layer in recorder.sinks]) / lengths if recorder.sinks else None
    tokens = np.stack([layer.numpy() for layer in recorder.tokens]) if recorder.tokens else None
    sinks = None if sinks is None else sinks.astype(np.float32)
    return AttentionMass(bundle, mass.astype(np.float32), sinks, tokens)
