"""The README is true: its commands print what it says, its Python runs, its files are read as it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from legraph import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\S+\.yaml)\n")


def blocks(language: str, text: str = README) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


def commands() -> list[tuple[str, str]]:
    """Each command of the console blocks, and what the README says it prints."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, and the files that the README shows under their names."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks("yaml"):
        if name := FILE_NAME.match(block):
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("command", "output"), commands(), ids=[command for command, _ in commands()])
def test_a_command_prints_what_the_readme_says(
    command: str,
    output: str,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert output.strip(), "the README shows what a command prints"
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit):
        cli.main()
    captured = capsys.readouterr()
    assert [line.rstrip() for line in (captured.out + captured.err).splitlines()] == output.splitlines()


def test_the_python_runs_and_answers(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks follow each other in one program."""
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    answers = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert answers == ["the south gate.", "the south gate. computed"]
    assert tuple(names["logits"].shape[:2]) == (1, len(names["bundle"]))  # type: ignore[attr-defined, arg-type]


def test_the_python_of_the_engines_page_runs_and_answers(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks("python", (ROOT / "docs/engine.md").read_text(encoding="utf-8")):
        exec(block, names)
    assert capsys.readouterr().out == "['the north gate.', 'the north gate.', 'the north gate.']\n"


def test_the_picture_of_the_mask_is_of_the_graph_above_it() -> None:
    """It is drawn from an example, which has settings to generate besides."""
    example = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text(encoding="utf-8"))
    for chunk in example["chunks"]:
        chunk.pop("generate", None)
    assert yaml.safe_load(blocks("yaml")[0]) == example
    before, _, after = README.partition('src="docs/pictures/mask.svg"')
    assert "```yaml" in before and "The two documents never meet" in after


def test_every_local_link_leads_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    links += re.findall(r'src(?:set)?="([^"]+)"', README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_key_of_the_format_is_explained() -> None:
    from legraph.schema import ChunkEntry, WrittenGraph, keys_of

    for key in (*keys_of(WrittenGraph), *keys_of(ChunkEntry)):
        assert f"`{key}" in README, key


def test_every_command_is_explained() -> None:
    import typer

    for name in typer.main.get_command(cli.app).commands:  # type: ignore[attr-defined]
        assert f"`legraph {name}" in README, name
