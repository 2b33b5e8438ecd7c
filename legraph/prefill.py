"""One prefill of a whole bundle and nothing after it: what `verify` and `score` look at.

The passes are those of a run (`forward`), over a cache of their own. No chunk is continued.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from legraph.bundle import Bundle
from legraph.errors import ModelError
from legraph.forward import Choice, Forward
from legraph.mask import BoolArray
from legraph.passes import Segment
from legraph.slots import Extent, merged

if TYPE_CHECKING:
    from legraph.engine import Engine

# Token t lies in slot t + 1: passes that are padded write what they do not need to slot 0.
_FIRST_SLOT = 1


def own_forward(engine: Engine) -> Forward:
    """Passes like those of an engine, beside it. The engine must not run anything meanwhile."""
    attn: Choice = engine.attn  # type: ignore[assignment]
    return Forward(engine.model, attn, engine.prefill_tokens)


def fit(forward: Forward, bundle: Bundle) -> int:
    """Makes room for a bundle. Returns the slot past its last one.

    Raises:
        ModelError: out of memory, or the rotary frequencies of the model change between the positions.
    """
    border, positions = forward.border, bundle.position_ids
    if border is not None and positions.min() < border <= positions.max():
        raise ModelError(
            f"the model's rotary embedding changes at position {border}, and the graph crosses it",
            "keep the whole graph on one side (fewer tokens, or other 'start' positions), or use a model "
            "without dynamic or LongRoPE scaling",
        )
    num_used = _FIRST_SLOT + len(bundle)
    forward.fit(num_used, keep=False)
    return num_used


def segments(bundle: Bundle, wanted: BoolArray | None = None) -> Iterator[Segment]:
    """The tokens of a bundle in their order.

    Args:
        wanted: bool [N], the tokens whose logits are needed; a chunk is cut behind each of them. Default:
            none, and every chunk is one segment.
    """
    for chunk in range(bundle.mask.num_chunks):
        span = bundle.span(chunk)
        slot = _FIRST_SLOT + span.start
        parents = (bundle.span(int(parent)) for parent in bundle.parents(chunk))
        seen = merged(Extent(_FIRST_SLOT + one.start, _FIRST_SLOT + one.stop) for one in parents)
        whole = Segment(bundle.input_ids[span], bundle.position_ids[span], slot, slot, tuple(seen))
        ends = [] if wanted is None else (np.flatnonzero(wanted[span]) + 1).tolist()
        for first, end in zip([0, *ends], ends, strict=False):
            yield replace(whole.cut(first, end), wants_logits=True)
        rest = ends[-1] if ends else 0
        if rest < len(whole):
            yield whole.cut(rest, len(whole))


def last_hidden_states(forward: Forward, bundle: Bundle) -> Any:
    """What the last layer gives for every token: a tensor [N, D] on the model's device, in its dtype.

    The passes of a run, but that none is replayed from a recording, where nobody can look at them.

    Raises:
        ModelError: out of memory, or the model's class has no body apart from its head.
    """
    import torch

    body = forward.model.base_model
    if body is forward.model:
        raise ModelError(
            f"{type(body).__name__} has no body apart from its head, so nobody can look between them",
            "use a model whose class is one of transformers' own",
        )
    num_used = fit(forward, bundle)
    forward.steps = None
    parts: list[Any] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        parts.append(output[0][0].clone())

    watching = body.register_forward_hook(keep)
    try:
        forward.prefill(list(segments(bundle)), num_used)
    finally:
        watching.remove()
    # What ran out of memory and was tried again in smaller passes stands in front.
    return torch.cat(parts)[-len(bundle) :]
