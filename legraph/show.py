"""A bundle for people (`tree`, a rich renderable) and for programs (`summary`, plain data).

What the tree shows is decided in `outline`; here it gets its words and colours. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from legraph.blocks import DEFAULT_BLOCK_SIZE, active_blocks
from legraph.bundle import Bundle
from legraph.errors import TokenizerError, count
from legraph.outline import Line, fold_names, outline
from legraph.tokens import fingerprint, load_tokenizer

PREVIEW_TOKENS = 20
PREVIEW_CHARACTERS = 60
# References of one line that are named one by one.
MAX_REFERENCES = 3
# From this share of the causal pairs on, a mask is called by this word.
_DENSITY_WORDS = ((1.0, "fully causal"), (0.5, "dense"), (0.1, "sparse"), (0.0, "very sparse"))
_TO_ASCII = str.maketrans({"├": "+", "└": "`", "╰": "`", "│": "|", "─": "-", "▸": ">", "↑": "^", "↓": "v"})


@dataclass(frozen=True, slots=True)
class Tree:
    """A picture of a bundle; a rich renderable. Lines never wrap: what does not fit is cut at the end."""

    lines: tuple[Text, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield _to_ascii(line) if options.ascii_only else line


def tree(bundle: Bundle, tokenizer: Any = None) -> Tree:
    """A picture of the graph, from the leaves up; each chunk's parents are drawn under it, once.

    Args:
        tokenizer: turns ids back into text for the previews. Without one, the bundle's own is loaded, and
            if that cannot be done there are no previews.
    """
    lines = outline(bundle)
    shown = [line.chunks[0] for line in lines if not line.is_cut]
    previews = dict(zip(shown, _previews(bundle, shown, tokenizer), strict=True))
    drawn = [_line_text(bundle, line, previews.get(line.chunks[0])) for line in lines]
    return Tree((*drawn, Text(""), *_footer(bundle)))


def summary(bundle: Bundle, tokenizer: Any = None) -> dict[str, Any]:
    """What the tree says, as plain data for JSON. Ranges are [start, end), in tokens and in position ids.

    Args:
        tokenizer: as for `tree`; without previews each chunk's `preview` is None.
    """
    previews = _previews(bundle, range(bundle.mask.num_chunks), tokenizer)
    chunks = [_chunk_summary(bundle, i, preview) for i, preview in enumerate(previews)]
    return totals_of(bundle) | {"chunks": chunks}


def totals_of(bundle: Bundle) -> dict[str, Any]:
    n = len(bundle)
    pairs, causal_pairs = bundle.mask.num_visible_pairs(), n * (n + 1) // 2
    blocks = active_blocks(bundle.mask)
    causal_blocks = blocks.num_blocks * (blocks.num_blocks + 1) // 2
    return {
        "num_tokens": n,
        "num_chunks": bundle.mask.num_chunks,
        "num_edges": bundle.mask.num_edges,
        "num_leaves": len(bundle.leaves),
        "positions": bundle.meta.positions,
        "tokenizer": bundle.meta.tokenizer,
        "visible_pairs": pairs,
        "causal_pairs": causal_pairs,
        "density": pairs / causal_pairs,
        "blocks": {
            "block_size": DEFAULT_BLOCK_SIZE,
            "active": len(blocks),
            "full": int(blocks.is_full.sum()),
            "causal": causal_blocks,
            "all": blocks.num_blocks**2,
        },
        # What a kernel that skips empty blocks computes, by what it would compute on a causal mask.
        "arithmetic": len(blocks) / causal_blocks,
    }


def _chunk_summary(bundle: Bundle, chunk: int, preview: str | None) -> dict[str, Any]:
    name, span = bundle.span_names[chunk], bundle.span(chunk)
    generate = bundle.meta.generate.get(name)
    first, last = _positions(bundle, (chunk,))
    return {
        "name": name,
        "num_tokens": span.stop - span.start,
        "span": [span.start, span.stop],
        "positions": [first, last + 1],
        "parents": [bundle.span_names[parent] for parent in bundle.parents(chunk)],
        "generate": asdict(generate) if generate else None,
        "preview": preview,
    }


def _line_text(bundle: Bundle, line: Line, preview: str | None) -> Text:
    text = Text(line.guides, style="dim", no_wrap=True, overflow="ellipsis", end="\n")
    names = [bundle.span_names[chunk] for chunk in line.chunks]
    num_tokens = sum(_num_tokens(bundle, chunk) for chunk in line.chunks)
    if line.is_cut:
        return text.append(f"... and {len(names):,} more  {count(num_tokens, 'token')}", "not dim italic")
    if line.is_continued:
        text.append("↓ ", "not dim yellow")
    text.append(fold_names(names) or f"{names[0]} ... {names[-1]}", "not dim bold cyan")
    text.append(_times(line), "not dim magenta")
    text.append(f"  {count(num_tokens, 'token')}", "not dim")
    first, last = _positions(bundle, line.chunks)
    text.append(f"  at {first}..{last}" if last > first else f"  at {first}", "not dim blue")
    generate = bundle.meta.generate.get(names[0])
    if generate:
        text.append(f"  ▸ max {generate.max_new_tokens}", "not dim bold green")
    for mark, parents in (("↑", line.above), ("↓", line.below)):
        if parents:
            text.append(f"  {mark} {_references(bundle, parents)}", "not dim yellow")
    if preview is not None:
        text.append(f'  "{_escape(preview)}"')
    return text


def _times(line: Line) -> str:
    """How many chunks a line stands for: `x500`, `x10000 chain`, `x1000 chain of 500 layers`."""
    if len(line.chunks) == 1:
        return ""
    chain = ""
    if line.num_links > 1:
        chain = " chain" if line.num_links == len(line.chunks) else f" chain of {line.num_links} layers"
    return f" x{len(line.chunks)}{chain}"


def _references(bundle: Bundle, chunks: Sequence[int]) -> str:
    names = [bundle.span_names[chunk] for chunk in chunks]
    if len(names) <= MAX_REFERENCES:
        return ", ".join(names)
    return (
        fold_names(names) or f"{', '.join(names[:MAX_REFERENCES])} and {len(names) - MAX_REFERENCES:,} more"
    )


def _footer(bundle: Bundle) -> list[Text]:
    totals = totals_of(bundle)
    blocks, density = totals["blocks"], totals["density"]
    leaves = "1 leaf" if totals["num_leaves"] == 1 else f"{totals['num_leaves']:,} leaves"
    word = next(word for least, word in _DENSITY_WORDS if density >= least)
    size = blocks["block_size"]
    lines = [
        f"{count(totals['num_tokens'], 'token')}, {count(totals['num_chunks'], 'chunk')}, "
        f"{count(totals['num_edges'], 'edge')}, {leaves}, {totals['positions']} positions",
        f"density {_percent(density)} ({word}): {totals['visible_pairs']:,} visible of "
        f"{count(totals['causal_pairs'], 'causal pair')}",
        f"{blocks['active']:,} of {blocks['all']:,} active {size} x {size} blocks: "
        f"{_percent(totals['arithmetic'])} of the arithmetic of full causal attention",
    ]
    return [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]


def _percent(share: float) -> str:
    """Three digits that count; `100%` for exactly all."""
    return "100%" if share == 1 else f"{min(100 * share, 99.9):.3g}%"


def _num_tokens(bundle: Bundle, chunk: int) -> int:
    span = bundle.span(chunk)
    return span.stop - span.start


def _positions(bundle: Bundle, chunks: Sequence[int]) -> tuple[int, int]:
    """First and last position id of some chunks together."""
    index = np.asarray(chunks)
    first = bundle.position_ids[bundle.span_offsets[index]]
    last = bundle.position_ids[bundle.span_offsets[index + 1] - 1]
    return int(first.min()), int(last.max())


def _previews(bundle: Bundle, chunks: Sequence[int], tokenizer: Any) -> list[str | None]:
    """The beginning of each chunk's text, or None for all of them where it cannot be told."""
    if tokenizer is None:
        tokenizer = own_tokenizer(bundle)
    if tokenizer is None or int(bundle.input_ids.max()) >= len(tokenizer):
        return [None] * len(chunks)
    return [_preview(bundle, chunk, tokenizer) for chunk in chunks]


def own_tokenizer(bundle: Bundle) -> Any:
    """The tokenizer that made the bundle, or None if it is not to be had or is another one by now."""
    try:
        tokenizer = load_tokenizer(bundle.meta.tokenizer)
    except TokenizerError:
        return None
    return tokenizer if fingerprint(tokenizer) == bundle.meta.tokenizer_fingerprint else None


def _preview(bundle: Bundle, chunk: int, tokenizer: Any) -> str:
    ids = bundle.input_ids[bundle.span(chunk)]
    text = tokenizer.decode(
        ids[:PREVIEW_TOKENS].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    is_cut = len(ids) > PREVIEW_TOKENS
    if is_cut:
        # The last character may lack the bytes of the next token.
        text = text.rstrip("\ufffd")
    if len(text) > PREVIEW_CHARACTERS:
        text, is_cut = text[:PREVIEW_CHARACTERS], True
    return text + "..." if is_cut else text


def _escape(text: str) -> str:
    """Quotes, backslashes and what a terminal would obey or hide, written out."""
    escaped = (
        "\\" + char if char in '"\\' else char if char.isprintable() else ascii(char)[1:-1] for char in text
    )
    return "".join(escaped)


def _to_ascii(line: Text) -> Text:
    plain = line.plain.translate(_TO_ASCII).encode("ascii", "backslashreplace").decode()
    return Text(plain, no_wrap=True, overflow="ellipsis")
