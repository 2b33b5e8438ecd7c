"""What every importer needs: foreign files read with care, and names that chunks may have.

A foreign file is untrusted input: its size, nesting and types are checked before anything is made of it, and
a problem names the place, by line or by path (`messages[3].content`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

from legraph.errors import GraphError, Problem, Source
from legraph.marks import MAX_DEPTH, describe, printable
from legraph.schema import ALL_BEFORE, BOS_NAME, MAX_NAME_LENGTH
from legraph.source import MAX_FILE_BYTES, STDIN, decode, read_text_file, unique_keys

# Room for a number behind a name that is taken.
_MAX_BASE_LENGTH = MAX_NAME_LENGTH - 12
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-]+")
# Half of a character of UTF-16, which JSON can escape and no text can hold.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ForeignText:
    """A foreign file's text; `name` is what reports call it."""

    name: str
    text: str


def read_foreign(path: str) -> ForeignText:
    """A UTF-8 file, or standard input for `-`.

    Raises:
        GraphError: missing, too large, binary or not UTF-8.
    """
    if path == STDIN:
        raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        return ForeignText("<stdin>", decode(raw, "standard input"))
    return ForeignText(printable(path), read_text_file(Path(path), path))


@dataclass(frozen=True, slots=True)
class Json:
    """A value of a JSON file that knows its place. What is wrong with it is raised as a GraphError."""

    file: str
    value: Any
    path: str = ""

    @classmethod
    def read(cls, source: ForeignText) -> Json:
        """Raises GraphError: broken JSON, repeated keys, nesting deeper than MAX_DEPTH."""
        try:
            value = json.loads(source.text, object_pairs_hook=unique_keys, parse_constant=_constant)
        except json.JSONDecodeError as error:
            line = source.text.split("\n")[error.lineno - 1]
            place = Source(source.name, error.lineno, error.colno, line_text=line)
            raise GraphError(Problem(f"broken JSON: {error.msg}", source=place)) from None
        except (ValueError, RecursionError) as error:
            what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise GraphError(
                Problem(f"not JSON that can be used: {what}", source=Source(source.name))
            ) from None
        found = cls(source.name, value)
        if _depth(value) > MAX_DEPTH:
            found.refuse(f"nested deeper than {MAX_DEPTH} levels")
        return found

    def problem(self, message: str, expected: str | None = None, hint: str | None = None) -> Problem:
        where = f"{self.path}: " if self.path else ""
        return Problem(where + message, expected, hint, Source(self.file))

    def refuse(self, message: str, expected: str | None = None, hint: str | None = None) -> NoReturn:
        raise GraphError(self.problem(message, expected, hint))

    def entries(self, expected: str) -> list[Json]:
        """The entries of a list that is not empty."""
        if not isinstance(self.value, list):
            self.refuse(f"is {describe(self.value)}", expected)
        values = cast("list[Any]", self.value)
        if not values:
            self.refuse("is empty", expected)
        return [Json(self.file, value, f"{self.path}[{i}]") for i, value in enumerate(values)]

    def keys(self, expected: str) -> dict[str, Json]:
        """The values of an object."""
        if not isinstance(self.value, dict):
            self.refuse(f"is {describe(self.value)}", expected)
        prefix = f"{self.path}." if self.path else ""
        values = cast("dict[str, Any]", self.value)
        return {key: Json(self.file, value, prefix + printable(key)) for key, value in values.items()}

    def text(self, expected: str = "a string of at least one character") -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str):
            self.refuse(f"is {describe(self.value)}", expected)
        if not self.value:
            self.refuse("is empty", expected)
        if _LONE_SURROGATE.search(self.value):
            self.refuse("holds half of a character (a lone surrogate)", "Unicode text")
        return self.value


@dataclass(slots=True)
class Names:
    """Names for chunks: valid and unique, close to what the foreign file calls them."""

    # Words that a graph file keeps for itself.
    taken: set[str] = field(default_factory=lambda: {BOS_NAME, ALL_BEFORE})
    _next_number: dict[str, int] = field(default_factory=dict[str, int])

    def new(self, wanted: str) -> str:
        base = _NOT_IN_NAMES.sub("_", wanted)[:_MAX_BASE_LENGTH] or "chunk"
        if not (base[0].isalpha() or base[0] == "_"):
            base = f"_{base}"
        name, number = base, self._next_number.get(base, 2)
        while name in self.taken:
            name = f"{base}_{number}"
            number += 1
        self._next_number[base] = number
        self.taken.add(name)
        return name


def raise_all(problems: Sequence[Problem]) -> None:
    """Raises GraphError with all of them, if there are any."""
    if problems:
        raise GraphError(problems)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _depth(value: Any) -> int:
    """Levels of nesting, counted level by level, and no further than needed."""
    level, depth = [value], 0
    while depth <= MAX_DEPTH:
        lists = [cast("list[Any]", part) for part in level if isinstance(part, list)]
        objects = [cast("dict[str, Any]", part) for part in level if isinstance(part, dict)]
        if not lists and not objects:
            break
        level = [entry for part in (*lists, *(part.values() for part in objects)) for entry in part]
        depth += 1
    return depth
