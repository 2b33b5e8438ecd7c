"""TOML is read by tomllib; where each value stands is found again behind it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.errors import KeyPath
from legraph.marks import MAX_DEPTH, Span, TextProblem
from legraph.toml_reader import read_toml, toml_marks
from tests.marked import unmark

STRINGS = st.text(max_size=8) | st.text("ab'\"\\\n#]}=,. ", max_size=8)
SCALARS = STRINGS | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False) | st.dates()
VALUES = st.recursive(
    SCALARS,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(STRINGS, part, max_size=3),
    max_leaves=15,
)
TABLES = st.dictionaries(STRINGS, VALUES, max_size=4)
COMMENT = '# x = [1, {a = "b"}] \'\'\' """ [[t]]'


class Writer:
    """Writes a table as TOML in forms chosen at random, and notes where it put each key and value."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        # Key path -> offset in the text, and what stands there.
        self.keys: dict[KeyPath, tuple[int, str]] = {}
        self.values: dict[KeyPath, tuple[int, str]] = {}

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def table(self, table: dict[str, Any], path: KeyPath = (), header: tuple[str, ...] = ()) -> None:
        with_header = []
        for key, value in table.items():
            if is_table(value) and self.choose(True, False):
                # Pairs behind a header would belong to it, so tables with a header come last.
                with_header.append((key, value))
            elif isinstance(value, dict) and value and self.choose(True, False):
                for inner, inner_value in value.items():
                    self.pair((*path, key, inner), (key, inner), inner_value)
                    self.end_line()
            else:
                self.pair((*path, key), (key,), value)
                self.end_line()
        for key, value in with_header:
            self.table_with_header(value, (*path, key), (*header, key))

    def table_with_header(self, value: Any, path: KeyPath, header: tuple[str, ...]) -> None:
        opening, closing = ("[[", "]]") if isinstance(value, list) else ("[", "]")
        for i, part in enumerate(value if isinstance(value, list) else [value]):
            part_path = (*path, i) if isinstance(value, list) else path
            names = self.dotted(header)
            self.values[part_path] = len(self.text), f"{opening}{names}{closing}"
            self.text += f"{opening}{names}{closing}"
            self.end_line()
            self.table(part, part_path, header)

    def pair(self, path: KeyPath, names: tuple[str, ...], value: Any) -> None:
        key = self.dotted(names)
        self.keys[path] = len(self.text), key
        self.text += key + self.choose("=", " = ", "\t= ")
        self.value(path, value)

    def value(self, path: KeyPath, value: Any) -> None:
        start = len(self.text)
        if isinstance(value, list):
            self.text += "["
            for i, part in enumerate(value):
                self.text += self.choose("", " ", "\n", f" {COMMENT}\n  ")
                self.value((*path, i), part)
                self.text += self.choose("", "\n") + ("," if i + 1 < len(value) else self.choose("", ",\n"))
            self.text += "]"
        elif isinstance(value, dict):
            self.text += "{"
            for i, (key, part) in enumerate(value.items()):
                self.text += ", " if i else self.choose("", " ")
                self.pair((*path, key), (key,), part)
            self.text += self.choose("", " ") + "}"
        else:
            self.text += self.scalar(value)
        self.values[path] = start, self.text[start:]

    def scalar(self, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return self.choose(*string_forms(value))
        return value.isoformat() if isinstance(value, date) else repr(value)

    def dotted(self, names: tuple[str, ...]) -> str:
        forms = [
            [*key_forms(name), name] if re.fullmatch("[A-Za-z0-9_-]+", name) else key_forms(name)
            for name in names
        ]
        return self.choose(".", " . ").join(self.choose(*form) for form in forms)

    def end_line(self) -> None:
        self.text += self.choose("\n", "\n\n", f"  {COMMENT}\n", f"\n{COMMENT}\n")


def is_table(value: Any) -> bool:
    rows = value if isinstance(value, list) else [value]
    return bool(rows) and all(isinstance(row, dict) for row in rows)


def key_forms(text: str) -> list[str]:
    escaped = "".join(char if is_plain(char) else f"\\U{ord(char):08x}" for char in text)
    return [f'"{escaped}"', *([f"'{text}'"] if "'" not in text and text.isprintable() else [])]


def string_forms(text: str) -> list[str]:
    """All ways to write a string; the line break behind the opening of a long one does not count."""
    escaped = "".join(char if is_plain(char) or char == "\n" else f"\\U{ord(char):08x}" for char in text)
    forms = [*key_forms(text), f'"""\n{escaped}"""', f'"""\\\n  \n {escaped}"""' if text == "" else '""""""']
    forms = [form for form in forms if tomllib.loads(f"x = {form}")["x"] == text]
    return [*forms, f"'''\n{text}'''"] if all(is_plain(char) or char == "\n" for char in text) else forms


def is_plain(char: str) -> bool:
    return char.isprintable() and char not in "\"\\'"


@st.composite
def written_tables(draw: st.DrawFn, tables: st.SearchStrategy[dict[str, Any]] = TABLES) -> Any:
    """A table, and a `Writer` that has written it."""
    table, writer = draw(tables), Writer(draw)
    writer.table(table)
    return table, writer


def span_of(text: str, offset: int, written: str) -> Span:
    line_start = text.rfind("\n", 0, offset) + 1
    return Span(text.count("\n", 0, offset), offset - line_start, len(written.split("\n")[0]))


@given(written_tables(), st.booleans())
def test_the_mark_of_every_key_and_value_points_at_it(written: tuple[dict[str, Any], Writer], crlf: bool):
    table, writer = written
    text = writer.text.replace("\n", "\r\n") if crlf else writer.text
    assert read_toml(text) == table
    marks = toml_marks(text)
    for path, (offset, literal) in writer.values.items():
        assert marks[path].value == span_of(writer.text, offset, literal)
    for path, (offset, key) in writer.keys.items():
        assert marks[path].key == span_of(writer.text, offset, key)


@given(written_tables())
def test_every_value_has_a_mark(written: tuple[dict[str, Any], Writer]):
    table, writer = written
    assert set(all_paths(table)) <= set(toml_marks(writer.text))


def all_paths(data: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if path:
        yield path
    if isinstance(data, dict | list):
        for key, part in data.items() if isinstance(data, dict) else enumerate(data):
            yield from all_paths(part, (*path, key))


@pytest.mark.parametrize(
    "marked, path",
    [
        ('a = «"b"» # c', ("a",)),
        ("[[chunks]]\nx = 1\n[[chunks]]\nx = «2»", ("chunks", 1, "x")),
        ("«[[chunks]]»\n[[chunks]]", ("chunks", 0)),
        ("[[chunks]]\n«[[chunks]]»", ("chunks", 1)),
        ("[[chunks]]\n[[chunks]]\n[chunks.generate]\nseed = «7»", ("chunks", 1, "generate", "seed")),
        ("[[chunks]]\n«[chunks.generate]»\nseed = 7", ("chunks", 0, "generate")),
        ("[[chunks]]\n[[chunks.stop]]\n«[[chunks.stop]]»", ("chunks", 0, "stop", 1)),
        ("[[chunks]]\ngenerate.seed = «7»", ("chunks", 0, "generate", "seed")),
        ("[[chunks]]\ngenerate . 'seed' = «7»", ("chunks", 0, "generate", "seed")),
        ('chunks = [{name = "a"}, «{name = "b"}»]', ("chunks", 1)),
        ('chunks = [{name = "a"}, {x.y = 1, name = «"b"»}]', ("chunks", 1, "name")),
        ("parents = [\n  'a', # b ]\n  «'c'»,\n]", ("parents", 1)),
        ("parents = [\n  'a', # b ]\n  'c',\n]\nx = «1»", ("x",)),
        ("a = «'''»\nx = 1\n'''\nb = 2", ("a",)),
        ("a = '''\nb = 1\n'''\nb = «2»", ("b",)),
        ('a = """\n\\"""b = 1\n""""\nb = «2»', ("b",)),
        ('a = """""x"""""\nb = «2»', ("b",)),
        ("a = ''\nb = \"\"\nc = '''x''\ny'''\nd = «1»", ("d",)),
        ("a = «1979-05-27 07:32:00» # x", ("a",)),
        ("a = «[[1, 2], [{b = [3]}]]»", ("a",)),
        ("a = [[1, 2], [{b = [«3»]}]]", ("a", 1, 0, "b", 0)),
        ('"legraph " = «0x1F»', ("legraph ",)),
        ("# é😀\na = ['é😀', «'b'»]", ("a", 1)),
    ],
)
def test_values_of_every_form_know_where_they_stand(marked: str, path: KeyPath):
    text, (place,) = unmark(marked)
    assert toml_marks(text)[path].value == Span(place.line - 1, place.column - 1, len(place.part))


@pytest.mark.parametrize(
    "marked, path",
    [
        ("«name» = 1", ("name",)),
        ("[[chunks]]\n«generate.seed» = 1", ("chunks", 0, "generate")),
        ("[[chunks]]\n[«chunks.generate»]", ("chunks", 0, "generate")),
        ("[[«chunks»]]\n[[chunks]]", ("chunks",)),
        ("a = {b = 1, «'c'» = 2}", ("a", "c")),
    ],
)
def test_keys_know_where_they_stand(marked: str, path: KeyPath):
    text, (place,) = unmark(marked)
    assert toml_marks(text)[path].key == Span(place.line - 1, place.column - 1, len(place.part))


def refusal(marked: str) -> TextProblem:
    """The problem that ends the reading of a text, after a look at its place."""
    text, (place,) = unmark(marked)
    with pytest.raises(TextProblem) as caught:
        read_toml(text)
    span = caught.value.span
    assert (span.line + 1, span.column + 1) == (place.line, place.column)
    return caught.value


@pytest.mark.parametrize(
    "marked, message",
    [
        ("a = «»", "Invalid value"),
        ("a = 1\nb = [1,\n«»", "Invalid value"),
        ("a = [1 «2»]", "Unclosed array"),
        ("a = 'x«»", 'Expected "\'"'),
        ("a = 'x«»\n'", "Found invalid character '\\n'"),
        ("«=» 1", "Invalid statement"),
        ("a «1»", "Expected '=' after a key in a key/value pair"),
        ("a = 1 «b» = 2", "Expected newline or end of document after a statement"),
        ("[a«»", "Expected ']' at the end of a table declaration"),
        ('x = "«\x1b»[2J"', "Illegal character '\\x1b'"),
        ("a = 1\r\nb = «n»o", "Invalid value"),
        ("a = 1«\r»b = 2", "Expected newline or end of document after a statement"),
        ("legraph«:» 1", "Expected '=' after a key in a key/value pair"),
    ],
)
def test_broken_toml_says_where(marked: str, message: str):
    assert refusal(marked).message == f"broken TOML: {message}"


@pytest.mark.parametrize(
    "marked, key, line",
    [
        ("a = 1\n«a» = 2", "a", 1),
        ("a = 1\r\nb = 2\r\n«a» = 3\r\n", "a", 1),
        ("a = 1\n«'a'» = 2 # a = 3", "a", 1),
        ("a = '''\nx\n'''\n«a» = '''\ny\n'''\n", "a", 1),
        ("[[c]]\nx = 1\n[[c]]\nx = 2\n«x» = [\n1]\ny = 3", "x", 4),
        ("a = {b = 1, «b» = {c = 1}, d = 2}", "b", 1),
        ("a = [{b = 1}, {b = 1,\t«b» = 'b = 1'}]", "b", 1),
        ("a.b = 1\n«a.b» = 2", "b", 1),
        ("[a]\nb = 1\n[«a»]\nb = 2", "a", 1),
        ("a = 1\n[«a»]", "a", 1),
        ("[a]\n[[«a»]]", "a", 1),
        ("a = []\n[[«a»]]", "a", 1),
        ("a = 1\n«a.b» = 2", "a", 1),
        ("a = {}\n«a.b» = 2", "a", 1),
        ("a.b = 1\n«a.b.c» = 2", "b", 1),
        ("a.b = 1\n[«a»]", "a", 1),
        ("[[c]]\n[c.g]\nx = 1\n[«c.g»]", "g", 2),
    ],
)
def test_a_repeated_key_is_named_and_found(marked: str, key: str, line: int):
    problem = refusal(marked)
    assert problem.message == f"key {key!r} is repeated (first on line {line})"
    assert problem.expected == "each key once"
    _, (place,) = unmark(marked)
    assert problem.span.width == len(place.part)


@pytest.mark.parametrize(
    "marked",
    [
        "a = " + "[" * MAX_DEPTH + "«[»" + "]" * (MAX_DEPTH + 1),
        "a = " + "{a = " * (MAX_DEPTH - 1) + "{«a» = 1" + "}" * MAX_DEPTH,
        "a = " + "[" * MAX_DEPTH + "«[»" + "[" * 100_000,
        "«" + "a." * MAX_DEPTH + "a» = 1",
        "[«" + "a." * MAX_DEPTH + "a»]",
        "[[«" + "a." * MAX_DEPTH + "a»]]",
        "[" + "a." * (MAX_DEPTH - 2) + "a]\n«a.a» = 1",
        "\n".join(f"[[{'.'.join('a' * i)}]]" for i in range(1, MAX_DEPTH // 2 + 1))
        + f"\n[[«{'.'.join('a' * (MAX_DEPTH // 2 + 1))}»]]",
    ],
    ids=[
        "list",
        "inline table",
        "endless list",
        "dotted key",
        "header",
        "list header",
        "key below header",
        "lists in lists",
    ],
)
def test_deep_nesting_is_refused_where_it_is_too_deep(marked: str):
    problem = refusal(marked)
    assert problem.message == f"nested deeper than {MAX_DEPTH} levels"
    assert problem.expected == "a graph file nests 4 levels deep"


@pytest.mark.parametrize("opening", ["[", "{a = "])
def test_endless_nesting_is_refused(opening: str):
    with pytest.raises(TextProblem, match=f"nested deeper than {MAX_DEPTH} levels"):
        read_toml("a = " + opening * 100_000)


def test_nesting_up_to_the_limit_is_read():
    text = ".".join("a" * MAX_DEPTH) + " = 1"
    assert read_toml(text) == tomllib.loads(text)


def test_endless_numbers_are_refused():
    problem = refusal(f"x = 1\na = «{'9' * 100_000}»")
    assert problem.message == "a number of more than 4,300 digits"
    assert problem.span.width == 100_000


def test_what_looks_like_a_number_in_a_text_is_not_one():
    text = f"a = '{'9' * 5000}'"
    assert read_toml(text) == {"a": "9" * 5000}
