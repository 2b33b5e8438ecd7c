"""A graph for each form of the mask, made so that no cheaper form can tell it; a mask_mod, pair by pair.

A form with R stretches a query and C a key needs a graph in which some queries see R stretches, too many
queries for their keys to tell, and some keys are seen by C, too many keys for their queries to tell.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from legraph import maskform
from legraph.maskform import ADJACENCY, BITS, STRETCH_FORMS, MaskForm
from legraph.maskmod import MaskMod
from tests.random_graphs import Dag

ALL_FORMS = [*STRETCH_FORMS, ADJACENCY, BITS]


@pytest.fixture(autouse=True)
def no_table_where_bits_are_wanted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits are for graphs of more chunks than a test can go through pair by pair."""
    if "form" in request.fixturenames and request.getfixturevalue("form") == BITS:
        monkeypatch.setattr(maskform, "MAX_ADJACENCY_CHUNKS", 0)


# More than the most stretches that are compared.
MANY = 6
Parents = list[tuple[int, ...]]


def form_id(form: MaskForm) -> str:
    return f"{form.name}-{form.query_stretches}-{form.key_stretches}"


def alternating() -> Parents:
    """Every second chunk sees all before it, the others none: many scattered chunks see each of the first.

    A query sees one stretch that ends at itself.
    """
    return [tuple(range(i)) if i % 2 else () for i in range(2 * MANY)]


def comb() -> Parents:
    """A tree in depth-first order, of chunks that see all their ancestors: a path, with a leaf at each.

    A key is seen by one stretch that begins at itself, and the path's end sees many scattered chunks.
    """
    return [tuple(range(0, i, 2)) for i in range(2 * MANY)]


def headers(num_headers: int) -> Parents:
    """Scattered headers, all of which are seen by each of many scattered chunks."""
    parents: Parents = [()] * (2 * num_headers)
    for _ in range(MANY):
        parents += [tuple(range(0, 2 * num_headers, 2)), ()]
    return parents


def questions(num_questions: int) -> Parents:
    """Scattered questions, each of which sees the same many scattered documents."""
    parents: Parents = [()] * (2 * MANY)
    for _ in range(num_questions):
        parents += [tuple(range(0, 2 * MANY, 2)), ()]
    return parents


def beside(one: Parents, other: Parents) -> Parents:
    """Two graphs, one after the other in token order."""
    return [*one, *(tuple(parent + len(one) for parent in row) for row in other)]


def structure_of(form: MaskForm) -> Parents:
    by_query = headers(form.query_stretches) if form.query_stretches else alternating()
    by_key = questions(form.key_stretches) if form.key_stretches else comb()
    return {
        "query": by_query,
        "key": by_key,
        "mixed": beside(by_query, by_key),
        "adjacency": headers(MANY - 1),
        "bits": headers(MANY - 1),
    }[form.name]


def graph_of(form: MaskForm, num_tokens: int | None = None) -> Dag:
    """The graph for a form. Chunks have 1 to 4 tokens, the last one what is missing up to `num_tokens`."""
    parents = structure_of(form)
    lengths = [3 * i % 4 + 1 for i in range(len(parents))]
    if num_tokens is not None:
        assert sum(lengths) <= num_tokens
        lengths[-1] += num_tokens - sum(lengths)
    return Dag(tuple(lengths), tuple(parents))


def over_all_pairs(mod: MaskMod, num_tokens: int) -> np.ndarray:
    """bool [N, N]"""
    tokens = torch.arange(num_tokens)
    return mod(torch.tensor(0), torch.tensor(0), tokens[:, None], tokens[None, :]).numpy()
