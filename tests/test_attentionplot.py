"""Pictures of attention show the numbers they are made of where they belong, and nothing elsewhere."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from legraph.attentionmass import AttentionMass
from legraph.attentionplot import MOST_CELLS, MOST_NUMBERS, MOST_PIXELS, attention_figure, number
from legraph.bundle import Bundle
from legraph.errors import InputError
from legraph.figure import SUFFIXES, save_figure
from legraph.palette import PALETTES, THEMES, Theme
from tests.pictures import (
    bundle_of,
    check_texts,
    contrast,
    corner_and_scale,
    covered,
    documents,
    pixels_at_middles,
    rgb,
    scattered,
)
from tests.random_graphs import bundles

LAYERS, HEADS = 2, 3
# The scale has fewer colours than there are numbers: half a step of the square root from white to dark.
COLOR_ERROR = 4
FEW = settings(max_examples=6)


def measured(bundle: Bundle, seed: int = 0, tokens: bool = False, sinks: bool = False) -> AttentionMass:
    """Random attention; the pairs of a chunk, and the keys of a token, sum to 1."""
    rng = np.random.default_rng(seed)
    rows = np.diff(bundle.parent_offsets) + 1
    starts = np.cumsum(rows) - rows
    mass = rng.gamma(0.5, 1.0, (LAYERS, HEADS, int(rows.sum())))
    mass /= np.repeat(np.add.reduceat(mass, starts, axis=2), rows, axis=2)
    weights = None
    if tokens:
        weights = rng.gamma(0.5, 1.0, (LAYERS, HEADS, len(bundle), len(bundle))) * bundle.dense_mask()
        weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    sunk = np.full((LAYERS, HEADS, len(rows)), 0.25, dtype=np.float32) if sinks else None
    return AttentionMass(bundle, mass.astype(np.float32), sunk, weights)


def chunk_mask(bundle: Bundle) -> np.ndarray:
    """bool [K, K]: each chunk sees itself and its parents."""
    seen = np.eye(bundle.mask.num_chunks, dtype=np.bool_)
    for i in range(len(seen)):
        seen[i, bundle.parents(i)] = True
    return seen


def color_of(value: float, theme: Theme) -> np.ndarray:
    """The scale, read off the palette: even steps of the square root."""
    steps = [rgb(color) for color in PALETTES[theme].scale]
    at = value**0.5 * (len(steps) - 1)
    low = min(int(at), len(steps) - 2)
    return steps[low] + (steps[low + 1] - steps[low]) * (at - low)


def check_colors(found: np.ndarray, seen: np.ndarray, matrix: np.ndarray, theme: Theme) -> None:
    for q, k in np.argwhere(seen).tolist():
        assert np.abs(found[q, k] - color_of(float(matrix[q, k]), theme)).max() <= COLOR_ERROR


@FEW
@given(
    bundle=bundles(max_chunks=9, max_length=4), theme=st.sampled_from(THEMES), layer=st.none() | st.just(1)
)
def test_cells_have_the_colours_of_their_numbers_and_no_other_is_drawn(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, theme: Theme, layer: int | None
) -> None:
    svg = tmp_path_factory.mktemp("picture") / "attention.svg"
    attention = measured(bundle)
    save_figure(attention_figure(attention, layer=layer, theme=theme), svg)
    seen, matrix = chunk_mask(bundle), attention.matrix(layer)
    corner = corner_and_scale(svg, len(seen), "hidden")
    drawn = np.zeros(seen.shape, dtype=np.int64)
    for group in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}g"):
        name = group.get("id") or ""
        if not name.startswith("attention-"):
            continue
        cells = covered(svg, name, corner, len(seen))
        drawn += cells
        style = next(group.iter("{http://www.w3.org/2000/svg}path")).get("style") or ""
        color = rgb(style.split("fill: ")[1][:7])
        check_colors(np.broadcast_to(color, (*seen.shape, 3)), cells > 0, matrix, theme)
    assert np.array_equal(drawn, seen.astype(int))


def numbers_of(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_gid() == "number"]


def test_numbers_stand_in_their_cells(tmp_path: Path) -> None:
    bundle = documents(3, 5)
    attention = measured(bundle, seed=3)
    figure = attention_figure(attention, layer=1, head=2)
    matrix, seen = attention.matrix(1, 2), chunk_mask(bundle)
    save_figure(figure, tmp_path / "attention.svg")
    x, y, scale = corner_and_scale(tmp_path / "attention.svg", len(seen), "hidden")
    found = {
        (
            int((text.get_position()[1] - y) / scale),
            int((text.get_position()[0] - x) / scale),
        ): text.get_text()
        for text in numbers_of(figure)
    }
    assert found == {(q, k): number(float(matrix[q, k])) for q, k in np.argwhere(seen).tolist()}
    texts = check_texts(figure)
    assert {"attention between chunks: layer 1, head 2", "bos", "doc1", "question"} <= set(texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.001, "<.01"), (0.005, ".01"), (0.254, ".25"), (0.994, ".99"), (0.999, "1"), (1.0, "1")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("theme", THEMES)
def test_many_chunks_are_pixels_of_an_image(tmp_path: Path, theme: Theme) -> None:
    bundle = scattered(150, 2)
    attention = measured(bundle)
    figure = attention_figure(attention, head=0, theme=theme)
    for name in ("a.svg", "a.png"):
        save_figure(figure, tmp_path / name)
    seen = chunk_mask(bundle)
    found = pixels_at_middles(tmp_path / "a.png", corner_and_scale(tmp_path / "a.svg", 150, "hidden"), 150)
    check_colors(found.astype(int), seen, attention.matrix(None, 0), theme)
    # Hidden pairs are hatched: only the background and its hatches.
    palette = PALETTES[theme]
    hidden = found[~seen].astype(int)
    low = np.minimum(rgb(palette.masked), rgb(palette.muted)) - 2
    high = np.maximum(rgb(palette.masked), rgb(palette.muted)) + 2
    assert ((hidden >= low) & (hidden <= high)).all()
    check_texts(figure)


@pytest.mark.parametrize("theme", THEMES)
def test_a_pair_without_attention_is_not_like_one_that_cannot_be_seen(theme: Theme) -> None:
    palette = PALETTES[theme]
    assert contrast(palette.scale[0], palette.masked) > 1.2
    steps = [contrast(color, palette.scale[0]) for color in palette.scale]
    assert steps == sorted(steps), "told apart by lightness alone"
    assert all(later / earlier > 1.2 for earlier, later in itertools.pairwise(steps))


@pytest.mark.parametrize("theme", THEMES)
def test_numbers_can_be_read(theme: Theme) -> None:
    bundle = bundle_of([1] * 20, [range(i) for i in range(20)])
    attention = measured(bundle)
    figure = attention_figure(attention, theme=theme)
    seen, matrix = chunk_mask(bundle), attention.matrix()
    shown = dict(zip(map(tuple, np.argwhere(seen).tolist()), numbers_of(figure), strict=True))
    for (q, k), text in shown.items():
        behind = "#" + "".join(f"{round(part):02x}" for part in color_of(float(matrix[q, k]), theme))
        assert contrast(str(text.get_color()), behind) > 3.8


@pytest.mark.parametrize("size", [14, 60])
def test_tokens_are_drawn_where_they_were_measured(tmp_path: Path, size: int) -> None:
    bundle = bundle_of([size // 2, size // 2 - 3, 3], [[], [0], [1]], ["a", "b", "c"])
    attention = measured(bundle, tokens=True)
    figure = attention_figure(attention, tokens=True, layer=0, head=1)
    for name in ("a.svg", "a.png"):
        save_figure(figure, tmp_path / name)
    assert attention.tokens is not None
    matrix, dense = attention.tokens[0, 1], bundle.dense_mask()
    if size > MOST_CELLS:
        corner = corner_and_scale(tmp_path / "a.svg", size, "hidden")
        check_colors(pixels_at_middles(tmp_path / "a.png", corner, size).astype(int), dense, matrix, "light")
    else:
        numbers = [text.get_text() for text in numbers_of(figure)]
        assert size <= MOST_NUMBERS
        assert numbers == [number(float(matrix[q, k])) for q, k in np.argwhere(dense).tolist()]
    assert {"attention between tokens: layer 0, head 1", "a", "b", "c"} <= set(check_texts(figure))


LARGE = {
    "documents": lambda: documents(500, 200),
    "scattered": lambda: scattered(12_500, 8),
    "dense": lambda: bundle_of([8] * 700, [range(i) for i in range(700)]),
}


@pytest.mark.parametrize("name", LARGE)
def test_many_chunks_are_drawn_quickly_into_small_files(tmp_path: Path, name: str) -> None:
    attention = measured(LARGE[name]())
    start = time.process_time()
    figure = attention_figure(attention)
    for suffix in SUFFIXES:
        save_figure(figure, tmp_path / f"attention{suffix}")
    # No measure: an artist for each cell would take minutes.
    assert time.process_time() - start < 30
    for suffix in SUFFIXES:
        assert (tmp_path / f"attention{suffix}").stat().st_size < 1_000_000
    check_texts(figure)


def test_of_neighbours_that_share_a_pixel_the_largest_is_shown(tmp_path: Path) -> None:
    # Two chunks a pixel; one pair of the first column takes everything.
    size = 2 * MOST_PIXELS
    bundle = bundle_of([1] * size, [[], *([0] for _ in range(size - 1))])
    attention = measured(bundle)
    mass = np.zeros_like(attention.mass)
    mass[:, :, attention.pair_offsets[size // 2]] = 1.0
    figure = attention_figure(AttentionMass(bundle, mass))
    for name in ("a.svg", "a.png"):
        save_figure(figure, tmp_path / name)
    corner = corner_and_scale(tmp_path / "a.svg", MOST_PIXELS, "hidden")
    column = pixels_at_middles(tmp_path / "a.png", corner, MOST_PIXELS)[:, 0].astype(int)
    is_all = np.abs(column - rgb(PALETTES["light"].scale[-1])).max(axis=1) <= 1
    assert np.flatnonzero(is_all).tolist() == [size // 4]
    assert any("2 x 2 chunks" in text for text in check_texts(figure))


def test_the_title_says_what_is_shown_unless_it_is_given() -> None:
    attention = measured(documents(2, 3), sinks=True)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "attention between chunks: mean over layers and heads"),
        ({"layer": 0}, "attention between chunks: layer 0, mean over heads"),
        ({"head": 2}, "attention between chunks: mean over layers, head 2"),
        ({"title": "mine"}, "mine"),
    ]
    for wanted, title in cases:
        texts = check_texts(attention_figure(attention, **wanted))
        assert title in texts
        assert "attention sinks took 0.25 of a token's attention, in the mean" in texts


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_attention_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "other"):
        save_figure(attention_figure(measured(documents(50, 3))), tmp_path / f"{name}{suffix}")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layer": 2}, "no layer 2.*\n.*0 to 1"),
        ({"layer": -1, "head": 3}, "no layer -1(.|\n)*no head 3"),
        ({"tokens": True}, "no attention between tokens"),
        ({"theme": "blue"}, "no theme"),
        ({"size": 100.0}, "100 inches"),
    ],
)
def test_refusals(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attention_figure(measured(documents(2, 3)), **wrong)
