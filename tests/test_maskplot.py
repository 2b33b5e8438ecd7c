"""The files of pictures show the mask: read back from SVG paths and PNG pixels, not from our own arrays."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.artist import Artist

from legraph.bundle import Bundle
from legraph.errors import InputError
from legraph.figure import SUFFIXES, save_figure
from legraph.maskplot import MOST_CELLS, mask_figure
from legraph.palette import PALETTES, THEMES, Theme
from tests.pictures import (
    bundle_of,
    check_texts,
    contrast,
    corner_and_scale,
    covered,
    documents,
    full_tree,
    paths,
    pixels_at_middles,
    rgb,
    scattered,
)
from tests.random_graphs import bundles

# Characters that the font has; for others, there is a box as tall as a font of last resort wants it.
WRITTEN = st.text(st.characters(max_codepoint=0x24F), max_size=120)
FEW = settings(max_examples=8)
LARGE_BUNDLES = bundles(max_chunks=9, max_length=40).filter(lambda bundle: len(bundle) > MOST_CELLS)


def own_pairs(bundle: Bundle) -> np.ndarray:
    """bool [N, N]: both tokens are of the same chunk."""
    chunk = np.repeat(np.arange(bundle.mask.num_chunks), np.diff(bundle.span_offsets))
    return chunk[:, None] == chunk[None, :]


def check_svg(svg: Path, bundle: Bundle) -> None:
    corner, size = corner_and_scale(svg, len(bundle)), len(bundle)
    own = covered(svg, "own", corner, size) + covered(svg, "own-short", corner, size)
    parents = covered(svg, "parents", corner, size)
    dense, is_own = bundle.dense_mask(), own_pairs(bundle)
    assert np.array_equal(own, (dense & is_own).astype(int))
    assert np.array_equal(parents, (dense & ~is_own).astype(int))


def check_png(png: Path, svg: Path, bundle: Bundle, theme: Theme) -> None:
    palette, corner = PALETTES[theme], corner_and_scale(svg, len(bundle))
    found = pixels_at_middles(png, corner, len(bundle)).astype(int)
    dense, is_own = bundle.dense_mask(), own_pairs(bundle)
    expected = np.where(is_own[..., None], rgb(palette.own), rgb(palette.parent))
    expected = np.where(dense[..., None], expected, rgb(palette.masked))
    assert np.abs(found - expected).max() <= 1


@FEW
@given(bundle=bundles(max_chunks=8, max_length=8), theme=st.sampled_from(THEMES))
def test_files_of_a_small_graph_show_its_mask(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, theme: Theme
) -> None:
    check_files(tmp_path_factory, bundle, theme)


@FEW
@given(bundle=LARGE_BUNDLES, theme=st.sampled_from(THEMES))
def test_files_of_a_larger_graph_do_too(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, theme: Theme
) -> None:
    check_files(tmp_path_factory, bundle, theme)


def check_files(folders: pytest.TempPathFactory, bundle: Bundle, theme: Theme) -> None:
    folder = folders.mktemp("picture")
    figure = mask_figure(bundle, theme=theme)
    save_figure(figure, folder / "mask.svg")
    save_figure(figure, folder / "mask.png")
    check_svg(folder / "mask.svg", bundle)
    check_png(folder / "mask.png", folder / "mask.svg", bundle, theme)


def test_a_mask_in_more_pieces_than_a_file_should_have_is_exact_too(tmp_path: Path) -> None:
    # A chessboard below the diagonal: no two of its 22,500 rectangles melt.
    size = 300
    bundle = bundle_of([1] * size, [range((i + 1) % 2, i, 2) for i in range(size)])
    figure = mask_figure(bundle)
    for name in ("mask.svg", "mask.png"):
        save_figure(figure, tmp_path / name)
    assert paths(tmp_path / "mask.svg", "parents") == []
    check_png(tmp_path / "mask.png", tmp_path / "mask.svg", bundle, "light")
    assert (tmp_path / "mask.svg").stat().st_size < 500_000


def test_cells_are_drawn_up_to_some_size_only(tmp_path: Path) -> None:
    for size, lines in ((MOST_CELLS, 2 * (MOST_CELLS - 1)), (MOST_CELLS + 1, 0)):
        path = tmp_path / f"{size}.svg"
        save_figure(mask_figure(bundle_of([size], [[]])), path)
        assert len(paths(path, "cells")) == lines


HUNDRED_THOUSAND: dict[str, Callable[[], Bundle]] = {
    "documents": lambda: documents(500, 200),
    "short": lambda: bundle_of([8] * 12_500, [*([[]] * 12_499), range(12_499)]),
    "tree": lambda: full_tree(1023, 98),
    "scattered": lambda: scattered(12_500, 8),
    "chain": lambda: bundle_of([8] * 12_500, [[], *([i] for i in range(12_499))]),
}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [*((name, False) for name in HUNDRED_THOUSAND), ("documents", True), ("scattered", True)],
)
def test_a_hundred_thousand_tokens_are_drawn_quickly_into_small_files(
    tmp_path: Path, name: str, blocks: bool
) -> None:
    bundle = HUNDRED_THOUSAND[name]()
    start = time.process_time()
    figure = mask_figure(bundle, blocks=blocks, positions=True)
    for suffix in SUFFIXES:
        save_figure(figure, tmp_path / f"mask{suffix}")
    # No measure: they take 1 to 3 seconds, and an artist for each cell would take minutes.
    assert time.process_time() - start < 30
    for suffix in SUFFIXES:
        assert (tmp_path / f"mask{suffix}").stat().st_size < 1_000_000
    check_texts(figure)


def test_what_is_thinner_than_a_line_is_drawn_as_one(tmp_path: Path) -> None:
    save_figure(mask_figure(documents(500, 200)), tmp_path / "mask.svg")
    x, y, scale = corner_and_scale(tmp_path / "mask.svg", 100_021)
    boxes = [(*part.min(axis=0), *part.max(axis=0)) for part in paths(tmp_path / "mask.svg", "parents")]
    side = 100_021 * scale
    head, question = sorted(boxes, key=lambda box: box[2] - box[0])
    assert 0.4 < head[2] - head[0] < 0.6, "the first token, which all documents see"
    assert head[0] == pytest.approx(x, abs=0.02) and head[3] - head[1] > 0.99 * side
    assert 0.4 < question[3] - question[1] < 0.6, "twenty tokens that see all documents"
    assert question[3] == pytest.approx(y + side, abs=0.02) and question[2] - question[0] > 0.99 * side


@settings(max_examples=15)
@given(
    bundle=bundles(max_chunks=30, max_length=60),
    prefixes=st.lists(
        st.sampled_from(["doc", "d", "a_rather_long_name_of_some_chunk_", "x.y-"]), min_size=30, max_size=30
    ),
    theme=st.sampled_from(THEMES),
    positions=st.booleans(),
    blocks=st.booleans(),
    title=st.none() | WRITTEN,
)
def test_texts_never_touch(
    bundle: Bundle, prefixes: list[str], title: str | None, theme: Theme, positions: bool, blocks: bool
) -> None:
    names = tuple(f"{prefixes[i]}{i}" for i in range(bundle.mask.num_chunks))
    named = replace(bundle, span_names=names)
    check_texts(mask_figure(named, theme=theme, positions=positions, blocks=blocks, title=title))


@settings(max_examples=10)
@given(bundle=bundles(max_chunks=8, max_length=8), data=st.data(), positions=st.booleans())
def test_nor_do_those_of_tokens(bundle: Bundle, data: Any, positions: bool) -> None:
    texts = data.draw(st.lists(WRITTEN, min_size=len(bundle), max_size=len(bundle)))
    check_texts(mask_figure(bundle, token_texts=texts, positions=positions))


def test_the_legend_counts() -> None:
    bundle = bundle_of([128, 128, 127], [[], [0], [0]])
    texts = check_texts(mask_figure(bundle, blocks=True))
    visible = int(bundle.dense_mask().sum())
    assert (
        f"383 tokens \N{MIDDLE DOT} 3 chunks \N{MIDDLE DOT} 2 edges \N{MIDDLE DOT} "
        f"{visible / 383**2 * 100:.3g}% of all pairs visible"
    ) in texts
    # Three on the diagonal and the last row's, which stick out, are partial; the second row's first is full.
    assert {"blocks of 128 x 128: 9", "full: 1", "partial: 4", "empty, skipped: 4"} <= set(texts)


def test_blocks_are_where_they_are_counted(tmp_path: Path) -> None:
    bundle = bundle_of([128, 128, 127], [[], [0], [0]])
    save_figure(mask_figure(bundle, blocks=True), tmp_path / "mask.svg")
    corner = corner_and_scale(tmp_path / "mask.svg", len(bundle))
    full = covered(tmp_path / "mask.svg", "full-blocks", corner, len(bundle))
    partial = covered(tmp_path / "mask.svg", "partial-blocks", corner, len(bundle))
    kinds = np.array([["p", "", ""], ["f", "p", ""], ["p", "", "p"]])
    expected = kinds.repeat(128, axis=0).repeat(128, axis=1)[:383, :383]
    assert np.array_equal(full, (expected == "f").astype(int))
    assert np.array_equal(partial, (expected == "p").astype(int))


def test_positions_stand_at_tokens_or_behind_names() -> None:
    small = replace(bundle_of([2, 2], [[], []]), position_ids=np.array([7, 8, 70, 71]))
    texts = check_texts(mask_figure(small, positions=True))
    assert [texts.count(at) for at in ("7", "8", "70", "71")] == [2, 2, 2, 2], "on both sides"
    ids = np.concatenate([np.arange(50), np.arange(5, 105), np.arange(5, 6)])
    large = replace(bundle_of([50, 100, 1], [[], [], []]), position_ids=ids)
    texts = check_texts(mask_figure(large, positions=True))
    assert {"c0  0..49", "c1  5..104", "c2  5"} <= set(texts)
    assert not any(re.search(r"\d\.\.", text) for text in check_texts(mask_figure(large)))


def test_a_hostile_text_stays_text(tmp_path: Path) -> None:
    texts = ["<script>", "\x00\x1b", "$\\frac{1}{2}$", "\udc80", "a\nb\t", "&amp;", "\N{PILE OF POO}", "]]>"]
    figure = mask_figure(bundle_of([8], [[]]), token_texts=texts, title="<b>$x$</b>")
    for suffix in SUFFIXES:
        save_figure(figure, tmp_path / f"mask{suffix}")
    found = {
        "".join(text.itertext()) for text in ElementTree.parse(tmp_path / "mask.svg").iter() if text.text
    }
    shown = {"<script>", "\N{REPLACEMENT CHARACTER}" * 2, "$\\frac{1}{2}$", "\N{REPLACEMENT CHARACTER}"}
    assert shown | {"&amp;", "\N{PILE OF POO}", "]]>", "<b>$x$</b>"} <= found
    assert "a\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}b\N{RIGHTWARDS ARROW TO BAR}" in found


@pytest.mark.parametrize("theme", THEMES)
def test_colours_differ_without_hue_and_texts_can_be_read(theme: Theme) -> None:
    palette = PALETTES[theme]
    assert contrast(palette.masked, palette.parent) > 2
    assert contrast(palette.parent, palette.own) > 2
    assert contrast(palette.masked, palette.paper) > 1.2
    assert contrast(palette.full, palette.partial) > 2
    for text in (palette.ink, palette.muted, palette.bracket):
        assert contrast(text, palette.paper) > 4.5
    figure = mask_figure(bundle_of([3], [[]]), theme=theme)
    assert (np.round(255 * np.array(figure.get_facecolor()[:3])) == rgb(palette.paper)).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_bundle_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("one", "other"):
        bundle = scattered(3000, 3)
        figure = mask_figure(bundle, blocks=True, positions=True, title="same")
        save_figure(figure, tmp_path / f"{name}{suffix}")
    save_figure(figure, tmp_path / f"again{suffix}")
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_the_users_matplotlibrc_has_no_say(tmp_path: Path) -> None:
    import matplotlib as mpl

    bundle = bundle_of([4, 3], [[], [0]])
    save_figure(mask_figure(bundle), tmp_path / "one.svg")
    with mpl.rc_context(
        {"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path", "savefig.pad_inches": 3}
    ):
        save_figure(mask_figure(bundle), tmp_path / "other.svg")
        assert mpl.rcParams["font.size"] == 30, "and is as it was"
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


class Broken(Artist):
    def draw(self, renderer: Any) -> None:
        raise ValueError("cannot be drawn")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"before")
    figure = mask_figure(bundle_of([4], [[]]))
    figure.add_artist(Broken())
    with pytest.raises(ValueError, match="cannot be drawn"):
        save_figure(figure, path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("mask.png", b"before")]


def test_refusals_of_files(tmp_path: Path) -> None:
    figure = mask_figure(bundle_of([4], [[]]))
    with pytest.raises(InputError, match=r"ends in \.png, \.svg or \.pdf"):
        save_figure(figure, tmp_path / "mask.jpg")
    with pytest.raises(InputError, match="cannot be written"):
        save_figure(figure, tmp_path / "missing" / "mask.png")
    save_figure(figure, tmp_path / "MASK.PNG")
    assert (tmp_path / "MASK.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"theme": "blue"}, "no theme 'blue'.*\n.*light or dark"),
        ({"size": 0.0}, "0 inches"),
        ({"size": float("nan")}, "nan inches"),
        ({"size": 41.0, "theme": ""}, "no theme ''(.|\n)*41 inches"),
        ({"token_texts": ["a"]}, "1 token text for 4 tokens"),
    ],
)
def test_refusals(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mask_figure(bundle_of([4], [[]]), **wrong)


def test_without_matplotlib_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'legraph\[viz\]'"):
        mask_figure(bundle_of([4], [[]]))
