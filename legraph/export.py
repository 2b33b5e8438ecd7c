"""The mask of a bundle in the formats that other attention libraries take. numpy only.

- "dense": `attention_mask`, True = may attend; torch's SDPA and everything else that takes a matrix.
- "flashmask": for each key the rows of queries that do not see it, one interval below the diagonal.
  FlashMask (Wang et al. 2024, arXiv 2410.01359), in PaddlePaddle `flashmask_attention`. Not every graph.
- "ffa": rectangles of queries by keys, full or causal. MagiAttention's flex-flash-attention.
- "cu-seqlens": a sequence for each chunk, with the keys it sees gathered side by side. FlashAttention's
  `flash_attn_varlen_func` and its kin.

    chunks: a | b | c (sees a, b)       flashmask       ffa                 cu-seqlens, queries / keys
        a \\ . .                          a: rows of b    a x a causal        a / a
        b . \\ .                          b: none         b x b causal        b / b
        c # # \\                                          c x abc causal      c / a b c

In all of them causal means aligned to the bottom right: the last query of a rectangle or sequence sees its
last key. `dense_from` reads each format by its definition; it is slow, and shares nothing with what writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from legraph import __version__
from legraph.errors import InputError, Problem, count, did_you_mean
from legraph.mask import BoolArray, ChunkMask, Int64Array
from legraph.seen import SeenIntervals
from legraph.wholefile import write_atomically

if TYPE_CHECKING:
    from legraph.bundle import Bundle

FORMATS = ("dense", "flashmask", "ffa", "cu-seqlens")
SUFFIX = ".npz"
# The kinds of rectangles in MagiAttention's numbering; it has two more that prompt graphs do not need.
FULL, CAUSAL = 0, 1
# Up to here a look at every pair costs a fraction of a second, and every export gets it.
MAX_CHECKED_TOKENS = 2048
_MAX_INT32 = np.iinfo(np.int32).max

Arrays = dict[str, NDArray[Any]]


def export_mask(mask: ChunkMask, format: str, names: Sequence[str] | None = None) -> Arrays:
    """The mask in one of `FORMATS`. O(chunks + edges + tokens) and what is written, but for "dense".

    Args:
        names: what errors call the chunks; without it, their number.

    Returns:
        dense: attention_mask bool [N, N].
        flashmask: startend_row_indices int32 [1, 1, N, C], for `causal=True`. Key k is masked in the rows
            from its first value on; if C is 2, until before its second one.
        ffa: q_ranges, k_ranges int32 [R, 2] and attn_type_map int32 [R] (0 full, 1 causal). No pair of
            tokens lies in two rectangles: flex-flash-attention would count it twice.
        cu-seqlens: cu_seqlens_q, cu_seqlens_k int32 [K + 1], key_indices int64 [keys], for `causal=True`,
            and max_seqlen_q, max_seqlen_k int64 [].

    Raises:
        InputError: no such format, or it cannot tell this mask.
    """
    _check_format(format)
    if format == "dense":
        return {"attention_mask": mask.dense()}
    if format == "flashmask":
        arrays = _flashmask(mask, names)
    else:
        arrays = _rectangles(mask) if format == "ffa" else _gathered(mask)
    if mask.num_tokens <= MAX_CHECKED_TOKENS and not np.array_equal(dense_from(format, arrays), mask.dense()):
        raise AssertionError(f"the {format} export is not the mask: a fault of legraph")
    return arrays


def save_export(bundle: Bundle, path: str | Path, format: str) -> None:
    """Writes a bundle's mask in one of `FORMATS` as `.npz`, with its `input_ids` and `position_ids`.

    The arrays are those of `export_mask`. `meta` is a JSON string with format, legraph_version, num_tokens
    and tokenizer. The file is written beside its final place and renamed; it loads without pickle.

    Raises:
        InputError: no such format, it cannot tell this mask, or the path does not end in `.npz`.
        BundleError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(Problem(f"{path}: exports are {SUFFIX} files", f"a name that ends in {SUFFIX}"))
    arrays: dict[str, Any] = {**export_mask(bundle.mask, format, bundle.span_names)}
    meta = {
        "format": format,
        "legraph_version": __version__,
        "num_tokens": len(bundle),
        "tokenizer": bundle.meta.tokenizer,
    }
    arrays |= {"input_ids": bundle.input_ids, "position_ids": bundle.position_ids}
    arrays["meta"] = np.array(json.dumps(meta, sort_keys=True))
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def _check_format(format: str) -> None:
    if format not in FORMATS:
        hint = did_you_mean(format, FORMATS)
        raise InputError(Problem(f"no export format {format!r}", f"one of {', '.join(FORMATS)}", hint))


# Writing.


def _flashmask(mask: ChunkMask, names: Sequence[str] | None) -> Arrays:
    """Below the diagonal, a key is seen by its own stretch of rows, hidden from some, and seen to the end."""
    seen_by, num_tokens = mask.seen_by(), mask.num_tokens
    num_stretches = np.diff(seen_by.offsets)
    is_hidden_once = num_stretches == 0
    # What is seen again after the hidden rows must be seen by all that follow.
    again = np.flatnonzero(num_stretches == 1)
    stretch = seen_by.offsets[again]
    reaches_end = seen_by.ends[stretch] == num_tokens
    is_hidden_once[again[reaches_end]] = True
    if not is_hidden_once.all():
        raise InputError(_too_many_runs(np.flatnonzero(~is_hidden_once), num_stretches + 1, names))
    columns = [seen_by.until]
    if len(again):
        hidden_until = np.full(mask.num_chunks, num_tokens, dtype=np.int64)
        hidden_until[again] = seen_by.starts[stretch]
        columns.append(hidden_until)
    by_chunk = np.stack(columns, axis=1).astype(np.int32)
    by_token = np.repeat(by_chunk, np.diff(mask.span_offsets), axis=0)
    return {"startend_row_indices": by_token[None, None]}


def _too_many_runs(chunks: Int64Array, num_runs: Int64Array, names: Sequence[str] | None) -> Problem:
    first = int(chunks[0])
    name = f"chunk {first}" if names is None else f"chunk {names[first]!r}"
    others = f", and {count(len(chunks) - 1, 'other chunk')} like it" if len(chunks) > 1 else ""
    return Problem(
        f"flashmask cannot tell who sees {name}: {num_runs[first]} separate runs of tokens{others}",
        "one run of tokens, or two of which the second ends with the last token",
        "another token order may do (--order locality); the format 'ffa' tells every graph",
    )


def _rectangles(mask: ChunkMask) -> Arrays:
    """Neighbours that see the same share their rectangles: a fully causal graph is one of them."""
    seen = SeenIntervals.of(mask).melted()
    owner, starts, ends, is_causal = _stretches(seen)
    queries = np.stack([seen.queries, seen.queries + seen.counts], axis=1)
    return {
        "q_ranges": queries[owner].astype(np.int32),
        "k_ranges": np.stack([starts, ends], axis=1).astype(np.int32),
        "attn_type_map": np.where(is_causal, CAUSAL, FULL).astype(np.int32),
    }


def _gathered(mask: ChunkMask) -> Arrays:
    seen = SeenIntervals.of(mask)
    num_keys = seen.num_keys()
    total = int(num_keys.sum())
    if total > _MAX_INT32:
        raise InputError(
            Problem(
                f"cu-seqlens cannot count the keys that chunks see: they are {total:,} in all",
                f"at most {_MAX_INT32:,}",
                "the format 'ffa' gathers no keys",
            )
        )
    _, starts, ends, _ = _stretches(seen)
    lengths = ends - starts
    # Each stretch counts up from its start: the place among all keys, less the place where it begins.
    begins = np.cumsum(lengths) - lengths
    return {
        "cu_seqlens_q": mask.span_offsets.astype(np.int32),
        "cu_seqlens_k": np.concatenate([[0], np.cumsum(num_keys)]).astype(np.int32),
        "key_indices": np.arange(total, dtype=np.int64) + np.repeat(starts - begins, lengths),
        "max_seqlen_q": np.array(seen.counts.max(), dtype=np.int64),
        "max_seqlen_k": np.array(num_keys.max(), dtype=np.int64),
    }


def _stretches(seen: SeenIntervals) -> tuple[Int64Array, Int64Array, Int64Array, BoolArray]:
    """Segment, start, end of each stretch of keys, and whether it is the causal one, the segment's last."""
    num_ranges = np.diff(seen.range_offsets)
    owner = np.repeat(np.arange(len(num_ranges)), num_ranges + 1)
    is_causal = np.ones(len(owner), dtype=np.bool_)
    is_causal[:-1] = owner[1:] != owner[:-1]
    starts, ends = np.empty_like(owner), np.empty_like(owner)
    starts[~is_causal], ends[~is_causal] = seen.range_starts, seen.range_ends
    starts[is_causal], ends[is_causal] = seen.causal_starts, seen.slots + seen.counts
    return owner, starts, ends, is_causal


# Reading.


def dense_from(format: str, arrays: Mapping[str, NDArray[Any]]) -> BoolArray:
    """The reference reading of an export: bool [N, N], True where the query (row) may attend to the key.

    Raises:
        InputError: no such format, or rectangles of "ffa" that overlap or are of an unknown kind.
    """
    _check_format(format)
    if format == "dense":
        return arrays["attention_mask"]
    if format == "flashmask":
        return _read_flashmask(arrays["startend_row_indices"])
    if format == "ffa":
        return _read_rectangles(arrays["q_ranges"], arrays["k_ranges"], arrays["attn_type_map"])
    return _read_gathered(arrays["cu_seqlens_q"], arrays["cu_seqlens_k"], arrays["key_indices"])


def _read_flashmask(startend_row_indices: NDArray[Any]) -> BoolArray:
    num_tokens = startend_row_indices.shape[2]
    mask = np.tri(num_tokens, dtype=np.bool_)
    for key in range(num_tokens):
        first, *until = startend_row_indices[0, 0, key]
        mask[first : until[0] if until else num_tokens, key] = False
    return mask


def _read_rectangles(
    q_ranges: NDArray[Any], k_ranges: NDArray[Any], attn_type_map: NDArray[Any]
) -> BoolArray:
    num_tokens = int(q_ranges.max())
    mask = np.zeros((num_tokens, num_tokens), dtype=np.bool_)
    for (q_start, q_end), (k_start, k_end), kind in zip(q_ranges, k_ranges, attn_type_map, strict=True):
        if kind not in (FULL, CAUSAL):
            raise InputError(Problem(f"a rectangle of kind {kind}", f"{FULL} (full) or {CAUSAL} (causal)"))
        for query in range(q_start, q_end):
            # Bottom right: one key less for each query that comes before the last one.
            last = k_end - (q_end - 1 - query) if kind == CAUSAL else k_end
            row = mask[query, k_start : max(k_start, last)]
            if row.any():
                raise InputError(f"two rectangles hold query {query}, and a key between {k_start} and {last}")
            row[:] = True
    return mask


def _read_gathered(
    cu_seqlens_q: NDArray[Any], cu_seqlens_k: NDArray[Any], key_indices: NDArray[Any]
) -> BoolArray:
    num_tokens = int(cu_seqlens_q[-1])
    mask = np.zeros((num_tokens, num_tokens), dtype=np.bool_)
    for sequence in range(len(cu_seqlens_q) - 1):
        queries = range(cu_seqlens_q[sequence], cu_seqlens_q[sequence + 1])
        keys = key_indices[cu_seqlens_k[sequence] : cu_seqlens_k[sequence + 1]]
        for i, query in enumerate(queries):
            mask[query, keys[: len(keys) - len(queries) + i + 1]] = True
    return mask
