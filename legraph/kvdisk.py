"""The part of the KV store that lies on disk: a folder with one file for each chunk, named after its key.

Files lie in `FOLDER/v1/<first two digits of the key>/<key>.safetensors`. Each is written beside its place and
renamed, so several processes may write, read and prune one folder at once, without locks: a reader has the
whole file or none, also when it is removed under it. Nothing is synced to the disk before the rename: a
power cut may leave a file without its content, its checksum says so, and it is only a cache.

Whatever else lies in the folder is neither read nor removed.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legraph.errors import InputError, Problem
from legraph.kvfile import KEY_PATTERN, BadFileError, ChunkKV, encode, map_file, read_head, verify_file

VERSION_FOLDER = "v1"
SUFFIX = ".safetensors"
_TEMPORARY_SUFFIX = ".part"
# A writer that is alive writes on: a temporary file that stayed as it is for so long has lost its writer.
STALE_S = 600.0
# Making room removes a sixteenth more than needed, or every write to a full store would list it again.
_SLACK = 16


class KVStoreWarning(UserWarning):
    """The KV store could not read or write a file. Nothing is lost: what is missing is computed again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, as its header and the file system describe it. `last_used`: seconds since 1970."""

    key: str
    path: Path
    num_bytes: int
    num_tokens: int
    dtype: str
    model: str
    model_name: str
    start: int
    last_used: float


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed: entries, temporary files, the bytes of both. `left_bytes`: of entries that stay."""

    num_entries: int
    num_temporary: int
    num_bytes: int
    left_bytes: int


@dataclass(frozen=True, slots=True)
class BadFile:
    """`reason` completes the sentence that begins with the path."""

    path: Path
    reason: str
    removed: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """How many files were sound, their bytes, and the files that were not."""

    num_good: int
    num_bytes: int
    bad: tuple[BadFile, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    num_bytes: int
    mtime_ns: int


def check_key(key: str) -> str:
    """Raises ValueError: a key is 64 lowercase hexadecimal digits."""
    if not isinstance(key, str) or not KEY_PATTERN.fullmatch(key):
        raise ValueError(f"{key!r} is not a key: 64 lowercase hexadecimal digits")
    return key


class DiskTier:
    """Chunks' keys and values in a folder that outlives the process and that several processes may share.

    Args:
        folder: made if it is missing.
        max_bytes: the least recently used files are removed when a write makes the files exceed it. Each
            process counts what it writes itself and looks at the folder now and then, so processes that
            write at the same time may exceed it by a sixteenth each. None: no limit.

    Raises:
        InputError: the folder is a file, or cannot be made.
    """

    def __init__(self, folder: str | Path, max_bytes: int | None = None) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(Problem(f"{self.folder}: is a file", "a folder for the KV store")) from None
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be made: {error.strerror}") from None
        self._lock = threading.Lock()
        self._warned = False
        # Bytes of all files as of the last look at the folder plus what was written since; None: not looked.
        self._total: int | None = None
        self._written = 0

    def __contains__(self, key: str) -> bool:
        """Whether there is a file for the key; whether it is sound, reading it tells."""
        return self._path(key).is_file()

    def read(self, key: str) -> ChunkKV | None:
        """The chunk's tensors, memory-mapped, or None. The checksum is verified every time.

        A file that is damaged, foreign or of another format version is removed, with a `KVStoreWarning`.
        """
        path = self._path(key)
        try:
            kv = map_file(path)
        except FileNotFoundError:
            return None
        except BadFileError as error:
            gone = "removed" if _unlink(path) else "cannot be removed"
            warnings.warn(KVStoreWarning(f"{path}: {error}; {gone}"), stacklevel=2)
            return None
        except OSError as error:
            message = f"{path}: cannot be read: {error.strerror or error}"
            warnings.warn(KVStoreWarning(message), stacklevel=2)
            return None
        self.touch(key)
        return kv

    def touch(self, key: str) -> None:
        """Makes the file the one used last. Where that may not be done, or it is gone, nothing happens."""
        with suppress(OSError):
            os.utime(self._path(key))

    def write(self, key: str, kv: ChunkKV) -> bool:
        """Keeps the chunk; True once there is a file for the key. It never raises an OSError.

        A file that is already there and looks sound is left as it is. False: the chunk is larger than the
        tier may become, or the file cannot be written (full disk, no permission), which the first time is
        said with a `KVStoreWarning`.
        """
        path = self._path(key)
        with suppress(OSError, BadFileError):
            read_head(path)
            self.touch(key)
            return True
        buffers = encode(key, kv)
        num_bytes = sum(len(buffer) for buffer in buffers)
        if self.max_bytes is not None and num_bytes > _below(self.max_bytes):
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(path, buffers)
        except OSError as error:
            self._warn_once(f"{path}: cannot be written: {error.strerror or error}")
            return False
        self._keep_below(num_bytes)
        return True

    def entries(self) -> list[Entry]:
        """All files with a sound header, the one used last first. Tensors are not looked at."""
        found: list[Entry] = []
        for file in sorted(self._files(), key=lambda file: file.mtime_ns, reverse=True):
            with suppress(OSError, BadFileError):
                head = read_head(file.path)
                found.append(
                    Entry(
                        head.key,
                        file.path,
                        head.num_bytes,
                        head.num_tokens,
                        head.dtype,
                        head.model,
                        head.model_name,
                        head.start,
                        file.mtime_ns / 1e9,
                    )
                )
        return found

    def usage(self) -> tuple[int, int]:
        """How many files there are and how many bytes they have, good and bad ones, without opening any."""
        sizes = [file.num_bytes for file in self._files()]
        return len(sizes), sum(sizes)

    def prune(self, max_bytes: int) -> Removed:
        """Removes the least recently used files until the rest has at most `max_bytes`.

        Temporary files whose writer has died go too: those that nobody has written to for ten minutes.
        """
        files = sorted(self._files(), key=lambda file: file.mtime_ns)
        left = sum(file.num_bytes for file in files)
        removed: list[_Found] = []
        for file in files:
            if left <= max_bytes:
                break
            if _unlink(file.path):
                removed.append(file)
                left -= file.num_bytes
        stale = [file for file in self._temporary_files() if _is_stale(file) and _unlink(file.path)]
        freed = sum(file.num_bytes for file in [*removed, *stale])
        return Removed(len(removed), len(stale), freed, left)

    def verify(self, remove: bool = False, advance: Callable[[int], object] = lambda done: None) -> Verified:
        """Reads every file and compares checksums; `advance(1)` is called after each. Marks none as used."""
        num_good = num_bytes = 0
        bad: list[BadFile] = []
        for file in self._files():
            try:
                num_bytes += verify_file(file.path)
                num_good += 1
            except FileNotFoundError:
                pass  # pruned by another process since it was listed
            except BadFileError as error:
                bad.append(BadFile(file.path, str(error), remove and _unlink(file.path)))
            except OSError as error:
                reason = f"cannot be read: {error.strerror or error}"
                bad.append(BadFile(file.path, reason, remove and _unlink(file.path)))
            advance(1)
        return Verified(num_good, num_bytes, tuple(sorted(bad, key=lambda file: file.path)))

    def clear(self) -> Removed:
        """Removes all files, temporary ones too: a process that is writing one loses it, and warns."""
        entries = [file for file in self._files() if _unlink(file.path)]
        temporary = [file for file in self._temporary_files() if _unlink(file.path)]
        freed = sum(file.num_bytes for file in [*entries, *temporary])
        return Removed(len(entries), len(temporary), freed, self.usage()[1])

    def keys(self) -> set[str]:
        """The keys of all files, good and bad ones."""
        return {file.path.stem for file in self._files()}

    def _path(self, key: str) -> Path:
        return self.folder / VERSION_FOLDER / check_key(key)[:2] / f"{key}{SUFFIX}"

    def _files(self) -> Iterator[_Found]:
        for file in self._scan(SUFFIX):
            key = file.path.stem
            if KEY_PATTERN.fullmatch(key) and file.path.parent.name == key[:2]:
                yield file

    def _temporary_files(self) -> Iterator[_Found]:
        for file in self._scan(_TEMPORARY_SUFFIX):
            if KEY_PATTERN.fullmatch(file.path.name[1:65]):
                yield file

    def _scan(self, suffix: str) -> Iterator[_Found]:
        """The files with that ending in all subfolders. What vanishes meanwhile is left out."""
        for folder in _listed(self.folder / VERSION_FOLDER):
            for entry in _listed(folder.path):
                with suppress(OSError):
                    if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        yield _Found(Path(entry.path), status.st_size, status.st_mtime_ns)

    def _keep_below(self, new_bytes: int) -> None:
        """Counts a new file, and looks at the folder where the sum may be wrong or is too large."""
        if self.max_bytes is None:
            return
        with self._lock:
            self._written += new_bytes
            if self._total is not None:
                self._total += new_bytes
                if self._total <= self.max_bytes and self._written * _SLACK < self.max_bytes:
                    return
        _, total = self.usage()
        if total > self.max_bytes:
            total = self.prune(_below(self.max_bytes)).left_bytes
        with self._lock:
            self._total, self._written = total, 0

    def _warn_once(self, message: str) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            text = f"{message}; the KV store on disk may miss more, which is not said again"
            warnings.warn(KVStoreWarning(text), stacklevel=3)


def _below(max_bytes: int) -> int:
    return max_bytes - max_bytes // _SLACK


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_stale(file: _Found) -> bool:
    return time.time() - file.mtime_ns / 1e9 > STALE_S


def _unlink(path: Path) -> bool:
    """Removes a file; False where that may not be done. Another process may have been faster."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _write_atomically(path: Path, buffers: list[Any]) -> None:
    """Not `wholefile.write_atomically`: files of a shared folder have the user's umask from the start."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            for buffer in buffers:
                file.write(buffer)
        temporary.replace(path)
    except BaseException:
        _unlink(temporary)
        raise
