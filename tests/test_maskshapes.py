"""Triangles and rectangles cover exactly what is visible; brackets are few enough for their names."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from legraph.brackets import MAX_SHIFT, Bracket, brackets, spread
from legraph.maskshapes import (
    coverage,
    edge_rectangles,
    joined_triangles,
    mask_shapes,
    melted,
    rectangle_corners,
    staircase,
    triangle_corners,
)
from tests.pictures import full_tree
from tests.random_graphs import Dag, brute_force_mask, dags


def painted(rectangles: np.ndarray, size: int) -> np.ndarray:
    """int [size, size]: how many rectangles lie over each cell."""
    cells = np.zeros((size, size), dtype=np.int64)
    for top, bottom, left, right in rectangles.tolist():
        assert top < bottom and left < right
        cells[top:bottom, left:right] += 1
    return cells


def holds(polygon: np.ndarray, size: int) -> np.ndarray:
    """bool [size, size]: whether the middle of each cell, queries by keys, lies in a polygon of (k, q)."""
    middles = np.arange(size) + 0.5
    points = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
    return Outline(polygon).contains_points(points).reshape(size, size)


@given(dag=dags())
def test_there_is_one_rectangle_for_each_edge_of_the_childs_span_by_the_parents(dag: Dag) -> None:
    start = [sum(dag.lengths[:i]) for i in range(len(dag.lengths) + 1)]
    expected = [
        [start[child], start[child + 1], start[parent], start[parent + 1]]
        for child, row in enumerate(dag.parents)
        for parent in row
    ]
    assert edge_rectangles(dag.mask()).tolist() == expected


@given(dag=dags())
def test_melted_rectangles_cover_the_cells_of_the_edges_once(dag: Dag) -> None:
    edges = edge_rectangles(dag.mask())
    found = melted(edges)
    assert np.array_equal(painted(found, dag.num_tokens), painted(edges, dag.num_tokens))
    assert painted(found, dag.num_tokens).max(initial=0) <= 1
    assert len(found) <= len(edges)
    assert found.tolist() == sorted(found.tolist())


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ([(), (), (), (0, 1, 2)], [[6, 8, 0, 6]]),
        ([(), (0,), (0,), (0,)], [[2, 8, 0, 2]]),
        ([(), (), (0, 1), (0, 1)], [[4, 8, 0, 4]]),
        ([(), (), (0,), (1,)], [[4, 6, 0, 2], [6, 8, 2, 4]]),
        ([(), (), (), (0, 2)], [[6, 8, 0, 2], [6, 8, 4, 6]]),
    ],
    ids=["question", "head", "square", "corners", "gap"],
)
def test_neighbours_melt(parents: list[tuple[int, ...]], expected: list[list[int]]) -> None:
    dag = Dag((2, 2, 2, 2), tuple(parents))
    assert mask_shapes(dag.mask()).rectangles.tolist() == expected


def test_a_tree_has_about_as_many_rectangles_as_chunks_not_as_edges() -> None:
    mask = full_tree(1023, 2).mask
    assert mask.num_edges > 8000
    assert len(mask_shapes(mask).rectangles) < 1100


@settings(max_examples=60)
@given(dag=dags(max_chunks=10))
def test_shapes_at_the_middles_of_cells_are_the_mask(dag: Dag) -> None:
    shapes, size = mask_shapes(dag.mask()), dag.num_tokens
    found = np.zeros((size, size), dtype=np.int64)
    for corners in (*triangle_corners(shapes.triangles), *rectangle_corners(shapes.rectangles)):
        found += holds(corners, size)
    assert np.array_equal(found, brute_force_mask(dag).astype(int))


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_staircase_is_its_triangle_cell_by_cell(start: int, length: int) -> None:
    end = start + length
    corners = staircase(start, end)
    expected = np.zeros((end + 2, end + 2), dtype=np.bool_)
    expected[start:end, start:end] = np.tri(length, dtype=np.bool_)
    assert np.array_equal(holds(corners, end + 2), expected)
    assert np.array_equal(corners, np.round(corners)), "corners of cells"
    steps = np.abs(np.diff(corners, axis=0))
    assert (steps.min(axis=1) == 0).all(), "right angles only"


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=40), shortest=st.integers(1, 12))
def test_joined_triangles_leave_no_token_out_and_no_long_chunk_joined(
    lengths: list[int], shortest: int
) -> None:
    ends = np.cumsum([0, *lengths])
    triangles = np.stack([ends[:-1], ends[1:]], axis=1)
    found = joined_triangles(triangles, shortest).tolist()
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == ends[-1]
    assert all([start, end] in found for start, end in triangles.tolist() if end - start >= shortest)
    chunks = set(map(tuple, triangles.tolist()))
    for start, end in found:
        if (start, end) not in chunks:
            last = max(a for a, b in chunks if b == end)
            assert last - start < shortest, "no more than are needed"


@settings(max_examples=60)
@given(dag=dags(max_chunks=12), side=st.integers(1, 20))
def test_coverage_is_the_part_of_each_cell_that_is_visible(dag: Dag, side: int) -> None:
    rectangles = edge_rectangles(dag.mask())
    fine = np.kron(painted(rectangles, dag.num_tokens), np.ones((side, side)))
    expected = fine.reshape(side, dag.num_tokens, side, dag.num_tokens).mean(axis=(1, 3))
    np.testing.assert_allclose(coverage(rectangles, dag.num_tokens, side), expected, atol=1e-9)


LINE = 10.0


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=80),
    prefixes=st.lists(st.sampled_from(["doc", "doc", "doc", "head", "x"]), min_size=80, max_size=80),
    length=st.sampled_from([60.0, 200.0, 432.0]),
)
def test_brackets_have_room_for_their_names_and_leave_no_chunk_out(
    lengths: list[int], prefixes: list[str], length: float
) -> None:
    names = [f"{prefix}{i}" for i, prefix in enumerate(prefixes[: len(lengths)])]
    offsets = np.cumsum([0, *lengths])
    found = brackets(names, offsets, length, LINE)
    ends = offsets * (length / offsets[-1])
    for level in (0, 1):
        row = [at for at in found if at.level == level]
        middles = np.array([(ends[at.first] + ends[at.last]) / 2 for at in row])
        places = spread(middles.tolist(), [LINE] * len(row), length)
        assert places is not None
        assert (np.diff(places) >= LINE - 1e-9).all()
        assert (np.abs(places - middles) <= MAX_SHIFT * LINE + 1e-9).all()
        assert all(one.last <= other.first for one, other in itertools.pairwise(row))
    outer = [at for at in found if at.level == 1 or not is_inside(at, found)]
    assert [at.first for at in outer] == [0, *(at.last for at in outer[:-1])]
    assert outer[-1].last == len(names)
    for at in found:
        if at.last - at.first == 1:
            assert at.label == names[at.first]
        else:
            assert at.label.endswith(f" x{at.last - at.first}")


def is_inside(bracket: Bracket, found: tuple[Bracket, ...]) -> bool:
    return any(at.level == 1 and at.first <= bracket.first < at.last for at in found)


def test_siblings_share_a_bracket_where_their_names_have_no_room() -> None:
    names = ["bos", *(f"doc{i}" for i in range(500)), "question"]
    offsets = np.cumsum([0, 1, *[200] * 500, 20])
    labels = [at.label for at in brackets(names, offsets, 432.0, LINE)]
    assert labels == ["bos", "doc[0..499] x500", "question"]


def test_with_room_every_chunk_has_its_own() -> None:
    names = [f"doc{i}" for i in range(30)]
    found = brackets(names, np.arange(31) * 60, 432.0, LINE)
    assert [at.label for at in found] == names


def test_the_long_one_among_short_siblings_is_named_inside_their_bracket() -> None:
    names = [f"doc{i}" for i in range(100)]
    lengths = [1000 if i == 50 else 10 for i in range(100)]
    found = brackets(names, np.cumsum([0, *lengths]), 432.0, LINE)
    assert [(at.label, at.level) for at in found] == [("doc50", 0), ("doc[0..99] x100", 1)]


def test_many_unlike_names_share_a_bracket_by_their_place() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [one + other for one in letters for other in letters]
    found = brackets(names, np.arange(len(names) + 1), 432.0, LINE)
    assert [at.label for at in found] == ["aa \N{HORIZONTAL ELLIPSIS} zz x676"]


@given(
    middles=st.lists(st.floats(0, 400), min_size=1, max_size=20).map(sorted),
    size=st.floats(1, 30),
)
def test_spread_labels_touch_only_if_they_must(middles: list[float], size: float) -> None:
    places = spread(middles, [size] * len(middles), 400.0)
    if places is None:
        assert size * (len(middles) - 1) > 400
        return
    assert (np.diff(places) >= size - 1e-6).all()
    assert places[0] >= 0 - 1e-6 and places[-1] <= 400 + 1e-6
    if (np.diff(middles) >= size).all():
        np.testing.assert_allclose(places, middles, atol=1e-6)
