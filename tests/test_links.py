"""Names and edges: what is wrong between chunks, and the order of those that are right."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.links import (
    MAX_CYCLE_NAMES_DRAWN,
    MAX_CYCLES_REPORTED,
    MAX_NAMES_COMPARED,
    Link,
    LinkProblem,
    link_problems,
    topological_order,
)

NO_CYCLES = "a graph without cycles"


def links(text: str) -> list[Link]:
    """`"a; b: a c"`: chunk a, and chunk b with the parents a and c."""
    parts = [part.partition(":") for part in text.split(";")]
    return [Link(name.strip(), parents.split()) for name, _, parents in parts]


def problems(text: str, has_bos: bool = False) -> list[LinkProblem]:
    return link_problems(links(text), has_bos)


@st.composite
def digraphs(draw: st.DrawFn) -> list[list[int]]:
    """Parents of each chunk, in any order, of any chunks: with cycles, mostly."""
    num_chunks = draw(st.integers(0, 12))
    some = st.lists(st.integers(0, max(0, num_chunks - 1)), unique=True, max_size=3)
    return [draw(some) for _ in range(num_chunks)]


@st.composite
def shuffled_dags(draw: st.DrawFn) -> list[list[int]]:
    """Parents of each chunk of a DAG whose chunks are declared in any order."""
    num_chunks = draw(st.integers(1, 12))
    place = draw(st.permutations(range(num_chunks)))
    rows = [draw(st.lists(st.sampled_from(place[:i]), unique=True)) if i else [] for i in range(num_chunks)]
    return [rows[place.index(i)] for i in range(num_chunks)]


def naive_order(edges: list[list[int]]) -> list[int]:
    """The rule, read aloud: of the chunks that are ready, take the one declared first."""
    order: list[int] = []
    while True:
        ready = [i for i in range(len(edges)) if i not in order and set(edges[i]) <= set(order)]
        if not ready:
            return order
        order.append(ready[0])


@given(digraphs() | shuffled_dags())
def test_the_order_is_topological_and_stable(edges: list[list[int]]):
    assert topological_order(edges) == naive_order(edges)


@given(shuffled_dags())
def test_a_graph_without_cycles_is_ordered_whole_and_has_no_problem(edges: list[list[int]]):
    order = topological_order(edges)
    assert sorted(order) == list(range(len(edges)))
    assert all(order.index(parent) < order.index(i) for i, row in enumerate(edges) for parent in row)
    assert link_problems(named(edges), has_bos=False) == []


def named(edges: list[list[int]]) -> list[Link]:
    return [Link(f"c{i}", [f"c{parent}" for parent in row]) for i, row in enumerate(edges)]


def has_cycle(edges: list[list[int]]) -> bool:
    sorter = TopologicalSorter(dict(enumerate(edges)))
    try:
        sorter.prepare()
    except CycleError:
        return True
    return False


@given(digraphs())
def test_cycles_are_found_exactly_where_there_are_some(edges: list[list[int]]):
    # A chunk that is its own parent is a problem of another kind.
    edges = [[parent for parent in row if parent != i] for i, row in enumerate(edges)]
    assert bool(link_problems(named(edges), has_bos=False)) == has_cycle(edges)


@given(digraphs())
def test_a_reported_cycle_is_a_cycle_and_cutting_all_of_them_leaves_none(edges: list[list[int]]):
    edges = [[parent for parent in row if parent != i] for i, row in enumerate(edges)]
    left = [list(row) for row in edges]
    for problem in link_problems(named(edges), has_bos=False):
        head, _, path = problem.message.partition(": ")
        assert (head, problem.expected, problem.hint) == ("the parents form a cycle", NO_CYCLES, None)
        walk = [int(name[1:]) for name in path.split(" -> ") if name.startswith("c")]
        assert walk[0] == walk[-1] == problem.chunk == min(walk)
        if "more" not in path:
            assert all(parent in edges[child] for parent, child in pairwise(walk))
            assert len(set(walk)) == len(walk) - 1
        assert problem.parent is not None
        assert edges[problem.chunk][problem.parent] == walk[-2]
        left[problem.chunk].remove(walk[-2])
    assert not has_cycle(left)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a: b; b: a", [(0, 0, "a -> b -> a")]),
        ("r; a: r c; b: a; c: b", [(1, 1, "a -> b -> c -> a")]),
        ("a: b; b: a; c: d; d: c", [(0, 0, "a -> b -> a"), (2, 0, "c -> d -> c")]),
        ("a: b c; b: a; c: a", [(0, 0, "a -> b -> a"), (0, 1, "a -> c -> a")]),
        ("below: a; a: b; b: a", [(1, 0, "a -> b -> a")]),
    ],
    ids=["two", "three", "apart", "sharing a chunk", "with a chunk below"],
)
def test_a_cycle_is_drawn_from_parent_to_child(text: str, expected: list[tuple[int, int, str]]):
    assert problems(text) == [
        LinkProblem(chunk, parent, f"the parents form a cycle: {path}", NO_CYCLES)
        for chunk, parent, path in expected
    ]


@pytest.mark.parametrize("extra", [0, 1, 1000])
def test_a_long_cycle_is_shortened_in_the_middle(extra: int):
    # The name in front is drawn once more at the end.
    num_chunks = MAX_CYCLE_NAMES_DRAWN - 1 + extra
    ring = [[(i - 1) % num_chunks] for i in range(num_chunks)]
    (problem,) = link_problems(named(ring), has_bos=False)
    names = [f"c{i}" for i in range(num_chunks)] + ["c0"]
    half = MAX_CYCLE_NAMES_DRAWN // 2
    drawn = [*names[:half], *([f"({extra} more)"] if extra else []), *names[-half:]]
    assert problem.message == f"the parents form a cycle: {' -> '.join(drawn)}"


def test_the_first_cycles_of_very_many_are_reported():
    found = problems("; ".join(f"a{i}: b{i}; b{i}: a{i}" for i in range(MAX_CYCLES_REPORTED + 5)))
    assert [problem.chunk for problem in found] == [2 * i for i in range(MAX_CYCLES_REPORTED)]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a; b; a", LinkProblem(2, None, "chunk name 'a' is taken by chunk number 1", "a unique name")),
        (
            "a: a",
            LinkProblem(
                0,
                0,
                "chunk 'a' is its own parent",
                hint="a chunk always sees itself, causally: remove it from the list",
            ),
        ),
        ("a; b; c: a b a", LinkProblem(2, 2, "parent 'a' is listed twice", "each parent once")),
        (
            "document; b: docment",
            LinkProblem(
                1,
                0,
                "unknown parent 'docment'",
                "the name of a chunk in this file",
                "did you mean 'document'?",
            ),
        ),
        ("a; b: zzz", LinkProblem(1, 0, "unknown parent 'zzz'", "the name of a chunk in this file")),
        ("a; b: bos", LinkProblem(1, 0, "unknown parent 'bos'", "the name of a chunk in this file")),
    ],
)
def test_wrong_names_and_parents_are_reported(text: str, problem: LinkProblem):
    assert problems(text) == [problem]


def test_an_unknown_parent_that_is_listed_twice_is_reported_as_both():
    assert [problem.message for problem in problems("a: x x")] == [
        "unknown parent 'x'",
        "parent 'x' is listed twice",
    ]


def test_of_two_chunks_with_one_name_the_first_is_meant():
    assert [problem.message for problem in problems("a: b; b; b: a")] == [
        "chunk name 'b' is taken by chunk number 2"
    ]


def test_a_chunk_that_bos_adds_may_be_named_as_parent_but_not_declared():
    assert problems("a: bos; b: bos a", has_bos=True) == []
    assert problems("a; bos", has_bos=True) == [
        LinkProblem(
            1,
            None,
            "chunk name 'bos' is taken by the chunk that 'bos: true' adds",
            "another name, or no 'bos: true'",
        )
    ]
    assert problems("a: bos bos", has_bos=True) == [
        LinkProblem(0, 1, "parent 'bos' is listed twice", "each parent once")
    ]
    assert problems("bos; a: bos") == []


def test_problems_come_in_declared_order():
    found = problems("a: x a y; b: c; c: b z; a")
    assert [(problem.chunk, problem.parent) for problem in found] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (2, 1),
        (3, None),
    ]


def test_chunks_without_a_usable_name_and_parents_without_one_are_passed_over():
    nameless = [Link(None, ["a", None]), Link("a", [None, None]), Link(None, [])]
    assert link_problems(nameless, has_bos=True) == []


def test_control_characters_and_long_names_are_not_drawn_raw():
    esc, long = "\x1b[2J", "x" * 1000
    found = link_problems([Link(esc, ["b"]), Link("b", [esc, long, "\x1b"]), Link(esc, [])], has_bos=False)
    assert [problem.message for problem in found] == [
        r"the parents form a cycle: '\x1b[2J' -> b -> '\x1b[2J'",
        f"unknown parent '{'x' * 57}...'",
        r"unknown parent '\x1b'",
        r"chunk name '\x1b[2J' is taken by chunk number 1",
    ]


def test_hints_end_where_finding_them_would_take_long():
    num_names = MAX_NAMES_COMPARED // 2
    chunks = [Link(f"name{i}", []) for i in range(num_names)]
    chunks += [Link(f"last{i}", [f"nam{i}", f"nam{i}x"]) for i in range(3)]
    found = link_problems(chunks, has_bos=False)
    assert [problem.message for problem in found] == [
        f"unknown parent '{parent}'" for i in range(3) for parent in (f"nam{i}", f"nam{i}x")
    ]
    assert [problem.hint is not None for problem in found] == [True, True, False, False, False, False]


def test_an_unknown_parent_gets_the_same_hint_each_time():
    chunks = "; ".join(["first", *(f"c{i}: frist" for i in range(50))])
    assert {problem.hint for problem in problems(chunks)} == {"did you mean 'first'?"}


def test_a_chain_of_fifty_thousand_chunks_is_ordered():
    num_chunks = 50_000
    backwards = [[i + 1] for i in range(num_chunks - 1)] + [[]]
    assert topological_order(backwards) == list(range(num_chunks))[::-1]
    assert link_problems(named(backwards), has_bos=False) == []
