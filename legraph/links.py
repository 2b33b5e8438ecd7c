"""Names and edges: everything that can be wrong between chunks.

Works on bare names and parent lists, so the file reader can use it on a file that has other problems too,
and the Python API on `Chunk` objects. Knows nothing of files: a problem points at a chunk and, where one
parent is meant, at its place in the parents list.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from legraph.errors import did_you_mean
from legraph.marks import printable, quoted
from legraph.schema import ALL_BEFORE, BOS_NAME

MAX_CYCLE_NAMES_DRAWN = 12
# Each cycle costs a walk over the graph.
MAX_CYCLES_REPORTED = 20
# Looking for a name like another costs 20 microseconds a name.
MAX_NAMES_COMPARED = 100_000


class Link(NamedTuple):
    """What links a chunk to the others. `name` is None where the file gives none that can be used."""

    name: str | None
    parents: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class LinkProblem:
    """A problem at chunk number `chunk` (in declared order), or at one of its parents."""

    chunk: int
    parent: int | None
    message: str
    expected: str | None = None
    hint: str | None = None


def link_problems(links: Sequence[Link], has_bos: bool) -> list[LinkProblem]:
    """All problems of names and edges: repeated names, unknown, own and repeated parents, cycles."""
    problems = list[LinkProblem]()
    index_by_name = dict[str, int]()
    for i, link in enumerate(links):
        if link.name is None:
            continue
        if has_bos and link.name == BOS_NAME:
            problems.append(
                LinkProblem(
                    i,
                    None,
                    f"chunk name {BOS_NAME!r} is taken by the chunk that 'bos: true' adds",
                    expected="another name, or no 'bos: true'",
                )
            )
        elif link.name == ALL_BEFORE:
            problems.append(
                LinkProblem(i, None, f"{ALL_BEFORE!r} in 'parents' means all chunks before", "another name")
            )
        elif link.name in index_by_name:
            first = index_by_name[link.name]
            problems.append(
                LinkProblem(
                    i,
                    None,
                    f"chunk name {quoted(link.name)} is taken by chunk number {first + 1}",
                    "a unique name",
                )
            )
        else:
            index_by_name[link.name] = i
    hints = _Hints(list(index_by_name))
    edges = list[list[int]]()
    for i, link in enumerate(links):
        edges.append(_checked_parents(i, link, index_by_name, has_bos, hints, problems))
    problems += _cycle_problems(links, edges)
    return sorted(problems, key=lambda problem: (problem.chunk, problem.parent or 0))


@dataclass(slots=True)
class _Hints:
    """What unknown names may have meant, as long as that is found quickly."""

    names: list[str]
    by_unknown: dict[str, str | None] = field(default_factory=dict[str, str | None])

    def hint(self, unknown: str) -> str | None:
        num_compared = len(self.by_unknown) * len(self.names)
        if unknown not in self.by_unknown and num_compared < MAX_NAMES_COMPARED:
            self.by_unknown[unknown] = did_you_mean(unknown, self.names)
        return self.by_unknown.get(unknown)


def _checked_parents(
    i: int,
    link: Link,
    index_by_name: dict[str, int],
    has_bos: bool,
    hints: _Hints,
    problems: list[LinkProblem],
) -> list[int]:
    """The usable parents of one chunk, as indices; appends what is wrong with the others."""
    edges, seen = list[int](), set[str]()
    for at, parent in enumerate(link.parents):
        if parent is None:
            continue
        if parent == link.name:
            problem = LinkProblem(
                i,
                at,
                f"chunk {quoted(parent)} is its own parent",
                hint="a chunk always sees itself, causally: remove it from the list",
            )
        elif parent in seen:
            problem = LinkProblem(i, at, f"parent {quoted(parent)} is listed twice", "each parent once")
        elif parent in index_by_name:
            edges.append(index_by_name[parent])
            seen.add(parent)
            continue
        elif has_bos and parent == BOS_NAME:
            seen.add(parent)
            continue
        else:
            problem = LinkProblem(
                i,
                at,
                f"unknown parent {quoted(parent)}",
                expected="the name of a chunk in this file",
                hint=hints.hint(parent),
            )
        seen.add(parent)
        problems.append(problem)
    return edges


def topological_order(edges: Sequence[Sequence[int]]) -> list[int]:
    """Stable topological order: among the chunks that are ready, the one declared first comes first.

    `edges[i]` lists the parents of chunk i. Chunks on or behind a cycle are left out.
    O((chunks + edges) log chunks).
    """
    num_waiting = [len(parents) for parents in edges]
    children = [list[int]() for _ in edges]
    for i, parents in enumerate(edges):
        for parent in parents:
            children[parent].append(i)
    ready = [i for i, waiting in enumerate(num_waiting) if waiting == 0]
    order = list[int]()
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for child in children[i]:
            num_waiting[child] -= 1
            if num_waiting[child] == 0:
                heapq.heappush(ready, child)
    return order


def _cycle_problems(links: Sequence[Link], edges: list[list[int]]) -> list[LinkProblem]:
    """One problem a cycle: each is cut where it is reported, until the rest has an order."""
    problems = list[LinkProblem]()
    while len(problems) < MAX_CYCLES_REPORTED:
        placed = set(topological_order(edges))
        if len(placed) == len(edges):
            break
        cycle = _find_cycle(edges, placed)
        problems.append(_cycle_problem(links, cycle))
        edges[cycle[0]].remove(cycle[-1])
    return problems


def _find_cycle(edges: Sequence[Sequence[int]], placed: set[int]) -> list[int]:
    """Walks from parent to parent among the chunks that have no place in the order until one repeats.

    Returns the cycle from parent to child, the chunk that is declared first in front.
    """
    i = next(i for i in range(len(edges)) if i not in placed)
    walk, step_of = list[int](), dict[int, int]()
    while i not in step_of:
        step_of[i] = len(walk)
        walk.append(i)
        i = next(parent for parent in edges[i] if parent not in placed)
    # The walk went from child to parent; a reader follows arrows from parent to child.
    cycle = walk[step_of[i] :][::-1]
    first = cycle.index(min(cycle))
    return cycle[first:] + cycle[:first]


def _cycle_problem(links: Sequence[Link], cycle: Sequence[int]) -> LinkProblem:
    names = [printable(str(links[i].name)) for i in [*cycle, cycle[0]]]
    if len(names) > MAX_CYCLE_NAMES_DRAWN:
        left_out = len(names) - MAX_CYCLE_NAMES_DRAWN
        names[MAX_CYCLE_NAMES_DRAWN // 2 : -MAX_CYCLE_NAMES_DRAWN // 2] = [f"({left_out} more)"]
    chunk, parent = cycle[0], cycle[-1]
    parent_name = links[parent].name
    return LinkProblem(
        chunk,
        next(at for at, name in enumerate(links[chunk].parents) if name == parent_name),
        f"the parents form a cycle: {' -> '.join(names)}",
        expected="a graph without cycles",
    )
