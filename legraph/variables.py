"""`${name}` in the strings of a graph file: looked up after parsing, never in the file's raw text.

What is put in is not looked through again, so that a value (a title from a data file, say) stays text.
`$${` writes the two characters `${`; a `$` by itself means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from legraph.errors import did_you_mean
from legraph.marks import describe, quoted
from legraph.schema import VARIABLE_PATTERN

MARK = "${"
SCALAR = "a string, a number, true or false"
_ESCAPE = "'$${' writes the two characters '${'"
_VARIABLE = re.compile(VARIABLE_PATTERN)
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
# What is reported: message, what was expected, a hint, and the reference that it is about, as written.
Report = Callable[[str, str | None, str | None, str], object]


@dataclass(frozen=True, slots=True)
class Item:
    """What a loop's variable stands for in one round.

    Attributes:
        value: a string, number, boolean, or the mapping of a row.
        fields: what `${name.field}` gives: of a file its path, name and stem; of a row its columns; and
            always index (from 0) and number (from 1).
        shown: how reports call it.
    """

    value: Any
    fields: Mapping[str, Any]
    shown: str


@dataclass(slots=True)
class Scope:
    """The variables that a part of a file can use, and which of them were used."""

    values: dict[str, Any]
    used: set[str] = field(default_factory=set[str])

    def with_items(self, items: Mapping[str, Item]) -> Scope:
        """The same and some more, for one round of a loop."""
        return Scope(self.values | dict(items), self.used) if items else self

    def fill(self, text: str, report: Report) -> str:
        """The text with every variable's value in its place; what cannot be looked up is reported."""
        if MARK not in text:
            return text
        return _REFERENCE.sub(lambda found: self._value(found, report), text)

    def _value(self, found: re.Match[str], report: Report) -> str:
        if found[0] == "$${":
            return MARK
        if found[1] is None:
            report("'${' without '}'", "a variable, such as ${name}", _ESCAPE, MARK)
            return found[0]
        name, *parts = found[1].split(".")
        if name not in self.values:
            # What cannot be a name is more likely a text.
            other = "declare it below 'vars:', or give --var" if _VARIABLE.fullmatch(name) else _ESCAPE
            hint = did_you_mean(name, list(self.values)) or other
            report(f"unknown variable {quoted(found[0])}", self._known(), hint, found[0])
            return found[0]
        self.used.add(name)
        return _written(found[0], self.values[name], parts, report)

    def _known(self) -> str:
        names = ", ".join(sorted(self.values))
        return f"one of {names}" if names else "a variable; there are none here"


def _written(reference: str, value: Any, parts: list[str], report: Report) -> str:
    """The string that a reference stands for."""
    fields: Mapping[str, Any] = {}
    if isinstance(value, Item):
        fields, value = value.fields, value.value
    for at, part in enumerate(parts):
        if at or not fields:
            fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if part not in fields:
            known = f"one of {', '.join(map(str, fields))}" if fields else "no '.' behind this name"
            hint = did_you_mean(part, [str(each) for each in fields])
            report(f"{quoted(reference)}: there is no {quoted(part)}", known, hint, reference)
            return reference
        value = fields[part]
    if isinstance(value, dict):
        known = ", ".join(str(key) for key in cast("dict[Any, Any]", value))
        report(f"{quoted(reference)} is a row, not a text", f"one of its fields: {known}", None, reference)
        return reference
    text = scalar_text(value)
    if text is None:
        report(f"{quoted(reference)} is {describe(value)}", SCALAR, None, reference)
        return reference
    return text


def scalar_text(value: Any) -> str | None:
    """A scalar as it is written into a string; None for anything else, and for integers of some thousand
    digits, which Python does not write out."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return str(value) if isinstance(value, int | float) else None
    except ValueError:
        return None
