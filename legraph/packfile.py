"""Packs on disk: a folder that `datasets.load_dataset(folder, split="train")` reads.

    DIR/data/train-00000-of-00002.parquet    a row for each pack, see `COLUMNS`
    DIR/pack.json                            what it is: `PackInfo`
    DIR/skipped.jsonl                        {"id", "error"} of each graph that was left out, if any was

Parquet, because everything reads it: `datasets` from disk, as a stream and from the Hub, pandas, polars,
DuckDB. Token ids in it take about a third of Arrow's space, and pages have a schema that keeps the columns'
types. `load_dataset` unpacks it once into its cache, which it then maps into memory as Arrow.

A folder appears whole or not at all. pyarrow and datasets (the extra `train`) are imported when a pack is
written.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from legraph.errors import InputError, Problem, RunError
from legraph.mask import ChunkMask
from legraph.maskunion import union_of_masks

FORMAT_VERSION = 1
INFO_NAME, SKIPPED_NAME, DATA_NAME = "pack.json", "skipped.jsonl", "data"
# Lists of integers, int32, but for the last: a list of strings. `graph_offsets` count chunks: graph g of a
# row has the chunks graph_offsets[g]:graph_offsets[g + 1]. Tokens are not padded.
COLUMNS = (
    "input_ids",
    "position_ids",
    "labels",
    "span_offsets",
    "parent_offsets",
    "parent_indices",
    "graph_offsets",
    "graph_ids",
)
# A shard of about 32 million tokens has about 100 MB; a group of rows is what a reader holds at once.
TOKENS_PER_SHARD = 2**25
TOKENS_PER_GROUP = 2**19
_COMPRESSION = "zstd"


@dataclass(frozen=True, slots=True)
class PackGraph:
    """A compiled graph as it lies in a pack: tokens int32 [N], labels with -100 where nothing counts."""

    id: str
    input_ids: Any
    position_ids: Any
    labels: Any
    mask: ChunkMask

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(slots=True)
class PackInfo:
    """What a folder of packs holds.

    Attributes:
        tokenizer, tokenizer_fingerprint: as in `BundleMeta`.
        length: tokens of a pack, at most.
        tokens, labels: over all graphs; `labels` are those that count.
        skipped_long, skipped_broken: graphs that were left out.
    """

    legraph_version: str = ""
    tokenizer: str = ""
    tokenizer_fingerprint: str = ""
    length: int = 0
    window: int = 0
    seed: int = 0
    packs: int = 0
    graphs: int = 0
    tokens: int = 0
    labels: int = 0
    skipped_long: int = 0
    skipped_broken: int = 0

    @property
    def fill(self) -> float:
        """Share of all places that hold a token of a graph; the rest is padding."""
        return self.tokens / (self.packs * self.length) if self.packs else 0.0

    def data(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **asdict(self), "fill": round(self.fill, 6)}


def read_info(folder: str | Path) -> PackInfo:
    """What `legraph pack` wrote of a folder.

    Raises:
        InputError: the folder is none of its own, or one of a newer legraph.
    """
    path = Path(folder) / INFO_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] > FORMAT_VERSION:
            raise InputError(f"{path}: was written by a newer legraph; upgrade legraph")
        return PackInfo(**{field.name: content[field.name] for field in fields(PackInfo)})
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not what legraph pack writes") from None


def check_target(folder: Path, force: bool) -> None:
    """Before anything is compiled: whether the folder can be written.

    Raises:
        InputError: it exists and is not to be replaced, or is no folder of packs, or has no parent folder.
        RunError: `datasets` is not installed.
    """
    _writer_modules()
    if folder.is_symlink() or folder.exists():
        if not force:
            raise InputError(
                Problem(f"{folder} exists", "a new folder", "--force replaces a folder of packs")
            )
        if folder.is_symlink() or not (folder / INFO_NAME).is_file():
            raise InputError(
                Problem(f"{folder} is not a folder of packs, and is not replaced", "a new folder")
            )
    elif not folder.parent.is_dir():
        raise InputError(f"{folder}: there is no folder {folder.parent}")


def write_packs(
    folder: Path,
    packs: Iterable[Sequence[PackGraph]],
    info: PackInfo,
    skipped: Iterable[Mapping[str, str]] = (),
    force: bool = False,
) -> PackInfo:
    """Writes all packs, and counts them into `info`, which is then written too.

    Args:
        skipped: looked at when all packs are written.

    Raises:
        InputError: the folder exists (unless `force`: then it is replaced), or it cannot be written, for a
            full disk, say; nothing is left then.
        RunError: `datasets` is not installed.
    """
    check_target(folder, force)
    with _whole_folder(folder) as part:
        _write_shards(part / DATA_NAME, _counted(packs, info))
        lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in skipped)
        if (first := next(lines, None)) is not None:
            with (part / SKIPPED_NAME).open("w", encoding="utf-8") as file:
                file.writelines(chain([first], lines))
        (part / INFO_NAME).write_text(json.dumps(info.data(), indent=2) + "\n", encoding="utf-8")
    return info


def _counted(packs: Iterable[Sequence[PackGraph]], info: PackInfo) -> Iterator[dict[str, Any]]:
    for pack in packs:
        row = pack_row(pack)
        info.packs += 1
        info.graphs += len(pack)
        info.tokens += len(row["input_ids"])
        info.labels += int((row["labels"] >= 0).sum())
        yield row


def pack_row(pack: Sequence[PackGraph]) -> dict[str, Any]:
    """One row: the disjoint union of the graphs, in this order."""
    mask = union_of_masks([graph.mask for graph in pack])
    chunks = [graph.mask.num_chunks for graph in pack]
    arrays = {
        key: np.concatenate([getattr(graph, key) for graph in pack])
        for key in ("input_ids", "position_ids", "labels")
    } | {
        "span_offsets": mask.span_offsets,
        "parent_offsets": mask.parent_offsets,
        "parent_indices": mask.parent_indices,
        "graph_offsets": np.cumsum([0, *chunks]),
    }
    return {key: array.astype(np.int32) for key, array in arrays.items()} | {
        "graph_ids": [graph.id for graph in pack]
    }


def _writer_modules() -> tuple[Any, Any, Any]:
    try:
        import datasets
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RunError(
            f"packs are written with the package {error.name!r}, which is not installed",
            "pip install 'legraph[train]'",
        ) from None
    return datasets, pyarrow, pyarrow.parquet


def _write_shards(folder: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Group after group of rows, so that memory does not grow with their number."""
    datasets, pyarrow, parquet = _writer_modules()
    lists = {key: datasets.List(datasets.Value("int32")) for key in COLUMNS[:-1]}
    # With the columns' types as `datasets` has them, so that it does not guess.
    schema = datasets.Features(lists | {COLUMNS[-1]: datasets.List(datasets.Value("string"))}).arrow_schema
    folder.mkdir()
    shards = list[Path]()
    writer: Any = None
    room = 0
    try:
        for group in _groups(rows):
            if room <= 0:
                if writer is not None:
                    writer.close()
                shards.append(folder / f"{len(shards)}.parquet")
                writer = parquet.ParquetWriter(shards[-1], schema, compression=_COMPRESSION)
                room = TOKENS_PER_SHARD
            writer.write_table(_table(pyarrow, group, schema))
            room -= sum(len(row["input_ids"]) for row in group)
    finally:
        if writer is not None:
            writer.close()
    for number, shard in enumerate(shards):
        shard.rename(folder / f"train-{number:05}-of-{len(shards):05}.parquet")


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group, room = list[dict[str, Any]](), TOKENS_PER_GROUP
    for row in rows:
        group.append(row)
        room -= len(row["input_ids"])
        if room <= 0:
            yield group
            group, room = [], TOKENS_PER_GROUP
    if group:
        yield group


def _table(pyarrow: Any, rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    columns = [_lists(pyarrow, [row[name] for row in rows]) for name in COLUMNS[:-1]]
    columns.append(pyarrow.array([row[COLUMNS[-1]] for row in rows], pyarrow.list_(pyarrow.string())))
    return pyarrow.table(columns, schema=schema)


def _lists(pyarrow: Any, arrays: Sequence[Any]) -> Any:
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(np.concatenate(arrays)))


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside the one that is wanted; it takes that one's name and place if all goes well."""
    try:
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield part
        # mkdtemp makes folders that only their owner may read; this is an ordinary one, like its parts.
        part.chmod((part / DATA_NAME).stat().st_mode & 0o777)
        if folder.exists():
            folder.rename(part.with_suffix(".old"))
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(part.with_suffix(".old"), ignore_errors=True)
