"""The language of graph files: variables, loops, includes and selectors, written out as a plain file's data.

Data in, data out: an entry with `for` becomes one chunk for each item, an `include` the chunks of another
file, `parents: ["@docs"]` the names of the docs. What comes out is checked like any other file; `Places`
say where each part of it was written. Cost O(chunks + edges). A file that uses none of it passes through as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, cast

from legraph.errors import GraphError, KeyPath, Problem, Source, did_you_mean
from legraph.loops import MAX_ITEMS, check_inside, items_of
from legraph.marks import describe, printable, quoted
from legraph.origin import ChunkOrigin, Origin, Places
from legraph.schema import (
    FORMAT_VERSION,
    NAME_PATTERN,
    VARIABLE_PATTERN,
    IncludeEntry,
    WrittenGraph,
    keys_of,
)
from legraph.selectors import Selectors, Want, is_selector
from legraph.source import SourceText
from legraph.variables import MARK, Item, Scope, scalar_text

_NAME, _VARIABLE = re.compile(NAME_PATTERN), re.compile(VARIABLE_PATTERN)
_SETTINGS = ("tokenizer", "positions", "bos")
_ENTRY_KEYS = ("for", "include")
_SCALAR = "a string, a number, true or false"


@dataclass(frozen=True, slots=True)
class Expanded:
    """A file written out.

    Attributes:
        data: as of a plain file.
        chunks: what selects among its chunks; None for a file that uses nothing of the language.
        prefixes: for each assertion, the prefix of the names that its file knows.
    """

    data: dict[str, Any]
    places: Places | SourceText
    problems: list[Problem]
    chunks: Selectors | None = None
    prefixes: tuple[str, ...] = ()


def expand(source: SourceText, data: dict[str, Any], given: Mapping[str, Any], tree: Path | None) -> Expanded:
    """Writes a file out.

    Args:
        given: variables from outside, which override those of the file.
        tree: the folder that paths must not leave; None for none.
    """
    if not given and not _uses_language(source, data):
        return Expanded(data, source, [])
    return _Expansion(tree).run(source, data, given)


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
    """A chunk on its way: its data, and the selectors of its parents with their places."""

    data: Any
    origin: Origin
    prefix: str = ""
    wants: list[Want] = field(default_factory=list[Want])
    written: list[tuple[Origin, KeyPath]] = field(default_factory=list[tuple[Origin, KeyPath]])
    is_selecting: bool = False


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is being written out, and what it is given by those that include it.

    Attributes:
        prefix: of its names.
        base: its folder, seen from the folder of the outermost file.
        groups: all of its chunks belong to these.
        wants: selectors that stand in files above it and hold for each of its chunks, with their places.
        note: which of several it is.
        above: the files that include it, the outermost first.
    """

    source: SourceText
    data: dict[str, Any]
    scope: Scope
    prefix: str = ""
    base: str = ""
    groups: tuple[str, ...] = ()
    wants: tuple[tuple[Want, Origin, KeyPath], ...] = ()
    note: str | None = None
    above: tuple[str, ...] = ()

    def origin(self, path: KeyPath, note: str | None = None) -> Origin:
        notes = [part for part in (note, self.note) if part]
        return Origin(self.source, path, ", ".join(notes) or None)


@dataclass(slots=True)
class _Expansion:
    """The work on one graph: chunks of all files in declared order, and what was found wrong."""

    tree: Path | None
    problems: list[Problem] = field(default_factory=list[Problem])
    chunks: list[_Chunk] = field(default_factory=list[_Chunk])
    groups: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    assertions: list[tuple[Any, Origin, str]] = field(default_factory=list[tuple[Any, Origin, str]])
    # Files that were read, by their path: a loop may include one many times.
    read: dict[str, tuple[SourceText, Any]] = field(default_factory=dict[str, tuple[SourceText, Any]])

    def run(self, source: SourceText, data: dict[str, Any], given: Mapping[str, Any]) -> Expanded:
        file = _File(
            source, data, self._scope(source, data, given, None), above=(str(Path(source.name).resolve()),)
        )
        self._walk(file)
        for name in given:
            if name not in file.scope.used and name not in (data.get("vars") or {}):
                hint = did_you_mean(name, list(file.scope.used | set(data.get("vars") or {})))
                place = Source(source.name)
                self.problems.append(Problem(f"no variable is called {quoted(name)}", None, hint, place))
        chosen = Selectors(
            [_name(chunk.data) for chunk in self.chunks],
            {name: sorted(set(members)) for name, members in self.groups.items()},
            [chunk.wants for chunk in self.chunks],
        )
        origins = self._with_parents(chosen)
        plain = {key: self._filled(value, file, (key,)) for key, value in data.items() if key in _SETTINGS}
        plain = {key: value for key, value in data.items() if key != "vars"} | plain
        if isinstance(data.get("chunks"), list):
            plain["chunks"] = [chunk.data for chunk in self.chunks]
        if isinstance(data.get("assert"), list) or self.assertions:
            plain["assert"] = [assertion for assertion, _, _ in self.assertions]
        places = Places(source, {"chunks": origins, "assert": [origin for _, origin, _ in self.assertions]})
        prefixes = tuple(prefix for _, _, prefix in self.assertions)
        return Expanded(plain, places, self.problems, chosen, prefixes)

    def _with_parents(self, chosen: Selectors) -> list[ChunkOrigin]:
        """Writes the names of the chosen parents into the chunks that select."""
        origins = list[ChunkOrigin]()
        for chunk, parents in zip(self.chunks, chosen.parents(), strict=True):
            if not chunk.is_selecting:
                origins.append(ChunkOrigin(chunk.origin))
                continue
            names = [
                chosen.names[each.chunk] if isinstance(each.chunk, int) else each.chunk for each in parents
            ]
            chunk.data["parents"] = names
            origins.append(ChunkOrigin(chunk.origin, [chunk.written[each.at] for each in parents]))
        for found in chosen.problems:
            assert found.chunk is not None
            origin, path = self.chunks[found.chunk].written[found.at]
            self.problems.append(Problem(found.message, found.expected, found.hint, origin.place(path)))
        return origins

    def _walk(self, file: _File) -> None:
        """Appends the chunks and assertions of a file."""
        entries = file.data.get("chunks")
        for i, entry in enumerate(cast("list[Any]", entries) if isinstance(entries, list) else ()):
            path: KeyPath = ("chunks", i)
            if not isinstance(entry, dict):
                self.chunks.append(_Chunk(entry, file.origin(path)))
                continue
            chunk = cast("dict[str, Any]", entry)
            for items in self._rounds(chunk, file, path):
                scope = file.scope.with_items(items)
                note = ", ".join(f"{name} is {item.shown}" for name, item in items.items())
                if "include" in chunk:
                    self._include(chunk, file, path, scope, note)
                else:
                    self._chunk(chunk, file, path, scope, note)
        asserted = file.data.get("assert")
        for i, entry in enumerate(cast("list[Any]", asserted) if isinstance(asserted, list) else ()):
            filled = self._filled(entry, file, ("assert", i))
            self.assertions.append((filled, file.origin(("assert", i)), file.prefix))

    def _rounds(self, entry: dict[str, Any], file: _File, path: KeyPath) -> Iterator[dict[str, Item]]:
        """What the loop variables of an entry stand for, round by round; one round without a loop."""
        if "for" not in entry:
            yield {}
            return
        path = (*path, "for")
        loops = entry["for"]
        if not isinstance(loops, dict) or not loops:
            expected = "a variable and what it goes over, such as {doc: docs/*.txt}"
            self._report(f"'for' is {describe(loops)}", expected, None, file.origin(path).place())
            return
        found = list[list[Item]]()
        for name, written in cast("dict[Any, Any]", loops).items():
            if not self._is_variable(name, file, (*path, name)):
                return
            try:
                over = self._filled(written, file, (*path, name))
                found.append(items_of(over, file.source.folder, self.tree))
            except GraphError as error:
                self._take(error, file.origin(path).place((name,)))
                return
        if len(self.chunks) + _product(len(items) for items in found) > MAX_ITEMS:
            message = f"the graph has over {MAX_ITEMS:,} chunks"
            self._report(message, "shorter loops", None, file.origin(path).place())
            return
        names = list(cast("dict[str, Any]", loops))
        for items in product(*found):
            yield dict(zip(names, items, strict=True))

    def _chunk(
        self, entry: dict[str, Any], file: _File, path: KeyPath, scope: Scope, note: str | None
    ) -> None:
        origin = file.origin(path, note)
        data = {
            key: self._filled(value, file, (*path, key), scope, note)
            for key, value in entry.items()
            if key not in _ENTRY_KEYS
        }
        chunk = _Chunk(data, origin, file.prefix)
        for group in (*file.groups, *self._group(data, file)):
            self.groups.setdefault(group, []).append(len(self.chunks))
        if file.prefix and isinstance(data.get("name"), str):
            data["name"] = file.prefix + data["name"]
        if file.base and isinstance(data.get("file"), str):
            data["file"] = str(Path(file.base) / data["file"])
        self._add_wants(chunk, data, file, origin)
        self.chunks.append(chunk)

    def _add_wants(self, chunk: _Chunk, data: dict[str, Any], file: _File, origin: Origin) -> None:
        parents = data.get("parents", [])
        if not isinstance(parents, list) or not all(isinstance(p, str) for p in cast("list[Any]", parents)):
            return
        names = cast("list[str]", parents)
        for j, text in enumerate(names):
            chunk.wants.append(Want(text, file.prefix, j))
            chunk.written.append((origin, ("parents", j)))
        for want, above, path in file.wants:
            chunk.wants.append(want._replace(at=len(chunk.written)))
            chunk.written.append((above, path))
        chunk.is_selecting = bool(file.prefix or file.wants) or any(map(is_selector, names))

    def _group(self, data: dict[str, Any], file: _File) -> tuple[str, ...]:
        group = data.get("group")
        return (file.prefix + group,) if isinstance(group, str) and _NAME.match(group) else ()

    def _include(
        self, entry: dict[str, Any], file: _File, path: KeyPath, scope: Scope, note: str | None
    ) -> None:
        """The chunks of another file."""
        origin = file.origin(path, note)
        known = keys_of(IncludeEntry)
        for key in entry:
            if key not in known:
                hint = did_you_mean(key, known)
                place = origin.place((key,), at_key=True)
                self._report(f"unknown key {quoted(key)}", f"one of {', '.join(known)}", hint, place)
        data = {
            key: self._filled(value, file, (*path, key), scope, note)
            for key, value in entry.items()
            if key not in ("for", "vars")
        }
        if not self._is_sound(data, origin):
            return
        loaded = self._loaded(data["include"], file, origin)
        if loaded is None:
            return
        source, content = loaded
        prefix = data.get("as")
        own = () if prefix is None else (file.prefix + prefix,)
        wants = tuple(
            (Want(text, file.prefix), origin, ("parents", j))
            for j, text in enumerate(data.get("parents", ()))
        )
        given = self._given(entry.get("vars", {}), file, (*path, "vars"), scope, note)
        place = origin.place(("include",))
        included = _File(
            source,
            content,
            self._scope(source, content, given, f"included at {place}"),
            file.prefix if prefix is None else f"{file.prefix}{prefix}.",
            str(Path(file.base) / Path(data["include"]).parent),
            (*file.groups, *own, *self._group(data, file)),
            (*file.wants, *wants),
            ", ".join(part for part in (f"included at {place}", note, file.note) if part),
            (*file.above, str(Path(source.name).resolve())),
        )
        self._check_settings(included, file)
        self._walk(included)
        for name in given:
            if name not in included.scope.used and name not in (content.get("vars") or {}):
                self._report(
                    f"{source.name} has no variable {quoted(name)}", None, None, origin.place(("vars", name))
                )

    def _is_sound(self, data: dict[str, Any], origin: Origin) -> bool:
        """Whether the values of an include can be used; reports those that cannot."""
        parents = data.get("parents", [])
        is_list = isinstance(parents, list) and all(isinstance(p, str) for p in cast("list[Any]", parents))
        found = [
            (
                "include",
                isinstance(data["include"], str) and data["include"] != "",
                "the path of a graph file",
            ),
            ("as", "as" not in data or _is_name(data["as"]), "a name"),
            ("group", "group" not in data or _is_name(data["group"]), "a name"),
            ("parents", is_list, "a list of names and selectors"),
        ]
        for key, is_right, expected in found:
            if not is_right:
                self._report(f"{key!r} is {describe(data[key])}", expected, None, origin.place((key,)))
        return all(is_right for _, is_right, _ in found)

    def _loaded(self, path: str, file: _File, origin: Origin) -> tuple[SourceText, dict[str, Any]] | None:
        place = origin.place(("include",))
        whole = str((file.source.folder / path).resolve())
        if whole in file.above:
            names = [Path(name).name for name in (*file.above[file.above.index(whole) :], whole)]
            self._report(
                f"the includes form a cycle: {' -> '.join(map(printable, names))}",
                "a file that does not lead back to itself",
                None,
                place,
            )
            return None
        try:
            check_inside(path, file.source.folder, self.tree)
            if whole not in self.read:
                source = SourceText.load(file.source.folder / path if path != "-" else Path(whole))
                data, problems = source.read()
                self.problems += problems
                self.read[whole] = source, data
        except GraphError as error:
            self._take(error, place)
            return None
        source, data = self.read[whole]
        if not isinstance(data, dict):
            self._report(f"{source.name} is no graph file", "'legraph: 1' and 'chunks:'", None, place)
            return None
        return source, cast("dict[str, Any]", data)

    def _check_settings(self, file: _File, outer: _File) -> None:
        """What holds for a graph as a whole must be the same in all of its files."""
        version = file.data.get("legraph")
        if type(version) is not int or version != FORMAT_VERSION:
            message = f"the file does not say 'legraph: {FORMAT_VERSION}'"
            self._report(message, f"version {FORMAT_VERSION}", None, file.origin(("legraph",)).place())
        known = keys_of(WrittenGraph)
        for key in file.data:
            place = file.origin((key,)).place(at_key=True)
            if key not in known:
                self._report(
                    f"unknown key {quoted(key)}",
                    f"one of {', '.join(known)}",
                    did_you_mean(key, known),
                    place,
                )
            elif key in _SETTINGS and file.data[key] != outer.data.get(key):
                expected = "the same as there, or nothing"
                self._report(f"{key!r} is not that of the file that includes this one", expected, None, place)
            elif key == "lint":
                self._report("'lint' of an included file", "'lint' at the chunks it is about", None, place)
        if not isinstance(file.data.get("chunks"), list):
            message = "an included file has no list of chunks"
            self._report(message, "'chunks:'", None, file.origin(("chunks",)).place())

    def _scope(
        self, source: SourceText, data: dict[str, Any], given: Mapping[str, Any], note: str | None
    ) -> Scope:
        """The variables of a file. A value can use those before it."""
        file = _File(source, data, Scope({}), note=note)
        declared = data.get("vars", {})
        scope = Scope({})
        if isinstance(declared, dict):
            scope = Scope(self._given(declared, file, ("vars",), scope, None, dict(given)))
        else:
            expected = "variables and their values"
            self._report(f"'vars' is {describe(declared)}", expected, None, file.origin(("vars",)).place())
        return Scope(scope.values | dict(given))

    def _given(
        self,
        declared: Any,
        file: _File,
        path: KeyPath,
        scope: Scope,
        note: str | None,
        overridden: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Variables with their values, those that are scalars."""
        found = dict[str, Any]()
        if not isinstance(declared, dict):
            self._report(
                f"'vars' is {describe(declared)}", "a mapping", None, file.origin(path, note).place()
            )
            return found
        for name, value in cast("dict[Any, Any]", declared).items():
            if not self._is_variable(name, file, (*path, name)):
                continue
            if overridden is not None:
                scope = Scope(found | dict(overridden))
            if scalar_text(value) is None:
                place = file.origin((*path, name), note).place()
                self._report(f"variable {quoted(name)} is {describe(value)}", _SCALAR, None, place)
                value = ""
            found[name] = self._filled(value, file, (*path, name), scope, note)
        return found

    def _is_variable(self, name: Any, file: _File, path: KeyPath) -> bool:
        if isinstance(name, str) and _VARIABLE.match(name):
            return True
        place = file.origin(path).place(at_key=True)
        self._report(f"{describe(name)} cannot be a variable's name", "letters, digits and '_'", None, place)
        return False

    def _filled(
        self, value: Any, file: _File, path: KeyPath, scope: Scope | None = None, note: str | None = None
    ) -> Any:
        """The value with its variables filled in, in all strings that it holds."""
        if isinstance(value, str):
            if MARK not in value:
                return value

            def report(message: str, expected: str | None, hint: str | None) -> None:
                self._report(message, expected, hint, file.origin(path, note).place())

            return (scope or file.scope).fill(value, report)
        if isinstance(value, list):
            entries = enumerate(cast("list[Any]", value))
            return [self._filled(each, file, (*path, i), scope, note) for i, each in entries]
        if isinstance(value, dict):
            pairs = cast("dict[Any, Any]", value).items()
            return {key: self._filled(each, file, (*path, key), scope, note) for key, each in pairs}
        return value

    def _report(self, message: str, expected: str | None, hint: str | None, place: Source) -> None:
        self.problems.append(Problem(message, expected, hint, place))

    def _take(self, error: GraphError, place: Source) -> None:
        """The problems of something that was read; those without a place of their own get this one."""
        for found in error.problems:
            self.problems.append(Problem(found.message, found.expected, found.hint, found.source or place))


def _name(data: Any) -> str | None:
    name = cast("dict[str, Any]", data).get("name") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.match(value) is not None


def _product(numbers: Iterator[int] | Any) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total
