"""`for`: what a loop goes over, in which order, and what is said of sources that cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.errors import GraphError, Problem
from legraph.loops import check_inside, items_of
from legraph.variables import Item, Scope


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs/more").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "more/c.txt", "a.md"):
        (tmp_path / "docs" / name).write_text(name)
    return tmp_path


def values(source: Any, folder: Path = Path()) -> list[Any]:
    return [item.value for item in items_of(source, folder, folder)]


def problem_of(source: Any, folder: Path = Path()) -> Problem:
    with pytest.raises(GraphError) as caught:
        items_of(source, folder, folder)
    (problem,) = caught.value.problems
    return problem


def filled(text: str, item: Item) -> str:
    said: list[Any] = []
    result = Scope({"x": item}).fill(text, lambda *problem: said.append(problem))
    assert not said
    return result


def test_files_and_what_is_known_of_each(folder: Path):
    assert values("docs/*.txt", folder) == ["docs/a.txt", "docs/b.txt"]
    assert values("docs/**/*.txt", folder) == ["docs/a.txt", "docs/b.txt", "docs/more/c.txt"]
    assert values("docs/[b-z].txt", folder) == ["docs/b.txt"]
    assert values("docs/b.txt", folder) == ["docs/b.txt"]
    _, _, item = items_of("docs/**/*.txt", folder, folder)
    assert filled("${x} ${x.path} ${x.name} ${x.stem} ${x.index} ${x.number}", item) == (
        "docs/more/c.txt docs/more/c.txt c.txt c 2 3"
    )
    assert item.shown == "docs/more/c.txt"


def test_numbers_in_names_count_as_numbers(tmp_path: Path):
    numbers = [0, 1, 2, 9, 10, 11, 99, 100, 317]
    names = [f"part{one}_{other}.txt" for one in numbers for other in (2, 10)]
    for name in random.Random(0).sample(names, len(names)):
        (tmp_path / name).touch()
    assert values("*.txt", tmp_path) == names


def test_names_with_the_same_numbers_have_an_order_too(tmp_path: Path):
    """That of the file system differs from machine to machine."""
    for name in ("a1.txt", "a001.txt", "a01.txt", "a2.txt"):
        (tmp_path / name).touch()
    assert values("*.txt", tmp_path) == ["a001.txt", "a01.txt", "a1.txt", "a2.txt"]


CELLS = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)


@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_rows_of_all_formats_are_the_same(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("rows")
    objects = [{"title": title, "body": body} for title, body in rows]
    table = io.StringIO(newline="")
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([("title", "body"), *rows])
    (folder / "r.csv").write_text(table.getvalue(), encoding="utf-8", newline="")
    (folder / "r.json").write_text(json.dumps(objects, indent=1))
    (folder / "r.jsonl").write_text("\n\n".join(map(json.dumps, objects)) + "\n")
    for source in ("r.csv", "r.json", "r.jsonl", objects):
        found = items_of(source, folder, folder)
        assert [item.value for item in found] == objects
        written = [filled("${x.index}/${x.number}: ${x.title}|${x.body}", item) for item in found]
        assert written == [f"{i}/{i + 1}: {title}|{body}" for i, (title, body) in enumerate(rows)]


def test_lines_of_rows_count_as_in_the_file(tmp_path: Path):
    (tmp_path / "r.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "r.csv").write_text('\ufeffa,b\n1,"two\nlines"\n3,4\n', encoding="utf-8")
    shown = [item.shown for item in items_of("r.jsonl", tmp_path, tmp_path)]
    assert shown == [f"{tmp_path}/r.jsonl:2", f"{tmp_path}/r.jsonl:4"]
    assert values("r.csv", tmp_path) == [{"a": "1", "b": "two\nlines"}, {"a": "3", "b": "4"}]


def test_rows_may_be_scalars_and_their_own_columns_come_first(tmp_path: Path):
    (tmp_path / "r.jsonl").write_text('"red"\n3\ntrue\n{"index": "mine"}\n')
    items = items_of("r.jsonl", tmp_path, tmp_path)
    assert [filled("${x}", item) for item in items[:3]] == ["red", "3", "true"]
    assert filled("${x.index} ${x.number}", items[3]) == "mine 4"


def test_lists():
    assert values(["red", 3, 0.5, True]) == ["red", 3, 0.5, True]
    first, second = items_of(["red", {"name": "blue"}], Path(), None)
    assert (first.shown, second.shown) == ("'red'", "entry 2")
    assert filled("${x.name} ${x.index}", second) == "blue 1"


@pytest.mark.parametrize("bounds", [3, [3], [1, 4], [10, 0, -3], [0, 10, 4]])
def test_ranges_are_those_of_python(bounds: int | list[int]):
    expected = range(bounds) if isinstance(bounds, int) else range(*bounds)
    assert values({"range": bounds}) == list(expected)
    assert [item.shown for item in items_of({"range": bounds}, Path(), None)] == list(map(str, expected))


FORMS = "a glob of files, a .jsonl, .json or .csv file, a list, or {range: n}"
RANGE = "n, [start, stop] or [start, stop, step]"


@pytest.mark.parametrize(
    ("source", "message", "expected"),
    [
        ("none/*.txt", "no file matches none/*.txt", FORMS),
        ("docs", "no file matches docs", FORMS),
        ("", "'' is no glob of files", FORMS),
        (".", "'.' is no glob of files", FORMS),
        ("**x", "'**x' is no glob of files", FORMS),
        ("a\0*", r"no file matches 'a\x00*'", FORMS),
        ("none.csv", "none.csv: no such file", None),
        (7, "a loop goes over the number 7", FORMS),
        (None, "a loop goes over null", FORMS),
        ({"range": 3, "step": 1}, "a loop goes over a mapping", FORMS),
        ([], "the loop has no items", "at least one"),
        ([["a"]], "entry 1 is a list", "a string, a number or a mapping"),
        (["a", None], "entry 2 is null", "a string, a number or a mapping"),
        ({"range": 0}, "the loop has no items", "at least one"),
        ({"range": [3, 3]}, "the loop has no items", "at least one"),
        ({"range": "3"}, "range is the string '3'", RANGE),
        ({"range": True}, "range is the boolean true", RANGE),
        ({"range": []}, "range is a list", RANGE),
        ({"range": [1, 2, 0]}, "the range has a step of 0", "another step"),
        ({"range": [1, 2, 3, 4]}, "range is a list", RANGE),
        ({"range": 10**30}, "the range is too long", "at most 1,000,000 numbers"),
        ({"range": [0, -(10**30), -1]}, "the range is too long", "at most 1,000,000 numbers"),
    ],
)
def test_sources_that_are_none(source: Any, message: str, expected: str | None, folder: Path):
    problem = problem_of(source, folder)
    assert (problem.message, problem.expected, problem.source) == (message, expected, None)


@pytest.mark.parametrize(
    ("name", "text", "message", "line", "column"),
    [
        ("r.jsonl", '{"a": 1}\n{"a": 2,}\n', "not JSON: Illegal trailing comma", 2, 8),
        ("r.jsonl", '{"a": 1}\n\nnull\n', "the row is null", 3, None),
        ("r.jsonl", "[1]\n", "the row is a list", 1, None),
        ("r.jsonl", '{"a": 1, "a": 2}\n', "not JSON: duplicate key 'a'", 1, None),
        ("r.jsonl", 3000 * "[" + "\n", "not JSON: nested too deeply", 1, None),
        ("r.json", '[\n{"a": 1},\n{"a" 2}]', "not JSON: Expecting ':' delimiter", 3, 6),
        ("r.json", '{"a": 1}', "the file holds a mapping", None, None),
        ("r.csv", "a,b\n1,2\n3\n", "the row has 1 fields, and the header 2", 3, None),
        ("r.csv", "a,a\n1,2\n", "a column's name is there twice", 1, None),
        ("r.csv", 'a,b\n1,"2\n', "not CSV: unexpected end of data", 2, None),
    ],
)
def test_rows_that_cannot_be_read_are_named_by_file_and_line(
    name: str, text: str, message: str, line: int | None, column: int | None, tmp_path: Path
):
    (tmp_path / name).write_text(text)
    problem = problem_of(name, tmp_path)
    assert problem.message.startswith(message.removesuffix("Illegal trailing comma"))
    assert problem.source is not None
    assert (problem.source.file, problem.source.line) == (str(tmp_path / name), line)
    assert problem.source.column == column or "trailing" in message


@pytest.mark.parametrize(
    ("name", "text"), [("r.csv", ""), ("r.csv", "a,b\n"), ("r.jsonl", "\n"), ("r.json", "[]")]
)
def test_files_without_rows(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    assert problem_of(name, tmp_path).message == "the loop has no items"


def test_an_entry_of_a_json_file_is_named(tmp_path: Path):
    (tmp_path / "r.json").write_text('[{"a": 1}, null]')
    assert problem_of("r.json", tmp_path).message == f"{tmp_path}/r.json, entry 2 is null"


def test_files_that_are_not_utf_8(tmp_path: Path):
    (tmp_path / "r.csv").write_bytes(b"a\n\xff\n")
    assert problem_of("r.csv", tmp_path).message.startswith("r.csv: is not UTF-8: byte 0xff")
    try:
        (tmp_path / os.fsdecode(b"\xff.txt")).touch()
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    assert "is not UTF-8" in problem_of("*.txt", tmp_path).message


OUTSIDE = ["../x.txt", "a/../../x.txt", "/etc/hosts", "*/../../*.txt", "/../*.csv"]
INSIDE = ["x.txt", "a/../x.txt", "a/b.txt", "..x.txt", "./x.txt", "a:b.txt", "~x/y.txt", "a/./b..txt"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_leave_the_tree_are_refused(path: str, tmp_path: Path):
    tree = tmp_path / "tree"
    for source in (path, str(Path(path).with_suffix(".jsonl"))):
        problem = problem_of(source, tree)
        assert problem.message.endswith("leads out of the folder of the graph file")
        assert problem.hint == "--allow-outside lets paths lead anywhere"
    check_inside(path, tree, None)


@pytest.mark.parametrize("path", INSIDE)
def test_paths_inside_are_not(path: str, tmp_path: Path):
    check_inside(path, tmp_path, tmp_path)
    check_inside(f"../{path}", tmp_path / "sub", tmp_path)
    check_inside(str(tmp_path / path), tmp_path, tmp_path)


def test_the_tree_is_not_a_prefix_of_letters(tmp_path: Path):
    with pytest.raises(GraphError):
        check_inside("../tree-2/x.txt", tmp_path / "tree", tmp_path / "tree")


def test_files_outside_where_that_is_allowed(folder: Path):
    inner = folder / "docs/more"
    assert [item.value for item in items_of("../*.txt", inner, None)] == ["../a.txt", "../b.txt"]
    absolute = [item.value for item in items_of(f"{folder}/docs/*.txt", inner, None)]
    assert absolute == [f"{folder}/docs/a.txt", f"{folder}/docs/b.txt"]
