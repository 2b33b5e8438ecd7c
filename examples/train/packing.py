"""Random graphs -> batches: the disjoint union of several graphs, filled up to a fixed number of tokens.

A fixed length, so that FlexAttention is compiled once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

import legraph
from legraph import Bundle, Chunk
from legraph.union import disjoint_union

from . import graphs
from .evaluate import compiled
from .recipe import Recipe


class PackedGraphs(IterableDataset[Bundle]):
    """Endless batches to learn from, other ones for every worker and for every step that a run starts at."""

    def __init__(self, recipe: Recipe, tokenizer: Any, first_step: int = 0) -> None:
        self.recipe, self.tokenizer, self.first_step = recipe, tokenizer, first_step

    def __iter__(self) -> Iterator[Bundle]:
        worker = get_worker_info()
        random = Random(f"{self.recipe.seed}/{worker.id if worker else 0}/{self.first_step}")
        return packed(self._bundles(random), self.tokenizer, self.recipe.batch_tokens)

    def _bundles(self, random: Random) -> Iterator[Bundle]:
        while True:
            graph = graphs.training_graph(random, self.recipe.max_documents, self.recipe.many_share)
            yield compiled(graph, self.tokenizer)


def packed(bundles: Iterable[Bundle], tokenizer: Any, batch_tokens: int) -> Iterator[Bundle]:
    """Bundles of exactly `batch_tokens` tokens. A graph that is too large for any is left out."""
    parts, room = list[Bundle](), batch_tokens
    for bundle in bundles:
        if len(bundle) >= batch_tokens:
            continue
        # The filler needs a token at least.
        if len(bundle) >= room:
            yield disjoint_union([*parts, filler(room, tokenizer)])
            parts, room = [], batch_tokens
        parts.append(bundle)
        room -= len(bundle)
    if parts:
        yield disjoint_union([*parts, filler(room, tokenizer)])


def filler(num_tokens: int, tokenizer: Any) -> Bundle:
    """Padding as a graph: a chunk that nobody sees and that has no labels."""
    return legraph.compile_chunks([Chunk(tokenizer.pad_token * num_tokens, name="filler")], tokenizer)
