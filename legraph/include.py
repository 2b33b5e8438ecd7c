"""The files that a graph is written in: what an `include` names, and the variables that each file has.

A file that is included knows nothing of the file that includes it: neither its variables nor its names. It
is given what `vars` of the entry says. What holds for the graph as a whole must not differ between its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from legraph.errors import GraphError, did_you_mean
from legraph.loops import check_inside
from legraph.marks import describe, printable, quoted
from legraph.origin import Origin, Reports
from legraph.schema import (
    FORMAT_VERSION,
    NAME_PATTERN,
    VARIABLE_PATTERN,
    GraphFile,
    IncludeEntry,
    WrittenGraph,
    keys_of,
)
from legraph.selectors import Want
from legraph.source import SourceText
from legraph.variables import MARK, SCALAR, Scope, scalar_text

NAME_IN_WORDS = "a letter or '_', then letters, digits, '_', '.' or '-'"
SETTINGS = ("tokenizer", "positions", "bos")
# Of files that include each other. Who needs more has made a cycle of names that change.
MAX_DEPTH = 32

_NAME, _VARIABLE = re.compile(NAME_PATTERN), re.compile(VARIABLE_PATTERN)


@dataclass(frozen=True, slots=True)
class File:
    """A file that is being written out, and what it is given by those that include it.

    Attributes:
        given: values of its variables from outside.
        prefix: of its names.
        base: its folder, seen from the folder of the outermost file.
        groups: all of its chunks belong to these.
        wants: selectors that stand in files above it and hold for each of its chunks, and where.
        notes: which of several it is, as of an `Origin`.
        above: the paths of the files that include it, the outermost first, and its own.
    """

    source: SourceText
    data: dict[str, Any]
    scope: Scope
    given: Mapping[str, Any]
    prefix: str = ""
    base: str = ""
    groups: tuple[str, ...] = ()
    wants: tuple[tuple[Want, Origin], ...] = ()
    notes: tuple[str | Origin, ...] = ()
    above: tuple[str, ...] = ()

    def origin(self, *path: str | int, note: str = "") -> Origin:
        return Origin(self.source, path, (note, *self.notes) if note else self.notes)

    def entries(self, key: str) -> list[Any]:
        entries = self.data.get(key)
        return cast("list[Any]", entries) if isinstance(entries, list) else []

    def unused(self) -> Iterator[tuple[str, str | None]]:
        """Variables that it was given and does not have, and what may have been meant. Ask once its strings
        are filled in."""
        declared = self.data.get("vars")
        known = self.scope.used | set(cast("dict[str, Any]", declared) if isinstance(declared, dict) else ())
        for name in self.given:
            if name not in known:
                yield name, did_you_mean(name, sorted(map(str, known)))


def outermost(source: SourceText, data: dict[str, Any], given: Mapping[str, Any], reports: Reports) -> File:
    """The file that the graph is named by."""
    scope = _scope(source, data, given, (), reports)
    return File(source, data, scope, given, above=(str(Path(source.name).absolute().resolve()),))


def filled(value: Any, scope: Scope, origin: Origin, reports: Reports) -> Any:
    """A value with its variables filled in, in all strings that it holds."""
    if isinstance(value, str):
        if MARK not in value:
            return value

        def report(message: str, expected: str | None, hint: str | None, part: str) -> None:
            reports.add(origin, message, expected, hint, part=part)

        return scope.fill(value, report)
    if isinstance(value, list):
        entries = enumerate(cast("list[Any]", value))
        return [filled(each, scope, origin.at(i), reports) for i, each in entries]
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return {key: filled(each, scope, origin.at(key), reports) for key, each in pairs}
    return value


def settings_of(file: File, reports: Reports) -> dict[str, Any]:
    """What holds for the graph as a whole, also where the file does not say it."""
    default = {key: GraphFile.model_fields[key].default for key in SETTINGS}
    written = {key: file.data[key] for key in SETTINGS if key in file.data}
    return default | {
        key: filled(value, file.scope, file.origin(key), reports) for key, value in written.items()
    }


def is_variable(name: Any, origin: Origin, reports: Reports) -> bool:
    """Whether a key can be a variable's name; reports it if not."""
    if isinstance(name, str) and _VARIABLE.fullmatch(name):
        return True
    reports.add(
        origin.at(name),
        f"{describe(name)} cannot be a variable's name",
        "letters, digits and '_'",
        at_key=True,
    )
    return False


def is_name(value: Any) -> bool:
    """Whether it can be the name of a chunk or group."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


@dataclass(slots=True)
class Includes:
    """Reads the files that a graph includes.

    Attributes:
        tree: the folder that paths must not leave; None for none.
        settings: those of the outermost file.
    """

    tree: Path | None
    settings: Mapping[str, Any]
    reports: Reports
    # Files that were read, by their path: a loop may include one many times.
    _read: dict[str, tuple[SourceText, Any]] = field(default_factory=dict[str, tuple[SourceText, Any]])

    def file(self, entry: dict[str, Any], outer: File, origin: Origin, scope: Scope) -> File | None:
        """The file that an entry of another one includes; None if it cannot be used, which is reported.

        Args:
            origin, scope: of the entry, in this round of its loop.
        """
        known = keys_of(IncludeEntry)
        for key in entry:
            if key not in known:
                expected, hint = f"one of {', '.join(known)}", did_you_mean(key, known)
                self.reports.add(origin.at(key), f"unknown key {quoted(key)}", expected, hint, at_key=True)
        own = {key: value for key, value in entry.items() if key not in ("for", "vars")}
        data = filled(own, scope, origin, self.reports)
        given = dict[str, Any]()
        for name, value in _declared(entry.get("vars", {}), origin.at("vars"), self.reports):
            given[name] = filled(value, scope, origin.at("vars", name), self.reports)
        if not self._is_sound(data, origin):
            return None
        path = self._path(data["include"], outer, origin.at("include"))
        loaded = self._loaded(path, data["include"], outer, origin) if path is not None else None
        if path is None or loaded is None:
            return None
        source, content = loaded
        name, group = data.get("as"), data.get("group")
        groups = [outer.prefix + each for each in (name, group) if each is not None]
        parents = enumerate(cast("list[str]", data.get("parents", [])))
        wants = [(Want(text, outer.prefix), origin.at("parents", j)) for j, text in parents]
        notes = (origin, *origin.notes)
        file = File(
            source,
            content,
            _scope(source, content, given, notes, self.reports),
            given,
            outer.prefix if name is None else f"{outer.prefix}{name}.",
            str(Path(outer.base) / Path(data["include"]).parent),
            (*outer.groups, *groups),
            (*outer.wants, *wants),
            notes,
            (*outer.above, path),
        )
        self._check(file)
        return file

    def report_unused(self, file: File, origin: Origin) -> None:
        """What an entry gives that its file does not have. Call it once the file is written out."""
        for name, hint in file.unused():
            self.reports.add(
                origin.at("vars", name),
                f"{file.source.name} has no variable {quoted(name)}",
                "a variable that the file declares or uses",
                hint,
                at_key=True,
            )

    def _is_sound(self, data: dict[str, Any], origin: Origin) -> bool:
        """Whether the values of an entry can be used; reports those that cannot."""
        path, parents = data["include"], data.get("parents", [])
        is_list = isinstance(parents, list) and all(isinstance(p, str) for p in cast("list[Any]", parents))
        found = [
            ("include", isinstance(path, str) and path != "", "the path of a graph file"),
            ("as", "as" not in data or is_name(data["as"]), NAME_IN_WORDS),
            ("group", "group" not in data or is_name(data["group"]), NAME_IN_WORDS),
            ("parents", is_list, "a list of names and selectors"),
        ]
        for key, is_right, expected in found:
            # A reference that could not be looked up is still there, and reported.
            if not is_right and MARK not in str(data[key]):
                self.reports.add(origin.at(key), f"{key!r} is {describe(data[key])}", expected)
        return all(is_right for _, is_right, _ in found)

    def _path(self, written: str, outer: File, origin: Origin) -> str | None:
        """The whole path of a file; None if it must not or cannot be included, which is reported."""
        try:
            check_inside(written, outer.source.folder, self.tree)
            path = str((outer.source.folder / written).resolve())
        except GraphError as error:
            self.reports.take(error, origin)
            return None
        except (OSError, RuntimeError, ValueError):  # a NUL, or links that lead in a circle
            self.reports.add(origin, f"{printable(written)}: cannot be a file's name")
            return None
        if path in outer.above:
            names = [Path(each).name for each in (*outer.above[outer.above.index(path) :], path)]
            drawn = " -> ".join(map(printable, names))
            expected = "a file that does not lead back to itself"
            self.reports.add(origin, f"the includes form a cycle: {drawn}", expected)
            return None
        if len(outer.above) > MAX_DEPTH:
            self.reports.add(origin, f"more than {MAX_DEPTH} files include each other", "fewer")
            return None
        return path

    def _loaded(
        self, path: str, written: str, outer: File, origin: Origin
    ) -> tuple[SourceText, dict[str, Any]] | None:
        try:
            if path not in self._read:
                # A file may be called "-".
                source = SourceText.load(outer.source.folder / written if written != "-" else path)
                data, problems = source.read()
                self.reports.take(GraphError(problems), origin.at("include"), "included")
                self._read[path] = source, data
        except GraphError as error:
            self.reports.take(error, origin.at("include"), "included")
            return None
        source, data = self._read[path]
        if not isinstance(data, dict):
            message, expected = f"{source.name} is no graph file", "'legraph: 1' and 'chunks:'"
            self.reports.add(origin.at("include"), message, expected)
            return None
        return source, cast("dict[str, Any]", data)

    def _check(self, file: File) -> None:
        """What holds for a graph as a whole must be the same in all of its files."""
        version = file.data.get("legraph")
        if type(version) is not int or version != FORMAT_VERSION:
            message = f"the file does not say 'legraph: {FORMAT_VERSION}'"
            self.reports.add(file.origin("legraph"), message, f"version {FORMAT_VERSION}")
        known = keys_of(WrittenGraph)
        for key in file.data:
            if key not in known:
                expected, hint = f"one of {', '.join(known)}", did_you_mean(key, known)
                message = f"unknown key {quoted(key)}"
                self.reports.add(file.origin(key), message, expected, hint, at_key=True)
            elif key == "lint":
                message, expected = "'lint' of an included file", "'lint' at the chunks it is about"
                self.reports.add(file.origin(key), message, expected, at_key=True)
        settings = settings_of(file, self.reports)
        for key in SETTINGS:
            if key in file.data and settings[key] != self.settings[key]:
                message = (
                    f"{key!r} is {describe(settings[key])}, and for the graph {describe(self.settings[key])}"
                )
                expected = "the same as in the outermost file, or nothing"
                self.reports.add(file.origin(key), message, expected)
        if not file.entries("chunks"):
            self.reports.add(file.origin("chunks"), "the included file has no chunks", "a list of chunks")


def _scope(
    source: SourceText,
    data: dict[str, Any],
    given: Mapping[str, Any],
    notes: tuple[str | Origin, ...],
    reports: Reports,
) -> Scope:
    """The variables of a file: those from outside, and its own, whose values can use those before them."""
    origin = Origin(source, ("vars",), notes)
    scope = Scope(dict(given))
    for name, value in _declared(data.get("vars", {}), origin, reports):
        value = filled(value, scope, origin.at(name), reports)
        scope.values.setdefault(name, value)
    return scope


def _declared(written: Any, origin: Origin, reports: Reports) -> Iterator[tuple[str, Any]]:
    """Names of variables and the scalars behind them, as they are written; reports what is neither."""
    if not isinstance(written, dict):
        reports.add(origin, f"'vars' is {describe(written)}", "variables and their values")
        return
    for name, value in cast("dict[Any, Any]", written).items():
        if not is_variable(name, origin, reports):
            continue
        if scalar_text(value) is None:
            reports.add(origin.at(name), f"variable {quoted(name)} is {describe(value)}", SCALAR)
            value = ""
        yield name, value
