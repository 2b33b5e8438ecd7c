"""A `Difference` for people, a rich renderable: what went is red behind a -, what came green behind a +."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from legraph.diff import Change, Difference, TextChange, TokenDifference
from legraph.errors import count
from legraph.marks import printable

# Of each list, and of the characters of a run of words.
MAX_LINES = 20
MAX_CHARACTERS = 240
# Of a value, such as all the labels of a chunk.
MAX_VALUE_CHARACTERS = 80
_REMOVED, _ADDED, _CHANGED = "red", "green", "yellow"


@dataclass(frozen=True, slots=True)
class DiffPicture:
    """A picture of the difference between two graphs, named `before` and `after`."""

    found: Difference
    before: str
    after: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines()

    def lines(self) -> Iterator[Text]:
        """One after the other; they wrap nowhere by themselves."""
        if self.found.is_empty:
            yield Text(f"{printable(self.before)} and {printable(self.after)} are equal{self._caveat()}")
            return
        yield Text(f"--- {printable(self.before)}", _REMOVED)
        yield Text(f"+++ {printable(self.after)}", _ADDED)
        yield from _structure_lines(self.found)
        if self.found.tokens is not None:
            yield from _token_lines(self.found.tokens)
        else:
            yield Text(self._caveat().removeprefix("; "), "dim")

    def _caveat(self) -> str:
        return "" if self.found.tokens is not None else "; tokens were not compared: no --tokenizer is given"


def _structure_lines(found: Difference) -> Iterator[Text]:
    yield from _capped([_setting(each) for each in found.settings], "setting")
    yield from _capped([Text(f"- chunk {name}", _REMOVED) for name in found.removed], "removed chunk")
    yield from _capped([Text(f"+ chunk {name}", _ADDED) for name in found.added], "added chunk")
    if found.is_reordered:
        yield Text("~ the chunks that both have stand in another order", _CHANGED)
    yield from _capped([_text(each) for each in found.texts], "changed text")
    for sign, style, edges in (("-", _REMOVED, found.removed_edges), ("+", _ADDED, found.added_edges)):
        lines = [Text(f"{sign} {each.child} sees {each.parent}", style) for each in edges]
        yield from _capped(lines, "removed edge" if sign == "-" else "added edge")


def _setting(change: Change) -> Text:
    line = Text(f"~ {change.key}" + (f" of {change.chunk}" if change.chunk else "") + ": ", _CHANGED)
    return line.append(_value(change.before), _REMOVED).append(" -> ").append(_value(change.after), _ADDED)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if part not in (None, (), [])}
    written = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return written if len(written) <= MAX_VALUE_CHARACTERS else written[: MAX_VALUE_CHARACTERS - 3] + "..."


def _text(change: TextChange) -> Text:
    line = Text(f"~ {change.key} of {change.chunk}: ", _CHANGED)
    for kind, words in change.words:
        shown = _words(words)
        if kind == "removed":
            line.append(f"[-{shown}-]", _REMOVED)
        elif kind == "added":
            line.append(f"{{+{shown}+}}", _ADDED)
        else:
            line.append(f"{shown} " if kind == "skipped" else shown, "dim")
    return line


def _words(text: str) -> str:
    """On one line, without what a terminal would obey, cut in the middle where it is long."""
    if len(text) > MAX_CHARACTERS:
        half = MAX_CHARACTERS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _token_lines(tokens: TokenDifference) -> Iterator[Text]:
    before, after = tokens.num_tokens
    yield Text(f"tokens: {before:,} -> {after:,}", "bold")
    resized = [f"~ {name}: {_sizes(one, other)}" for name, one, other in tokens.resized]
    yield from _capped([Text(line, _CHANGED) for line in resized], "chunk with other tokens")
    moved = [f"~ {name}: position {one:,} -> {other:,}" for name, one, other in tokens.moved]
    yield from _capped([Text(line, _CHANGED) for line in moved], "moved chunk")
    pairs_before, pairs_after = tokens.visible_pairs
    line = Text(f"visible pairs: {pairs_before:,} -> {pairs_after:,}", "bold")
    if tokens.pairs:
        line.append(f"  +{tokens.became_visible:,}", _ADDED).append(f"  -{tokens.became_hidden:,}", _REMOVED)
    yield line
    yield from _capped([_pair(*each) for each in tokens.pairs], "pair of chunks")


def _sizes(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} tokens" if before != after else f"{count(after, 'token')}, others"


def _pair(query: str, key: str, became_visible: int, became_hidden: int) -> Text:
    line = Text(f"  {query} sees {key}:" if query != key else f"  {query} sees itself:")
    if became_visible:
        line.append(f" +{became_visible:,}", _ADDED)
    if became_hidden:
        line.append(f" -{became_hidden:,}", _REMOVED)
    return line


def _capped(lines: Sequence[Text], what: str) -> Iterator[Text]:
    yield from lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        more = len(lines) - MAX_LINES
        noun = what if more == 1 else _plural(what)
        yield Text(f"  ... and {more:,} more {noun}", "dim")


def _plural(what: str) -> str:
    first, *rest = what.split(" ", 1)
    # "pair of chunks" has its plural in front.
    return f"{first}s {rest[0]}" if first in ("pair", "chunk") and rest else f"{what}s"
