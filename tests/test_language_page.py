"""The page about the language is true: its files mean what it says, its commands print what it says."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from legraph import cli
from legraph.graph import build_graph
from legraph.parse import parse, parse_file
from legraph.schema import AssertSpec, ChunkEntry, GraphFile, IncludeEntry, WrittenGraph, keys_of
from legraph.selectors import is_selector
from legraph.source import SourceText
from tests.command_line import Call

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/language.md"
TEXT = PAGE.read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAD = re.compile(r"# (\S+?)(, written out)?\n")
# What a plain file does without.
LANGUAGE_KEYS = {"for", "include", "as", "group"}


@dataclass
class Section:
    """What stands under one heading: files by name, plain twins of some, commands and what they print."""

    title: str
    files: dict[str, str] = field(default_factory=dict)
    written_out: dict[str, str] = field(default_factory=dict)
    commands: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, text: str) -> Section:
        section = cls(text.partition("\n")[0])
        for kind, body in FENCE.findall(text):
            if kind == "console":
                for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                    command, _, output = part.partition("\n")
                    if command.startswith("cat "):
                        section.files[command.removeprefix("cat ")] = output
                    else:
                        section.commands.append((command, output))
                continue
            assert kind == "yaml"
            head = HEAD.match(body)
            assert head is not None, f"a block that does not say what it is: {body}"
            (section.written_out if head[2] else section.files)[head[1]] = body
        return section

    def write(self, folder: Path) -> None:
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


SECTIONS = [Section.of(text) for text in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]]
GRAPHS = [
    pytest.param(section, name, id=f"{section.title}: {name}")
    for section in SECTIONS
    for name in section.files
    if name.endswith(".yaml") and section.title != "Mistakes"
]
TWINS = [
    pytest.param(section, name, id=f"{section.title}: {name}")
    for section in SECTIONS
    for name in section.written_out
]
COMMANDS = [
    pytest.param(section, *command, id=command[0]) for section in SECTIONS for command in section.commands
]


@pytest.mark.parametrize(("section", "name"), GRAPHS)
def test_every_file_is_valid(section: Section, name: str, tmp_path: Path):
    section.write(tmp_path)
    assert build_graph(parse_file(tmp_path / name)).chunks


@pytest.mark.parametrize(("section", "name"), TWINS)
def test_a_file_is_what_it_is_written_out_to(section: Section, name: str, tmp_path: Path):
    section.write(tmp_path)
    plain = section.written_out[name]
    long = build_graph(parse(SourceText("plain.yaml", plain, "yaml", tmp_path)))
    short = build_graph(parse_file(tmp_path / name))
    assert short == long
    assert short.sha256() == long.sha256()


@pytest.mark.parametrize(("section", "name"), TWINS)
def test_what_is_written_out_is_plain(section: Section, name: str, tmp_path: Path):
    data = yaml.safe_load(section.written_out[name])
    assert not {"vars", "assert"} & set(data)
    for chunk in data["chunks"]:
        assert not LANGUAGE_KEYS & set(chunk)
        assert not any(map(is_selector, chunk.get("parents", [])))
    assert "${" not in section.written_out[name].replace("$${", "")


@pytest.mark.parametrize(("section", "command", "output"), COMMANDS)
def test_a_command_prints_what_the_page_says(
    section: Section,
    command: str,
    output: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    section.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit):
        cli.main()
    captured = capsys.readouterr()
    assert [line.rstrip() for line in (captured.out + captured.err).splitlines()] == output.splitlines()


def test_the_finding_that_is_taken_back_is_one(tmp_path: Path, call: Call):
    section = next(section for section in SECTIONS if section.title.startswith("Findings"))
    (text,) = section.files.values()
    assert ", lint: {ignore: [LG005]}" in text
    (tmp_path / "graph.yaml").write_text(text.replace(", lint: {ignore: [LG005]}", ""))
    assert "LG005" in call("lint", tmp_path / "graph.yaml").out


def test_every_key_is_on_the_page():
    models = (GraphFile, WrittenGraph, ChunkEntry, IncludeEntry, AssertSpec)
    for key in {key for model in models for key in keys_of(model)} - {"legraph", "chunks", "name"}:
        assert re.search(rf"`{key}\b|^\s+(- )?{key}:|[{{ ]{key}: ", TEXT, re.MULTILINE), key


def test_every_kind_of_selector_and_loop_is_shown_in_a_file():
    files = "\n".join(text for section in SECTIONS for text in section.files.values())
    for shown in ('"@', "*", "all-before", "ancestors(", '"^', ".txt", ".jsonl", ".csv", "[en, fr]", "range"):
        assert shown in files, shown


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", TEXT)
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        target = PAGE.parent / path
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [each.lower().replace(" ", "-") for each in headings], link
