"""What was read from disk, for those who want to know when reading it again could give something else.

Whoever reads a file of a graph notes it here; without anybody who asked for the notes, nothing is kept.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

# Mode, size, time of the last change, and number of a file; None for one that is not there.
Stamp = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Reads:
    """What was asked of the file system.

    Attributes:
        files: those that were read, or should have been, each with its stamp just before.
        globs: what each pattern matched below its folder.
    """

    files: dict[Path, Stamp] = field(default_factory=dict[Path, Stamp])
    globs: dict[tuple[Path, str], list[Path]] = field(default_factory=dict[tuple[Path, str], list[Path]])

    def are_out_of_date(self) -> bool:
        """Whether reading the same now could give something else."""
        if any(stamp_of(path) != stamp for path, stamp in self.files.items()):
            return True
        return any(_matches(*glob) != sorted(found) for glob, found in self.globs.items())


_NOTES: ContextVar[Reads | None] = ContextVar("notes", default=None)


@contextmanager
def noted_reads() -> Generator[Reads, None, None]:
    """While it is open, everything that is read in this thread goes into the `Reads` that it gives."""
    reads = Reads()
    token = _NOTES.set(reads)
    try:
        yield reads
    finally:
        _NOTES.reset(token)


def note_file(path: Path) -> None:
    """To be called before a file is read: then no change of it is missed."""
    if (reads := _NOTES.get()) is not None:
        reads.files.setdefault(path, stamp_of(path))


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files that a glob matches, noted.

    Raises:
        ValueError, NotImplementedError, OSError: it is no glob, or the folder cannot be read.
    """
    try:
        found = [path for path in folder.glob(pattern) if path.is_file()]
    except RecursionError:  # pathlib goes down one call for each folder in the pattern
        raise ValueError("too many folders") from None
    if (reads := _NOTES.get()) is not None:
        reads.globs[folder, pattern] = found
    return found


def stamp_of(path: Path) -> Stamp:
    """What changes when a file is written, replaced or removed."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino


def _matches(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(files_of(folder, pattern))
    except OSError:  # a folder that has gone, or must not be read any more
        return []
