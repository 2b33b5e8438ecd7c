"""Selectors: what stands in `parents` and `assert`, and which chunks it means.

    doc1            the chunk of that name
    doc*            all chunks whose names match: * any characters, ? one, [ab] one of these
    @docs           the chunks of a group, or of an included file
    all-before      all chunks that are declared before this one
    ancestors(x)    the parents of x, theirs, and so on
    ^x              takes out what x means, whatever the order

A chunk is never selected as its own parent, and chunks that several selectors mean are parents once. What
means no chunk at all is a problem, but for `all-before` and `ancestors`, which may well be empty. Works on
names and numbers only; where something stands in a file is the caller's business.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from itertools import islice
from typing import NamedTuple

from legraph.errors import did_you_mean
from legraph.marks import quoted
from legraph.schema import ALL_BEFORE, BOS_NAME

_ANCESTORS = re.compile(r"ancestors\(([^()]*)\)")
_GLOB_CHARACTERS = frozenset("*?[")
_GLOB_CHARACTER = re.compile(r"[*?[]")
# Looking for a name like another costs 20 microseconds a name.
MAX_NAMES_COMPARED = 100_000
MAX_GROUPS_NAMED = 9
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


@dataclass(frozen=True, slots=True)
class Parents:
    """The parents of a chunk, as columns: there may be millions in a graph."""

    chunks: list[int | str]
    at: list[int]

    def __iter__(self) -> Iterator[Chosen]:
        return map(Chosen, self.chunks, self.at)


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
        is_partial: chunks are missing, for a reason that is reported elsewhere: whoever is not found may be
            among them.
    """

    names: Sequence[str | None]
    groups: dict[str, list[int]]
    wants: Sequence[Sequence[Want]]
    is_partial: bool = False
    problems: list[SelectorProblem] = field(default_factory=list[SelectorProblem])
    _index: dict[str, int] = field(init=False)
    # Names in the order of their letters, for globs that begin with some.
    _sorted: list[tuple[str, int]] = field(init=False, default_factory=list[tuple[str, int]])
    _globs: dict[str, list[int]] = field(init=False, default_factory=dict[str, list[int]])
    _hints: dict[Want, str | None] = field(init=False, default_factory=dict[Want, str | None])
    # Once they are known: the parents of a chunk; and, of chunks whose ancestors are asked for, these and
    # the chunk itself as bits.
    _parents: dict[int, Parents] = field(init=False, default_factory=dict[int, Parents])
    _lines: dict[int, int] = field(init=False, default_factory=dict[int, int])

    def __post_init__(self) -> None:
        # Of chunks that share a name the first one: the others are reported elsewhere.
        self._index = {name: i for i, name in reversed(list(enumerate(self.names))) if name is not None}

    def parents(self) -> list[Parents]:
        """The parents of every chunk, in the order of its selectors. Problems are collected."""
        for i in range(len(self.names)):
            self._settle(i)
        return [self._parents[i] for i in range(len(self.names))]

    def chunks_of(self, want: Want) -> list[int]:
        """The chunks that a selector means where no chunk asks, for `assert`. Call it after `parents`."""
        if want.text.startswith("^"):
            self._report(None, want, f"{quoted(want.text)} takes out, and there is nothing to take from")
            return []
        return [each for each in self._meant(None, want, want.text) if isinstance(each, int)]

    def _settle(self, chunk: int) -> None:
        """Finds the parents of a chunk. Those whose ancestors it wants come first, on a stack of our own:
        a chain of them may be longer than Python's."""
        stack, begun = [chunk], set[int]()
        while stack:
            i = stack[-1]
            if i in self._parents:
                stack.pop()
                continue
            begun.add(i)
            waits_for = self._waits_for(i, begun)
            if waits_for:
                stack += waits_for
            else:
                self._parents[i] = self._chosen(i)
                stack.pop()

    def _waits_for(self, chunk: int, begun: set[int]) -> list[int]:
        """The chunks whose parents must be known before those of this one."""
        for want in self.wants[chunk]:
            at = self._asked(want)
            if at is None or at in self._lines:
                continue
            line, unknown = self._line(at)
            waits_for = [j for j in unknown if j not in begun]
            if waits_for:
                return waits_for
            if unknown:
                self._report_circle(chunk, want, unknown[0])
            self._lines[at] = line
        return []

    def _asked(self, want: Want) -> int | None:
        """The chunk whose ancestors a selector means."""
        found = _ANCESTORS.fullmatch(want.text.removeprefix("^"))
        return self._index.get(want.prefix + found[1]) if found else None

    def _line(self, chunk: int) -> tuple[int, list[int]]:
        """A chunk and its ancestors as bits, as far as parents are known; and those of whom they are not."""
        bits, unknown = 0, list[int]()
        seen, walk = {chunk}, [chunk]
        for i in walk:
            bits |= 1 << i
            if i not in self._parents:
                unknown.append(i)
                continue
            for j in self._parents[i].chunks:
                if j in seen or isinstance(j, str):
                    continue
                seen.add(j)
                if j in self._lines:
                    bits |= self._lines[j]
                else:
                    walk.append(j)
        return bits, unknown

    def _chosen(self, chunk: int) -> Parents:
        """The parents of one chunk."""
        wants = self.wants[chunk]
        if not any(is_selector(want.text) for want in wants):
            # As they are: what is wrong with plain names is reported elsewhere.
            plain = [(each, want.at) for want in wants for each in self._meant(chunk, want, want.text)]
            return Parents([each for each, _ in plain], [at for _, at in plain])
        out = set[int | str]()
        for want in wants:
            if want.text.startswith("^"):
                out.update(self._meant(chunk, want._replace(text=want.text[1:]), want.text))
        if all(want.text.startswith("^") for want in wants):
            self._report(
                chunk, wants[0], f"{quoted(wants[0].text)} takes out, and there is nothing to take from"
            )
        chosen, names = dict[int | str, int](), set[int | str]()
        for want in wants:
            if want.text.startswith("^"):
                continue
            meant = self._meant(chunk, want, want.text)
            if is_selector(want.text):
                meant = [each for each in meant if each != chunk]
            elif not names.isdisjoint(meant):
                # A name that stands there twice is reported elsewhere, if it is left there.
                self._report(chunk, want, f"parent {quoted(want.text)} is listed twice", "each parent once")
            else:
                names.update(meant)
            for each in meant:
                if each not in out:
                    chosen.setdefault(each, want.at)
        return Parents(list(chosen), list(chosen.values()))

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
            return self._of_ancestors(chunk, want, found[1], written)
        if "(" in text or text.startswith("^"):
            self._report(chunk, want, f"{quoted(written)} is no selector", _EXPECTED)
            return ()
        if not _GLOB_CHARACTERS.isdisjoint(text):
            return self._glob(chunk, want, written)
        if name in self._index:
            return (self._index[name],)
        if chunk is None or written.startswith("^"):
            self._report_unknown(chunk, want, text, written)
            return ()
        if self.is_partial:
            return ()
        if want.prefix and text != BOS_NAME:
            # As its file says it: a loop may include the file many times.
            hint = self._hint(want, text, self._index)
            expected = "the name of a chunk in this file"
            self._report(chunk, want, f"unknown parent {quoted(text)}", expected, hint)
            return ()
        return (text,)

    def _group(self, chunk: int | None, want: Want, written: str) -> Sequence[int]:
        members = self.groups.get(want.prefix + want.text[1:])
        if members is None:
            if not self.is_partial:
                # Of groups that this file knows, as many as a line holds.
                inside = (
                    f"@{each.removeprefix(want.prefix)}"
                    for each in self.groups
                    if each.startswith(want.prefix)
                )
                known = ", ".join(islice(inside, MAX_GROUPS_NAMED))
                expected = f"one of {known}" if known else "a group: a chunk with 'group: name'"
                hint = self._hint(want, want.text, self.groups, "@")
                self._report(chunk, want, f"there is no group {quoted(written)}", expected, hint)
            return ()
        if members == [chunk]:
            self._report_only_itself(chunk, want, f"{quoted(written)} holds")
        return members

    def _of_ancestors(self, chunk: int | None, want: Want, name: str, written: str) -> Sequence[int]:
        at = self._asked(want)
        if at is None:
            self._report_unknown(chunk, want, name, written)
            return ()
        if at not in self._lines:  # of `assert`: all parents are known
            self._lines[at], _ = self._line(at)
        bits = f"{self._lines[at]:b}"
        return [i for i, bit in enumerate(reversed(bits)) if bit == "1" and i != at]

    def _glob(self, chunk: int | None, want: Want, written: str) -> Sequence[int]:
        pattern = want.prefix + want.text
        if pattern not in self._globs:
            self._globs[pattern] = self._matching(pattern)
        matched = self._globs[pattern]
        if matched == [chunk]:
            self._report_only_itself(chunk, want, f"{quoted(written)} matches")
        if not matched and not self.is_partial:
            self._report(chunk, want, f"{quoted(written)} matches no chunk", "a glob that matches a chunk")
        return matched

    def _matching(self, pattern: str) -> list[int]:
        """The chunks with matching names. Looks only at those that begin like the pattern: the round of a
        loop may have a glob of its own."""
        if not self._sorted:
            self._sorted = sorted((name, i) for i, name in enumerate(self.names) if name is not None)
        head = _GLOB_CHARACTER.split(pattern, maxsplit=1)[0]
        matches: Callable[[str], object] = re.compile(translate(pattern)).match
        found = list[int]()
        for at in range(bisect_left(self._sorted, (head,)), len(self._sorted)):
            name, i = self._sorted[at]
            if not name.startswith(head):
                break
            if matches(name):
                found.append(i)
        return sorted(found)

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

    def _report_only_itself(self, chunk: int | None, want: Want, what: str) -> None:
        if not self.is_partial:
            self._report(chunk, want, f"{what} nothing but the chunk itself", "chunks other than this one")

    def _report_unknown(self, chunk: int | None, want: Want, name: str, written: str) -> None:
        if self.is_partial:
            return
        message = f"there is no chunk {quoted(name)}"
        hint = self._hint(want, name, self._index)
        self._report(chunk, want, message if name == written else f"{quoted(written)}: {message}", None, hint)

    def _hint(self, want: Want, word: str, names: Collection[str], mark: str = "") -> str | None:
        """What an unknown word may have meant, as long as that is found quickly: every round may ask."""
        key = want._replace(at=0)
        if key not in self._hints and len(self._hints) * len(names) < MAX_NAMES_COMPARED:
            known = [mark + each.removeprefix(want.prefix) for each in names if each.startswith(want.prefix)]
            self._hints[key] = did_you_mean(word, known)
        return self._hints.get(key)

    def _report_circle(self, chunk: int, want: Want, other: int) -> None:
        who = "of this chunk" if other == chunk else f"of {quoted(self.names[other] or 'a chunk')}"
        message = f"{quoted(want.text)} needs the parents {who}, and these wait for it"
        self._report(chunk, want, message, "selectors that do not wait for each other")
