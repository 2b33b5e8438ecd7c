"""Places in a text, and values in words: what both readers (YAML, TOML) and the reports share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# A graph file nests 4 levels deep.
MAX_DEPTH = 32
# Longer strings are cut in messages, and longer numbers are not written out.
MAX_STRING_SHOWN = 60
MAX_DIGITS_SHOWN = 30


@dataclass(frozen=True, slots=True)
class Span:
    """Place of a key or value in a text; `line` and `column` count from 0."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value stands, and where the key it belongs to stands (the value itself in a list)."""

    key: Span
    value: Span


class TextProblem(Exception):
    """The text is not what its syntax allows, or is refused; `line` and `column` count from 0."""

    def __init__(
        self, message: str, line: int, column: int, width: int = 1, expected: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.span = Span(line, column, width)
        self.expected = expected


def describe(value: Any) -> str:
    """What a value is, in words a user of YAML or TOML knows."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {number(value)}"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"a {type(value).__name__}"


def quoted(text: str) -> str:
    """A string as messages show it: in quotes, with control characters escaped, cut where it is long."""
    return repr(text if len(text) <= MAX_STRING_SHOWN else text[: MAX_STRING_SHOWN - 3] + "...")


def printable(text: str) -> str:
    """A name or path as messages show it: as it is, unless it holds something that must not be printed."""
    return text if text.isprintable() else repr(text)


def number(value: int | float) -> str:
    """A number as messages show it. (Python refuses to write out integers of some thousand digits.)"""
    if isinstance(value, int) and abs(value) > 10**MAX_DIGITS_SHOWN:
        return f"{'over ' if value > 0 else 'under -'}1e{MAX_DIGITS_SHOWN}"
    return str(value)
