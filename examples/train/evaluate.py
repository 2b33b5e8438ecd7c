"""Exact match on held-out graphs: the whole generated answer must be right, to the last full stop.

Greedy decoding by legraph's engine. Several graphs may run as one, the disjoint union of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from random import Random

import legraph
from legraph import Bundle
from legraph.engine import Engine
from legraph.union import disjoint_union

from .graphs import PromptGraph
from .worlds import UNKNOWN

# Tokens of one run. On a CPU a graph at a time is fastest: the mask of a union is mostly pairs that nobody
# sees, and there they cost as much as any other.
RUN_TOKENS = {"cpu": 1, "cuda": 16384}


@dataclass(frozen=True, slots=True)
class Score:
    """What a number of questions came to.

    Attributes:
        exact: answers that are right from the first to the last character.
        unknown: answers that say, with these very words, that the answer is unknown.
    """

    graphs: int = 0
    asked: int = 0
    exact: int = 0
    unknown: int = 0
    tokens: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.graphs + other.graphs,
            self.asked + other.asked,
            self.exact + other.exact,
            self.unknown + other.unknown,
            self.tokens + other.tokens,
        )


def compiled(graph: PromptGraph, tokenizer: object) -> Bundle:
    return legraph.compile_chunks(graph.leaves, tokenizer, positions=graph.positions, bos=graph.bos)


def exact_match(
    engine: Engine, make: Callable[[Random], PromptGraph], numbers: Iterable[int], seed: int = 0
) -> Score:
    """Asks graph i of a kind, for every i of some numbers: the same number, the same questions."""
    made = (make(Random(f"{seed}/{i}")) for i in numbers)
    return score(engine, ((graph, compiled(graph, engine.tokenizer)) for graph in made))


def score(engine: Engine, graphs: Iterable[tuple[PromptGraph, Bundle]]) -> Score:
    """Runs compiled graphs, and compares what their chunks named q0, q1, ... say with the right answers."""
    total = Score()
    for batch in _batches(graphs, RUN_TOKENS[engine.model.device.type]):
        outputs = engine.run(disjoint_union([bundle for _, bundle in batch])).outputs
        for at, (graph, bundle) in enumerate(batch):
            pairs = [
                (outputs[f"g{at}.{name}"].text.strip(), answer.strip())
                for name, answer in graph.answers.items()
                if name.startswith("q")
            ]
            exact = sum(said == answer for said, answer in pairs)
            unknown = sum(said == UNKNOWN.strip() for said, _ in pairs)
            total += Score(1, len(pairs), exact, unknown, len(bundle))
    return total


def _batches(
    graphs: Iterable[tuple[PromptGraph, Bundle]], run_tokens: int
) -> Iterator[list[tuple[PromptGraph, Bundle]]]:
    batch, size = list[tuple[PromptGraph, Bundle]](), 0
    for graph, bundle in graphs:
        batch.append((graph, bundle))
        size += len(bundle)
        if size >= run_tokens:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
