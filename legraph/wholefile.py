"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from legraph.errors import InputError, LegraphError


def write_atomically(
    path: Path, write: Callable[[Any], object], error: type[LegraphError] = InputError
) -> None:
    """Calls `write` with a temporary binary file in the same folder, then renames it to `path`.

    Raises:
        InputError: or the `error` asked for: the folder is missing or cannot be written to, or the disk is
            full.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as failed:
        raise error(f"{path}: cannot be written: {failed.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        # mkstemp makes files that only their owner may read; what is written here is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as failed:
        Path(temporary).unlink(missing_ok=True)
        raise error(f"{path}: cannot be written: {failed.strerror or failed}") from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
