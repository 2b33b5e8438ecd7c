"""What a person sees: pictures, progress, text as it is generated, warnings and errors."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Panels are drawn anew no more often than this.
_SECONDS_PER_PICTURE = 0.1

# Takes the name of a branch, its next piece of text, and whether that was its last.
Show = Callable[[str, str, bool], object]


def print_picture(picture: Any, to_stderr: bool = False) -> None:
    """What rich can render, in the width of the terminal."""
    from rich.console import Console

    console = Console(highlight=False, stderr=to_stderr)
    if not console.is_terminal:
        # Into a file or pipe, lines stay whole: nobody can scroll a wrapped tree back together.
        console = Console(highlight=False, stderr=to_stderr, width=200)
    # Through `print`, because rich ends the process itself when the reader of a pipe has gone.
    with console.capture() as captured:
        console.print(picture)
    print(captured.get(), end="", file=sys.stderr if to_stderr else sys.stdout)


def clear_screen() -> None:
    """Where standard output is a terminal."""
    if sys.stdout.isatty():
        print("\x1b[H\x1b[2J\x1b[3J", end="", flush=True)


@contextmanager
def progress(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, where stderr is a terminal; gives the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def panels() -> Iterator[Show]:
    """Shows branches side by side while they are generated; the panels are gone afterwards."""
    from rich.console import Console
    from rich.live import Live

    from legraph.live import LiveView

    view, console = LiveView(), Console()
    drawn = -_SECONDS_PER_PICTURE
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(name: str, text: str, is_done: bool) -> None:
            nonlocal drawn
            view.add(name, text)
            if is_done:
                view.close(name)
            if time.monotonic() - drawn >= _SECONDS_PER_PICTURE:
                drawn = time.monotonic()
                live.update(view.picture(console.width, console.height), refresh=True)

        yield show


def in_turns(has_headings: bool) -> Show:
    """Prints text as it comes. Branches speak in turns; a heading says whose turn it is."""
    last: str | None = None

    def show(name: str, text: str, is_done: bool) -> None:
        nonlocal last
        if text and has_headings and name != last:
            print(("" if last is None else "\n") + f"[{name}] ", end="")
            last = name
        print(for_eyes(text), end="", flush=True)

    return show


def for_eyes(text: str) -> str:
    """A model may write any character; on a terminal, none of them gives it orders."""
    if not sys.stdout.isatty():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def draw_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """What the store could not do is said in one line; other warnings are for developers, and as Python's."""
    from legraph.kvdisk import KVStoreWarning

    if issubclass(category, KVStoreWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


def draw_error(text: str) -> None:
    """A report on stderr; in colour only where a terminal shows it."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        # Nobody may read it; the exit code says it all the same.
        with suppress(BrokenPipeError):
            print(f"error: {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
