"""How much attention each chunk paid to itself and to each of its parents, by layer and head, and its file.

Only visible pairs have a number, so a file takes O(layers x heads x (chunks + edges)), never chunks squared.
The file is a bundle with more keys, so that it can be shown and run like one. numpy only; `observe` measures
attention on a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legraph.bundle import Bundle
from legraph.bundlefile import load_with_more, save_bundle
from legraph.errors import BundleError
from legraph.mask import Int64Array

SUFFIX = ".npz"
_MASS, _SINKS, _TOKENS = "attention_mass", "attention_sinks", "attention_tokens"

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AttentionMass:
    """Attention of a model over a graph of K chunks and E edges, in L layers with H heads.

    Attributes:
        bundle: the graph that was run, with what was generated.
        mass: float32 [L, H, E + K]. A pair's number is the probability that the tokens of the query chunk
            give to all tokens of the key chunk together, as a mean over the query chunk's tokens. The
            pairs of a chunk stand together and sum to 1 (with attention sinks, to 1 - `sinks`); they are
            its parents, ascending, then the chunk itself.
        sinks: float32 [L, H, K], what went to the model's attention sinks; None if it has none.
        tokens: float32 [L, H, N, N], the attention of single tokens; None unless it was asked for.
    """

    bundle: Bundle
    mass: Float32Array
    sinks: Float32Array | None = None
    tokens: Float32Array | None = None

    @property
    def num_layers(self) -> int:
        return self.mass.shape[0]

    @property
    def num_heads(self) -> int:
        return self.mass.shape[1]

    @cached_property
    def pair_offsets(self) -> Int64Array:
        """int64 [K + 1]: the pairs of chunk i are `pair_offsets[i]:pair_offsets[i + 1]`."""
        return self.bundle.parent_offsets + np.arange(self.bundle.mask.num_chunks + 1)

    @cached_property
    def pair_queries(self) -> Int64Array:
        """int64 [E + K], the chunk that looks."""
        return np.repeat(np.arange(self.bundle.mask.num_chunks), np.diff(self.pair_offsets))

    @cached_property
    def pair_keys(self) -> Int64Array:
        """int64 [E + K], the chunk that is looked at."""
        keys = np.empty(len(self.pair_queries), dtype=np.int64)
        is_own = np.zeros(len(keys), dtype=np.bool_)
        is_own[self.pair_offsets[1:] - 1] = True
        keys[is_own] = np.arange(self.bundle.mask.num_chunks)
        keys[~is_own] = self.bundle.parent_indices
        return keys

    def of(self, layer: int | None = None, head: int | None = None) -> Float32Array:
        """float32 [E + K], the pairs of one layer and head; None is the mean over all of them.

        Raises:
            IndexError: there is no such layer or head.
        """
        return _mean_over(self.mass, layer, head)

    def sinks_of(self, layer: int | None = None, head: int | None = None) -> Float32Array | None:
        """float32 [K], what went to sinks, if the model has some. See `of`."""
        return None if self.sinks is None else _mean_over(self.sinks, layer, head)

    def matrix(self, layer: int | None = None, head: int | None = None) -> Float32Array:
        """float32 [K, K], queries by keys; 0 where nothing is visible. See `of`."""
        num_chunks = self.bundle.mask.num_chunks
        matrix = np.zeros((num_chunks, num_chunks), dtype=np.float32)
        matrix[self.pair_queries, self.pair_keys] = self.of(layer, head)
        return matrix

    def token_matrix(self, layer: int | None = None, head: int | None = None) -> Float32Array | None:
        """float32 [N, N], if tokens were asked for. See `of`."""
        return None if self.tokens is None else _mean_over(self.tokens, layer, head)

    def save(self, path: str | Path) -> None:
        """Writes a bundle (.npz) that has `attention_mass` too, and `attention_sinks` and `attention_tokens`
        where there are any.

        Raises:
            BundleError: another suffix, or the folder cannot be written to.
        """
        path = Path(path)
        if path.suffix != SUFFIX:
            raise BundleError(f"{path}: a file of attention has a name that ends in {SUFFIX}")
        arrays = {_MASS: self.mass, _SINKS: self.sinks, _TOKENS: self.tokens}
        more = {key: array for key, array in arrays.items() if array is not None}
        save_bundle(self.bundle, path, "auto", more)

    @staticmethod
    def load(path: str | Path) -> AttentionMass:
        """Reads what `save` wrote, and checks it.

        Raises:
            BundleError: damaged, not a bundle, a bundle without attention, or with that of another graph.
        """
        attention = AttentionMass.load_if_any(path)
        if attention is None:
            raise BundleError(
                f"{path}: holds no attention; legraph run GRAPH --attention OUT{SUFFIX} writes files that do"
            )
        return attention

    @staticmethod
    def load_if_any(path: str | Path) -> AttentionMass | None:
        """As `load`; None for a bundle without attention."""
        bundle, more = load_with_more(Path(path))
        if _MASS not in more:
            return None
        num_chunks = bundle.mask.num_chunks
        mass = _checked(path, _MASS, more[_MASS], None, (bundle.mask.num_edges + num_chunks,))
        planes = mass.shape[:2]
        sinks, tokens = (
            None if key not in more else _checked(path, key, more[key], planes, shape)
            for key, shape in ((_SINKS, (num_chunks,)), (_TOKENS, (len(bundle), len(bundle))))
        )
        return AttentionMass(bundle, mass, sinks, tokens)


def _checked(
    path: str | Path, key: str, array: Any, planes: tuple[int, ...] | None, shape: tuple[int, ...]
) -> Float32Array:
    is_array = isinstance(array, np.ndarray) and array.dtype == np.float32
    has_planes = is_array and array.ndim == 2 + len(shape) and planes in (None, array.shape[:2])
    if not has_planes or array.shape[2:] != shape or not array.size or not np.isfinite(array).all():
        raise BundleError(f"{path}: {key!r} does not belong to the graph in the same file")
    return array


def _mean_over(values: Float32Array, layer: int | None, head: int | None) -> Float32Array:
    for name, at, size in (("layer", layer, values.shape[0]), ("head", head, values.shape[1])):
        if at is not None and not 0 <= at < size:
            raise IndexError(f"no {name} {at}: there are {name}s 0..{size - 1}")
    layers = values if layer is None else values[layer : layer + 1]
    heads = layers if head is None else layers[:, head : head + 1]
    return heads.mean((0, 1), dtype=np.float32)
