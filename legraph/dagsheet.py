"""The sheet that a DAG is drawn on: title and caption, texts, outlines, and the arrows of the edges.

Its coordinates are those of the layout. A picture that would be too large is drawn smaller, lines and texts
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from legraph.dagshape import DagShape
from legraph.figure import POINTS_PER_INCH, new_sheet, one_line, polygons, text_width
from legraph.layered import MARGIN
from legraph.mask import Int64Array
from legraph.palette import Palette
from legraph.routes import Float64Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

# Points of the longer side.
MAX_SIDE = 2000.0

NAME_SIZE, NOTE_SIZE, TITLE_SIZE = 9.5, 8.0, 12.0
LINE, THICK_LINE = 1.0, 1.8
# What is drawn over what.
EDGE_LEVEL, BOX_LEVEL, ARROW_LEVEL, TEXT_LEVEL = 2.0, 4.0, 5.0, 6.0
_CORNER = 7.0
_ARROW_LENGTH, _ARROW_WIDTH, _THICK_ARROW = 7.0, 5.6, 1.25
_LONGEST_TITLE = 80
_TITLE_ROOM, _CAPTION_ROOM = 20.0, 18.0
_SAME_POINT = 1e-6


@dataclass(frozen=True, slots=True)
class Sheet:
    """What is drawn on, in the coordinates of the layout; `scale` turns its points into those of paper."""

    figure: Figure
    axes: Axes
    palette: Palette
    scale: float

    def text(self, x: float, y: float, text: str, size: float, color: str, **more: str) -> None:
        how: dict[str, Any] = {"ha": "center", "va": "center_baseline", **more}
        self.axes.text(x, y, text, fontsize=size * self.scale, color=color, zorder=TEXT_LEVEL, **how)

    def texts(self, x: float, y: float, parts: Sequence[tuple[str, str]]) -> None:
        """Notes of different colours, one behind the other, from x on."""
        for text, color in parts:
            self.text(x, y, text, NOTE_SIZE, color, ha="left")
            x += text_width(text, NOTE_SIZE)

    def outline(self, outline: Outline, name: str, level: float, **how: Any) -> None:
        from matplotlib.patches import PathPatch

        how = {"linewidth": LINE, "capstyle": "butt", **how}
        how["linewidth"] *= self.scale
        self.axes.add_patch(PathPatch(outline, zorder=level, gid=name, **how))

    def rounded(self, x: float, y: float, width: float, height: float, **how: Any) -> None:
        """A box with round corners, by its middle."""
        from matplotlib.patches import FancyBboxPatch

        how = {"linewidth": LINE, **how}
        how["linewidth"] *= self.scale
        corner = (x - width / 2, y - height / 2)
        round_off = f"round,pad=0,rounding_size={min(_CORNER, height / 3)}"
        self.axes.add_patch(FancyBboxPatch(corner, width, height, round_off, **how))


def empty_sheet(
    shape: DagShape, palette: Palette, title: str | None, caption: Sequence[tuple[str, str]]
) -> Sheet:
    """A picture that is empty but for title and caption."""
    heading = one_line(title, _LONGEST_TITLE) if title else ""
    widths = (
        sum(text_width(text, NOTE_SIZE) for text, _ in caption),
        text_width(heading, TITLE_SIZE, "bold"),
    )
    top = _TITLE_ROOM if title else 0.0
    width = max(shape.width, max(widths) + 2 * MARGIN)
    height = top + shape.height + _CAPTION_ROOM
    scale = min(1.0, MAX_SIDE / max(width, height))
    figure, axes = new_sheet(width * scale, height * scale, palette)
    width, height = (figure.get_size_inches() * POINTS_PER_INCH / scale).tolist()
    left = (shape.width - width) / 2
    axes.set_xlim(left, left + width)
    axes.set_ylim(height - top, -top)
    sheet = Sheet(figure, axes, palette, scale)
    left += MARGIN
    if title:
        place = left, (MARGIN - top) / 2
        sheet.text(*place, heading, TITLE_SIZE, palette.ink, ha="left", weight="bold")
    sheet.texts(left, shape.height + _CAPTION_ROOM / 3, caption)
    return sheet


def draw_edges(sheet: Sheet, shape: DagShape, num_edges: Int64Array) -> None:
    """Lines up to their arrows, then the arrows: edges that stand for several are thicker."""
    color = sheet.palette.muted
    is_folded = num_edges > 1
    for several, name in ((False, "edges"), (True, "folded-edges")):
        curves = [shape.curves[edge] for edge in np.flatnonzero(is_folded == several)]
        if not curves:
            continue
        size, width = (_THICK_ARROW, THICK_LINE) if several else (1.0, LINE)
        arrows = np.array([_arrow(curve, size) for curve in curves])
        # A line ends within its arrow: at the tip it would be wider than it.
        ends = arrows[:, 0] * 0.3 + arrows[:, 1:].mean(axis=1) * 0.7
        lines = _bezier([np.vstack([curve[:-1], end]) for curve, end in zip(curves, ends, strict=True)])
        sheet.outline(lines, name, EDGE_LEVEL, fill=False, edgecolor=color, linewidth=width)
        sheet.outline(polygons(arrows), f"{name}-ends", ARROW_LEVEL, facecolor=color, edgecolor="none")


def _bezier(curves: Sequence[Float64Array]) -> Outline:
    """One outline of many chains of cubic Bezier curves; what they share at their starts is drawn once."""
    from matplotlib.path import Path as Outline

    parts, seen = list[Float64Array](), set[bytes]()
    for curve in curves:
        curve = np.round(curve, 2)
        start = 0
        while start + 4 < len(curve) and curve[start : start + 4].tobytes() in seen:
            start += 3
        seen |= {curve[at : at + 4].tobytes() for at in range(start, len(curve) - 1, 3)}
        parts.append(curve[start:])
    codes = np.full(sum(map(len, parts)), Outline.CURVE4, dtype=np.uint8)
    codes[np.cumsum([0, *map(len, parts[:-1])])] = Outline.MOVETO
    return Outline(np.concatenate(parts), codes)


def _arrow(curve: Float64Array, size: float) -> Float64Array:
    """float64 [3, 2]: tip and corners of the arrowhead at the end of a curve."""
    tip = curve[-1]
    away = next(tip - point for point in curve[-2::-1] if np.abs(tip - point).max() > _SAME_POINT)
    along = away / np.hypot(*away)
    across = np.array([-along[1], along[0]])
    back = tip - along * _ARROW_LENGTH * size
    aside = across * _ARROW_WIDTH * size / 2
    return np.array([tip, back + aside, back - aside])
