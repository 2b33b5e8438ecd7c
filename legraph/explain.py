"""Why one chunk, or one of its tokens, may attend to another or not, and how its content gets there anyway.

Works on graphs, which know where their edges are written, and on bundles, which do not. How the answer is
worded is in `explainshow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from legraph.errors import InputError, Problem, Source, count, did_you_mean
from legraph.flow import children, num_paths, path_of_influence
from legraph.graph import Graph, GraphChunk
from legraph.marks import quoted

if TYPE_CHECKING:
    from legraph.bundle import Bundle

Relation = Literal[
    "itself", "later token", "parent", "grandparent", "ancestor", "descendant", "sibling", "unrelated"
]


@dataclass(frozen=True, slots=True)
class Edge:
    """That one chunk sees another, and where the file says so (None for BOS, and for bundles)."""

    child: str
    parent: str
    place: Source | None


@dataclass(frozen=True, slots=True)
class Influence:
    """How content of one chunk reaches another: a shortest path, from source to target, and how many are."""

    path: tuple[str, ...]
    edges: tuple[Edge, ...]
    num_paths: int

    @property
    def hops(self) -> int:
        return len(self.path) - 1


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """A token of a chunk.

    Attributes:
        index: within its chunk.
        token: within the graph, in token order.
        position: its position id.
    """

    index: int
    token: int
    position: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer for a query and a key.

    Attributes:
        relation: what the key is to the query.
        influence: from the key to the query, `reverse` from the query to the key.
        common_parents, common_children: of siblings, BOS left out.
        query_token, key_token: where tokens were asked for.
    """

    query: str
    key: str
    is_visible: bool
    relation: Relation
    influence: Influence | None
    reverse: Influence | None
    common_parents: tuple[str, ...] = ()
    common_children: tuple[str, ...] = ()
    query_token: TokenPlace | None = None
    key_token: TokenPlace | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What `NAME` or `NAME:INDEX` asks for."""

    name: str
    index: int | None = None

    @classmethod
    def of(cls, written: str) -> Target:
        """Raises InputError: what follows the colon is not a whole number."""
        name, colon, index = written.partition(":")
        if not colon:
            return cls(name)
        try:
            return cls(name, int(index))
        except ValueError:
            raise InputError(
                Problem(f"{quoted(written)}: {quoted(index)} is no index of a token", "NAME, or NAME:3")
            ) from None


def graph_of_bundle(bundle: Bundle) -> Graph:
    """What a bundle knows of its graph: names, edges, and which chunks generate. Texts are empty."""
    chunks = [
        GraphChunk(name, "", tuple(bundle.parents(i).tolist()), generate=bundle.meta.generate.get(name))
        for i, name in enumerate(bundle.span_names)
    ]
    return Graph(tuple(chunks), bundle.meta.positions)


def explain(graph: Graph, query: Target, key: Target, bundle: Bundle | None = None) -> Explanation:
    """Whether `query` may attend to `key`, why, and how influence flows between them.

    Args:
        bundle: the compiled graph; needed where a target names a token.

    Raises:
        InputError: no chunk has this name, or it has no such token.
    """
    index_of = {chunk.name: i for i, chunk in enumerate(graph.chunks)}
    _check_names(query, key, index_of)
    q, k = index_of[query.name], index_of[key.name]
    query_token, key_token = _token_places(bundle, query, key)
    is_later = q == k and query_token is not None and key_token is not None
    is_later = is_later and key_token.index > query_token.index  # type: ignore[union-attr]
    influence = None if is_later else _influence(graph, k, q)
    reverse = _influence(graph, q, k) if is_later or q != k else None
    common_parents, common_children = _in_common(graph, q, k)
    relation = "later token" if is_later else _relation(influence, reverse)
    if relation == "unrelated" and (common_parents or common_children):
        relation = "sibling"
    return Explanation(
        query.name,
        key.name,
        relation in ("itself", "parent"),
        relation,
        influence,
        reverse,
        common_parents,
        common_children,
        query_token,
        key_token,
    )


def _check_names(query: Target, key: Target, index_of: dict[str, int]) -> None:
    names = list(index_of)
    problems = [
        Problem(f"no chunk named {quoted(name)}", "the name of a chunk", did_you_mean(name, names))
        for name in dict.fromkeys((query.name, key.name))
        if name not in index_of
    ]
    if problems:
        raise InputError(problems)


def _token_places(
    bundle: Bundle | None, query: Target, key: Target
) -> tuple[TokenPlace | None, TokenPlace | None]:
    places, problems = list[TokenPlace | None](), list[Problem]()
    for target in (query, key):
        place = None
        if target.index is not None:
            assert bundle is not None, "tokens are known once a graph is compiled"
            span = bundle.span(target.name)
            length = span.stop - span.start
            if -length <= target.index < length:
                index = target.index % length
                token = span.start + index
                place = TokenPlace(index, token, int(bundle.position_ids[token]))
            else:
                wrong = f"{target.name}:{target.index}: the chunk has {count(length, 'token')}"
                problems.append(Problem(wrong, f"an index in {-length}..{length - 1}"))
        places.append(place)
    if problems:
        raise InputError(problems)
    return places[0], places[1]


def _relation(influence: Influence | None, reverse: Influence | None) -> Relation:
    if influence is not None:
        names: tuple[Relation, ...] = ("itself", "parent", "grandparent", "ancestor")
        return names[min(influence.hops, 3)]
    return "unrelated" if reverse is None else "descendant"


def _influence(graph: Graph, source: int, target: int) -> Influence | None:
    path = path_of_influence(graph, source, target)
    if path is None:
        return None
    edges = tuple(edge(graph, child, parent) for parent, child in pairwise(path))
    names = tuple(graph.chunks[i].name for i in path)
    return Influence(names, edges, num_paths(graph, source, target))


def edge(graph: Graph, child: int, parent: int) -> Edge:
    """An edge with its place in the file."""
    names = graph.chunks[child].name, graph.chunks[parent].name
    at = graph.chunks[child].parents.index(parent)
    if graph.chunks[0].text is not None:
        return Edge(*names, graph.place(child, "parents", at))
    if parent == 0:
        return Edge(*names, None)
    # The BOS chunk is a parent without being written; a list that names it all the same is one longer.
    for place in (graph.place(child, "parents", at - 1), graph.place(child, "parents", at)):
        if place is not None and _written_at(place) == names[1]:
            return Edge(*names, place)
    return Edge(*names, graph.place(child, "parents", at - 1))


def _written_at(place: Source) -> str:
    first = (place.column or 1) - 1
    return (place.line_text or "")[first : first + place.width].strip("'\"")


def _in_common(graph: Graph, q: int, k: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the parents that two chunks share, and of the children."""
    if q == k:
        return (), ()
    below = children(graph)
    parents = sorted(set(graph.chunks[q].parents) & set(graph.chunks[k].parents))
    both = sorted(set(below[q]) & set(below[k]))
    shared = [i for i in parents if graph.chunks[i].text is not None]
    return tuple(graph.chunks[i].name for i in shared), tuple(graph.chunks[i].name for i in both)
