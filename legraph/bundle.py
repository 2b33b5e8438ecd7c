"""`Bundle`: a compiled graph. Token ids, positions, spans and direct parents; everything else follows.

The mask is never part of it: `dense_mask()`, `visible()`, `mask_mod()` and `block_mask()` make the form that
is asked for from spans and parents. torch is imported by the methods that return torch objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from legraph.blocks import DEFAULT_BLOCK_SIZE
from legraph.errors import BundleError, did_you_mean
from legraph.graph import Generate
from legraph.mask import BoolArray, ChunkMask, Int64Array
from legraph.schema import PositionPolicy

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    from legraph.maskmod import MaskMod

MaskMode = Literal["auto", "dense", "compact"]
# The label of a token that does not count, as torch's cross_entropy and transformers have it.
NO_LABEL = -100


@dataclass(frozen=True, slots=True)
class BundleMeta:
    """Where a bundle comes from, and how its chunks generate.

    Attributes:
        tokenizer: path or hub id, and `tokenizer_fingerprint`, the SHA-256 of what turns text into ids.
        source_sha256: hash of the graph's content.
        positions: the policy the position ids were made by.
        pinned: names of the chunks whose `start` or `end` the user gave: a run must not move them.
        generate: settings of the chunks that the model continues, by name.
        seed_names: for chunks that came out of a union under another name, the one that random numbers are
            made from, so that sampling draws what it would draw in the chunk's own graph.
    """

    legraph_version: str
    tokenizer: str
    tokenizer_fingerprint: str
    source_sha256: str
    positions: PositionPolicy = "causal"
    pinned: frozenset[str] = frozenset()
    generate: Mapping[str, Generate] = field(default_factory=dict[str, Generate])
    seed_names: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, eq=False)
class Bundle:
    """A compiled prompt graph of N tokens in K chunks with E edges.

    Attributes:
        input_ids: int64 [N], token ids in token order (a topological order of the chunks).
        position_ids: int64 [N].
        span_names: K unique names in token order.
        mask: spans and direct parents; the attention structure.
        meta: provenance and generate settings.
        labels: int64 [N], None if nothing is to be learned: the token's own id where it counts, `NO_LABEL`
            elsewhere. A labelled token is predicted by the token before it, which is always of the same
            chunk; that is how Hugging Face models shift their labels.
    """

    input_ids: Int64Array
    position_ids: Int64Array
    span_names: tuple[str, ...]
    mask: ChunkMask
    meta: BundleMeta
    labels: Int64Array | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def span_offsets(self) -> Int64Array:
        """int64 [K + 1]: chunk i holds tokens `span_offsets[i]:span_offsets[i + 1]`."""
        return self.mask.span_offsets

    @property
    def parent_offsets(self) -> Int64Array:
        """int64 [K + 1], CSR row offsets into `parent_indices`."""
        return self.mask.parent_offsets

    @property
    def parent_indices(self) -> Int64Array:
        """int64 [E], direct parents, ascending within a row."""
        return self.mask.parent_indices

    def parents(self, chunk: int | str) -> Int64Array:
        """Indices of a chunk's direct parents, ascending. The chunk is an index or a name."""
        return self.mask.parents(self.index(chunk))

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Indices of the chunks that no other chunk sees."""
        is_leaf = np.ones(self.mask.num_chunks, dtype=np.bool_)
        is_leaf[self.parent_indices] = False
        return tuple(int(i) for i in np.flatnonzero(is_leaf))

    def index(self, chunk: int | str) -> int:
        """Index of a chunk in token order.

        Raises:
            KeyError: no chunk has this name.
            IndexError: no chunk has this index; negative ones do not count from the end.
        """
        if not isinstance(chunk, str):
            if not 0 <= chunk < self.mask.num_chunks:
                raise IndexError(f"no chunk {chunk}: the bundle has chunks 0..{self.mask.num_chunks - 1}")
            return chunk
        if chunk not in self._index_by_name:
            hint = did_you_mean(chunk, self.span_names)
            raise KeyError(f"no chunk named {chunk!r}" + (f": {hint}" if hint else ""))
        return self._index_by_name[chunk]

    @cached_property
    def _index_by_name(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.span_names)}

    def span(self, chunk: int | str) -> slice:
        """The tokens of a chunk, as a slice into `input_ids`."""
        return self.mask.span(self.index(chunk))

    def dense_mask(self) -> BoolArray:
        """The reference mask: bool [N, N], True where the query (row) may attend to the key (column)."""
        return self.mask.dense()

    def visible(self, q_index: ArrayLike, k_index: ArrayLike) -> Any:
        """Whether query tokens may attend to key tokens; a bool for two integers, else a bool array."""
        return self.mask.visible(q_index, k_index)

    def mask_mod(self, device: torch.device | str = "cpu") -> MaskMod:
        """`mask_mod(b, h, q, k)` for torch's `flex_attention`, with its tensors on `device`."""
        from legraph.maskmod import mask_mod

        return mask_mod(self.mask, device)

    def block_mask(
        self, device: torch.device | str = "cpu", block_size: int = DEFAULT_BLOCK_SIZE
    ) -> BlockMask:
        """The mask as a torch `BlockMask`, in closed form: O(active blocks + edges), never N x N."""
        from legraph.flexmask import block_mask

        return block_mask(self.mask, device, block_size)

    def model_inputs(
        self,
        device: torch.device | str = "cpu",
        attn: str = "flex",
        *,
        config: Any = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments for `model(**inputs)` of any Hugging Face causal LM.

        Args:
            attn: "flex" gives a `BlockMask`, "sdpa" a bool and "eager" an additive mask [1, 1, N, N]. The
                model must have the matching `attn_implementation`. For "flex" that is transformers' own
                "flex_attention", or legraph's "legraph_flex_attention", which is there once this method has
                been called with "flex". Take the latter on a CPU, where torch (2.13) fails to compile the
                former, or takes minutes, for the second length that it meets.
            config: `model.config`. Needed for models with a sliding window: the window is then combined
                with the mask, in positions, for each kind of layer. Without it no window is applied.
            dtype: dtype of the additive mask for "eager"; that of the model. Default float32.

        Returns:
            input_ids and position_ids, int64 [1, N], attention_mask, and labels, int64 [1, N], if the bundle
            has any: the model then returns the loss.

        Raises:
            ModelError: the model has layers that cannot honour a graph.
        """
        from legraph.attention import model_inputs

        arrays = self.input_ids, self.position_ids, self.labels
        return model_inputs(*arrays, self.mask, device, attn, config, dtype)

    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None = None,
        kernel: str = "auto",
    ) -> torch.Tensor:
        """Scaled dot-product attention over the graph, for model code of your own.

        The time follows the visible pairs, not N x N. What a kernel needs to know of the mask is made in the
        first call for a kind of tensors, and kept.

        Args:
            query: [B, H, N, D], one row for each token of the bundle.
            key, value: [B, J, N, D] and [B, J, N, E]; H is a multiple of J (grouped-query attention).
            scale: default 1 / sqrt(D).
            kernel: "intervals" (Triton; CUDA, no gradients), "causal", "chunks", "dense" (torch's SDPA),
                "flex" (torch's FlexAttention; no gradients on a CPU), all exact. "auto" takes the one that is
                expected to be fastest and has the gradients that are wanted.

        Returns:
            [B, H, N, E].

        Raises:
            ValueError: the shapes do not belong together, or no kernel has this name.
            ModelError: the kernel cannot do it here.
        """
        from legraph.graphattention import plan_attention, plan_key

        wanted = plan_key(query, key, value, kernel)
        if wanted not in self._plans:
            self._plans[wanted] = plan_attention(self.mask, query, key, value, kernel)
        return self._plans[wanted](query, key, value, scale)

    @cached_property
    def _plans(self) -> dict[Any, Any]:
        return {}

    def with_parents(self, chunk: int | str) -> Bundle:
        """The part of the bundle that one chunk sees: the chunk and its direct parents, nothing else.

        Positions stay as they are. Edges between the parents stay too.
        """
        at = self.index(chunk)
        return self.select([*(int(i) for i in self.parents(at)), at])

    def select(self, chunks: Sequence[int | str]) -> Bundle:
        """A bundle of some of the chunks, in token order, with the edges between them."""
        kept = sorted({self.index(chunk) for chunk in chunks})
        if not kept:
            raise BundleError("a bundle needs at least one chunk")
        place = {old: new for new, old in enumerate(kept)}
        rows = [[place[int(p)] for p in self.parents(i) if int(p) in place] for i in kept]
        spans = [self.mask.span(i) for i in kept]
        tokens = np.concatenate([np.arange(span.start, span.stop, dtype=np.int64) for span in spans])
        mask = ChunkMask(
            np.cumsum([0, *(span.stop - span.start for span in spans)], dtype=np.int64),
            np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
            np.array([parent for row in rows for parent in row], dtype=np.int64),
        )
        names = tuple(self.span_names[i] for i in kept)
        kept_names = frozenset(names)
        meta = replace(
            self.meta,
            pinned=self.meta.pinned & kept_names,
            generate={name: how for name, how in self.meta.generate.items() if name in kept_names},
            seed_names={name: own for name, own in self.meta.seed_names.items() if name in kept_names},
        )
        labels = None if self.labels is None else self.labels[tokens]
        return Bundle(self.input_ids[tokens], self.position_ids[tokens], names, mask, meta, labels)

    def save(self, path: str | Path, mask: MaskMode = "auto") -> None:
        """Writes `.npz` or `.pt`, by the path's suffix; the file appears whole or not at all.

        Args:
            mask: "dense" stores the N x N matrix too, "compact" does not, "auto" does up to 4,096 tokens.

        Raises:
            BundleError: another suffix, or the folder cannot be written to.
        """
        from legraph.bundlefile import save_bundle

        save_bundle(self, Path(path), mask)

    @staticmethod
    def load(path: str | Path) -> Bundle:
        """Reads a bundle and checks that it is one.

        Raises:
            BundleError: damaged, not a bundle, or written by a newer legraph.
        """
        from legraph.bundlefile import load_bundle

        return load_bundle(Path(path))
