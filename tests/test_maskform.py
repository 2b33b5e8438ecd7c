"""Which form a graph gets, and that it is the cheapest one that tells all."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings

from legraph.maskform import (
    ADJACENCY,
    BITS,
    MAX_ADJACENCY_CHUNKS,
    STRETCH_FORMS,
    MaskForm,
    bounds,
    cheapest_form,
    forms_of,
)
from tests.mask_forms import ALL_FORMS, form_id, graph_of, no_table_where_bits_are_wanted  # noqa: F401
from tests.random_graphs import Dag, brute_force_mask, dags


def num_runs(line: np.ndarray) -> int:
    """Runs of True in a row or column of the mask, without the one at the token itself."""
    return int((np.diff(line.astype(int), prepend=0) == 1).sum()) - 1


def most_by_query(dag: Dag) -> int:
    dense, ends = brute_force_mask(dag), np.cumsum(dag.lengths)
    return max(num_runs(dense[end - length]) for end, length in zip(ends, dag.lengths, strict=True))


def most_by_key(dag: Dag) -> int:
    dense, ends = brute_force_mask(dag), np.cumsum(dag.lengths)
    return max(num_runs(dense[:, end - 1]) for end in ends)


def tree_in_order(depth: int) -> list[tuple[int, ...]]:
    """The ancestors of every node of a full binary tree, in depth-first order."""
    found: list[tuple[int, ...]] = []

    def visit(ancestors: tuple[int, ...]) -> None:
        node = len(found)
        found.append(ancestors)
        if len(ancestors) + 1 < depth:
            visit((*ancestors, node))
            visit((*ancestors, node))

    visit(())
    return found


@pytest.mark.parametrize("form", ALL_FORMS, ids=form_id)
def test_every_form_has_a_graph_that_needs_it(form: MaskForm):
    assert cheapest_form(graph_of(form).mask()) == form


def test_forms_stand_in_order_of_what_they_read():
    """By hand: `first` or `until` or both, and a start and an end for each stretch."""
    reads = [(form.name, form.query_stretches, form.key_stretches, form.num_reads) for form in STRETCH_FORMS]
    assert reads == [
        ("query", 0, 0, 1),
        ("key", 0, 0, 1),
        ("query", 1, 0, 3),
        ("key", 0, 1, 3),
        ("query", 2, 0, 5),
        ("key", 0, 2, 5),
        ("mixed", 1, 1, 6),
        ("query", 4, 0, 9),
        ("key", 0, 4, 9),
        ("mixed", 2, 2, 10),
        ("mixed", 4, 4, 18),
    ]


@settings(max_examples=100)
@given(dag=dags())
def test_a_graph_has_the_pure_forms_that_runs_in_its_dense_mask_allow(dag: Dag):
    forms = set(forms_of(dag.mask()))
    by_query, by_key = most_by_query(dag), most_by_key(dag)
    for most in (0, 1, 2, 4):
        assert (MaskForm("query", query_stretches=most) in forms) == (by_query <= most)
        assert (MaskForm("key", key_stretches=most) in forms) == (by_key <= most)
    assert {ADJACENCY, BITS} <= forms


@settings(max_examples=100)
@given(dag=dags())
def test_the_cheapest_form_is_the_first_of_those_a_graph_has(dag: Dag):
    forms = list(forms_of(dag.mask()))
    assert cheapest_form(dag.mask()) == forms[0]
    assert all(one.num_reads <= other.num_reads for one, other in pairwise(forms[:-2]))


def hands_over(dag: Dag, most: int) -> bool:
    """Whether keys could tell, in `most` stretches each, the edges of queries that need more than that."""
    dense, num_chunks = brute_force_mask(dag), len(dag.lengths)
    starts = [sum(dag.lengths[:i]) for i in range(num_chunks)]
    too_many = [num_runs(dense[start]) > most for start in starts]
    for key in range(num_chunks):
        handed = [too_many[child] and key in dag.parents[child] for child in range(num_chunks)]
        if num_runs(np.array(handed)) + 1 > most:
            return False
    return True


@settings(max_examples=100)
@given(dag=dags())
def test_a_graph_is_mixed_at_least_where_keys_can_tell_what_is_too_much_for_queries(dag: Dag):
    forms = set(forms_of(dag.mask()))
    for most in (1, 2, 4):
        assert not hands_over(dag, most) or MaskForm("mixed", most, most) in forms


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_a_tree_in_depth_first_order_is_told_by_the_end_of_each_subtree(depth: int):
    parents = tree_in_order(depth)
    dag = Dag(tuple(i % 3 + 1 for i in range(len(parents))), tuple(parents))
    told = bounds(dag.mask(), MaskForm("key"))
    num_in_subtree = [1 + sum(node in ancestors for ancestors in parents) for node in range(len(parents))]
    assert told.until.tolist() == [sum(dag.lengths[: i + num]) for i, num in enumerate(num_in_subtree)]
    assert told.by_query.size == told.by_key.size == 0
    assert cheapest_form(dag.mask()) == MaskForm("key")


@pytest.mark.parametrize("num_seen, form", [(50, MaskForm("query")), (30, MaskForm("query", 1))])
def test_a_question_over_documents_is_told_by_its_query(num_seen: int, form: MaskForm):
    """50 documents, of which the question sees the first ones or all."""
    dag = Dag((3,) * 50 + (4,), ((),) * 50 + (tuple(range(num_seen)),))
    assert cheapest_form(dag.mask()) == form


def test_documents_of_several_sources_with_scattered_questions_are_mixed():
    """4 headers; 60 documents in random order, each of which sees the header of its source; 2 questions
    between them, each about a third of the documents that come first."""
    chance = random.Random(0)
    parents: list[tuple[int, ...]] = [()] * 4 + [(chance.randrange(4),) for _ in range(60)]
    questions = [44, 54]
    for place in questions:
        parents.insert(place, tuple(sorted(chance.sample(range(5, 44), 13))))
    dag = Dag(tuple(chance.randint(1, 4) for _ in parents), tuple(parents))
    assert most_by_query(dag) > 4 and most_by_key(dag) > 4
    form = cheapest_form(dag.mask())
    assert form.name == "mixed"
    told = bounds(dag.mask(), form)
    # A document's query tells its header and a question's query tells nothing; keys the other way round.
    num_by_query, num_by_key = ((each[:, 1] > each[:, 0]).sum(0) for each in (told.by_query, told.by_key))
    assert num_by_query.max() == 1 and num_by_query[questions].max() == 0
    assert num_by_key[:4].max() == 0 and num_by_key.max() == 2


def test_a_dense_random_graph_is_a_table():
    chance = random.Random(0)
    parents = tuple(tuple(k for k in range(i) if chance.random() < 0.5) for i in range(60))
    assert cheapest_form(Dag((2,) * 60, parents).mask()) == ADJACENCY


@pytest.mark.parametrize("num_more, form", [(0, ADJACENCY), (1, BITS)])
def test_a_graph_of_very_many_chunks_is_in_bits(num_more: int, form: MaskForm):
    chance = random.Random(0)
    parents = [tuple(k for k in range(i) if chance.random() < 0.5) for i in range(60)]
    parents += [()] * (MAX_ADJACENCY_CHUNKS - 60 + num_more)
    assert cheapest_form(Dag((2,) * len(parents), tuple(parents)).mask()) == form


def test_turns_go_on_until_nothing_changes():
    """6 questions see a glossary, and 5 scattered documents each that no other one sees. The glossary is too
    much for its key, and what a question sees is too much for its query, until the documents' keys have told
    their part."""
    parents: list[tuple[int, ...]] = [()] * 33
    for question in range(6):
        parents += [(0, *range(2 + question, 32, 6)), ()]
    dag = Dag((1,) * len(parents), tuple(parents))
    assert (most_by_query(dag), most_by_key(dag)) == (6, 6)
    assert not hands_over(dag, 4)
    assert cheapest_form(dag.mask()) == MaskForm("mixed", 1, 1)


def turned_round(dag: Dag) -> Dag:
    """The last token first, and every edge the other way: queries are keys there, and keys are queries."""
    num_chunks = len(dag.lengths)
    children = [[c for c in range(num_chunks) if p in dag.parents[c]] for p in range(num_chunks)]
    parents = tuple(
        tuple(sorted(num_chunks - 1 - c for c in children[p])) for p in reversed(range(num_chunks))
    )
    return Dag(dag.lengths[::-1], parents)


@settings(max_examples=100)
@given(dag=dags(max_length=2))
def test_what_queries_tell_in_a_graph_keys_tell_in_the_graph_turned_round(dag: Dag):
    forms = set(forms_of(turned_round(dag).mask()))
    swapped = {"query": "key", "key": "query", "mixed": "mixed", "adjacency": "adjacency", "bits": "bits"}
    assert forms == {
        MaskForm(swapped[form.name], form.key_stretches, form.query_stretches)  # pyright: ignore[reportArgumentType]
        for form in forms_of(dag.mask())
    }


def test_what_lies_next_to_its_query_or_key_counts_for_nobody():
    """6 times t, x, d, e, q, g, r below a header h. All of a unit see its t, whose key tells that. q sees h,
    d and e; r sees h and all from d on. Edges to d and e are told by the queries' own stretches, so that h is
    all that q and r have to tell. If d were counted, all would be stuck: two scattered chunks see it, and
    each of them would need a second stretch."""
    parents: list[tuple[int, ...]] = [(), ()]
    for t in range(2, 44, 7):
        x, d, e, q, g, r = range(t + 1, t + 7)
        parents += [(), (t,), (t,), (t,), (0, t, d, e), (t,), (0, t, d, e, q, g)]
        assert len(parents) == r + 1 and x == d - 1
    dag = Dag((1,) * len(parents), tuple(parents))
    for each in (dag, turned_round(dag)):
        assert MaskForm("mixed", 1, 1) in forms_of(each.mask())
