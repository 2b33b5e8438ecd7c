"""Draws the brackets left of a square and above it: see `brackets`. Coordinates are points on a sheet.

along: from the square's upper left corner, down its left side or to the right on its top
outward: from its side, away from it

outward ->  square | [ -- name
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from legraph.brackets import MAX_SHIFT, Bracket, brackets, spread
from legraph.figure import one_line, segments, text_width
from legraph.mask import Int64Array
from legraph.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Where = Literal["left", "top"]

NAME_SIZE = 9.0
# What a line of text of that size takes, with air around it.
LINE = 1.4 * NAME_SIZE
LONGEST_NAME = 36

# Outward, in points: from the square to a bracket's teeth, their length, the stem to the name, air.
_GAP, _TOOTH, _STEM, _AIR = 3.0, 3.0, 7.0, 4.0
# Teeth at the borders of folded chunks are drawn if they are this far apart.
_TEETH_APART = 2.0
_STROKE = 0.8
# The teeth of a narrower bracket would run together.
_NARROWEST = 1.6


@dataclass(frozen=True, slots=True)
class Name:
    """A bracket with its text, and the place of the text's middle along the side."""

    bracket: Bracket
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Side:
    """All brackets of one side.

    Attributes:
        levels: from the square outwards.
        depths: how far out each level reaches from where it starts.
        is_across: names stand across the side (on top: turned by 90 degrees), not along it.
        ends: float64 [K + 1], borders of the chunks along the side.
    """

    where: Where
    levels: tuple[tuple[Name, ...], ...]
    depths: tuple[float, ...]
    is_across: bool
    ends: NDArray[np.float64]

    @property
    def depth(self) -> float:
        return sum(self.depths)

    def overhang(self) -> tuple[float, float]:
        """How far names stick out over the start of the side, and over its end, in points."""
        names = [name for level in self.levels for name in level]
        halves = [LINE / 2 if self.is_across else text_width(name.text, NAME_SIZE) / 2 for name in names]
        starts = [name.at - half for name, half in zip(names, halves, strict=True)]
        ends = [name.at + half for name, half in zip(names, halves, strict=True)]
        return max(0.0, -min(starts)), max(0.0, max(ends) - float(self.ends[-1]))


def plan_sides(
    names: Sequence[str], offsets: Int64Array, length: float, note: Callable[[Bracket], str] = lambda at: ""
) -> tuple[Side, Side]:
    """The left and the top side of a square on which chunk i reaches from `offsets[i]` to `offsets[i + 1]`.

    Names stand along the top where all have room so. To be called within `figure.style()`.

    Args:
        note: what is written behind the name of a bracket.
    """
    ends = offsets * (length / offsets[-1])
    named = brackets(names, offsets, length, LINE)
    levels = [[bracket for bracket in named if bracket.level == level] for level in (0, 1)]
    texts = [[one_line(at.label, LONGEST_NAME) + note(at) for at in level] for level in levels if level]
    levels = [level for level in levels if level]
    widths = [[text_width(text, NAME_SIZE) for text in row] for row in texts]
    lines = [[LINE] * len(row) for row in texts]
    base = _GAP + _TOOTH + _STEM + _AIR
    across_depths = tuple(base + max(row) for row in widths)
    across = _placed(levels, texts, lines, ends)
    left = Side("left", across, across_depths, True, ends)
    along = _along(levels, texts, [[width + LINE for width in row] for row in widths], ends)
    if along is None:
        return left, Side("top", across, across_depths, True, ends)
    return left, Side("top", along, (base + LINE,) * len(levels), False, ends)


def _placed(
    levels: Sequence[Sequence[Bracket]],
    texts: Sequence[Sequence[str]],
    sizes: Sequence[Sequence[float]],
    ends: NDArray[np.float64],
) -> tuple[tuple[Name, ...], ...]:
    rows = list[tuple[Name, ...]]()
    for level, row, size in zip(levels, texts, sizes, strict=True):
        middles = _middles(level, ends)
        places = spread(middles, size, float(ends[-1]))
        at = middles if places is None else places.tolist()
        rows.append(tuple(Name(*name) for name in zip(level, row, at, strict=True)))
    return tuple(rows)


def _along(
    levels: Sequence[Sequence[Bracket]],
    texts: Sequence[Sequence[str]],
    sizes: Sequence[Sequence[float]],
    ends: NDArray[np.float64],
) -> tuple[tuple[Name, ...], ...] | None:
    """None if some name would stand too far from its bracket, or stick out over the side."""
    for level, size in zip(levels, sizes, strict=True):
        middles = _middles(level, ends)
        places = spread(middles, size, float(ends[-1]))
        if places is None or (np.abs(places - middles) > MAX_SHIFT * LINE).any():
            return None
    return _placed(levels, texts, sizes, ends)


def _middles(level: Sequence[Bracket], ends: NDArray[np.float64]) -> list[float]:
    return [float(ends[at.first] + ends[at.last]) / 2 for at in level]


def draw_side(axes: Axes, side: Side, corner: tuple[float, float], outward: float, palette: Palette) -> None:
    """Draws a side's brackets as one outline, and their names.

    Args:
        corner: upper left corner of the square.
        outward: where they start, from the square.
    """
    from matplotlib.patches import PathPatch

    lines = list[NDArray[np.float64]]()
    for names, depth in zip(side.levels, side.depths, strict=True):
        spine = outward + _GAP + _TOOTH
        lines += [line for name in names for line in _strokes(name, side.ends, spine)]
        for name in names:
            _write(axes, side, corner, name, spine + _STEM + _AIR / 2, palette)
        outward += depth
    outlines = [segments(_on_sheet(side.where, corner, line)[None]) for line in lines]
    whole = type(outlines[0]).make_compound_path(*outlines)
    patch = PathPatch(whole, fill=False, edgecolor=palette.bracket, linewidth=_STROKE)
    patch.set_gid(f"brackets-{side.where}")
    axes.add_patch(patch)


def _strokes(name: Name, ends: NDArray[np.float64], spine: float) -> list[NDArray[np.float64]]:
    """The bracket, the stem to its name, and teeth where folded chunks meet; (along, outward) each."""
    first, last = name.bracket.first, name.bracket.last
    start, end = float(ends[first]), float(ends[last])
    # Neighbouring brackets do not touch.
    inset = min(0.75, (end - start) / 4)
    start, end = start + inset, end - inset
    tip, middle = spine - _TOOTH, (start + end) / 2
    bracket = [(start, tip), (start, spine), (end, spine), (end, tip)]
    if end - start < _NARROWEST:
        bracket = [(middle, tip), (middle, spine)]
    strokes = [np.array(bracket), np.array([(middle, spine), (name.at, spine + _STEM)])]
    borders = ends[first + 1 : last]
    if len(borders) and np.diff(ends[first : last + 1]).min() >= _TEETH_APART:
        strokes += [np.array([(at, spine - _TOOTH / 2), (at, spine)]) for at in borders.tolist()]
    return strokes


def _on_sheet(where: Where, corner: tuple[float, float], line: NDArray[np.float64]) -> NDArray[np.float64]:
    along, outward = line.T
    x, y = (-outward, along) if where == "left" else (along, -outward)
    return np.stack([corner[0] + x, corner[1] + y], axis=1)


def _write(
    axes: Axes, side: Side, corner: tuple[float, float], name: Name, outward: float, palette: Palette
) -> None:
    ((x, y),) = _on_sheet(side.where, corner, np.array([(name.at, outward)])).tolist()
    how: dict[str, Any] = {"ha": "right", "va": "center"}
    if side.where == "top":
        how = (
            {"ha": "left", "va": "center", "rotation": 90}
            if side.is_across
            else {"ha": "center", "va": "bottom"}
        )
    text = axes.text(x, y, name.text, size=NAME_SIZE, color=palette.bracket, rotation_mode="anchor", **how)
    text.set_gid(f"name-{side.where}")
