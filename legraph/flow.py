"""Who sees whom, and whose content reaches whom: questions about a graph that need no tokens.

Seeing is not transitive, influence is: what a chunk says reaches everything below it, through the hidden
states of the chunks between. A path of h edges is h hops; from the second hop on, influence flows through
hidden states only.

    secret -> summary -> answer      answer does not see secret, and secret influences answer in 2 hops

Knows the structure only, and imports neither numpy nor torch: checking a file must stay instant. Every
question costs one pass over the graph, however many pairs of chunks an assertion is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from legraph.assertions import Assertion
from legraph.errors import Problem, count
from legraph.graph import Graph
from legraph.marks import quoted

# Of an assertion that fails for many pairs, or of a long path, this much is named.
MAX_PAIRS_NAMED = 5
MAX_PATH_NAMES_DRAWN = 12


class Failure(NamedTuple):
    """Why an assertion does not hold for one pair of chunks, and what would make it hold."""

    message: str
    hint: str | None = None


def sees(graph: Graph, query: int, key: int) -> bool:
    """Whether tokens of one chunk attend to tokens of another: to its own, and to direct parents."""
    return query == key or key in graph.chunks[query].parents


def children(graph: Graph) -> list[list[int]]:
    """The chunks that see each chunk directly, ascending."""
    below: list[list[int]] = [[] for _ in graph.chunks]
    for i, chunk in enumerate(graph.chunks):
        for parent in chunk.parents:
            below[parent].append(i)
    return below


def ancestors(graph: Graph, chunk: int) -> set[int]:
    """Whoever influences a chunk, itself left out."""
    return _reachable([each.parents for each in graph.chunks], chunk)


def descendants(graph: Graph, chunk: int) -> set[int]:
    """Whomever a chunk influences, itself left out."""
    return _reachable(children(graph), chunk)


def path_of_influence(graph: Graph, source: int, target: int) -> tuple[int, ...] | None:
    """A shortest chain of chunks, each a parent of the next, from source to target; None if there is none.

    Of equally short ones it takes the same one every time. A chunk influences itself: a path of one.
    """
    next_of = {target: target}
    ring = [target]
    while ring and source not in next_of:
        nearer, ring = ring, []
        for i in nearer:
            for parent in graph.chunks[i].parents:
                if parent not in next_of:
                    next_of[parent] = i
                    ring.append(parent)
    if source not in next_of:
        return None
    path = [source]
    while path[-1] != target:
        path.append(next_of[path[-1]])
    return tuple(path)


def num_paths(graph: Graph, source: int, target: int) -> int:
    """Number of different paths of influence; exact, however many there are."""
    paths_to = {source: 1}
    for i in graph.order():
        if i != source:
            number = sum(paths_to.get(parent, 0) for parent in graph.chunks[i].parents)
            if number:
                paths_to[i] = number
    return paths_to.get(target, 0)


def drawn_path(graph: Graph, path: Sequence[int]) -> str:
    """`'secret' -> 'summary' -> 'answer'`, cut in the middle where it is long."""
    names = [quoted(graph.chunks[i].name) for i in path]
    if len(names) > MAX_PATH_NAMES_DRAWN:
        half = MAX_PATH_NAMES_DRAWN // 2
        names[half:-half] = [f"({len(names) - 2 * half} more)"]
    return " -> ".join(names)


def assertion_problems(graph: Graph, num_tokens: Sequence[int] | None = None) -> list[Problem]:
    """The assertions of a graph that do not hold, each a problem at its place.

    Args:
        num_tokens: of each chunk, in declared order. Without it nothing is said about `max_tokens`.
    """
    problems = list[Problem]()
    order = graph.order() if graph.assertions else []
    for assertion in graph.assertions:
        if assertion.kind == "max_tokens":
            failures = _token_failures(graph, assertion, num_tokens) if num_tokens is not None else []
            num_failed, what = len(failures), "more chunk"
        else:
            pairs = failing_pairs(graph, assertion, order)
            # Only for those that are named: looking for a path is a walk over the graph.
            failures = [_failure(graph, assertion, *pair) for pair in pairs[:MAX_PAIRS_NAMED]]
            num_failed, what = len(pairs), "more pair"
        if failures:
            problems.append(_problem(assertion, failures[:MAX_PAIRS_NAMED], num_failed, what))
    return problems


def failing_pairs(graph: Graph, assertion: Assertion, order: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of chunks for which an assertion about pairs does not hold.

    Args:
        order: a topological order of the chunks.
    """
    if assertion.kind in ("sees", "not_sees"):
        parents_of = {query: set(graph.chunks[query].parents) for query, _ in assertion.pairs}
        holds = [query == key or key in parents_of[query] for query, key in assertion.pairs]
    else:
        holds = influences(graph, assertion.pairs, order)
    is_wanted = assertion.kind in ("sees", "influences")
    return [pair for pair, found in zip(assertion.pairs, holds, strict=True) if found != is_wanted]


def influences(graph: Graph, pairs: Sequence[tuple[int, int]], order: Sequence[int]) -> list[bool]:
    """Whether the first chunk of each pair influences the second.

    One pass over the graph, from the end that has fewer different chunks: every chunk gets a number whose
    bits say which of these it is connected with.

    Args:
        order: a topological order of the chunks.
    """
    sources, targets = {source for source, _ in pairs}, {target for _, target in pairs}
    if len(targets) <= len(sources):
        bit_of = {target: 1 << i for i, target in enumerate(sorted(targets))}
        reached = dict(bit_of)
        for i in reversed(order):
            if bits := reached.get(i, 0):
                for parent in graph.chunks[i].parents:
                    reached[parent] = reached.get(parent, 0) | bits
        return [bool(reached.get(source, 0) & bit_of[target]) for source, target in pairs]
    bit_of = {source: 1 << i for i, source in enumerate(sorted(sources))}
    reached = dict(bit_of)
    for i in order:
        bits = reached.get(i, 0)
        for parent in graph.chunks[i].parents:
            bits |= reached.get(parent, 0)
        if bits:
            reached[i] = bits
    return [bool(reached.get(target, 0) & bit_of[source]) for source, target in pairs]


def _reachable(edges: Sequence[Sequence[int]], start: int) -> set[int]:
    found, waiting = set[int](), list(edges[start])
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            waiting += edges[i]
    return found


def _failure(graph: Graph, assertion: Assertion, first: int, second: int) -> Failure:
    a, b = quoted(graph.chunks[first].name), quoted(graph.chunks[second].name)
    if assertion.kind == "sees":
        why, hint = why_hidden(graph, first, second)
        return Failure(f"{a} does not see {b} ({why})", hint)
    if assertion.kind == "not_sees":
        if first == second:
            return Failure(f"{a} sees itself", "a chunk always sees itself: name two different chunks")
        return Failure(f"{a} sees {b} (it is a parent)", f"take {b} out of the parents of {a}")
    if assertion.kind == "influences":
        is_possible = path_of_influence(graph, second, first) is None
        hint = f"list {a} in the parents of {b}, or of a chunk that influences {b}"
        return Failure(f"nothing of {a} reaches {b}", hint if is_possible else None)
    return _leak(graph, first, second)


def _leak(graph: Graph, source: int, target: int) -> Failure:
    a, b = quoted(graph.chunks[source].name), quoted(graph.chunks[target].name)
    path = path_of_influence(graph, source, target)
    assert path is not None
    if source == target:
        return Failure(f"{a} reaches itself", "a chunk always influences itself: name two different chunks")
    if len(path) == 2:
        return Failure(f"{a} reaches {b}: it is a parent", f"take {a} out of the parents of {b}")
    return Failure(
        f"{a} reaches {b} through {drawn_path(graph, path)}", "cut an edge of each path between them"
    )


def why_hidden(graph: Graph, query: int, key: int) -> Failure:
    """Why one chunk does not see another, in some words, and how it would."""
    q, k = quoted(graph.chunks[query].name), quoted(graph.chunks[key].name)
    path = path_of_influence(graph, query, key)
    if path is not None:
        return Failure(f"it comes below: {drawn_path(graph, path)}")
    hint = f"list {k} in the parents of {q}"
    path = path_of_influence(graph, key, query)
    if path is None:
        return Failure("nothing leads from one to the other", hint)
    if len(path) == 3:
        return Failure(f"it is a grandparent, through {quoted(graph.chunks[path[1]].name)}", hint)
    return Failure(f"it is an ancestor, through {drawn_path(graph, path)}", hint)


def _token_failures(graph: Graph, assertion: Assertion, num_tokens: Sequence[int]) -> list[Failure]:
    if assertion.chunks is None:
        sizes = [("the graph", sum(num_tokens))]
    else:
        sizes = [(quoted(graph.chunks[i].name), num_tokens[i]) for i in assertion.chunks]
    return [
        Failure(f"{what} has {count(size, 'token')}, more than {assertion.limit:,}")
        for what, size in sizes
        if size > assertion.limit
    ]


def _problem(assertion: Assertion, named: Sequence[Failure], num_failed: int, what: str) -> Problem:
    text = "; ".join(failure.message for failure in named)
    if num_failed > len(named):
        text += f"; and {count(num_failed - len(named), what)}"
    hint = next((failure.hint for failure in named if failure.hint), None)
    return Problem(f"asserted {assertion.kind!r}: {text}", hint=hint, source=assertion.place)
