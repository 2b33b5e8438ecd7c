"""Draws who may attend to whom: masked gray, visible blue, keys to the right, queries downwards.

One outline for all triangles and one for all rectangles, however many there are. Up to `MOST_CELLS` tokens,
each pair of tokens is a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from legraph.blocks import ActiveBlocks, active_blocks
from legraph.bracketplot import plan_sides
from legraph.brackets import Bracket
from legraph.bundle import Bundle
from legraph.errors import InputError, Problem, count
from legraph.figure import POINTS_PER_INCH, one_line, polygons, segments, style, text_width
from legraph.mask import Int64Array
from legraph.maskshapes import (
    joined_triangles,
    mask_shapes,
    melted,
    staircase,
    triangle_corners,
)
from legraph.palette import PALETTES, THEMES, Palette, Theme
from legraph.squareplot import HAIRLINE, Square, Swatch, new_square

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CELLS = 64
# The square's side in inches, and the cell that a small one is not to exceed, in points.
DEFAULT_SIZE = 6.0
LARGEST_CELL = 27.0
SMALLEST_SQUARE = 198.0
LONGEST_TOKEN = 14

# In points: chunks that are smaller, less than a pixel of a .png file, are drawn several at once.
FINEST = 0.25

_LARGEST_TEXT = 7.5
_STRIP_AIR = 4.0
# Lines between blocks are drawn if they are this far apart, in points.
_GRID_APART = 4.0


@dataclass(frozen=True, slots=True)
class Strip:
    """Texts beside the square, one a token: token texts, or position ids."""

    texts: tuple[str, ...]
    size: float
    depth: float
    color: str


def mask_figure(
    bundle: Bundle,
    *,
    theme: Theme = "light",
    blocks: bool = False,
    positions: bool = False,
    token_texts: Sequence[str] | None = None,
    title: str | None = None,
    size: float = DEFAULT_SIZE,
) -> Figure:
    """The mask of a bundle as a picture, for `figure.save_figure`.

    Args:
        blocks: draw over it which 128 x 128 blocks a kernel runs in full, in part, or not at all.
        positions: position ids beside the tokens, or behind the names of spans where tokens have no room.
        token_texts: N texts, shown beside the cells of up to `MOST_CELLS` tokens.
        size: longest side of the square of tokens, in inches.

    Raises:
        InputError: matplotlib is not installed, no such theme, or a size or texts that do not fit.
    """
    palette = check_plot(theme, size)
    if token_texts is not None and len(token_texts) != len(bundle):
        raise InputError(
            Problem(
                f"{count(len(token_texts), 'token text')} for {count(len(bundle), 'token')}", "one a token"
            )
        )
    has_cells = len(bundle) <= MOST_CELLS
    side = square_side(len(bundle), size)
    with style():
        strips = _strips(bundle, side / len(bundle), positions, token_texts, palette) if has_cells else []
        note = _position_note(bundle) if positions and not has_cells else lambda at: ""
        sides = plan_sides(bundle.span_names, bundle.span_offsets, side, note)
        grid = active_blocks(bundle.mask) if blocks else None
        has_grid = grid is not None and grid.block_size * side / len(bundle) >= _GRID_APART
        legend = _legend(bundle, grid, has_grid, palette)
        depth = sum(strip.depth for strip in strips)
        square = new_square(len(bundle), side, sides, (depth, depth), palette, title, legend)
        _draw_mask(square, bundle, has_cells)
        if grid is not None:
            _draw_blocks(square, grid, has_grid)
        outward = 0.0
        for strip in strips:
            _draw_strip(square, strip, outward)
            outward += strip.depth
    return square.figure


def check_plot(theme: str, size: float) -> Palette:
    """The colours of a theme.

    Raises:
        InputError: there is no such theme, or nothing can be that large.
    """
    problems = list[Problem]()
    if theme not in THEMES:
        problems.append(Problem(f"no theme {theme!r}", expected=" or ".join(THEMES)))
    if not (math.isfinite(size) and 1 <= size <= 40):
        problems.append(Problem(f"a picture of {size:g} inches", expected="1 to 40"))
    if problems:
        raise InputError(problems)
    return PALETTES[theme]  # pyright: ignore[reportArgumentType]


def square_side(num_cells: int, size: float, largest_cell: float = LARGEST_CELL) -> float:
    """Points: `size` inches, less for few cells."""
    return min(size * POINTS_PER_INCH, max(num_cells * largest_cell, SMALLEST_SQUARE))


def _draw_mask(square: Square, bundle: Bundle, has_cells: bool) -> None:
    palette, shapes = square.palette, mask_shapes(bundle.mask)
    everything = np.array([[(0, 0), (square.size, 0), (square.size, square.size), (0, square.size)]])
    square.fill(polygons(square.on_sheet(everything)), palette.masked, "masked")
    square.fill_rectangles(shapes.rectangles, palette.parent, "parents")
    if has_cells:
        stairs = [polygons(square.on_sheet(staircase(*span))[None]) for span in shapes.triangles.tolist()]
        square.fill(type(stairs[0]).make_compound_path(*stairs), palette.own, "own")
        _draw_grid(square, np.arange(1, square.size), palette.paper, min(1.2, 0.06 * square.scale), "cells")
        return
    shortest = FINEST / square.scale
    triangles = joined_triangles(shapes.triangles, shortest)
    is_short = (triangles[:, 1] - triangles[:, 0]) * square.scale < HAIRLINE
    square.fill(polygons(square.on_sheet(triangle_corners(triangles[~is_short]))), palette.own, "own")
    # Too small to show a long side.
    square.fill_rectangles(triangles[is_short][:, [0, 1, 0, 1]], palette.own, "own-short")


def _draw_grid(square: Square, at: Int64Array, color: str, width: float, name: str) -> None:
    """Lines through the whole square, in both directions."""
    from matplotlib.patches import PathPatch

    low, high = np.zeros(len(at)), np.full(len(at), square.size)
    down = np.stack([np.stack([at, low], axis=1), np.stack([at, high], axis=1)], axis=1)
    lines = segments(square.on_sheet(np.concatenate([down, down[:, :, ::-1]])))
    patch = PathPatch(lines, fill=False, edgecolor=color, linewidth=width)
    patch.set_gid(name)
    square.axes.add_patch(patch)


def _draw_blocks(square: Square, blocks: ActiveBlocks, has_grid: bool) -> None:
    palette, is_full = square.palette, blocks.is_full
    for name, chosen, color in (
        ("partial-blocks", ~is_full, palette.partial),
        ("full-blocks", is_full, palette.full),
    ):
        q, kv = blocks.q_block[chosen], blocks.kv_block[chosen]
        runs = np.minimum(melted(np.stack([q, q + 1, kv, kv + 1], axis=1)) * blocks.block_size, square.size)
        square.fill_rectangles(runs, color, name, _block_alpha(has_grid))
        if has_grid:
            square.outline_rectangles(runs, color, f"{name}-border")
    if has_grid:
        inner = np.arange(1, blocks.num_blocks) * blocks.block_size
        _draw_grid(square, inner, palette.muted, 0.3, "block-grid")


def _block_alpha(has_grid: bool) -> float:
    """Where borders show the blocks, the mask shows under them."""
    return 0.3 if has_grid else 0.6


def _legend(bundle: Bundle, blocks: ActiveBlocks | None, has_grid: bool, palette: Palette) -> list[Swatch]:
    mask = bundle.mask
    num_visible = mask.num_visible_pairs()
    counted = [count(len(bundle), "token"), count(mask.num_chunks, "chunk"), count(mask.num_edges, "edge")]
    density = f"{100 * num_visible / len(bundle) ** 2:.3g}% of all pairs visible"
    entries = [
        Swatch(" \N{MIDDLE DOT} ".join([*counted, density])),
        Swatch("the chunk itself", palette.own),
        Swatch("its parents", palette.parent),
        Swatch("masked", palette.masked),
    ]
    if blocks is not None:
        alpha = _block_alpha(has_grid)
        size, num_full = blocks.block_size, int(blocks.is_full.sum())
        num_empty = blocks.num_blocks**2 - len(blocks)
        entries += [
            Swatch(f"blocks of {size} x {size}: {blocks.num_blocks**2:,}"),
            Swatch(f"full: {num_full:,}", palette.full, alpha, palette.full),
            Swatch(f"partial: {len(blocks) - num_full:,}", palette.partial, alpha, palette.partial),
            Swatch(f"empty, skipped: {num_empty:,}", palette.masked, edge=palette.muted),
        ]
    return entries


def _position_note(bundle: Bundle) -> Callable[[Bracket], str]:
    """`  0..10` behind the name of a span; of several, where all of them together start and end."""

    def note(bracket: Bracket) -> str:
        start, end = bundle.span_offsets[[bracket.first, bracket.last]]
        ids = bundle.position_ids[start:end]
        return f"  {ids.min()}..{ids.max()}" if len(ids) > 1 else f"  {ids[0]}"

    return note


def _strips(
    bundle: Bundle, cell: float, positions: bool, token_texts: Sequence[str] | None, palette: Palette
) -> list[Strip]:
    """What stands between the square and the brackets, from the square outwards."""
    shown = list[tuple[list[str], str]]()
    if positions:
        shown.append(([str(at) for at in bundle.position_ids.tolist()], palette.muted))
    if token_texts is not None:
        shown.append(([one_line(text, LONGEST_TOKEN) for text in token_texts], palette.ink))
    size = min(_LARGEST_TEXT, 0.75 * cell)
    return [
        Strip(tuple(texts), size, max(text_width(text, size) for text in texts) + 2 * _STRIP_AIR, color)
        for texts, color in shown
    ]


def _draw_strip(square: Square, strip: Strip, outward: float) -> None:
    off = outward + _STRIP_AIR
    how = {"size": strip.size, "color": strip.color, "va": "center", "rotation_mode": "anchor"}
    for i, text in enumerate(strip.texts):
        along = (i + 0.5) * square.scale
        left = square.axes.text(square.x - off, square.y + along, text, ha="right", **how)
        top = square.axes.text(square.x + along, square.y - off, text, ha="left", rotation=90, **how)
        left.set_gid("token-left")
        top.set_gid("token-top")
