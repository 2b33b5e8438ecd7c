"""What a shell is offered for the words that come next: commands, options, the words of an option, files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from legraph.export import FORMATS
from legraph.starters import STARTERS


def asked(shell: str, words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the program says when a shell asks it for the last of some words."""
    variables = {
        "_LEGRAPH_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
    }
    done = subprocess.run(
        [sys.executable, "-m", "legraph.cli"],
        env={**os.environ, **variables, **environment},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done


def offered(words: str) -> list[str]:
    done = asked("bash", words)
    assert done.returncode == 0
    return done.stdout.split()


def test_commands_and_options() -> None:
    assert offered("legraph ch") == ["check"]
    assert {"compile", "watch", "run", "cache"} <= set(offered("legraph "))
    assert offered("legraph cache pru") == ["prune"]
    assert offered("legraph compile --all") == ["--allow-outside"]


@pytest.mark.parametrize(
    "words, expected",
    [
        ("legraph compile --mask ", "auto dense compact"),
        ("legraph compile g.yaml --mask c", "compact"),
        ("legraph show --order ", "declared locality"),
        ("legraph run --attn ", "auto flex sdpa eager"),
        ("legraph run --dtype fl", "float32 float16"),
        ("legraph compile --export ", " ".join(FORMATS)),
        ("legraph init --template ", " ".join(STARTERS)),
    ],
)
def test_the_words_of_an_option(words: str, expected: str) -> None:
    assert offered(words) == expected.split()


@pytest.mark.parametrize(
    "words", ["legraph check ", "legraph compile ", "legraph compile -o ", "legraph run --kv "]
)
def test_files_are_left_to_the_shell(words: str) -> None:
    assert offered(words) == []
    assert asked("zsh", words).stdout.strip() == "_files"
    # fish asks first whether there is anything to offer instead of files.
    assert asked("fish", words, _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 1


def test_zsh_and_fish() -> None:
    zsh = asked("zsh", "legraph compile --mask ").stdout
    assert zsh.startswith("_arguments") and '"auto"\n"dense"\n"compact"' in zsh
    assert asked("zsh", "legraph sche").stdout.startswith("""_arguments '*: :(("schema":""")
    fish = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert asked("fish", "legraph compile --mask ", **fish).stdout.split() == ["auto", "dense", "compact"]
    assert asked("fish", "legraph compile --mask ", _TYPER_COMPLETE_FISH_ACTION="is-args").returncode == 0


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which `legraph` is a command, and home an empty folder."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "legraph"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m legraph.cli "$@"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_itself(program: dict[str, str]) -> None:
    script = """
        source <(_LEGRAPH_COMPLETE=source_bash legraph) || exit
        COMP_WORDS=(legraph compile --mask de) COMP_CWORD=3
        $(complete -p legraph | sed 's/.*-F \\([^ ]*\\).*/\\1/') legraph
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", script], env=program, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("dense\n", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_it_is_installed_where_the_shell_finds_it(program: dict[str, str]) -> None:
    """By a shell that the program is started from."""
    script = "legraph --install-completion; legraph --show-completion; true"
    done = subprocess.run(["bash", "-c", script], env=program, capture_output=True, text=True)
    home = Path(program["HOME"])
    installed = home / ".bash_completions" / "legraph.sh"
    assert f"bash completion installed in {installed}" in done.stdout
    assert str(installed) in (home / ".bashrc").read_text()
    assert installed.read_text().strip() in done.stdout
