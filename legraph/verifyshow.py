"""What `verify` found, for people (a rich renderable) and for programs (plain data)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from legraph.errors import count
from legraph.verify import Verified, Violation

# A matrix of more chunks is not drawn; of violations, as many are named.
MAX_CHUNKS_DRAWN = 40
MAX_VIOLATIONS_DRAWN = 20
MAX_NAME_CHARACTERS = 20
_CHANGED, _UNCHANGED, _LEAK, _NO_EFFECT = ("●", "green"), ("·", "dim"), ("✗", "bold red"), ("○", "yellow")


@dataclass(frozen=True, slots=True)
class VerifyPicture:
    """A matrix, a row for each chunk that was changed and a column for each one looked at, and totals."""

    found: Verified

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if len(self.found.names) <= MAX_CHUNKS_DRAWN:
            yield from _matrix(self.found, options.max_width)
            yield Text("")
        yield from summary_lines(self.found)


def _matrix(found: Verified, max_width: int) -> Iterator[Text]:
    num_chunks = len(found.names)
    label_width = min(MAX_NAME_CHARACTERS, max(map(len, found.names)))
    digits = len(str(num_chunks))
    indent = " " * (digits + 1 + label_width + 1)
    gap = " " if len(indent) + 2 * num_chunks <= max_width else ""
    # Columns have the numbers of rows, written from top to bottom.
    for place in range(digits):
        numbers = [str(column + 1).rjust(digits)[place] for column in range(num_chunks)]
        yield Text((indent + gap.join(numbers)).rstrip(), "dim", no_wrap=True)
    for row, chunk in enumerate(found.perturbed):
        line = Text(f"{chunk + 1:>{digits}} ", "dim", no_wrap=True)
        line.append(f"{_cut(found.names[chunk]):<{label_width}} ", "not dim")
        cells = [_cell(found, row, column) for column in range(num_chunks)]
        yield line.append_text(Text(gap, "not dim").join([Text(*cell) for cell in cells]))
    meanings = (_CHANGED, "changed"), (_UNCHANGED, "unchanged"), (_LEAK, "leak"), (_NO_EFFECT, "no effect")
    legend = Text("row: replaced; column: looked at;", "dim")
    for sign, meaning in meanings:
        legend.append(" ").append(*sign).append(f" {meaning}")
    yield legend


def _cell(found: Verified, row: int, column: int) -> tuple[str, str]:
    if found.leaks[row, column]:
        return _LEAK
    if found.without_effect[row, column]:
        return _NO_EFFECT
    return _CHANGED if found.changed[row, column] else _UNCHANGED


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARACTERS else name[: MAX_NAME_CHARACTERS - 3] + "..."


def summary_lines(found: Verified) -> Iterator[Text]:
    """Totals, what is wrong, and how sharp the proof is."""
    num_chunks, num_replaced = len(found.names), len(found.perturbed)
    sample = "" if num_replaced == num_chunks else f" of {num_chunks:,}, evenly chosen"
    yield Text(f"replaced {count(num_replaced, 'chunk')}{sample}, one at a time")
    num_right = int((found.changed & found.influenced).sum())
    num_still = int((~found.changed & ~found.influenced).sum())
    yield Text(
        f"{count(num_right, 'pair')} changed along the graph, {num_still:,} stayed {_how_equal(found)}, "
        f"{count(int(found.leaks.sum()), 'leak')}, {int(found.without_effect.sum()):,} without effect"
    )
    out_of_reach = int((found.influenced & ~found.expected & ~found.changed).sum())
    if out_of_reach:
        have = "has" if out_of_reach == 1 else "have"
        yield Text(
            f"{count(out_of_reach, 'pair')} more {have} too few layers, or windows, between them to change",
            "dim",
        )
    yield from _violation_lines(found.violations)


def _how_equal(found: Verified) -> str:
    return "equal bit by bit" if found.tolerance == 0 else f"within {found.tolerance:.1e}"


def _violation_lines(violations: tuple[Violation, ...]) -> Iterator[Text]:
    for each in violations[:MAX_VIOLATIONS_DRAWN]:
        if each.kind == "leak":
            text = f" leak: {each.observed} changed by {each.change:.2g} with {each.perturbed}, "
            yield Text.assemble(_LEAK, text + "which does not influence it")
        else:
            text = f" no effect: {each.observed} did not change with {each.perturbed}, "
            yield Text.assemble(_NO_EFFECT, text + "which influences it")
    if len(violations) > MAX_VIOLATIONS_DRAWN:
        yield Text(f"  ... and {count(len(violations) - MAX_VIOLATIONS_DRAWN, 'more violation')}", "dim")
    if violations and all(each.kind == "no effect" for each in violations):
        yield Text("nothing leaks; a model may compute nearly the same from any text, above all in 16 bits")


def verify_data(found: Verified) -> dict[str, Any]:
    """Plain data for JSON; matrices have a row for each replaced chunk and a column for each chunk."""
    return {
        "ok": found.is_ok,
        "chunks": list(found.names),
        "perturbed": [found.names[chunk] for chunk in found.perturbed],
        "tolerance": found.tolerance,
        "changes": [[_finite(change) for change in row] for row in found.changes.tolist()],
        "influenced": found.influenced.tolist(),
        "expected": found.expected.tolist(),
        "violations": [asdict(each) | {"change": _finite(each.change)} for each in found.violations],
    }


def _finite(change: float) -> float | None:
    """JSON knows no infinity: a number that became NaN is null."""
    return change if change != float("inf") else None
