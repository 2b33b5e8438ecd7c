"""Attention of a prefill pass alone, on a CPU: chunk by chunk, with the mask spelled out, and plain causal.

    python benchmarks/attention.py --json benchmarks/results/attention-cpu.json

Documents that do not see each other, and a question of 32 tokens that sees them all; 8 heads of 64 channels,
float32. Milliseconds, medians after a warm-up. Making the mask is outside the timers and has a column of its
own for ours. Plain causal attention over the same tokens computes something else: it is what a prompt without
a structure costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from legraph.flatattention import RowMask, flat_attention_forward
from legraph.passes import Segment, seen_intervals, visible_rows
from legraph.slots import Extent

QUESTION, HEADS, CHANNELS = 32, 8, 64
# Documents, and tokens of each.
SHAPES = [(1, 32), (2, 24), (4, 60), (16, 16), (16, 64), (8, 256), (256, 16), (16, 256), (64, 128), (16, 512)]


def segments(documents: int, length: int) -> list[Segment]:
    ids = np.zeros(length, dtype=np.int64)
    made = [Segment(ids, ids, 1 + i * length, 1 + i * length) for i in range(documents)]
    at = 1 + documents * length
    question = np.zeros(QUESTION, dtype=np.int64)
    return [*made, Segment(question, question, at, at, (Extent(1, at),))]


def median_ms(work: Callable[[], Any], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def measure(documents: int, length: int, repeats: int) -> dict[str, float]:
    layout = segments(documents, length)
    num_slots = layout[-1].slot + QUESTION
    num_tokens = num_slots - 1
    torch.manual_seed(0)
    q = torch.randn(1, HEADS, num_tokens, CHANNELS)
    k, v = (torch.randn(1, HEADS, num_slots, CHANNELS) for _ in range(2))
    rows = torch.from_numpy(visible_rows(layout, num_slots))
    dense, module = RowMask.make(rows, 1), torch.nn.Module()

    def plan() -> RowMask:
        return RowMask.of_intervals(seen_intervals(layout), 1, HEADS, "cpu")

    parts = plan()
    results = [flat_attention_forward(module, q, k, v, mask)[0] for mask in (dense, parts)]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    return {
        "documents": documents,
        "tokens of each": length,
        "tokens": num_tokens,
        "ours": median_ms(lambda: flat_attention_forward(module, q, k, v, parts), repeats),
        "ours, making the mask": median_ms(plan, repeats),
        "SDPA, mask spelled out": median_ms(lambda: flat_attention_forward(module, q, k, v, dense), repeats),
        "SDPA, plain causal": median_ms(
            lambda: torch.nn.functional.scaled_dot_product_attention(
                q, k[:, :, 1:], v[:, :, 1:], is_causal=True
            ),
            repeats,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="*", metavar="DOCUMENTSxTOKENS", help="default: the table's")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = list[dict[str, float]]()
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes or ()] or SHAPES
    for documents, length in shapes:
        rows.append(measure(documents, length, args.repeats))
        print("  ".join(f"{name} {value:,.4g}" for name, value in rows[-1].items()), flush=True)
    if args.json is not None:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "dtype": "float32"}
        args.json.write_text(json.dumps(about | {"ms": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
