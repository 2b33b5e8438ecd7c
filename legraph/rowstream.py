"""Rows of .jsonl, .csv and .parquet files, one at a time. A broken one does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legraph.errors import GraphError, Problem, Source
from legraph.loops import csv_rows
from legraph.marks import printable
from legraph.parquetfile import SUFFIX as PARQUET_SUFFIX
from legraph.parquetfile import num_parquet_rows, parquet_rows
from legraph.reads import note_file
from legraph.rows import json_of_line
from legraph.source import MAX_FILE_BYTES, reading

JSONL_SUFFIX, CSV_SUFFIX = ".jsonl", ".csv"
ROW_SUFFIXES = (JSONL_SUFFIX, CSV_SUFFIX, PARQUET_SUFFIX)


@dataclass(frozen=True, slots=True)
class StreamedRow:
    """What a row holds, or what is wrong with it. `place` names its line; in Parquet, its number from 1."""

    place: Source
    data: Any
    error: GraphError | None = None


def stream_rows(path: Path) -> Iterator[StreamedRow]:
    """The rows of a file, by its suffix. Empty lines are passed over.

    Raises:
        GraphError: the file as a whole cannot be read.
        RunError: pyarrow is needed, and not installed.
    """
    note_file(path)
    match path.suffix.lower():
        case ".csv":
            return _csv(path)
        case ".parquet":
            return _parquet(path)
        case _:
            return _jsonl(path)


def num_rows(path: Path) -> int:
    """How many rows a file has, without looking at what they hold. Raises what `stream_rows` raises."""
    if path.suffix.lower() == PARQUET_SUFFIX:
        return num_parquet_rows(path)
    # A field of CSV may hold line ends.
    if path.suffix.lower() == CSV_SUFFIX:
        return sum(1 for _ in _csv(path))
    with opened(path) as file:
        return sum(1 for line in file if line.strip())


def opened(path: Path) -> Any:
    """The file, to read bytes from.

    Raises:
        GraphError: it cannot be opened.
    """
    with reading(printable(str(path))):
        return path.open("rb")


def _jsonl(path: Path) -> Iterator[StreamedRow]:
    name, number = printable(str(path)), 0
    with opened(path) as file:
        while line := file.readline(MAX_FILE_BYTES + 1):
            number += 1
            place = Source(name, number)
            if len(line) > MAX_FILE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_FILE_BYTES)
                too_long = Problem(f"the line is larger than {MAX_FILE_BYTES // 2**20} MiB", source=place)
                yield StreamedRow(place, None, GraphError(too_long))
            elif line.strip():
                yield _json_row(line, place)


def _json_row(line: bytes, place: Source) -> StreamedRow:
    try:
        text = line.decode("utf-8-sig" if place.line == 1 else "utf-8").rstrip("\r\n")
        return StreamedRow(place, json_of_line(text, place))
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at offset {error.start:,} of the line"
        problem = Problem(f"is not UTF-8: {byte}", "UTF-8 text", source=place)
        return StreamedRow(place, None, GraphError(problem))
    except GraphError as error:
        return StreamedRow(place, None, error)


def _csv(path: Path) -> Iterator[StreamedRow]:
    opened(path).close()
    # A byte that is not UTF-8 is one row's problem.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for place, row in csv_rows(file, printable(str(path))):
            if isinstance(row, dict) and not _is_text("".join(row.values())):
                row = Problem("is not UTF-8", "UTF-8 text", source=place)
            if isinstance(row, Problem):
                yield StreamedRow(place, None, GraphError(row))
            else:
                yield StreamedRow(place, row)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[StreamedRow]:
    name = printable(str(path))
    for number, row in enumerate(parquet_rows(path), 1):
        yield StreamedRow(Source(name, number), row)
