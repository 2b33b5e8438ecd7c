"""JSONL of graphs: what is read, and every way in which a row can be wrong, with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.errors import GraphError
from legraph.graph import build_graph
from legraph.parse import parse_file
from legraph.rows import Row, read_rows

Read = Callable[[str], list[Row]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@pytest.fixture
def read(path: Path) -> Read:
    def read_text(text: str) -> list[Row]:
        path.write_bytes(text.encode())
        return read_rows(path)

    return read_text


def row(name: str = "one", text: str = "Hello.", **more: Any) -> str:
    return json.dumps({"id": name, "graph": {"legraph": 1, "chunks": [{"name": "a", "text": text} | more]}})


def problems(read: Read, text: str) -> list[tuple[int | None, str]]:
    """The line and the message of each problem."""
    with pytest.raises(GraphError) as caught:
        read(text)
    return [(p.source.line if p.source else None, p.message) for p in caught.value.problems]


# What is read


def test_rows_come_in_order_with_their_lines(read: Read) -> None:
    found = read(f"\n{row('b')}\n\n  \n{row('a', 'Other.')}\r\n")
    assert [(one.id, one.line) for one in found] == [("b", 2), ("a", 5)]
    assert [one.graph.texts for one in found] == [("Hello.",), ("Other.",)]


def test_a_row_is_the_graph_that_its_file_would_be(read: Read, tmp_path: Path) -> None:
    data = {
        "legraph": 1,
        "tokenizer": "bytes",
        "positions": "local",
        "bos": True,
        "chunks": [
            {"name": "a", "text": "Yes: {no} \"# 'é\n"},
            {
                "name": "b",
                "text": "x",
                "parents": ["a"],
                "start": 4,
                "generate": {"stop": ["\n"], "top_p": 0.5},
            },
        ],
    }
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(data))
    (one,) = read(json.dumps({"id": "one", "graph": data}))
    assert build_graph(one.graph) == build_graph(parse_file(file))


def test_files_that_a_graph_names_lie_beside_the_rows(read: Read, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("from a file")
    (one,) = read('{"id": "x", "graph": {"legraph": 1, "chunks": [{"name": "a", "file": "text.txt"}]}}')
    assert one.graph.texts == ("from a file",)


@given(text=st.text(st.characters(exclude_categories=["Cs"])), escaped=st.booleans())
def test_any_text_arrives_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, text: str, escaped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    data = {"id": "x", "graph": {"legraph": 1, "chunks": [{"name": "a", "text": text.replace("${", "$${")}]}}
    path.write_text(json.dumps(data, ensure_ascii=escaped), encoding="utf-8", newline="")
    (one,) = read_rows(path)
    assert one.graph.texts == (text,)


def test_a_byte_order_mark_is_passed_over(read: Read) -> None:
    assert len(read("\ufeff" + row())) == 1


# What is wrong


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes"),
        ("{'id': 1}", "not JSON: Expecting property name enclosed in double quotes"),
        (row() + row(), "not JSON: Extra data"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        (
            f'{{"id": {"9" * 5000}}}',
            "not JSON: Exceeds the limit (4300 digits) for integer string conversion",
        ),
        ('{"id": "a", "id": "b", "graph": {}}', "not JSON: duplicate key 'id'"),
        (row().replace('"name"', '"text": "x", "name"'), "not JSON: duplicate key 'text'"),
        ("[]", "the line is not an object"),
        ("null", "the line is not an object"),
        ('"graph.yaml"', "the line is not an object"),
        (row(""), "'id' is the string"),
        (row().replace('"one"', "7"), "'id' is the number 7"),
        ('{"id": "a"}', "the row has no 'graph'"),
        ('{"id": "a", "graph": "graph.yaml"}', "the row has no 'graph'"),
        (row().replace('"id"', '"seed": 1, "id"'), "unknown key 'seed'"),
        (row(start="x"), "graph.chunks[0].start: 'start' must be a whole number, not the string 'x'"),
        (row(parents=["b"]), "graph.chunks[0].parents[0]: unknown parent 'b'"),
        (row(txet="x"), "graph.chunks[0].txet: unknown key 'txet'"),
        (
            row().replace("Hello.", "\\ud800"),
            "graph: broken YAML: found invalid Unicode character escape code",
        ),
        ('{"id": "a", "graph": {}}', "graph: the file has no 'legraph'"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(line: str, message: str, read: Read) -> None:
    ((number, said), *_) = problems(read, f"{row('good')}\n\n{line}\n{row('other')}\n")
    assert number == 3
    assert said.startswith(message)


def test_all_problems_of_all_rows_are_told_at_once(read: Read) -> None:
    said = problems(
        read,
        "\n".join(
            [
                row("a"),
                "nonsense",
                '{"grpah": {}, "name": "x"}',
                row("b", parents=["x"], start=-1),
                row("a"),
                row("a", "and again"),
            ]
        ),
    )
    assert [line for line, _ in said] == [2, 3, 3, 3, 3, 4, 4, 5, 6]
    assert said[-1] == (6, "id 'a' is taken by line 1")


def test_a_problem_is_drawn_with_file_line_and_what_was_meant(read: Read, path: Path) -> None:
    with pytest.raises(GraphError) as caught:
        read('{"id": "x", "grpah": {}}\n{"id": x}')
    assert str(caught.value).splitlines() == [
        f"{path}:1: unknown key 'grpah'",
        "  expected: 'id' and 'graph'",
        "  hint: did you mean 'graph'?",
        f"{path}:1: the row has no 'graph'",
        "  expected: a graph file as a JSON object",
        f"{path}:2:8: not JSON: Expecting value",
        '      2 | {"id": x}',
        "        |        ^",
        "  expected: one JSON object on each line",
    ]


def test_a_problem_in_a_graph_keeps_its_path(read: Read) -> None:
    with pytest.raises(GraphError) as caught:
        read(f"{row('a')}\n{row('b', parents=['c'])}")
    (problem,) = caught.value.problems
    assert problem.source is not None
    assert (problem.source.line, problem.source.key_path) == (2, ("chunks", 0, "parents", 0))


@pytest.mark.parametrize("text", ["", "\n \n\t\n"])
def test_a_file_without_rows(text: str, read: Read, path: Path) -> None:
    with pytest.raises(GraphError, match=r"rows\.jsonl: the file has no rows") as caught:
        read(text)
    assert caught.value.problems[0].source is not None
    assert caught.value.problems[0].source.file == str(path)


def test_a_file_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(GraphError, match=r"rows\.jsonl: no such file"):
        read_rows(path)
    path.write_bytes(b'{"id": "\xff"}')
    with pytest.raises(GraphError, match="is not UTF-8"):
        read_rows(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(GraphError, match="is a folder"):
        read_rows(path)


def test_a_files_name_is_shown_but_not_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m.jsonl"
    path.write_text("x")
    with pytest.raises(GraphError) as caught:
        read_rows(path)
    assert "\x1b" not in str(caught.value)
