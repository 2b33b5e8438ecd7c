"""`Collator`: rows of a pack, or bundles, as one batch of a fixed shape for a model that learns.

What it gives for B rows of L tokens, padding included:

- "flex": one sequence [1, B x L], the disjoint union of the rows, and its `BlockMask`. The mask says which
  tokens see each other, so the rows need no dimension of their own, and a `BlockMask` of rows that differ
  would need a mask function that looks its tables up by row. Blocks between rows are empty and cost nothing.
- "sdpa", "eager": [B, L] and a mask [B, 1, L, L]: as one sequence it would be B times as large.

The loss is the same number for both, and so are the labels that a Trainer counts to scale it
(`num_items_in_batch`): models predict token t from token t - 1, and the first token of a chunk, so of a row,
has no label. transformers' data parallelism in one process (`nn.DataParallel`, several GPUs without a
launcher) cuts batches along their first dimension and cannot cut a `BlockMask`: use torchrun or accelerate.

torch is imported when the first batch is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from legraph.bundle import NO_LABEL, Bundle
from legraph.errors import InputError, ModelError, Problem, RunError, count
from legraph.mask import ChunkMask, Int64Array
from legraph.maskunion import union_of_masks

if TYPE_CHECKING:
    import torch

CollatedAttention = Literal["flex", "sdpa", "eager"]

_ROW_KEYS = ("input_ids", "position_ids", "labels", "span_offsets", "parent_offsets", "parent_indices")


@dataclass(frozen=True, slots=True)
class DeferredMask:
    """A mask that is built where it is used: `mask.to(device)` gives the `BlockMask`, or one by layer type.

    A `BlockMask` itself can neither come out of a DataLoader's process (its mask function is a closure) nor
    be moved (`BlockMask.to` leaves the tensors in that function where they are). This can do both: it holds
    spans and parents, a few kilobytes. Accelerate, and through it the Trainer, calls `to` on every batch.
    """

    mask: ChunkMask
    position_ids: Int64Array
    config: Any

    def to(self, device: torch.device | str | int, **_: Any) -> Any:
        """The `attention_mask` argument of the model on that device. Options for copies mean nothing here."""
        import torch

        from legraph.attention import attention_mask

        place = torch.device(device)
        return attention_mask(self.mask, self.position_ids, place, "flex", self.config)


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches for training: give it to a DataLoader, a Hugging Face `Trainer` or Accelerate.

    Called with rows of a pack (`legraph pack`) or with labelled bundles, it returns `input_ids`,
    `position_ids`, `labels` and `attention_mask`, always of the same shape; see the module for which. Each
    row is filled up to `length` with a chunk of padding that nobody sees and that has no labels. With a
    Trainer, set `remove_unused_columns=False`.

    Attributes:
        length: tokens of a row, with padding.
        config: `model.config`. The mask honours a sliding window that the model has; None only for a model
            without one, because it would be ignored without a word.
        attn: what the model attends with (`legraph.model.use_attention`). "flex" has no gradients on a CPU.
        rows: fill batches of fewer rows, like the last one, up to so many; None leaves them as they are.
        pad_token_id: any id that the model has.
        device: with "flex", build the `BlockMask` on this device at once, for loops without Accelerate;
            not in a DataLoader's worker processes. By default the mask is a `DeferredMask`, which becomes a
            `BlockMask` with `to(device)`.
        dtype: of the additive mask of "eager": `model.dtype`; default float32.

    Raises:
        ModelError: the model has layers that take no mask over tokens.
        ValueError: a number or a name that cannot be.
    """

    length: int
    _: KW_ONLY
    config: Any = field(repr=False)
    attn: CollatedAttention = "flex"
    rows: int | None = None
    pad_token_id: int = 0
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or (self.rows is not None and self.rows < 1):
            raise ValueError(f"length is {self.length} and rows is {self.rows}; expected 1 or more")
        if self.attn not in get_args(CollatedAttention):
            allowed = ", ".join(get_args(CollatedAttention))
            raise ValueError(f"attn is {self.attn!r}; expected one of {allowed}")
        if self.config is not None:
            from legraph.attention import layer_windows

            layer_windows(self.config)

    def __call__(self, rows: Sequence[Mapping[str, Any] | Bundle]) -> dict[str, Any]:
        """One batch.

        Raises:
            InputError: no row, more rows than fit, a row that is too long or broken, bundles without labels.
            ModelError: the model attends with something else.
        """
        self._check_model()
        read = _read_rows(rows, self.length)
        if self.rows is not None:
            if len(read) > self.rows:
                raise InputError(f"{count(len(read), 'row')} for a batch of {self.rows}")
            read += [_Row.empty()] * (self.rows - len(read))
        padded = [row.padded(self.length, self.pad_token_id) for row in read]
        return self._as_one(padded) if self.attn == "flex" else self._side_by_side(padded)

    def _check_model(self) -> None:
        """A model that is given another implementation's mask fails late, or not at all."""
        from legraph.attention import IMPLEMENTATIONS

        used = getattr(self.config, "_attn_implementation", None)
        allowed = [IMPLEMENTATIONS[self.attn], *(["flex_attention"] if self.attn == "flex" else [])]
        if used is not None and used not in allowed:
            raise ModelError(
                f"the model attends with {used!r}, and the collator makes masks for {self.attn!r}",
                f"call legraph.model.use_attention(model, {self.attn!r}), or give the collator another attn",
            )

    def _as_one(self, rows: Sequence[_Row]) -> dict[str, Any]:
        import torch
        from torch.utils.data import get_worker_info

        whole = {key: np.concatenate([getattr(row, key) for row in rows]) for key in _ROW_KEYS[:3]}
        batch: dict[str, Any] = {key: torch.from_numpy(array)[None] for key, array in whole.items()}
        union = union_of_masks([row.mask for row in rows])
        mask = DeferredMask(union, whole["position_ids"], self.config)
        if self.device is None:
            return batch | {"attention_mask": mask}
        if get_worker_info() is not None:
            raise RunError(
                "a BlockMask cannot leave the process that it was built in",
                "leave out the collator's device, and call .to(device) on what it gives",
            )
        return {key: value.to(self.device) for key, value in (batch | {"attention_mask": mask}).items()}

    def _side_by_side(self, rows: Sequence[_Row]) -> dict[str, Any]:
        import torch

        from legraph.attention import attention_mask

        batch: dict[str, Any] = {
            key: torch.from_numpy(np.stack([getattr(row, key) for row in rows])) for key in _ROW_KEYS[:3]
        }
        masks = [
            attention_mask(row.mask, row.position_ids, "cpu", self.attn, self.config, self.dtype)
            for row in rows
        ]
        if isinstance(masks[0], dict):
            batch["attention_mask"] = {kind: torch.cat([mask[kind] for mask in masks]) for kind in masks[0]}
        else:
            batch["attention_mask"] = torch.cat(masks)
        return batch if self.device is None else _moved(batch, self.device)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, dict):
        return {key: _moved(each, device) for key, each in value.items()}
    return value.to(device)


@dataclass(frozen=True, slots=True)
class _Row:
    """Tokens of a row: int64 [N] each, and their mask."""

    input_ids: Int64Array
    position_ids: Int64Array
    labels: Int64Array
    mask: ChunkMask

    @classmethod
    def empty(cls) -> _Row:
        nothing, offsets = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
        return cls(nothing, nothing, nothing, ChunkMask(offsets, offsets, nothing))

    def padded(self, length: int, pad_token_id: int) -> _Row:
        """The same with a chunk of padding behind it, at position 0: any model knows that one."""
        room = length - len(self.input_ids)
        if not room:
            return self

        def filled(array: Int64Array, filler: int) -> Int64Array:
            return np.concatenate([array, np.full(room, filler, dtype=np.int64)])

        mask = ChunkMask(
            np.append(self.mask.span_offsets, length),
            np.append(self.mask.parent_offsets, self.mask.num_edges),
            self.mask.parent_indices,
        )
        return _Row(
            filled(self.input_ids, pad_token_id),
            filled(self.position_ids, 0),
            filled(self.labels, NO_LABEL),
            mask,
        )


def _read_rows(rows: Sequence[Mapping[str, Any] | Bundle], length: int) -> list[_Row]:
    if not rows:
        raise InputError("a batch needs at least one row")
    read, problems = list[_Row](), list[Problem]()
    for at, given in enumerate(rows):
        try:
            row = _of_bundle(given) if isinstance(given, Bundle) else _of_mapping(given)
            if len(row.input_ids) > length:
                raise InputError(f"{count(len(row.input_ids), 'token')} for {length}")
            read.append(row)
        except InputError as error:
            problems += [Problem(f"row {at}: {found.message}", hint=found.hint) for found in error.problems]
    if problems:
        raise InputError(problems)
    return read


def _of_bundle(bundle: Bundle) -> _Row:
    if bundle.labels is None:
        raise InputError(Problem("the bundle has no labels", hint="mark what is to be learned: loss: true"))
    return _Row(bundle.input_ids, bundle.position_ids, bundle.labels, bundle.mask)


def _of_mapping(given: Mapping[str, Any]) -> _Row:
    missing = [key for key in _ROW_KEYS if key not in given]
    if missing:
        hint = "with a Trainer, set remove_unused_columns=False"
        raise InputError(Problem(f"not a row of a pack: {', '.join(missing)} missing", hint=hint))
    try:
        ids, positions, labels, spans, offsets, parents = (_integers(given[key]) for key in _ROW_KEYS)
    except (TypeError, ValueError):
        raise InputError("an entry is not a list of integers") from None
    row = _Row(ids, positions, labels, ChunkMask(spans, offsets, parents))
    if not _is_whole(row):
        raise InputError("spans, parents and tokens do not belong together")
    starts = row.mask.span_offsets[:-1]
    if (row.labels[starts] != NO_LABEL).any():
        raise InputError("the first token of a chunk has a label, and no token before it to be told from")
    return row


def _integers(values: Any) -> Int64Array:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError("not a list")
    # An empty list has no type of its own.
    return np.zeros(0, dtype=np.int64) if array.size == 0 else array.astype(np.int64, casting="same_kind")


def _is_whole(row: _Row) -> bool:
    """Whether the arrays are of one graph: everything that the masks rely on."""
    spans, offsets, parents = row.mask.span_offsets, row.mask.parent_offsets, row.mask.parent_indices
    num_tokens = len(row.input_ids)
    if not num_tokens == len(row.position_ids) == len(row.labels) or not 2 <= len(spans) == len(offsets):
        return False
    if (spans[0], spans[-1], offsets[0], offsets[-1]) != (0, num_tokens, 0, len(parents)):
        return False
    if (np.diff(spans) < 1).any() or (np.diff(offsets) < 0).any():
        return False
    children = row.mask.children_of_edges()
    same_row = children[1:] == children[:-1]
    return bool(
        (parents >= 0).all() and (parents < children).all() and (np.diff(parents)[same_row] > 0).all()
    )
