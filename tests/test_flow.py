"""Influence, paths and assertions against matrix powers and enumeration on random DAGs."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.assertions import Assertion
from legraph.errors import Problem, Source
from legraph.flow import (
    ancestors,
    assertion_problems,
    children,
    descendants,
    drawn_path,
    failing_pairs,
    influences,
    num_paths,
    path_of_influence,
    sees,
)
from legraph.graph import Graph, GraphChunk, build_graph
from legraph.parse import parse
from legraph.source import SourceText
from tests.random_graphs import dags, graphs

small = graphs(dags(max_chunks=10, max_length=1), plain=True)
KINDS = ("sees", "not_sees", "influences", "not_influences")


def read(text: str) -> Graph:
    return build_graph(parse(SourceText("g.yaml", text, "yaml", Path())))


def chain(num_chunks: int) -> Graph:
    """c0 -> c1 -> c2 ..."""
    return Graph(tuple(GraphChunk(f"c{i}", "x", tuple(range(max(i - 1, 0), i))) for i in range(num_chunks)))


def edge_matrix(graph: Graph) -> np.ndarray:
    """int [K, K], 1 where the row sees the column."""
    edges = np.zeros((len(graph.chunks),) * 2, dtype=object)
    for i, chunk in enumerate(graph.chunks):
        for parent in chunk.parents:
            edges[i, parent] = 1
    return edges


def walks(graph: Graph) -> list[np.ndarray]:
    """For each number of hops h, how many walks of h edges lead from the column down to the row."""
    edges = edge_matrix(graph)
    found = [np.identity(len(graph.chunks), dtype=object)]
    while found[-1].any():
        found.append(found[-1] @ edges)
    return found


@given(small)
def test_influence_is_what_matrix_powers_say(graph: Graph):
    powers = walks(graph)
    reach = sum(powers) > 0
    for source in range(len(graph.chunks)):
        for target in range(len(graph.chunks)):
            path = path_of_influence(graph, source, target)
            assert (path is not None) == reach[target, source]
            assert num_paths(graph, source, target) == sum(power[target, source] for power in powers)
            assert sees(graph, target, source) == (source == target or powers[1][target, source] == 1)
            if path is None:
                continue
            assert (path[0], path[-1]) == (source, target)
            assert all(parent in graph.chunks[child].parents for parent, child in pairwise(path))
            # No shorter one: the first power that has any.
            assert len(path) - 1 == next(h for h, power in enumerate(powers) if power[target, source])


@given(small)
def test_ancestors_descendants_and_children(graph: Graph):
    reach = sum(walks(graph)[1:]) > 0
    edges = edge_matrix(graph)
    for i in range(len(graph.chunks)):
        assert ancestors(graph, i) == set(np.flatnonzero(reach[i]).tolist())
        assert descendants(graph, i) == set(np.flatnonzero(reach[:, i]).tolist())
        assert children(graph)[i] == np.flatnonzero(edges[:, i]).tolist()


@given(small, st.data())
def test_many_pairs_at_once_are_the_pairs_one_by_one(graph: Graph, data: st.DataObject):
    index = st.integers(0, len(graph.chunks) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), max_size=20))
    reach = sum(walks(graph)) > 0
    expected = [bool(reach[target, source]) for source, target in pairs]
    assert influences(graph, pairs, graph.order()) == expected


@given(small, st.sampled_from(KINDS), st.data())
def test_an_assertion_fails_for_the_pairs_for_which_it_is_not_so(
    graph: Graph, kind: Any, data: st.DataObject
):
    index = st.integers(0, len(graph.chunks) - 1)
    pairs = tuple(data.draw(st.lists(st.tuples(index, index), max_size=12)))
    powers = walks(graph)
    reach, near = sum(powers) > 0, powers[0] + powers[1] > 0
    holds = {
        "sees": lambda q, k: near[q, k],
        "not_sees": lambda q, k: not near[q, k],
        "influences": lambda source, target: reach[target, source],
        "not_influences": lambda source, target: not reach[target, source],
    }[kind]
    expected = [pair for pair in pairs if not holds(*pair)]
    assertion = Assertion(kind, pairs)
    assert failing_pairs(graph, assertion, graph.order()) == expected
    problems = assertion_problems(replace(graph, assertions=(assertion,)))
    assert len(problems) == (1 if expected else 0)
    if problems:
        parts = problems[0].message.split("; ")
        assert len(parts) == min(len(expected), 5) + (len(expected) > 5)
        first, second = (graph.chunks[i].name for i in expected[0])
        assert f"'{first}'" in parts[0]
        assert first == second or f"'{second}'" in parts[0]


def test_a_long_ladder_has_as_many_paths_as_a_power_of_two():
    """Each rung doubles them: b0 -> (l1, r1) -> b1 -> ..."""
    chunks = [GraphChunk("b0", "x")]
    for rung in range(1, 301):
        below = len(chunks) - 1
        chunks += [GraphChunk(f"l{rung}", "x", (below,)), GraphChunk(f"r{rung}", "x", (below,))]
        chunks.append(GraphChunk(f"b{rung}", "x", (below + 1, below + 2)))
    assert num_paths(Graph(tuple(chunks)), 0, len(chunks) - 1) == 2**300


def test_a_path_is_drawn_with_names_and_cut_in_the_middle():
    assert drawn_path(chain(3), (0, 1, 2)) == "'c0' -> 'c1' -> 'c2'"
    assert len(drawn_path(chain(12), range(12)).split(" -> ")) == 12
    drawn = drawn_path(chain(100), range(100)).split(" -> ")
    assert drawn[6] == "(88 more)"
    assert (drawn[5], drawn[7], len(drawn)) == ("'c5'", "'c94'", 13)


TEXT = """\
legraph: 1
chunks:
  - {name: secret, text: s}
  - {name: summary, text: m, parents: [secret]}
  - {name: answer, text: a, parents: [summary]}
  - {name: deep, text: d, parents: [answer]}
  - {name: other, text: o}
assert:
"""


@pytest.mark.parametrize(
    ("assertion", "message", "hint"),
    [
        (
            "not_influences: [secret, answer]",
            "asserted 'not_influences': 'secret' reaches 'answer' through 'secret' -> 'summary' -> 'answer'",
            "cut an edge of each path between them",
        ),
        (
            "not_influences: [secret, summary]",
            "asserted 'not_influences': 'secret' reaches 'summary': it is a parent",
            "take 'secret' out of the parents of 'summary'",
        ),
        (
            "not_influences: [other, other]",
            "asserted 'not_influences': 'other' reaches itself",
            "a chunk always influences itself: name two different chunks",
        ),
        (
            "sees: [answer, secret]",
            "asserted 'sees': 'answer' does not see 'secret' (it is a grandparent, through 'summary')",
            "list 'secret' in the parents of 'answer'",
        ),
        (
            "sees: [deep, secret]",
            "asserted 'sees': 'deep' does not see 'secret' (it is an ancestor, through "
            "'secret' -> 'summary' -> 'answer' -> 'deep')",
            "list 'secret' in the parents of 'deep'",
        ),
        (
            "sees: [secret, answer]",
            "asserted 'sees': 'secret' does not see 'answer' (it comes below: "
            "'secret' -> 'summary' -> 'answer')",
            None,
        ),
        (
            "sees: [other, secret]",
            "asserted 'sees': 'other' does not see 'secret' (nothing leads from one to the other)",
            "list 'secret' in the parents of 'other'",
        ),
        (
            "not_sees: [answer, summary]",
            "asserted 'not_sees': 'answer' sees 'summary' (it is a parent)",
            "take 'summary' out of the parents of 'answer'",
        ),
        (
            "not_sees: [answer, answer]",
            "asserted 'not_sees': 'answer' sees itself",
            "a chunk always sees itself: name two different chunks",
        ),
        (
            "influences: [other, answer]",
            "asserted 'influences': nothing of 'other' reaches 'answer'",
            "list 'other' in the parents of 'answer', or of a chunk that influences 'answer'",
        ),
        ("influences: [answer, secret]", "asserted 'influences': nothing of 'answer' reaches 'secret'", None),
    ],
)
def test_what_is_said_of_an_assertion_that_fails(assertion: str, message: str, hint: str | None):
    (problem,) = assertion_problems(read(f"{TEXT}  - {assertion}\n"))
    assert (problem.message, problem.hint) == (message, hint)
    assert problem.source is not None
    assert (problem.source.file, problem.source.line) == ("g.yaml", 9)


@pytest.mark.parametrize(
    "assertion",
    [
        "not_influences: [answer, secret]",
        "influences: [secret, deep]",
        "influences: [other, other]",
        "sees: [answer, summary]",
        "not_sees: [answer, secret]",
        "max_tokens: 1",
    ],
)
def test_what_holds_is_not_mentioned_and_tokens_only_where_they_are_known(assertion: str):
    assert assertion_problems(read(f"{TEXT}  - {assertion}\n")) == []


def test_failing_pairs_are_named_up_to_five():
    parents = tuple(range(7))
    chunks = [GraphChunk(f"d{i}", "x") for i in parents] + [GraphChunk("q", "x", parents)]
    place = Source("g.yaml", 3, 5)
    for number, more in ((5, ""), (6, "; and 1 more pair"), (7, "; and 2 more pairs")):
        pairs = tuple((i, 7) for i in range(number))
        graph = Graph(tuple(chunks), assertions=(Assertion("not_influences", pairs, place=place),))
        (problem,) = assertion_problems(graph)
        named = "; ".join(f"'d{i}' reaches 'q': it is a parent" for i in range(5))
        hint = "take 'd0' out of the parents of 'q'"
        assert problem == Problem(f"asserted 'not_influences': {named}{more}", None, hint, place)


@pytest.mark.parametrize(
    ("limit", "chunks", "message"),
    [
        (5, None, "the graph has 6 tokens, more than 5"),
        (6, None, None),
        (1, (0, 1), "'c1' has 2 tokens, more than 1"),
        (1, (1, 2), "'c1' has 2 tokens, more than 1; 'c2' has 3 tokens, more than 1"),
        (2, (0, 1), None),
    ],
)
def test_token_limits(limit: int, chunks: tuple[int, ...] | None, message: str | None):
    graph = replace(chain(3), assertions=(Assertion("max_tokens", limit=limit, chunks=chunks),))
    found = [problem.message for problem in assertion_problems(graph, [1, 2, 3])]
    assert found == ([] if message is None else [f"asserted 'max_tokens': {message}"])


def test_each_failing_assertion_is_a_problem_of_its_own():
    assertions = "  - sees: [answer, secret]\n  - sees: [answer, summary]\n  - influences: [other, deep]\n"
    lines = [
        problem.source and problem.source.line for problem in assertion_problems(read(TEXT + assertions))
    ]
    assert lines == [9, 11]


@cache
def wide(num_sources: int, depth: int) -> Graph:
    """Sources that a long chain sees at its beginning, and a target at its end."""
    chunks = [GraphChunk(f"s{i}", "x") for i in range(num_sources)]
    chunks.append(GraphChunk("first", "x", tuple(range(num_sources))))
    chunks += [GraphChunk(f"c{i}", "x", (num_sources + i,)) for i in range(depth)]
    return Graph(tuple(chunks))


def test_five_hundred_sources_cost_about_what_one_costs():
    """One search for all: 500 of them would take 500 times as long as one."""
    graph = wide(500, 20_000)
    order, target = graph.order(), len(graph.chunks) - 1

    def seconds(pairs: list[tuple[int, int]]) -> float:
        taken = list[float]()
        for _ in range(3):
            started = time.perf_counter()
            assert influences(graph, pairs, order) == [True] * len(pairs)
            taken.append(time.perf_counter() - started)
        return min(taken)

    assert seconds([(i, target) for i in range(500)]) < 50 * seconds([(0, target)])


def test_flow_loads_neither_numpy_nor_torch():
    code = "import sys, legraph.flow; sys.exit(bool({'numpy', 'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
