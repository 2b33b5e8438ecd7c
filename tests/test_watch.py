"""`legraph watch`: every change of what was read is seen, nothing else is, and the process ends when told."""

from __future__ import annotations

import os
import pty
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from legraph.errors import GraphError
from legraph.given import given_variables
from legraph.parse import parse_file
from legraph.reads import noted_reads
from legraph.watch import watch
from tests.command_line import Call

FOLDER = """\
legraph: 1
tokenizer: bytes
chunks:
  - {for: {doc: "docs/*.txt"}, name: "${doc.stem}", file: "${doc.path}", group: docs}
  - {for: {row: rows.jsonl}, name: "row${row.index}", text: "${row.text}"}
  - {include: inner.yaml, as: in}
  - {name: question, text: "?", parents: ["@docs"]}
"""
INNER = "legraph: 1\nchunks: [{name: a, file: deep/a.txt}]\n"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    for folder in ("docs", "deep"):
        (tmp_path / folder).mkdir()
    (tmp_path / "graph.yaml").write_text(FOLDER)
    (tmp_path / "inner.yaml").write_text(INNER)
    (tmp_path / "deep" / "a.txt").write_text("a")
    (tmp_path / "docs" / "one.txt").write_text("one")
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    return tmp_path


def drawn(path: Path) -> str:
    """The names and texts of a graph, or what is wrong with it."""
    try:
        parsed = parse_file(path)
    except GraphError as error:
        return error.problems[0].message
    names = [chunk.name for chunk in parsed.spec.chunks]
    return " ".join(f"{name}={text}" for name, text in zip(names, parsed.texts, strict=True))


@dataclass
class Clock:
    """Does one thing to the files at each look at them, and after all of them one look more."""

    changes: Sequence[Callable[[], object]]
    pictures: list[str] = field(default_factory=list[str])
    looks: int = 0

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds < 1
        if self.looks < len(self.changes):
            self.changes[self.looks]()
        self.looks += 1

    def is_over(self) -> bool:
        return self.looks > len(self.changes)

    def pictures_of(self, path: Path) -> list[str]:
        watch(lambda: self.pictures.append(drawn(path)), self.sleep, self.is_over)
        return self.pictures


def test_every_kind_of_file_that_a_graph_reads_is_watched(desk: Path) -> None:
    written = {
        "rows.jsonl": '{"text": "longer"}\n',
        "deep/a.txt": "another",
        "docs/two.txt": "two",
        "inner.yaml": INNER.replace("name: a", "name: b"),
        "graph.yaml": FOLDER.replace("question", "q"),
    }
    changes = [lambda name=name, text=text: (desk / name).write_text(text) for name, text in written.items()]
    assert Clock(changes).pictures_of(desk / "graph.yaml") == [
        "one=one row0=x in.a=a question=?",
        "one=one row0=longer in.a=a question=?",
        "one=one row0=longer in.a=another question=?",
        "one=one two=two row0=longer in.a=another question=?",
        "one=one two=two row0=longer in.b=another question=?",
        "one=one two=two row0=longer in.b=another q=?",
    ]


def test_what_a_graph_does_not_read_is_not_watched(desk: Path) -> None:
    others = ["docs/note.md", "graph.npz", "deep/b.txt"]
    changes = [lambda name=name: (desk / name).write_text("x") for name in others]
    assert len(Clock([*changes, lambda: drawn(desk / "graph.yaml")]).pictures_of(desk / "graph.yaml")) == 1


def test_a_file_that_goes_and_comes_back_a_broken_one_that_is_mended(desk: Path) -> None:
    graph, text = desk / "graph.yaml", desk / "deep" / "a.txt"
    changes = [
        text.unlink,
        lambda: text.write_text("back"),
        lambda: graph.write_text("legraph: ["),
        lambda: graph.write_text(FOLDER),
        graph.unlink,
        lambda: (desk / "docs" / "one.txt").unlink(),
        lambda: graph.write_text(FOLDER),
    ]
    pictures = Clock(changes).pictures_of(graph)
    whole = "one=one row0=x in.a=back question=?"
    assert pictures[0] == "one=one row0=x in.a=a question=?"
    assert pictures[1] == "deep/a.txt: no such file"
    assert pictures[2] == pictures[4] == whole
    assert pictures[3].startswith("broken YAML")
    assert pictures[5].endswith("graph.yaml: no such file")
    # Without the graph file nobody asks for the folder.
    assert pictures[6:] == ["no file matches docs/*.txt"]


def test_an_editor_that_writes_beside_the_file_and_renames(desk: Path) -> None:
    graph, times = desk / "graph.yaml", (1e9, 1e9)
    os.utime(graph, times)

    def replace() -> None:
        beside = desk / "graph.yaml.tmp"
        beside.write_text(FOLDER.replace("question", "otherone"))
        os.utime(beside, times)
        beside.rename(graph)

    # Same size, same time of change.
    assert graph.stat().st_size == len(FOLDER.replace("question", "otherone"))
    assert Clock([replace]).pictures_of(graph)[1:] == ["one=one row0=x in.a=a otherone=?"]


def test_a_change_while_the_graph_is_read_is_not_missed(desk: Path) -> None:
    graph, pictures = desk / "graph.yaml", list[str]()

    def draw() -> None:
        pictures.append(drawn(graph))
        if len(pictures) == 1:
            (desk / "rows.jsonl").write_text('{"text": "just now"}\n')

    watch(draw, lambda seconds: None, lambda: len(pictures) == 2)
    assert pictures[1] == "one=one row0=just now in.a=a question=?"


def test_a_file_of_variables_is_noted_and_outside_nothing_is(desk: Path) -> None:
    variables = desk / "vars.yaml"
    variables.write_text("a: 1\n")
    with noted_reads() as reads:
        given_variables([], variables)
    parse_file(desk / "graph.yaml")
    assert list(reads.files) == [variables] and not reads.globs


@pytest.mark.parametrize("source, what", [("-", "standard input"), ("graph.npz", "a bundle")])
def test_what_cannot_change_is_refused(call: Call, source: str, what: str) -> None:
    done = call("watch", source)
    assert done.code == 2 and done.err.startswith(f"error: {what} cannot be watched\n")


def test_the_process_draws_what_is_saved_and_ends_on_an_interrupt(desk: Path) -> None:
    graph = desk / "graph.yaml"
    command = [sys.executable, "-u", "-m", "legraph.cli", "watch", str(graph)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: queue.Queue[str] = queue.Queue()
    assert watching.stdout is not None
    stdout = watching.stdout
    # A thread, because a read of a pipe cannot be given a time.
    reader = threading.Thread(target=lambda: [lines.put(line) for line in stdout], daemon=True)
    reader.start()

    def wait_for(words: str) -> None:
        until = time.monotonic() + 60
        while words not in lines.get(timeout=max(0.1, until - time.monotonic())):
            pass

    try:
        wait_for("question  1 token")
        graph.write_text(FOLDER.replace("question", "answer"))
        wait_for("answer  1 token")
        graph.write_text(FOLDER.replace("@docs", "@dogs"))
        wait_for("there is no group '@dogs'")
        graph.write_text(FOLDER)
        wait_for("question  1 token")
    finally:
        watching.send_signal(signal.SIGINT)
        code = watching.wait(timeout=30)
    reader.join(timeout=10)
    stdout.close()
    assert code == 0
    assert not any("Traceback" in line or "error" in line for line in lines.queue)


def test_a_terminal_is_cleared_before_each_picture(desk: Path) -> None:
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "legraph.cli", "watch", str(desk / "graph.yaml")]
    watching = subprocess.Popen(command, stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    shown = b""
    try:
        while b"question" not in shown:
            shown += os.read(master, 4096)
        (desk / "graph.yaml").write_text(FOLDER.replace("question", "answer"))
        while b"answer" not in shown:
            shown += os.read(master, 4096)
    finally:
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
        os.close(master)
    assert watching.returncode == 0
    first, second = shown.split(b"\x1b[H\x1b[2J\x1b[3J")[1:]
    assert b"question" in first and b"answer" in second
