"""What plots share: a sheet to draw on, measured text, and the file that a picture becomes.

A sheet is one matplotlib axes over the whole figure, whose coordinates are points (1/72 inch) from the upper
left corner, y downwards: what is drawn at (x, y) stands at (x, y) in an SVG file too. pyplot, with its
windows and its global state, is never used, and the user's matplotlibrc has no say. matplotlib is imported
when it is needed; it comes with `pip install 'legraph[viz]'`.

The same figure gives the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from legraph.errors import InputError, Problem
from legraph.palette import Palette
from legraph.wholefile import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path as Outline

SUFFIXES = (".png", ".svg", ".pdf")
POINTS_PER_INCH = 72
PNG_DPI = 200
# So many points are a whole number of pixels in a .png file (25).
WHOLE_PIXELS = 9.0
# The first comes with matplotlib, so texts have the same size everywhere; the others are for viewers of an
# SVG that lack it. Verdana is about as wide.
FONTS = ("DejaVu Sans", "Verdana", "sans-serif")

# Of a point, in coordinates: finer than any screen, and short in a file.
_DECIMALS = 2
# In pixels, letters are moved to whole ones: small texts in a .png file are wider by up to so much.
_HINTED = 1.05
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": list(FONTS),
    # Texts in an SVG stay texts: they can be searched and copied, and take no space for outlines.
    "svg.fonttype": "none",
    "svg.hashsalt": "legraph",
    # A `$` in a chunk's text is no formula.
    "text.parse_math": False,
    "text.usetex": False,
    "hatch.linewidth": 0.4,
}
_UNDATED: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def check_matplotlib() -> None:
    """
    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        message = "pictures are drawn by matplotlib, which is not installed"
        raise InputError(Problem(message, hint="pip install 'legraph[viz]'")) from None


def check_suffix(path: Path) -> None:
    """
    Raises:
        InputError: a file of this name is no picture that legraph writes.
    """
    if path.suffix.lower() not in SUFFIXES:
        expected = f"a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise InputError(Problem(f"{path}: not a kind of picture that legraph writes", expected))


@contextmanager
def style() -> Iterator[None]:
    """matplotlib as it comes, with `_STYLE`. Artists take some of it when they are made, some when drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib as mpl

    defaults: dict[Any, Any] = {
        key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")
    }
    with mpl.rc_context(), warnings.catch_warnings():
        # A font without some character draws a box for it, in the picture: nothing to warn of.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        mpl.rcParams.update(defaults)
        mpl.rcParams.update(_STYLE)
        yield


def new_sheet(width: float, height: float, palette: Palette) -> tuple[Figure, Axes]:
    """An empty figure of `width` by `height` points, or a little more, and axes with points as coordinates.

    To be called, and drawn on, within `style()`.
    """
    from matplotlib.figure import Figure

    width, height = whole_pixels(width), whole_pixels(height)
    # dpi 72: a point is a pixel of the figure's own coordinates, whatever a file is saved with.
    size = (width / POINTS_PER_INCH, height / POINTS_PER_INCH)
    figure = Figure(figsize=size, dpi=POINTS_PER_INCH, facecolor=palette.paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def whole_pixels(points: float) -> float:
    """As many points, or a little more, that end between two pixels of a .png file."""
    return math.ceil(points / WHOLE_PIXELS) * WHOLE_PIXELS


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a picture, whole or not at all: .png, .svg or .pdf.

    Raises:
        InputError: another suffix, the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    check_suffix(path)
    suffix = path.suffix.lower()
    with style():
        write_atomically(
            path,
            lambda file: figure.savefig(
                file, format=suffix[1:], dpi=PNG_DPI, metadata=_UNDATED[suffix], facecolor="auto"
            ),
        )


def polygons(corners: NDArray[np.float64]) -> Outline:
    """One outline of many polygons with the same number of corners; corners: float64 [P, C, 2]."""
    from matplotlib.path import Path as Outline

    num_polygons, num_corners, _ = corners.shape
    codes = np.full((num_polygons, num_corners + 1), Outline.LINETO, dtype=np.uint8)
    codes[:, 0], codes[:, -1] = Outline.MOVETO, Outline.CLOSEPOLY
    closed = np.concatenate([corners, corners[:, :1]], axis=1)
    return Outline(np.round(closed.reshape(-1, 2), _DECIMALS), codes.reshape(-1))


def segments(ends: NDArray[np.float64]) -> Outline:
    """One outline of many open lines with the same number of points; ends: float64 [L, P, 2]."""
    from matplotlib.path import Path as Outline

    codes = np.full(ends.shape[:2], Outline.LINETO, dtype=np.uint8)
    codes[:, 0] = Outline.MOVETO
    return Outline(np.round(ends.reshape(-1, 2), _DECIMALS), codes.reshape(-1))


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Room for a text on one line, set in the first of `FONTS`, in points. To be called within `style()`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONTS[0], size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return _HINTED * float(width)


def one_line(text: str, most: int) -> str:
    """A text as it can stand in a picture: spaces and line ends made visible, at most `most` characters."""
    shown = "".join(
        _VISIBLE.get(char, char if char.isprintable() else "\N{REPLACEMENT CHARACTER}") for char in text
    )
    return shown if len(shown) <= most else shown[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


_VISIBLE = {
    "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    "\t": "\N{RIGHTWARDS ARROW TO BAR}",
}
