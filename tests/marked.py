"""Texts that say themselves where a problem stands: «this» part, or several of them in order."""

from __future__ import annotations

from dataclasses import dataclass

from legraph.errors import Problem

OPEN, CLOSE = "«", "»"


@dataclass(frozen=True)
class Place:
    line: int
    column: int
    part: str
    line_text: str

    def excerpt(self) -> str:
        carets = " " * (self.column - 1) + "^" * max(1, len(self.part))
        return f"  {self.line:>5} | {self.line_text}\n        | {carets}"


def unmark(marked: str) -> tuple[str, list[Place]]:
    """The text without its marks, and the marked places."""
    text = marked.replace(OPEN, "").replace(CLOSE, "")
    places = []
    for line, (with_marks, without) in enumerate(
        zip(marked.split("\n"), text.split("\n"), strict=True), start=1
    ):
        at = 0
        while (start := with_marks.find(OPEN, at)) >= 0:
            end = with_marks.index(CLOSE, start)
            column = start - 2 * len(places_on(places, line)) + 1
            places.append(Place(line, column, with_marks[start + 1 : end], without))
            at = end
    return text, places


def places_on(places: list[Place], line: int) -> list[Place]:
    return [place for place in places if place.line == line]


def place_of(problem: Problem) -> Place:
    """Where a problem says it stands, in the same terms."""
    source = problem.source
    assert source is not None and source.line is not None and source.column is not None
    line = source.line_text or ""
    return Place(source.line, source.column, line[source.column - 1 :][: source.width], line)
