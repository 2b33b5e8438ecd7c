"""Where the boxes of a DAG stand, and the curves between them. Plain numbers; draws nothing.

Two engines: graphviz's `dot`, if it is installed, and our own, `layered`, which is there always and gives the
same numbers everywhere. grandalf was tried in its place: 60 nodes with 500 edges took it 47,000 points of
width, other places in every run, and half a minute where everybody sees everybody.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from legraph.errors import InputError, Problem
from legraph.fold import FoldedDag, Node
from legraph.layered import BOX_GAP, MARGIN, ROW_GAP, lay_out_layers
from legraph.routes import Float64Array, Outline

Engine = Literal["auto", "graphviz", "layered"]
ENGINES: tuple[Engine, ...] = ("auto", "graphviz", "layered")

# Points of a letter of a label, about, and of a box.
LETTER_WIDTH = 6.2
BOX_HEIGHT = 36.0
NARROWEST, WIDEST = 64.0, 190.0
_PADDING = 22.0

# `dot` takes minutes for dense graphs, and draws each line on its own: then "auto" takes our own engine.
MAX_GRAPHVIZ_EDGES = 120
MAX_GRAPHVIZ_DEGREE = 3.0
MAX_GRAPHVIZ_WIDTH = 1000.0
GRAPHVIZ_SECONDS = 10.0
_POINTS_PER_INCH = 72


@dataclass(frozen=True, eq=False, slots=True)
class DagShape:
    """Places in points, from the upper left corner, y downwards. Everything lies within width x height.

    Attributes:
        boxes: float64 [n, 4], middle (x, y), width and height of each node. Parents stand above children.
        curves: for each edge, float64 [3m + 1, 2], the control points of m cubic Bezier curves one behind the
            other, from the parent's border to the child's.
    """

    width: float
    height: float
    boxes: Float64Array
    curves: tuple[Float64Array, ...]


class _GraphvizError(Exception):
    """`dot` gave no layout; says why."""


def lay_out(
    dag: FoldedDag,
    engine: Engine = "auto",
    *,
    sizes: Float64Array | None = None,
    outline: Outline = "box",
) -> DagShape:
    """A layered layout of nodes and edges.

    Args:
        engine: "auto" is graphviz where it is installed and the graph is small enough for it.
        sizes: float64 [n, 2], width and height of each node in points; default: by the length of its label.
        outline: what curves end at: boxes, or circles in them, which are as high as wide.

    Raises:
        InputError: no such engine, or graphviz was asked for by name and gave no layout.
    """
    if engine not in ENGINES:
        raise InputError(Problem(f"no layout engine {engine!r}", expected=", ".join(ENGINES)))
    if sizes is None:
        sizes = node_sizes(dag.nodes)
    most = min(MAX_GRAPHVIZ_EDGES, MAX_GRAPHVIZ_DEGREE * len(dag.nodes))
    if engine == "graphviz" or (engine == "auto" and len(dag.edges) <= most):
        try:
            shape = _graphviz(dag, sizes, outline)
        except _GraphvizError as failed:
            if engine == "graphviz":
                hint = "take the engine 'layered', which needs nothing installed"
                raise InputError(Problem(f"graphviz gave no layout: {failed}", hint=hint)) from None
        else:
            if engine == "graphviz" or shape.width <= MAX_GRAPHVIZ_WIDTH:
                return shape
    boxes, curves = lay_out_layers(sizes, dag.edges, outline)
    width, height = _extent(boxes, curves)
    return DagShape(width + MARGIN, height + MARGIN, boxes, curves)


def node_sizes(nodes: tuple[Node, ...]) -> Float64Array:
    """float64 [n, 2]: width and height of boxes for labels on one line, with a second line under them."""
    widths = [np.clip(len(node.label) * LETTER_WIDTH + _PADDING, NARROWEST, WIDEST) for node in nodes]
    return np.column_stack([widths, np.full(len(nodes), BOX_HEIGHT)])


def _extent(boxes: Float64Array, curves: tuple[Float64Array, ...]) -> tuple[float, float]:
    """The right and the lower end of everything."""
    ends = [boxes[:, :2] + boxes[:, 2:] / 2, *curves]
    right, lower = np.concatenate(ends).max(axis=0).tolist()
    return right, lower


def _graphviz(dag: FoldedDag, sizes: Float64Array, outline: Outline) -> DagShape:
    """
    Raises:
        _GraphvizError: it is not installed, failed, or took too long.
    """
    found = _run_dot(_dot_input(dag, sizes, outline))
    try:
        return _read_dot(found, sizes, outline, len(dag.edges))
    except (ValueError, KeyError, IndexError, TypeError) as failed:
        raise _GraphvizError(f"its output has another form than expected ({failed!r})") from None


def _dot_input(dag: FoldedDag, sizes: Float64Array, outline: Outline) -> str:
    """The graph as `dot` is asked to lay it out: nodes are numbers, so names cannot do any harm."""
    shape = "box" if outline == "box" else "circle"
    lines = [
        "digraph {",
        f"nodesep={BOX_GAP / _POINTS_PER_INCH:.4f}; ranksep={ROW_GAP / _POINTS_PER_INCH:.4f};",
        f'node [shape={shape}, fixedsize=true, label=""]; edge [arrowhead=none];',
    ]
    for node, (width, height) in enumerate((sizes / _POINTS_PER_INCH).tolist()):
        lines.append(f"{node} [width={width:.5f}, height={height:.5f}];")
    lines += [f'{parent} -> {child} [id="{at}"];' for at, (parent, child) in enumerate(dag.edges.tolist())]
    return "\n".join([*lines, "}"])


def _run_dot(text: str) -> dict[str, Any]:
    program = shutil.which("dot")
    if program is None:
        raise _GraphvizError("there is no program 'dot'")
    try:
        done = subprocess.run(
            [program, "-Tjson0"], input=text, capture_output=True, text=True, timeout=GRAPHVIZ_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise _GraphvizError(f"it took more than {GRAPHVIZ_SECONDS:g} seconds") from None
    except OSError as failed:
        raise _GraphvizError(str(failed.strerror or failed)) from None
    if done.returncode != 0:
        raise _GraphvizError(done.stderr.strip() or f"exit code {done.returncode}")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise _GraphvizError("its output is not JSON") from None


def _read_dot(found: dict[str, Any], sizes: Float64Array, outline: Outline, num_edges: int) -> DagShape:
    """Turns upside down what `dot` says: its y grows upwards."""
    place = {int(node["name"]): _points(node["pos"])[0] for node in found["objects"]}
    middles = np.array([place[node] for node in range(len(sizes))])
    splines = {int(edge["id"]): _points(edge["pos"]) for edge in found.get("edges", ())}
    curves = [splines[edge] for edge in range(num_edges)]
    ends = [(edge["tail"], edge["head"]) for edge in found.get("edges", ())]
    node_of = {node["_gvid"]: int(node["name"]) for node in found["objects"]}
    upper_left = np.array([-1, 1]) * _corner(middles, sizes, curves)
    flip = np.array([1.0, -1.0])
    boxes = np.column_stack([middles * flip + upper_left, sizes])
    curves = [curve * flip + upper_left for curve in curves]
    for edge, (tail, head) in zip(found.get("edges", ()), ends, strict=True):
        curve = curves[int(edge["id"])]
        # `dot` rounds, and draws to the border of what it has rounded.
        curve[0] = _onto_border(curve[0], boxes[node_of[tail]], outline)
        curve[-1] = _onto_border(curve[-1], boxes[node_of[head]], outline)
    right, lower = _extent(boxes, tuple(curves))
    return DagShape(right + MARGIN, lower + MARGIN, boxes, tuple(curves))


def _corner(middles: Float64Array, sizes: Float64Array, curves: list[Float64Array]) -> Float64Array:
    """float64 [2]: the left and upper end of everything, margin included; y grows upwards."""
    left = np.concatenate([middles[:, 0] - sizes[:, 0] / 2, *(curve[:, 0] for curve in curves)]).min()
    upper = np.concatenate([middles[:, 1] + sizes[:, 1] / 2, *(curve[:, 1] for curve in curves)]).max()
    return np.array([left - MARGIN, upper + MARGIN])


def _points(text: str) -> Float64Array:
    """float64 [p, 2] of `x,y x,y ...`; without arrowheads there is nothing else in it."""
    return np.array([[float(number) for number in pair.split(",")] for pair in text.split()])


def _onto_border(point: Float64Array, box: Float64Array, outline: Outline) -> Float64Array:
    """The point of a box's or circle's border that is nearest to a point next to it."""
    middle, half = box[:2], box[2:] / 2
    away = point - middle
    if outline == "circle":
        return middle + away * half / np.hypot(*away)
    inside = np.clip(away, -half, half)
    side = int(np.argmin(half - np.abs(inside)))
    inside[side] = np.copysign(half[side], inside[side])
    return middle + inside
