"""How fast graphs become packs to train on, how full those are, and what memory it takes.

    python benchmarks/pack.py
    python benchmarks/pack.py --graphs 5000 --json pack.json

Graphs of 2 to 6 chunks and about 20 to 400 tokens, with an answer to learn, as rows of JSONL; the tokenizer
is that of `recall`. Against the loop one would write: compile one graph after the other, start a new pack
when the next graph does not fit, keep everything and hand it to `datasets`. Each way runs in a process of its
own, so that its peak memory is its own (the largest of its workers is told apart), and starts with everything
imported. Processor seconds count all processes, workers' own imports too: where others use the machine as
well, they are the figure to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

WORDS = ["amber", "key", "of", "the", "north", "gate", "tower", "fox", "says", "well"]
WAYS = {
    "one graph after the other, next fit": 0,
    "legraph pack": 1,
    "legraph pack --workers 2": 2,
}
ROOT = Path(__file__).parent.parent
ROWS = {
    "seconds": "{:,.1f}",
    "graphs/s": "{:,.0f}",
    "tokens/s": "{:,.0f}",
    "processor seconds": "{:,.1f}",
    "packs": "{:,}",
    "fill": "{:.4f}",
    "peak memory, MB": "{:,.0f}",
    "peak memory of a worker, MB": "{:,.0f}",
    "folder, MB": "{:,.1f}",
}


def write_rows(path: Path, num_graphs: int) -> None:
    draw = random.Random(num_graphs)
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_graphs):
            # Most words are a token.
            num_words, num_chunks = draw.randint(14, 380), draw.randint(2, 6)
            cuts = sorted(draw.sample(range(1, num_words), num_chunks - 1))
            words = draw.choices(WORDS, k=num_words)
            chunks = [
                {
                    "name": f"c{j}",
                    "text": " ".join(words[start:end]),
                    "parents": [f"c{parent}" for parent in range(j) if draw.random() < 0.6],
                }
                for j, (start, end) in enumerate(zip([0, *cuts], [*cuts, num_words], strict=True))
            ]
            chunks[-1] |= {"completion": " the north gate.", "loss": True}
            file.write(json.dumps({"id": f"g{i}", "graph": {"legraph": 1, "chunks": chunks}}) + "\n")


def plain_loop(rows: Path, folder: Path, length: int) -> dict[str, Any]:
    """What one would write without `legraph pack`."""
    import datasets

    from legraph.batchinput import graph_of, items
    from legraph.compiler import compile_graph
    from legraph.tokens import load_tokenizer
    from legraph.union import disjoint_union

    tokenizer = load_tokenizer("recall")
    packs: list[list[Any]] = [[]]
    room = length
    for item in items([rows]):
        bundle = compile_graph(graph_of(item), tokenizer)
        if len(bundle) > room:
            packs.append([])
            room = length
        packs[-1].append(bundle)
        room -= len(bundle)
    names = ("input_ids", "position_ids", "labels", "span_offsets", "parent_offsets", "parent_indices")
    unions = map(disjoint_union, packs)
    table = [{name: getattr(union, name).tolist() for name in names} for union in unions]
    datasets.disable_progress_bars()
    folder.mkdir()
    datasets.Dataset.from_list(table).to_parquet(str(folder / "train.parquet"))
    tokens = sum(len(row["input_ids"]) for row in table)
    return {"packs": len(packs), "tokens": tokens, "fill": tokens / (length * len(packs))}


def packed(rows: Path, folder: Path, length: int, workers: int) -> dict[str, Any]:
    from legraph.batchinput import items
    from legraph.pack import PackSettings, pack

    info = pack(items([rows]), folder, PackSettings(length, "recall", workers=workers))
    return {"packs": info.packs, "tokens": info.tokens, "fill": info.fill}


def peak_mb(who: int) -> float:
    """Most memory held at once, in MB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(who).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def processor_seconds() -> float:
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(rows: Path, length: int, workers: int) -> dict[str, Any]:
    """One way, in this process; `workers` is 0 for the plain loop."""
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from legraph.compiler import Chunk, compile_chunks

    compile_chunks([Chunk("warm up")], "recall")
    with tempfile.TemporaryDirectory() as folder:
        before, started = processor_seconds(), time.perf_counter()
        out = Path(folder) / "packs"
        found = packed(rows, out, length, workers) if workers else plain_loop(rows, out, length)
        taken = time.perf_counter() - started
        found["folder, MB"] = sum(path.stat().st_size for path in out.rglob("*")) / 1e6
    with rows.open("rb") as file:
        num_graphs = sum(1 for _ in file)
    return found | {
        "seconds": taken,
        "graphs/s": num_graphs / taken,
        "tokens/s": found["tokens"] / taken,
        "processor seconds": processor_seconds() - before,
        "peak memory, MB": peak_mb(resource.RUSAGE_SELF),
        "peak memory of a worker, MB": peak_mb(resource.RUSAGE_CHILDREN) if workers > 1 else None,
    }


def measured_apart(rows: Path, length: int, workers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(rows), "--length", str(length)]
    done = subprocess.run(
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout)


def machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("legraph", "numpy", "tokenizers", "datasets", "pyarrow")}
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **packages,
    }


def print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=160)
    console.print("  ".join(f"{key} {value}" for key, value in report["machine"].items()))
    console.print(f"{report['graphs']:,} graphs into packs of {report['length']:,} tokens\n")
    table = Table("")
    for way in report["ways"]:
        table.add_column(way, justify="right")
    for row, form in ROWS.items():
        values = [found.get(row) for found in report["ways"].values()]
        table.add_row(row, *("" if value is None else form.format(value) for value in values))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast graphs become packs.")
    parser.add_argument("--graphs", type=int, default=100_000, metavar="N", help="default: 100,000")
    parser.add_argument("--length", type=int, default=8192, metavar="N", help="tokens of a pack")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.length, options.workers)))
        return
    report: dict[str, Any] = {"machine": machine(), "graphs": options.graphs, "length": options.length}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "graphs.jsonl"
        write_rows(rows, options.graphs)
        report["ways"] = {way: measured_apart(rows, options.length, workers) for way, workers in WAYS.items()}
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
