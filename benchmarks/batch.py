"""Many graphs at once: `legraph batch` beside a loop of single runs and padded batches in plain transformers.

    python benchmarks/batch.py --json benchmarks/results/batch-cpu.json
    python benchmarks/batch.py --device cuda --shape 8b --graphs 300 --json benchmarks/results/batch-gpu.json

RAG graphs: 2 to 40 documents, each a root of its own, drawn from a corpus, and a question that sees them all
and is answered with a fixed number of tokens. On a CPU `recall`, the model in the box, in float32; on a GPU
a Llama of the 8B shape with random weights in bfloat16.

- batch: rows of JSON in, rows of JSON out (`batch.run_batch`), parsing and compiling included; once as it is,
  once with --no-reuse, where documents that graphs share are computed for each.
- loop: the same graphs, compiled before, through one engine, one after the other; once as `legraph run` does,
  once with a KV store.
- processes: `legraph run` for each graph, on a few of them (CPU).
- padded: flattened graphs with their dense masks, 4-D, padded to the longest of a batch, in plain
  transformers with a DynamicCache and a greedy loop; sorted by length, in the batch size that is fastest
  among those that fit.

Tokens of batch and loop are compared, in float32. Times are medians of `--repeats`, on the wall clock. Loop
and padded batches are timed on a part of the graphs (`--part`), every k-th, so that lengths are alike.
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
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from legraph import Engine, Generate, load_model
from legraph.batch import row_of, run_batch, store_bytes
from legraph.batchinput import bundle_of, items
from legraph.bundle import Bundle
from legraph.kvstore import KVStore
from legraph.model import cache_argument, use_attention
from legraph.tokens import bytes_tokenizer, load_tokenizer

NEVER = frozenset[int]()
WORDS = ["amber", "silver", "key", "gate", "north", "south", "the", "of", "old", "tower"]
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
# Graphs that a batch size is chosen by, and that `legraph run` is timed with.
TRIAL, PROCESSES = 32, 5


class Bench:
    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.device = torch.device(args.device)
        self.is_8b = args.shape == "8b"
        self.rows = dict[str, Any]()
        self.settings = Generate(args.new_tokens)
        self.tokenizer = bytes_tokenizer() if self.is_8b else load_tokenizer("recall")
        self.model = (
            self.load(args.layers, torch.bfloat16) if self.is_8b else load_model("recall", args.device)
        )
        self.path = folder / "graphs.jsonl"
        write_graphs(self.path, args.graphs, args.corpus, (64, 256) if self.is_8b else (16, 40), self.is_8b)
        self.bundles = [bundle_of(item, self.tokenizer) for item in items([self.path])]
        self.part = self.bundles[:: max(1, len(self.bundles) // args.part)][: args.part]

    def load(self, num_layers: int, dtype: torch.dtype) -> Any:
        config = LlamaConfig(
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=num_layers,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=131_072,
        )
        torch.manual_seed(0)
        with self.device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()

    def note(self, name: str, value: Any) -> None:
        self.rows[name] = value
        print(f"{name:64} {value:,.4g}" if isinstance(value, float) else f"{name:64} {value}", flush=True)

    def note_speed(self, name: str, num_graphs: int, seconds: Sequence[float]) -> float:
        """Graphs and tokens a second by the median. Returns the former."""
        speed = num_graphs / statistics.median(seconds)
        self.note(f"{name}: graphs/s", speed)
        self.note(f"{name}: generated tokens/s", speed * self.args.new_tokens)
        self.rows[f"{name}: all runs, s"] = [round(each, 3) for each in seconds]
        return speed

    def engine(self, model: Any = None, **options: Any) -> Engine:
        made = Engine(model or self.model, self.tokenizer, **options)
        made.end_ids = NEVER
        return made

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any]) -> float:
        self.sync()
        started = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - started

    # The ways

    def batch(self, reuse: bool, notes_memory: bool = False) -> None:
        """By a new engine; what a first run compiles and allocates is in it on a CPU, not on a GPU."""
        engine = self.engine(kv=KVStore(store_bytes(self.args.device)) if reuse else None)
        if self.device.type == "cuda":
            engine.run(self.bundles[:4], self.settings)
        rows, memory, reused = 0, list[float](), 0
        with (self.folder / "out.jsonl").open("w") as file:
            for item, result in run_batch(engine, items([self.path]), self.settings, self.args.cache_tokens):
                file.write(json.dumps(row_of(item, result)) + "\n")
                reused += getattr(result, "tokens", {}).get("reused", 0)
                rows += 1
                if notes_memory and rows % max(1, self.args.graphs // 4) == 0:
                    memory.append(self.memory_gb())
        assert rows == self.args.graphs
        if notes_memory:
            self.note("memory at each quarter, GB", [round(gb, 3) for gb in memory])
        if reuse:
            self.rows["share of text tokens reused"] = reused / sum(map(len, self.bundles))

    def memory_gb(self) -> float:
        """Of the process, or the peak of the device since the last quarter."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
            return peak
        statm = Path("/proc/self/statm")
        if statm.exists():
            return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def loop(self, kv: KVStore | None = None) -> None:
        engine = self.engine(kv=kv)
        for bundle in self.part:
            engine.run(bundle, self.settings)

    def processes(self) -> None:
        lines = self.path.read_text().splitlines()[:PROCESSES]
        for i, line in enumerate(lines):
            graph = self.folder / f"graph{i}.json"
            graph.write_text(json.dumps(json.loads(line)["graph"]))
            command = [sys.executable, "-m", "legraph.cli", "run", str(graph), "--device", "cpu"]
            command += ["--dtype", "float32", "--max-new-tokens", str(self.args.new_tokens)]
            subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])

    @torch.inference_mode()
    def padded(self, bundles: Sequence[Bundle], size: int) -> None:
        use_attention(self.model, "sdpa")
        ordered = sorted(bundles, key=len)
        for at in range(0, len(ordered), size):
            self.padded_batch(ordered[at : at + size])

    def padded_batch(self, bundles: Sequence[Bundle]) -> list[list[int]]:
        """Padding stands on the left and sees itself, so that no softmax is empty; nobody sees it."""
        count, length, new = len(bundles), max(map(len, bundles)), self.args.new_tokens
        ids = np.zeros((count, length), dtype=np.int64)
        positions = np.zeros((count, length), dtype=np.int64)
        mask = np.zeros((count, 1, length, length), dtype=np.bool_)
        mask[:, 0, np.arange(length), np.arange(length)] = True
        for i, bundle in enumerate(bundles):
            first = length - len(bundle)
            ids[i, first:], positions[i, first:] = bundle.input_ids, bundle.position_ids
            mask[i, 0, first:, first:] = bundle.dense_mask()
        ids_T, next_position = torch.from_numpy(ids), torch.from_numpy(positions[:, -1:] + 1)
        inputs = [
            each.to(self.device) for each in (ids_T, torch.from_numpy(positions), torch.from_numpy(mask))
        ]
        tokens, next_position = inputs[0], next_position.to(self.device)
        # What the last token of a question sees, its answer sees too, and itself.
        row = torch.nn.functional.pad(inputs[2][:, :, -1:], (0, new), value=True)
        cache, name = DynamicCache(), cache_argument(self.model)
        found = list[torch.Tensor]()
        for step in range(new):
            where, what = (inputs[1], inputs[2]) if step == 0 else (next_position, row[..., : length + step])
            logits = self.model(
                tokens, position_ids=where, attention_mask=what, logits_to_keep=1, **{name: cache}
            ).logits
            if step:
                next_position = next_position + 1
            tokens = logits[:, -1:].argmax(-1)
            found.append(tokens)
        return torch.cat(found, 1).tolist()

    def best_size(self) -> int:
        """The batch size that takes least for some graphs, among those that fit."""
        some, best = self.part[:: max(1, len(self.part) // TRIAL)][:TRIAL], (float("inf"), 1)
        with torch.inference_mode():
            for size in BATCH_SIZES:
                if size > 2 * len(some):
                    break
                many = some * max(1, size // len(some))
                try:
                    seconds = self.timed(lambda size=size, many=many: self.padded(many, size)) / len(many)
                except torch.OutOfMemoryError:
                    break
                finally:
                    self.free()
                self.rows[f"padded: batches of {size}, graphs/s"] = 1 / seconds
                best = min(best, (seconds, size))
        return best[1]

    # The tables

    def compare_tokens(self) -> None:
        """Batch and loop give the same tokens, in float32; padded batches are looked at too."""
        model = self.load(min(2, self.args.layers), torch.float32) if self.is_8b else self.model
        number = min(self.args.check, self.args.graphs)
        single, many = self.engine(model), self.engine(model)
        expected = [single.run(bundle, self.settings).outputs for bundle in self.bundles[:number]]
        lines = self.path.read_text().splitlines()[:number]
        some = self.folder / "some.jsonl"
        some.write_text("\n".join(lines) + "\n")
        found = dict[int, Any]()
        for item, result in run_batch(many, items([some]), self.settings, self.args.cache_tokens):
            found[item.number] = result
        assert all(found[i].outputs == outputs for i, outputs in enumerate(expected)), "other tokens"
        self.note("graphs whose tokens are equal in batch and loop, float32", number)
        if model is self.model:
            use_attention(model, "sdpa")
            with torch.inference_mode():
                padded = self.padded_batch(self.bundles[:8])
            equal = [list(out["q"].token_ids) == ids for out, ids in zip(expected, padded, strict=False)]
            self.note("of 8 padded, equal to them too", sum(equal))

    def run(self) -> None:
        args = self.args
        self.note("graphs", args.graphs)
        self.note("tokens of text, mean", sum(map(len, self.bundles)) / len(self.bundles))
        self.note("documents, mean", sum(b.mask.num_chunks - 1 for b in self.bundles) / len(self.bundles))
        self.compare_tokens()
        self.free()
        speeds = dict[str, float]()
        for name, work, number in self.ways():
            seconds = list[float]()
            for _ in range(args.repeats):
                seconds.append(self.timed(work))
                self.free()
            speeds[name] = self.note_speed(name, number, seconds)
        for name, speed in speeds.items():
            if not name.startswith("batch"):
                for ours in ("batch", "batch, --no-reuse"):
                    self.note(f"{ours}, over {name}: ratio", speeds[ours] / speed)
        self.note("share of text tokens reused by batch", float(self.rows["share of text tokens reused"]))
        self.batch(True, notes_memory=True)

    def ways(self) -> Iterator[tuple[str, Callable[[], None], int]]:
        yield "batch", lambda: self.batch(True), self.args.graphs
        yield "batch, --no-reuse", lambda: self.batch(False), self.args.graphs
        self.loop_warmed()
        yield "loop of single runs", self.loop, len(self.part)
        yield "loop of single runs, with a KV store", lambda: self.loop(KVStore()), len(self.part)
        size = self.best_size()
        self.note("padded: batch size", size)
        yield "padded dense batches", lambda: self.padded(self.part, size), len(self.part)
        if self.device.type == "cpu" and not self.args.no_processes:
            yield "a process for each", self.processes, min(PROCESSES, self.args.graphs)

    def loop_warmed(self) -> None:
        engine = self.engine()
        for bundle in self.part[:3]:
            engine.run(bundle, self.settings)
        self.free()


def write_graphs(path: Path, number: int, corpus: int, lengths: tuple[int, int], letters: bool) -> None:
    """Rows of RAG graphs. `lengths`: least and most tokens of a document."""
    draw = random.Random(0)

    def text(num_tokens: int) -> str:
        if letters:
            return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(num_tokens))
        return " ".join(draw.choice(WORDS) for _ in range(num_tokens))

    documents = [text(draw.randint(*lengths)) for _ in range(corpus)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            some = draw.sample(documents, min(corpus, draw.randint(2, 40)))
            chunks: list[Any] = [{"name": f"d{j}", "text": each} for j, each in enumerate(some)]
            parents = [chunk["name"] for chunk in chunks]
            chunks.append({"name": "q", "text": f"Where is {text(12)}?", "parents": parents})
            file.write(json.dumps({"id": f"g{i}", "graph": {"legraph": 1, "chunks": chunks}}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=("recall", "8b"), default="recall")
    parser.add_argument("--layers", type=int, default=32, help="of the 8B shape")
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--part", type=int, default=200, help="graphs for the loop and padded batches")
    parser.add_argument("--corpus", type=int, default=300, help="documents that graphs draw from")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--cache-tokens", type=int, default=None)
    parser.add_argument("--check", type=int, default=50, help="graphs whose tokens are compared")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-processes", action="store_true", help="do not time `legraph run`")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        on_gpu = bench.device.type == "cuda"
        bench.note("device", torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU")
        bench.note("cores, threads", f"{os.cpu_count()}, {torch.get_num_threads()}")
        bench.note("torch", torch.__version__)
        bench.note("transformers", version("transformers"))
        bench.note("model", f"{type(bench.model).__name__}, {bench.model.num_parameters():,} parameters")
        bench.note("dtype", str(bench.model.dtype))
        bench.note("new tokens", args.new_tokens)
        bench.note("documents in the corpus", args.corpus)
        bench.run()
    if args.json is not None:
        args.json.write_text(json.dumps(bench.rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
