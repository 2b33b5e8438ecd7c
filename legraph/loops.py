"""`for:` in a graph file: what an entry is repeated for.

docs/*.txt            files, in the order of their paths (numbers in them count as numbers)
rows.jsonl            one row a line; .json (a list) and .csv (with a header) too
[red, green]          the entries of a list: scalars, or mappings as rows
{range: [1, 11]}      whole numbers, as Python's range
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from os.path import abspath
from pathlib import Path
from typing import Any, NoReturn, cast

from legraph.errors import GraphError, Problem, Source
from legraph.marks import describe, printable, quoted
from legraph.reads import files_of
from legraph.source import read_text_file, unique_keys
from legraph.variables import Item

# A graph of more chunks than this is a slip of the hand.
MAX_ITEMS = 1_000_000
_DATA_SUFFIXES = (".jsonl", ".json", ".csv")
GLOB_CHARACTERS = frozenset("*?[")
_EXPECTED = "a glob of files, a .jsonl, .json or .csv file, a list, or {range: n}"
_NUMBERS = re.compile(r"(\d+)")


def items_of(source: Any, folder: Path, tree: Path | None) -> list[Item]:
    """The items of a loop.

    Args:
        source: what stands behind the variable, with its own variables filled in.
        folder: what relative paths start from.
        tree: the folder that paths must not leave; None for none.

    Raises:
        GraphError: the source cannot be read or holds nothing; without a place in the graph file, unless it
            is in the file that the items come from.
    """
    if isinstance(source, str):
        items = _of_path(source, folder, tree)
    elif isinstance(source, list):
        items = list(_of_values(cast("list[Any]", source), "entry"))
    elif isinstance(source, dict) and list(cast("dict[str, Any]", source)) == ["range"]:
        items = _of_range(cast("dict[str, Any]", source)["range"])
    else:
        raise GraphError(Problem(f"a loop goes over {describe(source)}", _EXPECTED))
    if not items:
        raise GraphError(Problem("the loop has no items", "at least one"))
    return items


def check_inside(path: str, folder: Path, tree: Path | None) -> None:
    """Refuses a path that leads out of the tree. Links inside the tree may lead anywhere: they are there.

    Raises:
        GraphError: it does; without a place.
    """
    if tree is None or "\0" in path:  # whoever reads it says what is wrong with a NUL
        return
    # Most paths cannot: then the file system need not be asked where we are.
    if not path.startswith(("/", "\\", "~")) and ".." not in path and ":" not in path and folder == tree:
        return
    # By the names alone, hence not `resolve`.
    if not Path(abspath(folder / path)).is_relative_to(abspath(tree)):  # noqa: PTH100
        raise GraphError(
            Problem(
                f"{printable(path)} leads out of the folder of the graph file",
                "a path inside it",
                "--allow-outside lets paths lead anywhere",
            )
        )


def _of_path(text: str, folder: Path, tree: Path | None) -> list[Item]:
    check_inside(text, folder, tree)
    suffix = Path(text).suffix.lower()
    if GLOB_CHARACTERS.isdisjoint(text) and suffix in _DATA_SUFFIXES:
        name, content = printable(str(folder / text)), read_text_file(folder / text, text)
        read = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}[suffix]
        return list(read(content, name))
    return list(_of_files(text, folder))


def _of_files(pattern: str, folder: Path) -> Iterator[Item]:
    root, inner = folder, pattern
    if Path(pattern).is_absolute():
        root = Path(Path(pattern).anchor)
        inner = str(Path(pattern).relative_to(root))
    try:
        found = set(files_of(root, inner))
    except (ValueError, IndexError, NotImplementedError, OSError):  # IndexError: of "."
        raise GraphError(Problem(f"{quoted(pattern)} is no glob of files", _EXPECTED)) from None
    if not found:
        raise GraphError(Problem(f"no file matches {printable(pattern)}", _EXPECTED))
    names = [(path if root is not folder else path.relative_to(folder)).as_posix() for path in found]
    for i, name in enumerate(sorted(names, key=by_number)):
        path = Path(name)
        if not name.isascii() and name.encode(errors="replace") != os.fsencode(name):
            raise GraphError(Problem(f"the name of the file {printable(name)} is not UTF-8", "another name"))
        fields = {"path": name, "name": path.name, "stem": path.stem}
        yield Item(name, fields | _counted(i), printable(name))


def by_number(name: str) -> tuple[list[str | int], str]:
    """doc2 before doc10; and doc01 before doc1, which are the same number."""
    return [int(part) if i % 2 else part for i, part in enumerate(_NUMBERS.split(name))], name


def _counted(i: int) -> dict[str, Any]:
    return {"index": i, "number": i + 1}


def _item(i: int, value: Any, shown: str) -> Item:
    # A row's own column of that name is what its writer means.
    row = cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
    return Item(value, {**_counted(i), **row}, shown)


def _of_values(values: Iterable[Any], what: str, where: str = "") -> Iterator[Item]:
    for i, value in enumerate(values):
        shown = f"{where}{what} {i + 1}"
        if isinstance(value, str | int | float):
            yield _item(i, value, quoted(str(value)))
        elif isinstance(value, dict):
            yield _item(i, value, shown)
        else:
            raise GraphError(Problem(f"{shown} is {describe(value)}", "a string, a number or a mapping"))


def _of_range(written: Any) -> list[Item]:
    bounds = cast("list[Any]", written) if isinstance(written, list) else [written]
    if bounds[2:] == [0]:
        raise GraphError(Problem("the range has a step of 0", "another step"))
    if not 1 <= len(bounds) <= 3 or not all(type(bound) is int for bound in bounds):
        raise GraphError(Problem(f"range is {describe(written)}", "n, [start, stop] or [start, stop, step]"))
    numbers = range(*bounds)
    # `len` of a range cannot be larger than a machine's word.
    if numbers and abs(numbers[-1] - numbers[0]) // abs(numbers.step) >= MAX_ITEMS:
        raise GraphError(Problem("the range is too long", f"at most {MAX_ITEMS:,} numbers"))
    return [_item(i, number, str(number)) for i, number in enumerate(numbers)]


def _jsonl(text: str, name: str) -> Iterator[Item]:
    i = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            value = _loaded(line, name, number)
            if not isinstance(value, dict | str | int | float):
                place = Source(name, number)
                raise GraphError(Problem(f"the row is {describe(value)}", "a JSON object", source=place))
            yield _item(i, value, f"{name}:{number}")
            i += 1


def _json(text: str, name: str) -> Iterator[Item]:
    value = _loaded(text, name, None)
    if not isinstance(value, list):
        what = describe(value)
        raise GraphError(Problem(f"the file holds {what}", "a JSON list", source=Source(name)))
    yield from _of_values(cast("list[Any]", value), "entry", f"{name}, ")


def _loaded(text: str, name: str, line: int | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        place = Source(name, line or error.lineno, error.colno, line_text=text.split("\n")[error.lineno - 1])
        raise GraphError(Problem(f"not JSON: {error.msg}", source=place)) from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise GraphError(Problem(f"not JSON: {what}", source=Source(name, line))) from None


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _csv(text: str, name: str) -> Iterator[Item]:
    for i, (place, row) in enumerate(csv_rows(io.StringIO(text, newline=""), name)):
        if isinstance(row, Problem):
            raise GraphError(row)
        yield _item(i, row, str(place))


def csv_rows(lines: Iterable[str], name: str) -> Iterator[tuple[Source, dict[str, str] | Problem]]:
    """The rows of a CSV file with a header, each with its place, or what is wrong with it.

    Args:
        lines: with their line ends.

    Raises:
        GraphError: the header cannot be used.
    """
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            place = Source(name, reader.line_num)
            problem = Problem(f"not CSV: {error}", source=place)
            if header is None:
                raise GraphError(problem) from None
            yield place, problem
            continue
        place = Source(name, reader.line_num)
        if header is None:
            header = row
            if len(set(header)) < len(header):
                raise GraphError(Problem("a column's name is there twice", "a name of its own", source=place))
        elif row and len(row) != len(header):
            message = f"the row has {len(row)} fields, and the header {len(header)}"
            yield place, Problem(message, "as many as the header", source=place)
        elif row:
            yield place, dict(zip(header, row, strict=True))
