"""Graphs -> what a pack holds of them, a slice at a time, in this process or in several.

What is learned is what the graphs say (`loss: true`, see `Bundle.labels`). A graph that says nothing of the
kind is an error, because it would train on nothing; `learn_unlabelled` has it learned whole, every token but
the first of each chunk, as if each of its chunks had `loss: true`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from legraph.batchinput import Item, bundle_of, graph_of, is_bundle
from legraph.bundle import NO_LABEL, Bundle
from legraph.compiler import compile_graph
from legraph.errors import InputError, LegraphError, Problem, Source, TokenizerError, count
from legraph.packfile import PackGraph
from legraph.processes import mapped
from legraph.tokens import load_tokenizer

# Graphs that a process is given at once: enough that handing them over costs nothing beside compiling them.
SLICE = 64


@dataclass(frozen=True, slots=True)
class PackSettings:
    """How graphs become packs.

    Attributes:
        length: most tokens of a pack.
        tokenizer: a path or hub id, or a fast tokenizer; None takes the one that the first graph names.
        window: graphs that are packed at a time. Beyond a few thousand the fill hardly grows.
        seed: of the order of the packs of a window, which would come largest graphs first.
        workers: processes that compile; 1 compiles in this one.
        learn_unlabelled: learn graphs without labels whole, instead of refusing them.
        skip_long, skip_broken: leave out graphs that are longer than a pack, or cannot be compiled, and list
            them, instead of refusing everything.
    """

    length: int
    tokenizer: Any = None
    window: int = 4096
    seed: int = 0
    workers: int = 1
    learn_unlabelled: bool = False
    skip_long: bool = False
    skip_broken: bool = False


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of one graph: it, with the name and fingerprint of its tokenizer, or what is wrong."""

    id: str
    graph: PackGraph | None = None
    tokenizer: tuple[str, str] = ("", "")
    place: Source | None = None
    is_long: bool = False
    problems: tuple[Problem, ...] = ()


def compiled(items: Iterable[Item], settings: PackSettings) -> Iterator[list[Compiled]]:
    """What became of each item, in order, a slice at a time.

    Raises:
        RunError: a worker process died.
    """
    items = iter(items)
    slices = iter(lambda: list(islice(items, SLICE)), [])
    if settings.workers == 1:
        return map(SliceCompiler(settings), slices)
    return mapped(SliceCompiler, settings, slices, settings.workers)


@dataclass
class SliceCompiler:
    """Compiles slices of graphs; each tokenizer is loaded once, or its error kept."""

    settings: PackSettings
    tokenizers: dict[str | None, Any] = field(default_factory=dict[str | None, Any])

    def __call__(self, items: Sequence[Item]) -> list[Compiled]:
        return [self._compiled(item) for item in items]

    def _compiled(self, item: Item) -> Compiled:
        try:
            bundle = self._bundle(item)
            labels = _labels(bundle, self.settings.learn_unlabelled, item)
        except LegraphError as error:
            return Compiled(item.id, problems=_problems(error, item))
        if len(bundle) > self.settings.length:
            problem = _long_problem(item, len(bundle), self.settings.length)
            return Compiled(item.id, is_long=True, problems=(problem,))
        ids, positions, counted = (
            a.astype(np.int32) for a in (bundle.input_ids, bundle.position_ids, labels)
        )
        packed = PackGraph(item.id, ids, positions, counted, bundle.mask)
        return Compiled(
            item.id, packed, (bundle.meta.tokenizer, bundle.meta.tokenizer_fingerprint), item.place
        )

    def _bundle(self, item: Item) -> Bundle:
        if item.error is None and is_bundle(item):
            return bundle_of(item, None)
        graph = graph_of(item)
        return compile_graph(graph, self._tokenizer(graph.tokenizer))

    def _tokenizer(self, name: str | None) -> Any:
        """The one that was asked for, or else the graph's own."""
        given = self.settings.tokenizer
        if given is not None and not isinstance(given, str | Path):
            return given
        name = name if given is None else str(given)
        if name not in self.tokenizers:
            try:
                self.tokenizers[name] = load_tokenizer(name)
            except TokenizerError as error:
                # Kept too: asking for it again for every graph may mean asking the network.
                self.tokenizers[name] = error
        loaded = self.tokenizers[name]
        if isinstance(loaded, TokenizerError):
            raise loaded
        return loaded


def _problems(error: LegraphError, item: Item) -> tuple[Problem, ...]:
    """What an error says, with a place: the graph's own, where it has no better one."""
    problems = error.problems if isinstance(error, InputError) else (Problem(str(error)),)
    return tuple(replace(found, source=item.place) if found.source is None else found for found in problems)


def _long_problem(item: Item, num_tokens: int, length: int) -> Problem:
    return Problem(
        f"graph {item.id!r} has {count(num_tokens, 'token')}, and a pack has room for {length:,}",
        hint="give a greater --length, or leave such graphs out: --skip-long",
        source=item.place,
    )


def _labels(bundle: Bundle, learn_unlabelled: bool, item: Item) -> Any:
    if bundle.labels is not None and (bundle.labels != NO_LABEL).any():
        return bundle.labels
    if learn_unlabelled:
        labels = bundle.input_ids.copy()
        labels[bundle.span_offsets[:-1]] = NO_LABEL
        if (labels != NO_LABEL).any():
            return labels
    expected = "a chunk of two tokens or more" if learn_unlabelled else "'loss: true' on a chunk"
    hint = None if learn_unlabelled else "to learn such graphs whole: --learn-unlabelled"
    raise InputError(Problem(f"graph {item.id!r} has nothing to learn", expected, hint, item.place))
