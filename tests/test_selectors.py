"""Selectors mean what a naive reading of them means; circles of them are errors, and deep ones no danger."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from legraph.selectors import Selectors, Want, is_selector

NAMES: tuple[str, ...] = ("a", "ab", "abc", "b1", "b2", "b10", "doc-1", "doc.2", "q")
GLOBS = ("*", "a*", "?", "[ab]*", "b?", "b[!1]", "*1", "doc[.-]?", "x*")
CIRCLE = "and these wait for it"


@dataclass
class Case:
    names: list[str]
    groups: dict[str, list[int]]
    wants: list[list[str]]

    def selectors(self, is_partial: bool = False) -> Selectors:
        wants = [[Want(text, at=at) for at, text in enumerate(texts)] for texts in self.wants]
        return Selectors(self.names, self.groups, wants, is_partial)


class Circle(Exception):
    pass


def naive_parents(case: Case, chunk: int, above: tuple[int, ...] = ()) -> list[int | str]:
    """Read off the definition, for one chunk at a time, and nothing is remembered."""
    if chunk in above:
        raise Circle
    wants = case.wants[chunk]
    out = {
        each
        for text in wants
        if text.startswith("^")
        for each in naive_meant(case, chunk, text[1:], above)
        if isinstance(each, int)
    }
    chosen: list[int | str] = []
    for text in wants:
        if not text.startswith("^"):
            for each in naive_meant(case, chunk, text, above):
                is_own = each == chunk and is_selector(text)
                is_plain_list = not any(map(is_selector, wants))
                if each not in out and not is_own and (each not in chosen or is_plain_list):
                    chosen.append(each)
    return chosen


def naive_meant(case: Case, chunk: int, text: str, above: tuple[int, ...]) -> list[int | str]:
    if text == "all-before":
        return list(range(chunk))
    if text.startswith("@"):
        return list(case.groups.get(text[1:], []))
    if text.startswith("ancestors("):
        name = text.removeprefix("ancestors(").removesuffix(")")
        if name not in case.names:
            return []
        target = case.names.index(name)
        found, walk = set[int | str](), [target]
        reached = {target}
        while walk:
            parents = naive_parents(case, walk.pop(), (*above, chunk))
            found |= {each for each in parents if isinstance(each, int)}
            new = [each for each in parents if isinstance(each, int) and each not in reached]
            reached.update(new)
            walk += new
        return sorted(each for each in found - {target} if isinstance(each, int))
    if set(text) & set("*?["):
        return [i for i, name in enumerate(case.names) if fnmatchcase(name, text)]
    return [case.names.index(text)] if text in case.names else [text]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    name = st.sampled_from([*names, "nobody"])
    members = st.lists(st.integers(0, len(names) - 1), min_size=1, unique=True).map(sorted)
    groups = draw(st.dictionaries(st.sampled_from(["g", "h"]), members))
    positive = st.one_of(
        name,
        st.sampled_from(GLOBS),
        st.sampled_from(["@g", "@h"]),
        st.just("all-before"),
        name.map("ancestors({})".format),
    )
    selector = st.one_of(positive, positive, positive.map("^{}".format))
    wants = [draw(st.lists(selector, max_size=3, unique=True)) for _ in names]
    return Case(names, groups, wants)


def circular(case: Case) -> bool:
    try:
        for chunk in range(len(case.names)):
            naive_parents(case, chunk)
    except Circle:
        return True
    return False


@given(cases())
@example(Case(["a", "b1"], {}, [["ancestors(b1)"], ["a"]]))
@example(Case(["a", "b1", "b2"], {}, [["ancestors(b1)"], ["ancestors(b2)"], ["ancestors(a)"]]))
@example(Case(["a", "ab", "q"], {}, [["ab"], ["a"], ["ancestors(a)"]]))
@example(Case(["a", "ab", "abc", "q", "b1"], {}, [[], ["a"], ["ab"], ["ancestors(ab)"], ["ancestors(abc)"]]))
def test_selectors_mean_what_a_naive_reading_says(case: Case):
    selectors = case.selectors()
    found = [[each.chunk for each in parents] for parents in selectors.parents()]
    circles = [problem for problem in selectors.problems if CIRCLE in problem.message]
    assert bool(circles) == circular(case)
    if not circles:
        assert found == [naive_parents(case, chunk) for chunk in range(len(case.names))]


def naive_problems(case: Case, chunk: int) -> set[int]:
    """The places of the selectors of a chunk that must be reported."""
    wants, wrong = case.wants[chunk], set[int]()
    for at, text in enumerate(wants):
        bare = text.removeprefix("^")
        if bare.startswith("ancestors("):
            is_wrong = bare[len("ancestors(") : -1] not in case.names
        elif bare == "all-before":
            is_wrong = False
        elif is_selector(bare):
            meant = naive_meant(case, chunk, bare, ())
            is_wrong = not set(meant) - {chunk}
        else:
            is_wrong = text.startswith("^") and bare not in case.names
        if is_wrong:
            wrong.add(at)
    if wants and all(text.startswith("^") for text in wants):
        wrong.add(0)
    return wrong


@given(cases())
def test_what_means_nothing_is_reported_where_it_stands(case: Case):
    if circular(case):
        return
    selectors = case.selectors()
    selectors.parents()
    assert {(found.chunk, found.at) for found in selectors.problems} == {
        (chunk, at) for chunk in range(len(case.names)) for at in naive_problems(case, chunk)
    }


@given(cases())
def test_where_chunks_are_missing_nobody_is_missed(case: Case):
    """Some chunks could not be made: only what is wrong in itself is said."""
    selectors = case.selectors(is_partial=True)
    parents = selectors.parents()
    assert all(isinstance(each.chunk, int) for row in parents for each in row)
    assert all(CIRCLE in found.message or "takes out" in found.message for found in selectors.problems)


@given(cases())
@example(Case(["a"], {}, [["*", "a"]]))
def test_the_place_of_a_parent_is_that_of_the_first_selector_that_means_it(case: Case):
    if circular(case):
        return
    for chunk, parents in enumerate(case.selectors().parents()):
        for each in parents:
            first = next(
                at
                for at, text in enumerate(case.wants[chunk])
                if not text.startswith("^")
                and each.chunk in naive_meant(case, chunk, text, ())
                and not (each.chunk == chunk and is_selector(text))
            )
            assert each.at == first


@pytest.mark.parametrize("backward", [False, True], ids=["declared from the root", "from the leaf"])
def test_a_long_chain_of_ancestors(backward: bool):
    """Each chunk sees the one before it and all of that one's ancestors: all before it. Deeper than Python's
    own stack."""
    number = 3000
    order = range(number)[:: -1 if backward else 1]
    wants = [[f"ancestors(c{i - 1})", f"c{i - 1}"] if i else [] for i in order]
    found = Case([f"c{i}" for i in order], {}, wants).selectors()
    parents = found.parents()
    assert [len(row.chunks) for row in parents] == list(order)
    middle = parents[1500]
    assert {found.names[each] for each in middle.chunks if isinstance(each, int)} == {
        f"c{i}" for i in range(order[1500])
    }
    assert not found.problems


def test_the_ancestors_of_a_long_plain_chain():
    number = 20_000
    wants = [[f"c{i - 1}"] if i else [] for i in range(number)] + [[f"ancestors(c{number - 1})"]]
    found = Case([f"c{i}" for i in range(number)] + ["q"], {}, wants).selectors()
    assert found.parents()[-1].chunks == list(range(number - 1))


def test_a_long_circle_of_ancestors_is_said_once():
    number = 3000
    wants = [[f"ancestors(c{(i + 1) % number})", f"c{(i + 1) % number}"] for i in range(number)]
    found = Case([f"c{i}" for i in range(number)], {}, wants).selectors()
    found.parents()
    assert len([each for each in found.problems if CIRCLE in each.message]) == 1


def said(case: Case) -> list[tuple[int | None, int, str, str | None, str | None]]:
    found = case.selectors()
    found.parents()
    return [(each.chunk, each.at, each.message, each.expected, each.hint) for each in found.problems]


def test_the_words():
    case = Case(["doc1", "doc2", "q"], {"docs": [0, 1], "one": [2]}, [[], [], []])
    list_of_groups = "one of @docs, @one"
    forms = "a name, a glob (doc*), a group (@docs), all-before, ancestors(x), or ^ and one of these"
    for text, message, expected, hint in [
        ("@dosc", "there is no group '@dosc'", list_of_groups, "did you mean '@docs'?"),
        ("@one", "'@one' holds nothing but the chunk itself", "chunks other than this one", None),
        ("dox*", "'dox*' matches no chunk", "a glob that matches a chunk", None),
        ("q*", "'q*' matches nothing but the chunk itself", "chunks other than this one", None),
        ("ancestors(dac1)", "'ancestors(dac1)': there is no chunk 'dac1'", None, "did you mean 'doc1'?"),
        ("parents(doc1)", "'parents(doc1)' is no selector", forms, None),
    ]:
        case.wants = [[], [], ["doc1", text]]
        assert said(case) == [(2, 1, message, expected, hint)]
    case.wants = [[], [], ["@docs", "^dac1"]]
    assert said(case) == [(2, 1, "'^dac1': there is no chunk 'dac1'", None, "did you mean 'doc1'?")]
    case.wants = [[], [], ["@docs", "doc1", "doc1"]]
    assert said(case) == [(2, 2, "parent 'doc1' is listed twice", "each parent once", None)]
    case.wants = [[], [], ["^doc1"]]
    assert said(case) == [(2, 0, "'^doc1' takes out, and there is nothing to take from", None, None)]


def test_a_circle_is_drawn_where_it_closes():
    other = "selectors that do not wait for each other"
    case = Case(["a", "b"], {}, [["ancestors(b)"], ["ancestors(a)"]])
    assert said(case) == [
        (1, 0, "'ancestors(a)' needs the parents of 'a', and these wait for it", other, None)
    ]
    case = Case(["a"], {}, [["ancestors(a)"]])
    message = "'ancestors(a)' needs the parents of this chunk, and these wait for it"
    assert said(case) == [(0, 0, message, other, None)]


def test_a_file_sees_the_names_behind_its_prefix_only():
    names = ["x", "p.x", "p.y", "p.q.x", "z"]
    wants = [[], [], [Want("x", "p.")], [], [Want("p.*")]]
    wants[3] = [Want("x", "p."), Want("all-before", "p.", 1)]
    found = Selectors(names, {"p.g": [1]}, wants)
    assert [row.chunks for row in found.parents()] == [[], [], [1], [1, 2], [1, 2, 3]]
    assert found.chunks_of(Want("*", "p.")) == [1, 2, 3]
    assert found.chunks_of(Want("@g", "p.")) == [1]
    assert not found.problems
    assert found.chunks_of(Want("z", "p.")) == []
    assert found.problems[-1].message == "there is no chunk 'z'"


def test_what_may_have_been_meant_is_looked_for_within_limits():
    """Every round of a loop may ask for a name of its own: the search must not be a product."""
    number = 5000
    wants = [[f"ancestors(d{i})"] for i in range(number)]
    found = Case([f"c{i}" for i in range(number)], {}, wants).selectors()
    found.parents()
    assert len(found.problems) == number
    assert 0 < len([each for each in found.problems if each.hint]) < 100
