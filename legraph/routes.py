"""The lines of a DAG whose boxes stand in rows: curves between rows, straight down through a row.

A curve from row to row leaves and arrives upright, and stays between the rows; so no line runs through a box
as long as no item of a row touches another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from legraph.mask import Int64Array

Float64Array = NDArray[np.float64]
Outline = Literal["box", "circle"]

# Points from where a line ends at a box to the next one and to a corner. Where they would be too close, all
# end at one point.
_END_GAP, _CLOSEST, _CORNER = 11.0, 6.0, 9.0
# Of a circle's radius: how far from its top they end, sideways.
_CIRCLE_ENDS = 0.6


@dataclass(frozen=True, slots=True)
class Rows:
    """Boxes and places of trunks, row by row. Items 0..n-1 are the nodes, those from n on belong to trunks.

    Attributes:
        rows: the items of each row, from left to right.
        row_of: the row of each item.
        trunks: for each node, the item of each row that its trunk passes, by row.
        above, below: for each item, those of the row above and of the row below that lines lead to.
    """

    rows: list[list[int]]
    row_of: list[int]
    trunks: list[dict[int, int]]
    above: list[list[int]] = field(default_factory=list[list[int]])
    below: list[list[int]] = field(default_factory=list[list[int]])


def route(
    rows: Rows,
    boxes: Float64Array,
    edges: Int64Array,
    x: Float64Array,
    row_ends: tuple[Float64Array, Float64Array],
    outline: Outline,
) -> tuple[Float64Array, ...]:
    """Curves from the lower border of the parent to the upper border of the child, one an edge.

    Args:
        boxes: float64 [n, 4], middle, width and height of each node.
        x: float64 [items], the middle of each item, sideways.
        row_ends: float64 [rows] each, where rows begin and end, downwards.

    Returns:
        float64 [3m + 1, 2] each, control points of cubic Bezier curves.
    """
    tops, bottoms = (ends.tolist() for ends in row_ends)
    arrivals = [_arrivals(rows, node, boxes[node], x, outline) for node in range(len(boxes))]
    curves = list[Float64Array]()
    for parent, child in edges.tolist():
        start_row, end_row = rows.row_of[parent], rows.row_of[child]
        at_x, at_y, _, height = boxes[parent].tolist()
        curve = [(at_x, at_y + height / 2)]
        _straight(curve, bottoms[start_row])
        upper = parent
        for row in range(start_row + 1, end_row):
            upper = rows.trunks[parent][row]
            _bend(curve, float(x[upper]), tops[row])
            _straight(curve, bottoms[row])
        end_x, end_y = arrivals[child][upper]
        _bend(curve, end_x, tops[end_row])
        _straight(curve, end_y)
        curves.append(np.array(curve))
    return tuple(curves)


def _arrivals(
    rows: Rows, node: int, box: Float64Array, x: Float64Array, outline: Outline
) -> dict[int, tuple[float, float]]:
    """Where the line from each item above meets a node: side by side, in the order of the items."""
    middle, at_y, width, height = box.tolist()
    above = sorted(rows.above[node], key=lambda item: (x[item], item))
    room = width * _CIRCLE_ENDS if outline == "circle" else max(width - 2 * _CORNER, 0.0)
    step = min(_END_GAP, room / max(len(above) - 1, 1))
    if step < _CLOSEST:
        step = 0.0
    ends = dict[int, tuple[float, float]]()
    for at, item in enumerate(above):
        aside = (at - (len(above) - 1) / 2) * step
        up = height / 2 if outline == "box" else float(np.sqrt((height / 2) ** 2 - aside**2))
        ends[item] = (middle + aside, at_y - up)
    return ends


def _bend(curve: list[tuple[float, float]], x: float, y: float) -> None:
    """Goes on from upright to upright."""
    from_x, from_y = curve[-1]
    middle = (from_y + y) / 2
    curve += [(from_x, middle), (x, middle), (x, y)]


def _straight(curve: list[tuple[float, float]], y: float) -> None:
    """Goes on straight down, if there is a way to go."""
    x, from_y = curve[-1]
    if y > from_y:
        curve += [(x, from_y + (y - from_y) / 3), (x, y - (y - from_y) / 3), (x, y)]
