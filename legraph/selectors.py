"""Selectors: what stands in `parents` and `assert`, and which chunks it means.

    doc1            the chunk of that name
    doc*            all chunks whose names match: * any characters, ? one, [ab] one of these
    @docs           the chunks of a group, or of an included file
    all-before      all chunks that are declared before this one
    ancestors(x)    the parents of x, theirs, and so on
    ^x              takes out what x means, whatever the order

A chunk is never selected as its own parent, and chunks that several selectors mean are parents once. Works on
names and numbers only; where something stands in a file is the caller's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import NamedTuple

from legraph.errors import did_you_mean
from legraph.marks import quoted
from legraph.schema import ALL_BEFORE

_ANCESTORS = re.compile(r"ancestors\(([^()]*)\)")
_GLOB_CHARACTERS = frozenset("*?[")
_EXPECTED = "a name, a glob (doc*), a group (@docs), all-before, ancestors(x), or ^ and one of these"


class Want(NamedTuple):
    """A selector, and the prefix of the names that its file knows. `at` is its place in the written list."""

    text: str
    prefix: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class SelectorProblem:
    """What is wrong with the selector of chunk number `chunk` (None: of none) at place `at`."""

    chunk: int | None
    at: int
    message: str
    expected: str | None = None
    hint: str | None = None


class Chosen(NamedTuple):
    """A parent: its number, or the name that no chunk has; and the place of the selector that chose it."""

    chunk: int | str
    at: int


def is_selector(text: str) -> bool:
    """Whether it is more than a plain name."""
    return (
        text[:1] in ("@", "^") or text == ALL_BEFORE or "(" in text or not _GLOB_CHARACTERS.isdisjoint(text)
    )


@dataclass(slots=True)
class Selectors:
    """All chunks of a graph, and what they want to have as parents.

    Attributes:
        names: of all chunks in declared order; None where the file gives none that can be used.
        groups: the chunks of each group, ascending.
        wants: for each chunk.
        files: for each chunk, the prefix of the file that it stands in.
    """

    names: Sequence[str | None]
    groups: dict[str, list[int]]
    wants: Sequence[Sequence[Want]]
    problems: list[SelectorProblem] = field(default_factory=list[SelectorProblem])
    _index: dict[str, int] = field(init=False)
    _globs: dict[str, tuple[int, ...]] = field(init=False, default_factory=dict[str, tuple[int, ...]])
    # Once they are known: the parents of a chunk, and all of its ancestors as bits.
    _parents: dict[int, list[Chosen]] = field(init=False, default_factory=dict[int, list[Chosen]])
    _ancestors: dict[int, int] = field(init=False, default_factory=dict[int, int])

    def __post_init__(self) -> None:
        # Of chunks that share a name the first one: the others are reported elsewhere.
        self._index = {name: i for i, name in reversed(list(enumerate(self.names))) if name is not None}

    def parents(self) -> list[list[Chosen]]:
        """The parents of every chunk, in the order of its selectors. Problems are collected."""
        for i in range(len(self.names)):
            self._settle(i)
        return [self._parents[i] for i in range(len(self.names))]

    def chunks_of(self, want: Want) -> list[int]:
        """The chunks that a selector means where no chunk asks, for `assert`. Call it after `parents`."""
        chosen = self._meant(None, want._replace(text=want.text.removeprefix("^")), want.text)
        if want.text.startswith("^"):
            self._report(None, want, f"{quoted(want.text)} takes out, and there is nothing to take from")
        return [each for each in chosen if isinstance(each, int)]

    def _settle(self, chunk: int) -> None:
        """Finds the parents of a chunk. Those whose ancestors it wants come first, on a stack of our own:
        a chain of them may be longer than Python's."""
        stack = [chunk]
        while stack:
            i = stack[-1]
            if i in self._parents:
                stack.pop()
                continue
            waiting = next((j for j in self._waits_for(i) if j not in self._ancestors), None)
            if waiting is None:
                self._parents[i] = self._chosen(i)
                stack.pop()
                continue
            if waiting in self._parents:
                self._gather(waiting, stack)
            elif waiting in stack:
                self._report_circle(i)
                self._ancestors[waiting] = 0
            else:
                stack.append(waiting)

    def _waits_for(self, chunk: int) -> Iterator[int]:
        for want in self.wants[chunk]:
            found = _ANCESTORS.fullmatch(want.text.removeprefix("^"))
            if found and (at := self._index.get(want.prefix + found[1])) is not None:
                yield at

    def _gather(self, chunk: int, stack: list[int]) -> None:
        """The ancestors of a chunk whose parents are known, or else what has to be known first."""
        walk = [chunk]
        while walk:
            i = walk[-1]
            if i not in self._parents:
                if i in stack:
                    # A circle of selectors, or of plain parents, which is reported elsewhere.
                    self._ancestors[i] = 0
                    walk.pop()
                    continue
                stack.append(i)
                return
            known = [each.chunk for each in self._parents[i] if isinstance(each.chunk, int)]
            unknown = next((j for j in known if j not in self._ancestors and j not in walk), None)
            if unknown is not None:
                walk.append(unknown)
                continue
            bits = 0
            for j in known:
                bits |= 1 << j | self._ancestors.get(j, 0)
            self._ancestors[i] = bits
            walk.pop()

    def _chosen(self, chunk: int) -> list[Chosen]:
        """The parents of one chunk."""
        wants = self.wants[chunk]
        if not any(is_selector(want.text) for want in wants):
            # As they are: what is wrong with plain names is reported elsewhere.
            return [Chosen(self._index.get(name := w.prefix + w.text, name), w.at) for w in wants]
        out = set[int | str]()
        for want in wants:
            if want.text.startswith("^"):
                out.update(self._meant(chunk, want._replace(text=want.text[1:]), want.text))
        chosen = dict[int | str, int]()
        names = set[int | str]()
        for want in wants:
            if want.text.startswith("^"):
                continue
            meant = self._meant(chunk, want, want.text)
            if not is_selector(want.text) and meant[0] in names:
                # A name that stands there twice is reported elsewhere, if it is left there.
                self._report(chunk, want, f"parent {quoted(want.text)} is listed twice", "each parent once")
            names.update(() if is_selector(want.text) else meant)
            for each in meant:
                if each not in out and (each != chunk or not is_selector(want.text)):
                    chosen.setdefault(each, want.at)
        return [Chosen(each, at) for each, at in chosen.items()]

    def _meant(self, chunk: int | None, want: Want, written: str) -> Sequence[int | str]:
        """The chunks that a selector without ^ means; a plain name that nobody has stands for itself."""
        text, name = want.text, want.prefix + want.text
        if text == ALL_BEFORE:
            if chunk is None:
                self._report(chunk, want, f"{ALL_BEFORE!r} needs a chunk that asks", "a name, glob or group")
            return [i for i in range(chunk or 0) if self._is_in(i, want.prefix)]
        if text.startswith("@"):
            return self._group(chunk, want, written)
        if found := _ANCESTORS.fullmatch(text):
            return self._of_ancestors(chunk, want, found[1])
        if "(" in text or text.startswith("^"):
            self._report(chunk, want, f"{quoted(written)} is no selector", _EXPECTED)
            return ()
        if not _GLOB_CHARACTERS.isdisjoint(text):
            matched = self._glob(name)
            if not set(matched) - {chunk}:
                what = "nothing but the chunk itself" if matched else "no chunk"
                self._report(chunk, want, f"{quoted(written)} matches {what}", "a glob that matches a chunk")
            return matched
        if name in self._index:
            return (self._index[name],)
        if chunk is None or written.startswith("^"):
            self._report_unknown(chunk, want, text, written)
            return ()
        return (name,)

    def _group(self, chunk: int | None, want: Want, written: str) -> Sequence[int]:
        group = want.prefix + want.text[1:]
        if group not in self.groups:
            known = [
                f"@{each.removeprefix(want.prefix)}" for each in self.groups if each.startswith(want.prefix)
            ]
            expected = f"one of {', '.join(known[:9])}" if known else "a group: a chunk with 'group: name'"
            hint = did_you_mean(want.text, known)
            self._report(chunk, want, f"there is no group {quoted(written)}", expected, hint)
            return ()
        if not set(self.groups[group]) - {chunk}:
            self._report(chunk, want, f"{quoted(written)} holds nothing but the chunk itself")
        return self.groups[group]

    def _of_ancestors(self, chunk: int | None, want: Want, text: str) -> Sequence[int]:
        at = self._index.get(want.prefix + text)
        if at is None:
            self._report_unknown(chunk, want, text, want.text)
            return ()
        if at not in self._ancestors:
            self._gather(at, [])
        bits = self._ancestors.get(at, 0)
        return [i for i, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]

    def _glob(self, pattern: str) -> tuple[int, ...]:
        if pattern not in self._globs:
            matches: Callable[[str], object] = re.compile(translate(pattern)).match
            self._globs[pattern] = tuple(
                i for i, name in enumerate(self.names) if name is not None and matches(name)
            )
        return self._globs[pattern]

    def _is_in(self, chunk: int, prefix: str) -> bool:
        """Whether a chunk belongs to the file with this prefix, or to one that it includes."""
        return not prefix or (self.names[chunk] or "").startswith(prefix)

    def _report(
        self,
        chunk: int | None,
        want: Want,
        message: str,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problems.append(SelectorProblem(chunk, want.at, message, expected, hint))

    def _report_unknown(self, chunk: int | None, want: Want, name: str, written: str) -> None:
        # Few are asked for in this way, so that all names can be looked through.
        hint = did_you_mean(name, [each.removeprefix(want.prefix) for each in self._index])
        self._report(chunk, want, f"{quoted(written)}: there is no chunk {quoted(name)}", None, hint)

    def _report_circle(self, chunk: int) -> None:
        found = next(w for w in self.wants[chunk] if _ANCESTORS.fullmatch(w.text.removeprefix("^")))
        message = (
            f"{quoted(found.text)} depends on the parents of {quoted(self.names[chunk] or 'this chunk')}"
        )
        self._report(chunk, found, message, "selectors that do not wait for each other")
