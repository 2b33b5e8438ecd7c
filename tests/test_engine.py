"""The engine against an oracle that knows no cache: it lays the whole graph out again for every new token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.branch import Piece
from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine, RunResult
from legraph.errors import BundleError, InputError, ModelError
from legraph.graph import Generate
from legraph.model import supported_attention, use_attention
from legraph.tokens import bytes_tokenizer
from tests.random_graphs import bundles, tokenizer
from tests.tiny_models import tiny_model

NEVER = frozenset[int]()


def engine(name: str = "llama", attn: str = "sdpa", ends: bool = False) -> Engine:
    """An engine; unless `ends`, nothing is an end-of-sequence token, so lengths are known."""
    made = Engine(tiny_model(name), tokenizer(), attn)
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
        if bundle.meta.positions == "causal" and chunk_name not in bundle.meta.pinned:
            starts[chunk] = max((starts[p] + len(tokens[p]) for p in parents), default=0)
        generated[chunk_name] = []
        for _ in range(new_tokens.get(chunk_name, 0)):
            token = int(last_logits(chunk).argmax())
            tokens[chunk].append(token)
            generated[chunk_name].append(token)
    return {chunk_name: ids for chunk_name, ids in generated.items() if ids}


def ids_of(result: RunResult) -> dict[str, list[int]]:
    return {name: list(output.token_ids) for name, output in result.outputs.items()}


def one_leaf() -> Bundle:
    docs = [Chunk(text, name=text) for text in ("alpha", "beta", "gamma")]
    return compile_chunks([Chunk("which?", parents=docs, name="q")], tokenizer())


def four_leaves() -> Bundle:
    docs = [Chunk(text, name=text) for text in ("alpha", "beta", "gamma")]
    leaves = [
        Chunk("first:", parents=docs[:1], name="l1"),
        Chunk("second and longer:", parents=docs[1:], name="l2"),
        Chunk("all:", parents=docs, name="l3"),
        Chunk("alone:", name="l4"),
    ]
    return compile_chunks(leaves, tokenizer())


@pytest.mark.parametrize("attn", ["flex", "sdpa", "eager"])
@pytest.mark.parametrize("make", [one_leaf, four_leaves])
@pytest.mark.parametrize("name", ["llama", "llama-gqa", "qwen3", "gpt-neox", "gemma3", "phi3"])
def test_greedy_decoding_equals_recomputing_everything(name: str, make: Any, attn: str) -> None:
    bundle = make()
    result = engine(name, attn).run(bundle, Generate(max_new_tokens=12))
    leaves = [bundle.span_names[i] for i in bundle.leaves]
    assert ids_of(result) == oracle(name, bundle, dict.fromkeys(leaves, 12))


@pytest.mark.parametrize("name", ["mistral-window", "gemma2"])
def test_windows_hold_while_decoding(name: str) -> None:
    bundle = four_leaves()
    result = engine(name, "auto").run(bundle, Generate(max_new_tokens=9))
    leaves = [bundle.span_names[i] for i in bundle.leaves]
    assert ids_of(result) == oracle(name, bundle, dict.fromkeys(leaves, 9))


@settings(max_examples=40, deadline=None)
@given(bundle=bundles(max_chunks=8, max_length=5), data=st.data())
def test_any_chunk_may_generate(bundle: Bundle, data: st.DataObject) -> None:
    """Random DAGs in which random chunks generate random numbers of tokens, inner ones and leaves."""
    counts = {name: data.draw(st.integers(1, 5)) for name in bundle.span_names if data.draw(st.booleans())}
    meta = replace(
        bundle.meta, generate={name: Generate(max_new_tokens=count) for name, count in counts.items()}
    )
    bundle = replace(bundle, meta=meta)
    result = engine().run(bundle, Generate(max_new_tokens=3))
    leaves = {bundle.span_names[i]: 3 for i in bundle.leaves}
    assert ids_of(result) == oracle("llama", bundle, leaves | counts)


def test_a_long_prefill_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = four_leaves()
    whole = engine().run(bundle)
    monkeypatch.setattr("legraph.run._MAX_MASK_ENTRIES", 200)
    assert ids_of(engine().run(bundle)) == ids_of(whole)


def test_pinned_chunks_do_not_move_and_others_do() -> None:
    """A fork that generates 4 tokens; one child is pinned at position 40, the other follows."""
    root = Chunk("root", name="root", generate=Generate(max_new_tokens=4))
    pinned = Chunk("pinned", parents=[root], name="pinned", start=40)
    free = Chunk("free", parents=[root], name="free")
    bundle = compile_chunks([pinned, free], tokenizer())
    counts = {"root": 4, "pinned": 6, "free": 6}
    assert ids_of(engine().run(bundle, Generate(max_new_tokens=6))) == oracle("llama", bundle, counts)


def test_flat_positions_keep_the_room_that_was_reserved() -> None:
    root = Chunk("root", name="root", generate=Generate(max_new_tokens=4))
    bundle = compile_chunks([Chunk("leaf", parents=[root], name="leaf")], tokenizer(), positions="flat")
    assert bundle.position_ids.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    counts = {"root": 4, "leaf": 5}
    assert ids_of(engine().run(bundle, Generate(max_new_tokens=5))) == oracle("llama", bundle, counts)


def test_an_end_token_ends_a_branch_and_is_not_part_of_it() -> None:
    bundle = four_leaves()
    free = ids_of(engine().run(bundle, Generate(max_new_tokens=8)))
    ending = engine()
    ending.end_ids = frozenset([free["l2"][3]])
    result = ending.run(bundle, Generate(max_new_tokens=8))
    for name, ids in free.items():
        cut = ids.index(free["l2"][3]) if free["l2"][3] in ids else len(ids)
        assert result.outputs[name].token_ids == tuple(ids[:cut])
        assert result.outputs[name].finish == ("end" if cut < len(ids) else "length")


def test_the_models_and_the_tokenizers_end_tokens_count() -> None:
    assert engine(ends=True).end_ids == {257}


def test_a_stop_string_ends_a_branch_and_stays_in_it() -> None:
    bundle = one_leaf()
    free = engine().run(bundle, Generate(max_new_tokens=24)).outputs["q"]
    stop = free.text[3:5]
    assert len(stop) == 2
    stopped = engine().run(bundle, Generate(max_new_tokens=24, stop=(stop,))).outputs["q"]
    assert stopped.finish == "stop"
    assert stop in stopped.text
    assert free.text.startswith(stopped.text)
    assert stop not in stopped.text[:-1]


def test_a_childs_view_ends_where_its_parent_stopped() -> None:
    """The last token of a chunk is computed for its children although the chunk itself no longer needs it."""
    root = Chunk("root", name="root", generate=Generate(max_new_tokens=1))
    bundle = compile_chunks([Chunk("leaf", parents=[root], name="leaf")], tokenizer())
    counts = {"root": 1, "leaf": 4}
    assert ids_of(engine().run(bundle, Generate(max_new_tokens=4))) == oracle("llama", bundle, counts)


def test_streamed_pieces_add_up_to_the_outputs() -> None:
    bundle = four_leaves()
    events = list(engine().stream(bundle, Generate(max_new_tokens=10)))
    result = events.pop()
    assert isinstance(result, RunResult)
    pieces = [event for event in events if isinstance(event, Piece)]
    for name, output in result.outputs.items():
        assert "".join(piece.text for piece in pieces if piece.chunk == name) == output.text
        ids = [piece.token_id for piece in pieces if piece.chunk == name and piece.token_id is not None]
        assert tuple(ids) == output.token_ids
    assert result.tokens["prompt"] == len(bundle)
    assert result.tokens["generated"] == 40
    assert result.tokens["passes"] == 10
    # Branches decode side by side, not one after the other.
    assert [piece.chunk for piece in pieces[:4]] == ["l1", "l2", "l3", "l4"] or len(pieces) < 40


def test_sampling_depends_on_seed_and_chunk_only() -> None:
    """A branch draws the same tokens with and without others beside it, and others with another seed."""
    hot = Generate(max_new_tokens=12, temperature=1.0, seed=1)
    bundle = four_leaves()
    together = ids_of(engine().run(bundle, hot))
    assert together == ids_of(engine().run(bundle, hot))
    alone = ids_of(engine().run(bundle.with_parents("l3"), hot))
    assert alone["l3"] == together["l3"]
    assert ids_of(engine().run(bundle, replace(hot, seed=2)))["l3"] != together["l3"]


def test_positions_beyond_the_model_are_refused_before_the_run() -> None:
    bundle = compile_chunks([Chunk("x" * 70)], tokenizer())
    with pytest.raises(
        ModelError, match="the graph uses position 69, and the model knows positions up to 63"
    ):
        engine("gpt2").run(bundle)


def test_generation_ends_at_the_last_position_the_model_knows() -> None:
    bundle = compile_chunks([Chunk("x" * 60, name="x")], tokenizer())
    output = engine("gpt2").run(bundle, Generate(max_new_tokens=50)).outputs["x"]
    # Positions 60, 61, 62 can be fed; the token drawn at 62 would be the one at 63, the last.
    assert len(output.token_ids) == 4
    assert output.finish == "length"


def test_a_bundle_of_another_tokenizer_is_refused() -> None:
    other = bytes_tokenizer()
    other.add_tokens(["<extra>"])
    bundle = compile_chunks([Chunk("text")], other)
    with pytest.raises(BundleError, match="compiled with tokenizer 'bytes', and this model is run with"):
        engine().run(bundle)


def test_token_ids_beyond_the_model_are_refused() -> None:
    bundle = one_leaf()
    ids = bundle.input_ids.copy()
    ids[0] = 9999
    with pytest.raises(BundleError, match="token id 9999, and the model knows 260 ids"):
        engine().run(replace(bundle, input_ids=ids))


def test_out_of_memory_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(made.model, "forward", fail)
    with pytest.raises(ModelError, match="out of memory while running the graph") as error:
        made.run(one_leaf())
    assert "--dtype" in str(error.value)


def test_auto_takes_sdpa_for_small_graphs_on_a_cpu_and_flex_for_large_sparse_ones() -> None:
    auto = engine(attn="auto")
    assert auto.prefill_attention(one_leaf()) == "sdpa"
    docs = [Chunk("x" * 200, name=f"d{i}") for i in range(600)]
    large = compile_chunks([Chunk("q", parents=docs)], tokenizer(), positions="causal")
    assert auto.prefill_attention(large) == "flex"
    assert engine("gemma2", "auto").prefill_attention(large) == "eager"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Generate(stop="END"), "stop is 'END'"),  # type: ignore[arg-type]
        (Generate(stop=("",)), "stop.0 is ''"),
        (Generate(max_new_tokens=0), "max_new_tokens is 0"),
        (Generate(top_p=0.0), "top_p is 0.0"),
        (Generate(temperature=-1.0), "temperature is -1.0"),
    ],
)
def test_settings_that_no_graph_file_could_have_are_refused(how: Generate, said: str) -> None:
    with pytest.raises(InputError) as caught:
        engine().run(one_leaf(), how)
    assert [problem.message for problem in caught.value.problems] == [said]
