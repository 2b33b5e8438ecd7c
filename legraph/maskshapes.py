"""The mask as shapes: triangles and rectangles. numpy only; knows no colours and no sheets.

Coordinates are tokens: token i reaches from i to i + 1, keys to the right (x), queries downwards (y).

    one triangle a chunk                a b c <- keys
    one rectangle an edge,            a \\
    where neighbours touch: one       b # \\
    rectangle for several edges       c # # \\
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from legraph.mask import ChunkMask, Int64Array

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class MaskShapes:
    """What is visible, as shapes that do not overlap and cover each visible pair once.

    Attributes:
        triangles: int64 [K, 2], (start, end) of each chunk: query q sees keys start..q.
        rectangles: int64 [R, 4], (q_start, q_end, k_start, k_end), ascending.
    """

    triangles: Int64Array
    rectangles: Int64Array


def mask_shapes(mask: ChunkMask) -> MaskShapes:
    """The shapes of a mask: one rectangle for as many edges as melt into one. O(edges log edges)."""
    triangles = np.stack([mask.span_offsets[:-1], mask.span_offsets[1:]], axis=1)
    return MaskShapes(triangles, melted(edge_rectangles(mask)))


def edge_rectangles(mask: ChunkMask) -> Int64Array:
    """int64 [E, 4], (q_start, q_end, k_start, k_end) of each edge: the child's span by the parent's."""
    starts, ends = mask.span_offsets[:-1], mask.span_offsets[1:]
    children, parents = mask.children_of_edges(), mask.parent_indices
    return np.stack([starts[children], ends[children], starts[parents], ends[parents]], axis=1)


def melted(rectangles: Int64Array) -> Int64Array:
    """Fewer rectangles over the same cells, for rectangles int64 [R, 4] that do not overlap. Ascending.

    Neighbours in a row that touch, with equal rows, become one; then those in a column, with equal columns.
    It is done the other way round as well, since a question that sees many documents melts along its row,
    and a head that many documents see along its column. The shorter list wins.
    """
    rows_first = _joined(_joined(rectangles, along=2), along=0)
    columns_first = _joined(_joined(rectangles, along=0), along=2)
    best = rows_first if len(rows_first) <= len(columns_first) else columns_first
    return best[np.lexsort(best.T[::-1])]


def _joined(rectangles: Int64Array, along: int) -> Int64Array:
    """Joins rectangles that touch along one direction (0 queries, 2 keys) and are equal in the other."""
    if not len(rectangles):
        return rectangles
    across = 2 - along
    order = np.lexsort([rectangles[:, along], rectangles[:, across + 1], rectangles[:, across]])
    ordered = rectangles[order]
    is_alike = (ordered[1:, across : across + 2] == ordered[:-1, across : across + 2]).all(axis=1)
    opens = np.ones(len(ordered), dtype=np.bool_)
    opens[1:] = ~(is_alike & (ordered[1:, along] == ordered[:-1, along + 1]))
    firsts = np.flatnonzero(opens)
    joined = ordered[firsts]
    joined[:, along + 1] = ordered[np.append(firsts[1:], len(ordered)) - 1, along + 1]
    return joined


def triangle_corners(triangles: Int64Array) -> Float64Array:
    """float64 [K, 5, 2], corners (k, q) of the triangles.

    The long side runs half a token right of the diagonal, so that the middle of every visible cell lies
    inside, that of every other outside.
    """
    a, b = triangles[:, 0].astype(np.float64), triangles[:, 1].astype(np.float64)
    return np.stack(
        [_pairs(a, a), _pairs(a + 0.5, a), _pairs(b, b - 0.5), _pairs(b, b), _pairs(a, b)], axis=1
    )


def rectangle_corners(rectangles: Int64Array | Float64Array) -> Float64Array:
    """float64 [R, 4, 2], corners (k, q) of rectangles (q_start, q_end, k_start, k_end)."""
    top, bottom, left, right = rectangles.astype(np.float64).T
    corners = [_pairs(left, top), _pairs(right, top), _pairs(right, bottom), _pairs(left, bottom)]
    return np.stack(corners, axis=1)


def _pairs(k: Float64Array, q: Float64Array) -> Float64Array:
    return np.stack([k, q], axis=-1)


def staircase(start: int, end: int) -> Float64Array:
    """float64 [2n + 2, 2], corners (k, q) of the triangle of n tokens, drawn cell by cell."""
    step = np.arange(start, end, dtype=np.float64)
    stairs = np.stack([_pairs(step + 1, step), _pairs(step + 1, step + 1)], axis=1).reshape(-1, 2)
    return np.concatenate([[(start, start)], stairs, [(start, end)]])


def joined_triangles(triangles: Int64Array, shortest: float) -> Int64Array:
    """int64 [T, 2]: of neighbours shorter than `shortest` tokens, as many become one as reach that length.

    What is that long by itself stays as it is. Tokens of a joined triangle need not see each other: for
    pictures in which `shortest` is less than a pixel.
    """
    is_long = triangles[:, 1] - triangles[:, 0] >= shortest
    joined = list[list[int]]()
    is_open = False
    for (start, end), stays in zip(triangles.tolist(), is_long.tolist(), strict=True):
        if is_open and not stays:
            joined[-1][1] = end
        else:
            joined.append([start, end])
        is_open = not stays and joined[-1][1] - joined[-1][0] < shortest
    return np.array(joined, dtype=np.int64)


def coverage(rectangles: Int64Array, num_tokens: int, size: int) -> Float64Array:
    """float64 [size, size]: which part of each cell of a `size` x `size` grid rectangles cover, 0 to 1.

    Rectangles that do not overlap, of any number: O(R + size squared). A rectangle is the difference of four
    quarter planes, so each one adds to a few cells; two running sums do the rest.
    """
    scale = size / num_tokens
    q, q_sign = _ends(rectangles[:, :2], scale, size)
    k, k_sign = _ends(rectangles[:, 2:], scale, size)
    grid = np.zeros((size + 2) * (size + 2))
    for at_q, part_q in q:
        for at_k, part_k in k:
            index = (at_q[:, :, None] * (size + 2) + at_k[:, None, :]).reshape(-1)
            value = (q_sign * part_q)[:, :, None] * (k_sign * part_k)[:, None, :]
            grid += np.bincount(index, value.reshape(-1), minlength=len(grid))
    summed = grid.reshape(size + 2, size + 2).cumsum(axis=0).cumsum(axis=1)[:size, :size]
    return np.clip(summed, 0.0, 1.0)


def _ends(
    spans: Int64Array, scale: float, size: int
) -> tuple[list[tuple[Int64Array, NDArray[Any]]], Float64Array]:
    """Where half lines start in a grid, as steps: part of a cell, and the rest of it one cell further on."""
    at = spans * scale
    cell = np.minimum(np.floor(at).astype(np.int64), size)
    inside = np.clip(at - cell, 0.0, 1.0)
    return [(cell, 1.0 - inside), (cell + 1, inside)], np.array([1.0, -1.0])
