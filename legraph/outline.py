"""What a picture of a graph shows, line by line: leaves first, each chunk's parents under it.

Knows nothing of colours, texts or terminals. Keeps the picture short and flat, whatever the graph:

- a chunk is drawn once; where it is a parent again, the line of its child refers to it,
- in a large graph, chunks with the same parents, the same children and the same number of tokens share a
  line, and so do the links of a chain (a layer of such chunks is one link),
- long lists are cut, long chains are drawn flat, and what would nest too deep goes on at the margin.

    question             a leaf
    ├── doc1
    │   └── head
    └── doc2  ↑ head     head is drawn already
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from legraph.bundle import Bundle
from legraph.mask import ChunkMask, Int64Array

# Up to here nothing is folded: every chunk has its own line, with its text.
MAX_UNFOLDED_CHUNKS = 30
# How many lines of one list are drawn, and of the whole picture: about two pages.
MAX_SIBLINGS = 24
MAX_LINES = 100
# Levels of nesting, the margin included, before a branch goes on at the margin.
MAX_DEPTH = 8
# A run of more single parents than this is drawn flat.
MAX_NESTED_RUN = 3
# A chain of fewer alike links is drawn link by link: a question under its document is not a chain.
MIN_FOLDED_LINKS = 3
# Of a flat run too long to draw, this many lines at its end stay: that is where its roots are.
RUN_END_LINES = 4

_BRANCH, _LAST_BRANCH, _THROUGH, _GAP = "├── ", "└── ", "│   ", "    "
_LINK, _LINK_GAP = "╰─ ", "   "
_NAME_PARTS = re.compile(r"\d+|[A-Za-z]+|[^A-Za-z\d]+")
_MAX_LISTED_PARTS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the picture.

    Attributes:
        guides: the tree's strokes before it.
        chunks: the chunks that it stands for, ascending.
        num_links: more than 1 for a folded chain: in how many links its chunks stand one behind the other.
        above, below: parents that are drawn further up, or at the margin further down.
        is_cut: its chunks are only counted, not named.
        is_continued: a branch that some line above has among its `below`.
    """

    guides: str
    chunks: tuple[int, ...]
    num_links: int = 1
    above: tuple[int, ...] = ()
    below: tuple[int, ...] = ()
    is_cut: bool = False
    is_continued: bool = False


@dataclass(frozen=True, slots=True)
class _Branch:
    """A group still to be drawn: the strokes before its own line, and before those under it."""

    group: int
    guides: str
    guides_under: str
    depth: int


def outline(bundle: Bundle) -> list[Line]:
    """The lines of a graph's picture. O(chunks + edges); at most `MAX_LINES` lines."""
    return _Outline(bundle).lines()


class _Outline:
    """Draws groups of chunks, each once. `placed` marks the groups that have their place in the picture."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.groups, self.group_of = _fold(bundle)
        self.folds = bundle.mask.num_chunks > MAX_UNFOLDED_CHUNKS
        self.placed = [False] * len(self.groups)
        self.drawn: list[Line] = []

    def lines(self) -> list[Line]:
        leaves = list(dict.fromkeys(int(self.group_of[leaf]) for leaf in self.bundle.leaves))
        kept, cut = _cut_list(leaves)
        for leaf in kept:
            self._draw_branch(leaf)
        self._draw_cut("", cut)
        if len(self.drawn) > MAX_LINES:
            seen = {chunk for line in self.drawn[:MAX_LINES] for chunk in line.chunks}
            rest = tuple(i for i in range(self.bundle.mask.num_chunks) if i not in seen)
            self.drawn[MAX_LINES:] = [Line("", rest, is_cut=True)] if rest else []
        return self.drawn

    def _draw_branch(self, leaf: int) -> None:
        """A leaf and all its ancestors that have no place yet, then the branches that go on at the margin."""
        self.placed[leaf] = True
        margin = [leaf]
        for top in margin:
            stack: list[_Branch | tuple[str, list[int]]] = [_Branch(top, "", "", 0)]
            while stack and len(self.drawn) <= MAX_LINES:
                item = stack.pop()
                if isinstance(item, _Branch):
                    at = len(self.drawn)
                    stack.extend(reversed(self._draw_run(item, margin)))
                    if item.depth == 0 and top != leaf:
                        self.drawn[at] = replace(self.drawn[at], is_continued=True)
                else:
                    self._draw_cut(*item)

    def _draw_run(self, branch: _Branch, margin: list[int]) -> list[_Branch | tuple[str, list[int]]]:
        """Draws a group, its parent if it is the only one without a place, that one's only parent, and so on.

        Returns what is to be drawn under the last of them.
        """
        links: list[Line] = []
        group = branch.group
        while True:
            parents = self._parents(group)
            new = [parent for parent in parents if not self.placed[parent]]
            above = self._chunks([parent for parent in parents if self.placed[parent]])
            links.append(Line("", self.groups[group], above=above))
            for parent in new:
                self.placed[parent] = True
            if len(new) != 1:
                break
            group = new[0]
        run = self._fold_links(links)
        depth = self._draw_lines(run, branch)
        flat = len(run) > MAX_NESTED_RUN
        under = branch.guides_under + (_LINK_GAP if flat else _GAP * (len(run) - 1))
        if depth >= MAX_DEPTH and new:
            self.drawn[-1] = replace(self.drawn[-1], below=self._chunks(new))
            margin.extend(new)
            return []
        return list(_branches(new, under, depth))

    def _draw_lines(self, run: list[Line], branch: _Branch) -> int:
        """Draws the lines of a run; returns the depth of what comes under its end."""
        flat = len(run) > MAX_NESTED_RUN
        if len(run) > MAX_SIBLINGS + 1:
            middle = run[MAX_SIBLINGS - RUN_END_LINES : -RUN_END_LINES]
            cut = Line("", tuple(sorted(chunk for line in middle for chunk in line.chunks)), is_cut=True)
            run = [*run[: MAX_SIBLINGS - RUN_END_LINES], cut, *run[-RUN_END_LINES:]]
        for i, line in enumerate(run):
            guides = branch.guides_under + (_LINK if flat else _GAP * (i - 1) + _LAST_BRANCH)
            self.drawn.append(replace(line, guides=guides if i else branch.guides))
        return branch.depth + (2 if flat else len(run))

    def _fold_links(self, links: list[Line]) -> list[Line]:
        """Lines for the links of a run, from child to parent; neighbours that are alike share one."""
        if not self.folds:
            return links
        folded = list[Line]()
        for _, alike in groupby(links, self._looks):
            same = list(alike)
            if len(same) < MIN_FOLDED_LINKS:
                folded += same
                continue
            chunks = tuple(sorted(chunk for line in same for chunk in line.chunks))
            folded.append(replace(same[0], chunks=chunks, num_links=len(same)))
        return folded

    def _looks(self, line: Line) -> object:
        first = line.chunks[0]
        span, name = self.bundle.span(first), self.bundle.span_names[first]
        length = span.stop - span.start
        return line.above, len(line.chunks), length, self.bundle.meta.generate.get(name)

    def _draw_cut(self, guides: str, groups: list[int]) -> None:
        for group in groups:
            self.placed[group] = True
        if groups:
            self.drawn.append(Line(guides, self._chunks(groups), is_cut=True))

    def _parents(self, group: int) -> list[int]:
        parents = self.bundle.parents(self.groups[group][0])
        return list(dict.fromkeys(self.group_of[parents].tolist()))

    def _chunks(self, groups: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(chunk for group in groups for chunk in self.groups[group]))


def _branches(groups: list[int], guides: str, depth: int) -> list[_Branch | tuple[str, list[int]]]:
    """The list under a line; `(guides, groups)` stands for the groups that are cut off its end."""
    kept, cut = _cut_list(groups)
    branches: list[_Branch | tuple[str, list[int]]] = []
    for group in kept:
        is_last = group == kept[-1] and not cut
        strokes = (_LAST_BRANCH, _GAP) if is_last else (_BRANCH, _THROUGH)
        branches.append(_Branch(group, guides + strokes[0], guides + strokes[1], depth))
    if cut:
        branches.append((guides + _LAST_BRANCH, cut))
    return branches


def _cut_list(groups: list[int]) -> tuple[list[int], list[int]]:
    """What is drawn of a list, and the rest; never a rest of one, which takes a line as well."""
    at = len(groups) if len(groups) <= MAX_SIBLINGS + 1 else MAX_SIBLINGS
    return groups[:at], groups[at:]


def _fold(bundle: Bundle) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Groups of chunks that share a line, by their first chunk, and the group of each chunk.

    Their chunks have the same parents, children, number of tokens and generate settings.
    """
    num_chunks = bundle.mask.num_chunks
    if num_chunks <= MAX_UNFOLDED_CHUNKS:
        return [(i,) for i in range(num_chunks)], np.arange(num_chunks)
    lengths = np.diff(bundle.span_offsets).tolist()
    settings = (bundle.meta.generate.get(name) for name in bundle.span_names)
    return alike_chunks(bundle.mask, list(zip(lengths, settings, strict=True)))


def alike_chunks(mask: ChunkMask, looks: Sequence[object]) -> tuple[list[tuple[int, ...]], Int64Array]:
    """Groups of chunks with the same parents, the same children and equal looks, by their first chunk.

    A group sees all of another group or nothing of it, so groups form a DAG as chunks do, and stand in a
    topological order. O(chunks + edges).

    Returns:
        the chunks of each group, ascending; and int64 [K], the group of each chunk.
    """
    # A set of chunks is told by the sum of its members' random numbers: vectors instead of sets of sets.
    number = np.random.default_rng(0).integers(0, 2**63, mask.num_chunks, dtype=np.uint64)
    children = mask.children_of_edges()
    parent_sums = np.zeros(mask.num_chunks, dtype=np.uint64)
    child_sums = np.zeros(mask.num_chunks, dtype=np.uint64)
    np.add.at(parent_sums, children, number[mask.parent_indices])
    np.add.at(child_sums, mask.parent_indices, number[children])
    members: dict[object, list[int]] = {}
    for i, key in enumerate(zip(parent_sums.tolist(), child_sums.tolist(), looks, strict=True)):
        members.setdefault(key, []).append(i)
    group_of = np.zeros(mask.num_chunks, dtype=np.int64)
    for group, chunks in enumerate(members.values()):
        group_of[chunks] = group
    return [tuple(chunks) for chunks in members.values()], group_of


def fold_names(names: Sequence[str]) -> str | None:
    """`doc[0..499]`, `layer[0..9]_{a,b}`: one word for names that differ in numbers or short parts only.

    None if there is no such word: it must stand for exactly these names.
    """
    rows = [_NAME_PARTS.findall(name) for name in names]
    if len({len(row) for row in rows}) != 1:
        return None
    num_named = 1
    word = ""
    for column in zip(*rows, strict=True):
        values = list(dict.fromkeys(column))
        num_named *= len(values)
        part = values[0] if len(values) == 1 else _fold_values(values)
        if part is None:
            return None
        word += part
    # The names are distinct, so as many of them as the word has readings are all of its readings.
    return word if num_named == len(names) else None


def _fold_values(values: list[str]) -> str | None:
    if all(value.isdecimal() for value in values):
        ordered = sorted(values, key=int)
        is_dense = [int(value) for value in ordered] == list(range(int(ordered[0]), int(ordered[-1]) + 1))
        is_padded = any(value != str(int(value)) for value in values)
        if is_dense and not (is_padded and len({len(value) for value in values}) > 1):
            return f"[{ordered[0]}..{ordered[-1]}]"
    return f"{{{','.join(values)}}}" if len(values) <= _MAX_LISTED_PARTS else None
