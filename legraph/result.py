"""What a run gives: outputs, timing, where everything came from, and the finished graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from legraph.branch import Output
from legraph.bundle import Bundle
from legraph.layout import start_after
from legraph.mask import ChunkMask, Int64Array
from legraph.reuse import ChunkSource


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        outputs: for each chunk that generated, in token order, what it generated.
        timing: seconds: `prefill_s` (until the first token was there), `decode_s` (from then on), `total_s`.
        tokens: counts: `prompt`, `reused` (of those, not computed), `generated`, `passes`.
        sources: where each chunk's keys and values came from, in token order; empty without a store.
        bundle: the finished graph, text and generated tokens, as a bundle that can be run again.
    """

    outputs: dict[str, Output]
    timing: dict[str, float]
    tokens: dict[str, int]
    sources: tuple[ChunkSource, ...]
    bundle: Bundle


def finished_bundle(
    bundle: Bundle, generated: Mapping[str, Sequence[int]], starts: Int64Array, finished: Collection[str]
) -> Bundle:
    """Text and generated tokens at the positions really used.

    Args:
        generated: token ids by chunk.
        starts: int64 [K], the first position of each chunk.
        finished: chunks that generate no more.
    """
    ids, positions = list[Int64Array](), list[Int64Array]()
    for chunk, name in enumerate(bundle.span_names):
        span, new = bundle.span(chunk), np.array(generated.get(name, ()), dtype=np.int64)
        ids.append(np.concatenate([bundle.input_ids[span], new]))
        text = bundle.position_ids[span]
        text = text + (int(starts[chunk]) - text[0])
        positions.append(np.concatenate([text, text[-1] + 1 + np.arange(len(new), dtype=np.int64)]))
    span_offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    mask = ChunkMask(span_offsets, bundle.parent_offsets, bundle.parent_indices)
    generate = {name: how for name, how in bundle.meta.generate.items() if name not in finished}
    meta = replace(bundle.meta, generate=generate)
    return Bundle(np.concatenate(ids), np.concatenate(positions), bundle.span_names, mask, meta)


def moved_by(bundle: Bundle, chunk: int, compiled_ends: Int64Array, ends: Int64Array) -> int:
    """How far a chunk's positions move because its ancestors generated something before it.

    Args:
        compiled_ends, ends: int64 [K], the position past the last one of each chunk, as compiled and as
            really used; of the chunk's parents they must be known.
    """
    meta, parents = bundle.meta, bundle.mask.parents(chunk)
    if meta.positions != "causal" or bundle.span_names[chunk] in meta.pinned or not len(parents):
        return 0
    compiled = start_after([int(end) for end in compiled_ends[parents]], "causal", 0)
    return start_after([int(end) for end in ends[parents]], "causal", 0) - compiled


def used_starts(bundle: Bundle, generated: Mapping[str, Sequence[int]]) -> Int64Array:
    """int64 [K], the first position of each chunk in a run that has generated these token ids."""
    offsets = bundle.span_offsets
    starts = bundle.position_ids[offsets[:-1]].copy()
    compiled_ends = bundle.position_ids[offsets[1:] - 1] + 1
    ends = compiled_ends.copy()
    for chunk, name in enumerate(bundle.span_names):
        moved = moved_by(bundle, chunk, compiled_ends, ends)
        starts[chunk] += moved
        ends[chunk] += moved + len(generated.get(name, ()))
    return starts
