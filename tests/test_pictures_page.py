"""The page about pictures is true: its commands do what it says, and its pictures are what they make."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.command_line import Call

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/pictures.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
# Of a coordinate in points, and of the mean difference of a screenshot's pixels, which lie in 0..255: fonts
# and browsers differ a little.
MAX_MOVED, MAX_PIXEL_CHANGE = 1.0, 8.0


@cache
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs/make_pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    maker().prepare(folder)
    return folder


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the one that the page's commands are typed in."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "docs/pictures", tmp_path / "docs/pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_print_what_the_page_says(desk: Path, call: Call) -> None:
    bodies = [body for kind, body in FENCE.findall(PAGE) if kind == "console"]
    commands = [part for body in bodies for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
    assert len(commands) >= 8
    for part in commands:
        command, _, output = part.partition("\n")
        line, _, file = command.partition(" > ")
        done = call(*shlex.split(line)[1:])
        assert (done.code, done.err) == (0, ""), command
        if file:
            (desk / file).write_text(done.out)
        elif "--format" in command:
            assert done.out.startswith("flowchart") and "question" in done.out
        else:
            assert done.out == output, command
            assert (desk / output.split()[-1]).stat().st_size > 1000


def test_the_python_code_does_what_it_says(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [body for kind, body in FENCE.findall(PAGE) if kind == "python"]
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed.endswith("('amber', 'silver', 'question')\n")
    rows = [[float(number) for number in re.findall(r"\d\.\d*", row)] for row in printed.splitlines()[:3]]
    assert rows[0] == [1, 0, 0] and rows[1] == [0, 1, 0]
    # The fact that was asked for gets more attention than the other.
    assert rows[2][0] > rows[2][1]


def test_every_picture_is_shown_and_every_picture_shown_is_made() -> None:
    pages = PAGE + (ROOT / "README.md").read_text(encoding="utf-8").replace("docs/pictures/", "pictures/")
    shown = set(re.findall(r"pictures/([\w-]+\.(?:svg|png))", pages))
    assert shown == {*maker().COMMANDS, maker().PAGE}


@pytest.mark.parametrize("name", maker().COMMANDS)
def test_a_picture_is_current(name: str, made: Path, tmp_path: Path) -> None:
    maker().make(name, made, tmp_path / name)
    new, old = ((folder / name).read_text(encoding="utf-8") for folder in (tmp_path, maker().FOLDER))
    assert NUMBER.sub("#", new) == NUMBER.sub("#", old), "run: python docs/make_pictures.py"
    numbers = [np.array([float(number) for number in NUMBER.findall(text)]) for text in (new, old)]
    assert np.abs(numbers[0] - numbers[1]).max() <= MAX_MOVED


@pytest.mark.skipif(maker().browser_path() is None, reason="no Chromium is installed")
def test_the_screenshot_is_current(made: Path, tmp_path: Path) -> None:
    from PIL import Image

    name = maker().PAGE
    maker().make(name, made, tmp_path / name)
    # Halved twice: strokes of letters may fall a pixel aside.
    small = [
        np.asarray(Image.open(folder / name).convert("RGB").reduce(4), dtype=np.float64)
        for folder in (tmp_path, maker().FOLDER)
    ]
    assert small[0].shape == small[1].shape
    assert np.abs(small[0] - small[1]).mean() <= MAX_PIXEL_CHANGE, (
        "run: python docs/make_pictures.py page.png"
    )
