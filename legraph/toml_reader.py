"""TOML text -> plain data, and where each value stands.

`tomllib` parses but forgets where a valid value stood. The scanner below walks a text that tomllib has
accepted, so it need not judge anything: it only follows keys, tables and brackets and notes the places.
It runs only when there is a problem to report.
"""

from __future__ import annotations

import re
import sys
import tomllib
from bisect import bisect_right
from math import inf
from typing import Any, cast

from legraph.errors import KeyPath
from legraph.marks import MAX_DEPTH, Mark, Span, TextProblem, quoted

_LINE_BREAK = re.compile("\r?\n")

_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' + r"|'''.*?'{3,5}" + r'|"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'", re.DOTALL
)
_BARE_VALUE = re.compile(r"[^,\]}#\n]*[^,\]}#\s]")
# Python refuses to read decimal numbers longer than this.
_HUGE_NUMBER = re.compile(rf"[+-]?[0-9](?:_?[0-9]){{{sys.int_info.default_max_str_digits},}}")
# tomllib's words for a key that is given twice, or that stands below a value.
_KEY_PROBLEMS = ("Cannot ", "Duplicate ")


def read_toml(text: str) -> Any:
    """The data of a TOML text.

    Raises:
        TextProblem: the text is not TOML, or nests deeper than MAX_DEPTH.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _broken(text, str(error)) from None
    except ValueError:
        found = _HUGE_NUMBER.search(text)
        start = found.start() if found else len(text)
        message = f"a number of more than {sys.int_info.default_max_str_digits:,} digits"
        raise TextProblem(message, *_last_place(text[:start]), found.end() - start if found else 1) from None
    except RecursionError:
        data = None
    if data is None or _is_deep(data):
        # The scanner stops where the depth is exceeded. Up to there tomllib has accepted the text.
        toml_marks(text)
    return data


def _broken(text: str, message: str) -> TextProblem:
    """tomllib's message at its place; a repeated key is named, and found at its own place."""
    found = _AT.search(message)
    message = _AT.sub("", message)
    place = (int(found[1]) - 1, int(found[2]) - 1) if found and found[1] else _last_place(text)
    if message.startswith(_KEY_PROBLEMS):
        try:
            _Scanner(text).scan(refused_at=place)
        except TextProblem as problem:
            return problem
    return TextProblem(f"broken TOML: {message}", *place)


def toml_lines(text: str) -> list[str]:
    """The lines of a text, as marks count them."""
    return _LINE_BREAK.split(text)


def toml_marks(text: str) -> dict[KeyPath, Mark]:
    """The place of every key and value of a text that `read_toml` accepts, by key path.

    Raises:
        TextProblem: the text nests deeper than MAX_DEPTH.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.marks: dict[KeyPath, Mark] = {}
        self.array_sizes: dict[KeyPath, int] = {}
        self.line_starts = [0, *(found.end() for found in re.finditer("\n", text))]
        # The text is TOML up to here.
        self.end: float = inf

    def scan(self, refused_at: tuple[int, int] | None = None) -> dict[KeyPath, Mark]:
        """With `refused_at`, the line and column behind a key that tomllib refused, it ends with that."""
        if refused_at is not None:
            line, column = refused_at
            self.end = self.line_starts[line] + column
        table: KeyPath = ()
        self._skip_blank()
        while self.at < min(len(self.text), self.end):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip_blank()
        return self.marks

    def _header(self) -> KeyPath:
        start = self.at
        is_array = self.text.startswith("[[", start)
        self.at += 2 if is_array else 1
        names, span = self._key()
        self._check_depth(len(names), span)
        known, path = None, ()
        for name in names:
            path = (*self._latest(path), name)
            known = path if path in self.marks else known
            self.marks.setdefault(path, Mark(span, span))
        self._check_end(known, span)
        self.at = self.text.index("]", self.at) + (2 if is_array else 1)
        if is_array:
            index = self.array_sizes.get(path, 0)
            self.array_sizes[path] = index + 1
            path = (*path, index)
        self._check_depth(len(path), span)
        whole = self._span(start, self.at)
        self.marks[path] = Mark(whole if is_array else span, whole)
        return path

    def _latest(self, path: KeyPath) -> KeyPath:
        """A table inside an array of tables belongs to the last one opened."""
        size = self.array_sizes.get(path)
        return path if size is None else (*path, size - 1)

    def _pair(self, table: KeyPath) -> None:
        names, key_span = self._key()
        self._check_depth(len(table) + len(names), key_span)
        self.at = self.text.index("=", self.at) + 1
        known, path = None, table
        for name in names:
            path = (*path, name)
            known = path if path in self.marks else known
            self.marks.setdefault(path, Mark(key_span, key_span))
        self._value(path, key_span, known)

    def _key(self) -> tuple[list[str], Span]:
        """A possibly dotted key; leaves `at` behind it."""
        self._skip_blank()
        start, names = self.at, list[str]()
        while True:
            self._skip_blank()
            found = _BARE_KEY.match(self.text, self.at) or _STRING.match(self.text, self.at)
            assert found is not None
            names.append(_key_name(found[0]))
            self.at = end = found.end()
            self._skip_blank()
            if not self.text.startswith(".", self.at):
                return names, self._span(start, end)
            self.at += 1

    def _value(self, path: KeyPath, key_span: Span | None, known: KeyPath | None) -> None:
        self._skip_blank()
        start = self.at
        self._check_depth(len(path), self._span(start, start + 1))
        opening = self.text[start]
        if opening == "[":
            self._items(path)
        elif opening == "{":
            self._inline_table(path)
        else:
            found = _STRING.match(self.text, start) or _BARE_VALUE.match(self.text, start)
            assert found is not None
            self.at = found.end()
        span = self._span(start, self.at)
        if key_span is not None:
            self._check_end(known, key_span)
        self.marks[path] = Mark(key_span or span, span)

    def _check_depth(self, depth: int, span: Span) -> None:
        if depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise TextProblem(message, span.line, span.column, expected="a graph file nests 4 levels deep")

    def _check_end(self, known: KeyPath | None, span: Span) -> None:
        """A key is refused where it, or what it stands below, has been given before: `known`."""
        if self.at >= self.end and known is not None:
            first = self.marks[known].key.line + 1
            message = f"key {quoted(str(known[-1]))} is repeated (first on line {first})"
            raise TextProblem(message, span.line, span.column, span.width, "each key once")

    def _items(self, path: KeyPath) -> None:
        self.at += 1
        index = 0
        while not self._closed("]"):
            self._value((*path, index), None, None)
            index += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while not self._closed("}"):
            self._pair(path)

    def _closed(self, bracket: str) -> bool:
        """Skips to the next item; True, with `at` behind the bracket, when there is none."""
        self._skip_blank()
        if self.text[self.at] == ",":
            self.at += 1
            self._skip_blank()
        if self.text[self.at] != bracket:
            return False
        self.at += 1
        return True

    def _skip_blank(self) -> None:
        found = _BLANK.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _span(self, start: int, end: int) -> Span:
        line = bisect_right(self.line_starts, start) - 1
        line_start = self.line_starts[line]
        line_break = _LINE_BREAK.search(self.text, start, end)
        width = (line_break.start() if line_break else end) - start
        return Span(line, start - line_start, max(1, width))


def _key_name(written: str) -> str:
    if written[0] not in "\"'":
        return written
    return next(iter(tomllib.loads(f"{written} = 0")))


def _is_deep(data: Any) -> bool:
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [child for part in level for child in _children(part)]
    return bool(level)


def _children(part: Any) -> list[Any]:
    if isinstance(part, dict):
        return list(cast("dict[str, Any]", part).values())
    return cast("list[Any]", part) if isinstance(part, list) else []


def _last_place(text: str) -> tuple[int, int]:
    lines = text.split("\n")
    return len(lines) - 1, len(lines[-1])
