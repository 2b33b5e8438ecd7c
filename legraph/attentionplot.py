"""Draws where attention went: from chunk to chunk, or from token to token.

Few chunks are cells with a number each; of many, each is a row and a column of an image, and of more than
`MOST_PIXELS`, neighbours share one and the largest of their pairs is shown. Pairs that cannot see each other
are hatched, so that none of them looks like a visible pair to which nothing went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from legraph.attentionmass import AttentionMass, Float32Array
from legraph.bracketplot import plan_sides
from legraph.errors import InputError, Problem, count
from legraph.figure import polygons, style
from legraph.mask import Int64Array
from legraph.maskplot import DEFAULT_SIZE, check_plot, square_side
from legraph.maskshapes import rectangle_corners
from legraph.palette import Palette, Theme
from legraph.squareplot import TEXT_SIZE, Square, Swatch, new_square

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Up to this many chunks (or tokens) a side, each pair is a cell that is drawn; above, a pixel.
MOST_CELLS = 40
MOST_NUMBERS = 24
MOST_PIXELS = 700
CELL = 36.0
# Colours between no attention and all of it: more than eyes tell apart, and few enough for a small file.
NUM_COLORS = 96
# Values with a mark at the colour bar.
TICKS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)

_BAR_GAP, _BAR_WIDTH, _BAR_ROOM = 14.0, 10.0, 52.0
_HATCH = "///"


@dataclass(frozen=True, eq=False, slots=True)
class Pairs:
    """Visible pairs and what went along them, in a square of `size` cells a side.

    Attributes:
        queries, keys: int64 [P].
        values: float32 [P], 0 to 1.
        offsets: int64 [K + 1], where chunks start and end, in cells.
    """

    size: int
    queries: Int64Array
    keys: Int64Array
    values: Float32Array
    offsets: Int64Array


def attention_figure(
    attention: AttentionMass,
    *,
    layer: int | None = None,
    head: int | None = None,
    tokens: bool = False,
    theme: Theme = "light",
    title: str | None = None,
    size: float = DEFAULT_SIZE,
) -> Figure:
    """Attention over a graph as a picture, for `figure.save_figure`.

    Args:
        layer, head: which; None is the mean over all of them.
        tokens: from token to token instead of from chunk to chunk.
        title: default: which layer and head.
        size: longest side of the square, in inches.

    Raises:
        InputError: matplotlib is not installed; no such theme, layer or head; a size that cannot be; tokens
            that were not asked for when attention was measured.
    """
    palette = check_plot(theme, size)
    _check_planes(attention, layer, head, tokens)
    pairs = _token_pairs(attention, layer, head) if tokens else _chunk_pairs(attention, layer, head)
    side = square_side(pairs.size, size, CELL)
    with style():
        sides = plan_sides(attention.bundle.span_names, pairs.offsets, side)
        heading = title or f"attention between {'tokens' if tokens else 'chunks'}: {plane(layer, head)}"
        legend = _legend(attention, layer, head, pairs, tokens, palette)
        square = new_square(pairs.size, side, sides, (0.0, 0.0), palette, heading, legend, right=_BAR_ROOM)
        _draw_hidden(square)
        if pairs.size <= MOST_CELLS:
            _draw_cells(square, pairs)
        else:
            square.show(_pixels(pairs, palette), "attention")
        _draw_bar(square)
    return square.figure


def plane(layer: int | None, head: int | None) -> str:
    """`layer 3, mean over heads`."""
    parts = [
        f"mean over {name}s" if at is None else f"{name} {at}"
        for name, at in (("layer", layer), ("head", head))
    ]
    return "mean over layers and heads" if layer is None and head is None else ", ".join(parts)


def _check_planes(attention: AttentionMass, layer: int | None, head: int | None, tokens: bool) -> None:
    problems = [
        Problem(f"no {name} {at}", expected=f"0 to {number - 1}")
        for name, at, number in (
            ("layer", layer, attention.num_layers),
            ("head", head, attention.num_heads),
        )
        if at is not None and not 0 <= at < number
    ]
    if tokens and attention.tokens is None:
        problems.append(
            Problem(
                "no attention between tokens in this file",
                hint="it has to be asked for when attention is measured; without it, look at chunks",
            )
        )
    if problems:
        raise InputError(problems)


def _chunk_pairs(attention: AttentionMass, layer: int | None, head: int | None) -> Pairs:
    num_chunks = attention.bundle.mask.num_chunks
    values = attention.of(layer, head)
    return Pairs(num_chunks, attention.pair_queries, attention.pair_keys, values, np.arange(num_chunks + 1))


def _token_pairs(attention: AttentionMass, layer: int | None, head: int | None) -> Pairs:
    matrix = attention.token_matrix(layer, head)
    assert matrix is not None
    queries, keys = np.nonzero(attention.bundle.dense_mask())
    return Pairs(len(matrix), queries, keys, matrix[queries, keys], attention.bundle.span_offsets)


def color_index(values: NDArray[np.float32]) -> Int64Array:
    """int64, 0 to NUM_COLORS - 1. Colours follow the square root: a tenth is not yet nothing."""
    return np.round(np.sqrt(np.clip(values, 0.0, 1.0)) * (NUM_COLORS - 1)).astype(np.int64)


def scale_colors(palette: Palette) -> NDArray[np.float64]:
    """float64 [NUM_COLORS, 3], between the steps of the palette's scale."""
    from matplotlib.colors import to_rgb

    steps = np.array([to_rgb(color) for color in palette.scale])
    at = np.linspace(0.0, len(steps) - 1.0, NUM_COLORS)
    return np.stack([np.interp(at, np.arange(len(steps)), channel) for channel in steps.T], axis=1)


def _draw_hidden(square: Square) -> None:
    from matplotlib.patches import Rectangle

    palette = square.palette
    how = {"facecolor": palette.masked, "edgecolor": _hatch_color(palette), "linewidth": 0.0, "hatch": _HATCH}
    hidden = Rectangle((square.x, square.y), square.side, square.side, **how)
    hidden.set_gid("hidden")
    square.axes.add_patch(hidden)


def _hatch_color(palette: Palette) -> str:
    """Seen on masked cells, but behind everything else."""
    from matplotlib.colors import to_rgb

    return _hex((np.array(to_rgb(palette.masked)) + np.array(to_rgb(palette.muted))) / 2)


def _draw_cells(square: Square, pairs: Pairs) -> None:
    colors, index = scale_colors(square.palette), color_index(pairs.values)
    cells = np.stack([pairs.queries, pairs.queries + 1, pairs.keys, pairs.keys + 1], axis=1)
    for at in np.unique(index).tolist():
        corners = square.on_sheet(rectangle_corners(cells[index == at]))
        square.fill(polygons(corners), _hex(colors[at]), f"attention-{at}")
    square.outline_rectangles(cells, square.palette.line, "cells", width=0.6)
    if pairs.size > MOST_NUMBERS:
        return
    size = min(TEXT_SIZE, 0.34 * square.scale)
    for q, k, value, at in zip(pairs.queries, pairs.keys, pairs.values.tolist(), index, strict=True):
        x, y = square.on_sheet(np.array([k + 0.5, q + 0.5])).tolist()
        color = _readable(colors[at], square.palette)
        text = square.axes.text(
            x, y, number(value), size=size, color=color, ha="center", va="center_baseline"
        )
        text.set_gid("number")


def number(value: float) -> str:
    """Two decimals, as short as they can be."""
    if 0 < value < 0.005:
        return "<.01"
    return f"{value:.2f}".removeprefix("0") if 0 < value < 0.995 else f"{value:.0f}"


def _readable(color: NDArray[np.float64], palette: Palette) -> str:
    """The one of paper and ink that has more contrast with a colour, as WCAG 2 defines it."""
    from matplotlib.colors import to_rgb

    def light(rgb: NDArray[np.float64]) -> float:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ np.array([0.2126, 0.7152, 0.0722])) + 0.05

    behind = np.log(light(color))
    return max((palette.paper, palette.ink), key=lambda of: abs(np.log(light(np.array(to_rgb(of)))) - behind))


def _hex(color: NDArray[np.float64]) -> str:
    from matplotlib.colors import to_hex

    return to_hex((float(color[0]), float(color[1]), float(color[2])))


def _pixels(pairs: Pairs, palette: Palette) -> NDArray[np.uint8]:
    """uint8 [n, n, 4]; transparent where nothing is visible."""
    side = min(pairs.size, MOST_PIXELS)
    largest = np.full(side * side, -1, dtype=np.int64)
    place = (pairs.queries * side // pairs.size) * side + pairs.keys * side // pairs.size
    np.maximum.at(largest, place, color_index(pairs.values))
    table = np.zeros((NUM_COLORS + 1, 4), dtype=np.uint8)
    table[:-1, :3] = np.round(255 * scale_colors(palette))
    table[:-1, 3] = 255
    return table[largest].reshape(side, side, 4)


def _draw_bar(square: Square) -> None:
    """The colours right of the square, from nothing below to everything above."""
    palette, x = square.palette, square.x + square.side + _BAR_GAP
    height = min(square.side, 220.0)
    colors = np.round(255 * scale_colors(palette)[::-1, None]).astype(np.uint8)
    extent = (x, x + _BAR_WIDTH, square.y + height, square.y)
    bar = square.axes.imshow(colors, extent=extent, interpolation="none", aspect="auto", zorder=1)
    bar.set_gid("bar")
    for value in TICKS:
        y = square.y + height * (1 - value**0.5)
        how = {"size": TEXT_SIZE - 1, "color": palette.muted, "va": "center"}
        square.axes.text(x + _BAR_WIDTH + 4, y, f"{value:g}", **how).set_gid("tick")


def _legend(
    attention: AttentionMass,
    layer: int | None,
    head: int | None,
    pairs: Pairs,
    tokens: bool,
    palette: Palette,
) -> list[Swatch]:
    mask = attention.bundle.mask
    counted = [
        count(mask.num_tokens, "token"),
        count(mask.num_chunks, "chunk"),
        count(attention.num_layers, "layer"),
        count(attention.num_heads, "head"),
    ]
    entries = [Swatch(" \N{MIDDLE DOT} ".join(counted))]
    together = -(-pairs.size // MOST_PIXELS)
    if together > 1:
        what = "tokens" if tokens else "chunks"
        entries.append(Swatch(f"a pixel is up to {together} x {together} {what}: the largest of their pairs"))
    if attention.sinks is not None and not tokens:
        sinks = attention.sinks[layer if layer is not None else slice(None)]
        mean = float((sinks[..., head, :] if head is not None else sinks).mean())
        entries.append(Swatch(f"attention sinks took {mean:.2f} of a token's attention, in the mean"))
    return [
        *entries,
        Swatch("no attention", palette.scale[0], edge=palette.line),
        Swatch("all of it", palette.scale[-1], edge=palette.line),
        Swatch("not visible", palette.masked, edge=_hatch_color(palette), hatch=_HATCH),
    ]
