"""`assert`: which pairs of chunks an author's line is about. Whether they hold is a question for `flow`."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.assertions import Assertion
from legraph.errors import GraphError, Problem
from legraph.flow import assertion_problems
from legraph.graph import Graph, build_graph
from legraph.parse import parse
from legraph.source import SourceText
from tests.marked import place_of, unmark

CHUNKS = """legraph: 1
{bos}
chunks:
  - {{name: a, text: a}}
  - {{name: doc1, text: b, group: docs}}
  - {{name: doc2, text: c, group: docs}}
  - {{name: sum, text: d, parents: ["@docs"]}}
  - {{name: q, text: e, parents: [sum, a]}}
assert:
  - {written}
"""
# What each side means, as numbers of chunks.
SIDES = {
    "a": [0],
    "q": [4],
    "doc2": [2],
    "@docs": [1, 2],
    "doc*": [1, 2],
    "*": [0, 1, 2, 3, 4],
    "ancestors(q)": [0, 1, 2, 3],
    "ancestors(a)": [],
}
KINDS = ("sees", "not_sees", "influences", "not_influences")


def graph_of(written: str, bos: bool = False) -> Graph:
    return build_graph(parse(source(CHUNKS.format(written=written, bos="bos: true" if bos else ""))))


def source(text: str) -> SourceText:
    return SourceText("g.yaml", text, "yaml", Path("no such folder"))


def problems_of(marked: str) -> list[Problem]:
    """The problems of an assertion, after a look at their places."""
    text, places = unmark(CHUNKS.format(written=marked, bos=""))
    with pytest.raises(GraphError) as caught:
        parse(source(text))
    assert [place_of(problem) for problem in caught.value.problems] == places
    return list(caught.value.problems)


@given(
    kind=st.sampled_from(KINDS),
    first=st.sampled_from(list(SIDES)),
    second=st.sampled_from(list(SIDES)),
    bos=st.booleans(),
)
def test_selectors_mean_every_pair(kind: str, first: str, second: str, bos: bool):
    """Of a set with itself: every chunk with every other one. With BOS all numbers are one larger."""
    (assertion,) = graph_of(f'{{{kind}: ["{first}", "{second}"]}}', bos).assertions
    names = {"a", "q", "doc2"}
    pairs = {
        (i + bos, j + bos)
        for i, j in product(SIDES[first], SIDES[second])
        if i != j or {first, second} <= names
    }
    assert assertion.kind == kind
    assert set(assertion.pairs) == pairs
    assert len(assertion.pairs) == len(pairs)


def test_tokens():
    (assertion,) = graph_of("{max_tokens: 9}").assertions
    assert (assertion.kind, assertion.limit, assertion.chunks) == ("max_tokens", 9, None)
    (assertion,) = graph_of('{max_tokens: 9, of: "@docs"}', bos=True).assertions
    assert assertion.chunks == (2, 3)


def test_an_assertion_knows_its_place():
    text, places = unmark(CHUNKS.format(written="{not_sees: «[»q, doc1]}", bos=""))
    (assertion,) = build_graph(parse(source(text))).assertions
    place = assertion.place
    assert place is not None
    assert (place.line, place.column) == (places[0].line, places[0].column)


@pytest.mark.parametrize(
    ("marked", "message", "expected"),
    [
        (
            "«{»}",
            "an assertion says 0 things",
            "one of sees, not_sees, influences, not_influences, max_tokens",
        ),
        (
            "«{»sees: [q, a], max_tokens: 3}",
            "an assertion says 2 things",
            "one of sees, not_sees, influences, not_influences, max_tokens",
        ),
        ("«{»sees: [q, a], of: q}", "'of' beside 'sees'", "'max_tokens' beside it"),
        ("{sees: [q, «dok1»]}", "there is no chunk 'dok1'", None),
        ("{sees: [«'@dosc'», q]}", "there is no group '@dosc'", "one of @docs"),
        ("{sees: [«'x*'», q]}", "'x*' matches no chunk", "a glob that matches a chunk"),
        ("{sees: [«all-before», q]}", "'all-before' needs a chunk that asks", "a name, glob or group"),
        ("{sees: [«^q», q]}", "'^q' takes out, and there is nothing to take from", None),
        ("{sees: [«ancestors(x)», q]}", "'ancestors(x)': there is no chunk 'x'", None),
        ("{max_tokens: 3, of: «nobody»}", "there is no chunk 'nobody'", None),
        ("{sees: «[»q]}", "'sees' has 1 entries", "2"),
        ("{sees: [q, «7»]}", "entry 2 of 'sees' must be a string, not the number 7", None),
        ("{«seas»: [q, a], max_tokens: 1}", "unknown key 'seas'", "one of sees, not_sees, influences, "
         "not_influences, max_tokens, of"),
    ],
)  # fmt: skip
def test_assertions_that_say_nothing(marked: str, message: str, expected: str | None):
    if marked.startswith("{sees: «["):
        with pytest.raises(GraphError) as caught:
            graph_of(unmark(marked)[0])
        found = caught.value.problems
    else:
        found = problems_of(marked)
    assert [(problem.message, problem.expected) for problem in found] == [(message, expected)]


def test_two_wrong_assertions_are_said_at_once():
    found = problems_of("{sees: [«x1», q]}\n  - {sees: [q, «x2»]}")
    assert [problem.message for problem in found] == ["there is no chunk 'x1'", "there is no chunk 'x2'"]


@pytest.mark.parametrize(
    ("written", "holds"),
    [
        ("{sees: [sum, '@docs']}", True),
        ("{sees: [q, '@docs']}", False),
        ("{not_sees: ['@docs', '@docs']}", True),
        ("{influences: ['@docs', q]}", True),
        ("{not_influences: [a, sum]}", True),
        ("{not_influences: ['doc*', q]}", False),
    ],
)
def test_what_is_asserted_is_checked(written: str, holds: bool):
    assert (assertion_problems(graph_of(written)) == []) == holds


def test_variables_in_assertions():
    text = CHUNKS.format(written="{sees: ['${who}', '@${group}']}", bos="vars: {who: sum, group: docs}")
    assert build_graph(parse(source(text))).assertions[0].pairs == ((3, 1), (3, 2))


def test_an_assertion_is_no_part_of_what_the_graph_is():
    one, other = graph_of("{sees: [q, a]}"), graph_of("{max_tokens: 3}")
    assert one == other and one.sha256() == other.sha256()
    assert isinstance(one.assertions[0], Assertion)
