"""Several masks as one, end to end: no chunk of one sees a chunk of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from legraph.mask import ChunkMask, Int64Array


def union_of_masks(masks: Sequence[ChunkMask]) -> ChunkMask:
    """The disjoint union of at least one mask. O(chunks + edges)."""
    first_chunks = np.cumsum([0, *(mask.num_chunks for mask in masks)], dtype=np.int64)
    return ChunkMask(
        _end_to_end([mask.span_offsets for mask in masks]),
        _end_to_end([mask.parent_offsets for mask in masks]),
        np.concatenate([m.parent_indices + first for m, first in zip(masks, first_chunks, strict=False)]),
    )


def _end_to_end(offsets: Sequence[Int64Array]) -> Int64Array:
    """Offsets [K_i + 1] of each part as those of the whole."""
    sizes = np.concatenate([np.diff(part) for part in offsets])
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
