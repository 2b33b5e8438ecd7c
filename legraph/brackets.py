"""Which spans are named beside a picture, so that the names have room. Plain numbers; draws nothing.

Where every chunk has room for its name, each has a bracket. Where not, siblings (neighbours whose names
differ in numbers only) share one, `doc[0..499] x500`, and those among them that are long enough have their
own one inside it. If that is still too many, the shortest neighbours share one, whatever their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from legraph.mask import Int64Array
from legraph.outline import fold_names

# Fewer siblings than this keep a bracket each, if they can.
MIN_SIBLINGS = 3
# A name may stand this many lines away from the middle of its bracket.
MAX_SHIFT = 2.5

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Bracket:
    """A name beside the tokens of neighbouring chunks.

    Attributes:
        first, last: the chunks first..last - 1.
        label: a name, or what many names fold to, with their number.
        level: 0 beside the picture, 1 outside of the brackets of level 0 that are nested in it.
    """

    first: int
    last: int
    label: str
    level: int = 0


def brackets(names: Sequence[str], offsets: Int64Array, length: float, line: float) -> tuple[Bracket, ...]:
    """Brackets for an axis on which chunk i reaches from `offsets[i]` to `offsets[i + 1]`.

    Args:
        length: of the axis, in points.
        line: points that a name takes of the axis, where it stands across it.

    Returns:
        Of each level, brackets in the order of the axis that do not overlap, and whose names find room by
        `spread`. Every chunk has a bracket of level 0 or is in one of level 1.
    """
    ends = offsets * (length / offsets[-1])
    runs = [(i, i + 1) for i in range(len(names))]
    shortest = line / 4
    if not _have_room(runs, ends, line):
        runs = list(_siblings(names, ends, line))
    while not _have_room(runs, ends, line):
        runs = list(_without_short(runs, ends, shortest))
        shortest *= 2
    flat = [_bracket(run, names) for run in runs]
    nested = [bracket for run in runs for bracket in _nested(run, names, ends, line)]
    inner = [(bracket.first, bracket.last) for bracket in nested if bracket.level == 0]
    return tuple(nested if _have_room(inner, ends, line) else flat)


def spread(middles: Sequence[float], sizes: Sequence[float], length: float) -> NDArray[np.float64] | None:
    """Where labels stand along an axis: as near to their places as they can without touching each other.

    The sum of squared distances is least (isotonic regression by pooling of neighbours), but for those that
    would stick out over an end of the axis by more than half their size.

    Args:
        middles: ascending, the places that they belong to.
        sizes: how much of the axis each of them takes.

    Returns:
        float64 [n], their middles; None if they do not find room between the ends of the axis.
    """
    size = np.asarray(sizes, dtype=np.float64)
    if not len(size):
        return size
    steps = np.concatenate([[0.0], np.cumsum((size[1:] + size[:-1]) / 2)])
    low, high = min(0.0, size[0] / 2), length - steps[-1]
    if high < low:
        return None
    pooled = list[tuple[float, int]]()
    for wanted in np.asarray(middles, dtype=np.float64) - steps:
        mean, number = float(wanted), 1
        while pooled and pooled[-1][0] > mean:
            before, many = pooled.pop()
            mean, number = (before * many + mean * number) / (many + number), many + number
        pooled.append((mean, number))
    free = np.repeat([mean for mean, _ in pooled], [number for _, number in pooled])
    return np.clip(free, low, high) + steps


def _have_room(runs: Sequence[tuple[int, int]], ends: NDArray[np.float64], line: float) -> bool:
    if len(runs) == 1:
        return True
    middles = [(ends[first] + ends[last]) / 2 for first, last in runs]
    places = spread(middles, [line] * len(runs), float(ends[-1]))
    return places is not None and bool((np.abs(places - middles) <= MAX_SHIFT * line).all())


def _siblings(names: Sequence[str], ends: NDArray[np.float64], line: float) -> Iterator[tuple[int, int]]:
    """Runs of chunks whose names differ in numbers only, unless each has room for its own name."""
    for _, run in groupby(range(len(names)), lambda i: _DIGITS.sub("0", names[i])):
        chunks = list(run)
        first, last = chunks[0], chunks[-1] + 1
        if len(chunks) < MIN_SIBLINGS or (np.diff(ends[first : last + 1]) >= line).all():
            yield from ((i, i + 1) for i in chunks)
        else:
            yield first, last


def _without_short(
    runs: Sequence[tuple[int, int]], ends: NDArray[np.float64], shortest: float
) -> Iterator[tuple[int, int]]:
    """Neighbours that are all shorter than `shortest` points become one."""
    for is_short, alike in groupby(runs, lambda run: ends[run[1]] - ends[run[0]] < shortest):
        same = list(alike)
        if is_short:
            yield same[0][0], same[-1][1]
        else:
            yield from same


def _nested(
    run: tuple[int, int], names: Sequence[str], ends: NDArray[np.float64], line: float
) -> Iterator[Bracket]:
    first, last = run
    inside = [i for i in range(first, last) if last - first > 1 and ends[i + 1] - ends[i] >= line]
    yield from (_bracket((i, i + 1), names) for i in inside)
    yield _bracket(run, names, level=1 if inside else 0)


def _bracket(run: tuple[int, int], names: Sequence[str], level: int = 0) -> Bracket:
    first, last = run
    label = names[first] if last - first == 1 else folded_label(names[first:last])
    return Bracket(first, last, label, level)


def folded_label(names: Sequence[str]) -> str:
    """`doc[0..499] x500`, or the first and the last name if there is no word for all of them."""
    word = fold_names(names) or f"{names[0]} \N{HORIZONTAL ELLIPSIS} {names[-1]}"
    return f"{word} x{len(names):,}"
