"""`${name}`: every reference is replaced once, and what cannot be is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.variables import Item, Scope, scalar_text

ESCAPE = "'$${' writes the two characters '${'"
DECLARE = "declare it below 'vars:', or give --var"
ROW = Item({"title": "The fox", "meta": {"year": 1999}, "tags": ["a"], "none": None}, {}, "r.jsonl:1")
ROW = Item(ROW.value, {"index": 4, "number": 5} | ROW.value, ROW.shown)
FILE = Item("docs/a.txt", {"path": "docs/a.txt", "name": "a.txt", "stem": "a", "index": 0}, "docs/a.txt")
VALUES: dict[str, Any] = {"title": "fox", "n": 3, "yes": True, "half": 0.5, "row": ROW, "doc": FILE}


def filled(text: str, values: dict[str, Any] = VALUES) -> tuple[str, list[tuple[str | None, ...]]]:
    said: list[tuple[str | None, ...]] = []
    return Scope(dict(values)).fill(text, lambda *problem: said.append(problem)), said


# What a text is made of, as it is written and as it reads: the expected value is put together beside it.
PIECES = st.sampled_from(
    [
        ("plain, with $ and } and { and $1", "plain, with $ and } and { and $1"),
        ("$${title}", "${title}"),
        ("$${", "${"),
        ("${title}", "fox"),
        ("${n}", "3"),
        ("${yes}", "true"),
        ("${half}", "0.5"),
        ("${row.title}", "The fox"),
        ("${row.meta.year}", "1999"),
        ("${row.index}", "4"),
        ("${doc}", "docs/a.txt"),
        ("${doc.stem}", "a"),
        ("\n", "\n"),
        ("é", "é"),
    ]
)


@given(st.lists(PIECES, max_size=8))
def test_a_text_reads_as_its_pieces_do(pieces: list[tuple[str, str]]):
    written = " ".join(one for one, _ in pieces)
    assert filled(written) == (" ".join(other for _, other in pieces), [])


@given(st.text())
def test_a_value_is_not_looked_through_again(value: str):
    assert filled("<${x}>", {"x": value, "title": "never"}) == (f"<{value}>", [])


@given(st.text(alphabet="$ab c", max_size=9))
def test_dollars_without_braces_mean_nothing(text: str):
    assert filled(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "message", "expected", "hint", "part"),
    [
        ("${titel}", "unknown variable '${titel}'", "KNOWN", "did you mean 'title'?", "${titel}"),
        ("${zzz}", "unknown variable '${zzz}'", "KNOWN", DECLARE, "${zzz}"),
        ("${}", "unknown variable '${}'", "KNOWN", ESCAPE, "${}"),
        ("${1 + 1}", "unknown variable '${1 + 1}'", "KNOWN", ESCAPE, "${1 + 1}"),
        ("${ title }", "unknown variable '${ title }'", "KNOWN", "did you mean 'title'?", "${ title }"),
        ("${title", "'${' without '}'", "a variable, such as ${name}", ESCAPE, "${"),
        ("${${title}", "'${' without '}'", "a variable, such as ${name}", ESCAPE, "${"),
        (
            "${row.titel}",
            "'${row.titel}': there is no 'titel'",
            "one of index, number, title, meta, tags, none",
            "did you mean 'title'?",
            "${row.titel}",
        ),
        (
            "${row.meta.yaer}",
            "'${row.meta.yaer}': there is no 'yaer'",
            "one of year",
            "did you mean 'year'?",
            "${row.meta.yaer}",
        ),
        ("${title.x}", "'${title.x}': there is no 'x'", "no '.' behind this name", None, "${title.x}"),
        (
            "${row.title.x}",
            "'${row.title.x}': there is no 'x'",
            "no '.' behind this name",
            None,
            "${row.title.x}",
        ),
        (
            "${row}",
            "'${row}' is a row, not a text",
            "one of its fields: title, meta, tags, none",
            None,
            "${row}",
        ),
        ("${row.meta}", "'${row.meta}' is a row, not a text", "one of its fields: year", None, "${row.meta}"),
        (
            "${row.tags}",
            "'${row.tags}' is a list",
            "a string, a number, true or false",
            None,
            "${row.tags}",
        ),
        ("${row.none}", "'${row.none}' is null", "a string, a number, true or false", None, "${row.none}"),
    ],
)
def test_what_cannot_be_looked_up_stays_and_is_said(
    text: str, message: str, expected: str, hint: str | None, part: str
):
    known = "one of doc, half, n, row, title, yes"
    result, said = filled(f"a {text} b")
    assert said[0] == (message, known if expected == "KNOWN" else expected, hint, part)
    # The broken reference is left as it is; what follows it is read.
    assert result.startswith("a ${")


def test_every_wrong_reference_of_a_text_is_said():
    _, said = filled("${a1} ${title} ${a2} ${a1}")
    assert [problem[3] for problem in said] == ["${a1}", "${a2}", "${a1}"]


def test_without_variables_there_is_nothing_to_choose_from():
    _, said = filled("${x}", {})
    assert said == [("unknown variable '${x}'", "a variable; there are none here", DECLARE, "${x}")]


def test_a_scope_knows_what_was_used_in_every_round():
    scope = Scope({"title": "fox", "n": 3})
    inner = scope.with_items({"doc": FILE})
    assert inner.fill("${doc.name} of ${title}", lambda *problem: None) == "a.txt of fox"
    assert scope.used == {"doc", "title"}
    assert "doc" not in scope.values


def test_numbers_are_written_out_whole():
    assert scalar_text(10**40) == "1" + 40 * "0"
    assert scalar_text(-7) == "-7"
    assert scalar_text(10**5000) is None
    assert scalar_text(None) is None
    assert scalar_text([1]) is None
