"""Folding: every chunk in one node, edges counted one by one, never a cycle, and what is folded is alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.bundle import Bundle
from legraph.errors import InputError
from legraph.fold import FoldedDag, fold
from legraph.graph import Generate
from tests.pictures import bundle_of, documents, full_tree, scattered
from tests.random_graphs import Dag, dags


def check(bundle: Bundle, dag: FoldedDag) -> None:
    """Everything that holds of any folding, found chunk by chunk and edge by edge."""
    in_nodes = [chunk for node in dag.nodes for chunk in node.chunks]
    assert sorted(in_nodes) == list(range(bundle.mask.num_chunks))
    counted = dict[tuple[int, int], int]()
    node_of = {chunk: at for at, node in enumerate(dag.nodes) for chunk in node.chunks}
    assert [node_of[chunk] for chunk in range(len(node_of))] == dag.node_of.tolist()
    for child in range(bundle.mask.num_chunks):
        for parent in bundle.parents(child).tolist():
            ends = node_of[parent], node_of[child]
            if ends[0] != ends[1]:
                counted[ends] = counted.get(ends, 0) + 1
    # Nodes stand in a topological order: so there is no cycle.
    assert all(parent < child for parent, child in counted)
    assert dict(zip(map(tuple, dag.edges.tolist()), dag.num_edges.tolist(), strict=True)) == counted
    for node in dag.nodes:
        assert list(node.chunks) == sorted(node.chunks)
        assert (node.kind == "chunk") == (len(node.chunks) == 1)
        spans = [bundle.span(chunk) for chunk in node.chunks]
        assert node.num_tokens == sum(span.stop - span.start for span in spans)


def relatives(bundle: Bundle) -> tuple[list[set[int]], list[set[int]]]:
    parents = [set(bundle.parents(i).tolist()) for i in range(bundle.mask.num_chunks)]
    children: list[set[int]] = [
        {child for child, row in enumerate(parents) if i in row} for i in range(len(parents))
    ]
    return parents, children


def labels(dag: FoldedDag) -> list[str]:
    return [node.label for node in dag.nodes]


@given(dag=dags(), most=st.integers(1, 30))
def test_any_graph_folds_into_as_few_nodes_as_asked_for(dag: Dag, most: int) -> None:
    bundle = bundle_of(dag.lengths, dag.parents)
    folded = fold(bundle, most)
    check(bundle, folded)
    assert len(folded.nodes) <= most
    if bundle.mask.num_chunks <= most:
        assert labels(folded) == list(bundle.span_names)
        assert folded.edges.tolist() == [
            [parent, child] for child, row in enumerate(dag.parents) for parent in row
        ]


@given(dag=dags(), most=st.integers(1, 30))
def test_alike_chunks_have_the_same_parents_and_children(dag: Dag, most: int) -> None:
    bundle = bundle_of(dag.lengths, dag.parents)
    parents, children = relatives(bundle)
    for node in fold(bundle, most).nodes:
        if node.kind == "alike":
            first = node.chunks[0]
            assert all(parents[i] == parents[first] for i in node.chunks)
            assert all(children[i] == children[first] for i in node.chunks)


@given(dag=dags(), most=st.integers(1, 30))
def test_a_chain_is_entered_at_its_first_link_and_left_at_its_last_one(dag: Dag, most: int) -> None:
    """Who sees a link from outside sees the last one too; what a link sees outside, the first one sees too.

    A link may be several alike chunks, so first and last links are those without one before or after them.
    """
    bundle = bundle_of(dag.lengths, dag.parents)
    parents, children = relatives(bundle)
    for node in fold(bundle, most).nodes:
        if node.kind == "chain":
            inside = set(node.chunks)
            firsts = [i for i in inside if not parents[i] & inside]
            lasts = [i for i in inside if not children[i] & inside]
            assert firsts
            assert lasts
            for i in inside:
                assert all(parents[i] - inside <= parents[first] for first in firsts)
                assert all(children[i] - inside <= children[last] for last in lasts)


def test_alike_documents_are_one_node() -> None:
    bundle = documents(500, 10)
    dag = fold(bundle)
    check(bundle, dag)
    assert labels(dag) == ["bos", "doc[0..499] x500", "question"]
    assert [node.kind for node in dag.nodes] == ["chunk", "alike", "chunk"]
    assert dag.edges.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert dag.num_edges.tolist() == [500, 1, 500]


def test_nothing_is_folded_up_to_the_limit() -> None:
    assert len(fold(documents(58, 2)).nodes) == 60
    assert len(fold(documents(59, 2)).nodes) == 3
    assert len(fold(documents(59, 2), 61).nodes) == 61


@pytest.mark.parametrize(
    "parents",
    [
        [[i - 1] if i else [] for i in range(256)],
        [list(range(i)) for i in range(256)],
        [[0, i - 1] if i > 1 else [0][:i] for i in range(256)],
    ],
    ids=["each sees the one before", "each sees all before", "each sees the first and the one before"],
)
def test_a_chain_keeps_its_ends(parents: list[list[int]]) -> None:
    bundle = bundle_of([1] * 256, parents)
    dag = fold(bundle)
    check(bundle, dag)
    assert [node.kind for node in dag.nodes].count("chain") == 1
    assert len(dag.nodes) <= 4
    assert dag.node_of[[0, 255]].tolist() == [0, len(dag.nodes) - 1]
    assert [node.kind for node in (dag.nodes[:1] + dag.nodes[-1:])] == ["chunk", "chunk"]


def test_many_chains_lose_their_ends_where_there_is_no_room_for_them() -> None:
    rows: list[list[int]] = [[]]
    for chain in range(30):
        rows += [[0 if link == 0 else 1 + chain * 9 + link - 1] for link in range(9 - chain % 2)]
        rows += [[]] * (chain % 2)
    bundle = bundle_of([1] * len(rows), rows)
    dag = fold(bundle, 50)
    check(bundle, dag)
    assert [node.kind for node in dag.nodes].count("chain") == 30


def test_questions_and_their_answers_stay_apart() -> None:
    names = ["bos"] + [f"{word}{i}" for i in range(500) for word in ("question", "answer")]
    rows = [[]] + [row for i in range(500) for row in ([0], [0, 2 * i + 1])]
    bundle = bundle_of([1] * 1001, rows, names)
    dag = fold(bundle)
    check(bundle, dag)
    assert labels(dag) == ["bos", "question[0..499] x500", "answer[0..499] x500"]
    assert [node.kind for node in dag.nodes] == ["chunk", "layer", "layer"]
    assert dag.num_edges.tolist() == [500, 500, 500]


def test_a_tree_folds_by_its_depths() -> None:
    bundle = full_tree(1023, 3)
    dag = fold(bundle)
    check(bundle, dag)
    assert [len(node.chunks) for node in dag.nodes] == [2**depth for depth in range(10)]
    assert dag.nodes[9].label == "c[511..1022] x512"


def test_too_many_depths_become_bands() -> None:
    bundle = scattered(1000, 2)
    for most in (1, 2, 7, 60):
        dag = fold(bundle, most)
        check(bundle, dag)
        assert len(dag.nodes) <= most


def test_chunks_that_generate_are_not_folded_with_others_of_their_kind() -> None:
    bundle = bundle_of([1] * 101, [[], *[[0]] * 100])
    generate = {f"c{i}": Generate(8 if i < 40 else 16) for i in range(1, 81)}
    bundle = replace(bundle, meta=replace(bundle.meta, generate=generate))
    nodes = fold(bundle).nodes
    assert [(len(node.chunks), node.generates, node.max_new_tokens) for node in nodes] == [
        (1, False, 0),
        (39, True, 8),
        (41, True, 16),
        (20, False, 0),
    ]


def test_names_without_a_common_word_are_told_by_the_first_and_the_last() -> None:
    names = [f"{chr(97 + i)}{'x' * (i % 7)}" for i in range(26)]
    (node,) = fold(bundle_of([1] * 26, [[]] * 26, names), 5).nodes
    assert node.label == "a … zxxxx x26"


def test_a_picture_of_no_nodes_is_refused() -> None:
    with pytest.raises(InputError, match="at most 0 nodes"):
        fold(documents(2, 1), 0)


def test_arrays_have_their_types() -> None:
    for most in (1, 60):
        dag = fold(documents(2, 1), most)
        assert dag.edges.dtype == dag.num_edges.dtype == dag.node_of.dtype == np.int64
        assert dag.edges.shape == (len(dag.num_edges), 2)
