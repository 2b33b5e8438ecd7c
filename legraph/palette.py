"""The colours of every picture, light and dark.

Told apart by lightness too, so that they hold in print and for eyes that see fewer hues; accents are from the
palette of Okabe and Ito (2008), made for those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours as `#rrggbb`.

    Attributes:
        paper, ink, muted, line: background, text, text of less weight, thin lines.
        masked: pairs of tokens that may not attend; own, parent: those that may, within a chunk and along an
            edge.
        bracket: names of spans beside a mask.
        box, box_line: a chunk of the DAG.
        generate: chunks that a model continues, and what it wrote.
        highlight: what is pointed at.
        full, partial: borders of 128 x 128 blocks.
        scale: from no attention to all of it, in even steps.
    """

    paper: str
    ink: str
    muted: str
    line: str
    masked: str
    own: str
    parent: str
    bracket: str
    box: str
    box_line: str
    generate: str
    highlight: str
    full: str
    partial: str
    scale: tuple[str, ...]


PALETTES: dict[Theme, Palette] = {
    "light": Palette(
        paper="#ffffff",
        ink="#1f2328",
        muted="#636c76",
        line="#d0d7de",
        masked="#e4e6e9",
        own="#1b4f7a",
        parent="#4f93c8",
        bracket="#b3400a",
        box="#eef4fa",
        box_line="#4f93c8",
        generate="#d55e00",
        highlight="#e69f00",
        full="#1f2328",
        partial="#cc79a7",
        scale=("#fbfcfd", "#cfe1ef", "#94bfdf", "#4f93c8", "#1b5c8f", "#0a2f52"),
    ),
    "dark": Palette(
        paper="#0f141a",
        ink="#e6edf3",
        muted="#9aa4af",
        line="#30363d",
        masked="#232a32",
        own="#a9d3f5",
        parent="#4a8fc7",
        bracket="#f0a06a",
        box="#17212b",
        box_line="#4a8fc7",
        generate="#f28e2b",
        highlight="#f0c000",
        full="#e6edf3",
        partial="#d58fb8",
        scale=("#0a0e13", "#17324a", "#1d5580", "#3a86bf", "#84bde6", "#e2f1fc"),
    ),
}
