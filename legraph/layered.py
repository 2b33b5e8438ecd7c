"""Places boxes of a DAG in layers, children below their parents, and routes lines between the boxes.

The method of Sugiyama, Tagawa and Toda (1981): layers, then an order within layers that leaves few crossings,
then places. numpy only, and the same on every machine. With three things of its own:

- A line that passes layers has a place in each of them, so that it never runs through a box. All lines of one
  parent share those places: a parent has a trunk, from which its children branch off. A graph in which
  everybody sees everybody before them has as many trunks as nodes, not as many as edges.
- A layer that is too wide continues in the next row.
- Places minimise the sum of squared sideways steps of all lines, trunks counting more. A layer between two
  fixed ones is a weighted isotonic regression, solved by pooling; layer by layer, down and up, that leads to
  the minimum of the whole, since no two layers share a constraint.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np

from legraph.mask import Int64Array
from legraph.routes import Float64Array, Outline, Rows, route

# Points between two boxes of a row, between a line and its neighbour, and between rows.
BOX_GAP = 20.0
LINE_GAP = 9.0
ROW_GAP = 40.0
MARGIN = 16.0
# Boxes of one layer that are wider than this together go on in another row.
MAX_ROW_WIDTH = 900.0
# Lines are straightened in the ratio of Gansner et al. (1993): box to box, box to trunk, within a trunk.
_WEIGHTS = (1.0, 2.0, 8.0)
_ORDER_SWEEPS, _SWEEPS_IN_VAIN, _SWAP_ROUNDS = 16, 4, 4
_PLACE_SWEEPS, _STILL, _INERTIA = 80, 0.05, 1e-3
# Rows are further apart where lines go far sideways: so much of the way, and at most so many points.
_GAP_PER_WAY, _MAX_EXTRA_GAP = 0.1, 50.0


def lay_out_layers(
    sizes: Float64Array, edges: Int64Array, outline: Outline = "box"
) -> tuple[Float64Array, tuple[Float64Array, ...]]:
    """Boxes and curves of a DAG, as `dagshape.DagShape` has them, from `MARGIN` to the right and downwards.

    Args:
        sizes: float64 [n, 2], width and height of each node.
        edges: int64 [e, 2], parent and child; parents have the smaller number.
        outline: what lines end at: boxes, or circles in them.
    """
    rows = _make_rows(sizes, edges)
    _order(rows, len(sizes))
    num_items = len(rows.row_of)
    all_sizes = np.zeros((num_items, 2))
    all_sizes[: len(sizes)] = sizes
    x = _columns(rows, all_sizes, len(sizes))
    left = (x - all_sizes[:, 0] / 2).min(initial=0.0)
    x += MARGIN - left
    tops, bottoms = _row_ends(rows, all_sizes, x)
    row_of = np.array(rows.row_of[: len(sizes)], dtype=np.int64)
    middles = (tops + bottoms)[row_of] / 2
    boxes = np.column_stack([x[: len(sizes)], middles, sizes])
    return boxes, route(rows, boxes, edges, x, (tops, bottoms), outline)


def _make_rows(sizes: Float64Array, edges: Int64Array) -> Rows:
    row_of = _rows_of_nodes(sizes, edges)
    n = len(row_of)
    rows: list[list[int]] = [[] for _ in range(max(row_of) + 1)]
    for node, row in enumerate(row_of):
        rows[row].append(node)
    children: list[list[int]] = [[] for _ in range(n)]
    for parent, child in edges.tolist():
        children[parent].append(child)
    made = Rows(rows, row_of, [{} for _ in range(n)])
    lines = set[tuple[int, int]]()
    for parent, seen_by in enumerate(children):
        trunk = made.trunks[parent]
        last, at = max((row_of[child] for child in seen_by), default=0), parent
        for row in range(row_of[parent] + 1, last):
            item = len(row_of)
            row_of.append(row)
            rows[row].append(item)
            trunk[row] = item
            lines.add((at, item))
            at = item
        lines |= {(trunk.get(row_of[child] - 1, parent), child) for child in seen_by}
    made.above.extend([] for _ in row_of)
    made.below.extend([] for _ in row_of)
    for upper, lower in sorted(lines):
        made.below[upper].append(lower)
        made.above[lower].append(upper)
    return made


def _rows_of_nodes(sizes: Float64Array, edges: Int64Array) -> list[int]:
    """The row of each node: its longest way from a root in layers, roots just above their first children."""
    n = len(sizes)
    parents: list[list[int]] = [[] for _ in range(n)]
    for parent, child in edges.tolist():
        parents[child].append(parent)
    layer = [0] * n
    highest_child = [n] * n
    for node in range(n):
        layer[node] = max((layer[parent] + 1 for parent in parents[node]), default=0)
        for parent in parents[node]:
            highest_child[parent] = min(highest_child[parent], layer[node])
    for node in range(n):
        if not parents[node] and highest_child[node] < n:
            layer[node] = highest_child[node] - 1
    row_of = [0] * n
    first_row = 0
    for here in range(max(layer) + 1):
        nodes = [node for node in range(n) if layer[node] == here]
        width = float(sizes[nodes, 0].sum()) + BOX_GAP * (len(nodes) - 1)
        num_rows = min(max(1, int(np.ceil(width / MAX_ROW_WIDTH))), len(nodes))
        for at, node in enumerate(nodes):
            row_of[node] = first_row + at * num_rows // len(nodes)
        first_row += num_rows
    return row_of


def _order(rows: Rows, num_nodes: int) -> None:
    """Orders each row so that few lines cross: by barycenters of neighbours, then by swaps of neighbours."""
    for row in range(1, len(rows.rows)):
        _first_order(rows, row, num_nodes)
    best, least = [list(row) for row in rows.rows], _num_crossings(rows)
    in_vain = 0
    for sweep in range(_ORDER_SWEEPS):
        if least == 0 or in_vain == _SWEEPS_IN_VAIN:
            break
        is_down = sweep % 2 == 0
        order = range(1, len(rows.rows)) if is_down else range(len(rows.rows) - 2, -1, -1)
        for row in order:
            _sort_row(rows.rows, row, rows.above if is_down else rows.below, row - 1 if is_down else row + 1)
        _swap_neighbours(rows)
        in_vain += 1
        if (crossings := _num_crossings(rows)) < least:
            best, least, in_vain = [list(row) for row in rows.rows], crossings, 0
    rows.rows[:] = best


def _first_order(rows: Rows, row: int, num_nodes: int) -> None:
    """Items below what they hang on, and a trunk amid its branches, so that it goes straight down."""
    place = {item: float(at) for at, item in enumerate(rows.rows[row - 1])}
    hung = {item: [place[other] for other in rows.above[item]] for item in rows.rows[row]}
    means = {item: sum(at) / len(at) if at else len(place) for item, at in hung.items()}
    ordered = list[int]()
    for _, alike in groupby(sorted(rows.rows[row], key=means.__getitem__), means.__getitem__):
        items = list(alike)
        nodes = [item for item in items if item < num_nodes]
        middle = len(nodes) // 2
        ordered += [*nodes[:middle], *(item for item in items if item >= num_nodes), *nodes[middle:]]
    rows.rows[row] = ordered


def _sort_row(rows: list[list[int]], row: int, lines: list[list[int]], fixed: int) -> None:
    """Sorts a row by the mean place of what its items lead to; items that lead nowhere keep their places."""
    place = {item: at for at, item in enumerate(rows[fixed])}
    items = rows[row]
    led = [item for item in items if lines[item]]
    means = {item: sum(place[other] for other in lines[item]) / len(lines[item]) for item in led}
    in_order = iter(sorted(led, key=means.__getitem__))
    rows[row] = [next(in_order) if lines[item] else item for item in items]


def _swap_neighbours(rows: Rows) -> None:
    """Swaps neighbours in a row as long as that saves crossings."""
    for _ in range(_SWAP_ROUNDS):
        saved = 0
        for row, items in enumerate(rows.rows):
            places = [
                (lines, {item: at for at, item in enumerate(rows.rows[other])})
                for lines, other in ((rows.above, row - 1), (rows.below, row + 1))
                if 0 <= other < len(rows.rows)
            ]
            ends = {
                item: [sorted(place[other] for other in lines[item]) for lines, place in places]
                for item in items
            }
            for at in range(len(items) - 1):
                left, right = ends[items[at]], ends[items[at + 1]]
                now, swapped = _pair_crossings(left, right), _pair_crossings(right, left)
                if swapped < now:
                    items[at], items[at + 1] = items[at + 1], items[at]
                    saved += now - swapped
        if not saved:
            break


def _pair_crossings(left: Sequence[list[int]], right: Sequence[list[int]]) -> int:
    """Crossings between the lines of two neighbours; places of the other ends, ascending, on either side."""
    crossings = 0
    for one, other in zip(left, right, strict=True):
        at = 0
        for end in one:
            while at < len(other) and other[at] < end:
                at += 1
            crossings += at
    return crossings


def _num_crossings(rows: Rows) -> int:
    total = 0
    for row, items in enumerate(rows.rows[:-1]):
        place = {item: at for at, item in enumerate(rows.rows[row + 1])}
        seen = list[int]()
        for item in items:
            ends = [place[other] for other in rows.below[item]]
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _columns(rows: Rows, sizes: Float64Array, num_nodes: int) -> Float64Array:
    """float64 [items]: the middle of each item, sideways."""
    x = np.zeros(len(rows.row_of))
    steps = [_steps(items, sizes, num_nodes) for items in rows.rows]
    for items, offsets in zip(rows.rows, steps, strict=True):
        x[items] = offsets - offsets[-1] / 2
    both = [_lines(items, [rows.above, rows.below], num_nodes) for items in rows.rows]
    downwards = range(len(rows.rows))
    for sweep in range(_PLACE_SWEEPS):
        before = x.copy()
        for row in downwards if sweep % 2 == 0 else reversed(downwards):
            _place_row(x, rows.rows[row], both[row], steps[row])
        if np.abs(x - before).max(initial=0.0) < _STILL:
            break
    # The least sum leaves a box between its children and its parents: at last, it goes amid its children.
    children = [[child for child in below if child < num_nodes] for below in rows.below[:num_nodes]]
    children += [[] for _ in rows.below[num_nodes:]]
    for items, offsets in zip(reversed(rows.rows), reversed(steps), strict=True):
        _place_row(x, items, _lines(items, [children], num_nodes), offsets)
    return x


def _place_row(
    x: Float64Array,
    items: Sequence[int],
    lines: tuple[Int64Array, Int64Array, Float64Array],
    steps: Float64Array,
) -> None:
    owners, others, weights = lines
    # What leads nowhere stays about where it is.
    total = np.bincount(owners, weights, len(items)) + _INERTIA
    pull = np.bincount(owners, weights * x[others], len(items)) + _INERTIA * x[items]
    x[items] = _apart((pull / total).tolist(), total.tolist(), steps)


def _lines(
    items: Sequence[int], ways: Sequence[list[list[int]]], num_nodes: int
) -> tuple[Int64Array, Int64Array, Float64Array]:
    """Of each line of a row: the place of its end in the row, the item at its other end, its weight."""
    found = [
        (at, other, _WEIGHTS[(item >= num_nodes) + (other >= num_nodes)])
        for at, item in enumerate(items)
        for way in ways
        for other in way[item]
    ]
    owners, others, weights = zip(*found, strict=True) if found else ((), (), ())
    return (
        np.array(owners, dtype=np.int64),
        np.array(others, dtype=np.int64),
        np.array(weights, dtype=np.float64),
    )


def _steps(items: Sequence[int], sizes: Float64Array, num_nodes: int) -> Float64Array:
    """float64 [len(items)]: how far from the first item each one is if all stand as close as they may."""
    steps = [0.0]
    for left, right in pairwise(items):
        gap = BOX_GAP if left < num_nodes and right < num_nodes else LINE_GAP
        steps.append(steps[-1] + float(sizes[left, 0] + sizes[right, 0]) / 2 + gap)
    return np.array(steps)


def _apart(wanted: Sequence[float], weights: Sequence[float], steps: Float64Array) -> Float64Array:
    """The places nearest to the wanted ones, in weighted squares, that are at least `steps` apart."""
    pooled = list[tuple[float, float, int]]()
    for place, weight, step in zip(wanted, weights, steps.tolist(), strict=True):
        mean, heavy, number = place - step, weight, 1
        while pooled and pooled[-1][0] > mean:
            before, other, many = pooled.pop()
            mean = (before * other + mean * heavy) / (other + heavy)
            heavy, number = other + heavy, number + many
        pooled.append((mean, heavy, number))
    return np.repeat([mean for mean, _, _ in pooled], [number for _, _, number in pooled]) + steps


def _row_ends(rows: Rows, sizes: Float64Array, x: Float64Array) -> tuple[Float64Array, Float64Array]:
    """float64 [rows] each: where rows begin and end, downwards."""
    heights = np.array([sizes[items, 1].max() for items in rows.rows])
    ways = [[abs(x[item] - x[other]) for item in items for other in rows.below[item]] for items in rows.rows]
    gaps = [ROW_GAP + min(_GAP_PER_WAY * max(way, default=0.0), _MAX_EXTRA_GAP) for way in ways[:-1]]
    tops = MARGIN + np.concatenate([[0.0], np.cumsum(heights[:-1] + gaps)])
    return tops, tops + heights
