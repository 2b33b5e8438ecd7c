"""How good the model is while it learns: one pass over held-out graphs with their right answers."""

from __future__ import annotations

from random import Random
from typing import Any

import torch

from legraph import Bundle
from legraph.bundle import NO_LABEL

from . import graphs
from .evaluate import compiled
from .model import last_hidden
from .packing import packed
from .recipe import Recipe


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, num_graphs: int, recipe: Recipe) -> dict[str, float]:
    """Share of held-out questions of which every token of the answer is the likeliest one, by kind of graph.

    A lower bound of exact match under greedy decoding, which `evaluate.exact_match` measures: it misses
    answers that are right in other tokens. Few-shot words are often copied stem first, then ending.
    """
    found: dict[str, float] = {}
    for name, make in held_out_sets(recipe.max_documents).items():
        # Graph i is `make(Random(i))`: every evaluation asks the same questions.
        bundles = (compiled(make(Random(i)), tokenizer) for i in range(num_graphs))
        right = [
            is_right
            for bundle in packed(bundles, tokenizer, recipe.batch_tokens)
            for is_right in answers_right(model, bundle)
        ]
        found[name] = round(sum(right) / len(right), 4)
    return found


def answers_right(model: Any, bundle: Bundle) -> list[bool]:
    """For each chunk named q0, q1, ...: whether the model finds all its labelled tokens the likeliest."""
    hidden, labels = last_hidden(model, bundle)
    learned = labels != NO_LABEL
    wrong = torch.zeros(len(bundle), dtype=torch.bool, device=model.device)
    wrong[1:][learned] = model.lm_head(hidden[learned]).argmax(-1) != labels[learned]
    is_wrong = wrong.cpu().numpy()
    return [
        not is_wrong[bundle.span(i)].any()
        for i, chunk in enumerate(bundle.span_names)
        if chunk.split(".")[-1].startswith("q")
    ]


def held_out_sets(max_documents: int) -> dict[str, Any]:
    """Functions that make held-out graphs, with their answers, from a random generator, by name."""
    few = min(16, max_documents)

    def hop(shape: str, least: int, most: int) -> Any:
        return lambda random: graphs.one_hop(
            random, "held-out", shape, random.randint(least, most), learn=True
        )

    sets = {f"{shape} 1-{few}": hop(shape, 1, few) for shape in graphs.SHAPES}
    if max_documents > few:
        sets |= {
            f"{shape} {max_documents}": hop(shape, max_documents, max_documents) for shape in graphs.SHAPES
        }
    sets["two hops"] = lambda random: graphs.summarised(
        random, "held-out", random.randint(2, 2 * few), learn=True
    )
    sets["few-shot"] = lambda random: graphs.few_shot(random, "held-out", random.randint(2, 8), learn=True)
    sets["compressed"] = lambda random: graphs.compressed(random, "held-out", learn=True)
    return sets
