"""Token order and positions are what the rules say, worked out here chunk by chunk, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.blocks import active_blocks
from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks, compile_file, compile_graph
from legraph.errors import GraphError
from legraph.graph import Generate, Graph, GraphChunk
from legraph.layout import build_layout, start_after
from legraph.model import use_attention
from legraph.order import estimated_cost
from tests.marked import place_of, unmark
from tests.random_graphs import content, dags, graphs, tokenizer
from tests.tiny_models import tiny_model


def naive_order(graph: Graph) -> list[str]:
    """Looks through the chunks from the front for one whose parents are all placed, again and again."""
    placed: list[int] = []
    while len(placed) < len(graph.chunks):
        placed.append(
            next(
                i
                for i, chunk in enumerate(graph.chunks)
                if i not in placed and all(parent in placed for parent in chunk.parents)
            )
        )
    return [graph.chunks[i].name for i in placed]


def naive_positions(graph: Graph) -> dict[str, list[int]]:
    """Position ids of every chunk by its name. The texts are ASCII: a letter is a token."""
    by_name = {chunk.name: chunk for chunk in graph.chunks}
    parents = {chunk.name: [graph.chunks[i].name for i in chunk.parents] for chunk in graph.chunks}
    with_children = {name for row in parents.values() for name in row}
    positions: dict[str, list[int]] = {}
    used = 0
    for name in naive_order(graph):
        chunk = by_name[name]
        length = len(chunk.text or "")
        if chunk.start is not None:
            first = chunk.start
        elif chunk.end is not None:
            first = chunk.end - length
        elif graph.positions == "local":
            first = 0
        elif graph.positions == "flat":
            first = used
        else:
            first = max((positions[parent][-1] + 1 for parent in parents[name]), default=0)
        positions[name] = [first + step for step in range(length)]
        used += length
        if chunk.generate and name in with_children:
            used += chunk.generate.max_new_tokens
    return positions


def positions_by_name(bundle: Bundle) -> dict[str, list[int]]:
    return {name: bundle.position_ids[bundle.span(name)].tolist() for name in bundle.span_names}


@settings(max_examples=100)
@given(graph=graphs())
def test_among_the_chunks_that_are_ready_the_one_declared_first_comes_first(graph: Graph):
    assert list(compile_graph(graph, tokenizer()).span_names) == naive_order(graph)


@settings(max_examples=100)
@given(data=st.data())
@pytest.mark.parametrize("policy", ["causal", "flat", "local"])
def test_positions_follow_the_policy_and_explicit_starts_and_ends(policy: str, data: st.DataObject):
    graph = data.draw(graphs(policies=(policy,)))
    bundle = compile_graph(graph, tokenizer())
    assert bundle.position_ids.dtype == np.int64
    assert positions_by_name(bundle) == naive_positions(graph)


@given(graph=graphs(policies=("flat",), plain=True))
def test_flat_counts_the_tokens(graph: Graph):
    bundle = compile_graph(graph, tokenizer())
    assert bundle.position_ids.tolist() == list(range(len(bundle)))


def test_parallel_chunks_share_positions_and_their_child_follows_the_longer_one():
    root = Chunk("ab", name="root")
    sides = [Chunk("xyz", parents=[root], name="long"), Chunk("x", parents=[root], name="short")]
    leaf = Chunk("q", parents=sides, name="leaf")
    assert positions_by_name(compile_chunks([leaf], tokenizer())) == {
        "root": [0, 1],
        "long": [2, 3, 4],
        "short": [2],
        "leaf": [5],
    }


@pytest.mark.parametrize(
    "where, pinned, leaf",
    [({"start": 40}, [40, 41, 42], [43]), ({"end": 40}, [37, 38, 39], [40]), ({"end": 3}, [0, 1, 2], [3])],
    ids=["start", "end", "end at zero"],
)
def test_children_follow_an_explicit_position_under_causal(
    where: dict[str, int], pinned: list[int], leaf: list[int]
):
    root = Chunk("ab", name="root")
    moved = Chunk("xyz", parents=[root], name="moved", **where)
    bundle = compile_chunks([Chunk("q", parents=[root, moved], name="leaf")], tokenizer())
    assert positions_by_name(bundle) == {"root": [0, 1], "moved": pinned, "leaf": leaf}


@pytest.mark.parametrize("policy, last", [("flat", 6), ("local", 0)])
def test_an_explicit_position_moves_nobody_else_under_flat_and_local(policy: str, last: int):
    moved = Chunk("xyz", name="moved", start=90)
    leaf = Chunk("q", parents=[Chunk("abc", parents=[moved], name="middle")], name="leaf")
    bundle = compile_chunks([leaf], tokenizer(), positions=policy)  # pyright: ignore[reportArgumentType]
    assert positions_by_name(bundle)["moved"] == [90, 91, 92]
    assert positions_by_name(bundle)["leaf"] == [last]


def test_flat_keeps_room_for_what_a_chunk_with_children_generates():
    writer = Chunk("ab", name="writer", generate=Generate(max_new_tokens=10))
    other = Chunk("c", parents=[writer], name="child", generate=Generate(max_new_tokens=10))
    bundle = compile_chunks([other, Chunk("d", name="last")], tokenizer(), positions="flat")
    # The child is a leaf: what it generates stands after everything, so nothing waits for it.
    assert positions_by_name(bundle) == {"writer": [0, 1], "child": [12], "last": [13]}


@pytest.mark.parametrize(
    "policy, first", [("causal", 9), ("flat", 30), ("local", 0)], ids=["causal", "flat", "local"]
)
def test_the_first_position_depends_on_parents_place_or_nothing(policy: str, first: int):
    assert start_after([4, 9, 2], policy, 30) == first  # pyright: ignore[reportArgumentType]


def test_a_root_starts_at_zero():
    assert start_after([], "causal", 30) == 0


NEGATIVE = """\
legraph: 1
chunks:
  - name: fits
    text: abc
    end: 3
  - name: first
    text: abcd
    end: «3»
  - name: second
    parents: [first]
    text: ten chars.
    end: «1»
"""


def test_every_negative_position_is_reported_at_its_end(tmp_path: Path):
    text, places = unmark(NEGATIVE)
    path = tmp_path / "graph.yaml"
    path.write_text(text)
    with pytest.raises(GraphError) as caught:
        compile_file(path, tokenizer())
    assert [place_of(problem) for problem in caught.value.problems] == places
    assert [problem.message for problem in caught.value.problems] == [
        f"chunk {name!r} has {length} tokens, so its first position would be {first}: "
        "a position cannot be negative"
        for name, length, first in [("first", 4, -1), ("second", 10, -9)]
    ]
    assert [problem.expected for problem in caught.value.problems] == [
        "'end' of 4 or more",
        "'end' of 10 or more",
    ]


def test_a_negative_position_of_a_chunk_built_in_python_has_no_place():
    with pytest.raises(
        GraphError, match="chunk 'late' has 3 tokens, so its first position would be -1"
    ) as caught:
        compile_chunks([Chunk("abc", name="late", end=2)], tokenizer())
    assert [problem.source for problem in caught.value.problems] == [None]


def tokens_by_name(bundle: Bundle) -> list[int]:
    """Token indices of a bundle with its chunks sorted by name."""
    return [i for name in sorted(bundle.span_names) for i in range(len(bundle))[bundle.span(name)]]


# Long chunks too: a graph of one block has stretches to win only.
@settings(max_examples=100)
@given(graph=graphs(dags(max_length=60)))
def test_locality_moves_tokens_and_nothing_else(graph: Graph):
    declared, moved = (compile_graph(graph, tokenizer(), order=order) for order in ("declared", "locality"))
    assert set(declared.span_names) == set(moved.span_names)
    assert estimated_cost(moved.mask) <= estimated_cost(declared.mask)
    assert not np.triu(moved.dense_mask(), k=1).any(), "parents still come before their children"
    before, after = tokens_by_name(declared), tokens_by_name(moved)
    assert np.array_equal(declared.input_ids[before], moved.input_ids[after])
    assert np.array_equal(declared.position_ids[before], moved.position_ids[after])
    assert np.array_equal(
        declared.dense_mask()[np.ix_(before, before)], moved.dense_mask()[np.ix_(after, after)]
    )
    assert declared.meta == moved.meta


def scattered_pairs(num_pairs: int = 16) -> list[Chunk]:
    """Documents in the order of declaration, then for each a question that sees it alone."""
    docs = [Chunk("d" * 100, name=f"doc{i}") for i in range(num_pairs)]
    return [*docs, *(Chunk("q" * 28, parents=[doc], name=f"q{i}") for i, doc in enumerate(docs))]


@pytest.mark.parametrize("policy", ["causal", "flat", "local"])
def test_locality_puts_a_question_behind_its_document(policy: str):
    compiled = [
        compile_chunks(scattered_pairs(), tokenizer(), positions=policy, order=order)  # pyright: ignore
        for order in ("declared", "locality")
    ]
    declared, moved = compiled
    assert list(moved.span_names) == [name for i in range(16) for name in (f"doc{i}", f"q{i}")]
    # 100 + 28 tokens are one block, so each pair is a block of its own and no block lies off the diagonal.
    assert len(active_blocks(moved.mask)) == 16 < len(active_blocks(declared.mask))
    assert positions_by_name(moved) == positions_by_name(declared)


@pytest.mark.parametrize("names", ["short long", "long short"])
def test_locality_keeps_the_declared_order_where_it_is_as_good(names: str):
    """One of two children stands apart from its parent, whichever comes first."""
    root = Chunk("r", name="root")
    leaves = [Chunk(name * 9, name=name, parents=[root]) for name in names.split()]
    declared, moved = (compile_chunks(leaves, tokenizer(), order=order) for order in ("declared", "locality"))
    assert moved.span_names == ("root", *names.split())
    assert content(declared) == content(moved)


def test_locality_closes_gaps_within_a_block():
    docs = [Chunk("a", name="a"), Chunk("b", name="b")]
    questions = [Chunk("x", name="x", parents=[docs[1]]), Chunk("y", name="y", parents=[docs[0]])]
    moved = compile_chunks([*docs, *questions], tokenizer(), order="locality")
    assert moved.span_names == ("b", "x", "a", "y")
    assert len(moved.mask.intervals().starts) == 0


@settings(max_examples=40)
@given(graph=graphs(dags(max_length=40), plain=True), data=st.data())
def test_locality_does_not_depend_on_how_parents_are_listed(graph: Graph, data: st.DataObject):
    chunks = [
        GraphChunk(chunk.name, chunk.text, tuple(data.draw(st.permutations(chunk.parents))))
        for chunk in graph.chunks
    ]
    lengths = np.array([len(chunk.text or "") for chunk in chunks])
    orders = [
        build_layout(made, lengths, "locality").order
        for made in (graph, Graph(tuple(chunks), graph.positions))
    ]
    assert np.array_equal(*orders)


@pytest.mark.parametrize("order", ["declared", "locality"])
@pytest.mark.parametrize("chunks", [(), (GraphChunk("a", "abc"),)], ids=["no chunk", "one chunk"])
def test_the_smallest_graphs_have_a_layout(chunks: tuple[GraphChunk, ...], order: str):
    lengths = np.full(len(chunks), 3)
    layout = build_layout(Graph(chunks), lengths, order)  # pyright: ignore[reportArgumentType]
    assert layout.order.tolist() == list(range(len(chunks)))
    assert layout.position_ids.tolist() == list(range(3 * len(chunks)))


def logits_by_name(bundle: Bundle) -> dict[str, torch.Tensor]:
    """What a tiny model with eager attention says at each chunk's tokens: float32 [tokens, vocabulary]."""
    model = tiny_model("llama")
    use_attention(model, "eager")
    inputs = bundle.model_inputs("cpu", "eager", config=model.config)
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits[0]
    return {name: logits[bundle.span(name)] for name in bundle.span_names}


@settings(max_examples=60, deadline=None)
@given(graph=graphs())
def test_a_model_computes_the_same_under_locality(graph: Graph):
    declared, moved = (compile_graph(graph, tokenizer(), order=order) for order in ("declared", "locality"))
    expected, found = logits_by_name(declared), logits_by_name(moved)
    for name in declared.span_names:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="order is 'random'; expected one of declared, locality"):
        compile_chunks([Chunk("a")], tokenizer(), order="random")  # pyright: ignore[reportArgumentType]
