"""Bundles on disk: `.npz` (numpy, compressed) and `.pt` (torch), the same keys, no pickle.

A file is written beside its final place and renamed, so a reader never sees half of one; equal bundles
give equal bytes. On load everything that the rest of legraph relies on is checked.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from legraph.bundle import NO_LABEL, Bundle, BundleMeta, MaskMode
from legraph.errors import BundleError
from legraph.graph import Generate
from legraph.mask import ChunkMask, Int64Array
from legraph.schema import NAME_PATTERN, GenerateSpec, PositionPolicy
from legraph.wholefile import write_atomically

BUNDLE_VERSION = 1
SUFFIXES = (".npz", ".pt")
# Up to here a dense mask (16 MiB before compression) is worth its convenience.
MAX_AUTO_DENSE_TOKENS = 4096
_INT_KEYS = ("input_ids", "position_ids", "span_offsets", "parent_offsets", "parent_indices")
_REQUIRED_KEYS = {*_INT_KEYS, "span_names", "meta"}
_KEYS = {*_REQUIRED_KEYS, "labels", "attention_mask"}
_DENSE_CHECK_ROWS = 1024
_IS_FOLDER = 0x10  # in the attributes of MS-DOS, which zip archives keep
_WRONG_META = "'meta' does not hold what a bundle of its version holds"


def save_bundle(
    bundle: Bundle, path: Path, mask: MaskMode, more: Mapping[str, NDArray[Any]] | None = None
) -> None:
    """
    Args:
        more: further arrays for the same file; whoever reads it as a bundle passes them over.
    """
    if path.suffix not in SUFFIXES:
        raise BundleError(f"{path}: a bundle's file name ends in {' or '.join(SUFFIXES)}")
    if mask not in get_args(MaskMode):
        raise BundleError(f"mask is {mask!r}; expected one of {', '.join(get_args(MaskMode))}")
    arrays: dict[str, Any] = {key: getattr(bundle, key) for key in _INT_KEYS}
    if bundle.labels is not None:
        arrays["labels"] = bundle.labels
    if mask == "dense" or (mask == "auto" and len(bundle) <= MAX_AUTO_DENSE_TOKENS):
        arrays["attention_mask"] = bundle.dense_mask()
    arrays |= more or {}
    names, meta = list(bundle.span_names), _meta_to_json(bundle.meta)
    if path.suffix == ".npz":
        arrays |= {"span_names": np.array(names, dtype=np.str_), "meta": np.array(meta)}
        write_atomically(path, lambda file: np.savez_compressed(file, **arrays), BundleError)
    else:
        import torch

        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        # Through memory: torch names the archive's folder after the file, and ours is a temporary one.
        buffer = io.BytesIO()
        torch.save(tensors | {"span_names": names, "meta": meta}, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()), BundleError)


def load_bundle(path: Path) -> Bundle:
    return load_with_more(path)[0]


def load_with_more(path: Path) -> tuple[Bundle, dict[str, Any]]:
    """A bundle, and everything that its file holds besides."""
    if not path.is_file():
        raise BundleError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    if path.suffix not in SUFFIXES:
        raise BundleError(f"{path}: a bundle's file name ends in {' or '.join(SUFFIXES)}")
    read = _read_npz if path.suffix == ".npz" else _read_pt
    try:
        content = read(path)
    except BundleError:
        raise
    except Exception:  # both formats raise a dozen types on damaged bytes
        raise BundleError(f"{path}: is damaged, or is not a {path.suffix} file") from None
    try:
        return _to_bundle(content), {key: value for key, value in content.items() if key not in _KEYS}
    except _InvalidError as error:
        raise BundleError(f"{path}: {error}") from None


class _InvalidError(Exception):
    """The content is not a valid bundle."""


def _check_zip(path: Path) -> None:
    """Both formats are zip archives, so every member has a checksum."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise BundleError(f"{path}: is damaged (checksum)")
        # A member marked as a folder has no content for torch, which then leaves its memory as it was.
        if any(info.external_attr & _IS_FOLDER for info in archive.infolist()):
            raise BundleError(f"{path}: is damaged (a folder in the place of data)")


def _read_npz(path: Path) -> dict[str, Any]:
    _check_zip(path)
    with np.load(path, allow_pickle=False) as file:
        content = {key: file[key] for key in file.files}
    names, meta = content.get("span_names"), content.get("meta")
    if names is not None and names.dtype.kind == "U":
        content["span_names"] = names.tolist()
    if meta is not None and meta.dtype.kind == "U" and meta.ndim == 0:
        content["meta"] = meta.item()
    return content


def _read_pt(path: Path) -> dict[str, Any]:
    import torch

    # torch itself does not look at the checksums.
    _check_zip(path)
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise BundleError(f"{path}: is not a bundle: it holds a {type(content).__name__}")
    items = cast("dict[str, Any]", content).items()
    return {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in items}


def _to_bundle(content: Mapping[str, Any]) -> Bundle:
    """A bundle from what a file holds, once everything the rest of legraph relies on has been checked."""
    missing = sorted(_REQUIRED_KEYS - set(content))
    if missing:
        raise _InvalidError(f"is not a legraph bundle: {', '.join(repr(key) for key in missing)} missing")
    meta = _meta_from_json(content["meta"])
    for key in _INT_KEYS:
        array = content[key]
        if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.ndim != 1:
            raise _InvalidError(f"{key!r} is not a one-dimensional int64 array")
    names = _checked_names(content["span_names"])
    mask = ChunkMask(content["span_offsets"], content["parent_offsets"], content["parent_indices"])
    _check_structure(mask, len(names), len(content["input_ids"]))
    position_ids = content["position_ids"]
    if len(position_ids) != mask.num_tokens:
        raise _InvalidError(f"{len(position_ids)} position ids for {mask.num_tokens} tokens")
    if position_ids.min() < 0 or content["input_ids"].min() < 0:
        raise _InvalidError("token ids and position ids cannot be negative")
    unknown = sorted({*meta.generate, *meta.pinned, *meta.seed_names} - set(names))
    if unknown:
        raise _InvalidError(f"'meta' speaks of a chunk {unknown[0]!r} that is not there")
    labels = content.get("labels")
    if labels is not None:
        _check_labels(labels, content["input_ids"], mask)
    if "attention_mask" in content:
        _check_dense(content["attention_mask"], mask)
    return Bundle(content["input_ids"], position_ids, names, mask, meta, labels)


def _checked_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise _InvalidError("'span_names' is not a list of strings")
    names = cast("list[Any]", names)
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
            raise _InvalidError(f"{name!r} cannot be a chunk's name")
    if len(set(names)) != len(names):
        raise _InvalidError("two chunks have the same name")
    return tuple(names)


def _check_structure(mask: ChunkMask, num_chunks: int, num_tokens: int) -> None:
    spans, rows, parents = mask.span_offsets, mask.parent_offsets, mask.parent_indices
    if num_chunks == 0:
        raise _InvalidError("has no chunks")
    # Neighbours are compared, not subtracted: the difference of two int64 may overflow.
    if (
        len(spans) != num_chunks + 1
        or spans[0] != 0
        or spans[-1] != num_tokens
        or (spans[1:] <= spans[:-1]).any()
    ):
        raise _InvalidError(f"'span_offsets' does not cut {num_tokens} tokens into {num_chunks} chunks")
    if (
        len(rows) != num_chunks + 1
        or rows[0] != 0
        or rows[-1] != len(parents)
        or (rows[1:] < rows[:-1]).any()
    ):
        raise _InvalidError("'parent_offsets' does not fit 'parent_indices'")
    children = np.repeat(np.arange(num_chunks), np.diff(rows))
    if (parents < 0).any() or (parents >= children).any():
        raise _InvalidError("'parent_indices' names a parent that does not come before its child")
    same_row = children[1:] == children[:-1]
    if (np.diff(parents)[same_row] < 1).any():
        raise _InvalidError("'parent_indices' is not ascending within a chunk")


def _check_labels(labels: Any, input_ids: Int64Array, mask: ChunkMask) -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.shape != input_ids.shape:
        raise _InvalidError(f"'labels' is not an int64 array of {len(input_ids)}")
    counts = labels != NO_LABEL
    if (labels[counts] != input_ids[counts]).any() or counts[mask.span_offsets[:-1]].any():
        raise _InvalidError("'labels' are not the ids of tokens that have another before them in their chunk")


def _check_dense(dense: Any, mask: ChunkMask) -> None:
    """The stored matrix must say what the structure says; compared a slice of rows at a time."""
    n = mask.num_tokens
    if not isinstance(dense, np.ndarray) or dense.dtype != np.bool_ or dense.shape != (n, n):
        raise _InvalidError(f"'attention_mask' is not a bool array of {n} x {n}")
    for at in range(0, n, _DENSE_CHECK_ROWS):
        rows = np.arange(at, min(n, at + _DENSE_CHECK_ROWS))
        if not np.array_equal(dense[rows], mask.visible(rows[:, None], np.arange(n)[None, :])):
            raise _InvalidError("'attention_mask' contradicts spans and parents")


def _meta_to_json(meta: BundleMeta) -> str:
    content = asdict(meta) | {"format_version": BUNDLE_VERSION, "pinned": sorted(meta.pinned)}
    if not meta.seed_names:
        # Only unions have any.
        del content["seed_names"]
    return json.dumps(content, sort_keys=True)


def _meta_from_json(text: Any) -> BundleMeta:
    try:
        content = json.loads(text)
        version = content.pop("format_version")
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        raise _InvalidError("is not a legraph bundle: 'meta' is not what legraph writes") from None
    if type(version) is not int or version < 1:
        raise _InvalidError("is not a legraph bundle: 'meta' is not what legraph writes")
    if version > BUNDLE_VERSION:
        raise _InvalidError(
            f"is a bundle of format version {version}; this legraph reads up to {BUNDLE_VERSION}: "
            "upgrade legraph"
        )
    try:
        generate = {
            name: Generate.from_spec(GenerateSpec.model_validate(settings))
            for name, settings in content.pop("generate").items()
        }
        pinned = content.pop("pinned")
        if not isinstance(pinned, list):
            raise TypeError("pinned")
        meta = BundleMeta(**content, pinned=frozenset(cast("list[Any]", pinned)), generate=generate)
        if not isinstance(meta.seed_names, dict):
            raise TypeError("seed_names")
    except (TypeError, ValueError, KeyError, AttributeError):
        raise _InvalidError(_WRONG_META) from None
    texts = (
        meta.legraph_version,
        meta.tokenizer,
        meta.tokenizer_fingerprint,
        meta.source_sha256,
        *meta.pinned,
        *meta.seed_names.values(),
    )
    if not all(isinstance(text, str) for text in texts):
        raise _InvalidError(_WRONG_META)
    if meta.positions not in get_args(PositionPolicy):
        raise _InvalidError(f"unknown position policy {meta.positions!r} in 'meta'")
    return meta
