"""docs/cli.md is what the commands say of themselves, and says all of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import typer

from legraph.cli import app
from tests.command_line import Call

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "cli.md").read_text(encoding="utf-8")


def all_commands(command: Any, name: str = "legraph") -> dict[str, Any]:
    found = {name: command}
    for word, below in getattr(command, "commands", {}).items():
        found |= {} if below.hidden else all_commands(below, f"{name} {word}")
    return found


COMMANDS = all_commands(typer.main.get_command(app))


def test_the_page_is_current() -> None:
    made = runpy.run_path(str(DOCS / "make_cli.py"))["reference"]()
    assert made == PAGE, "run: python docs/make_cli.py"


def test_every_command_has_a_section_and_nothing_else_has() -> None:
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_names_what_the_command_takes(name: str, call: Call) -> None:
    """The help itself is asked, which the page does not come from."""
    section = PAGE.partition(f"## {name}\n")[2].partition("\n## ")[0]
    shown = call(*name.split()[1:], "--help").out
    options = re.findall(r"^ +(?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)
    assert "--help" in options
    for option in set(options) - {"--help"}:
        assert re.search(rf"^\| `(-\w, )?{option}[ `]", section, re.MULTILINE), option
    for argument in re.findall(r"\{([^}]+)\}", shown.partition("\n\n")[0]):
        assert f"| `{argument.replace('|', chr(92) + '|')}` |" in section
    for command in re.findall(r"^  ([a-z-]+)  ", shown.partition("Commands:")[2], re.MULTILINE):
        assert f"(#{name.replace(' ', '-')}-{command})" in section


def test_every_link_in_the_page_leads_to_a_section() -> None:
    anchors = {name.replace(" ", "-") for name in COMMANDS}
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert links and set(links) <= anchors


def test_every_command_option_and_argument_says_what_it_is_for() -> None:
    for name, command in COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"
