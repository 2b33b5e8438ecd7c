"""The journal of a batch: a line for each graph that is done, beside the output, until that is written.

    results.jsonl.part    {"journal": 1, ...}               what this is a run of: inputs, model, settings
                          {"number": 7, "row": {...}}       rows in order of completion

A process that is killed leaves whole lines, and at most half of a last one, which is cut off when the run
goes on. Of a number that is there twice, the last row counts. Once all rows are there, the output is written
in the order of the inputs, and appears whole; then the journal goes, unless rows failed and may be tried
again. In memory there is the place of each row, eight bytes.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legraph.errors import InputError, Problem, RunError, count
from legraph.marks import printable
from legraph.parquetfile import SUFFIX as PARQUET_SUFFIX
from legraph.parquetfile import check_parquet, write_parquet
from legraph.wholefile import write_atomically

if TYPE_CHECKING:
    from legraph.batchinput import Inputs
    from legraph.graph import Generate

OUTPUT_SUFFIXES = (".jsonl", PARQUET_SUFFIX)
_FORMAT = 1
_GO_ON = "make room, and give the same command again: it goes on from there"
# What the keys of a header are called, where they differ.
_SHOWN = {"journal": "the format", "weights": "the weights of the model", "inputs": "the inputs"}
_MISSING = -1


def journal_path(output: Path) -> Path:
    return output.with_name(output.name + ".part")


def check_output(output: Path, header: Mapping[str, Any], restart: bool = False) -> None:
    """Says what `Journal` would say, before a model is loaded; `header` may lack what is not known yet.

    Raises:
        InputError: see `Journal`.
    """
    if output.suffix not in OUTPUT_SUFFIXES:
        kinds = " or ".join(OUTPUT_SUFFIXES)
        raise InputError(Problem(f"{printable(str(output))}: unknown kind of output", f"a name in {kinds}"))
    if output.suffix == PARQUET_SUFFIX:
        check_parquet()
    _check_no_folder(output)
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        wrong = "permission denied" if folder.is_dir() else "no such folder"
        raise InputError(
            Problem(f"{printable(str(output))}: cannot be written: {wrong}", "a folder to write to")
        )
    if restart:
        return
    part = journal_path(output)
    if not part.exists():
        if output.exists():
            raise InputError(
                Problem(
                    f"{printable(str(output))}: is there already",
                    "another -o",
                    "--restart replaces it, once the new one is complete",
                )
            )
        return
    with part.open("rb") as file:
        _check_header(file.readline(), header, part)


def input_header(inputs: Inputs, settings: Generate, model: str, dtype: str) -> dict[str, Any]:
    """What of a run is known before the model is loaded, for the journal."""
    return {
        "inputs": inputs.digest(),
        "variables": dict(inputs.variables),
        "model": model,
        "dtype": dtype,
        **asdict(settings),
        "stop": list(settings.stop),
    }


class Journal:
    """
    Args:
        output: where the rows go in the end: .jsonl or .parquet.
        header: what decides what the rows hold. A journal with another one is not gone on with.
        restart: throws away a journal that is there.

    Raises:
        InputError: the output cannot be written there, it exists, the journal is of another run or damaged,
            or another process is writing it.
        RunError: the disk is full, or pyarrow is missing.
    """

    def __init__(self, output: Path, header: Mapping[str, Any], restart: bool = False) -> None:
        check_output(output, header, restart)
        self.output, self.path = output, journal_path(output)
        self._offsets, self._failed = array("q"), set[int]()
        try:
            # Unbuffered: a line that was written is safe from the death of the process.
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise _unwritable(self.path, error, InputError) from None
        try:
            self._lock()
            if restart:
                self._file.truncate(0)
            self._load({"journal": _FORMAT, **header})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __contains__(self, number: int) -> bool:
        return number < len(self._offsets) and self._offsets[number] != _MISSING

    def __len__(self) -> int:
        return sum(offset != _MISSING for offset in self._offsets)

    def has_failed(self, number: int) -> bool:
        """Whether the row of a graph is an error."""
        return number in self._failed

    @property
    def num_failed(self) -> int:
        return len(self._failed)

    def write(self, number: int, row: Mapping[str, Any]) -> None:
        """
        Raises:
            RunError: the disk is full.
        """
        self._note(number, self._size, "error" in row)
        self._append({"number": number, "row": row})

    def finish(self) -> None:
        """Writes the output, in order of numbers.

        Raises:
            RunError: the disk is full; the journal stays.
        """
        write = self._write_parquet if self.output.suffix == PARQUET_SUFFIX else self._write_jsonl
        try:
            write_atomically(self.output, write, RunError)
        except RunError as error:
            raise RunError(error.message, error.hint or _GO_ON) from None
        if not self._failed:
            self.path.unlink()

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, in order of numbers."""
        with self.path.open("rb") as file:
            for offset in self._offsets:
                if offset != _MISSING:
                    file.seek(offset)
                    yield json.loads(file.readline())["row"]

    def _write_jsonl(self, file: Any) -> None:
        for row in self.rows():
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def _write_parquet(self, file: Any) -> None:
        columns = [("id", False), ("outputs", True), ("timing", True), ("error", True)]
        rows = (
            {"id": row["id"]} | {key: _json(row.get(key)) for key, _ in columns[1:]} for row in self.rows()
        )
        write_parquet(file, rows, columns)

    def _append(self, line: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(line).encode() + b"\n")
        while data:
            try:
                written = self._file.write(data) or 0
            except OSError as error:
                raise _unwritable(self.path, error, RunError) from None
            data = data[written:]
            self._size += written

    def _note(self, number: int, offset: int, is_failed: bool) -> None:
        while number >= len(self._offsets):
            self._offsets.append(_MISSING)
        self._offsets[number] = offset
        (self._failed.add if is_failed else self._failed.discard)(number)

    def _lock(self) -> None:
        """Two processes in one journal would write each other's rows."""
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            what = f"{printable(str(self.path))}: another process is writing it"
            raise InputError(Problem(what, "another -o, or wait for it")) from None

    def _load(self, header: Mapping[str, Any]) -> None:
        """Finds the rows that are there, and cuts off half a line at the end."""
        self._size = 0
        with self.path.open("rb") as file:
            first = file.readline()
            if first.endswith(b"\n"):
                _check_header(first, header, self.path)
                self._size = len(first)
                while (line := file.readline()).endswith(b"\n"):
                    self._note(*self._read_line(line, self._size))
                    self._size += len(line)
        try:
            self._file.truncate(self._size)
        except OSError as error:
            raise _unwritable(self.path, error, RunError) from None
        if not self._size:
            self._append(header)

    def _read_line(self, line: bytes, offset: int) -> tuple[int, int, bool]:
        try:
            entry = json.loads(line)
            number = entry["number"]
            if not isinstance(number, int) or number < 0:
                raise _damaged(self.path)
            return number, offset, "error" in entry["row"]
        except (ValueError, KeyError, TypeError):
            raise _damaged(self.path) from None


def _check_no_folder(output: Path) -> None:
    for path in (output, journal_path(output)):
        try:
            path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:  # such as a name that is too long
            raise _unwritable(path, error, InputError) from None
        if path.is_dir():
            raise InputError(Problem(f"{printable(str(path))}: is a folder", "the name of a file"))


def _check_header(line: bytes, header: Mapping[str, Any], path: Path) -> None:
    if not line.endswith(b"\n"):
        return  # killed before there was anything to keep
    found: Any = None
    with suppress(ValueError):
        found = json.loads(line)
    if not isinstance(found, dict) or "journal" not in found:
        raise _damaged(path)
    wrong = [
        f"{_SHOWN.get(key, key)}: {_value(found.get(key))} there, {_value(value)} here"
        for key, value in header.items()
        if found.get(key) != value
    ]
    if wrong:
        raise InputError(
            Problem(
                f"{printable(str(path))}: is the journal of another run: {'; '.join(wrong)}",
                f"the same inputs, model and settings ({count(len(wrong), 'difference')})",
                "another -o keeps it, and --restart throws it away",
            )
        )


def _value(value: Any) -> str:
    """A setting as it is shown; of a checksum the beginning."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:12] + '..."'


def _damaged(path: Path) -> InputError:
    hint = "--restart throws it away, and another -o keeps it"
    return InputError(Problem(f"{printable(str(path))}: is no journal of a batch, or damaged", None, hint))


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _unwritable(path: Path, error: OSError, kind: type[InputError] | type[RunError]) -> InputError | RunError:
    message = f"{printable(str(path))}: cannot be written: {error.strerror or error}"
    return RunError(message, _GO_ON) if kind is RunError else InputError(message)
