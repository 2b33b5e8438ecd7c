"""What is different between two graphs: chunks, texts, edges, settings; and tokens, positions, visible pairs.

Chunks are matched by their names, tokens by their chunk and their place in it. Graphs are compared as their
files say them; where one of the two is a bundle, both are compared as bundles, which know no texts.
Visible pairs are counted from spans and edges, never in a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from legraph.bundle import Bundle
from legraph.compiler import compile_graph
from legraph.graph import Graph, GraphChunk
from legraph.worddiff import Words, word_diff


class Change(NamedTuple):
    """A setting that is not the same. `chunk` is None for a setting of the graph."""

    chunk: str | None
    key: str
    before: Any
    after: Any


class TextChange(NamedTuple):
    """What of a chunk's text, or of its completion, has changed."""

    chunk: str
    key: Literal["text", "completion"]
    words: tuple[Words, ...]


class Edge(NamedTuple):
    """That one chunk sees another."""

    child: str
    parent: str


class Moved(NamedTuple):
    """A chunk whose tokens have other position ids: the first of them, before and after."""

    chunk: str
    before: int
    after: int


class Resized(NamedTuple):
    """A chunk that has other tokens, and their number, before and after."""

    chunk: str
    before: int
    after: int


class PairChange(NamedTuple):
    """How many (query token, key token) pairs of two chunks became visible, and how many hidden."""

    query: str
    key: str
    became_visible: int
    became_hidden: int


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """What is different between two compiled graphs.

    A token is the same one if it has the same place in a chunk of the same name; the pairs of a token that
    only one graph has became visible, or hidden, with it.

    Attributes:
        num_tokens, visible_pairs: before and after.
        pairs: by chunks, the largest change first.
    """

    num_tokens: tuple[int, int]
    visible_pairs: tuple[int, int]
    became_visible: int
    became_hidden: int
    resized: tuple[Resized, ...]
    moved: tuple[Moved, ...]
    pairs: tuple[PairChange, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.resized or self.moved or self.pairs or self.num_tokens[0] != self.num_tokens[1])


@dataclass(frozen=True, slots=True)
class Difference:
    """What is different between two graphs. `tokens` is None where nothing says how to make tokens."""

    settings: tuple[Change, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    is_reordered: bool
    texts: tuple[TextChange, ...]
    added_edges: tuple[Edge, ...]
    removed_edges: tuple[Edge, ...]
    tokens: TokenDifference | None

    @property
    def is_empty(self) -> bool:
        found = self.settings, self.added, self.removed, self.texts, self.added_edges, self.removed_edges
        return not (any(found) or self.is_reordered) and (self.tokens is None or self.tokens.is_empty)

    def data(self) -> dict[str, Any]:
        """As plain data for JSON."""
        changes = [each._asdict() for each in self.settings]
        texts = [
            {"chunk": each.chunk, "key": each.key, "words": [part._asdict() for part in each.words]}
            for each in self.texts
        ]
        tokens = asdict(self.tokens) if self.tokens is not None else None
        if tokens is not None and self.tokens is not None:
            for key in ("resized", "moved", "pairs"):
                tokens[key] = [each._asdict() for each in getattr(self.tokens, key)]
        return {
            "equal": self.is_empty,
            "settings": changes,
            "added": list(self.added),
            "removed": list(self.removed),
            "reordered": self.is_reordered,
            "texts": texts,
            "added_edges": [each._asdict() for each in self.added_edges],
            "removed_edges": [each._asdict() for each in self.removed_edges],
            "tokens": tokens,
        }


@dataclass(frozen=True, slots=True)
class _Side:
    """What is compared, in a form that graphs and bundles have.

    Attributes:
        settings: of the graph.
        chunks: by name, in token order, the settings of each.
        texts: by name, text and completion; empty for a bundle.
    """

    settings: Mapping[str, Any]
    chunks: Mapping[str, Mapping[str, Any]]
    texts: Mapping[str, tuple[str, str | None]]
    edges: frozenset[Edge]


def diff(before: Graph | Bundle, after: Graph | Bundle, tokenizer: Any = None) -> Difference:
    """What changes from one graph to another.

    Args:
        tokenizer: for graphs, as for `compile_graph`. Without one, two graphs are compiled if at least one
            of them names its own, each as it would be compiled by itself; a graph beside a bundle, with its
            own or the bundle's.

    Raises:
        GraphError, TokenizerError: a graph cannot be compiled.
    """
    bundles = _bundles(before, after, tokenizer)
    if isinstance(before, Graph) and isinstance(after, Graph):
        sides = _graph_side(before), _graph_side(after)
    else:
        assert bundles is not None
        sides = _bundle_side(bundles[0]), _bundle_side(bundles[1])
    return _difference(*sides, None if bundles is None else token_difference(*bundles))


def _bundles(before: Graph | Bundle, after: Graph | Bundle, tokenizer: Any) -> tuple[Bundle, Bundle] | None:
    names = [side.tokenizer if isinstance(side, Graph) else side.meta.tokenizer for side in (before, after)]
    if tokenizer is None and names == [None, None]:
        return None
    made = list[Bundle]()
    for side, other in ((before, after), (after, before)):
        if isinstance(side, Graph):
            own = side.tokenizer or (None if isinstance(other, Graph) else other.meta.tokenizer)
            made.append(compile_graph(side, tokenizer if tokenizer is not None else own))
        else:
            made.append(side)
    return made[0], made[1]


def _graph_side(graph: Graph) -> _Side:
    has_bos = graph.chunks[0].text is None
    chunks = {
        graph.chunks[i].name: graph.chunks[i] for i in graph.order() if graph.chunks[i].text is not None
    }
    edges = {
        Edge(chunk.name, graph.chunks[parent].name)
        for chunk in chunks.values()
        for parent in chunk.parents
        # Every chunk sees BOS: that is one setting of the graph, not as many edges.
        if graph.chunks[parent].text is not None
    }
    settings = {"positions": graph.positions, "bos": has_bos, "tokenizer": graph.tokenizer}
    texts = {name: (chunk.text or "", chunk.completion) for name, chunk in chunks.items()}
    return _Side(
        settings, {name: _chunk_settings(chunk) for name, chunk in chunks.items()}, texts, frozenset(edges)
    )


def _chunk_settings(chunk: GraphChunk) -> dict[str, Any]:
    return {
        "role": chunk.role,
        "loss": chunk.loss,
        "start": chunk.start,
        "end": chunk.end,
        "generate": asdict(chunk.generate) if chunk.generate is not None else None,
    }


def _bundle_side(bundle: Bundle) -> _Side:
    meta = bundle.meta
    chunks = dict[str, dict[str, Any]]()
    edges = set[Edge]()
    for i, name in enumerate(bundle.span_names):
        how = meta.generate.get(name)
        chunks[name] = {"generate": asdict(how) if how is not None else None, "pinned": name in meta.pinned}
        if bundle.labels is not None:
            chunks[name]["labels"] = bundle.labels[bundle.span(i)].tolist()
        edges |= {Edge(name, bundle.span_names[int(parent)]) for parent in bundle.parents(i)}
    settings = {
        "positions": meta.positions,
        "tokenizer": meta.tokenizer,
        "tokenizer_fingerprint": meta.tokenizer_fingerprint,
    }
    return _Side(settings, chunks, {}, frozenset(edges))


def _difference(before: _Side, after: _Side, tokens: TokenDifference | None) -> Difference:
    common = [name for name in before.chunks if name in after.chunks]
    changes = list(_changes(None, before.settings, after.settings))
    texts = list[TextChange]()
    for name in common:
        changes += _changes(name, before.chunks[name], after.chunks[name])
        if name in before.texts:
            texts += _text_changes(name, before.texts[name], after.texts[name])
    return Difference(
        tuple(changes),
        tuple(name for name in after.chunks if name not in before.chunks),
        tuple(name for name in before.chunks if name not in after.chunks),
        common != [name for name in after.chunks if name in before.chunks],
        tuple(texts),
        tuple(sorted(after.edges - before.edges)),
        tuple(sorted(before.edges - after.edges)),
        tokens,
    )


def _changes(chunk: str | None, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield Change(chunk, key, before.get(key), after.get(key))


def _text_changes(
    chunk: str, before: tuple[str, str | None], after: tuple[str, str | None]
) -> Iterator[TextChange]:
    keys: tuple[Literal["text", "completion"], ...] = ("text", "completion")
    for key, one, other in zip(keys, before, after, strict=True):
        if one != other:
            yield TextChange(chunk, key, tuple(word_diff(one or "", other or "")))


def token_difference(before: Bundle, after: Bundle) -> TokenDifference:
    """What is different between two bundles token by token. O(tokens + chunks + edges)."""
    others = set(after.span_names)
    common = [name for name in before.span_names if name in others]
    pairs = _pair_changes(before, after)
    return TokenDifference(
        (len(before), len(after)),
        (before.mask.num_visible_pairs(), after.mask.num_visible_pairs()),
        sum(each.became_visible for each in pairs),
        sum(each.became_hidden for each in pairs),
        tuple(_resized(before, after, common)),
        tuple(_moved(before, after, common)),
        tuple(sorted(pairs, key=lambda each: (-each.became_visible - each.became_hidden, each))),
    )


def _resized(before: Bundle, after: Bundle, common: Sequence[str]) -> Iterator[Resized]:
    for name in common:
        a, b = before.input_ids[before.span(name)], after.input_ids[after.span(name)]
        if not np.array_equal(a, b):
            yield Resized(name, len(a), len(b))


def _moved(before: Bundle, after: Bundle, common: Sequence[str]) -> Iterator[Moved]:
    for name in common:
        a, b = before.position_ids[before.span(name)], after.position_ids[after.span(name)]
        shared = min(len(a), len(b))
        if not np.array_equal(a[:shared], b[:shared]):
            yield Moved(name, int(a[0]), int(b[0]))


def _pair_changes(before: Bundle, after: Bundle) -> list[PairChange]:
    """The changes by pairs of chunks: a rectangle of tokens for an edge, a triangle for a chunk itself."""
    a, b = _lengths(before), _lengths(after)
    edges_before, edges_after = _edges(before), _edges(after)
    changes = list[PairChange]()
    for query, key in edges_before | edges_after:
        # Of an edge that both have, the tokens that both have are the same pairs.
        was = a[query] * a[key] if (query, key) in edges_before else 0
        now = b[query] * b[key] if (query, key) in edges_after else 0
        kept = min(a[query], b[query]) * min(a[key], b[key]) if was and now else 0
        changes.append(PairChange(query, key, now - kept, was - kept))
    for name in a.keys() | b.keys():
        was, now = a.get(name, 0), b.get(name, 0)
        kept = _triangle(min(was, now))
        changes.append(PairChange(name, name, _triangle(now) - kept, _triangle(was) - kept))
    return [each for each in changes if each.became_visible or each.became_hidden]


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def _lengths(bundle: Bundle) -> dict[str, int]:
    return dict(zip(bundle.span_names, np.diff(bundle.span_offsets).tolist(), strict=True))


def _edges(bundle: Bundle) -> set[tuple[str, str]]:
    children, names = bundle.mask.children_of_edges().tolist(), bundle.span_names
    pairs = zip(children, bundle.parent_indices.tolist(), strict=True)
    return {(names[child], names[parent]) for child, parent in pairs}
