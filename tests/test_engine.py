"""The engine against an oracle that knows no cache: it lays the whole graph out again for every new token."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.branch import Piece
from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine
from legraph.errors import BundleError, InputError, ModelError
from legraph.graph import Generate
from legraph.result import RunResult
from legraph.tokens import bytes_tokenizer
from tests.naive import check_logits, counts, engine, ids_of, oracle, run_and_check, watched
from tests.random_graphs import content, running, tokenizer


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


@cache
def shared(name: str = "llama", attn: str = "auto", prefill_tokens: int | None = None) -> Engine:
    """Engines without a store keep nothing from run to run, so tests may share them."""
    return engine(name, attn, prefill_tokens=prefill_tokens)


@pytest.mark.parametrize("attn", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("make", [one_leaf, four_leaves])
@pytest.mark.parametrize("name", ["llama", "llama-gqa", "qwen3", "gpt-neox", "gemma3", "phi3"])
def test_greedy_decoding_equals_recomputing_everything(name: str, make: Any, attn: str) -> None:
    bundle = make()
    result = run_and_check(shared(name, attn), bundle, Generate(max_new_tokens=12))
    assert ids_of(result) == oracle(name, bundle, counts(bundle, 12))


@pytest.mark.parametrize("name", ["gptj", "cohere", "smollm3", "opt", "llama-dynamic", "llama-yarn"])
def test_models_of_other_kinds_decode_right_too(name: str) -> None:
    bundle = four_leaves()
    result = run_and_check(shared(name), bundle, Generate(max_new_tokens=9))
    assert ids_of(result) == oracle(name, bundle, counts(bundle, 9))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_decoding_after_a_prefill_with_flex_equals_recomputing_everything(name: str) -> None:
    made = shared(name, "flex")
    bundle = four_leaves()
    result = run_and_check(made, bundle, Generate(max_new_tokens=9))
    assert ids_of(result) == oracle(name, bundle, counts(bundle, 9))
    assert made.compilations() == {"flex": 1, "cuda_graphs": 0}


@pytest.mark.parametrize("name", ["mistral-window", "gemma2", "gpt-oss"])
def test_windows_hold_while_decoding(name: str) -> None:
    bundle = four_leaves()
    result = run_and_check(shared(name), bundle, Generate(max_new_tokens=9))
    assert ids_of(result) == oracle(name, bundle, counts(bundle, 9))


@pytest.mark.parametrize("name", ["llama", "llama-gqa", "mistral-window", "gemma2", "gpt-oss", "gpt2"])
def test_our_own_attention_runs_these_models(name: str) -> None:
    """Else all of the above would compare transformers' attention with itself."""
    with watched(shared(name).model):
        shared(name).run(one_leaf(), Generate(max_new_tokens=2))
        assert shared(name).model.config._attn_implementation == "legraph_flat_attention"


@settings(max_examples=60, deadline=None)
@given(
    bundle=running(),
    attn=st.sampled_from(["auto", "auto", "sdpa", "eager"]),
    prefill_tokens=st.sampled_from([None, 1, 3, 7]),
    name=st.sampled_from(["llama", "llama", "llama-gqa", "mistral-window"]),
)
def test_any_chunk_may_generate_and_prefill_in_parts_is_the_same(
    bundle: Bundle, attn: str, prefill_tokens: int | None, name: str
) -> None:
    """Random DAGs in which random chunks generate random numbers of tokens, inner ones and leaves."""
    result = run_and_check(shared(name, attn, prefill_tokens), bundle, Generate(max_new_tokens=3))
    assert ids_of(result) == oracle(name, bundle, counts(bundle, 3))


@settings(max_examples=25, deadline=None)
@given(
    graphs=st.lists(running(max_chunks=5), min_size=2, max_size=4),
    prefill_tokens=st.sampled_from([None, 1, 3, 7]),
)
def test_graphs_side_by_side_give_what_they_give_alone(
    graphs: list[Bundle], prefill_tokens: int | None
) -> None:
    results = shared("llama", "auto", prefill_tokens).run(graphs, Generate(max_new_tokens=3))
    for bundle, result in zip(graphs, results, strict=True):
        assert ids_of(result) == oracle("llama", bundle, counts(bundle, 3))


def test_graphs_side_by_side_share_their_passes() -> None:
    with watched(shared().model) as seen:
        shared().run([four_leaves(), one_leaf(), four_leaves()], Generate(max_new_tokens=5))
    assert seen.passes == [2 * len(four_leaves()) + len(one_leaf()), 9, 9, 9, 9]


def test_no_pass_has_more_tokens_than_was_asked_for() -> None:
    bundle = four_leaves()
    with watched(shared().model) as seen:
        shared("llama", "auto", 7).run(bundle, Generate(max_new_tokens=2))
    # While a branch generates, decoding and prefill take turns.
    assert max(seen.passes) == 7
    assert sum(seen.passes) == len(bundle) + len(bundle.leaves)


def test_a_long_prefill_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = four_leaves()
    whole = shared().run(bundle)
    monkeypatch.setattr("legraph.forward._MAX_MASK_ENTRIES", 200)
    with watched(shared().model) as seen:
        assert ids_of(shared().run(bundle)) == ids_of(whole)
    assert max(seen.passes) < 10


def test_pinned_chunks_do_not_move_and_others_do() -> None:
    """A fork that generates 4 tokens; one child is pinned at position 40, the other follows."""
    root = Chunk("root", name="root", generate=Generate(max_new_tokens=4))
    pinned = Chunk("pinned", parents=[root], name="pinned", start=40)
    free = Chunk("free", parents=[root], name="free")
    bundle = compile_chunks([pinned, free], tokenizer())
    counts = {"root": 4, "pinned": 6, "free": 6}
    assert ids_of(shared().run(bundle, Generate(max_new_tokens=6))) == oracle("llama", bundle, counts)


def test_flat_positions_keep_the_room_that_was_reserved() -> None:
    root = Chunk("root", name="root", generate=Generate(max_new_tokens=4))
    bundle = compile_chunks([Chunk("leaf", parents=[root], name="leaf")], tokenizer(), positions="flat")
    assert bundle.position_ids.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    counts = {"root": 4, "leaf": 5}
    assert ids_of(shared().run(bundle, Generate(max_new_tokens=5))) == oracle("llama", bundle, counts)


def test_an_end_token_ends_a_branch_and_is_not_part_of_it() -> None:
    bundle = four_leaves()
    free = ids_of(shared().run(bundle, Generate(max_new_tokens=8)))
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
    free = shared().run(bundle, Generate(max_new_tokens=24)).outputs["q"]
    stop = free.text[3:5]
    assert len(stop) == 2
    stopped = shared().run(bundle, Generate(max_new_tokens=24, stop=(stop,))).outputs["q"]
    assert stopped.finish == "stop"
    assert stop in stopped.text
    assert free.text.startswith(stopped.text)
    assert stop not in stopped.text[:-1]


def test_a_childs_view_ends_where_its_parent_stopped() -> None:
    """The last token of a chunk is computed for its children although the chunk itself no longer needs it."""
    root = Chunk("root", name="root", generate=Generate(max_new_tokens=1))
    bundle = compile_chunks([Chunk("leaf", parents=[root], name="leaf")], tokenizer())
    counts = {"root": 1, "leaf": 4}
    assert ids_of(shared().run(bundle, Generate(max_new_tokens=4))) == oracle("llama", bundle, counts)


def test_streamed_pieces_add_up_to_the_outputs() -> None:
    bundle = four_leaves()
    events = list(shared().stream(bundle, Generate(max_new_tokens=10)))
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
    assert [piece.chunk for piece in pieces[:4]] == ["l1", "l2", "l3", "l4"]


def test_sampling_depends_on_seed_and_chunk_only() -> None:
    """A branch draws the same tokens with and without others beside it, and others with another seed."""
    hot = Generate(max_new_tokens=12, temperature=1.0, seed=1)
    bundle = four_leaves()
    together = ids_of(shared().run(bundle, hot))
    assert together == ids_of(shared().run(bundle, hot))
    alone = ids_of(shared().run(bundle.with_parents("l3"), hot))
    assert alone["l3"] == together["l3"]
    assert ids_of(shared().run(bundle, replace(hot, seed=2)))["l3"] != together["l3"]


def test_positions_beyond_the_model_are_refused_before_the_run() -> None:
    bundle = compile_chunks([Chunk("x" * 70)], tokenizer())
    with pytest.raises(
        ModelError, match="the graph uses position 69, and the model knows positions up to 63"
    ):
        shared("gpt2").run(bundle)


def test_generation_ends_at_the_last_position_the_model_knows() -> None:
    bundle = compile_chunks([Chunk("x" * 60, name="x")], tokenizer())
    output = shared("gpt2").run(bundle, Generate(max_new_tokens=50)).outputs["x"]
    # Positions 60, 61, 62 can be fed; the token drawn at 62 would be the one at 63, the last.
    assert len(output.token_ids) == 4
    assert output.finish == "length"


def test_a_bundle_of_another_tokenizer_is_refused() -> None:
    other = bytes_tokenizer()
    other.add_tokens(["<extra>"])
    bundle = compile_chunks([Chunk("text")], other)
    with pytest.raises(BundleError, match="compiled with tokenizer 'bytes', and this model is run with"):
        shared().run(bundle)


def test_token_ids_beyond_the_model_are_refused() -> None:
    bundle = one_leaf()
    ids = bundle.input_ids.copy()
    ids[0] = 9999
    with pytest.raises(BundleError, match="token id 9999, and the model knows 260 ids"):
        shared().run(replace(bundle, input_ids=ids))


# Out of memory.


def run_out_above(made: Engine, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every pass of more than `most` tokens runs out of memory. Returns the sizes of passes, as they come."""
    forward, sizes = made.model.forward, list[int]()

    def limited(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].shape[1])
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(*args, **kwargs)

    monkeypatch.setattr(made.model, "forward", limited)
    return sizes


def long_graph(letters: str = "abc") -> Bundle:
    """Three documents of 150 tokens, and a question of 6."""
    docs = [Chunk(letter * 150, name=letter) for letter in letters]
    return compile_chunks([Chunk("which?", parents=docs, name="q")], tokenizer())


@pytest.mark.parametrize("kv", [False, True])
def test_a_prefill_that_runs_out_of_memory_is_halved(kv: bool, tmp_path: Path, monkeypatch: Any) -> None:
    made = engine(kv=tmp_path) if kv else engine()
    bundle = long_graph()
    sizes = run_out_above(made, 120, monkeypatch)
    with watched(made.model) as seen:
        result = made.run(bundle, Generate(max_new_tokens=4))
    # What is asked of the model once, about its keys, comes first. Then all of it; one document, which is
    # what fits into a half; and parts of a quarter.
    assert sizes[sizes.index(456) :] == [456, 150, 114, 36, 114, 36, 114, 42, 1, 1, 1]
    # It stays so: the next run does not try again what cannot work.
    del sizes[:]
    made.run(long_graph("xyz"), Generate(max_new_tokens=1))
    assert max(sizes) == 114 and sum(sizes) == 456
    monkeypatch.undo()
    check_logits(made.model, bundle, result, seen)


def test_a_pass_that_cannot_be_made_small_enough_says_so_and_hurts_nobody(monkeypatch: Any) -> None:
    made = engine()
    free = made.run(one_leaf(), Generate(max_new_tokens=5))
    num_free = made._scheduler.pool.num_free
    with monkeypatch.context() as patch:
        sizes = run_out_above(made, 0, patch)
        with pytest.raises(ModelError, match=r"out of memory in a pass of 64 tokens over \d+") as error:
            made.run(long_graph())
        assert sizes == [456, 150, 114, 64]
    assert "--dtype" in str(error.value)
    assert made._scheduler.pool.num_free >= num_free
    assert ids_of(made.run(one_leaf(), Generate(max_new_tokens=5))) == ids_of(free)


def test_running_out_of_memory_while_decoding_says_so(monkeypatch: Any) -> None:
    made = engine()
    submission = made.submit(one_leaf())
    events = submission.events()
    next(events)
    with monkeypatch.context() as patch:
        run_out_above(made, 0, patch)
        with pytest.raises(ModelError, match="out of memory while decoding 1 branches over") as error:
            list(events)
    assert "--dtype" in str(error.value)
    made.run(one_leaf())


def test_a_cache_that_does_not_fit_says_how_large_it_would_be(monkeypatch: Any) -> None:
    made = engine()
    # The model would end the generation at its last position.
    monkeypatch.setattr(made.model.config, "max_position_embeddings", 10**9)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("legraph.forward.FlatCache", fail)
        # 456 + 3,000,000 and slot 0, rounded up to eighths of 2^21: 3,145,728. A token has keys and values of
        # 4 heads of 16 channels in 2 layers, 1,024 bytes.
        with pytest.raises(ModelError, match=r"out of memory: 3,000,457 tokens need 3\.0 GiB") as error:
            made.run(long_graph(), Generate(max_new_tokens=3_000_000))
        assert "--max-new-tokens" in str(error.value)
    assert len(made.run(long_graph(), Generate(max_new_tokens=2)).outputs["q"].token_ids) == 2


# The graph that comes out.


@settings(max_examples=25, deadline=None)
@given(bundle=running(), suffix=st.sampled_from([".npz", ".pt"]))
def test_the_finished_graph_is_a_bundle_that_runs_on(
    bundle: Bundle, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its leaves go on where they stopped: as if they had been asked for more at once."""
    first = shared().run(bundle, Generate(max_new_tokens=3))
    path = tmp_path_factory.mktemp("finished") / f"finished{suffix}"
    first.bundle.save(path)
    loaded = Bundle.load(path)
    assert content(loaded) == content(first.bundle)
    assert loaded.span_names == bundle.span_names
    for name, ids in ids_of(first).items():
        text = bundle.input_ids[bundle.span(name)].tolist()
        assert loaded.input_ids[loaded.span(name)].tolist() == text + ids
    assert loaded.meta.generate == {}
    leaves = {bundle.span_names[i] for i in bundle.leaves}
    second = run_and_check(shared(), loaded, Generate(max_new_tokens=2))
    assert set(second.outputs) == leaves
    more = counts(bundle, 3)
    assert ids_of(second) == {
        name: ids[-2:]
        for name, ids in oracle("llama", bundle, more | {leaf: more[leaf] + 2 for leaf in leaves}).items()
        if name in leaves
    }


def test_a_finished_graph_in_numbers() -> None:
    root = Chunk("root", name="root", generate=Generate(max_new_tokens=3))
    leaf = Chunk("leaf", parents=[root], name="leaf")
    bundle = compile_chunks([leaf], tokenizer())
    result = shared().run(bundle, Generate(max_new_tokens=2))
    finished = result.bundle
    assert finished.span_offsets.tolist() == [0, 7, 13]
    assert finished.position_ids.tolist() == list(range(13))
    assert finished.dense_mask().tolist() == np.tri(13, dtype=bool).tolist()
    assert finished.input_ids[4:7].tolist() == list(result.outputs["root"].token_ids)
    assert finished.input_ids[11:].tolist() == list(result.outputs["leaf"].token_ids)


# Compilations.


def test_many_graphs_need_few_compilations() -> None:
    """100 graphs of 100 shapes: what is compiled depends on rounded sizes, never on a graph."""
    made = shared("llama", "flex")
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    for i in range(100):
        docs = [Chunk("x" * (1 + (7 * i + j) % 23), name=f"d{j}") for j in range(1 + i % 6)]
        # A question sees one stretch of documents, so that all masks are of one kind.
        bundle = compile_chunks([Chunk("q" * (1 + i % 9), parents=docs, name="q")], tokenizer())
        made.run(bundle, Generate(max_new_tokens=1))
    assert made.compilations() == {"flex": 1, "cuda_graphs": 0}
    assert stats["unique_graphs"] - before <= 2


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
        shared().run(one_leaf(), how)
    assert [problem.message for problem in caught.value.problems] == [said]
