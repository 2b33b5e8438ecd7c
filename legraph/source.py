"""The text of a graph file: read safely, and able to say where each value stands.

`SourceText.load` answers "may this be read at all" (size, encoding); `read` gives plain data;
`place` turns a key path into file:line:column for a report. Marks are made on the first question only,
so a valid file never pays for them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from legraph.errors import GraphError, KeyPath, Problem, Source
from legraph.marks import Mark, Span, TextProblem, printable
from legraph.reads import note_file
from legraph.toml_reader import read_toml, toml_lines, toml_marks
from legraph.yaml_reader import read_yaml, yaml_lines

Syntax = Literal["yaml", "toml"]

MAX_FILE_BYTES = 64 * 2**20
STDIN = "-"
_SYNTAX_BY_SUFFIX: dict[str, Syntax] = {".yaml": "yaml", ".yml": "yaml", ".json": "yaml", ".toml": "toml"}
# The first line that is neither blank nor a comment tells TOML (`[table]` or `key =`) from YAML.
_LOOKS_LIKE_TOML = re.compile(
    r"\A(?:\s|#[^\n]*\n)*(?:\[[\w.\[\]\"' -]+\]\s*(?:#|$)|[\w.\"'-]+\s*=)", re.MULTILINE
)


@dataclass(slots=True)
class SourceText:
    """A graph file's text. `name` is what reports call it; `folder` is what its relative paths start from."""

    name: str
    text: str
    syntax: Syntax
    folder: Path
    _marks: dict[KeyPath, Mark] | None = field(default=None, repr=False, compare=False)
    _lines: list[str] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, path: str | Path) -> SourceText:
        """Reads a graph file, or standard input for `-`.

        Raises:
            GraphError: the file is missing, too large, binary or not UTF-8.
        """
        if str(path) == STDIN:
            raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
            text = decode(raw, "standard input")
            return cls("<stdin>", text, _sniff(text), Path())
        path = Path(path)
        text = read_text_file(path, str(path))
        syntax = _SYNTAX_BY_SUFFIX.get(path.suffix.lower()) or _sniff(text)
        return cls(printable(str(path)), text, syntax, path.parent)

    def read(self) -> tuple[Any, list[Problem]]:
        """The file's plain data, and the problems that do not stop the reading.

        Raises:
            GraphError: broken or refused syntax.
        """
        try:
            if self.syntax == "toml":
                return read_toml(self.text), []
            data, problems = read_yaml(self.text)
            return data, [self._problem(problem) for problem in problems]
        except TextProblem as problem:
            raise GraphError(self._problem(problem)) from None

    def place(self, path: KeyPath, at_key: bool = False) -> Source:
        """Where the value at a key path stands (or its key); a path that is not there gives its parent's."""
        if self._marks is None:
            self._marks = self._make_marks()
        known = path
        while known and known not in self._marks:
            known = known[:-1]
        mark = self._marks.get(known, Mark(Span(0, 0), Span(0, 0)))
        return self._source(mark.key if at_key else mark.value, path)

    def _make_marks(self) -> dict[KeyPath, Mark]:
        if self.syntax == "toml":
            return toml_marks(self.text)
        marks: dict[KeyPath, Mark] = {}
        read_yaml(self.text, marks)
        return marks

    def _problem(self, problem: TextProblem) -> Problem:
        return Problem(problem.message, problem.expected, source=self._source(problem.span))

    def _source(self, span: Span, path: KeyPath = ()) -> Source:
        if self._lines is None:
            self._lines = toml_lines(self.text) if self.syntax == "toml" else yaml_lines(self.text)
        line, column = span.line, span.column
        if line == len(self._lines):  # libyaml ends the last line, even if the text does not
            line, column = line - 1, len(self._lines[-1])
        return Source(self.name, line + 1, column + 1, path, self._lines[line], span.width)


def read_text_file(path: Path, shown: str) -> str:
    """The text of a UTF-8 file.

    Raises:
        GraphError: missing, not a file, too large, binary or not UTF-8; without a place in a graph file.
    """
    shown = printable(shown)
    note_file(path)
    with reading(shown), path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    return decode(raw, shown)


@contextmanager
def reading(shown: str) -> Generator[None, None, None]:
    """Turns what goes wrong with a file into a `GraphError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise GraphError(f"{shown}: no such file") from None
    except IsADirectoryError:
        raise GraphError(f"{shown}: is a folder, not a file") from None
    except OSError as error:
        raise GraphError(f"{shown}: cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise GraphError(f"{shown}: cannot be a file's name") from None


def decode(raw: bytes, shown: str) -> str:
    """UTF-8 bytes as text, without a byte order mark."""
    if len(raw) > MAX_FILE_BYTES:
        raise GraphError(
            Problem(
                f"{shown}: larger than {MAX_FILE_BYTES // 2**20} MiB",
                expected="a smaller file: long texts can stand in files of their own, named by 'file'",
            )
        )
    if b"\0" in raw:
        raise GraphError(Problem(f"{shown}: is a binary file", expected="UTF-8 text"))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{raw[error.start]:02x} at offset {error.start:,}"
        raise GraphError(
            Problem(
                f"{shown}: is not UTF-8: {byte} (line {line})",
                expected="UTF-8 text",
                hint="convert it, for example with: iconv -f LATIN1 -t UTF-8",
            )
        ) from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: as in graph files, the same key twice is an error (ValueError), not a choice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return found


def _sniff(text: str) -> Syntax:
    return "toml" if _LOOKS_LIKE_TOML.match(text) else "yaml"
