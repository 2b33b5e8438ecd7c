"""The page of a graph: one HTML file that needs nothing else. Data, style, script and libraries are in it.

What users wrote (texts, names, titles) reaches the page as JSON in an element that browsers do not run, and
is put into the document as text only. Should that ever fail, the page's own policy still forbids every
connection, and every script but the two that are written here, which it knows by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from legraph.errors import InputError, Problem
from legraph.palette import PALETTES, THEMES, Palette

FOLDER = Path(__file__).parent / "page"
# In the order in which they lean on each other.
LIBRARIES = ("color", "dispatch", "ease", "timer", "selection", "interpolate", "drag", "transition", "zoom")
SCRIPTS = ("data", "graph", "text", "raster", "axes", "mask", "dag", "panel", "search", "page")
MAX_MEGABYTES = 64
_PLACE = re.compile(r"\{\{(\w+)\}\}")
# Between <script> tags these could end the element, or begin a comment; some readers take the last two for
# ends of lines.
_UNSAFE = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def page_html(data: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        data: what `pagedata.page_data` returns.

    Raises:
        InputError: the page would be larger than a browser can be given.
    """
    content = json_for_script(data)
    size = len(content.encode()) / 1e6
    if size > MAX_MEGABYTES:
        raise InputError(
            Problem(
                f"the page would take {size:,.0f} MB",
                f"at most {MAX_MEGABYTES} MB",
                "make a page of a part of the graph, or leave the attention out",
            )
        )
    libraries, script, style = _libraries(), _script(), _style()
    parts = {
        "policy": _policy((libraries, script), style),
        "title": escape(str(data["title"])),
        "style": style,
        "data": content,
        "libraries": libraries,
        "script": script,
    }
    template = _read("page.html")
    # One pass, so that what is put in is never looked at for more places.
    return _PLACE.sub(lambda place: parts[place[1]], template)


def json_for_script(data: Any) -> str:
    """JSON that can stand in a script element: no character in it means anything to HTML."""
    # Lone surrogates cannot be written as UTF-8.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE).encode("utf-8", "replace").decode()


def _policy(scripts: tuple[str, ...], style: str) -> str:
    hashes = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _libraries() -> str:
    return "\n".join([f"/*\n{_read('d3/LICENSE')}*/", *(_read(f"d3/d3-{name}.min.js") for name in LIBRARIES)])


@cache
def _script() -> str:
    """One function around everything, so that the page has no global names but the library's."""
    return '"use strict";\n(() => {\n' + "\n".join(_read(f"{name}.js") for name in SCRIPTS) + "\n})();\n"


@cache
def _style() -> str:
    themes = [f'[data-theme="{theme}"] {{\n{_colours(PALETTES[theme])}\n}}' for theme in THEMES]
    # Before the script has run, and where it does not.
    first = f":root {{\n{_colours(PALETTES['light'])}\n}}"
    return "\n".join([first, *themes, _read("page.css")])


def _colours(palette: Palette) -> str:
    single = {name: value for name in palette.__slots__ if isinstance(value := getattr(palette, name), str)}
    steps = {f"scale-{at}": colour for at, colour in enumerate(palette.scale)}
    return "\n".join(f"  --{name.replace('_', '-')}: {value};" for name, value in (single | steps).items())


@cache
def _read(name: str) -> str:
    # Browsers read every end of line as \n, and hash what they read.
    return (FOLDER / name).read_text(encoding="utf-8").replace("\r\n", "\n")
