"""A disjoint union is its graphs side by side: each computes what it computes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks, compile_graph
from legraph.engine import Engine, RunResult
from legraph.errors import BundleError
from legraph.graph import Generate
from legraph.union import disjoint_union
from tests.random_graphs import bundles, content, dags, graphs, tokenizer
from tests.tiny_models import tiny_model

NEVER = frozenset[int]()


@st.composite
def short_runs(draw: st.DrawFn) -> Bundle:
    """Small graphs of any policy; inner chunks and leaves that generate a few tokens each."""
    graph = draw(graphs(dags(max_chunks=6, max_length=4)))
    chunks = [
        replace(chunk, generate=draw(st.none() | st.builds(Generate, st.integers(1, 5))))
        for chunk in graph.chunks
    ]
    return compile_graph(replace(graph, chunks=tuple(chunks)), tokenizer())


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Nothing ends a sequence, so that every branch has something to compare."""
    made = Engine(tiny_model("llama"), tokenizer(), "sdpa")
    made.end_ids = NEVER
    return made


def ids_of(result: RunResult, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: output.token_ids for name, output in result.outputs.items()}


def run_apart(engine: Engine, parts: list[Bundle], how: Generate) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for i, part in enumerate(parts):
        found |= ids_of(engine.run(part, how), f"g{i}.")
    return found


# Runs


@settings(max_examples=60)
@given(parts=st.lists(short_runs(), min_size=2, max_size=4))
def test_a_run_of_the_union_gives_what_each_graph_gives_alone(engine: Engine, parts: list[Bundle]):
    how = Generate(4)
    assert ids_of(engine.run(disjoint_union(parts), how)) == run_apart(engine, parts, how)


def inner_generation(positions: Any, length: int) -> Bundle:
    """A chunk that generates, two that see it, one of them pinned, and a leaf that sees those."""
    root = Chunk("root", name="root", generate=Generate(length))
    middle = Chunk("mid", name="mid", parents=[root], generate=Generate(2))
    pinned = Chunk("pin", name="pin", parents=[root], start=40)
    leaf = Chunk("end", name="end", parents=[middle, pinned], generate=Generate(6))
    return compile_chunks([leaf], tokenizer(), positions=positions)


@pytest.mark.parametrize("policies", [("causal", "flat"), ("flat", "causal", "local"), ("local", "flat")])
def test_mixed_policies_keep_the_positions_of_each(engine: Engine, policies: tuple[str, ...]):
    """Only under `causal` do children move when a parent ends early, and the pinned ones never do."""
    parts = [inner_generation(policy, 3 + i) for i, policy in enumerate(policies)]
    # Every token is a stop, so what generates ends after one token: under `causal` children move back.
    stops = (*map(chr, range(1, 128)), "\ufffd")
    parts = [
        replace(part, meta=replace(part.meta, generate={"root": Generate(9, stops), "end": Generate(6)}))
        for part in parts
    ]
    how = Generate(4)
    assert all(engine.run(part, how).outputs["root"].finish == "stop" for part in parts)
    assert ids_of(engine.run(disjoint_union(parts), how)) == run_apart(engine, parts, how)


def test_the_policy_matters_in_that_run(engine: Engine):
    """So the test above can fail: the same graph under another policy says something else."""
    by_policy = [inner_generation(policy, 3) for policy in ("causal", "flat", "local")]
    said = [str(ids_of(engine.run(bundle))) for bundle in by_policy]
    assert len(set(said)) == len(said)


def test_a_graph_stands_in_the_union_as_often_as_it_is_given(engine: Engine):
    part = inner_generation("causal", 3)
    outputs = ids_of(engine.run(disjoint_union([part] * 3)))
    alone = ids_of(engine.run(part))
    assert outputs == {f"g{i}.{name}": ids for i in range(3) for name, ids in alone.items()}


# What it is made of


@settings(max_examples=100)
@given(parts=st.lists(bundles(max_chunks=6, plain=False), min_size=1, max_size=5))
def test_the_mask_is_block_diagonal(parts: list[Bundle]):
    num_tokens = sum(map(len, parts))
    expected = np.zeros((num_tokens, num_tokens), dtype=np.bool_)
    at = 0
    for part in parts:
        expected[at : at + len(part), at : at + len(part)] = part.dense_mask()
        at += len(part)
    assert np.array_equal(disjoint_union(parts).dense_mask(), expected)


@settings(max_examples=60)
@given(parts=st.lists(bundles(max_chunks=6, plain=False), min_size=1, max_size=4))
def test_every_graph_can_be_taken_out_again(parts: list[Bundle]):
    union = disjoint_union(parts)
    for i, part in enumerate(parts):
        names = [f"g{i}.{name}" for name in part.span_names]
        again, alone = content(union.select(names)), content(part)
        for key in set(alone) - {"meta", "span_names"}:
            assert again[key] == alone[key]
        assert list(again["span_names"]) == names
        assert again["meta"].generate == {f"g{i}.{name}": how for name, how in part.meta.generate.items()}
        assert again["meta"].pinned >= {f"g{i}.{name}" for name in part.meta.pinned}


@settings(max_examples=30)
@given(parts=st.lists(bundles(max_chunks=6, plain=False), min_size=1, max_size=4))
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_union_is_a_bundle_that_can_be_saved(suffix: str, parts: list[Bundle], tmp_path_factory: Any):
    union = disjoint_union(parts)
    path = tmp_path_factory.mktemp("union") / f"bundle{suffix}"
    union.save(path)
    assert content(Bundle.load(path)) == content(union)


def named(name: str, positions: Any = "causal", **settings: Any) -> Bundle:
    return compile_chunks([Chunk("ab", name=name, **settings)], tokenizer(), positions=positions)


def test_a_union_of_one_policy_keeps_it_and_its_pinned_chunks():
    meta = disjoint_union([named("a", "flat", start=3), named("b", "flat")]).meta
    assert (meta.positions, meta.pinned) == ("flat", {"g0.a"})


def test_in_a_mixed_union_the_chunks_that_must_not_move_are_pinned_by_name():
    parts = [named("a", "flat"), named("b"), named("c", end=9), named("d", "local")]
    meta = disjoint_union(parts).meta
    assert (meta.positions, meta.pinned) == ("causal", {"g0.a", "g2.c", "g3.d"})


def test_the_source_hash_tells_which_graphs_and_in_which_order():
    a, b = named("a"), named("b")
    unions = [[a], [b], [a, b], [b, a], [a, a, b]]
    hashes = [disjoint_union(parts).meta.source_sha256 for parts in unions]
    assert len(set(hashes)) == len(hashes)
    assert disjoint_union([a, b]).meta.source_sha256 == hashes[2]
    assert all(len(each) == 64 for each in hashes)


def test_unions_of_unions_have_names_of_both():
    inner = disjoint_union([named("a"), named("b")])
    assert disjoint_union([inner, named("c")]).span_names == ("g0.g0.a", "g0.g1.b", "g1.c")


def test_prefixes_may_be_given():
    assert disjoint_union([named("a"), named("b")], ["", "x-"]).span_names == ("a", "x-b")


@pytest.mark.parametrize("learns", [(True, False), (False, True), (True, True), (False, False)])
def test_labels_lie_end_to_end_and_what_has_none_learns_nothing(learns: tuple[bool, bool]):
    parts = [named("a", loss=learn) for learn in learns]
    labels = disjoint_union(parts).labels
    if not any(learns):
        assert labels is None
        return
    expected = [label for learn in learns for label in ([-100, ord("b")] if learn else [-100, -100])]
    assert labels is not None and labels.dtype == np.int64 and labels.tolist() == expected


# Errors


def test_a_union_of_nothing_is_refused():
    with pytest.raises(BundleError, match="a union needs at least one bundle"):
        disjoint_union([])


def test_different_tokenizers_are_refused(word_tokenizer: Any):
    words = compile_chunks([Chunk("a")], word_tokenizer({"a": 97}))
    with pytest.raises(BundleError, match="the bundles were made with different tokenizers"):
        disjoint_union([named("a"), words])


@pytest.mark.parametrize("prefixes", [["", ""], ["x.", "x."], ["x", "xx"]])
def test_prefixes_that_do_not_keep_names_apart_are_refused(prefixes: list[str]):
    # "x" + "xa" and "xx" + "a" are one name.
    second = "a" if prefixes[1] == "xx" else "xa"
    with pytest.raises(BundleError, match="two chunks of the union have the same name"):
        disjoint_union([named("xa"), named(second)], prefixes)


@pytest.mark.parametrize("prefixes", [[], ["a."], ["a.", "b.", "c."]])
def test_there_is_one_prefix_for_each_bundle(prefixes: list[str]):
    with pytest.raises(BundleError, match=f"{len(prefixes)} prefixes for 2 bundles"):
        disjoint_union([named("a"), named("b")], prefixes)


@pytest.mark.parametrize("prefix", ["0.", "a b.", "é", "-", "x\n", "x" * 256])
def test_a_prefix_that_makes_a_name_no_name_is_refused(prefix: str):
    """Such a bundle could be saved, and would be refused when it is loaded."""
    with pytest.raises(BundleError, match="cannot be a chunk's name"):
        disjoint_union([named("a"), named("b")], ["fine.", prefix])


def test_nothing_is_changed_in_the_parts():
    parts = [inner_generation("causal", 2), inner_generation("flat", 3)]
    before = [content(part) for part in parts]
    union = disjoint_union(parts)
    union.input_ids[:] = 0
    union.parent_indices[:] = 0
    assert [content(part) for part in parts] == before


def test_sampling_in_a_union_draws_what_it_draws_alone(engine: Engine):
    parts = [compile_chunks([Chunk(text, name="q")], tokenizer()) for text in ("one", "two", "two")]
    how = Generate(max_new_tokens=6, temperature=1.5, seed=7)
    alone = run_apart(engine, parts, how)
    assert ids_of(engine.run(disjoint_union(parts), how)) == alone
    nested = disjoint_union([disjoint_union(parts[:1]), *parts[1:]], ["a.", "b.", "c."])
    drawn = ids_of(engine.run(nested, how))
    assert list(drawn.values()) == list(alone.values())
    assert drawn["b.q"] != ids_of(engine.run(parts[1], replace(how, seed=8)))["q"], "the seed matters"
