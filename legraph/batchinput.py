"""Many graphs, one at a time: graph files, globs, rows of JSONL or Parquet, bundles, a template and a table.

Nothing but the names of the files is held in memory, and a hash of each id. A row that is broken, or whose
id was there before, is an `Item` with its error, not a stop. Graphs are parsed by whoever wants them
(`graph_of`, `bundle_of`), in whatever thread or process that is: an `Item` can be pickled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, cast

from legraph.bundle import Bundle
from legraph.compiler import compile_graph
from legraph.errors import GraphError, InputError, LegraphError, Problem, Source
from legraph.graph import Graph, build_graph
from legraph.loops import GLOB_CHARACTERS, by_number
from legraph.marks import describe, printable, quoted
from legraph.parse import parse, parse_file
from legraph.reads import files_of
from legraph.rows import RowText, json_of_line, parsed_row, row_problems, row_text
from legraph.rowstream import JSONL_SUFFIX, PARQUET_SUFFIX, ROW_SUFFIXES, num_rows, opened, stream_rows
from legraph.schema import VARIABLE_PATTERN
from legraph.source import STDIN, SourceText
from legraph.variables import SCALAR, scalar_text

BUNDLE_SUFFIXES = (".npz", ".pt")
_GRAPHS = "graph files, globs, .jsonl or .parquet of graphs, or bundles"
_VARIABLE = re.compile(VARIABLE_PATTERN)
_PIECE = 2**20
# Of a file.
_MAX_LINES = 2**40


@dataclass(frozen=True, slots=True)
class Item:
    """One graph of many, not parsed yet.

    Attributes:
        number: from 0, in the order of the inputs.
        id: a row's own; the path of a file as it was given. A row without one is called by its place.
        place: the file, and the row's line (in Parquet its number from 1).
        graph: the text of a graph, or the path of a graph file or bundle; None where there is only an error.
        error: what is wrong with the row as far as that is known without parsing its graph.
    """

    number: int
    id: str
    place: Source
    graph: SourceText | Path | None = None
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    allow_outside: bool = False
    error: LegraphError | None = None


def items(
    inputs: Sequence[str | Path],
    template: str | Path | None = None,
    table: str | Path | None = None,
    variables: Mapping[str, Any] | None = None,
    allow_outside: bool = False,
) -> Iterator[Item]:
    """The graphs of some inputs, in order. See `Inputs.find` for arguments and errors."""
    return Inputs.find(inputs, template, table, variables, allow_outside).items()


def graph_of(item: Item) -> Graph:
    """Parses an item.

    Raises:
        LegraphError: the item's own error.
        GraphError: the graph is wrong, or the item is a bundle.
    """
    if item.error is not None:
        raise item.error
    assert item.graph is not None
    if isinstance(item.graph, RowText):
        return build_graph(parsed_row(item.graph, item.variables, item.allow_outside))
    if isinstance(item.graph, SourceText):
        return build_graph(parse(item.graph, item.variables, item.allow_outside))
    if is_bundle(item):
        raise GraphError(Problem(f"{printable(str(item.graph))}: is a bundle", "a graph"))
    return build_graph(parse_file(item.graph, item.variables, item.allow_outside))


def bundle_of(item: Item, tokenizer: Any) -> Bundle:
    """Parses and compiles an item, or loads it.

    Raises:
        LegraphError: the item's own error, or what is wrong with its graph.
    """
    if is_bundle(item):
        return Bundle.load(cast("Path", item.graph))
    return compile_graph(graph_of(item), tokenizer)


def is_bundle(item: Item) -> bool:
    return isinstance(item.graph, Path) and item.graph.suffix in BUNDLE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where graphs come from: files, or a template and a table of its variables.

    Attributes:
        files: paths as they were given, those of globs written out; standard input is a `SourceText`.
    """

    files: tuple[Path | SourceText, ...]
    template: SourceText | None = None
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    allow_outside: bool = False

    @classmethod
    def find(
        cls,
        inputs: Sequence[str | Path],
        template: str | Path | None = None,
        table: str | Path | None = None,
        variables: Mapping[str, Any] | None = None,
        allow_outside: bool = False,
    ) -> Inputs:
        """
        Args:
            inputs: graph files, globs, .jsonl and .parquet of rows {"id", "graph"}, bundles; - is a graph
                file on standard input.
            template, table: instead: a graph file, and .jsonl, .csv or .parquet, whose columns are its
                variables; a column `id` names the graphs, else the row's number from 1 does.
            variables, allow_outside: of every graph, as for `parse.parse_file`.

        Raises:
            InputError: a file that is not there, or a combination that is not allowed.
        """
        if (template is None) != (table is None):
            given, missing = ("--template", "--table") if table is None else ("--table", "--template")
            raise InputError(Problem(f"{given} goes with {missing}", "both, or neither"))
        if template is not None and inputs:
            raise InputError(Problem("there are inputs, and a template", f"{_GRAPHS}; or a template"))
        given_variables = dict(variables or {})
        if template is not None and table is not None:
            path = Path(table)
            _check_file(path)
            if path.suffix.lower() not in ROW_SUFFIXES:
                raise InputError(Problem(f"{printable(str(path))}: is no table", ", ".join(ROW_SUFFIXES)))
            return cls((path,), SourceText.load(template), given_variables, allow_outside)
        if not inputs:
            raise InputError(Problem("there are no inputs", _GRAPHS))
        return cls(tuple(_all_found(inputs)), None, given_variables, allow_outside)

    def items(self) -> Iterator[Item]:
        """
        Raises:
            InputError: there is no graph; later, a file that cannot be read at all.
        """
        found = _unique(self._items())
        first = next(found, None)
        if first is None:
            raise self._empty()
        return chain([first], found)

    def _items(self) -> Iterator[Item]:
        each = chain.from_iterable(map(self._items_of, self.files))
        return (replace(item, number=number, id=_writable(item.id)) for number, item in enumerate(each))

    def _items_of(self, file: Path | SourceText) -> Iterator[Item]:
        if self.template is not None:
            assert isinstance(file, Path)
            return _of_table(file, self.template, self.variables, self.allow_outside)
        if isinstance(file, Path) and file.suffix.lower() in (JSONL_SUFFIX, PARQUET_SUFFIX):
            return _of_rows(file, self.variables, self.allow_outside)
        name = _name(file)
        return iter([Item(0, name, Source(printable(name)), file, self.variables, self.allow_outside)])

    def _empty(self) -> InputError:
        names = ", ".join(printable(_name(file)) for file in self.files)
        return InputError(Problem(f"{names}: no graph is there", "at least one"))

    def num_graphs(self) -> int:
        """How many there are. Reads through the files, but does not look at what they hold.

        Raises:
            InputError: none, or a file cannot be read at all.
        """
        rows = {*ROW_SUFFIXES} if self.template is not None else {JSONL_SUFFIX, PARQUET_SUFFIX}
        found = sum(
            num_rows(file) if isinstance(file, Path) and file.suffix.lower() in rows else 1
            for file in self.files
        )
        if not found:
            raise self._empty()
        return found

    def digest(self) -> str:
        """SHA-256 over names and contents of all files, in order. What graphs name in turn is not in it."""
        found = sha256()
        parts = [self.template, *self.files] if self.template is not None else self.files
        for part in parts:
            found.update(json.dumps(_name(part)).encode())
            if isinstance(part, SourceText):
                found.update(sha256(part.text.encode("utf-8", "surrogatepass")).digest())
                continue
            own = sha256()
            with opened(part) as file:
                while piece := file.read(_PIECE):
                    own.update(piece)
            found.update(own.digest())
        return found.hexdigest()


def _writable(id: str) -> str:
    """JSON and names of files may hold halves of characters, which no file of text can."""
    return id.encode("utf-8", "backslashreplace").decode()


def _name(file: Path | SourceText) -> str:
    return str(file) if isinstance(file, Path) else STDIN if file.name == "<stdin>" else file.name


def _all_found(inputs: Sequence[str | Path]) -> list[Path | SourceText]:
    files, problems = list[Path | SourceText](), list[Problem]()
    for given in inputs:
        try:
            files += _found(str(given))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return files


def _found(given: str) -> Sequence[Path | SourceText]:
    """The files that an argument names."""
    if given == STDIN:
        return [SourceText.load(STDIN)]
    path = Path(given)
    if not GLOB_CHARACTERS.isdisjoint(given) and not path.exists():
        return _matches(path)
    _check_file(path)
    return [path]


def _matches(pattern: Path) -> list[Path]:
    shown = printable(str(pattern))
    root = Path(pattern.anchor)
    try:
        found = files_of(root, str(pattern.relative_to(root)))
    except (ValueError, IndexError, NotImplementedError, OSError):
        raise InputError(Problem(f"{shown} is no glob of files", _GRAPHS)) from None
    if not found:
        raise InputError(Problem(f"no file matches {shown}", _GRAPHS))
    return sorted(found, key=lambda file: by_number(file.as_posix()))


def _check_file(path: Path) -> None:
    try:
        opened(path).close()
    except GraphError as error:
        raise InputError(error.problems) from None


def _unique(items: Iterable[Item]) -> Iterator[Item]:
    """The same; an id that was there before is an error that names both places."""
    # Hashes and numbers, because a million ids and places take much more room. Two of a million ids have the
    # same hash once in some ten million times.
    first, numbers = dict[int, int](), dict[str, int]()
    for item in items:
        file = numbers.setdefault(item.place.file, len(numbers))
        there = first.get(key := hash(item.id))
        if there is None:
            first[key] = file * _MAX_LINES + (item.place.line or 0)
            yield item
            continue
        name = next(name for name, number in numbers.items() if number == there // _MAX_LINES)
        known = Source(name, there % _MAX_LINES or None)
        problem = Problem(f"id {quoted(item.id)} is taken by {known}", "another id", source=item.place)
        error = item.error if item.error is not None else InputError(problem)
        yield replace(item, graph=None, error=error)


def _of_rows(path: Path, variables: Mapping[str, Any], allow_outside: bool) -> Iterator[Item]:
    for number, row in enumerate(stream_rows(path)):
        data, place = row.data, row.place
        id, error, text = _id_of(data) or str(place), row.error, None
        if error is None and path.suffix.lower() == PARQUET_SUFFIX:
            data, error = _with_graph(data, place)
        if error is None and (problems := list(row_problems(data, place))):
            error = GraphError(problems)
        if error is None:
            text = row_text(data["graph"], place, path.parent)
        yield Item(number, id, place, text, variables, allow_outside, error)


def _id_of(data: Any) -> str | None:
    id = cast("dict[str, Any]", data).get("id") if isinstance(data, dict) else None
    return id if isinstance(id, str) else None


def _with_graph(row: dict[str, Any], place: Source) -> tuple[dict[str, Any], GraphError | None]:
    """A row of Parquet, whose graph may be a string of JSON."""
    graph = row.get("graph")
    if not isinstance(graph, str):
        return row, None
    try:
        return row | {"graph": json_of_line(graph, place)}, None
    except GraphError as error:
        return row, error


def _of_table(
    path: Path, template: SourceText, variables: Mapping[str, Any], allow_outside: bool
) -> Iterator[Item]:
    wants_id = _uses_id(template)
    for number, row in enumerate(stream_rows(path)):
        found, error = dict[str, Any](), row.error
        if error is None:
            found, error = _variables(row.data, row.place)
        id = scalar_text(found.get("id", number + 1)) or str(row.place)
        if not wants_id:
            found.pop("id", None)
        graph = template if error is None else None
        yield Item(number, id, row.place, graph, {**variables, **found}, allow_outside, error)


def _uses_id(template: SourceText) -> bool:
    """Whether the template has a variable `id`: else the column only names the graphs."""
    try:
        data, _ = template.read()
    except GraphError:
        return False  # said for every row
    declared = cast("dict[str, Any]", data).get("vars") if isinstance(data, dict) else None
    return re.search(r"\$\{id[}.]", template.text) is not None or (
        isinstance(declared, dict) and "id" in declared
    )


def _variables(data: Any, place: Source) -> tuple[dict[str, Any], GraphError | None]:
    """A row of a table. A null is a variable that is not given."""
    if not isinstance(data, dict):
        problem = Problem(f"the row is {describe(data)}", "an object of names and values", source=place)
        return {}, GraphError(problem)
    row = {name: value for name, value in cast("dict[str, Any]", data).items() if value is not None}
    problems = list[Problem]()
    for name, value in row.items():
        if not _VARIABLE.fullmatch(name):
            what = f"{quoted(name)} cannot be a variable's name"
            problems.append(Problem(what, "letters, digits and '_'", source=place))
        elif scalar_text(value) is None:
            problems.append(Problem(f"{quoted(name)} is {describe(value)}", SCALAR, source=place))
    return row, GraphError(problems) if problems else None
