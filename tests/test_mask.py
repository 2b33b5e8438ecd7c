"""Every form of the mask says what the rule says, and none but the dense one is N x N."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.compiler import Chunk, compile_chunks, compile_graph
from legraph.graph import Graph
from legraph.mask import Intervals, SeenBy
from tests.random_graphs import Dag, brute_force_mask, dag_in_order, dags, drawn, graphs, tokenizer

DIAMOND = Dag((1, 2, 1, 2), ((), (0,), (0,), (1, 2)))


def seen_through(intervals: Intervals, dag: Dag) -> np.ndarray:
    """bool [N, N] from the definition of `Intervals`, one stretch after the other."""
    mask = np.zeros((dag.num_tokens, dag.num_tokens), dtype=np.bool_)
    chunk_of = [chunk for chunk, length in enumerate(dag.lengths) for _ in range(length)]
    for q, chunk in enumerate(chunk_of):
        mask[q, intervals.first[chunk] : q + 1] = True
        for i in range(intervals.offsets[chunk], intervals.offsets[chunk + 1]):
            mask[q, intervals.starts[i] : intervals.ends[i]] = True
    return mask


def test_a_diamond_hides_the_grandparent():
    assert drawn(DIAMOND.mask().dense()) == "\n".join(
        [
            "#.....",
            "##....",
            "###...",
            "#..#..",
            ".####.",
            ".#####",
        ]
    )


@settings(max_examples=100)
@given(graph=graphs())
def test_the_mask_of_a_compiled_graph_is_the_rule_applied_pair_by_pair(graph: Graph):
    bundle = compile_graph(graph, tokenizer())
    expected = brute_force_mask(dag_in_order(graph, bundle.span_names))
    dense = bundle.dense_mask()
    assert dense.dtype == np.bool_
    assert np.array_equal(dense, expected)
    assert not np.triu(dense, k=1).any(), "a topological order keeps the mask inside the causal one"


@settings(max_examples=100)
@given(dag=dags())
def test_visible_pairs_are_those_of_the_dense_mask(dag: Dag):
    mask, tokens = dag.mask(), np.arange(dag.num_tokens)
    assert np.array_equal(mask.visible(tokens[:, None], tokens), brute_force_mask(dag))


@given(dag=dags(max_chunks=8), data=st.data())
def test_visible_takes_two_integers_and_gives_a_bool(dag: Dag, data: st.DataObject):
    q, k = data.draw(st.tuples(*[st.integers(0, dag.num_tokens - 1)] * 2))
    for make in (int, np.int64, np.int32):
        answer = dag.mask().visible(make(q), make(k))
        assert type(answer) is bool
        assert answer == brute_force_mask(dag)[q, k]


def test_visible_broadcasts_like_numpy():
    mask, dense = DIAMOND.mask(), brute_force_mask(DIAMOND)
    assert np.array_equal(mask.visible(5, [0, 1, 5]), dense[5, [0, 1, 5]])
    assert np.array_equal(mask.visible([[4], [5]], 3), dense[[[4], [5]], 3])
    assert mask.visible(np.zeros((2, 0), dtype=int), 0).shape == (2, 0)


@pytest.mark.parametrize("q, k", [(-1, 0), (0, -1), (6, 0), (0, 6), ([0, 6], 0), (0, [[0], [-1]])])
def test_a_token_that_is_not_there_is_an_index_error(q: Any, k: Any):
    with pytest.raises(IndexError, match=r"token indices must lie in 0\.\.5"):
        DIAMOND.mask().visible(q, k)


@settings(max_examples=100)
@given(dag=dags())
def test_intervals_say_what_the_dense_mask_says(dag: Dag):
    assert np.array_equal(seen_through(dag.mask().intervals(), dag), brute_force_mask(dag))


@settings(max_examples=100)
@given(dag=dags())
def test_intervals_are_as_few_as_can_be(dag: Dag):
    """Counted in the dense mask: as many stretches as the row of the chunk's first token has runs of True."""
    intervals, dense = dag.mask().intervals(), brute_force_mask(dag)
    for chunk in range(len(dag.lengths)):
        row = dense[sum(dag.lengths[:chunk])].astype(int)
        num_runs = int((np.diff(row, prepend=0) == 1).sum())
        # One of the runs is the one that ends at the query itself.
        assert intervals.offsets[chunk + 1] - intervals.offsets[chunk] == num_runs - 1


@given(dag=dags())
def test_intervals_stand_in_order_and_never_touch(dag: Dag):
    intervals = dag.mask().intervals()
    for chunk in range(len(dag.lengths)):
        at = slice(intervals.offsets[chunk], intervals.offsets[chunk + 1])
        borders = [
            *np.stack([intervals.starts[at], intervals.ends[at]], axis=1).ravel(),
            intervals.first[chunk],
        ]
        assert all(low < high for low, high in pairwise(borders))


def test_a_question_over_neighbouring_documents_sees_one_stretch():
    dag = Dag((3,) * 500 + (4,), ((),) * 500 + (tuple(range(500)),))
    intervals = dag.mask().intervals()
    assert len(intervals.starts) == 0
    assert intervals.first[-1] == 0


def test_the_most_stretches_of_a_chunk_are_counted():
    # The last chunk sees 0, 2 and 4; with 4 directly before it, two stretches are left besides its own.
    dag = Dag((2,) * 6, ((),) * 5 + ((0, 2, 4),))
    assert dag.mask().intervals().max_per_chunk() == 2


def seen_through_columns(seen_by: SeenBy, dag: Dag) -> np.ndarray:
    """bool [N, N] from the definition of `SeenBy`, one stretch after the other."""
    mask = np.zeros((dag.num_tokens, dag.num_tokens), dtype=np.bool_)
    chunk_of = [chunk for chunk, length in enumerate(dag.lengths) for _ in range(length)]
    for k, chunk in enumerate(chunk_of):
        mask[k : seen_by.until[chunk], k] = True
        for i in range(seen_by.offsets[chunk], seen_by.offsets[chunk + 1]):
            mask[seen_by.starts[i] : seen_by.ends[i], k] = True
    return mask


@settings(max_examples=100)
@given(dag=dags())
def test_the_stretches_that_see_a_chunk_say_what_the_dense_mask_says(dag: Dag):
    assert np.array_equal(seen_through_columns(dag.mask().seen_by(), dag), brute_force_mask(dag))


@settings(max_examples=100)
@given(dag=dags())
def test_the_stretches_that_see_a_chunk_are_as_few_as_can_be(dag: Dag):
    """As many as the column of the chunk's last token has runs of True; one begins at the token itself."""
    seen_by, dense = dag.mask().seen_by(), brute_force_mask(dag)
    for chunk in range(len(dag.lengths)):
        column = dense[:, sum(dag.lengths[: chunk + 1]) - 1].astype(int)
        num_runs = int((np.diff(column, prepend=0) == 1).sum())
        assert seen_by.offsets[chunk + 1] - seen_by.offsets[chunk] == num_runs - 1


@given(dag=dags())
def test_the_stretches_that_see_a_chunk_stand_in_order_and_never_touch(dag: Dag):
    seen_by = dag.mask().seen_by()
    for chunk in range(len(dag.lengths)):
        at = slice(seen_by.offsets[chunk], seen_by.offsets[chunk + 1])
        borders = [
            seen_by.until[chunk],
            *np.stack([seen_by.starts[at], seen_by.ends[at]], axis=1).ravel(),
        ]
        assert all(low < high for low, high in pairwise(borders))


def test_in_a_tree_a_chunk_is_seen_up_to_the_end_of_its_subtree():
    """Chunks see all their ancestors. In depth-first order: 0 (1 (2, 3), 4 (5))."""
    dag = Dag((1, 2, 3, 4, 5, 6), ((), (0,), (0, 1), (0, 1), (0,), (0, 4)))
    seen_by = dag.mask().seen_by()
    assert seen_by.until.tolist() == [21, 10, 6, 10, 21, 21]
    assert len(seen_by.starts) == 0
    # By rows it is scattered: chunk 5 sees 0 and, directly before it, 4.
    assert dag.mask().intervals().max_per_chunk() == 1


@settings(max_examples=100)
@given(dag=dags())
def test_visible_pairs_are_counted_without_looking_at_them(dag: Dag):
    assert dag.mask().num_visible_pairs() == int(brute_force_mask(dag).sum())


@given(dag=dags())
def test_spans_and_parents_are_those_of_the_graph(dag: Dag):
    mask = dag.mask()
    assert (mask.num_chunks, mask.num_tokens) == (len(dag.lengths), dag.num_tokens)
    assert mask.num_edges == sum(map(len, dag.parents))
    tokens = [token for i in range(mask.num_chunks) for token in range(dag.num_tokens)[mask.span(i)]]
    assert tokens == list(range(dag.num_tokens))
    for i, (length, parents) in enumerate(zip(dag.lengths, dag.parents, strict=True)):
        assert len(range(dag.num_tokens)[mask.span(i)]) == length
        assert mask.parents(i).tolist() == list(parents)
        assert set(mask.chunk_of(range(dag.num_tokens)[mask.span(i)]).tolist()) == {i}


def large_graph(num_docs: int = 500, length: int = 400) -> list[Chunk]:
    """200,000 tokens in 500 documents, which every other question sees; a chain of questions at the end."""
    docs = [Chunk("d" * length) for _ in range(num_docs)]
    questions = [Chunk("q" * 9, parents=docs[i::2]) for i in range(2)]
    return [*docs, *questions, Chunk("end", parents=questions)]


def test_a_graph_of_200_000_tokens_never_needs_an_n_by_n_matrix():
    """A dense mask would take 40 GB, and 5 GB with one bit a pair. numpy reports to tracemalloc."""
    chunks = large_graph()
    # What imports need, once in a process, is no part of the answer.
    compile_chunks([Chunk("first")], tokenizer()).block_mask()
    tracemalloc.start()
    try:
        bundle = compile_chunks(chunks, tokenizer())
        block_mask = bundle.block_mask()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(bundle) == 200_021
    assert block_mask.shape == (1, 1, 200_021, 200_021)
    # Most of it are the tables of 1,563 x 1,563 blocks.
    assert peak < 100e6 < len(bundle) ** 2 / 8 / 50
