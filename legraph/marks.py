"""Places in a text, and values in words: what both readers (YAML, TOML) and the reports share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# A graph file nests 4 levels deep.
MAX_DEPTH = 32


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
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {value!r}" if len(value) <= 40 else "a string"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return f"a {type(value).__name__}"
