"""What compiling costs as graphs grow, and what it costs to build the N x N mask instead.

    python benchmarks/compile.py
    python benchmarks/compile.py --sizes 500 5000 --repeats 5 --json compile.json

Each size is measured in a process of its own, so that its peak memory is its own. A graph has chunks of about
20 tokens with 1 to 3 parents near them. Times are medians, in seconds; memory is the peak above what the
process holds once torch is imported and a first tiny graph is compiled.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIZES = [500, 5_000, 50_000]
TOKENS_PER_CHUNK = 20
MAX_PARENTS = 3
# Parents are among this many chunks before: long contexts are put together from neighbours.
NEIGHBOURHOOD = 200
# Beyond this the N x N mask, one byte an entry, is not even tried: 4 GiB.
MAX_DENSE_TOKENS = 2**16
COMMANDS = {
    "legraph --help": ["--help"],
    "legraph check": ["check", "examples/quickstart.yaml"],
}
ROOT = Path(__file__).parent.parent

# What is shown of a graph, and how.
ROWS = {
    "tokens": "{:,}",
    "edges": "{:,}",
    "file, MB": "{:.1f}",
    "parse, s": "{:.3f}",
    "tokenize (bytes), s": "{:.3f}",
    "layout and bundle, s": "{:.3f}",
    "write compact .npz, s": "{:.3f}",
    "all but tokenize, s": "{:.3f}",
    "all but tokenize, microseconds a chunk": "{:.1f}",
    "block mask at 128, s": "{:.3f}",
    "active blocks": "{:,}",
    "peak memory, MB": "{:.0f}",
    "N x N builder, s": "{:.3f}",
    "N x N mask, MB": "{:,.0f}",
}


def write_graph(path: Path, num_chunks: int) -> None:
    """A graph file: words of four letters, so that a chunk has about `TOKENS_PER_CHUNK` byte tokens."""
    draw = random.Random(num_chunks)
    words = ["amber", "key", "of", "the", "north", "gate", "tower", "fox", "says", "well"]
    with path.open("w", encoding="utf-8") as file:
        file.write("legraph: 1\nchunks:\n")
        for i in range(num_chunks):
            text = ""
            while len(text) < TOKENS_PER_CHUNK - 2:
                text += draw.choice(words) + " "
            first = max(0, i - NEIGHBOURHOOD)
            parents = draw.sample(range(first, i), min(i, draw.randint(1, MAX_PARENTS)))
            names = ", ".join(f"c{parent}" for parent in sorted(parents))
            file.write(f'  - {{name: c{i}, text: "{text}", parents: [{names}]}}\n')


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median time of a piece of work, and what it gave."""
    times, result = [], None
    for _ in range(repeats):
        # What an earlier repeat left behind is freed before the clock starts, as in a fresh process.
        result = None
        gc.collect()
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    return statistics.median(times), result


def peak_mb() -> float:
    """Most memory this process has held at once, in MB (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def dense_builder(lengths: list[int], parents: list[list[int]]) -> Any:
    """The mask as one would write it: one square of N x N booleans, chunk after chunk."""
    import numpy as np

    ends = np.cumsum(lengths)
    mask = np.zeros((ends[-1], ends[-1]), dtype=bool)
    for chunk in range(len(lengths)):
        rows = slice(ends[chunk] - lengths[chunk], ends[chunk])
        mask[rows, rows] = np.tri(lengths[chunk], dtype=bool)
        for parent in parents[chunk]:
            mask[rows, ends[parent] - lengths[parent] : ends[parent]] = True
    return mask


def watch(tokenizer: Any) -> list[float]:
    """The list that the seconds of every call of the tokenizer are appended to from now on."""
    calls: list[float] = []
    kind = type(tokenizer)

    def timed_call(self: Any, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        encoded = kind.__call__(self, *arguments, **options)
        calls.append(time.perf_counter() - started)
        return encoded

    # Python looks `__call__` up in the class, so the tokenizer gets one of its own.
    tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": timed_call})
    return calls


def compile_seconds(graph: Any, tokenizer: Any, repeats: int) -> tuple[float, float, Any]:
    """Median seconds inside the tokenizer and outside it, and the bundle."""
    from legraph.compiler import compile_graph

    inside, outside, bundle = [], [], None
    calls = watch(tokenizer)
    for _ in range(repeats):
        calls.clear()
        bundle = None
        whole, bundle = seconds(partial(compile_graph, graph, tokenizer), 1)
        inside.append(sum(calls))
        outside.append(whole - sum(calls))
    return statistics.median(inside), statistics.median(outside), bundle


def measure(graph: Path, repeats: int) -> dict[str, Any]:
    """Everything about one graph file, in this process."""
    import numpy as np
    import torch
    import torch.nn.attention.flex_attention  # noqa: F401

    from legraph.compiler import Chunk, compile_chunks
    from legraph.graph import build_graph
    from legraph.parse import parse_file
    from legraph.tokens import bytes_tokenizer

    tokenizer = bytes_tokenizer()
    # torch and the tokenizer load much on first use, whatever the graph: that is not what is measured here.
    compile_chunks([Chunk("warm up")], tokenizer).block_mask("cpu")
    before_mb = peak_mb()
    parse_s, built = seconds(lambda: build_graph(parse_file(graph)), repeats)
    tokenize_s, compile_s, bundle = compile_seconds(built, tokenizer, repeats)
    with tempfile.TemporaryDirectory() as folder:
        save_s, _ = seconds(lambda: bundle.save(Path(folder) / "b.npz", "compact"), repeats)
    block_mask_s, blocks = seconds(lambda: bundle.block_mask("cpu", block_size=128), repeats)
    with_write_s = parse_s + compile_s + save_s
    found: dict[str, Any] = {
        "tokens": len(bundle),
        "edges": bundle.mask.num_edges,
        "file, MB": graph.stat().st_size / 1e6,
        "parse, s": parse_s,
        "tokenize (bytes), s": tokenize_s,
        "layout and bundle, s": compile_s,
        "write compact .npz, s": save_s,
        "all but tokenize, s": with_write_s,
        "all but tokenize, microseconds a chunk": with_write_s / len(bundle.span_names) * 1e6,
        "block mask at 128, s": block_mask_s,
        "active blocks": int((blocks.kv_num_blocks.sum() + blocks.full_kv_num_blocks.sum()).item()),
        "peak memory, MB": peak_mb() - before_mb,
        "N x N builder, s": None,
        "N x N mask, MB": len(bundle) ** 2 / 1e6,
    }
    if len(bundle) <= MAX_DENSE_TOKENS:
        del blocks
        lengths = np.diff(bundle.span_offsets).tolist()
        parents = [bundle.parents(i).tolist() for i in range(len(lengths))]
        found["N x N builder, s"], _ = seconds(lambda: dense_builder(lengths, parents), 1)
    return found


def measured_apart(num_chunks: int, repeats: int) -> dict[str, Any]:
    """One size, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.yaml"
        write_graph(graph, num_chunks)
        command = [sys.executable, __file__, "--measure", str(graph), "--repeats", str(repeats)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def command_times(repeats: int) -> dict[str, float]:
    """Wall time of whole commands, the start of Python included."""
    times = {}
    for label, arguments in COMMANDS.items():
        command = [sys.executable, "-m", "legraph.cli", *arguments]
        run = partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        run()  # the first one may have to write .pyc files
        times[label], _ = seconds(run, repeats)
    return times


def machine() -> dict[str, Any]:
    packages = {name: version(name) for name in ("legraph", "numpy", "torch", "transformers")}
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **packages,
        "arrays": "ids, positions, offsets and parents int64; N x N mask bool; block indices int32",
    }


def print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print("  ".join(f"{key} {value}" for key, value in report["machine"].items()))
    console.print(f"medians of {report['repeats']}; the N x N builder runs once\n")
    table = Table("graph of")
    for size in report["graphs"]:
        table.add_column(f"{int(size):,} chunks", justify="right")
    for row, form in ROWS.items():
        values = [found[row] for found in report["graphs"].values()]
        table.add_row(row, *("too large" if value is None else form.format(value) for value in values))
    console.print(table)
    for label, taken in report["commands"].items():
        console.print(f"{label}: {taken:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="What compiling costs as graphs grow.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, metavar="CHUNKS", help="graphs to measure"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is taken (default: 3)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.repeats)))
        return
    report = {
        "machine": machine(),
        "repeats": options.repeats,
        "graphs": {str(size): measured_apart(size, options.repeats) for size in options.sizes},
        "commands": command_times(max(3, options.repeats)),
    }
    print_report(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
