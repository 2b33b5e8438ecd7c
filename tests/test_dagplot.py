"""Pictures of DAGs: boxes where the layout has them, texts that have room, the same bytes every time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import legraph
from legraph.bundle import Bundle
from legraph.dagplot import LOOKS, Look, dag_figure
from legraph.dagsheet import MAX_SIDE
from legraph.errors import InputError
from legraph.figure import POINTS_PER_INCH, save_figure
from legraph.graph import Generate
from legraph.palette import PALETTES, THEMES, Theme
from tests.pictures import bundle_of, check_texts, contrast, documents, full_tree, paths
from tests.random_graphs import Dag, dags

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))


def generating(bundle: Bundle, *names: str) -> Bundle:
    generate = {name: Generate(24) for name in names}
    return replace(bundle, meta=replace(bundle.meta, generate=generate))


def bounds(svg: Path, name: str) -> np.ndarray:
    """float64 [4]: left, upper, right and lower end of the outlines of one name."""
    points = np.concatenate(paths(svg, name))
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_has_a_picture_that_tells_its_names(path: Path) -> None:
    bundle = legraph.compile_file(path)
    texts = check_texts(dag_figure(bundle))
    assert set(bundle.span_names) <= set(texts)
    shown = [text for text in texts if "chunk" in text]
    assert shown == [text for text in shown if f"{bundle.mask.num_edges} edge" in text]
    assert len([text for text in texts if re.fullmatch(r" *▸ \d+", text)]) == len(bundle.meta.generate)


@given(dag=dags(max_chunks=15), look=st.sampled_from(LOOKS), theme=st.sampled_from(THEMES))
@settings(max_examples=12)
def test_no_text_of_a_random_graph_touches_another(dag: Dag, look: Look, theme: Theme) -> None:
    bundle = bundle_of(dag.lengths, dag.parents)
    figure = dag_figure(bundle, look=look, theme=theme, engine="layered", title="A title")
    texts = check_texts(figure)
    assert {f"c{i}" for i in range(len(dag.lengths))} | {"A title"} <= set(texts)


def test_arrows_lead_from_boxes_to_boxes(tmp_path: Path) -> None:
    """Read back from the file: lines start at the parents' lower borders, arrows end at the children."""
    rows = [[], [0], [0], [1, 2]]
    path = tmp_path / "dag.svg"
    save_figure(dag_figure(bundle_of([1, 2, 3, 4], rows), engine="layered"), path)
    boxes = [bounds(path, f"node{i}") for i in range(4)]
    tips = [polygon[0] for polygon in paths(path, "edges-ends")]
    edges = [(parent, child) for child, row in enumerate(rows) for parent in row]
    assert len(tips) == len(edges)
    for (parent, child), tip, line in zip(edges, tips, paths(path, "edges"), strict=True):
        for box, point, border in ((boxes[parent], line[0], 3), (boxes[child], tip, 1)):
            assert point[1] == pytest.approx(box[border], abs=0.02)
            assert box[0] < point[0] < box[2]
        assert boxes[parent][3] < boxes[child][1]


def test_what_stands_for_many_is_a_stack_or_on_a_plate(tmp_path: Path) -> None:
    bundle = documents(500, 10)
    figure = dag_figure(bundle)
    save_figure(figure, tmp_path / "box.svg")
    assert {"doc[0..499] x500", "5,000 tokens", "bos", "question"} <= set(check_texts(figure))
    assert [len(paths(tmp_path / "box.svg", f"node{i}-2")) for i in range(3)] == [0, 1, 0]
    assert {"doc[0..499]", "\N{MULTIPLICATION SIGN}500"} <= set(check_texts(dag_figure(bundle, look="daft")))


def test_a_large_graph_says_how_it_is_drawn() -> None:
    (caption,) = [text for text in check_texts(dag_figure(full_tree(1023, 3))) if "chunks" in text]
    assert caption == "1,023 chunks, 8,194 edges, 3,069 tokens · drawn as 10 nodes"


@pytest.mark.parametrize("look", LOOKS)
def test_the_same_graph_gives_the_same_bytes(look: Look, tmp_path: Path) -> None:
    files = [tmp_path / "one.svg", tmp_path / "other.svg"]
    for path in files:
        bundle = generating(bundle_of([1, 2, 3], [[], [0], [0, 1]]), "c2")
        save_figure(dag_figure(bundle, look=look), path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_line_that_children_share_is_written_once(tmp_path: Path) -> None:
    """60 chunks of which each sees all before: 1,770 curves of up to 59 rows."""
    path = tmp_path / "dense.svg"
    figure = dag_figure(bundle_of([1] * 60, [list(range(i)) for i in range(60)]))
    save_figure(figure, path)
    assert path.stat().st_size < 1_000_000
    assert figure.get_size_inches().max() * POINTS_PER_INCH <= MAX_SIDE + 10
    assert len(paths(path, "edges-ends")) == 1770


def test_names_are_texts_and_nothing_else(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "$x_1$ \\frac", "a\nb&amp;"]
    path = tmp_path / "hostile.svg"
    save_figure(dag_figure(bundle_of([1] * 3, [[]] * 3, names), title="</svg>\n$"), path)
    root = ElementTree.parse(path).getroot()
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    shown = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("}text")}
    assert {names[0], names[1]} <= shown


def test_long_names_are_cut_but_not_their_numbers() -> None:
    names = [f"{'long_' * 30}{i}" for i in range(80)]
    texts = check_texts(dag_figure(bundle_of([1] * 80, [[]] * 80, names)))
    (name,) = [text for text in texts if text.startswith("long_")]
    assert name.endswith("[0..79] x80")
    assert len(name) < 50


@pytest.mark.parametrize("theme", THEMES)
def test_texts_and_marks_can_be_read(theme: Theme) -> None:
    palette = PALETTES[theme]
    for color in (palette.ink, palette.muted):
        assert contrast(color, palette.box) > 4.5
        assert contrast(color, palette.paper) > 4.5
    assert contrast(palette.generate, palette.box) > 3


def test_other_themes_and_looks_are_refused_together() -> None:
    with pytest.raises(InputError) as caught:
        dag_figure(documents(2, 1), theme="sepia", look="tube")  # pyright: ignore[reportArgumentType]
    assert [problem.message for problem in caught.value.problems] == ["no theme 'sepia'", "no look 'tube'"]
