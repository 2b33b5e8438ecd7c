"""What attention over a bundle costs, for people (a rich renderable) and for programs (plain data).

Nothing here prints, and nothing loads torch: what it says of times are the predictions of `cost`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from legraph.blocks import active_blocks
from legraph.bundle import Bundle
from legraph.cost import CPU_SHAPE, GPU_SHAPE, AttentionShape, Device, choose, estimates, plain_causal
from legraph.errors import count
from legraph.maskform import cheapest_form
from legraph.seen import SeenIntervals

BLOCK_SIZES = (16, 32, 64, 128)
_DEVICES: tuple[tuple[Device, str, str, AttentionShape], ...] = (
    ("gpu", "one H100 or H200", "bfloat16", GPU_SHAPE),
    ("cpu", "two CPU cores", "float32", CPU_SHAPE),
)


@dataclass(frozen=True, slots=True)
class CostPicture:
    """A rich renderable of what `cost_data` says."""

    data: dict[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(_pairs_line(self.data))
        yield _blocks_table(self.data["blocks"])
        for device in self.data["devices"]:
            yield Text("")
            yield from _device_lines(device)


def cost_data(bundle: Bundle) -> dict[str, Any]:
    """Counts of pairs and blocks, and for each device what every kernel would take for one layer."""
    mask, num_tokens = bundle.mask, len(bundle)
    pairs = mask.num_visible_pairs()
    blocks = list[dict[str, Any]]()
    for size in BLOCK_SIZES:
        active = active_blocks(mask, size)
        causal = active.num_blocks * (active.num_blocks + 1) // 2
        full = int(active.is_full.sum())
        useful = pairs / (len(active) * size**2)
        blocks.append({"size": size, "active": len(active), "full": full, "causal": causal, "useful": useful})
    return {
        "num_tokens": num_tokens,
        "visible_pairs": pairs,
        "causal_pairs": num_tokens * (num_tokens + 1) // 2,
        "form": asdict(cheapest_form(mask)),
        "blocks": blocks,
        "devices": [_device_data(bundle, *device) for device in _DEVICES],
    }


def _device_data(
    bundle: Bundle, device: Device, name: str, dtype: str, shape: AttentionShape
) -> dict[str, Any]:
    num_tokens = len(bundle)
    found = estimates(bundle.mask, shape, device)
    taken = choose(SeenIntervals.of(bundle.mask).melted(), device, shape.heads, shape.channels)
    causal = plain_causal(num_tokens, shape, device)
    return {
        "device": device,
        "name": name,
        "dtype": dtype,
        "heads": shape.heads,
        "key_heads": shape.groups,
        "channels": shape.channels,
        "flops": 4 * bundle.mask.num_visible_pairs() * shape.heads * shape.channels,
        # Queries, keys and values are read once at least, and the result is written.
        "bytes": 2 * num_tokens * (shape.heads + shape.groups) * shape.channels * shape.itemsize,
        "kernels": [{"kernel": one.kernel, "ms": one.milliseconds, "how": one.how} for one in found],
        "taken": taken,
        "causal_ms": causal.milliseconds,
    }


def _pairs_line(data: dict[str, Any]) -> str:
    form = data["form"]
    stretches = f"{form['query_stretches']} by query, {form['key_stretches']} by key"
    told = {"adjacency": "a table of chunks", "bits": "a bit for each edge"}.get(form["name"])
    told = told or f"stretches: {stretches}"
    return (
        f"{data['visible_pairs']:,} visible of {count(data['causal_pairs'], 'causal pair')}; "
        f"mask form {form['name']} ({told})"
    )


def _blocks_table(blocks: list[dict[str, Any]]) -> Table:
    drawn = Table(box=None, pad_edge=False)
    for heading in ("blocks", "active", "full", "causal has", "visible in active ones"):
        drawn.add_column(heading, no_wrap=True, justify="right")
    for one in blocks:
        numbers = (f"{one[name]:,}" for name in ("active", "full", "causal"))
        drawn.add_row(f"{one['size']} x {one['size']}", *numbers, f"{100 * one['useful']:.1f}%")
    return drawn


def _device_lines(device: dict[str, Any]) -> Iterator[Text | Table]:
    heads = f"{device['heads']} heads, {device['key_heads']} of keys, {device['channels']} channels"
    yield Text(f"predicted for one layer on {device['name']}, {device['dtype']}, {heads}:", style="bold")
    flops, num_bytes = device["flops"] / 1e9, device["bytes"] / 1e6
    yield Text(f"{flops:,.1f} GFLOP in visible pairs, {num_bytes:,.1f} MB to read and write at least")
    drawn = Table(box=None, pad_edge=False)
    for heading, side in (("kernel", "left"), ("ms", "right"), ("causal takes", "right"), ("how", "left")):
        drawn.add_column(heading, no_wrap=True, justify=side)  # type: ignore[arg-type]
    for one in device["kernels"]:
        is_taken = one["kernel"] == device["taken"]
        name = Text(one["kernel"], style="bold green" if is_taken else "")
        times = device["causal_ms"] / one["ms"]
        how = one["how"] + (" (taken)" if is_taken else "")
        drawn.add_row(name, _milliseconds(one["ms"]), f"{times:,.1f}x", how)
    drawn.add_row("plain causal", _milliseconds(device["causal_ms"]), "", "computes something else")
    yield drawn


def _milliseconds(number: float) -> str:
    return f"{number:,.3g}" if number < 1000 else f"{number:,.0f}"
