"""Parquet, read and written a few rows at a time, through pyarrow (the extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from legraph.errors import GraphError, RunError
from legraph.marks import printable

SUFFIX = ".parquet"
# Rows in memory at a time.
_ROWS_READ = 256
_ROWS_WRITTEN = 1024


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file. A null is a key that is not there, also inside structs.

    Raises:
        GraphError: the file cannot be read, at the row from which on it cannot.
        RunError: pyarrow is not installed.
    """
    with _opened(path) as file:
        batches = file.iter_batches(batch_size=_ROWS_READ)
        while True:
            try:
                batch = next(batches, None)
                rows = None if batch is None else batch.to_pylist()
            except Exception as error:  # pyarrow raises OSError, ArrowInvalid, UnicodeError and more here
                raise _unreadable(path, error) from None
            if rows is None:
                return
            yield from map(_without_nulls, rows)


def num_parquet_rows(path: Path) -> int:
    """Raises what `parquet_rows` raises."""
    with _opened(path) as file:
        return file.metadata.num_rows


def write_parquet(
    file: Any, rows: Iterable[Mapping[str, str | None]], columns: Sequence[tuple[str, bool]]
) -> None:
    """Writes rows of strings to a binary file.

    Args:
        columns: name of each column, and whether its values may be null.

    Raises:
        RunError: pyarrow is not installed.
    """
    parquet = check_parquet()
    import pyarrow

    schema = pyarrow.schema([pyarrow.field(name, pyarrow.string(), nullable) for name, nullable in columns])
    rows = iter(rows)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while part := list(islice(rows, _ROWS_WRITTEN)):
            writer.write_table(pyarrow.Table.from_pylist(part, schema))


def check_parquet() -> Any:
    """pyarrow's module for Parquet.

    Raises:
        RunError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise RunError(
            "Parquet files need the package pyarrow, which is not installed",
            "pip install 'legraph[parquet]', or use .jsonl",
        ) from None
    return pyarrow.parquet


def _opened(path: Path) -> Any:
    parquet = check_parquet()
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # of many kinds, as above
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> GraphError:
    if isinstance(error, FileNotFoundError):
        return GraphError(f"{printable(str(path))}: no such file")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return GraphError(f"{printable(str(path))}: is not Parquet, or damaged: {reason}")


def _without_nulls(value: Any) -> Any:
    """Every row of a struct column has all keys that any row has."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
