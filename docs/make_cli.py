"""Writes docs/cli.md from the commands themselves: what `--help` says of each, on one page.

Usage: python docs/make_cli.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from legraph.cli import app  # noqa: E402

HEAD = """\
# The command line

All commands with all of their options, as `legraph COMMAND --help` says them. This page is made by
[make_cli.py](make_cli.py); a test keeps it current.

Wherever a graph file is read (but for `watch`), `-` is standard input. Exit codes: 0 done, 1 the run failed,
2 the input is wrong, 130 interrupted; commands that compare or look for something say 1 if they find it.
`legraph --install-completion` teaches your shell (bash, zsh, fish, PowerShell) what can follow a word.
"""


def commands(command: Any, name: str = "legraph", parent: Any = None) -> Iterator[tuple[Any, Any]]:
    """A command and all below it but hidden ones, each with the context that its help is made in."""
    context = typer.Context(command, info_name=name, parent=parent)
    yield command, context
    for each in command.list_commands(context) if hasattr(command, "list_commands") else ():
        if not (below := command.get_command(context, each)).hidden:
            yield from commands(below, each, context)


def section(command: Any, context: Any) -> str:
    """Heading, help, usage, and a table of arguments and one of options."""
    is_group = hasattr(command, "list_commands")
    parameters = [each for each in command.get_params(context) if not getattr(each, "hidden", False)]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    options = [each for each in parameters if each.param_type_name == "option"]
    taken = [each.metavar if each.required else f"[{each.metavar}]" for each in arguments]
    usage = " ".join([context.command_path, "[OPTIONS]", *taken, *(["COMMAND"] if is_group else [])])
    help = " ".join(command.help.split())
    parts = [f"## {context.command_path}", help, f"```text\n{usage}\n```"]
    if is_group:
        below = [(each, command.get_command(context, each)) for each in command.list_commands(context)]
        rows = [(f"{context.command_path} {name}", each.help) for name, each in below if not each.hidden]
        parts.append(_table("command", [(f"[`{name}`](#{_anchor(name)})", help) for name, help in rows]))
    if arguments:
        parts.append(_table("argument", [(_code(each.metavar), each.help) for each in arguments]))
    records = [each.get_help_record(context) for each in options if "--help" not in each.opts]
    if records:
        parts.append(_table("option", [(_code(names), help) for names, help in records]))
    return "\n\n".join(parts) + "\n"


def _table(kind: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {first} | {_escaped(' '.join((help or '').split()))} |" for first, help in rows]
    return "\n".join([f"| {kind} | meaning |", "|---|---|", *lines])


def _escaped(text: str) -> str:
    """In a table, a bar ends a cell, in code too."""
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{_escaped(text)}`"


def _anchor(heading: str) -> str:
    return heading.replace(" ", "-")


def reference() -> str:
    """The whole page."""
    sections = [section(command, context) for command, context in commands(typer.main.get_command(app))]
    return "\n".join([HEAD, *sections])


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(reference(), encoding="utf-8")
