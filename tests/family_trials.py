"""Runs a family's tiny model on graphs, compares every token and logit with what they must be, and tells how.

Two things are taken as true. What the model gives for a plain text, without any mask or position of ours:
so a window, sink or scale that legraph does not know of is noticed. And, for graphs, the definition:
everything is computed again in one pass that starts from nothing, under a mask that is made token by token.
(With an empty cache, because without one Gemma 3n of transformers 5.0 does not share keys between layers.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine
from legraph.errors import ModelError
from legraph.graph import Generate
from legraph.kvstore import KVStore
from legraph.model import dense_attention, use_attention
from legraph.result import RunResult
from legraph.rotary import KeyShift
from legraph.tokens import bytes_tokenizer
from tests.families import Family
from tests.naive import watched

_TOKENIZER = bytes_tokenizer()
_HOW = Generate(max_new_tokens=6)
# Of the largest logit. What is wrong is wrong by more than a hundred times that.
_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Trial:
    """What came out.

    Attributes:
        refusal: why the model is refused; None if it runs. If it does not, what follows says nothing.
        attention: "flat" (legraph's own), or "sdpa" or "eager", transformers' own with the mask spelled out.
        features: of its attention: a window, a soft cap of scores, sinks.
        shift: None if its keys can be moved to other positions, else why they cannot be.
    """

    class_name: str
    refusal: str | None = None
    attention: str = ""
    features: tuple[str, ...] = ()
    shift: str | None = None


def trial(family: Family) -> Trial:
    """
    Raises:
        AssertionError: the model runs, and gives something else than it must, or its refusal has no name.
    """
    model = family.model()
    name = type(model).__name__
    store = KVStore(memory_bytes=2**28)
    try:
        engine = _engine(model, store)
    except ModelError as error:
        assert name in error.message, f"a refusal that does not say of what: {error.message}"
        assert error.hint
        return Trial(name, error.message)
    _check_plain_text(engine)
    _check_graph(engine, _leaves(0, 0))
    reuse = engine._scheduler.reuse
    assert reuse is not None
    shift = None if isinstance(reuse.shift, KeyShift) else reuse.shift
    # Another engine finds the documents in the store, somewhere else, and behind text that was not there.
    moved = _check_graph(_engine(model, store), _leaves(40, 43, Chunk("x" * 50, name="first")))
    origins = {source.chunk: (source.origin, source.shift) for source in moved.sources}
    found = {name: origins[name] for name in ("d1", "d2")}
    expected = {"d1": ("memory", 40), "d2": ("memory", 43)}
    assert found == (expected if shift is None else dict.fromkeys(found, ("computed", 0))), found
    attention = "flat" if engine._forward.uses_flat else engine._forward.dense
    return Trial(name, None, attention, tuple(_features(model)), shift)


def _engine(model: Any, store: KVStore) -> Engine:
    engine = Engine(model, _TOKENIZER, kv=store)
    # Nothing ends a sequence, so lengths are known.
    engine.end_ids = frozenset()
    return engine


def _features(model: Any) -> Iterator[str]:
    text = model.config.get_text_config()
    if _window(text) is not None:
        yield "window"
    if getattr(text, "attn_logit_softcapping", None):
        yield "soft cap"
    if any("sink" in name.rpartition(".")[2] for name, _ in model.named_parameters()):
        yield "sinks"


def _leaves(first_start: int, second_start: int, *more: Chunk) -> list[Chunk]:
    """Two parallel documents, a join that generates, and two leaves, one of which sees a document again."""
    docs = [
        Chunk("alpha beta gamma.", name="d1", start=first_start),
        Chunk("one, two, three, four", name="d2", start=second_start),
    ]
    join = Chunk("both: ", parents=[*more, *docs], name="join", generate=Generate(max_new_tokens=3))
    return [Chunk("so ", parents=[join], name="l1"), Chunk("or not", parents=[docs[0], join], name="l2")]


# What must come out.


def _check_plain_text(engine: Engine) -> None:
    """One chunk is a plain text, and longer than any window."""
    model = engine.model
    bundle = compile_chunks([Chunk("the quick brown fox", name="text")], _TOKENIZER)
    with watched(model) as seen:
        result = engine.run(bundle, _HOW)
    use_attention(model, dense_attention(model))
    with torch.inference_mode():
        own = model(input_ids=torch.from_numpy(result.bundle.input_ids)[None], use_cache=True).logits[0]
    _compare("a plain text", result, seen.logits, own, bundle)


def _check_graph(engine: Engine, leaves: Sequence[Chunk]) -> RunResult:
    bundle = compile_chunks(list(leaves), _TOKENIZER)
    with watched(engine.model) as seen:
        result = engine.run(bundle, _HOW)
    _compare("a graph", result, seen.logits, by_definition(engine.model, result.bundle), bundle)
    return result


def _compare(
    what: str,
    result: RunResult,
    found: dict[str, list[torch.Tensor]],
    logits_NV: torch.Tensor,
    bundle: Bundle,
) -> None:
    """Each row that a token was drawn from, and the token."""
    assert found.keys() == result.outputs.keys()
    for name, rows in found.items():
        assert len(rows) == len(result.outputs[name].token_ids)
        end = result.bundle.span(name).stop
        # The row of a token is that of the token before it.
        expected = logits_NV[end - len(rows) - 1 : end - 1].float()
        difference = float((torch.stack(rows) - expected).abs().max() / expected.abs().max())
        assert difference <= _TOLERANCE, f"{what}, {name}: logits differ by {difference:.1e} of the largest"
        assert list(result.outputs[name].token_ids) == expected.argmax(-1).tolist(), f"{what}, {name}"
    assert len(result.bundle) == len(bundle) + sum(map(len, found.values()))


def by_definition(model: Any, bundle: Bundle) -> torch.Tensor:
    """Logits [N, V] of a finished graph, by python sets and one dense pass over all of it."""
    attn = dense_attention(model)
    use_attention(model, attn)
    chunk_of, starts, positions = list[int](), list[int](), list[int]()
    for chunk, name in enumerate(bundle.span_names):
        span, parents = bundle.span(chunk), bundle.parents(chunk).tolist()
        after = max((starts[p] + bundle.span(p).stop - bundle.span(p).start for p in parents), default=0)
        starts.append(int(bundle.position_ids[span][0]) if name in bundle.meta.pinned else after)
        chunk_of += [chunk] * (span.stop - span.start)
        positions += range(starts[-1], starts[-1] + span.stop - span.start)
    parents_of = [set(bundle.parents(chunk).tolist()) for chunk in range(len(bundle.span_names))]
    size = range(len(bundle))
    visible = torch.tensor(
        [
            [chunk_of[k] in parents_of[chunk_of[q]] or (chunk_of[k] == chunk_of[q] and k <= q) for k in size]
            for q in size
        ]
    )
    positions_N = torch.tensor(positions)
    with torch.inference_mode():
        output = model(
            input_ids=torch.from_numpy(bundle.input_ids)[None],
            position_ids=positions_N[None],
            attention_mask=_masks(model.config.get_text_config(), attn, visible, positions_N),
            use_cache=True,
        )
    return output.logits[0]


def _masks(text: Any, attn: str, visible: torch.Tensor, positions: torch.Tensor) -> Any:
    """The mask as a model takes it: one for each kind of layer where there are two kinds."""

    def form(mask: torch.Tensor) -> torch.Tensor:
        if attn == "eager":
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        return mask[None, None]

    window = _window(text)
    if window is None:
        return form(visible)
    windowed = form(visible & ((positions[:, None] - positions[None]).abs() < window))
    if set(getattr(text, "layer_types", None) or ()) <= {"sliding_attention"}:
        return windowed
    return {"full_attention": form(visible), "sliding_attention": windowed}


def _window(text: Any) -> int | None:
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    is_used = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
    return window if window and is_used else None


# docs/models.md

HEADER = f"""\
# Models

What legraph does with the causal language models of transformers {transformers.__version__}. This file is
written by `python docs/make_models.py`, and CI runs the same code.

Each row is one tiny model with random weights (two layers, 64 channels), in float32 on a CPU. A model that
runs was run with `attn="auto"`: a plain text; a graph with parallel documents, a join that generates and two
leaves; and the same graph at other positions, with the documents from a KV store. Every token was the same,
and every logit within 1/10,000 of the largest, as in the model's own forward pass over the text, and in one
dense pass over each whole graph. Other dtypes, GPUs and trained weights are not shown here.

- Attention: `flat` is legraph's own; `sdpa` and `eager` are transformers' own, with the mask spelled out.
- Features: a window (here of 5 positions), a soft cap of attention scores, attention sinks.
- Keys move: whether keys and values of a chunk are reused at any position, or at the same one only, and why.
- A model that cannot honour a graph is refused when an engine is made, with the reason that is given here.
"""


def table(trials: Sequence[tuple[Family, Trial]]) -> str:
    """docs/models.md."""
    runs = [row(family, one) for family, one in trials if one.refusal is None]
    refused = [row(family, one) for family, one in trials if one.refusal is not None]
    return "\n".join(
        [
            HEADER,
            f"## Run: {len(runs)}\n",
            "| family | class | attention | features | keys move |",
            "|---|---|---|---|---|",
            *runs,
            f"\n## Refused: {len(refused)}\n",
            "| family | reason |",
            "|---|---|",
            *refused,
            "",
        ]
    )


def row(family: Family, one: Trial) -> str:
    if one.refusal is not None:
        return f"| {family.name} | {one.refusal} |"
    cells = [
        family.name,
        one.class_name,
        one.attention,
        ", ".join(one.features),
        "yes" if one.shift is None else f"no: {one.shift}",
    ]
    return f"| {' | '.join(cells)} |"
