"""Which topological order to lay chunks out in, so that what a chunk sees lies together.

`cheapest_order` proposes a few orders, each good for a kind of graph that prompts are made of, and takes the
one with the least `estimated_cost`. The declared order is one of them, and wins ties.

    a c b d -> a b c d                  b sees a, d sees c. Ahead: each leaf directly behind what it sees, so
                                        that it sees one stretch (documents and questions, chains, fork and
                                        join, summaries of summaries).
    r x y xx xy yx yy                   A tree; chunks see all above. Along: children directly behind their
      -> r x xx xy y yx yy              last parent, so that a subtree is one stretch; the heaviest first, so
                                        that most chunks follow without a gap.
    3 1 4 2 x y -> 1 2 3 4 x y          x sees 1 2 3, y sees 2 3 4. In levels: parents sorted by children and
                                        children by parents (overlapping sets of documents, tables whose cells
                                        see a row and a column, layers).

Knows masks only, and nothing of graphs and tokens. numpy only. Cost O((chunks + edges) log edges), no
recursion. The same mask always gives the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from legraph.blocks import DEFAULT_BLOCK_SIZE, num_active_blocks
from legraph.mask import ChunkMask, Int64Array

# A stretch of keys has two ragged ends. Kernels walk it in tiles of about 64 keys, for about as many queries,
# and half a tile is wasted: an eighth of a block.
STRETCH_PAIRS = 32 * 64
# Chunks with so many times more children than others have (a system prompt, `bos`) tie together what has
# nothing else in common, so they say little about who belongs to whom.
_HUB_FACTOR = 4
# Two of them settle all but random graphs; more than four change nothing to speak of.
_NUM_SWEEPS = 4


def cheapest_order(declared: ChunkMask) -> tuple[Int64Array, ChunkMask]:
    """The best order found, never worse than the given one by `estimated_cost`.

    Args:
        declared: the chunks in the order to fall back on.

    Returns:
        int64 [K], the index in `declared` of the i-th chunk, and the mask in that order.
    """
    best, best_mask = np.arange(declared.num_chunks), declared
    if declared.num_edges == 0:
        return best, best_mask
    least = estimated_cost(declared)
    for order in _candidates(declared):
        mask = reordered(declared, order)
        cost = estimated_cost(mask)
        if cost < least:
            best, best_mask, least = order, mask, cost
    return best, best_mask


def estimated_cost(mask: ChunkMask) -> int:
    """What attention over the mask costs, in pairs of a query and a key.

    Each active block of 128 x 128 costs all its pairs, and each stretch of keys that does not end at the
    chunk itself (`ChunkMask.intervals`) `STRETCH_PAIRS` more. So parents that become neighbours pay off
    within a block too, and eight gaps closed are worth a block.
    """
    stretches = len(mask.intervals().starts)
    return num_active_blocks(mask) * DEFAULT_BLOCK_SIZE**2 + stretches * STRETCH_PAIRS


def reordered(mask: ChunkMask, order: Int64Array) -> ChunkMask:
    """The same chunks in another topological order. `order`: int64 [K], indices in `mask`."""
    num_parents = np.diff(mask.parent_offsets)
    return arranged(order, np.diff(mask.span_offsets), num_parents, mask.parent_indices)


def arranged(
    order: Int64Array, lengths: Int64Array, num_parents: Int64Array, parents: Int64Array
) -> ChunkMask:
    """The mask of chunks in a topological order.

    Args:
        order: int64 [K], index of the i-th chunk.
        lengths, num_parents: int64 [K], tokens and direct parents of each chunk, by its index.
        parents: int64 [E], indices of all chunks' parents, one chunk after the other.
    """
    num_chunks = len(order)
    place = _inverse(order)
    edges = np.repeat(place, num_parents) * num_chunks + place[parents]
    edges.sort()
    return ChunkMask(_offsets(lengths[order]), _offsets(num_parents[order]), edges % num_chunks)


@dataclass(frozen=True, slots=True)
class _Links:
    """The edges that decide which orders are topological; see `_links`.

    Attributes:
        child, parent: int64 [E'], both ends of each edge, sorted by child.
        level: int64 [K], edges on the longest way from a root.
        weight: int64 [K], tokens of a chunk and of those whose last parents lead back to it: of its subtree.
        leaves: int64 [L], chunks without children, ascending.
    """

    child: Int64Array
    parent: Int64Array
    level: Int64Array
    weight: Int64Array
    leaves: Int64Array

    @property
    def num_chunks(self) -> int:
        return len(self.level)

    @property
    def num_children(self) -> Int64Array:
        """int64 [K]"""
        return np.bincount(self.parent, minlength=self.num_chunks)

    def parents(self, rank: Int64Array) -> list[list[int]]:
        """The parents of each chunk, ascending by `rank` (int64 [K], a permutation)."""
        return _rows(self.child, self.parent, rank)

    def children(self, rank: Int64Array) -> list[list[int]]:
        return _rows(self.parent, self.child, rank)


def _candidates(mask: ChunkMask) -> Iterator[Int64Array]:
    """Topological orders, as indices in `mask`."""
    links = _links(mask)
    declared = np.arange(mask.num_chunks)
    # What many chunks see comes first, so that it does not stand among the parents of one of them.
    leaves, parents = links.leaves.tolist(), links.parents(_rank(-links.num_children))
    nobody: list[list[int]] = [[]] * mask.num_chunks
    yield _walk(leaves, parents, nobody)
    heaviest, lightest = (_rank(sign * links.weight) for sign in (-1, 1))
    yield _walk(leaves, parents, links.children(heaviest))
    # Siblings without children stand directly at their parent, and the long subtrees behind them.
    yield _walk(declared.tolist(), parents, links.children(lightest))
    neighbours = _breadth_first_rank(links)
    by_neighbours = links.leaves[np.argsort(neighbours[links.leaves])].tolist()
    yield _walk(by_neighbours, links.parents(neighbours), links.children(neighbours))
    for rank in (neighbours, _swept(links, neighbours)):
        yield np.lexsort((rank, links.level))


def _links(mask: ChunkMask) -> _Links:
    """All edges but those to a chunk that the last parent sees as well.

    What is left out follows from the rest: a tree in which chunks see all their ancestors becomes a plain
    tree, and a long conversation a chain.
    """
    num_chunks, parent = mask.num_chunks, mask.parent_indices
    child = mask.children_of_edges()
    last = np.full(num_chunks, -1)
    has_parent = np.diff(mask.parent_offsets) > 0
    last[has_parent] = parent[mask.parent_offsets[1:][has_parent] - 1]
    edges = child * num_chunks + parent
    wanted = last[child] * num_chunks + parent
    is_implied = edges[np.minimum(np.searchsorted(edges, wanted), len(edges) - 1)] == wanted
    child, parent = child[~is_implied], parent[~is_implied]
    level = [0] * num_chunks
    for i, row in enumerate(_rows(child, parent, np.arange(num_chunks))):
        if row:
            level[i] = 1 + max([level[at] for at in row])
    weight = np.diff(mask.span_offsets).tolist()
    for i, at in zip(range(num_chunks - 1, -1, -1), last[::-1].tolist(), strict=True):
        if at >= 0:
            weight[at] += weight[i]
    leaves = np.flatnonzero(np.bincount(parent, minlength=num_chunks) == 0)
    return _Links(child, parent, np.array(level), np.array(weight), leaves)


def _walk(
    targets: Sequence[int], parents: Sequence[Sequence[int]], children: Sequence[Sequence[int]]
) -> Int64Array:
    """Places each target directly behind those of its ancestors that have no place yet, depth first.

    Each chunk takes along those of its `children` that have all their parents, depth first too.
    """
    order, is_placed = list[int](), [False] * len(parents)
    num_waiting = [len(row) for row in parents]
    untried = [iter(row) for row in parents]
    for target in targets:
        path = [target]
        while path:
            i = path[-1]
            parent = None if is_placed[i] else next((at for at in untried[i] if not is_placed[at]), None)
            if parent is not None:
                path.append(parent)
                continue
            path.pop()
            ready = [] if is_placed[i] else [i]
            while ready:
                i = ready.pop()
                is_placed[i] = True
                order.append(i)
                for child in reversed(children[i]):
                    num_waiting[child] -= 1
                    if num_waiting[child] == 0:
                        ready.append(child)
    return np.array(order, dtype=np.int64)


def _breadth_first_rank(links: _Links) -> Int64Array:
    """Ranks by a walk from neighbour to neighbour, along edges both ways: int64 [K].

    So documents that lie together in some question are ranked together, and questions with common documents.
    As Cuthill and McKee (1969) order matrices, starting at the far end of a first walk.
    """
    num_children = links.num_children
    usual = np.median(num_children[num_children > 0])
    kept = num_children[links.parent] <= _HUB_FACTOR * usual
    ends = links.child[kept], links.parent[kept]
    declared = np.arange(links.num_chunks)
    neighbours = _rows(np.concatenate(ends), np.concatenate(ends[::-1]), declared)
    parts = _breadth_first(declared.tolist(), neighbours)
    parts = _breadth_first([part[-1] for part in parts], neighbours)
    return _inverse(np.array([i for part in parts for i in part]))


def _breadth_first(starts: Iterable[int], neighbours: Sequence[Sequence[int]]) -> list[list[int]]:
    """What each start reaches that no start before it has reached, nearest first."""
    parts, is_reached = list[list[int]](), [False] * len(neighbours)
    for start in starts:
        if is_reached[start]:
            continue
        is_reached[start] = True
        part = [start]
        for i in part:
            for other in neighbours[i]:
                if not is_reached[other]:
                    is_reached[other] = True
                    part.append(other)
        parts.append(part)
    return parts


def _swept(links: _Links, rank: Int64Array) -> Int64Array:
    """A rank by level, sorted by turns after children and after parents: int64 [K].

    As Sugiyama, Tagawa and Toda (1981) draw layers, but sorted by the first neighbour, then by the mean one:
    chunks with the same neighbours stand together, overlapping sets of neighbours become stretches.
    """
    rank = _rank(rank, links.level)
    for sweep in range(_NUM_SWEEPS):
        own, other = (links.child, links.parent) if sweep % 2 else (links.parent, links.child)
        first = np.full(links.num_chunks, links.num_chunks)
        np.minimum.at(first, own, rank[other])
        total = np.bincount(own, weights=rank[other], minlength=links.num_chunks)
        count = np.bincount(own, minlength=links.num_chunks)
        mean = np.where(count == 0, rank, total / np.maximum(count, 1))
        rank = _rank(rank, mean, np.where(count == 0, rank, first), links.level)
    return rank


def _rows(owner: Int64Array, member: Int64Array, rank: Int64Array) -> list[list[int]]:
    """For each chunk the members that it owns, ascending by `rank` (int64 [K], a permutation)."""
    num_chunks = len(rank)
    keys = np.sort(owner * num_chunks + rank[member])
    members = _inverse(rank)[keys % num_chunks].tolist()
    offsets = _offsets(np.bincount(owner, minlength=num_chunks)).tolist()
    return [members[first:end] for first, end in pairwise(offsets)]


def _rank(*keys: Int64Array) -> Int64Array:
    """Rank of each chunk by the last key, ties by those before it and at last by its index: int64 [K]."""
    return _inverse(np.lexsort(keys))


def _inverse(order: Int64Array) -> Int64Array:
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


def _offsets(sizes: Int64Array) -> Int64Array:
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets
