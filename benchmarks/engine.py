"""The engine beside the plain ways, in one process: time to first token, decoding, memory, fork-join.

    python benchmarks/engine.py --json benchmarks/results/engine-gpu.json      # a GPU with 80 GB or more
    python benchmarks/engine.py --device cpu --json benchmarks/results/engine-cpu.json

On a GPU: a Llama of the 8B shape with random weights in bfloat16, 64 documents of 256 to 768 tokens and a
question of 64. On a CPU: `recall`, the model in the box, in float32, 24 documents of about 256 tokens.

Times are medians of `--repeats` runs after a warm-up, on the wall clock, with the device synchronized. Making
masks, planning and drawing tokens are inside the timers; compiling is not: a warm-up run comes first, and
what the very first run takes is a row of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from legraph import Chunk, Engine, Generate, compile_chunks, load_model
from legraph.bundle import Bundle
from legraph.kvstore import KVStore
from legraph.model import cache_argument, use_attention
from legraph.tokens import bytes_tokenizer, load_tokenizer

NEVER = frozenset[int]()
QUESTION_TOKENS = 64


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.repeats = torch.device(args.device), args.repeats
        self.on_gpu = self.device.type == "cuda"
        self.rows = dict[str, Any]()
        if self.on_gpu:
            self.tokenizer = bytes_tokenizer()
            self.model = llama_8b(args.layers, self.device)
            draw = random.Random(0)
            self.lengths = [draw.randint(256, 768) for _ in range(args.documents or 64)]
        else:
            self.tokenizer = load_tokenizer("recall")
            self.model = load_model("recall", "cpu")
            self.lengths = [256] * (args.documents or 24)
        self.weights_bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())

    def note(self, name: str, value: Any) -> None:
        self.rows[name] = value
        print(f"{name:72} {value:,.4g}" if isinstance(value, float) else f"{name:72} {value}", flush=True)

    def note_runs(self, name: str, times_ms: list[float]) -> None:
        """The median, and every run behind it."""
        self.note(name, statistics.median(times_ms))
        self.rows[f"{name}: all runs"] = [round(ms, 3) for ms in times_ms]

    def sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def median_ms(self, work: Callable[[], Any], repeats: int | None = None) -> float:
        times = []
        for _ in range(repeats or self.repeats):
            self.sync()
            started = time.perf_counter()
            work()
            self.sync()
            times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times)

    def text(self, num_tokens: int, seed: Any) -> str:
        """A text of so many tokens, or, with `recall`, a few more."""
        draw = random.Random(repr(seed))
        if self.on_gpu:
            return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(num_tokens))
        words = ["amber", "silver", "key", "gate", "north", "south", "the", "of", "old", "tower"]
        return " ".join(draw.choice(words) for _ in range(num_tokens))

    def graph(self, seed: int, questions: int = 1, max_new_tokens: int = 1) -> Bundle:
        docs = [Chunk(self.text(n, ("d", i)), name=f"d{i}") for i, n in enumerate(self.lengths)]
        generate = Generate(max_new_tokens=max_new_tokens)
        leaves = [
            Chunk(self.text(QUESTION_TOKENS, ("q", seed, i)), parents=docs, name=f"q{i}", generate=generate)
            for i in range(questions)
        ]
        return compile_chunks(leaves, tokenizer=self.tokenizer)

    def engine(self, **options: Any) -> Engine:
        made = Engine(self.model, self.tokenizer, **options)
        made.end_ids = NEVER
        return made

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    # The rows

    def first_token(self) -> None:
        bundle = self.graph(0)
        self.note("tokens", len(bundle))
        self.note("causal prefill, plain transformers, ms", self.causal_prefill(bundle))
        engine = self.engine()
        self.note("graph, nothing known, very first run (compiles), ms", 1000 * ttft(engine, bundle))
        times = [1000 * ttft(engine, self.graph(i)) for i in range(1, 1 + self.repeats)]
        self.note_runs("graph, nothing known, ms", times)
        engine = None
        self.free()
        store = KVStore(memory_bytes=2**36)
        engine = self.engine(kv=store)
        ttft(engine, bundle)
        for i in range(3):
            ttft(engine, self.graph(100 + i))
        times = [1000 * ttft(engine, self.graph(i)) for i in range(1, 1 + self.repeats)]
        self.note_runs("question, documents known and on the device, ms", times)
        times = []
        for i in range(3):
            del engine
            self.free()
            engine = self.engine(kv=store)
            # What every engine does once: the fingerprint of the weights, how keys are shifted, the cache.
            engine.run(
                compile_chunks([Chunk(self.text(QUESTION_TOKENS, ("w", i)))], tokenizer=self.tokenizer)
            )
            engine._forward.fit(len(bundle) + 1024)
            times.append(1000 * ttft(engine, self.graph(200 + i)))
        self.note_runs("question, documents known and in host memory, ms", times)
        plan = engine.run(self.graph(300)).sources
        self.note("tokens reused by the last run", sum(source.reused for source in plan))
        del engine, store
        self.free()

    def causal_prefill(self, bundle: Bundle) -> float:
        use_attention(self.model, "sdpa")
        ids = torch.from_numpy(bundle.input_ids)[None].to(self.device)
        positions = torch.arange(len(bundle), device=self.device)[None]

        @torch.inference_mode()
        def prefill() -> None:
            # The token is read, as the engine's is.
            logits = self.model(input_ids=ids, position_ids=positions, logits_to_keep=1).logits
            int(logits[0, -1].argmax())

        prefill()
        return self.median_ms(prefill, min(self.repeats, 5))

    def decoding(self, num_new: int) -> None:
        for branches in (1, 16):
            bundle = self.graph(0, branches, num_new)
            engine = self.engine()
            engine.run(bundle)
            if self.on_gpu:
                torch.cuda.reset_peak_memory_stats()
            steps = [step_ms(engine.run(bundle), num_new) for _ in range(5)]
            self.note_runs(f"decode step, {branches} branches, ms", steps)
            if self.on_gpu:
                used = torch.cuda.max_memory_allocated() - self.weights_bytes
                self.note(f"memory beyond weights, {branches} branches, GB", used / 1e9)
                held = torch.cuda.memory_reserved() - self.weights_bytes
                self.note(f"memory beyond weights as reserved by torch, {branches} branches, GB", held / 1e9)
            del engine
            self.free()
            dense = self.engine(attn="sdpa")
            self.note(
                f"decode step, {branches} branches, flat cache and masked SDPA, ms",
                step_ms(dense.run(self.graph(0, branches, 9)), 9),
            )
            del dense
            self.free()
            if branches == 1 or not self.on_gpu or torch.cuda.mem_get_info()[0] > 90e9:
                self.note(
                    f"decode step, batch of {branches}, plain transformers, ms",
                    self.plain_decode(bundle, branches),
                )
                self.free()
        self.overhead()

    @torch.inference_mode()
    def plain_decode(self, bundle: Bundle, batch: int) -> float:
        """A step of transformers' own: one causal sequence of as many tokens for each branch."""
        use_attention(self.model, "sdpa")
        name, length = cache_argument(self.model), len(bundle) - (batch - 1) * QUESTION_TOKENS
        cache = DynamicCache()
        shape = self.model.config
        for layer in range(shape.num_hidden_layers):
            keys = torch.zeros(
                (batch, shape.num_key_value_heads, length, shape.head_dim),
                dtype=self.model.dtype,
                device=self.device,
            )
            cache.update(keys, keys.clone(), layer)
        ids = torch.zeros((batch, 1), dtype=torch.int64, device=self.device)
        at = [length]

        def step() -> None:
            positions = torch.full((batch, 1), at[0], device=self.device)
            logits = self.model(input_ids=ids, position_ids=positions, **{name: cache}).logits
            logits[:, -1].argmax(-1).tolist()
            at[0] += 1

        for _ in range(3):
            step()
        return self.median_ms(step, 10)

    def overhead(self) -> None:
        """What a step of four branches costs beside the model's forward pass, step by step."""
        engine = self.engine()
        model, inside, whole = list[float](), list[float](), list[float]()
        bundle = self.graph(0, 4, 33)
        engine.run(bundle)
        scheduler, forward = engine._scheduler, engine._forward

        def timed(work: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                started = time.perf_counter()
                result = work(*arguments)
                times.append(time.perf_counter() - started)
                return result

            return run

        forward.decode = timed(forward.decode, inside)  # type: ignore[method-assign]
        scheduler._pass = timed(scheduler._pass, whole)  # type: ignore[method-assign]
        if not self.on_gpu:
            forward.model_call = timed(forward.model_call, model)  # type: ignore[method-assign]
        engine.run(bundle)
        steps = whole[-len(inside) :]
        beside = [1000 * (a - b) for a, b in zip(steps, inside, strict=True)]
        self.note_runs("a step of 4 branches: beside the pass, ms", beside)
        if model:
            model = model[-len(inside) :]
            beside = [1000 * (a - b) for a, b in zip(steps, model, strict=True)]
            self.note_runs("a step of 4 branches: beside the model's own forward, ms", beside)

    def fork_join(self, plan: int, sections: int, section: int, join: int) -> None:
        """A plan, sections that see it, and a join that sees them all; against one token after the other."""
        engine = self.engine()
        bundle = self.fork_join_graph(plan, sections, section, join)
        engine.run(self.fork_join_graph(8, sections, 8, 8))
        engine.run(bundle)
        times = [engine.run(bundle).timing["total_s"] for _ in range(3)]
        self.note("fork-join, end to end, s", statistics.median(times))
        del engine
        self.free()
        total = plan + sections * section + join
        self.note("fork-join, tokens generated", total)
        use_attention(self.model, "sdpa")
        ids = torch.from_numpy(bundle.input_ids[: bundle.span(0).stop])[None].to(self.device)
        started = time.perf_counter()
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=total, min_new_tokens=total,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        self.sync()
        assert out.shape[1] == ids.shape[1] + total
        self.note("fork-join, as one sequence by transformers' generate, s", time.perf_counter() - started)
        single = self.engine()
        one = compile_chunks(
            [Chunk(self.text(QUESTION_TOKENS, "plan"), generate=Generate(max_new_tokens=total))],
            tokenizer=self.tokenizer,
        )
        single.run(
            compile_chunks([Chunk("warm up", generate=Generate(max_new_tokens=8))], tokenizer=self.tokenizer)
        )
        self.note("fork-join, as one sequence by the engine, s", single.run(one).timing["total_s"])

    def fork_join_graph(self, plan: int, sections: int, section: int, join: int) -> Bundle:
        outline = Chunk(
            self.text(QUESTION_TOKENS, "plan"), name="plan", generate=Generate(max_new_tokens=plan)
        )
        parts = [
            Chunk(
                self.text(16, ("s", i)),
                parents=[outline],
                name=f"s{i}",
                generate=Generate(max_new_tokens=section),
            )
            for i in range(sections)
        ]
        end = Chunk(
            self.text(16, "j"), parents=[outline, *parts], name="join", generate=Generate(max_new_tokens=join)
        )
        return compile_chunks([end], tokenizer=self.tokenizer)

    def compilations(self) -> None:
        """100 graphs of different shapes and sizes in one process, all through FlexAttention."""
        draw, engine = random.Random(1), self.engine(attn="flex")
        for _ in range(100):
            docs = [
                Chunk(self.text(draw.randint(1, 40), draw.random()), name=f"d{i}")
                for i in range(draw.randint(1, 8))
            ]
            leaves = [
                Chunk(self.text(9, i), parents=draw.sample(docs, draw.randint(0, len(docs))), name=f"q{i}")
                for i in range(draw.randint(1, 3))
            ]
            engine.run(compile_chunks(leaves, tokenizer=self.tokenizer), Generate(max_new_tokens=3))
        made = engine.compilations()
        self.note("100 different graphs: lengths compiled for FlexAttention", made["flex"])
        self.note("100 different graphs: recorded CUDA graphs", made["cuda_graphs"])


def ttft(engine: Engine, bundle: Bundle) -> float:
    return engine.run(bundle).timing["prefill_s"]


def step_ms(result: Any, num_new: int) -> float:
    return 1000 * result.timing["decode_s"] / (num_new - 1)


def llama_8b(num_layers: int, device: torch.device) -> Any:
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
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32, help="of the 8B shape, on a GPU")
    parser.add_argument("--documents", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=("first-token", "decode", "fork-join", "compilations"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bench = Bench(args)
    bench.note("device", torch.cuda.get_device_name() if bench.on_gpu else platform.processor() or "CPU")
    bench.note("torch", torch.__version__)
    bench.note("transformers", version("transformers"))
    bench.note("model", f"{type(bench.model).__name__}, {bench.model.num_parameters():,} parameters")
    bench.note("dtype", str(bench.model.dtype))
    bench.note("documents", len(bench.lengths))
    if args.only in (None, "first-token"):
        bench.first_token()
    if args.only in (None, "decode"):
        bench.decoding(65 if bench.on_gpu else 33)
    if args.only in (None, "fork-join"):
        bench.fork_join(*((64, 8, 256, 128) if bench.on_gpu else (16, 8, 64, 32)))
    if args.only in (None, "compilations"):
        bench.compilations()
    if args.json is not None:
        args.json.write_text(json.dumps(bench.rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
