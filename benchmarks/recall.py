"""How often the model that ships with legraph is right, by real generation on graphs that it has never seen.

    python benchmarks/recall.py
    python benchmarks/recall.py --graphs 20 --many-graphs 5 --json recall.json
    python benchmarks/recall.py --model runs/recall/model

Exact match: the whole greedy answer, to the last full stop. Names, phrases and numbers of the graphs occur in
no training graph. "Cut" is the same kind of graph without the edges that carry the document with the answer:
it is in the tokens, before the question, and no chunk sees it, so the answer can only be guessed.
Processes have one thread each and run a graph at a time: on a CPU the mask of several graphs side by side is
mostly pairs that nobody sees, and they cost as much as the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from examples.train import graphs  # noqa: E402
from examples.train.evaluate import Score, exact_match  # noqa: E402
from examples.train.graphs import PromptGraph  # noqa: E402

FEW, MANY = 16, 64
# Graphs of one task: small, so that processes end together.
TASK_GRAPHS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of graph; `make` gives the same graph for the same random numbers."""

    make: Callable[[Random], PromptGraph]
    is_many: bool = False


def one_hop(random: Random, shape: str | None, least: int, most: int, **how: Any) -> PromptGraph:
    shape = shape or random.choice(graphs.SHAPES)
    return graphs.one_hop(random, "held-out", shape, random.randint(least, most), **how)


def two_hops(random: Random, given: bool) -> PromptGraph:
    return graphs.summarised(random, "held-out", random.randint(2, 2 * FEW), given=given)


def few_shot(random: Random) -> PromptGraph:
    return graphs.few_shot(random, "held-out", random.randint(2, 8))


def compressed(random: Random) -> PromptGraph:
    return graphs.compressed(random, "held-out", num_documents=1)


def listed(random: Random) -> PromptGraph:
    return graphs.listed(random, "held-out", random.randint(2, FEW))


def rows() -> dict[str, Row]:
    """Every kind of graph, in the order of the table."""
    made = dict[str, Row]()
    for least, most in ((1, FEW), (MANY, MANY)):
        for shape in graphs.SHAPES:
            for ending, cut in (("", False), (", cut", True)):
                name = f"{shape}, {least if least == most else f'{least}-{most}'} documents{ending}"
                made[name] = Row(partial(one_hop, shape=shape, least=least, most=most, cut=cut), most == MANY)
    made["two hops, generated summary"] = Row(partial(two_hops, given=False))
    made["two hops, given summary"] = Row(partial(two_hops, given=True))
    made["list of two, 2-16 documents"] = Row(listed)
    made["few-shot, 2-8 examples"] = Row(few_shot)
    made["compressed to one token"] = Row(compressed)
    for policy in graphs.POLICIES:
        made[f"positions {policy}, all shapes"] = Row(
            partial(one_hop, shape=None, least=1, most=FEW, positions=policy)
        )
    return made


def load(model: str | None) -> None:
    """In each process, once: the model on the CPU, in float32."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from legraph.engine import Engine

    global engine
    disable_progress_bar()
    torch.set_num_threads(1)
    engine = Engine.load(model, device="cpu")


def task(name: str, first: int, last: int) -> Score:
    return exact_match(engine, rows()[name].make, range(first, last))


def measure(wanted: dict[str, int], model: str | None, num_processes: int) -> Iterator[tuple[str, Score]]:
    """Scores of all rows as they become complete.

    Args:
        wanted: number of graphs by row.
    """
    scores = {name: Score() for name in wanted}
    start = get_context("spawn")
    with ProcessPoolExecutor(num_processes, start, initializer=load, initargs=(model,)) as pool:
        running = dict[Future[Score], str]()
        for name, number in wanted.items():
            for first in range(0, number, TASK_GRAPHS):
                running[pool.submit(task, name, first, min(number, first + TASK_GRAPHS))] = name
        for done in as_completed(running):
            name = running[done]
            scores[name] += done.result()
            if scores[name].graphs == wanted[name]:
                yield name, scores[name]


def machine() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "legraph")},
        "dtype": "float32 (weights stored as float16)",
        "decoding": "greedy",
    }


def table(scores: dict[str, Score]) -> str:
    """The scores as a Markdown table; a row and its cut twin share a line."""
    lines = [
        "| graphs | number | tokens | exact | cut: number | cut: exact | cut: 'unknown.' |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, score in scores.items():
        if name.endswith(", cut"):
            continue
        cut = scores.get(f"{name}, cut")
        cells = [name, str(score.graphs), f"{score.tokens / score.graphs:.0f}", percent(score.exact, score)]
        if cut:
            cells += [str(cut.graphs), percent(cut.exact, cut), percent(cut.unknown, cut)]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(part: int, score: Score) -> str:
    return f"{100 * part / score.asked:.1f}%"


def write(path: Path, scores: dict[str, Score], seconds: float) -> None:
    content = {**machine(), "seconds": round(seconds), "rows": {n: asdict(s) for n, s in scores.items()}}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=500, help="graphs of each kind")
    parser.add_argument(
        "--many-graphs", type=int, help=f"graphs of each kind with {MANY} documents; default as --graphs"
    )
    parser.add_argument("--model", help="path or hub id; default the one that ships with legraph")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name contains one of these")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    many = options.graphs if options.many_graphs is None else options.many_graphs
    wanted = {name: many if row.is_many else options.graphs for name, row in rows().items()}
    wanted = {
        name: number
        for name, number in wanted.items()
        if number and any(part in name for part in options.only)
    }
    started = time.perf_counter()
    found = dict[str, Score]()
    for name, score in measure(wanted, options.model, options.processes):
        found[name] = score
        seconds = time.perf_counter() - started
        print(f"{seconds:6.0f} s  {name}: {percent(score.exact, score)}", file=sys.stderr, flush=True)
        if options.json:
            # After every row: a long run that is cut short leaves what it has found.
            write(options.json, {name: found[name] for name in wanted if name in found}, seconds)
    print(*(f"{key} {value}" for key, value in machine().items()), sep=" | ")
    print(table({name: found[name] for name in wanted if name in found}))


if __name__ == "__main__":
    main()
