"""What a run gives: outputs, timing, where everything came from, and the finished graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from legraph.branch import Branch, Output
from legraph.bundle import Bundle
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


def finished_bundle(bundle: Bundle, branches: Mapping[int, Branch], starts: Int64Array) -> Bundle:
    """Text and generated tokens at the positions really used; what has finished generates no more.

    Args:
        starts: int64 [K], the first position of each chunk.
    """
    ids, positions = list[Int64Array](), list[Int64Array]()
    for chunk in range(bundle.mask.num_chunks):
        branch, span = branches.get(chunk), bundle.span(chunk)
        generated = np.array(branch.ids if branch is not None else [], dtype=np.int64)
        ids.append(np.concatenate([bundle.input_ids[span], generated]))
        text = bundle.position_ids[span]
        text = text + (int(starts[chunk]) - text[0])
        positions.append(np.concatenate([text, text[-1] + 1 + np.arange(len(generated), dtype=np.int64)]))
    span_offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    mask = ChunkMask(span_offsets, bundle.parent_offsets, bundle.parent_indices)
    finished = {branch.name for branch in branches.values() if branch.finish is not None}
    generate = {name: how for name, how in bundle.meta.generate.items() if name not in finished}
    meta = replace(bundle.meta, generate=generate)
    return Bundle(np.concatenate(ids), np.concatenate(positions), bundle.span_names, mask, meta)
