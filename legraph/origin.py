"""Where the parts of an expanded graph were written: the file, the key path, and which round of a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from legraph.errors import KeyPath, Source
from legraph.source import SourceText, Syntax


class Origin(NamedTuple):
    """The entry that a chunk or an assertion was made from. `note` says which of several it is."""

    source: SourceText
    path: KeyPath
    note: str | None = None

    def place(self, path: KeyPath = (), at_key: bool = False) -> Source:
        """Where a value in the entry stands."""
        found = self.source.place((*self.path, *path), at_key)
        return replace(found, note=self.note) if self.note else found


@dataclass(frozen=True, slots=True)
class ChunkOrigin:
    """A chunk's entry, and the selector that chose each of its parents, if not the entry's list did."""

    entry: Origin
    parents: Sequence[tuple[Origin, KeyPath]] | None = None

    def place(self, path: KeyPath = (), at_key: bool = False) -> Source:
        if self.parents is not None and path[:1] == ("parents",) and len(path) > 1:
            at = path[1]
            if isinstance(at, int) and at < len(self.parents):
                origin, written = self.parents[at]
                return origin.place(written)
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
