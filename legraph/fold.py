"""Folds a large graph into few nodes for a picture of the DAG. numpy only; knows nothing of places.

Ways to fold, each coarser than the one before; the first with few enough nodes is taken:

- chunks with the same parents and children, and the same to generate, are "alike": 500 documents,
- links of a "chain", first without its ends, then whole. v is the next link after u if v sees u and, besides,
  only what u sees, and whoever else sees u sees v too: so a prompt under which all links stand does not
  break a chain, nor does a link that sees all links before it,
- a "layer": the same longest way from a root, first together with alike names, then all of a depth,
- at last, neighbouring depths are one layer.

    a -> b0 -> c                       a -> b[0..1] x2 -> c
    a -> b1 -> c

Nodes form a DAG whatever is folded. Of a chain: what a link sees outside of it, the first link sees too, and
what sees a link, sees the last one; so a way out of the chain and back into it would be a cycle of chunks.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from legraph.brackets import folded_label
from legraph.bundle import Bundle
from legraph.errors import InputError, Problem
from legraph.mask import BoolArray, Int64Array
from legraph.outline import alike_chunks

MAX_NODES = 60
# A run of fewer links is drawn link by link.
MIN_FOLDED_LINKS = 3

Kind = Literal["chunk", "alike", "chain", "layer"]
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Node:
    """What a box of the picture stands for.

    Attributes:
        chunks: ascending.
        label: the chunk's name, or what its chunks' names fold to, with their number.
        kind: "chunk" for one chunk, else what its chunks have in common.
        num_tokens: of all its chunks.
        generates: whether a model continues one of its chunks.
        max_new_tokens: the most that one of its chunks generates; 0 if none does.
    """

    chunks: tuple[int, ...]
    label: str
    kind: Kind
    num_tokens: int
    generates: bool
    max_new_tokens: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class FoldedDag:
    """Nodes and the edges between them.

    Attributes:
        nodes: in a topological order.
        edges: int64 [e, 2], parent node and child node, each pair once.
        num_edges: int64 [e], how many edges between chunks each of them stands for.
        node_of: int64 [K], the node of each chunk.
    """

    nodes: tuple[Node, ...]
    edges: Int64Array
    num_edges: Int64Array
    node_of: Int64Array


def fold(bundle: Bundle, most: int = MAX_NODES) -> FoldedDag:
    """At most `most` nodes that stand for all chunks of a graph. O((chunks + edges) log edges).

    Raises:
        InputError: `most` is less than 1.
    """
    if most < 1:
        raise InputError(Problem(f"a picture of at most {most} nodes", expected="1 or more"))
    folding = next(folding for folding in _foldings(bundle, most) if folding.num_nodes <= most)
    chunks_of = np.split(
        np.argsort(folding.node_of, kind="stable"), np.cumsum(np.bincount(folding.node_of))[:-1]
    )
    nodes = [
        _node(bundle, tuple(chunks.tolist()), kind)
        for chunks, kind in zip(chunks_of, folding.kinds, strict=True)
    ]
    return FoldedDag(tuple(nodes), folding.edges, folding.num_edges, folding.node_of)


@dataclass(frozen=True, eq=False, slots=True)
class _Folding:
    """Chunks put into nodes, whose numbers are a topological order. Fields as in `FoldedDag`."""

    node_of: Int64Array
    kinds: tuple[Kind, ...]
    edges: Int64Array
    num_edges: Int64Array

    @property
    def num_nodes(self) -> int:
        return len(self.kinds)


def _foldings(bundle: Bundle, most: int) -> Iterator[_Folding]:
    """Coarser and coarser; the last one has at most `most` nodes."""
    yield (folding := _unfolded(bundle))
    limits = [how.max_new_tokens if how else 0 for how in map(bundle.meta.generate.get, bundle.span_names)]
    yield (folding := _merged(folding, alike_chunks(bundle.mask, limits)[1], "alike"))
    alike = folding
    yield (folding := _merged(folding, _chains(folding, with_ends=False), "chain"))
    yield (folding := _merged(folding, _chains(folding, with_ends=True), "chain"))
    stems = [_DIGITS.sub("0", name) for name in bundle.span_names]
    for finer in (alike, folding):
        firsts = np.unique(finer.node_of, return_index=True)[1].tolist()
        looks = [(stems[chunk], limits[chunk] > 0) for chunk in firsts]
        yield _merged(finer, _layers(_depths(finer), looks), "layer")
    depths = _depths(folding)
    yield _merged(folding, depths, "layer")
    num_depths = int(depths.max()) + 1
    yield _merged(folding, depths * min(most, num_depths) // num_depths, "layer")


def _unfolded(bundle: Bundle) -> _Folding:
    mask = bundle.mask
    edges = np.stack([mask.parent_indices, mask.children_of_edges()], axis=1)
    ones = np.ones(len(edges), dtype=np.int64)
    kinds: tuple[Kind, ...] = ("chunk",) * mask.num_chunks
    return _Folding(np.arange(mask.num_chunks), kinds, edges, ones)


def _merged(folding: _Folding, merged_of: Int64Array, kind: Kind) -> _Folding:
    """Nodes of one number in `merged_of`, int64 [n], become one; the numbers must be a topological order."""
    firsts, sizes = np.unique(merged_of, return_index=True, return_counts=True)[1:]
    kinds: list[Kind] = [
        folding.kinds[first] if size == 1 else kind
        for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True)
    ]
    ends = merged_of[folding.edges]
    between = ends[:, 0] != ends[:, 1]
    keys, at = np.unique(ends[between] @ np.array([len(kinds), 1]), return_inverse=True)
    num_edges = np.bincount(at, folding.num_edges[between], len(keys)).astype(np.int64)
    edges = np.stack(np.divmod(keys, len(kinds)), axis=1)
    return _Folding(merged_of[folding.node_of], tuple(kinds), edges, num_edges)


def _chains(folding: _Folding, with_ends: bool) -> Int64Array:
    """int64 [n]: numbers of the nodes in which long chains are one, in the order of their first links."""
    next_link = _next_links(folding)
    is_next = np.zeros(folding.num_nodes, dtype=np.bool_)
    is_next[next_link[next_link >= 0]] = True
    first_of = np.arange(folding.num_nodes)
    for first in np.flatnonzero(~is_next & (next_link >= 0)).tolist():
        links = [first]
        while (link := int(next_link[links[-1]])) >= 0:
            links.append(link)
        folded = links if with_ends else links[1:-1]
        if len(folded) >= MIN_FOLDED_LINKS:
            first_of[folded] = folded[0]
    return np.unique(first_of, return_inverse=True)[1].astype(np.int64)


def _next_links(folding: _Folding) -> Int64Array:
    """int64 [n]: the node that is the next link of a chain after each node; -1 where there is none."""
    n, (parents, children) = folding.num_nodes, folding.edges.T
    # If there is a link before v, it is the last of v's parents; the one after u, the first of its children.
    last_parent, first_child = np.full(n, -1), np.full(n, n)
    np.maximum.at(last_parent, children, parents)
    np.minimum.at(first_child, parents, children)
    first_child[first_child == n] = -1
    keys = np.sort(parents * n + children)
    is_next = (last_parent >= 0) & (first_child[last_parent] == np.arange(n))
    # Besides u, v sees what u sees; besides v, who sees u sees v.
    before, after = last_parent[children], first_child[parents]
    is_next[children[(parents != before) & ~_among(parents * n + before, keys)]] = False
    is_next[after[(children != after) & ~_among(after * n + children, keys)]] = False
    found = np.full(n, -1)
    found[last_parent[is_next]] = np.flatnonzero(is_next)
    return found


def _among(wanted: Int64Array, keys: Int64Array) -> BoolArray:
    """bool, like `wanted`: whether each is one of the ascending keys, of which there is at least one."""
    at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    return keys[at] == wanted


def _depths(folding: _Folding) -> Int64Array:
    """int64 [n]: the number of edges on the longest way from a root."""
    order = np.argsort(folding.edges[:, 1], kind="stable")
    parents = folding.edges[order, 0]
    ends = np.cumsum(np.bincount(folding.edges[:, 1], minlength=folding.num_nodes))
    depths = np.zeros(folding.num_nodes, dtype=np.int64)
    start = 0
    for node, end in enumerate(ends.tolist()):
        if end > start:
            depths[node] = depths[parents[start:end]].max() + 1
        start = end
    return depths


def _layers(depths: Int64Array, looks: Sequence[Hashable]) -> Int64Array:
    """int64 [n]: numbers, by depth, of the nodes that have equal looks at the same depth."""
    layer_of = dict[object, int]()
    layers = np.zeros(len(depths), dtype=np.int64)
    for node in np.argsort(depths, kind="stable").tolist():
        key = (int(depths[node]), looks[node])
        layers[node] = layer_of.setdefault(key, len(layer_of))
    return layers


def _node(bundle: Bundle, chunks: tuple[int, ...], kind: Kind) -> Node:
    names = [bundle.span_names[chunk] for chunk in chunks]
    label = names[0] if len(names) == 1 else folded_label(names)
    at = np.array(chunks)
    num_tokens = int((bundle.span_offsets[at + 1] - bundle.span_offsets[at]).sum())
    limits = [how.max_new_tokens for how in map(bundle.meta.generate.get, names) if how]
    return Node(chunks, label, kind, num_tokens, bool(limits), max(limits, default=0))
