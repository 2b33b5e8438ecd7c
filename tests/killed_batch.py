"""Runs `legraph batch` many times in children of its own, each killed at another moment, until it is done.

    python tests/killed_batch.py SEED KILLS OUT ARGUMENT...

What takes long to import is imported once, and each child, a fork, runs the whole command from there. Prints
how many were killed, and how many rows the journal had then, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from legraph import cli, engine
from legraph.tokens import load_tokenizer


def child(arguments: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    sys.argv = ["legraph", *arguments]
    code = 70
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(pid: int, journal: Path, size: int, seconds: float) -> bool:
    """Until the journal is so large, or some time has passed. Whether the child is still there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        if journal.exists() and journal.stat().st_size >= size:
            return True
        time.sleep(0.0005)
    return True


def main() -> None:
    seed, kills, output, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    # So that children need not import what these import on the way.
    engine.Engine.load(device="cpu")
    load_tokenizer("recall")
    importlib.import_module("legraph.batch")
    draw, journal, rows = random.Random(int(seed)), Path(f"{output}.part"), list[int]()
    for at in range(int(kills)):
        pid = child(arguments)
        size = journal.stat().st_size if journal.exists() else 0
        if at % 4 == 3:
            # At any time: while the model is loaded, while the journal is read.
            alive = wait_for(pid, journal, sys.maxsize, draw.uniform(0.0, 0.3))
        else:
            # Somewhere in the next rows, to the byte.
            alive = wait_for(pid, journal, size + draw.randint(1, 600), 60)
            time.sleep(draw.uniform(0.0, 0.002))
        if not alive:
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        rows.append(journal.read_bytes().count(b"\n") if journal.exists() else 0)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
