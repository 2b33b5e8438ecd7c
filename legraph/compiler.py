"""Graph -> bundle: the compiler, and its two ways in, a graph file and `Chunk` objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from legraph import __version__
from legraph.bundle import NO_LABEL, Bundle, BundleMeta
from legraph.chat import dress
from legraph.errors import GraphError, Problem, count, did_you_mean
from legraph.flow import assertion_problems
from legraph.graph import Generate, Graph, GraphChunk, build_graph
from legraph.layout import Layout, TokenOrder, build_layout, negative_starts
from legraph.links import Link, link_problems
from legraph.mask import Int64Array
from legraph.parse import parse_file
from legraph.schema import BOS_NAME, ChunkSpec, PositionPolicy, Role
from legraph.tokens import (
    TokenizedGraph,
    check_tokenizer,
    fingerprint,
    load_tokenizer,
    tokenize,
    tokenizer_id,
)


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """A chunk built in Python: the twin of a chunk in a graph file.

    It attends causally to itself and fully to its direct parents, to nothing else.

    Attributes:
        text: the text; special tokens written in it are recognised.
        parents: the chunks it sees in full.
        name: unique in its graph; without one it is called chunk0, chunk1, ... in order of collection.
        start, end: position id of its first token, or just past its last text token; not both.
        generate: let the model continue it.
        completion: what follows the text as if the model had written it there; tokenized apart.
        loss: label the completion's tokens (without one, the text's) for training.
        role: write the chat template's markers for "system", "user" or "assistant" around it.
    """

    text: str
    _: KW_ONLY
    parents: Sequence[Chunk] = ()
    name: str | None = None
    start: int | None = None
    end: int | None = None
    generate: Generate | None = None
    completion: str | None = None
    loss: bool = False
    role: Role | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))


def compile_file(
    path: str | Path,
    tokenizer: Any = None,
    *,
    order: TokenOrder = "declared",
    variables: Mapping[str, Any] | None = None,
    allow_outside: bool = False,
    advance: Callable[[int], object] = lambda done: None,
) -> Bundle:
    """Compiles a graph file (YAML, TOML or JSON; `-` is standard input).

    Args:
        tokenizer: a Hugging Face fast tokenizer, a path or hub id; None takes the file's own, and that of
            `recall`, the model that ships with legraph, if the file names none.
        order: "declared", or "locality" to let the compiler choose another topological order.
        variables: override those of the file: strings, numbers or booleans by name.
        allow_outside: paths in the file may lead out of its folder.
        advance: called with the number of chunks tokenized since the last call.

    Raises:
        GraphError: all problems of the file, or what it asserts does not hold.
        TokenizerError: the tokenizer cannot be loaded or used.
    """
    graph = build_graph(parse_file(path, variables, allow_outside))
    return compile_graph(graph, tokenizer, order=order, advance=advance)


def compile_chunks(
    leaves: Sequence[Chunk],
    tokenizer: Any = None,
    *,
    positions: PositionPolicy = "causal",
    bos: bool = False,
    order: TokenOrder = "declared",
) -> Bundle:
    """Compiles chunks built in Python. The ancestors of `leaves` are collected, parents before children.

    Raises:
        GraphError, TokenizerError: as `compile_file`.
    """
    return compile_graph(graph_of(leaves, positions, bos), tokenizer, order=order)


def graph_of(leaves: Sequence[Chunk], positions: PositionPolicy = "causal", bos: bool = False) -> Graph:
    """The graph of some chunks and all their ancestors.

    Raises:
        GraphError: names that repeat or are not allowed, both start and end, negative positions, no chunk.
    """
    chunks = _collect(leaves)
    names = _names(chunks)
    name_of = dict(zip(chunks, names, strict=True))
    # A name that is not a string is reported with the chunk's other values.
    linked = {chunk: _string(name) for chunk, name in name_of.items()}
    links = [Link(linked[chunk], [linked[parent] for parent in chunk.parents]) for chunk in chunks]
    problems = [Problem(found.message, found.expected, found.hint) for found in link_problems(links, bos)]
    for chunk, name in name_of.items():
        problems += _chunk_problems(chunk, name)
    if not chunks:
        problems.append(Problem("the graph has no chunks", "at least one chunk"))
    if positions not in get_args(PositionPolicy):
        policies = get_args(PositionPolicy)
        problems.append(
            Problem(
                f"positions is {positions!r}",
                f"one of {', '.join(policies)}",
                did_you_mean(str(positions), policies),
            )
        )
    if problems:
        raise GraphError(problems)
    shift = 1 if bos else 0
    index_of = {chunk: i + shift for i, chunk in enumerate(chunks)}
    roots = (0,) if bos else ()
    compiled = [GraphChunk(BOS_NAME, None)] if bos else []
    for chunk, name in name_of.items():
        parents = roots + tuple(index_of[parent] for parent in chunk.parents)
        generate = replace(chunk.generate, stop=tuple(chunk.generate.stop)) if chunk.generate else None
        learned = chunk.completion, chunk.loss
        pinned = chunk.start, chunk.end
        compiled.append(GraphChunk(name, chunk.text, parents, *pinned, generate, *learned, chunk.role))
    return Graph(tuple(compiled), positions)


def compile_graph(
    graph: Graph,
    tokenizer: Any = None,
    *,
    order: TokenOrder = "declared",
    advance: Callable[[int], object] = lambda done: None,
) -> Bundle:
    """Compiles a graph. Arguments and errors as `compile_file`."""
    if tokenizer is None or isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(str(tokenizer) if tokenizer is not None else graph.tokenizer)
    else:
        check_tokenizer(tokenizer)
    tokens = tokenize(dress(graph, tokenizer), tokenizer, advance)
    lengths = tokens.lengths()
    problems = list[tuple[int, Problem]]()
    for i, chunk in enumerate(graph.chunks):
        if tokens.text_lengths[i] == 0:
            problems.append((i, _empty_problem(graph, i, "text")))
        elif chunk.completion is not None and lengths[i] == tokens.text_lengths[i]:
            problems.append((i, _empty_problem(graph, i, "completion")))
    for i, start in negative_starts(graph, tokens.text_lengths).items():
        problems.append((i, _position_problem(graph, i, int(tokens.text_lengths[i]), start)))
    if problems:
        raise GraphError(problem for _, problem in sorted(problems, key=lambda found: found[0]))
    if failed := assertion_problems(graph, lengths.tolist()):
        raise GraphError(failed)
    layout = build_layout(graph, lengths, order, tokens.text_lengths)
    return _bundle(graph, layout, tokens, tokenizer)


def _bundle(graph: Graph, layout: Layout, tokens: TokenizedGraph, tokenizer: Any) -> Bundle:
    input_ids = tokens.in_order(layout.order)
    meta = BundleMeta(
        legraph_version=__version__,
        tokenizer=tokenizer_id(tokenizer),
        tokenizer_fingerprint=fingerprint(tokenizer),
        source_sha256=graph.sha256(),
        positions=graph.positions,
        pinned=frozenset(
            chunk.name for chunk in graph.chunks if chunk.start is not None or chunk.end is not None
        ),
        generate={chunk.name: chunk.generate for chunk in graph.chunks if chunk.generate is not None},
    )
    names = tuple(graph.chunks[int(i)].name for i in layout.order.tolist())
    labels = _labels(graph, layout, tokens.text_lengths, input_ids)
    return Bundle(input_ids, layout.position_ids, names, layout.mask, meta, labels)


def _labels(
    graph: Graph, layout: Layout, text_lengths: Int64Array, input_ids: Int64Array
) -> Int64Array | None:
    """See `Bundle.labels`; None if no chunk has a loss."""
    if not any(chunk.loss for chunk in graph.chunks):
        return None
    labels = np.full(len(input_ids), NO_LABEL, dtype=np.int64)
    for at, i in enumerate(layout.order.tolist()):
        chunk, span = graph.chunks[int(i)], layout.mask.span(at)
        if chunk.loss:
            first = span.start + (1 if chunk.completion is None else int(text_lengths[i]))
            labels[first : span.stop] = input_ids[first : span.stop]
    return labels


def _collect(leaves: Sequence[Chunk]) -> list[Chunk]:
    """The chunks and their ancestors: depth first, parents in their listed order before the child."""
    collected = dict[Chunk, None]()
    for leaf in _only_chunks(leaves, "a leaf"):
        stack = [(leaf, _parents_of(leaf))]
        while stack:
            chunk, parents = stack[-1]
            parent = next((parent for parent in parents if parent not in collected), None)
            if parent is not None:
                stack.append((parent, _parents_of(parent)))
                continue
            stack.pop()
            collected[chunk] = None
    return list(collected)


def _parents_of(chunk: Chunk) -> Iterator[Chunk]:
    return _only_chunks(chunk.parents, f"a parent of chunk {chunk.name or chunk.text!r}")


def _only_chunks(given: Sequence[Any], role: str) -> Iterator[Chunk]:
    for chunk in given:
        if not isinstance(chunk, Chunk):
            raise GraphError(Problem(f"{role} is {chunk!r}", "a Chunk"))
        yield chunk


def _names(chunks: Sequence[Chunk]) -> list[str]:
    """Given names, and chunk0, chunk1, ... for the rest. Never made from the text: texts repeat."""
    taken = {_string(chunk.name) for chunk in chunks}
    names = list[str]()
    number = 0
    for chunk in chunks:
        name = chunk.name
        while name is None:
            candidate = f"chunk{number}"
            number += 1
            name = None if candidate in taken else candidate
        names.append(name)
    return names


def _chunk_problems(chunk: Chunk, name: str) -> list[Problem]:
    """What the file format's own rules say of one chunk."""
    from pydantic import ValidationError

    problems = list[Problem]()
    if chunk.start is not None and chunk.end is not None:
        problems.append(
            Problem(
                f"chunk {name!r} has both start and end", "one of them: the other follows from the length"
            )
        )
    generate: Any = chunk.generate
    if generate is not None and not isinstance(generate, Generate):
        problems.append(Problem(f"chunk {name!r}: generate is {generate!r}", "a Generate"))
        generate = None
    text = _string(chunk.text)
    if text is None:
        problems.append(Problem(f"chunk {name!r}: text is {chunk.text!r}", "a string"))
    elif not _is_unicode(text):
        problems.append(
            Problem(f"chunk {name!r}: text has half a surrogate pair", "text that can be written as UTF-8")
        )
    try:
        ChunkSpec.model_validate(
            {
                "name": name,
                "text": text,
                "start": chunk.start,
                "end": chunk.end,
                "generate": asdict(generate) if generate else None,
                "completion": chunk.completion,
                "loss": chunk.loss,
                "role": chunk.role,
            }
        )
    except ValidationError as error:
        for details in error.errors(include_url=False):
            key = ".".join(map(str, details["loc"]))
            problems.append(Problem(f"chunk {name!r}: {key}: {details['msg']}"))
    return problems


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _empty_problem(graph: Graph, i: int, what: str) -> Problem:
    chunk = f"chunk {graph.chunks[i].name!r}"
    return Problem(
        f"{chunk if what == 'text' else f'the {what} of {chunk}'} gives no token",
        expected=f"a {what} that the tokenizer turns into at least one token",
        source=_place(graph, i, *(("text", "file") if what == "text" else (what,))),
    )


def _position_problem(graph: Graph, i: int, length: int, start: int) -> Problem:
    name = graph.chunks[i].name
    return Problem(
        f"chunk {name!r} has {count(length, 'token')}, so its first position would be {start}: "
        "a position cannot be negative",
        expected=f"'end' of {length} or more",
        source=_place(graph, i, "end"),
    )


def _place(graph: Graph, i: int, *keys: str) -> Any:
    """Where the first of `keys` that chunk i has stands in the graph's file, if it has one."""
    places = [graph.place(i, key) for key in keys]
    whole = graph.place(i)
    return next(
        (
            place
            for place in places
            if place and whole and (place.line, place.column) != (whole.line, whole.column)
        ),
        whole,
    )
