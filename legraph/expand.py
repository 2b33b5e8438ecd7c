"""The language of graph files: variables, loops, includes and selectors, written out as a plain file's data.

Data in, data out: an entry with `for` becomes one chunk for each item, an `include` the chunks of another
file, `parents: ["@docs"]` the names of the docs. What comes out is checked like any other file; `Places`
say where each part of it was written. Cost O(chunks + edges). A file that uses none of it passes through.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, cast

from legraph.errors import GraphError, Problem, Source
from legraph.include import (
    NAME_IN_WORDS,
    File,
    Includes,
    filled,
    is_name,
    is_variable,
    outermost,
    settings_of,
)
from legraph.loops import MAX_ITEMS, items_of
from legraph.marks import describe, quoted
from legraph.origin import ChunkOrigin, Expanded, Origin, Places, Reports
from legraph.selectors import Selectors, Want, is_selector
from legraph.source import SourceText
from legraph.variables import MARK, Item, Scope

# Files that include others twice each are soon too many.
MAX_INCLUDES = 100_000

_ENTRY_KEYS = ("for", "include")


def expand(source: SourceText, data: dict[str, Any], given: Mapping[str, Any], tree: Path | None) -> Expanded:
    """Writes a file out.

    Args:
        given: variables from outside, which override those of the file.
        tree: the folder that paths must not leave; None for none.
    """
    if not given and not _uses_language(source, data):
        return Expanded(data, source, [])
    reports = Reports()
    file = outermost(source, data, given, reports)
    settings = settings_of(file, reports)
    return _Expansion(Includes(tree, settings, reports), reports).run(file)


def _uses_language(source: SourceText, data: dict[str, Any]) -> bool:
    if MARK in source.text or "vars" in data or "assert" in data:
        return True
    chunks = data.get("chunks")
    for entry in cast("list[Any]", chunks) if isinstance(chunks, list) else ():
        if isinstance(entry, dict):
            chunk = cast("dict[str, Any]", entry)
            if "for" in chunk or "include" in chunk or "group" in chunk:
                return True
            parents = chunk.get("parents")
            if isinstance(parents, list) and any(
                isinstance(name, str) and is_selector(name) for name in cast("list[Any]", parents)
            ):
                return True
    return False


@dataclass(slots=True)
class _Chunk:
    """A chunk on its way: its data, and the selectors of its parents with their places.

    Attributes:
        is_readable: its parents are a list of strings, or none.
        is_selecting: the names in the list are not yet those of its parents.
    """

    data: Any
    origin: Origin
    wants: list[Want] = field(default_factory=list[Want])
    written: list[Origin] = field(default_factory=list[Origin])
    is_readable: bool = False
    is_selecting: bool = False


@dataclass(slots=True)
class _Expansion:
    """The work on one graph: chunks of all files in declared order, and what was found wrong."""

    includes: Includes
    reports: Reports
    chunks: list[_Chunk] = field(default_factory=list[_Chunk])
    groups: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    assertions: list[tuple[Any, Origin, str]] = field(default_factory=list[tuple[Any, Origin, str]])
    num_rounds: int = 0
    num_includes: int = 0
    is_too_large: bool = False
    # A loop or an include could not be read.
    is_partial: bool = False

    def run(self, file: File) -> Expanded:
        self._walk(file)
        for name, hint in file.unused():
            # It stands nowhere in the file.
            message, place = f"the file has no variable {quoted(name)}", Source(file.source.name)
            expected = "a variable that the file declares or uses"
            self.reports.problems.append(Problem(message, expected, hint, place))
        chosen = Selectors(
            [_name(chunk.data) for chunk in self.chunks],
            {name: sorted(set(members)) for name, members in self.groups.items()},
            [chunk.wants for chunk in self.chunks],
            self.is_partial,
        )
        origins = self._with_parents(chosen)
        plain = {key: value for key, value in file.data.items() if key != "vars"}
        plain |= {key: value for key, value in self.includes.settings.items() if key in plain}
        if isinstance(plain.get("chunks"), list):
            plain["chunks"] = [chunk.data for chunk in self.chunks]
        if isinstance(plain.get("assert", []), list) and ("assert" in plain or self.assertions):
            plain["assert"] = [assertion for assertion, _, _ in self.assertions]
        return Expanded(
            plain,
            Places(file.source, {"chunks": origins, "assert": [origin for _, origin, _ in self.assertions]}),
            self.reports.problems,
            chosen,
            tuple(prefix for _, _, prefix in self.assertions),
            self.is_partial,
        )

    def _with_parents(self, chosen: Selectors) -> list[ChunkOrigin]:
        """Writes the names of the chosen parents into the chunks that select."""
        origins = list[ChunkOrigin]()
        for chunk, parents in zip(self.chunks, chosen.parents(), strict=True):
            if not chunk.is_readable or not (chunk.is_selecting or self.is_partial):
                origins.append(ChunkOrigin(chunk.origin))
                continue
            if chunk.wants:
                names = [each if isinstance(each, str) else chosen.names[each] for each in parents.chunks]
                chunk.data["parents"] = names
            origins.append(ChunkOrigin(chunk.origin, [chunk.written[at] for at in parents.at]))
        for found in chosen.problems:
            assert found.chunk is not None
            origin = self.chunks[found.chunk].written[found.at]
            self.reports.add(origin, found.message, found.expected, found.hint)
        return origins

    def _walk(self, file: File) -> None:
        """Appends the chunks and assertions of a file."""
        for i, entry in enumerate(file.entries("chunks")):
            if not isinstance(entry, dict):
                self.chunks.append(_Chunk(entry, file.origin("chunks", i)))
                continue
            written = cast("dict[str, Any]", entry)
            for items in self._rounds(written, file, file.origin("chunks", i)):
                note = ", ".join(f"{name} is {item.shown}" for name, item in items.items())
                origin, scope = file.origin("chunks", i, note=note), file.scope.with_items(items)
                if "include" in written:
                    self._include(written, file, origin, scope)
                else:
                    self._chunk(written, file, origin, scope)
        for i, entry in enumerate(file.entries("assert")):
            origin = file.origin("assert", i)
            self.assertions.append((filled(entry, file.scope, origin, self.reports), origin, file.prefix))

    def _rounds(self, entry: dict[str, Any], file: File, origin: Origin) -> Iterator[dict[str, Item]]:
        """What the loop variables of an entry stand for, round by round; one round without a loop."""
        loops = self._items(entry["for"], file, origin.at("for")) if "for" in entry else {}
        if loops is None:
            self.is_partial = True
            return
        num_rounds = prod(map(len, loops.values()))
        if self.num_rounds + num_rounds > MAX_ITEMS:
            self._stop(origin, f"the graph has over {MAX_ITEMS:,} chunks", "shorter loops")
            return
        self.num_rounds += num_rounds
        for items in product(*loops.values()):
            yield dict(zip(loops, items, strict=True))

    def _items(self, written: Any, file: File, origin: Origin) -> dict[str, list[Item]] | None:
        """What each variable of a loop goes over; None if one cannot, which is reported."""
        if not isinstance(written, dict) or not written:
            expected = "a variable and what it goes over, such as {doc: docs/*.txt}"
            self.reports.add(origin, f"'for' is {describe(written)}", expected)
            return None
        found, is_sound = dict[str, list[Item]](), True
        for name, over in cast("dict[Any, Any]", written).items():
            if not is_variable(name, origin, self.reports):
                is_sound = False
                continue
            num_problems = len(self.reports.problems)
            over = filled(over, file.scope, origin.at(name), self.reports)
            try:
                if len(self.reports.problems) == num_problems:
                    found[name] = items_of(over, file.source.folder, self.includes.tree)
            except GraphError as error:
                self.reports.take(error, origin.at(name))
            is_sound = is_sound and name in found
        return found if is_sound else None

    def _chunk(self, entry: dict[str, Any], file: File, origin: Origin, scope: Scope) -> None:
        own = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
        data = filled(own, scope, origin, self.reports)
        chunk = _Chunk(data, origin)
        groups = [*file.groups, *([file.prefix + data["group"]] if is_name(data.get("group")) else [])]
        for group in groups:
            self.groups.setdefault(group, []).append(len(self.chunks))
        if file.prefix and isinstance(name := data.get("name"), str):
            # Behind the prefix, any name would look right.
            if not is_name(name):
                self.reports.add(origin.at("name"), f"{quoted(name)} cannot be a chunk's name", NAME_IN_WORDS)
            data["name"] = file.prefix + name
        if file.base and isinstance(data.get("file"), str) and data["file"]:
            data["file"] = str(Path(file.base) / data["file"])
        self._add_wants(chunk, data.get("parents", []), file)
        self.chunks.append(chunk)

    def _add_wants(self, chunk: _Chunk, parents: Any, file: File) -> None:
        if not isinstance(parents, list) or not all(isinstance(p, str) for p in cast("list[Any]", parents)):
            return
        names = cast("list[str]", parents)
        for j, text in enumerate(names):
            chunk.wants.append(Want(text, file.prefix, j))
            chunk.written.append(chunk.origin.at("parents", j))
        for want, origin in file.wants:
            chunk.wants.append(want._replace(at=len(chunk.written)))
            chunk.written.append(origin)
        chunk.is_readable = True
        chunk.is_selecting = bool(file.prefix or file.wants) or any(map(is_selector, names))

    def _include(self, entry: dict[str, Any], file: File, origin: Origin, scope: Scope) -> None:
        """The chunks of another file."""
        self.num_includes += 1
        if self.num_includes > MAX_INCLUDES:
            self._stop(origin, f"over {MAX_INCLUDES:,} files are included", "fewer")
            return
        included = self.includes.file(entry, file, origin, scope)
        if included is None:
            self.is_partial = True
            return
        self._walk(included)
        self.includes.report_unused(included, origin)

    def _stop(self, origin: Origin, message: str, expected: str) -> None:
        """Says that the graph grows too large; once, as all that follows is too large too."""
        if not self.is_too_large:
            self.reports.add(origin, message, expected)
        self.is_too_large = self.is_partial = True


def _name(data: Any) -> str | None:
    name = cast("dict[str, Any]", data).get("name") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None
