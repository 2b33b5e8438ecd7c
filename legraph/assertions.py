"""`assert` in a graph file: what its author says of it, as pairs of chunks. `flow` says if it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from legraph.errors import Problem, Source
from legraph.origin import Expanded
from legraph.schema import AssertSpec, GraphFile
from legraph.selectors import Want, is_selector

AssertionKind = Literal["sees", "not_sees", "influences", "not_influences", "max_tokens"]


@dataclass(frozen=True, slots=True)
class Assertion:
    """What must hold of a graph. Chunks are numbers, in declared order.

    Attributes:
        kind: "sees" and "not_sees" of (query, key), "influences" and "not_influences" of (source, target).
        pairs: the chunks that it is about, in that order.
        limit: for "max_tokens".
        chunks: for "max_tokens": each of these; None for the graph as a whole.
        place: where it stands in the file.
    """

    kind: AssertionKind
    pairs: tuple[tuple[int, int], ...] = ()
    limit: int = 0
    chunks: tuple[int, ...] | None = None
    place: Source | None = None


def resolved(spec: GraphFile, expanded: Expanded) -> tuple[tuple[Assertion, ...], list[Problem]]:
    """The assertions of a valid file, and what is wrong with their selectors."""
    found, problems = list[Assertion](), list[Problem]()
    for i, written in enumerate(spec.assertions):
        kinds = [kind for kind in get_args(AssertionKind) if getattr(written, kind) is not None]
        place = expanded.places.place(("assert", i))
        if len(kinds) != 1:
            expected = f"one of {', '.join(get_args(AssertionKind))}"
            problems.append(Problem(f"an assertion says {len(kinds)} things", expected, source=place))
        elif written.of is not None and kinds != ["max_tokens"]:
            problems.append(Problem(f"'of' beside {kinds[0]!r}", "'max_tokens' beside it", source=place))
        else:
            found += _assertion(kinds[0], written, i, expanded, problems)
    return tuple(found), problems


def _assertion(
    kind: AssertionKind, written: AssertSpec, i: int, expanded: Expanded, problems: list[Problem]
) -> Iterator[Assertion]:
    place = expanded.places.place(("assert", i, kind))
    if kind == "max_tokens":
        assert written.max_tokens is not None
        chunks = None
        if written.of is not None:
            chunks = tuple(_chunks(written.of, ("assert", i, "of"), i, expanded, problems))
        yield Assertion(kind, limit=written.max_tokens, chunks=chunks, place=place)
        return
    sides: tuple[str, ...] = getattr(written, kind)
    first, second = (
        _chunks(text, ("assert", i, kind, side), i, expanded, problems) for side, text in enumerate(sides)
    )
    # Of a set with itself: every chunk with every other one.
    is_set = any(map(is_selector, sides))
    pairs = tuple(pair for pair in product(first, second) if not is_set or pair[0] != pair[1])
    yield Assertion(kind, pairs, place=place)


def _chunks(
    text: str, path: tuple[str | int, ...], i: int, expanded: Expanded, problems: list[Problem]
) -> list[int]:
    assert expanded.chunks is not None
    before = len(expanded.chunks.problems)
    chunks = expanded.chunks.chunks_of(Want(text, expanded.prefixes[i]))
    for found in expanded.chunks.problems[before:]:
        place = expanded.places.place(path)
        problems.append(Problem(found.message, found.expected, found.hint, place))
    return chunks
