"""Attention of one layer over the masks of prompt graphs: our kernels, their alternatives, and plain causal.

    python benchmarks/attention.py --json benchmarks/results/attention-gpu.json
    python benchmarks/attention.py --device cpu --json benchmarks/results/attention-cpu.json
    python benchmarks/attention.py --report benchmarks/results/attention-gpu.json

Milliseconds, medians after a warm-up, compilation outside the timers. Making a mask or a plan is outside too,
and has columns of its own. Every kernel's result is compared with another one's before it is timed.

- `ours`: what `kernel="auto"` takes. `intervals`, `chunks`, `flex`, `dense`: our ways (`graphattention`),
- `gather`: FlexAttention with a mask_mod that looks up adjacency[chunk[q], chunk[k]], as LE-ATTENTION does.
  It gets its block mask from us: torch's own `create_block_mask`, timed beside it, needs N x N memory,
- `varlen`: torch's variable-length attention, with the keys that each chunk sees copied side by side,
- `causal`: plain causal attention by torch's SDPA over as many tokens. It computes something else, except for
  the graph of that name: it is what a prompt without a structure costs,
- `floor`: the visible pairs at the rate that `causal` reaches on the graph of that name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from legraph import cost
from legraph.flexattention import many_flex_versions
from legraph.flexmask import block_mask
from legraph.graphattention import plan_attention
from legraph.mask import ChunkMask
from legraph.seen import SeenIntervals

# More entries of a spelled-out mask than this are not tried.
MAX_DENSE = 40_000**2
# Nor are more keys, side by side, for variable-length attention.
MAX_GATHERED = 4_000_000


@dataclass(frozen=True)
class Workload:
    name: str
    mask: ChunkMask
    batch: int = 1
    heads: int = 32
    groups: int = 8
    channels: int = 128
    dtype: torch.dtype = torch.bfloat16
    # Whether training is timed as well.
    train: bool = False


def chunk_mask(lengths: list[int], parents: list[list[int]]) -> ChunkMask:
    return ChunkMask(
        np.cumsum([0, *lengths], dtype=np.int64),
        np.cumsum([0, *map(len, parents)], dtype=np.int64),
        np.array([parent for row in parents for parent in row], dtype=np.int64),
    )


def rag(documents: int, lengths: Callable[[], int], head: int = 16, question: int = 64) -> ChunkMask:
    """A head that documents see, and a question that sees it all."""
    parents = [[], *([0] for _ in range(documents)), list(range(documents + 1))]
    return chunk_mask([head, *(lengths() for _ in range(documents)), question], parents)


def documents(lengths: list[int], question: int) -> ChunkMask:
    """Documents that see nothing, and a question that sees them all."""
    return chunk_mask([*lengths, question], [*([] for _ in lengths), list(range(len(lengths)))])


def tree(levels: int, lengths: Callable[[], int]) -> ChunkMask:
    """Binary, in depth-first order; each chunk sees all of its ancestors."""
    parents, made = list[list[int]](), list[int]()

    def grow(level: int, ancestors: list[int]) -> None:
        own = len(parents)
        parents.append(ancestors)
        made.append(lengths())
        if level + 1 < levels:
            grow(level + 1, [*ancestors, own])
            grow(level + 1, [*ancestors, own])

    grow(0, [])
    return chunk_mask(made, parents)


def scattered(chunks: int, lengths: Callable[[], int], share: float, random: Random) -> ChunkMask:
    parents = [[j for j in range(i) if random.random() < share] for i in range(chunks)]
    return chunk_mask([lengths() for _ in parents], parents)


def chain(chunks: int, length: int) -> ChunkMask:
    return chunk_mask([length] * chunks, [[i - 1] if i else [] for i in range(chunks)])


def fully_causal(chunks: int, length: int) -> ChunkMask:
    return chunk_mask([length] * chunks, [list(range(i)) for i in range(chunks)])


def gpu_workloads() -> list[Workload]:
    random = Random(0)

    def between(low: int, high: int) -> Callable[[], int]:
        return lambda: random.randint(low, high)

    le = rag(500, lambda: 7, head=1, question=3)
    return [
        Workload("causal", fully_causal(128, 256)),
        Workload("le500", le, batch=4, heads=8, groups=8, channels=32, dtype=torch.float16),
        Workload("rag256", rag(256, between(256, 768))),
        Workload("rag128", rag(128, between(128, 384)), train=True),
        Workload("tiny2000", documents([random.randint(8, 24) for _ in range(2000)], 64)),
        Workload("chain", chain(256, 512)),
        Workload("tree", tree(10, between(32, 96))),
        Workload("random", scattered(1000, between(16, 64), 0.05, random)),
        Workload("million", documents([2048] * 512, 64)),
    ]


def cpu_workloads() -> list[Workload]:
    random = Random(0)

    def made(name: str, mask: ChunkMask) -> Workload:
        return Workload(name, mask, heads=8, groups=8, channels=64, dtype=torch.float32)

    def between(low: int, high: int) -> Callable[[], int]:
        return lambda: random.randint(low, high)

    shapes = [
        (1, 32),
        (2, 24),
        (4, 60),
        (16, 16),
        (16, 64),
        (8, 256),
        (256, 16),
        (16, 256),
        (64, 128),
        (16, 512),
    ]
    return [
        made("causal", fully_causal(16, 256)),
        *(made(f"{n} of {length}", documents([length] * n, 32)) for n, length in shapes),
        made("chain", chain(32, 128)),
        made("tree", tree(7, between(16, 48))),
        made("random", scattered(100, between(16, 64), 0.05, random)),
    ]


def adjacency_block_mask(mask: ChunkMask, device: torch.device) -> Any:
    """LE-ATTENTION's mask_mod, over the blocks that are active."""
    made = block_mask(mask, device)
    made.mask_mod = adjacency_mask_mod(mask, device)
    return made


def adjacency_mask_mod(mask: ChunkMask, device: torch.device) -> Callable[..., Any]:
    adjacency = torch.zeros((mask.num_chunks, mask.num_chunks), dtype=torch.bool, device=device)
    adjacency[torch.from_numpy(mask.children_of_edges()), torch.from_numpy(mask.parent_indices)] = True
    chunk = torch.from_numpy(mask.chunk_of(np.arange(mask.num_tokens))).to(device)

    def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
        return ((chunk[q] == chunk[k]) & (q >= k)) | adjacency[chunk[q], chunk[k]]

    return visible


class Timer:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def ms(self, work: Callable[[], Any]) -> float:
        work()
        if self.device.type == "cuda":
            from triton.testing import do_bench

            return float(do_bench(work, warmup=20, rep=80, return_mode="median"))
        return self.wall_ms(work, 11)

    def wall_ms(self, work: Callable[[], Any], repeats: int = 5) -> float:
        times = list[float]()
        for _ in range(repeats):
            started = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return 1000 * statistics.median(times)


@dataclass
class Case:
    """One workload with its tensors, and what it has measured so far."""

    workload: Workload
    timer: Timer
    row: dict[str, Any]

    def __post_init__(self) -> None:
        work, device = self.workload, self.timer.device
        shape = (work.batch, work.mask.num_tokens)
        generator = torch.Generator(device=device).manual_seed(0)

        def normal(heads: int) -> torch.Tensor:
            size = (*shape, heads, work.channels)
            made = torch.randn(size, generator=generator, device=device, dtype=torch.float32)
            return made.to(work.dtype).transpose(1, 2)

        self.q = normal(work.heads)
        # Keys and values as a cache has them, one head after the other.
        self.k, self.v = (normal(work.groups).contiguous() for _ in range(2))
        self.expected: torch.Tensor | None = None

    def measure(self, name: str, attend: Callable[[], torch.Tensor], exact: bool = True) -> None:
        """Leaves the median in the row; or why there is none, in `name, error`."""
        try:
            if exact:
                self.compare(attend())
            self.row[name] = self.timer.ms(attend)
        # Whatever a kernel that we did not write raises: out of memory, sizes that it cannot address.
        except Exception as error:
            self.row[f"{name}, error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            torch.cuda.empty_cache()
        print(f"  {name} {self.row.get(name, self.row.get(f'{name}, error'))}", flush=True)

    def compare(self, found: torch.Tensor) -> None:
        """With the first kernel's result, up to rounding."""
        if self.expected is None:
            self.expected = found
            return
        tolerance = 2e-5 if found.dtype == torch.float32 else 2e-2
        pairs = zip(found.split(8192, 2), self.expected.split(8192, 2), strict=True)
        worst = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
        if not worst <= tolerance:
            raise AssertionError(f"differs by {worst}")


def measure(workload: Workload, timer: Timer) -> dict[str, Any]:
    mask, device = workload.mask, timer.device
    case = Case(workload, timer, {"workload": workload.name, "tokens": mask.num_tokens})
    q, k, v, row = case.q, case.k, case.v, case.row
    row |= {"visible pairs": mask.num_visible_pairs(), "num_chunks": mask.num_chunks}
    is_gpu, fits = device.type == "cuda", mask.num_tokens**2 <= MAX_DENSE
    with torch.inference_mode(), many_flex_versions():
        planned = plan_attention(mask, q, k, v)
        row["picked"] = planned.kernel
        case.measure("ours", lambda: planned(q, k, v))
        row["plan"] = timer.wall_ms(lambda: plan_attention(mask, q, k, v))
        case.measure("ours, plan included", lambda: plan_attention(mask, q, k, v)(q, k, v))
        for kernel in ("intervals" if is_gpu else "chunks", "flex", "dense"):
            if kernel != "dense" or fits:
                kept = planned if kernel == planned.kernel else plan_attention(mask, q, k, v, kernel)
                case.measure(kernel, lambda kept=kept: kept(q, k, v))
                del kept
        if is_gpu:
            measure_alternatives(case, fits)
        causal = torch.nn.functional.scaled_dot_product_attention
        has_groups = workload.heads != workload.groups
        if mask.num_tokens <= 300_000:
            case.measure(
                "causal",
                lambda: causal(q, k, v, is_causal=True, enable_gqa=has_groups),
                exact=planned.kernel == "causal",
            )
    if workload.train:
        measure_training(case)
    return row


def measure_training(case: Case) -> None:
    """Forward and backward."""
    mask, q, k, v = case.workload.mask, *(t.detach().requires_grad_() for t in (case.q, case.k, case.v))
    flex, upstream = plan_attention(mask, q, k, v, "flex"), torch.ones_like(case.q)
    causal = torch.nn.functional.scaled_dot_product_attention

    def gradients(out: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(out, (q, k, v), upstream)[0]

    def of_flex() -> torch.Tensor:
        return gradients(flex(q, k, v))

    def of_causal() -> torch.Tensor:
        return gradients(
            causal(q, k, v, is_causal=True, enable_gqa=case.workload.heads != case.workload.groups)
        )

    with many_flex_versions():
        case.measure("flex, with backward", of_flex, exact=False)
    case.measure("causal, with backward", of_causal, exact=False)


def measure_alternatives(case: Case, fits: bool) -> None:
    mask, device, timer = case.workload.mask, case.timer.device, case.timer
    q, k, v, row = case.q, case.k, case.v, case.row
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks, compiled = adjacency_block_mask(mask, device), torch.compile(flex_attention, dynamic=False)
    has_groups = case.workload.heads != case.workload.groups
    case.measure("gather", lambda: compiled(q, k, v, block_mask=blocks, enable_gqa=has_groups))
    row["flex, block mask"] = timer.wall_ms(lambda: block_mask(mask, device))
    if fits:
        n = mask.num_tokens
        row["gather, torch's block mask"] = timer.wall_ms(
            lambda: create_block_mask(adjacency_mask_mod(mask, device), None, None, n, n, device), 2
        )
    measure_varlen(case)


def measure_varlen(case: Case) -> None:
    """Each chunk is one request that appends to what it sees."""
    from torch.nn.attention.varlen import varlen_attn

    seen = SeenIntervals.of(case.workload.mask)
    num_keys = seen.num_keys()
    if case.workload.batch > 1 or num_keys.sum() > MAX_GATHERED:
        return
    keys = list[np.ndarray]()
    for i in range(len(seen.counts)):
        rows = range(seen.range_offsets[i], seen.range_offsets[i + 1])
        keys += [np.arange(seen.range_starts[j], seen.range_ends[j]) for j in rows]
        keys.append(np.arange(seen.causal_starts[i], seen.slots[i] + seen.counts[i]))
    device = case.timer.device
    gathered = torch.from_numpy(np.concatenate(keys)).to(device)
    q_ends, k_ends = (
        torch.from_numpy(np.append(0, np.cumsum(sizes)).astype(np.int32)).to(device)
        for sizes in (seen.counts, num_keys)
    )
    # [tokens, heads, channels]; copying the keys is part of the work, in every layer.
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (case.q, case.k, case.v))
    most = int(seen.counts.max()), int(num_keys.max())

    def attend() -> torch.Tensor:
        made: Any = varlen_attn(q, k[gathered], v[gathered], q_ends, k_ends, *most, window_size=(-1, 0))
        return made.transpose(0, 1)[None]

    case.measure("varlen", attend)


def add_predictions(rows: list[dict[str, Any]], workloads: list[Workload], device: cost.Device) -> None:
    """What `cost` expects, from the graph alone."""
    works = {work.name: work for work in workloads}
    for row in rows:
        work = works[row["workload"]]
        heads = (work.heads * work.batch, work.groups * work.batch)
        shape = cost.AttentionShape(*heads, work.channels, work.dtype.itemsize)
        found = cost.estimates(work.mask, shape, device)
        row["predicted"] = {one.kernel: round(one.milliseconds, 4) for one in found}


def add_floors(rows: list[dict[str, Any]], workloads: list[Workload]) -> None:
    """Pairs a millisecond and head and channel of plain causal attention, from the row of that name."""
    base = next((row for row in rows if row["workload"] == "causal" and row.get("causal")), None)
    if base is None:
        return
    size = {work.name: work.batch * work.heads * work.channels for work in workloads}
    rate = base["visible pairs"] * size["causal"] / base["causal"]
    for row in rows:
        row["floor"] = row["visible pairs"] * size[row["workload"]] / rate


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars on a logarithmic axis, one group for each workload."""
    import matplotlib.pyplot as plt

    names = ["floor", "ours", "flex", "gather", "varlen", "dense", "causal"]
    colors = ["#d0d0d0", "#1a6fb0", "#7fb3d9", "#e0a030", "#b0a060", "#c06050", "#707070"]
    figure, axes = plt.subplots(figsize=(9, 0.9 * len(rows) + 1))
    height = 0.8 / len(names)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        found = [(y, row[name]) for y, row in enumerate(rows) if row.get(name)]
        places = [y - 0.4 + (i + 0.5) * height for y, _ in found]
        axes.barh(places, [ms for _, ms in found], height, color=color, label=name)
    axes.set_yticks(range(len(rows)), [f"{row['workload']}\n{row['tokens']:,} tokens" for row in rows])
    axes.set(xscale="log", xlabel="milliseconds")
    axes.invert_yaxis()
    axes.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def report(path: Path) -> None:
    """Writes predictions into a file of results, and a picture beside it."""
    results = json.loads(path.read_text(encoding="utf-8"))
    is_gpu = "CPU" not in results["device"]
    workloads = gpu_workloads() if is_gpu else cpu_workloads()
    add_predictions(results["ms"], workloads, "gpu" if is_gpu else "cpu")
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot(results["ms"], path.with_suffix(".svg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", metavar="WORKLOAD")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--report", type=Path, metavar="JSON", help="predictions and a picture; measures nothing"
    )
    args = parser.parse_args()
    if args.report:
        report(args.report)
        return
    device = torch.device(args.device)
    workloads = gpu_workloads() if device.type == "cuda" else cpu_workloads()
    workloads = [one for one in workloads if not args.only or one.name in args.only]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU cores"
    shapes = [asdict(one) | {"mask": None, "dtype": str(one.dtype)} for one in workloads]
    rows = list[dict[str, Any]]()
    for workload in workloads:
        print(workload.name, flush=True)
        rows.append(measure(workload, Timer(device)))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        add_floors(rows, workloads)
        if args.json is not None:
            about = {"device": name, "torch": torch.__version__, "shapes": shapes, "ms": rows}
            args.json.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
