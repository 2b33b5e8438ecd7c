"""The text of a graph file: which files are read, in which syntax, and what a report shows of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from legraph.errors import GraphError, Problem, Source
from legraph.source import MAX_FILE_BYTES, SourceText, read_text_file

TOO_LARGE = "a smaller file: long texts can stand in files of their own, named by 'file'"


def problem_of(path: str | Path) -> Problem:
    with pytest.raises(GraphError) as caught:
        SourceText.load(path)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    "name, text, syntax",
    [
        ("g.yaml", "a = 1", "yaml"),
        ("g.YML", "a = 1", "yaml"),
        ("g.json", "{}", "yaml"),
        ("g.toml", "a: 1", "toml"),
        ("g.TOML", "a: 1", "toml"),
        ("g", "legraph: 1", "yaml"),
        ("g.txt", "legraph = 1", "toml"),
    ],
)
def test_the_suffix_tells_the_syntax_and_else_the_text_does(
    tmp_path: Path, name: str, text: str, syntax: str
):
    path = tmp_path / name
    path.write_text(text)
    source = SourceText.load(path)
    assert source == SourceText(str(path), text, syntax, tmp_path)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "text, syntax",
    [
        ("legraph = 1", "toml"),
        ("\n# comment: a\n\n legraph=1", "toml"),
        ("[[chunks]]\nname: 'a'", "toml"),
        ("[ chunks . 'x' ] # c", "toml"),
        ("[[chunks]]# c", "toml"),
        ("chunks.generate.seed = 1", "toml"),
        ("'legraph' = 1", "toml"),
        ("", "yaml"),
        ("# a = 1\n", "yaml"),
        ("legraph: 1", "yaml"),
        ("# c\nlegraph: 1\nx = 2", "yaml"),
        ("text: a = b", "yaml"),
        ('{"legraph": 1}', "yaml"),
        ("{legraph: 1}", "yaml"),
        ("[a, b]", "yaml"),
        ("---\nlegraph: 1", "yaml"),
        ("- a = b", "yaml"),
        ("%YAML 1.1\n---\na: b", "yaml"),
    ],
)
def test_the_first_line_tells_the_syntax_of_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, syntax: str
):
    path = tmp_path / "input"
    path.write_text(text)
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert SourceText.load("-") == SourceText("<stdin>", text, syntax, Path())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "raw, message, expected",
    [
        (b"a: \xff", "standard input: is not UTF-8: byte 0xff at offset 3 (line 1)", "UTF-8 text"),
        (b"a: \0", "standard input: is a binary file", "UTF-8 text"),
    ],
)
def test_standard_input_is_checked_like_a_file(raw: bytes, message: str, expected: str):
    code = "from legraph.source import SourceText; SourceText.load('-')"
    run = subprocess.run([sys.executable, "-c", code], input=raw, capture_output=True)
    assert f"legraph.errors.GraphError: {message}\n  expected: {expected}" in run.stderr.decode()


def test_a_relative_name_on_standard_input_starts_from_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "input").write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    with Path("input").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        folder = SourceText.load("-").folder
    assert read_text_file(folder / "input", "input") == "a: 1"


@pytest.mark.parametrize(
    "raw, text",
    [
        (b"\xef\xbb\xbfa: 1\r\n", "a: 1\r\n"),
        ("é😀".encode(), "é😀"),
        (b"", ""),
        ("a\ufeff".encode(), "a\ufeff"),
    ],
    ids=["byte order mark", "wide", "empty", "mark elsewhere"],
)
def test_a_file_is_utf_8_with_or_without_a_byte_order_mark(tmp_path: Path, raw: bytes, text: str):
    path = tmp_path / "g.yaml"
    path.write_bytes(raw)
    assert SourceText.load(path).text == text
    assert read_text_file(path, "g") == text


def missing(folder: Path) -> Path:
    return folder / "no.yaml"


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "g.yaml"


def a_folder(folder: Path) -> Path:
    return folder


def binary(folder: Path) -> Path:
    (folder / "g.npz").write_bytes(b"PK\x03\x04\0\0")
    return folder / "g.npz"


def utf_16(folder: Path) -> Path:
    (folder / "g.yaml").write_text("legraph: 1", encoding="utf-16")
    return folder / "g.yaml"


def latin_1(folder: Path) -> Path:
    (folder / "g.yaml").write_bytes(b"legraph: 1\r\n# caf\xe9\n")
    return folder / "g.yaml"


def cut_in_a_character(folder: Path) -> Path:
    (folder / "g.yaml").write_bytes("a: é".encode()[:-1])
    return folder / "g.yaml"


def with_nul(folder: Path) -> Path:
    return folder / "a\0b"


def of_endless_name(folder: Path) -> Path:
    return folder / ("x" * 300)


def large(folder: Path) -> Path:
    path = folder / "g.yaml"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)
    return path


LATIN_HINT = "convert it, for example with: iconv -f LATIN1 -t UTF-8"


@pytest.mark.parametrize(
    "make, message, expected, hint",
    [
        (missing, "no such file", None, None),
        (below_a_file, "cannot be read: Not a directory", None, None),
        (a_folder, "is a folder, not a file", None, None),
        (binary, "is a binary file", "UTF-8 text", None),
        (utf_16, "is a binary file", "UTF-8 text", None),
        (latin_1, "is not UTF-8: byte 0xe9 at offset 17 (line 2)", "UTF-8 text", LATIN_HINT),
        (cut_in_a_character, "is not UTF-8: byte 0xc3 at offset 3 (line 1)", "UTF-8 text", LATIN_HINT),
        (of_endless_name, "cannot be read: File name too long", None, None),
        (large, "larger than 64 MiB", TOO_LARGE, None),
    ],
)
def test_a_file_that_cannot_be_a_text_is_refused(
    tmp_path: Path, make: object, message: str, expected: str | None, hint: str | None
):
    path = make(tmp_path)  # pyright: ignore[reportCallIssue]
    refused = Problem(f"{path}: {message}", expected, hint)
    assert problem_of(path) == refused
    with pytest.raises(GraphError) as caught:
        read_text_file(path, str(path))
    assert caught.value.problems == (refused,)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path):
    path = tmp_path / "g.yaml"
    path.touch(mode=0)
    assert problem_of(path) == Problem(f"{path}: cannot be read: Permission denied")


@pytest.mark.parametrize("name", ["a\0b", "a\x1b[2J", "a\u202eb"])
def test_names_of_files_do_not_reach_the_terminal_raw(tmp_path: Path, name: str):
    problem = problem_of(tmp_path / name)
    what = "cannot be a file's name" if "\0" in name else "no such file"
    assert problem == Problem(f"{str(tmp_path / name)!r}: {what}")


def test_the_name_of_a_graph_file_does_not_reach_the_terminal_raw(tmp_path: Path):
    path = tmp_path / "a\x1b[2J.yaml"
    path.write_text("a: 1")
    assert SourceText.load(path).place(("a",)).file == repr(str(path))


def test_a_large_file_is_not_read_whole(tmp_path: Path):
    path = large(tmp_path)
    tracemalloc.start()
    try:
        problem_of(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_FILE_BYTES * 1.5


def test_a_file_of_the_largest_size_is_read(tmp_path: Path):
    path = tmp_path / "g.yaml"
    path.write_bytes(b"#" * MAX_FILE_BYTES)
    assert len(SourceText.load(path).text) == MAX_FILE_BYTES


def source(text: str, syntax: str = "yaml") -> SourceText:
    return SourceText("g", text, syntax, Path())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("syntax, text", [("yaml", "a:\n  b: [1, 2]\n"), ("toml", "[a]\n  b = [1, 2]\n")])
def test_a_place_knows_line_column_width_and_path(syntax: str, text: str):
    line = text.split("\n")[1]
    found = source(text, syntax)
    path = ("a", "b", 1)
    assert found.place(path) == Source("g", 2, line.index("2") + 1, path, line, 1)
    assert found.place(("a", "b"), at_key=True) == Source("g", 2, 3, ("a", "b"), line, 1)
    value = found.place(("a", "b"))
    assert value.column == line.index("[") + 1


@pytest.mark.parametrize(
    "path, line, column",
    [(("a", "c"), 2, 3), (("a", "b", 7), 2, 6), (("x", "y"), 1, 1), ((), 1, 1)],
    ids=["missing key", "missing entry", "nothing of it", "the file"],
)
def test_what_is_not_there_stands_where_its_owner_stands(path: tuple[str | int, ...], line: int, column: int):
    place = source("a:\n  b: [1, 2]\n").place(path)
    assert (place.line, place.column, place.key_path) == (line, column, path)


@pytest.mark.parametrize("text", ["", "--- ", "# c\n\n- a: "])
def test_the_end_of_a_text_is_in_its_last_line(text: str):
    last = text.split("\n")[-1]
    with pytest.raises(GraphError) as caught:
        source(text + "[").read()
    place = Source("g", text.count("\n") + 1, len(last) + 2, (), last + "[", 1)
    assert [each.source for each in caught.value.problems] == [place]


def test_an_empty_text_has_a_place():
    assert source("").place(()) == Source("g", 1, 1, (), "", 1)


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\x85", "\u2028", "\u2029"])
def test_lines_end_where_yaml_says(line_break: str):
    place = source(f"a: 1{line_break}b: 2{line_break}c: 3").place(("c",))
    assert (place.line, place.column, place.line_text) == (3, 4, "c: 3")


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_lines_end_where_toml_says(line_break: str):
    place = source(f"a = 'x\u2028\x85y'{line_break}c = 3", "toml").place(("c",))
    assert (place.line, place.column, place.line_text) == (2, 5, "c = 3")


@pytest.mark.parametrize(
    "syntax, text, message",
    [
        ("yaml", "a: 1\nb: [", "broken YAML: did not find expected node content while parsing a flow node"),
        ("toml", "a = 1\nb = ", "broken TOML: Invalid value"),
    ],
)
def test_broken_syntax_is_one_problem_with_its_place(syntax: str, text: str, message: str):
    with pytest.raises(GraphError) as caught:
        source(text, syntax).read()
    line = text.split("\n")[1]
    assert caught.value.problems == (Problem(message, source=Source("g", 2, len(line) + 1, (), line, 1)),)


def test_problems_that_do_not_stop_the_reading_come_with_the_data():
    data, problems = source("a: 1\na: 2\n").read()
    assert data == {"a": 1}
    assert problems == [
        Problem(
            "key 'a' is repeated (first on line 1)",
            "each key once",
            source=Source("g", 2, 1, (), "a: 2", 1),
        )
    ]
