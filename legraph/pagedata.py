"""What the page of a graph shows, as plain data for JSON. numpy only; `page` writes it into HTML.

Arrays travel as base64 of little-endian numbers of the smallest type that holds them, parents as runs of
neighbours, texts once per chunk with the length of each token's piece: 100,000 tokens take about a megabyte.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legraph.attentionmass import AttentionMass
from legraph.bundle import Bundle
from legraph.cost import CPU_SHAPE, GPU_SHAPE, AttentionShape, Device, choose, estimates, plain_causal
from legraph.dagshape import lay_out
from legraph.errors import InputError, Problem, count
from legraph.fold import fold
from legraph.mask import ChunkMask, Int64Array, runs
from legraph.seen import SeenIntervals
from legraph.show import own_tokenizer, totals_of
from legraph.tokenpieces import token_pieces

FORMAT = 1
# Up to so many numbers, attention is told for every layer and head; above, for layers and for heads.
MAX_ATTENTION_NUMBERS = 4_000_000
# A browser that is given more takes its time, or gives up.
MAX_CHUNKS, MAX_RUNS, MAX_TOKENS = 200_000, 4_000_000, 1_000_000
_DEVICES: tuple[tuple[Device, str, AttentionShape], ...] = (
    ("gpu", "one H100 or H200, bfloat16", GPU_SHAPE),
    ("cpu", "two CPU cores, float32", CPU_SHAPE),
)
_WIDTHS = (np.uint8, np.uint16, np.uint32)


def page_data(
    bundle: Bundle,
    tokenizer: Any = None,
    *,
    title: str,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
    attention: AttentionMass | None = None,
) -> dict[str, Any]:
    """Everything that the page of a graph shows.

    Args:
        bundle: with `outputs`, the finished one, in which the generated tokens stand in their chunks' spans.
        tokenizer: turns ids back into text. Without one the bundle's own is loaded, and if that cannot be
            done the page shows ids.
        outputs: what chunks generated: `text`, `token_ids`, `finish` and, if known, `log_probs`.
        attention: of a model over this very graph.

    Raises:
        InputError: outputs or attention are of another graph, or the graph is too large for a page.
    """
    _check_size(bundle.mask)
    _check_outputs(bundle, outputs or {})
    if attention is not None:
        _check_attention(bundle, attention)
    return {
        "format": FORMAT,
        "title": title,
        "totals": totals_of(bundle),
        "cost": [_cost(bundle.mask, *device) for device in _DEVICES],
        "names": list(bundle.span_names),
        "lengths": packed(np.diff(bundle.span_offsets)),
        "positions": _positions(bundle),
        "parents": _parent_runs(bundle.mask),
        "ids": packed(bundle.input_ids),
        "texts": _texts(bundle, tokenizer),
        "generate": [
            {"chunk": bundle.index(name), **asdict(how)} for name, how in bundle.meta.generate.items()
        ],
        "dag": _dag(bundle),
        "outputs": None if outputs is None else _outputs(bundle, outputs),
        "attention": None if attention is None else _attention(attention),
    }


def packed(numbers: NDArray[Any]) -> dict[str, str]:
    """An array of non-negative integers, or of floats, as the page's script reads it."""
    if np.issubdtype(numbers.dtype, np.floating):
        kept = numbers.astype("<f4")
    else:
        largest = int(numbers.max(initial=0))
        width = next(width for width in _WIDTHS if largest <= np.iinfo(width).max)
        kept = numbers.astype(np.dtype(width).newbyteorder("<"))
    kind = f"{kept.dtype.kind}{kept.dtype.itemsize}"
    return {"type": kind, "data": base64.b64encode(kept.tobytes()).decode()}


def _check_size(mask: ChunkMask) -> None:
    limits = (
        (mask.num_tokens, MAX_TOKENS, "token"),
        (mask.num_chunks, MAX_CHUNKS, "chunk"),
        (len(_runs(mask)[0]), MAX_RUNS, "run of parents"),
    )
    problems = [
        Problem(
            f"the graph has {count(size, what)}, too much for a page",
            f"at most {most:,}",
            "make a page of a part of the graph; pictures and 'legraph show' know no such limit",
        )
        for size, most, what in limits
        if size > most
    ]
    if problems:
        raise InputError(problems)


def _check_outputs(bundle: Bundle, outputs: Mapping[str, Mapping[str, Any]]) -> None:
    """The generated tokens must be the last ones of their spans: of another graph they are not."""
    known = set(bundle.span_names)
    for name, output in outputs.items():
        if name not in known:
            raise InputError(f"the outputs name a chunk {name!r} that the graph has not")
        ids = list(output["token_ids"])
        own = bundle.input_ids[bundle.span(name)]
        if len(ids) >= len(own) or own[len(own) - len(ids) :].tolist() != ids:
            raise InputError(f"chunk {name!r} does not end in the {count(len(ids), 'token')} of its output")
        log_probs = output.get("log_probs")
        if log_probs is not None and len(log_probs) != len(ids):
            raise InputError(
                f"chunk {name!r} has {len(ids)} token ids and {len(log_probs)} log-probabilities"
            )


def _check_attention(bundle: Bundle, attention: AttentionMass) -> None:
    ours, theirs = bundle.mask, attention.bundle.mask
    arrays = ("span_offsets", "parent_offsets", "parent_indices")
    if not all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in arrays):
        raise InputError("the attention is that of another graph, or of the same one with other tokens")


def _cost(mask: ChunkMask, device: Device, name: str, shape: AttentionShape) -> dict[str, Any]:
    """What every kernel would take for one layer, and what a prompt without structure would."""
    taken = choose(SeenIntervals.of(mask).melted(), device, shape.heads, shape.channels)
    return {
        "name": f"{name}, {shape.heads} heads, {shape.channels} channels",
        "kernels": [
            {"kernel": one.kernel, "ms": one.milliseconds, "how": one.how}
            for one in estimates(mask, shape, device)
        ],
        "taken": taken,
        "causal_ms": plain_causal(mask.num_tokens, shape, device).milliseconds,
    }


def _positions(bundle: Bundle) -> dict[str, Any]:
    """First positions of chunks; every token's own only if they do not count up within chunks."""
    starts = bundle.position_ids[bundle.span_offsets[:-1]]
    lengths = np.diff(bundle.span_offsets)
    in_chunk = np.arange(len(bundle)) - np.repeat(bundle.span_offsets[:-1], lengths)
    counts_up = np.array_equal(np.repeat(starts, lengths) + in_chunk, bundle.position_ids)
    return {"starts": packed(starts), "all": None if counts_up else packed(bundle.position_ids)}


def _parent_runs(mask: ChunkMask) -> dict[str, Any]:
    """Parents of each chunk as runs [start, end) of chunks: 500 documents of a question are one run."""
    owner, starts, ends = _runs(mask)
    counts = np.bincount(owner, minlength=mask.num_chunks)
    return {"counts": packed(counts), "starts": packed(starts), "lengths": packed(ends - starts)}


def _runs(mask: ChunkMask) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Child, first parent and last parent + 1 of each run of neighbouring parents."""
    children, parents = mask.children_of_edges(), mask.parent_indices
    opens, closes = runs(children, parents)
    return children[opens], parents[opens], parents[closes] + 1


def _texts(bundle: Bundle, tokenizer: Any) -> dict[str, Any] | None:
    """None where no tokenizer is to be had that knows the ids."""
    if tokenizer is None:
        tokenizer = own_tokenizer(bundle)
    if tokenizer is None or int(bundle.input_ids.max()) >= len(tokenizer):
        return None
    pieces = token_pieces(bundle, tokenizer)
    return {
        "chunks": list(pieces.texts),
        "pieces": packed(pieces.lengths),
        "writings": [[token, writing] for token, writing in sorted(pieces.writings.items())],
    }


def _dag(bundle: Bundle) -> dict[str, Any]:
    dag = fold(bundle)
    shape = lay_out(dag)
    return {
        "width": round(shape.width, 1),
        "height": round(shape.height, 1),
        "nodes": [
            {
                "label": node.label,
                "kind": node.kind,
                "tokens": node.num_tokens,
                "generates": node.generates,
                "box": [round(float(number), 1) for number in box],
            }
            for node, box in zip(dag.nodes, shape.boxes, strict=True)
        ],
        "edges": [
            {
                "from": int(parent),
                "to": int(child),
                "stands_for": int(stands_for),
                "curve": [round(float(number), 1) for number in np.asarray(curve).ravel()],
            }
            for (parent, child), stands_for, curve in zip(dag.edges, dag.num_edges, shape.curves, strict=True)
        ],
        "node_of": packed(dag.node_of),
    }


def _outputs(bundle: Bundle, outputs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    for name in sorted(outputs, key=bundle.index):
        output = outputs[name]
        log_probs = output.get("log_probs")
        found.append(
            {
                "chunk": bundle.index(name),
                "text": output["text"],
                "tokens": len(output["token_ids"]),
                "finish": output.get("finish"),
                "log_probs": None if log_probs is None else packed(np.array(log_probs, dtype=np.float32)),
            }
        )
    return found


def _attention(attention: AttentionMass) -> dict[str, Any]:
    """Planes of numbers in 0..65535, one for each pair; all of them, or means over layers and over heads."""
    num_layers, num_heads = attention.num_layers, attention.num_heads
    size = attention.mass.shape[2]
    planes: list[tuple[int | None, int | None]] = [(None, None)]
    layers, heads = range(num_layers), range(num_heads)
    detail = "mean"
    if (1 + num_layers + num_heads) * size <= MAX_ATTENTION_NUMBERS:
        planes += [(layer, None) for layer in layers] + [(None, head) for head in heads]
        detail = "means"
    if (1 + num_layers) * (1 + num_heads) * size <= MAX_ATTENTION_NUMBERS:
        planes += [(layer, head) for layer in layers for head in heads]
        detail = "all"
    num_tokens = len(attention.bundle)
    with_tokens = attention.tokens is not None and len(planes) * num_tokens**2 <= MAX_ATTENTION_NUMBERS
    return {
        "layers": num_layers,
        "heads": num_heads,
        "detail": detail,
        "has_tokens": with_tokens,
        "planes": [_plane(attention, layer, head, with_tokens) for layer, head in planes],
    }


def _plane(
    attention: AttentionMass, layer: int | None, head: int | None, with_tokens: bool
) -> dict[str, Any]:
    tokens = attention.token_matrix(layer, head) if with_tokens else None
    sinks = attention.sinks_of(layer, head)
    return {
        "layer": layer,
        "head": head,
        "mass": _quantized(attention.of(layer, head)),
        "sinks": None if sinks is None else _quantized(sinks),
        "tokens": None if tokens is None else _quantized(tokens.ravel()),
    }


def _quantized(shares: NDArray[np.float32]) -> dict[str, str]:
    return packed(np.round(np.clip(shares, 0, 1) * np.iinfo(np.uint16).max).astype(np.int64))
