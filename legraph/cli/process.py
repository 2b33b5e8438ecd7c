"""The process of `legraph`: its exit code, its standard output, its environment, and errors, drawn once."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import NoReturn, TextIO

import typer

from legraph.cli.commands import app
from legraph.cli.console import draw_error, draw_warning
from legraph.cli.ranks import fall_silent, say_goodbye, speaking
from legraph.errors import LegraphError

# Where a shell asks what could come next.
_COMPLETION_VARIABLE = "_LEGRAPH_COMPLETE"


def main() -> NoReturn:
    """Entry point: the only place where errors are drawn, once, and turned into an exit code."""
    code = 0
    try:
        _prepare_process()
        code = _exit_code_of(sys.argv[1:])
        _flush_stdout()
        say_goodbye()
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        _abandon_stdout()
    except OSError as error:
        # Files answer for themselves; what is left is the world around: a full disk behind standard output.
        _abandon_stdout()
        draw_error(error.strerror or str(error))
        code = 1
    sys.exit(code)


def _flush_stdout() -> None:
    """Here and not while Python shuts down, where nobody can catch what goes wrong."""
    stdout: TextIO | None = sys.stdout  # a process may be started without one
    if stdout is not None:
        stdout.flush()


def _abandon_stdout() -> None:
    """What is still to be written goes nowhere; Python would complain about it while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _exit_code_of(arguments: list[str]) -> int:
    if os.environ.get(_COMPLETION_VARIABLE):
        app(prog_name="legraph")  # typer answers the shell, and ends the process
    # Not `app()`: it would swallow exit codes, interrupts and broken pipes, each in a way of its own.
    command = typer.main.get_command(app)
    try:
        with command.make_context("legraph", arguments) as context:
            command.invoke(context)
    except LegraphError as error:
        with speaking():
            draw_error(str(error))
        return error.exit_code
    except MemoryError as error:
        with speaking():
            draw_error(
                f"out of memory: {error}\n  hint: store no dense mask (--mask compact), or split the graph"
            )
        return 1
    except KeyboardInterrupt:
        with speaking():
            draw_error("interrupted")
        return 130
    except Exception as error:
        # typer carries click inside; its usage errors know how to show themselves and which code they have.
        if not hasattr(error, "exit_code"):
            raise
        if hasattr(error, "show"):
            with speaking():
                error.show()  # type: ignore[attr-defined]
        return error.exit_code  # type: ignore[attr-defined]
    return 0


def _prepare_process() -> None:
    """What transformers and the hub say on stderr is for their users; ours get their errors from legraph."""
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_VERBOSITY", "error"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TOKENIZERS_PARALLELISM", "true"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
    ):
        os.environ.setdefault(name, value)
    warnings.showwarning = draw_warning
    fall_silent()
    # A model may write any character; a terminal or pipe that lacks it must not end the run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
