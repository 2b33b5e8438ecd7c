"""Rules of `lint` that need no tokens: what a valid graph does that its author may not mean.

Each rule is one small function, from a graph to its hits. It names what is there, not what the author is
like: a rule that would speak up about an ordinary graph (the examples are the test) is not worth having.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from legraph.assertions import Assertion
from legraph.errors import Source, count
from legraph.flow import children, drawn_path, influences, path_of_influence
from legraph.graph import Graph, GraphChunk
from legraph.marks import quoted

MAX_NAMES = 5
# A chunk this many times shorter than what it has to carry is called a bottleneck.
BOTTLENECK = 4
# Words of a text that could be names. Plain words are left out: a chunk may well be called `plan`.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_UNLIKE_A_WORD = re.compile(r"[0-9_.\-]")


class Hit(NamedTuple):
    """What a rule found.

    Attributes:
        chunk: the one that it is about, which may silence it; None for the graph.
    """

    chunk: int | None
    message: str
    place: Source | None = None
    hint: str | None = None


def leaks(graph: Graph) -> Iterator[Hit]:
    """Pairs asserted `not_sees` that hold as written, while the content gets there another way."""
    known = {pair for each in graph.assertions if each.kind == "influences" for pair in each.pairs}
    order = graph.order()
    for assertion in graph.assertions:
        if assertion.kind == "not_sees":
            yield from _leaks_of(graph, assertion, known, order)


def _leaks_of(
    graph: Graph, assertion: Assertion, known: set[tuple[int, int]], order: Sequence[int]
) -> Iterator[Hit]:
    flows = [
        (key, query)
        for query, key in assertion.pairs
        if query != key and key not in graph.chunks[query].parents and (key, query) not in known
    ]
    is_reached = influences(graph, flows, order)
    leaking = [pair for pair, found in zip(flows, is_reached, strict=True) if found]
    if not leaking:
        return
    key, query = leaking[0]
    path = path_of_influence(graph, key, query)
    assert path is not None
    names = quoted(graph.chunks[query].name), quoted(graph.chunks[key].name)
    rest = f"; and {count(len(leaking) - 1, 'more pair')}" if len(leaking) > 1 else ""
    yield Hit(
        query if len({query for _, query in leaking}) == 1 else None,
        f"{names[0]} does not see {names[1]}, but is influenced by it: {drawn_path(graph, path)}{rest}",
        assertion.place,
        "assert 'not_influences' and cut the path, or assert 'influences' too if this is meant",
    )


def bottlenecks(graph: Graph) -> Iterator[Hit]:
    """Chunks that answer, and know a long grandparent through much shorter chunks that generate nothing."""
    leaves = set(graph.leaves())
    for i, chunk in enumerate(graph.chunks):
        if i in leaves or chunk.generate is not None:
            for hidden, through in _carriers(graph, i).items():
                if max(_width(graph.chunks[j]) for j in through) * BOTTLENECK < _size(graph.chunks[hidden]):
                    yield _bottleneck(graph, i, hidden, through)


def _carriers(graph: Graph, chunk: int) -> dict[int, list[int]]:
    """The grandparents that a chunk does not see, each with the parents that see it."""
    found, parents = dict[int, list[int]](), set(graph.chunks[chunk].parents)
    for parent in graph.chunks[chunk].parents:
        # Most often there are none, and in a dense graph looking at them one by one would take long.
        if parents.issuperset(graph.chunks[parent].parents):
            continue
        for hidden in graph.chunks[parent].parents:
            if hidden not in parents and graph.chunks[hidden].text is not None:
                found.setdefault(hidden, []).append(parent)
    return found


def _bottleneck(graph: Graph, chunk: int, hidden: int, through: list[int]) -> Hit:
    name, unseen = quoted(graph.chunks[chunk].name), quoted(graph.chunks[hidden].name)
    size, widest = _size(graph.chunks[hidden]), max(_size(graph.chunks[j]) for j in through)
    between = _names(graph, through)
    return Hit(
        chunk,
        f"{name} does not see {unseen} ({count(size, 'character')}), only {between}, which "
        f"{_do(through, 'does', 'do')} and {_do(through, 'has', 'have at most')} "
        f"{count(widest, 'character')}, without 'generate'",
        graph.place(chunk, "parents"),
        f"list {unseen} in the parents of {name}, or let {between} generate",
    )


def _do(chunks: Sequence[int], one: str, many: str) -> str:
    """A verb for one chunk, or for many."""
    return one if len(chunks) == 1 else many


def _size(chunk: GraphChunk) -> int:
    return len(chunk.text or "") + len(chunk.completion or "")


def _width(chunk: GraphChunk) -> float:
    """How much a chunk can hand on, in characters. Generated text says what the model found there."""
    return _size(chunk) if chunk.generate is None else float("inf")


def unseen_names(graph: Graph) -> Iterator[Hit]:
    """Texts that speak of another chunk by its name, without seeing it."""
    index_of = {chunk.name: i for i, chunk in enumerate(graph.chunks) if _UNLIKE_A_WORD.search(chunk.name)}
    for i, chunk in enumerate(graph.chunks):
        found = (match.group().rstrip(".-") for match in _NAME.finditer(chunk.text or ""))
        named = [index_of[name] for name in dict.fromkeys(found) if name in index_of]
        unseen = [
            j for j in named if j != i and j not in chunk.parents and path_of_influence(graph, i, j) is None
        ]
        if unseen:
            names, which = _names(graph, unseen), "it" if len(unseen) == 1 else "them"
            yield Hit(
                i,
                f"the text of {quoted(chunk.name)} names {names}, and does not see {which}",
                graph.place(i, "text"),
                f"list {names} in the parents of {quoted(chunk.name)}",
            )


def silent_leaves(graph: Graph) -> Iterator[Hit]:
    """Leaves without `generate` beside leaves that have it: a run continues them all the same."""
    leaves = graph.leaves()
    if not any(graph.chunks[i].generate for i in leaves):
        return
    isolated = {hit.chunk for hit in isolated_chunks(graph)}
    for i in leaves:
        chunk = graph.chunks[i]
        if chunk.text is not None and not _is_answered(chunk) and i not in isolated:
            yield Hit(
                i,
                f"nobody sees {quoted(chunk.name)} and it has no 'generate', while other leaves have: "
                "'run' would continue it too",
                graph.place(i),
                "list it in the parents of a chunk, give it 'generate', or remove it",
            )


def isolated_chunks(graph: Graph) -> Iterator[Hit]:
    """Chunks that see nobody and that nobody sees, in a graph where others do."""
    below = children(graph)
    seen = [
        [parent for parent in chunk.parents if graph.chunks[parent].text is not None]
        for chunk in graph.chunks
    ]
    if not any(seen):
        return
    for i, chunk in enumerate(graph.chunks):
        if chunk.text is not None and not seen[i] and not below[i] and not _is_answered(chunk):
            yield Hit(
                i,
                f"{quoted(chunk.name)} sees no chunk and no chunk sees it",
                graph.place(i),
                "list it in the parents of a chunk, or remove it",
            )


def _is_answered(chunk: GraphChunk) -> bool:
    """Whether a chunk says that something is to be written or learned there."""
    return chunk.generate is not None or chunk.completion is not None or chunk.loss


def open_turns(graph: Graph) -> Iterator[Hit]:
    """Leaves that are a system's or a user's turn: what the model writes comes after that turn has ended."""
    for i in graph.leaves():
        chunk = graph.chunks[i]
        if chunk.role in ("system", "user"):
            yield Hit(
                i,
                f"{quoted(chunk.name)} is a {chunk.role}'s turn, and no assistant's turn follows",
                graph.place(i, "role"),
                f"add a chunk with 'role: assistant', an empty text and parents: [{chunk.name}, ...]",
            )


def duplicates(graph: Graph) -> Iterator[Hit]:
    """Chunks that say the same in the same place: computed twice, and seen twice."""
    alike = dict[tuple[object, ...], list[int]]()
    for i, chunk in enumerate(graph.chunks):
        if chunk.generate is None and chunk.text is not None:
            where = frozenset(chunk.parents), chunk.start, chunk.end, chunk.role
            alike.setdefault((chunk.text, chunk.completion, chunk.loss, where), []).append(i)
    for first, *others in alike.values():
        if others:
            same = f"the text and the parents of {quoted(graph.chunks[first].name)}"
            yield Hit(
                others[0],
                f"{_names(graph, others)} {_do(others, 'has', 'have')} {same}",
                graph.place(others[0]),
                "keep one of them",
            )


def _names(graph: Graph, chunks: Sequence[int]) -> str:
    shown = ", ".join(quoted(graph.chunks[i].name) for i in chunks[:MAX_NAMES])
    return shown + (f" and {len(chunks) - MAX_NAMES:,} more" if len(chunks) > MAX_NAMES else "")
