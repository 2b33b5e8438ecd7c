"""What tests of pictures share: graphs of known shape, and ways to read a picture's file back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.text import Text
from PIL import Image

from legraph.bundle import Bundle, BundleMeta
from legraph.figure import PNG_DPI, POINTS_PER_INCH, style
from legraph.mask import ChunkMask

Corner = tuple[float, float, float]
_SVG = "{http://www.w3.org/2000/svg}"


def bundle_of(lengths: Sequence[int], parents: Sequence[Sequence[int]], names: Sequence[str] = ()) -> Bundle:
    """A bundle without texts; chunk i is called `c{i}`, unless there are names."""
    offsets, parent_offsets = (np.cumsum([0, *of], dtype=np.int64) for of in (lengths, map(len, parents)))
    mask = ChunkMask(offsets, parent_offsets, np.array([i for row in parents for i in row], dtype=np.int64))
    ids = np.zeros(mask.num_tokens, dtype=np.int64)
    names = names or [f"c{i}" for i in range(len(lengths))]
    meta = BundleMeta("0", "none", "none", "none")
    return Bundle(ids, np.arange(mask.num_tokens), tuple(names), mask, meta)


def documents(num_documents: int, length: int) -> Bundle:
    names = ["bos", *(f"doc{i}" for i in range(num_documents)), "question"]
    parents = [[], *([0] for _ in range(num_documents)), range(num_documents + 1)]
    return bundle_of([1, *[length] * num_documents, 20], parents, names)


def full_tree(num_chunks: int, length: int) -> Bundle:
    """A binary tree, level by level, in which chunks see all their ancestors."""
    rows = list[list[int]]()
    for i in range(num_chunks):
        above = (i - 1) // 2
        rows.append([*rows[above], above] if i else [])
    return bundle_of([length] * num_chunks, rows)


def scattered(num_chunks: int, length: int) -> Bundle:
    """Each chunk sees four others, anywhere before it: nothing melts."""
    rng = np.random.default_rng(0)
    parents = [sorted(set(rng.integers(0, i, 4).tolist())) if i else [] for i in range(num_chunks)]
    return bundle_of([length] * num_chunks, parents)


def corner_and_scale(svg: Path, size: int, name: str = "masked") -> Corner:
    """x and y of the square's upper left corner and its points a token, as the file has them."""
    points = np.concatenate(paths(svg, name))
    (x, y), (right, bottom) = points.min(axis=0), points.max(axis=0)
    assert abs((right - x) - (bottom - y)) < 0.02, "a square"
    return float(x), float(y), float(right - x) / size


def paths(svg: Path, name: str) -> list[np.ndarray]:
    """The polygons, float [n, 2], of all paths in the group of this id; none if there is no such group."""
    groups = [group for group in ElementTree.parse(svg).iter(f"{_SVG}g") if group.get("id") == name]
    texts = [path.get("d") or "" for group in groups for path in group.iter(f"{_SVG}path")]
    polygons = [part for text in texts for part in text.split("M")[1:]]
    return [np.array(re.findall(r"-?[\d.]+", part), dtype=np.float64).reshape(-1, 2) for part in polygons]


def covered(svg: Path, name: str, corner: Corner, size: int) -> np.ndarray:
    """int [size, size]: how many polygons of a group hold the middle of each cell, queries by keys."""
    x, y, scale = corner
    middles = np.arange(size) + 0.5
    points = np.stack(np.meshgrid(x + scale * middles, y + scale * middles), axis=-1).reshape(-1, 2)
    found = np.zeros(size * size, dtype=np.int64)
    for polygon in paths(svg, name):
        found += Outline(polygon).contains_points(points)
    return found.reshape(size, size)


def pixels_at_middles(png: Path, corner: Corner, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the colour in the middle of each cell."""
    x, y, scale = corner
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB"))
    per_point = PNG_DPI / POINTS_PER_INCH
    middles = (np.arange(size) + 0.5) * scale
    columns = np.floor((x + middles) * per_point).astype(int)
    rows = np.floor((y + middles) * per_point).astype(int)
    return pixels[np.ix_(rows, columns)]


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])


def luminance(color: str) -> float:
    """Of WCAG 2: what is left of a colour where none is seen."""
    part = rgb(color) / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def text_boxes(figure: Figure) -> list[tuple[str, Any]]:
    """Every text that a figure shows, with the box that it takes in a .png file."""
    figure.set_dpi(PNG_DPI)
    with style():
        renderer = FigureCanvasAgg(figure).get_renderer()
        texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text().strip()]
        return [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


def check_texts(figure: Figure) -> list[str]:
    """No two texts touch, and none leaves the picture. Returns them."""
    boxes = text_boxes(figure)
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0, f"{text!r} leaves the picture"
        assert box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height, f"{text!r} leaves the picture"
        for other, other_box in boxes[:i]:
            apart = box.x1 <= other_box.x0 or other_box.x1 <= box.x0
            assert apart or box.y1 <= other_box.y0 or other_box.y1 <= box.y0, f"{text!r} touches {other!r}"
    return [text for text, _ in boxes]
