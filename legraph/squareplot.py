"""A square of queries by keys on a sheet, with what stands around it: title, brackets, legend.

What is thinner than a hairline, such as a question of ten tokens under a hundred thousand, is drawn as one,
so that it can be seen. Where so many rectangles are left that a file of them would be large, an image of them
is drawn, in which a pixel has the shade of the part of it that they cover.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from legraph.bracketplot import Side, draw_side
from legraph.figure import new_sheet, one_line, polygons, text_width, whole_pixels
from legraph.mask import Int64Array
from legraph.maskshapes import coverage, rectangle_corners
from legraph.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

# In points: the thinnest line that is easily seen.
HAIRLINE = 0.5
# More rectangles than this are drawn as an image: 300 kB of outlines.
MOST_RECTANGLES = 4000
# Sides of such an image, tried until it is small enough.
IMAGE_SIDES = (1200, 800, 500)
MOST_IMAGE_BYTES = 400_000
_SHADES = 16

MARGIN = 14.0
TITLE_SIZE, TEXT_SIZE = 12.0, 8.5
LONGEST_TITLE = 60
_TITLE_HEIGHT, _LINE_HEIGHT = 22.0, 15.0
# In the corner above and left of the square, a line each.
_CORNER = ("queries \N{DOWNWARDS ARROW}", "keys \N{RIGHTWARDS ARROW}")
_CORNER_LINE = 11.0
_SWATCH, _SWATCH_GAP, _ENTRY_GAP = 9.0, 4.0, 14.0


@dataclass(frozen=True, slots=True)
class Swatch:
    """An entry of the legend: a text behind a small square, or without one if it has no colour."""

    text: str
    color: str | None = None
    alpha: float = 1.0
    edge: str | None = None
    hatch: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Square:
    """Where the picture is on its sheet.

    Attributes:
        x, y: its upper left corner, in points.
        side: in points.
        size: in tokens (or chunks), its own coordinates.
    """

    figure: Figure
    axes: Axes
    palette: Palette
    x: float
    y: float
    side: float
    size: int

    @property
    def scale(self) -> float:
        """Points a token."""
        return self.side / self.size

    def on_sheet(self, corners: NDArray[Any]) -> NDArray[np.float64]:
        """(k, q) in tokens as (x, y) in points."""
        return corners * self.scale + np.array([self.x, self.y])

    def fill(self, outline: Outline, color: str, name: str, alpha: float = 1.0) -> None:
        """Fills an outline on the sheet; `name` is its id in an SVG file."""
        from matplotlib.patches import PathPatch

        patch = PathPatch(outline, facecolor=color, edgecolor="none", linewidth=0, alpha=alpha)
        patch.set_gid(name)
        self.axes.add_patch(patch)

    def fill_rectangles(self, rectangles: Int64Array, color: str, name: str, alpha: float = 1.0) -> None:
        """Fills (q_start, q_end, k_start, k_end), int64 [R, 4], which do not overlap."""
        if not len(rectangles):
            return
        if len(rectangles) > MOST_RECTANGLES:
            self._fill_image(rectangles, color, name, alpha)
            return
        seen = at_least(rectangles * self.scale, HAIRLINE, self.side)
        self.fill(polygons(rectangle_corners(seen) + np.array([self.x, self.y])), color, name, alpha)

    def outline_rectangles(self, rectangles: Int64Array, color: str, name: str, width: float = 1.0) -> None:
        """Borders of (q_start, q_end, k_start, k_end), int64 [R, 4], unless they are too many to be seen."""
        from matplotlib.patches import PathPatch

        if 0 < len(rectangles) <= MOST_RECTANGLES:
            outline = polygons(self.on_sheet(rectangle_corners(rectangles)))
            patch = PathPatch(outline, fill=False, edgecolor=color, linewidth=width)
            patch.set_gid(name)
            self.axes.add_patch(patch)

    def _fill_image(self, rectangles: Int64Array, color: str, name: str, alpha: float) -> None:
        from matplotlib.colors import to_rgb

        sides = [side for side in IMAGE_SIDES if side < self.size] or [self.size]
        if self.size <= IMAGE_SIDES[0] and sides[0] != self.size:
            sides.insert(0, self.size)  # a pixel a token: exact
        pixels = np.empty((0, 0, 4), dtype=np.uint8)
        for side in sides:
            pixels = np.empty((side, side, 4), dtype=np.uint8)
            pixels[:, :, :3] = np.round(255 * np.array(to_rgb(color)))
            # Upwards: what is there stays to be seen. Not upwards from the rounding errors of a sum.
            shade = np.ceil(coverage(rectangles, self.size, side) * _SHADES - 1e-6) / _SHADES
            pixels[:, :, 3] = np.round(255 * alpha * shade)
            if len(zlib.compress(pixels.tobytes(), 6)) <= MOST_IMAGE_BYTES:
                break
        self.show(pixels, name)

    def show(self, pixels: NDArray[np.uint8], name: str) -> None:
        """Lays an image uint8 [n, n, 4] over the square, its pixels sharp."""
        extent = (self.x, self.x + self.side, self.y + self.side, self.y)
        image = self.axes.imshow(pixels, extent=extent, interpolation="none", aspect="auto", zorder=1)
        image.set_gid(name)


def at_least(rectangles: NDArray[Any], thinnest: float, side: float) -> NDArray[np.float64]:
    """Widens thin rectangles about their middle, in a square of `side`; they stay within it."""
    spans = rectangles.reshape(-1, 2, 2)
    lack = np.maximum(thinnest - (spans[:, :, 1] - spans[:, :, 0]), 0.0)
    starts = np.clip(spans[:, :, 0] - lack / 2, 0.0, side)
    ends = np.clip(spans[:, :, 1] + lack / 2, 0.0, side)
    starts = np.minimum(starts, np.maximum(side - thinnest, 0.0))
    ends = np.maximum(ends, np.minimum(thinnest, side))
    return np.stack([starts, ends], axis=2).reshape(-1, 4)


def new_square(
    size: int,
    side: float,
    sides: tuple[Side, Side],
    outward: tuple[float, float],
    palette: Palette,
    title: str | None,
    legend: Sequence[Swatch],
    right: float = 0.0,
) -> Square:
    """A sheet with everything around the square. To be called within `figure.style()`.

    Args:
        size, side: of the square, in tokens and in points.
        sides: brackets, left and top.
        outward: points between the square and them, for what the caller draws there.
        right: points for what the caller draws right of the square.
    """
    left, top = sides
    before, behind = top.overhang()
    above = MARGIN + (_TITLE_HEIGHT if title else 0.0)
    corner = max(text_width(text, TEXT_SIZE) for text in _CORNER) + before + _SWATCH_GAP
    x = whole_pixels(MARGIN + max(outward[0] + left.depth, corner))
    y = whole_pixels(above + outward[1] + top.depth)
    width = x + side + max(right, behind) + MARGIN
    if title:
        title = one_line(title, LONGEST_TITLE)
        width = max(width, text_width(title, TITLE_SIZE, "bold") + 2 * MARGIN)
    width = max(width, max(map(_entry_width, legend)) + 2 * MARGIN)
    rows = _rows(legend, width - 2 * MARGIN)
    figure, axes = new_sheet(width, y + side + MARGIN / 2 + len(rows) * _LINE_HEIGHT + MARGIN, palette)
    if title:
        place = {"va": "top", "weight": "bold", "size": TITLE_SIZE, "color": palette.ink}
        axes.text(MARGIN, MARGIN, title, **place)
    for i, text in enumerate(_CORNER):
        place = {"va": "top", "size": TEXT_SIZE, "color": palette.muted}
        axes.text(MARGIN, above + i * _CORNER_LINE, text, **place)
    for which, gap in zip(sides, outward, strict=True):
        draw_side(axes, which, (x, y), gap, palette)
    start = min(x, width - MARGIN - max(map(_row_width, rows)))
    for i, row in enumerate(rows):
        _draw_row(axes, row, start, y + side + MARGIN / 2 + (i + 0.5) * _LINE_HEIGHT, palette)
    return Square(figure, axes, palette, x, y, side, size)


def _entry_width(entry: Swatch) -> float:
    width = text_width(entry.text, TEXT_SIZE)
    return width if entry.color is None else width + _SWATCH + _SWATCH_GAP


def _row_width(row: Sequence[Swatch]) -> float:
    return sum(map(_entry_width, row)) + _ENTRY_GAP * (len(row) - 1)


def _rows(legend: Sequence[Swatch], width: float) -> list[list[Swatch]]:
    """The legend on as many lines as it takes; an entry without a swatch starts one."""
    rows = list[list[Swatch]]()
    for entry in legend:
        starts_row = not rows or (entry.color is None) or rows[-1][-1].color is None
        if starts_row or _row_width([*rows[-1], entry]) > width:
            rows.append([])
        rows[-1].append(entry)
    return rows


def _draw_row(axes: Axes, row: Sequence[Swatch], x: float, y: float, palette: Palette) -> None:
    from matplotlib.patches import Rectangle

    for entry in row:
        text_at = x
        if entry.color is not None:
            how = {"edgecolor": entry.edge or "none", "linewidth": 0.8 if entry.edge else 0.0}
            box = Rectangle((x, y - _SWATCH / 2), _SWATCH, _SWATCH, facecolor=entry.color, **how)
            box.set_alpha(entry.alpha)
            if entry.hatch is not None:
                box.set_hatch(entry.hatch)
            axes.add_patch(box)
            text_at += _SWATCH + _SWATCH_GAP
        text = axes.text(text_at, y, entry.text, size=TEXT_SIZE, color=palette.muted, va="center_baseline")
        text.set_gid("legend")
        x += _entry_width(entry) + _ENTRY_GAP
