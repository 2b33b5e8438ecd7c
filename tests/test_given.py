"""`--var` and `--vars`: variables from outside, which override those of the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from legraph.errors import GraphError, InputError
from legraph.given import given_variables
from legraph.parse import parse_file
from tests.command_line import Call
from tests.marked import place_of, unmark

GRAPH = """legraph: 1
vars: {title: fox, number: 3}
chunks:
  - {name: a, text: "${title} ${number}"}
"""


def test_pairs_override_the_file_and_the_last_pair_wins(tmp_path: Path):
    (tmp_path / "v.yaml").write_text("title: dog\nnumber: 7\nis_big: true\n")
    pairs = ["title=cat", "empty=", "equation=a=b", "title=owl"]
    assert given_variables(pairs, tmp_path / "v.yaml") == {
        "title": "owl",
        "number": 7,
        "is_big": True,
        "empty": "",
        "equation": "a=b",
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v.yaml", "title: dog\nnumber: 7\n"),
        ("v.toml", 'title = "dog"\nnumber = 7\n'),
        ("v.json", '{"title": "dog", "number": 7}'),
    ],
)
def test_all_syntaxes_of_the_file_are_twins(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    assert given_variables([], tmp_path / name) == {"title": "dog", "number": 7}


@pytest.mark.parametrize("pair", ["title", "=x", "1a=x", "a-b=x", " a=x", "a\n=x", ""])
def test_what_is_no_pair_is_refused(pair: str):
    with pytest.raises(InputError) as caught:
        given_variables([pair])
    (problem,) = caught.value.problems
    assert (problem.message, problem.expected) == (f"--var is {pair!r}", "name=value")


def test_all_problems_of_the_file_come_at_once(tmp_path: Path):
    text, places = unmark("title: dog\n«1a»: x\nlist: «[»1]\nnone: «null»\n")
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(GraphError) as caught:
        given_variables([], tmp_path / "v.yaml")
    assert [problem.message for problem in caught.value.problems] == [
        "the string '1a' cannot be a variable's name",
        "variable 'list' is a list",
        "variable 'none' is null",
    ]
    assert [place_of(problem).line for problem in caught.value.problems] == [place.line for place in places]
    assert [place_of(problem).column for problem in caught.value.problems] == [p.column for p in places]


@pytest.mark.parametrize(("text", "what"), [("", "null"), ("- a\n", "a list"), ("a\n", "the string 'a'")])
def test_a_file_of_variables_is_a_mapping(tmp_path: Path, text: str, what: str):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(GraphError, match="names and values") as caught:
        given_variables([], tmp_path / "v.yaml")
    assert caught.value.problems[0].message == f"the variables are {what}"


def test_a_missing_file_is_said(tmp_path: Path):
    with pytest.raises(GraphError, match="no such file"):
        given_variables([], tmp_path / "none.yaml")


def test_on_the_command_line(tmp_path: Path, call: Call):
    (tmp_path / "g.yaml").write_text(GRAPH)
    (tmp_path / "v.toml").write_text("number = 12345\n")
    options = ["--vars", str(tmp_path / "v.toml"), "--var", "title=A red fox"]
    shown = call("show", str(tmp_path / "g.yaml"), "--tokenizer", "bytes", "--json", *options)
    assert json.loads(shown.out)["num_tokens"] == len("A red fox 12345")


def test_values_from_outside_stay_text(tmp_path: Path):
    (tmp_path / "g.yaml").write_text(GRAPH)
    parsed = parse_file(tmp_path / "g.yaml", {"title": "${number} $${x}"})
    assert parsed.texts == ("${number} $${x} 3",)


def test_a_variable_that_the_file_does_not_have_is_refused(tmp_path: Path):
    (tmp_path / "g.yaml").write_text(GRAPH)
    with pytest.raises(GraphError) as caught:
        parse_file(tmp_path / "g.yaml", {"titel": "x"})
    (problem,) = caught.value.problems
    assert problem.message == "the file has no variable 'titel'"
    assert problem.hint == "did you mean 'title'?"


@pytest.mark.parametrize(
    "text",
    [
        'legraph: 1\ntokenizer: "${x}"\nchunks: [{name: a, text: b}]\n',
        'legraph: 1\nvars: {y: "${x}!"}\nchunks: [{name: a, text: "${y}"}]\n',
        'legraph: 1\nchunks: [{name: a, text: b}]\nassert: [{sees: ["${x}", a]}]\n',
        'legraph: 1\nchunks: [{name: a, text: b, for: {i: ["${x}"]}}]\n',
    ],
    ids=["in a setting", "in another variable", "in an assertion", "in a loop"],
)
def test_a_variable_need_not_be_declared_where_it_is_used(tmp_path: Path, text: str):
    (tmp_path / "g.yaml").write_text(text)
    assert parse_file(tmp_path / "g.yaml", {"x": "a"}).spec.chunks[0].name == "a"
