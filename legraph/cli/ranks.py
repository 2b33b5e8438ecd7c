"""Processes that `torchrun` has started for one run: the first speaks for all, until one of them fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from legraph.errors import InputError, Problem
from legraph.parallel import COMMAND, join, leave, one_voice


def rank() -> int | None:
    """This process's number among those that torchrun has started; None if it has not started it."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


def is_first() -> bool:
    return not rank()


def join_others(tp: str | None) -> None:
    """Before a run reads anything, so that the processes can tell each other what goes wrong.

    Raises:
        InputError: torchrun has started several processes, and none of them is told to share.
        ModelError: they do not find each other.
    """
    if tp is not None:
        join()
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and rank() is not None:
        raise InputError(
            Problem("torchrun has started several processes, and each would run everything", COMMAND)
        )


def fall_silent() -> None:
    """What the first process writes, the others would write too."""
    if not is_first():
        sys.stdout = sys.stderr = _nowhere()


@contextmanager
def speaking() -> Iterator[None]:
    """What is written inside is written by one process: the one that failed first, whichever it is."""
    if rank() is None:
        yield
        return
    with one_voice() as speaks:
        if speaks is None:
            speaks = is_first()
        before = sys.stderr
        if not speaks:
            sys.stderr = _nowhere()
        elif not is_first():
            sys.stderr = sys.__stderr__
        try:
            yield
        finally:
            sys.stderr = before


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def say_goodbye() -> None:
    """The end of the process, after which torchrun may end the others."""
    if rank() is not None:
        leave(is_first())
