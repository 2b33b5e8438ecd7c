"""Layouts of both engines: parents above children, boxes apart, curves from border to border around boxes."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph import dagshape
from legraph.dagshape import DagShape, lay_out
from legraph.errors import InputError
from legraph.fold import FoldedDag, fold
from tests.pictures import bundle_of, documents, full_tree
from tests.random_graphs import Dag, dags

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
TOLERANCE = 1e-6


def folded(dag: Dag, most: int = 60) -> FoldedDag:
    return fold(bundle_of(dag.lengths, dag.parents), most)


def check(dag: FoldedDag, shape: DagShape, outline: str = "box") -> None:
    assert shape.boxes.shape == (len(dag.nodes), 4)
    assert len(shape.curves) == len(dag.edges)
    low, high = shape.boxes[:, :2] - shape.boxes[:, 2:] / 2, shape.boxes[:, :2] + shape.boxes[:, 2:] / 2
    extent = np.array([shape.width, shape.height])
    assert (low >= -TOLERANCE).all()
    assert (high <= extent + TOLERANCE).all()
    for one, other in combinations(range(len(dag.nodes)), 2):
        apart = (high[one] <= low[other] + TOLERANCE) | (high[other] <= low[one] + TOLERANCE)
        assert apart.any(), "boxes overlap"
    for (parent, child), curve in zip(dag.edges.tolist(), shape.curves, strict=True):
        assert high[parent, 1] < low[child, 1], "a parent is not above its child"
        assert curve.shape[1] == 2
        assert len(curve) % 3 == 1
        assert len(curve) >= 4
        assert (curve >= -TOLERANCE).all()
        assert (curve <= extent + TOLERANCE).all()
        for point, node in ((curve[0], parent), (curve[-1], child)):
            assert distance_to_border(point, shape.boxes[node], outline) < TOLERANCE


def distance_to_border(point: np.ndarray, box: np.ndarray, outline: str) -> float:
    away = np.abs(point - box[:2])
    if outline == "circle":
        return abs(float(np.hypot(*away)) - box[2] / 2)
    out_of = away - box[2:] / 2
    # Of a box's distance function: outside the way to the corner or side, inside that to the nearest side.
    return abs(float(np.hypot(*np.maximum(out_of, 0)) + min(out_of.max(), 0.0)))


def on_curve(curve: np.ndarray, steps: int = 9) -> np.ndarray:
    """float64 [points, 2] on a chain of cubic Bezier curves, by the formula of Bernstein polynomials."""
    t = np.linspace(0, 1, steps)[:, None]
    parts = [curve[at : at + 4] for at in range(0, len(curve) - 1, 3)]
    return np.concatenate(
        [
            (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d
            for a, b, c, d in parts
        ]
    )


def check_free_ways(shape: DagShape, outline: str = "box") -> None:
    """No line runs through a box or circle: not through its inside, that is; it may end at a border."""
    for curve in shape.curves:
        points = on_curve(curve)
        for x, y, width, height in shape.boxes.tolist():
            away = np.abs(points - [x, y])
            inside = (away < [width / 2 - 0.01, height / 2 - 0.01]).all(axis=1)
            if outline == "circle":
                inside = np.hypot(*away.T) < width / 2 - 0.01
            assert not inside.any(), "a line runs through a box"


@given(dag=dags(), outline=st.sampled_from(["box", "circle"]))
@settings(max_examples=40)
def test_our_own_layout(dag: Dag, outline: str) -> None:
    made = folded(dag)
    sizes = np.full((len(made.nodes), 2), 44.0) if outline == "circle" else None
    shape = lay_out(made, "layered", sizes=sizes, outline=outline)  # pyright: ignore[reportArgumentType]
    check(made, shape, outline)
    check_free_ways(shape, outline)


@given(dag=dags(max_chunks=12), data=st.data())
@settings(max_examples=30)
def test_boxes_have_the_sizes_that_are_asked_for(dag: Dag, data: st.DataObject) -> None:
    made = folded(dag)
    size = st.tuples(st.floats(5, 300), st.floats(5, 90))
    sizes = np.array(data.draw(st.lists(size, min_size=len(made.nodes), max_size=len(made.nodes))))
    shape = lay_out(made, "layered", sizes=sizes)
    assert np.array_equal(shape.boxes[:, 2:], sizes)
    check(made, shape)
    check_free_ways(shape)


@needs_dot
@given(dag=dags(max_chunks=10), outline=st.sampled_from(["box", "circle"]))
@settings(max_examples=15)
def test_the_layout_of_graphviz(dag: Dag, outline: str) -> None:
    made = folded(dag)
    sizes = np.full((len(made.nodes), 2), 44.0) if outline == "circle" else None
    shape = lay_out(made, "graphviz", sizes=sizes, outline=outline)  # pyright: ignore[reportArgumentType]
    check(made, shape, outline)


def test_the_same_graph_has_the_same_places() -> None:
    made = fold(full_tree(31, 2))
    first, second = lay_out(made, "layered"), lay_out(made, "layered")
    assert np.array_equal(first.boxes, second.boxes)
    for one, other in zip(first.curves, second.curves, strict=True):
        assert np.array_equal(one, other)


def test_a_tree_is_drawn_without_crossings_and_its_parents_amid_their_children() -> None:
    made = fold(bundle_of([1] * 15, [[(i - 1) // 2] if i else [] for i in range(15)]))
    x, y = lay_out(made, "layered").boxes[:, :2].T
    for one, other in combinations(range(7), 2):
        if y[one] == y[other]:
            assert (x[one] < x[other]) == (
                max(x[2 * one + 1 : 2 * one + 3]) < min(x[2 * other + 1 : 2 * other + 3])
            )
    for node in range(7):
        assert x[node] == pytest.approx((x[2 * node + 1] + x[2 * node + 2]) / 2, abs=1.0)


def test_a_chain_goes_straight_down() -> None:
    made = fold(bundle_of([1] * 20, [[i - 1] if i else [] for i in range(20)]))
    shape = lay_out(made, "layered")
    assert np.ptp(shape.boxes[:, 0]) < TOLERANCE
    assert all(np.ptp(curve[:, 0]) < TOLERANCE for curve in shape.curves)


def test_many_documents_stand_in_several_rows() -> None:
    made = fold(documents(50, 2))
    shape = lay_out(made, "layered")
    check(made, shape)
    check_free_ways(shape)
    assert shape.width < 2 * shape.height
    assert len(set(shape.boxes[1:51, 1].tolist())) > 3


def test_a_dense_graph_is_narrow_whatever_the_number_of_its_edges() -> None:
    """60 chunks of which each sees all before it: 1,770 edges in as many trunks as nodes."""
    made = fold(bundle_of([1] * 60, [list(range(i)) for i in range(60)]))
    shape = lay_out(made)
    check(made, shape)
    assert shape.width < 1000


def test_labels_make_boxes_wide() -> None:
    names = ["a", "a_name_of_some_length", "b" * 300]
    boxes = lay_out(fold(bundle_of([1] * 3, [[]] * 3, names)), "layered").boxes
    assert boxes[0, 2] < boxes[1, 2] < boxes[2, 2] <= dagshape.WIDEST


def test_another_engine_is_refused() -> None:
    with pytest.raises(InputError, match="no layout engine 'neato'"):
        lay_out(fold(documents(2, 1)), "neato")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "there is no program 'dot'"),
        ("echo 'Error: no memory' >&2; exit 1", "no memory"),
        ("echo '<svg/>'", "its output is not JSON"),
        ("echo '{\"objects\": []}'", "another form than expected"),
        ("echo '[]'", "another form than expected"),
        ("exec sleep 5", "more than 0.2 seconds"),
    ],
)
def test_without_a_working_graphviz_our_own_layout_is_taken(
    script: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        program = tmp_path / "dot"
        program.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(dagshape, "GRAPHVIZ_SECONDS", 0.2 if "seconds" in says else 10.0)
    made = fold(documents(3, 1))
    assert np.array_equal(lay_out(made, "auto").boxes, lay_out(made, "layered").boxes)
    with pytest.raises(InputError, match=says):
        lay_out(made, "graphviz")


def test_crossings_that_the_order_of_chunks_would_make_are_undone() -> None:
    """A tree of depth 3 whose chunks are declared at random within a depth: no two lines cross."""
    rng = np.random.default_rng(3)
    rows: list[list[int]] = [[]]
    for start, end in ((0, 1), (1, 4), (4, 13)):
        rows += [[int(parent)] for parent in rng.permutation(np.repeat(np.arange(start, end), 3))][:9]
    made = fold(bundle_of([1] * len(rows), rows))
    x, y = lay_out(made, "layered").boxes[:, :2].T
    for one, other in combinations(made.edges.tolist(), 2):
        if y[one[0]] == y[other[0]] and y[one[1]] == y[other[1]]:
            assert (x[one[0]] - x[other[0]]) * (x[one[1]] - x[other[1]]) >= 0
