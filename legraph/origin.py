"""Where the parts of an expanded graph were written: the file, the key path, and which round of a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from legraph.errors import GraphError, KeyPath, Problem, Source
from legraph.selectors import Selectors
from legraph.source import SourceText, Syntax
from legraph.toml_reader import toml_lines
from legraph.yaml_reader import yaml_lines


class Origin(NamedTuple):
    """A value as it was written.

    Attributes:
        notes: which of several things that were made from it is meant: rounds of loops, as text, and the
            `include` entries that lead to the file, the innermost first.
    """

    source: SourceText
    path: KeyPath
    notes: tuple[str | Origin, ...] = ()

    def at(self, *path: str | int) -> Origin:
        """A value inside this one."""
        return self._replace(path=(*self.path, *path))

    def place(self, path: KeyPath = (), at_key: bool = False) -> Source:
        """Where it stands, or a value inside it."""
        found = self.source.place((*self.path, *path), at_key)
        return replace(found, note=self.note()) if self.notes else found

    def place_of(self, part: str) -> Source:
        """Where a part of a string stands; where the string does, if it is written in another way there."""
        place = self.place()
        if place.line is None or place.column is None or not place.line_text:
            return place
        start = place.column - 1
        if self.source.syntax == "yaml" and place.line_text.startswith("*", start):
            return place  # the string itself is elsewhere
        lines = _lines(self.source.text, self.source.syntax)
        for line in range(place.line - 1, len(lines)):
            if (at := lines[line].find(part, start)) >= 0:
                return replace(place, line=line + 1, column=at + 1, line_text=lines[line], width=len(part))
            start = 0
        return place

    def note(self) -> str | None:
        """In words. Only now: a place costs a look at the whole file, and a valid file needs none."""
        parts = (
            part if isinstance(part, str) else f"included at {part.source.place((*part.path, 'include'))}"
            for part in self.notes
        )
        return ", ".join(parts) or None


@lru_cache(maxsize=4)
def _lines(text: str, syntax: Syntax) -> list[str]:
    return toml_lines(text) if syntax == "toml" else yaml_lines(text)


@dataclass(frozen=True, slots=True)
class Reports:
    """What is wrong with a graph, once for all rounds of a loop: looking for a place takes time."""

    problems: list[Problem] = field(default_factory=list[Problem])
    _said: set[tuple[str, KeyPath, str]] = field(default_factory=set[tuple[str, KeyPath, str]])

    def add(
        self,
        origin: Origin,
        message: str,
        expected: str | None = None,
        hint: str | None = None,
        *,
        at_key: bool = False,
        part: str | None = None,
    ) -> None:
        """A problem of a value, of its key, or of a part of it, which is a string."""
        if self._is_new(origin, message):
            place = origin.place(at_key=at_key) if part is None else origin.place_of(part)
            self.problems.append(Problem(message, expected, hint, place))

    def take(self, error: GraphError, origin: Origin, how: str = "read") -> None:
        """The problems of what a value names: where they are in it, or else where the value is.

        Args:
            how: what was done with it there: "read" or "included".
        """
        for found in error.problems:
            if found.source is None:
                self.add(origin, found.message, found.expected, found.hint)
            elif self._is_new(origin, f"{found.source}: {found.message}"):
                note = ", ".join(
                    [f"{how} at {origin.source.place(origin.path)}", *filter(None, [origin.note()])]
                )
                self.problems.append(replace(found, source=replace(found.source, note=note)))

    def _is_new(self, origin: Origin, message: str) -> bool:
        key = origin.source.name, origin.path, message
        is_new = key not in self._said
        self._said.add(key)
        return is_new


@dataclass(frozen=True, slots=True)
class ChunkOrigin:
    """A chunk's entry, and the selector that chose each of its parents, if not the entry's list did."""

    entry: Origin
    parents: Sequence[Origin] | None = None

    def place(self, path: KeyPath = (), at_key: bool = False) -> Source:
        if self.parents is not None and path[:1] == ("parents",) and len(path) > 1:
            at = path[1]
            if isinstance(at, int) and at < len(self.parents):
                return self.parents[at].place()
        return self.entry.place(path, at_key)


@dataclass(frozen=True, slots=True)
class Places:
    """The places of an expanded graph, by key paths of the graph as it would be written out.

    Attributes:
        source: the file itself.
        origins: for "chunks" and "assert", those of all entries.
    """

    source: SourceText
    origins: Mapping[str, Sequence[ChunkOrigin | Origin]]

    @property
    def syntax(self) -> Syntax:
        return self.source.syntax

    def place(self, path: KeyPath, at_key: bool = False) -> Source:
        """As `SourceText.place`."""
        origins = self.origins.get(str(path[0]), ()) if path else ()
        if len(path) > 1 and isinstance(path[1], int) and path[1] < len(origins):
            return origins[path[1]].place(path[2:], at_key)
        return self.source.place(path, at_key)


@dataclass(frozen=True, slots=True)
class Expanded:
    """A file written out.

    Attributes:
        data: as of a plain file.
        chunks: what selects among its chunks; None for a file that uses nothing of the language.
        prefixes: for each assertion, the prefix of the names that its file knows.
        is_partial: a loop or an include could not be read, so that chunks are missing.
    """

    data: dict[str, Any]
    places: Places | SourceText
    problems: list[Problem]
    chunks: Selectors | None = None
    prefixes: tuple[str, ...] = ()
    is_partial: bool = False
