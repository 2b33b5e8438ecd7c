"""An engine written a second way: it knows no cache, and lays the whole graph out again for every new token.

Beside it, what tests of the engine share: engines over tiny models, and ways to look at what they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from legraph.branch import Branch
from legraph.bundle import Bundle
from legraph.engine import Engine
from legraph.graph import Generate
from legraph.model import dense_attention, supported_attention, use_attention
from legraph.result import RunResult
from tests.random_graphs import tokenizer
from tests.tiny_models import tiny_model

NEVER = frozenset[int]()


def engine(name: str = "llama", attn: Any = "auto", ends: bool = False, **more: Any) -> Engine:
    """A new engine; unless `ends`, nothing is an end-of-sequence token, so lengths are known."""
    made = Engine(tiny_model(name), tokenizer(), attn, **more)
    if not ends:
        made.end_ids = NEVER
    return made


def oracle(name: str, bundle: Bundle, new_tokens: dict[str, int]) -> dict[str, list[int]]:
    """Greedy decoding by the definition, with python sets and one dense mask for each new token.

    Chunks generate one after the other in token order; a chunk sees its direct parents' text and generated
    tokens. Under `causal` it starts after the last position its parents used.
    """
    model = tiny_model(name)
    attn = "sdpa" if "sdpa" in supported_attention(model) else "eager"
    use_attention(model, attn)
    tokens: dict[int, list[int]] = {}
    starts: dict[int, int] = {}
    generated: dict[str, list[int]] = {}

    def last_logits(chunk: int) -> torch.Tensor:
        owners = [(c, i) for c in sorted(tokens) for i in range(len(tokens[c]))]
        parents = {c: set(bundle.parents(c).tolist()) for c in tokens}
        mask = np.array(
            [[(kc == qc and ki <= qi) or kc in parents[qc] for kc, ki in owners] for qc, qi in owners]
        )
        ids = torch.tensor([[tokens[c][i] for c, i in owners]])
        positions = torch.tensor([[starts[c] + i for c, i in owners]])
        window = getattr(model.config, "sliding_window", None)
        near = (positions[0][:, None] - positions[0][None]).abs() < (window or 10**9)
        full, slid = (torch.from_numpy(mask), torch.from_numpy(mask) & near)
        if attn == "eager":
            full, slid = (torch.where(m, 0.0, torch.finfo(torch.float32).min) for m in (full, slid))
        masks: Any = full[None, None] if window is None else slid[None, None]
        if getattr(model.config, "layer_types", None) and window is not None:
            masks = {"full_attention": full[None, None], "sliding_attention": slid[None, None]}
        with torch.inference_mode():
            logits = model(ids, position_ids=positions, attention_mask=masks, use_cache=False).logits[0]
        return logits[owners.index((chunk, len(tokens[chunk]) - 1))]

    for chunk, chunk_name in enumerate(bundle.span_names):
        span = bundle.span(chunk)
        tokens[chunk] = bundle.input_ids[span].tolist()
        starts[chunk] = int(bundle.position_ids[span][0])
        parents = bundle.parents(chunk).tolist()
        if bundle.meta.positions == "causal" and chunk_name not in bundle.meta.pinned and parents:
            starts[chunk] = max(starts[p] + len(tokens[p]) for p in parents)
        generated[chunk_name] = []
        for _ in range(new_tokens.get(chunk_name, 0)):
            token = int(last_logits(chunk).argmax())
            tokens[chunk].append(token)
            generated[chunk_name].append(token)
    return {chunk_name: ids for chunk_name, ids in generated.items() if ids}


def counts(bundle: Bundle, at_leaves: int) -> dict[str, int]:
    """How many tokens each chunk generates, if nothing ends it before."""
    leaves = {bundle.span_names[i]: at_leaves for i in bundle.leaves}
    return leaves | {name: how.max_new_tokens for name, how in bundle.meta.generate.items()}


def ids_of(result: RunResult) -> dict[str, list[int]]:
    return {name: list(output.token_ids) for name, output in result.outputs.items()}


@dataclass
class Seen:
    """What a model on the CPU was given, pass by pass, and what branches were given to draw from."""

    passes: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logits: dict[str, list[torch.Tensor]] = field(default_factory=dict)


@contextmanager
def watched(model: Any) -> Iterator[Seen]:
    seen = Seen()
    accept = Branch.accept

    def note_pass(module: Any, args: Any, kwargs: Any) -> None:
        seen.passes.append(kwargs["input_ids"].shape[1])
        seen.ids += kwargs["input_ids"][0].tolist()

    def note_logits(self: Branch, logits_V: torch.Tensor, *args: Any) -> Any:
        seen.logits.setdefault(self.name, []).append(logits_V.clone())
        return accept(self, logits_V, *args)

    # On a GPU passes are recorded, and a recording must not look at numbers.
    notes = (
        [] if model.device.type == "cuda" else [model.register_forward_pre_hook(note_pass, with_kwargs=True)]
    )
    try:
        with patch.object(Branch, "accept", note_logits):
            yield seen
    finally:
        for note in notes:
            note.remove()


def dense_logits(model: Any, bundle: Bundle) -> torch.Tensor:
    """Logits [N, V] of all tokens in one forward pass that knows no engine."""
    attn = dense_attention(model)
    use_attention(model, attn)
    inputs = bundle.model_inputs(model.device, attn, config=model.config, dtype=model.dtype)
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits[0].float()


def run_and_check(
    made: Engine, bundle: Bundle, how: Generate | None = None, tolerance: float = 1e-4
) -> RunResult:
    """A run, whose logits are, one by one, those of a dense forward pass over the graph that came out."""
    with watched(made.model) as seen:
        result = made.run(bundle, how)
    check_logits(made.model, bundle, result, seen, tolerance)
    return result


def check_logits(model: Any, bundle: Bundle, result: RunResult, seen: Seen, tolerance: float = 1e-4) -> None:
    expected = dense_logits(model, result.bundle)
    for name, rows in seen.logits.items():
        text = bundle.span(name)
        last = result.bundle.span(name).start + text.stop - text.start - 1
        found = torch.stack(rows).float()
        torch.testing.assert_close(found, expected[last : last + len(rows)], atol=tolerance, rtol=0)
        assert result.bundle.input_ids[last + 1 : last + 1 + len(rows)].tolist() == found.argmax(-1).tolist()
