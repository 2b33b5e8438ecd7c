"""Draws the DAG of a graph: what is read first on top, arrows from parents to the children that see them.

Two looks. "box" tells each chunk's name and number of tokens; what stands for many chunks is a stack. "daft"
has the circles and plates of graphical models (after the package daft, https://docs.daft-pgm.org): chunks
that are given are shaded, as what is observed there, chunks that a model continues are open, and what stands
for many chunks has a plate around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from legraph.bundle import Bundle
from legraph.dagshape import DagShape, Engine, lay_out
from legraph.dagsheet import BOX_LEVEL, EDGE_LEVEL, LINE, NAME_SIZE, NOTE_SIZE, Sheet, draw_edges, empty_sheet
from legraph.errors import InputError, Problem, count
from legraph.figure import one_line, style, text_width
from legraph.fold import MAX_NODES, FoldedDag, Node, fold
from legraph.palette import PALETTES, THEMES, Palette, Theme
from legraph.routes import Float64Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Look = Literal["box", "daft"]
LOOKS: tuple[Look, ...] = ("box", "daft")

# In points.
_WIDEST_NAME = 190.0
_BOX_HEIGHT, _NARROWEST, _PADDING = 38.0, 62.0, 24.0
_NAME_RISE, _NOTE_DROP = 6.5, 8.0
# Boxes of a stack behind the first one, and how far each of them looks out.
_NUM_BEHIND, _BEHIND = 2, 3.5
_SMALLEST_CIRCLE, _LARGEST_CIRCLE, _CIRCLE_PADDING = 40.0, 80.0, 12.0
_PLATE, _PLATE_SIZE, _OPEN_LINE = 9.0, 7.0, 1.6
# What a mark of the caption stands for.
_MEANINGS: dict[Look, str] = {"box": " new tokens, at most", "daft": " continued by a model"}
_DOT, _CIRCLE = " \N{MIDDLE DOT} ", "\N{WHITE CIRCLE}"
_ELLIPSIS, _GENERATES = "\N{HORIZONTAL ELLIPSIS}", "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"


def dag_figure(
    bundle: Bundle,
    *,
    theme: Theme = "light",
    most: int = MAX_NODES,
    engine: Engine = "auto",
    look: Look = "box",
    title: str | None = None,
) -> Figure:
    """The chunks of a graph and its edges as a picture, for `figure.save_figure`.

    Args:
        most: a graph of more chunks is folded, as `fold` has it.
        engine: who places the boxes, as `lay_out` has it.
        look: "box", or "daft": circles, for short names.

    Raises:
        InputError: matplotlib is not installed, no such theme, engine or look, or graphviz was asked for and
            cannot do it.
    """
    _check(theme, look)
    palette = PALETTES[theme]
    dag = fold(bundle, most)
    with style():
        if look == "box":
            shape = lay_out(dag, engine, sizes=_box_sizes(dag))
        else:
            shape = _inside_plates(dag, lay_out(dag, engine, sizes=_circle_sizes(dag), outline="circle"))
        sheet = empty_sheet(shape, palette, title, _caption(bundle, dag, look, palette))
        draw_edges(sheet, shape, dag.num_edges)
        draw = _draw_box if look == "box" else _draw_circle
        for at, (node, box) in enumerate(zip(dag.nodes, shape.boxes.tolist(), strict=True)):
            draw(sheet, node, f"node{at}", *box)
    return sheet.figure


def _check(theme: str, look: str) -> None:
    problems = list[Problem]()
    if theme not in THEMES:
        problems.append(Problem(f"no theme {theme!r}", expected=" or ".join(THEMES)))
    if look not in LOOKS:
        problems.append(Problem(f"no look {look!r}", expected=" or ".join(LOOKS)))
    if problems:
        raise InputError(problems)


def _caption(bundle: Bundle, dag: FoldedDag, look: Look, palette: Palette) -> list[tuple[str, str]]:
    mask = bundle.mask
    totals = (mask.num_chunks, "chunk"), (mask.num_edges, "edge"), (mask.num_tokens, "token")
    text = ", ".join(count(*total) for total in totals)
    if len(dag.nodes) < mask.num_chunks:
        text += f"{_DOT}drawn as {count(len(dag.nodes), 'node')}"
    parts = [(text, palette.muted)]
    if any(node.generates for node in dag.nodes):
        mark = _GENERATES if look == "box" else _CIRCLE
        parts += [(f"   {mark}", palette.generate), (_MEANINGS[look], palette.muted)]
    return parts


def _box_sizes(dag: FoldedDag) -> Float64Array:
    """float64 [n, 2]: boxes that have room for their texts."""
    widths = [
        max(text_width(_name(node), NAME_SIZE, "bold"), text_width(_note(node), NOTE_SIZE))
        for node in dag.nodes
    ]
    return np.array([(max(width + _PADDING, _NARROWEST), _BOX_HEIGHT) for width in widths])


def _circle_sizes(dag: FoldedDag) -> Float64Array:
    """float64 [n, 2]: circles of one size, in which the longest name has room if it can; and their plates."""
    widest = max(text_width(_stem(node), NAME_SIZE) for node in dag.nodes)
    size = float(np.clip(widest + _CIRCLE_PADDING, _SMALLEST_CIRCLE, _LARGEST_CIRCLE))
    plates = np.array([_PLATE if len(node.chunks) > 1 else 0.0 for node in dag.nodes])
    return np.repeat(size + 2 * plates, 2).reshape(-1, 2)


def _inside_plates(dag: FoldedDag, shape: DagShape) -> DagShape:
    """Circles as they are without their plates, and lines that go on to them."""
    boxes, curves = shape.boxes.copy(), list(shape.curves)
    for at, node in enumerate(dag.nodes):
        if len(node.chunks) > 1:
            boxes[at, 2:] -= 2 * _PLATE
    for edge, ends in enumerate(dag.edges.tolist()):
        start, end = (
            boxes[node, :2] + (point - boxes[node, :2]) * boxes[node, 2] / shape.boxes[node, 2]
            for node, point in zip(ends, curves[edge][[0, -1]], strict=True)
        )
        before = np.linspace(start, curves[edge][0], 4)[:-1]
        after = np.linspace(curves[edge][-1], end, 4)[1:]
        parts = [before] if len(dag.nodes[ends[0]].chunks) > 1 else []
        parts.append(curves[edge])
        parts += [after] if len(dag.nodes[ends[1]].chunks) > 1 else []
        curves[edge] = np.concatenate(parts)
    return DagShape(shape.width, shape.height, boxes, tuple(curves))


def _draw_box(sheet: Sheet, node: Node, name: str, x: float, y: float, width: float, height: float) -> None:
    palette = sheet.palette
    line = palette.generate if node.generates else palette.box_line
    for behind in range(_NUM_BEHIND if len(node.chunks) > 1 else 0, -1, -1):
        aside = behind * _BEHIND
        how = {
            "zorder": BOX_LEVEL - behind / (_NUM_BEHIND + 1),
            "gid": f"{name}-{behind}" if behind else name,
        }
        sheet.rounded(x + aside, y + aside, width, height, facecolor=palette.box, edgecolor=line, **how)
    sheet.text(x, y - _NAME_RISE, _name(node), NAME_SIZE, palette.ink, weight="bold")
    tokens, generates = count(node.num_tokens, "token"), _generates(node)
    start = x - text_width(tokens + generates, NOTE_SIZE) / 2
    sheet.texts(start, y + _NOTE_DROP, [(tokens, palette.muted), (generates, palette.generate)])


def _draw_circle(
    sheet: Sheet, node: Node, name: str, x: float, y: float, width: float, height: float
) -> None:
    from matplotlib.patches import Circle

    palette = sheet.palette
    if len(node.chunks) > 1:
        side = width + 2 * _PLATE
        sheet.rounded(x, y, side, side, fill=False, edgecolor=palette.muted, zorder=EDGE_LEVEL - 1)
        times = f"\N{MULTIPLICATION SIGN}{len(node.chunks):,}"
        sheet.text(x + side / 2 - 3, y + side / 2 - 5.5, times, _PLATE_SIZE, palette.muted, ha="right")
    how: dict[str, Any] = (
        {"facecolor": palette.paper, "edgecolor": palette.generate, "linewidth": _OPEN_LINE * sheet.scale}
        if node.generates
        else {"facecolor": palette.box, "edgecolor": palette.ink, "linewidth": LINE * sheet.scale}
    )
    sheet.axes.add_patch(Circle((x, y), width / 2, zorder=BOX_LEVEL, gid=name, **how))
    word = _shortened(_stem(node), _LARGEST_CIRCLE - _CIRCLE_PADDING, NAME_SIZE, "normal")
    sheet.text(x, y, word, NAME_SIZE, palette.ink)


def _name(node: Node) -> str:
    """A label as it has room in a box: the number of chunks at its end is never cut."""
    if len(node.chunks) == 1:
        return _shortened(node.label, _WIDEST_NAME, NAME_SIZE, "bold")
    times = f" x{len(node.chunks):,}"
    room = _WIDEST_NAME - text_width(times, NAME_SIZE, "bold")
    return _shortened(node.label.removesuffix(times), room, NAME_SIZE, "bold") + times


def _stem(node: Node) -> str:
    """What a circle is called: its plate tells of how many."""
    return node.label if len(node.chunks) == 1 else node.label.rpartition(" x")[0]


def _note(node: Node) -> str:
    return count(node.num_tokens, "token") + _generates(node)


def _generates(node: Node) -> str:
    return f"  {_GENERATES} {node.max_new_tokens:,}" if node.generates else ""


def _shortened(text: str, room: float, size: float, weight: str) -> str:
    """A text, cut in its middle if it is wider than `room` points: numbers are at the ends of names."""
    text = one_line(text, len(text))
    cut = text
    for kept in range(len(text) - 1, 1, -1):
        if text_width(cut, size, weight) <= room:
            break
        cut = text[: kept - kept // 2] + _ELLIPSIS + text[len(text) - kept // 2 :]
    return cut
