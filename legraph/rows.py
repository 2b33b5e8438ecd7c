"""JSONL of graphs: one object a line, `{"id": str, "graph": {a graph file as JSON}}`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from legraph.errors import GraphError, KeyPath, Problem, Source, did_you_mean
from legraph.marks import Span, describe, printable
from legraph.parse import ParsedFile, parse
from legraph.source import SourceText, read_text_file, unique_keys

_KEYS = ("id", "graph")


@dataclass(frozen=True, slots=True)
class Row:
    """One graph of a file; `line` counts from 1."""

    id: str
    graph: ParsedFile
    line: int


@dataclass(slots=True)
class RowText(SourceText):
    """The graph of a row, whose places are all in line `row` of the file: the text itself is made up here."""

    row: int | None = None

    def _source(self, span: Span, path: KeyPath = ()) -> Source:
        return Source(self.name, self.row, key_path=path)


def read_rows(
    path: str | Path, variables: Mapping[str, Any] | None = None, allow_outside: bool = False
) -> list[Row]:
    """All rows of a file; empty lines are passed over. Relative paths in a graph start at the file's folder.

    Args:
        variables, allow_outside: of every graph, as for `parse.parse_file`.

    Raises:
        GraphError: with all problems of all rows, each with its line.
    """
    text, name = read_text_file(Path(path), str(path)), printable(str(path))
    rows, problems, line_by_id = list[Row](), list[Problem](), dict[str, int]()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = Source(name, number)
        try:
            row = _row(line, place, Path(path).parent, variables, allow_outside)
        except GraphError as error:
            problems += error.problems
            continue
        if row.id in line_by_id:
            first = line_by_id[row.id]
            problems.append(Problem(f"id {row.id!r} is taken by line {first}", "another id", source=place))
        line_by_id.setdefault(row.id, number)
        rows.append(row)
    if not rows and not problems:
        expected = "a JSON object with 'id' and 'graph' on each line"
        problems.append(Problem("the file has no rows", expected, source=Source(name)))
    if problems:
        raise GraphError(problems)
    return rows


def _row(
    line: str, place: Source, folder: Path, variables: Mapping[str, Any] | None, allow_outside: bool
) -> Row:
    data = json_of_line(line, place)
    problems = list(row_problems(data, place))
    if problems:
        raise GraphError(problems)
    row = cast("dict[str, Any]", data)
    parsed = parsed_row(row_text(row["graph"], place, folder), variables, allow_outside)
    return Row(row["id"], parsed, place.line or 0)


def json_of_line(line: str, place: Source) -> Any:
    """What a line of JSONL holds.

    Raises:
        GraphError: not JSON, or a key is there twice.
    """
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        column = error.colno if isinstance(error, json.JSONDecodeError) else None
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        what = "nested too deeply" if isinstance(error, RecursionError) else what
        at = replace(place, column=column, line_text=line)
        raise GraphError(Problem(f"not JSON: {what}", "one JSON object on each line", source=at)) from None


def row_text(graph: Mapping[str, Any], place: Source, folder: Path) -> RowText:
    """A row's graph as text once more: the same reader, with the same refusals, as for a file."""
    return RowText(place.file, json.dumps(graph, ensure_ascii=True), "yaml", folder, row=place.line)


def parsed_row(
    text: RowText, variables: Mapping[str, Any] | None = None, allow_outside: bool = False
) -> ParsedFile:
    """As `parse.parse`; what is wrong is told by its keys in the row."""
    try:
        return parse(text, variables, allow_outside)
    except GraphError as error:
        raise GraphError(map(_in_row, error.problems)) from None


def row_problems(data: Any, place: Source) -> Iterator[Problem]:
    """What is wrong with a row, apart from its graph."""
    if not isinstance(data, dict):
        yield Problem("the line is not an object", '{"id": ..., "graph": {...}}', source=place)
        return
    row = cast("dict[str, Any]", data)
    if "legraph" in row and "graph" not in row:
        yield Problem(
            "the row is a graph itself", '{"id": "a name", "graph": {"legraph": 1, ...}}', source=place
        )
        return
    for key in row:
        if key not in _KEYS:
            hint = did_you_mean(key, _KEYS)
            yield Problem(f"unknown key {key!r}", "'id' and 'graph'", hint, place)
    if not isinstance(row.get("id"), str) or not row["id"]:
        wrong = f"'id' is {describe(row['id'])}" if "id" in row else "the row has no 'id'"
        yield Problem(wrong, "a string that is not empty", source=place)
    if not isinstance(row.get("graph"), dict):
        yield Problem("the row has no 'graph'", "a graph file as a JSON object", source=place)


def _in_row(problem: Problem) -> Problem:
    """A row is one long line, so that a problem's place in it is told by the names of what it stands in."""
    key_path: KeyPath = problem.source.key_path if problem.source is not None else ()
    where = "graph" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in key_path)
    return replace(problem, message=f"{where}: {problem.message}")
