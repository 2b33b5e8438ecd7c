"""Everything legraph raises on purpose.

LegraphError
├── InputError        the input is wrong: exit code 2 (also a ValueError)
│   ├── GraphError    a graph file, or chunks built in Python
│   └── BundleError   a bundle file
└── RunError          the input is fine, the run is not: exit code 1
    ├── TokenizerError
    └── ModelError

Errors carry data. `InputError.problems` holds one `Problem` for each thing that is wrong, each with the
place it stands at; `str(error)` draws them all. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

KeyPath = tuple[str | int, ...]

# A report names the first problems in full; a file with ten thousand of them is wrong in one way.
MAX_PROBLEMS_DRAWN = 20
# Longer lines are cut around the caret when drawn.
MAX_LINE_DRAWN = 100


@dataclass(frozen=True, slots=True)
class Source:
    """A place in an input: `line` and `column` count from 1 and are None where the input has no lines."""

    file: str
    line: int | None = None
    column: int | None = None
    key_path: KeyPath = ()
    line_text: str | None = None
    width: int = 1
    # Which of several things that were made from this place is meant.
    note: str | None = None

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place += f":{self.line}"
            if self.column is not None:
                place += f":{self.column}"
        return place

    def excerpt(self) -> str | None:
        """The offending line with a caret under the offending part, or None where there is no line."""
        if self.line_text is None or self.line is None or self.column is None:
            return None
        at = self.column - 1
        cut = max(0, at - MAX_LINE_DRAWN // 2)
        shown = "".join(map(_drawable, self.line_text[cut : cut + MAX_LINE_DRAWN]))
        # A tab keeps its width under the caret only if the caret line has it too.
        indent = "".join("\t" if char == "\t" else " " for char in shown[: at - cut])
        carets = "^" * max(1, min(self.width, len(shown) - (at - cut)))
        return f"  {self.line:>5} | {shown}\n        | {indent}{carets}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what it is, what was expected instead, and what the user may have meant."""

    message: str
    expected: str | None = None
    hint: str | None = None
    source: Source | None = None

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.message}" if self.source else self.message]
        excerpt = self.source.excerpt() if self.source else None
        if excerpt:
            lines.append(excerpt)
        if self.source and self.source.note:
            lines.append(f"  where: {self.source.note}")
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class LegraphError(Exception):
    """Root of everything legraph raises on purpose."""

    exit_code = 1


class InputError(LegraphError, ValueError):
    """The input is wrong. `problems` lists everything that was found wrong with it."""

    exit_code = 2

    def __init__(self, problems: Problem | str | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        drawn = [str(problem) for problem in self.problems[:MAX_PROBLEMS_DRAWN]]
        if len(self.problems) > len(drawn):
            drawn.append(f"... and {count(len(self.problems) - len(drawn), 'more problem')}")
        return "\n".join(drawn)


class GraphError(InputError):
    """A graph file, or a graph built from `Chunk` objects, is not a valid graph."""


class BundleError(InputError):
    """A bundle file is damaged, foreign, newer than this legraph, or does not fit the model it is run on."""


class RunError(LegraphError):
    """The input is fine, but the run could not be done here. The message says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class TokenizerError(RunError):
    """A tokenizer could not be loaded, or cannot do what a graph needs."""


class ModelError(RunError):
    """A model could not be loaded, cannot honour the graph's attention, or ran out of memory."""


def _drawable(char: str) -> str:
    """A control character in a file must not reach the terminal."""
    return char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}"


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """`did you mean 'parents'?` for the closest known word, or None if none is close."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def count(number: int, noun: str) -> str:
    """`1 chunk`, `2 chunks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
