"""What tests of the command line share: how a command is called, and graphs and answers to call it with."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import legraph
from legraph import cli
from legraph.graph import Generate

GRAPH = """\
legraph: 1
tokenizer: bytes
chunks:
  - name: doc1
    text: "The fox says ring."
  - name: doc2
    text: "The owl says hoot."
  - name: question
    text: "What says the fox?"
    parents: [doc1, doc2]
"""

# Each text has 18 bytes, which are 18 tokens of the byte tokenizer.
TEXTS = ["The fox says ring.", "The owl says hoot.", "What says the fox?"]

FORK = """\
legraph: 1
tokenizer: bytes
chunks:
  - {name: task, text: "Two keys. "}
  - {name: north, text: "North: ", parents: [task]}
  - {name: south, text: "South: ", parents: [task]}
"""

BROKEN = """\
legraph: 1
chunks:
  - name: doc1
    text: "text"
    parents: [docc]
  - name: doc1
    text: 7
"""


# A run that fails on the way: with the tokens that `a` generates, `b` passes position 4095, the model's last.
LATE = """\
legraph: 1
tokenizer: bytes
chunks:
  - {name: a, text: "abc", start: 4080, generate: {max_new_tokens: 5}}
  - {name: b, text: "ten bytes.", parents: [a]}
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    def data(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Done]


def caller(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("check", path)`: the command, in this process."""

    def run_main(*arguments: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["legraph", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run_main


def process(*arguments: object, stdin: str = "", **options: Any) -> Done:
    """The command, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "legraph.cli", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        **options,
    )
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def expected_outputs(graph: Path, settings: Generate) -> dict[str, dict[str, Any]]:
    """What the Python API gives for the model that `model_folder` holds."""
    from legraph.engine import Engine
    from legraph.tokens import bytes_tokenizer
    from tests.tiny_models import tiny_model

    engine = Engine(tiny_model("llama"), bytes_tokenizer(), "sdpa")
    outputs = engine.run(legraph.compile_file(graph), settings).outputs
    return {
        name: {"text": output.text, "token_ids": list(output.token_ids), "finish": output.finish}
        for name, output in outputs.items()
    }


def interrupted(waiting: subprocess.Popen[str]) -> tuple[str, str]:
    """Interrupts a process that is about to block: a signal just before it does is only seen after it."""
    for _ in range(4):
        time.sleep(0.3)
        waiting.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return waiting.communicate(timeout=15)
    raise AssertionError("the process does not end")


def fill(disk: Path, leave: int = 0) -> None:
    """Leaves `leave` bytes of room in a small file system."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    if leave:
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - leave)
