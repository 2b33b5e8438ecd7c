"""Scores for people (a rich table) and for programs (plain data)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from legraph.marks import printable
from legraph.score import Score

Scores = Mapping[str, Mapping[str, Score]]


def score_table(scores: Scores) -> Table:
    """A line for each target and graph. A target's lines stand together, its graphs in the given order."""
    drawn = Table(box=None, pad_edge=False)
    is_several = len(scores) > 1
    for heading in ("target", "graph") if is_several else ("target",):
        drawn.add_column(heading, no_wrap=True)
    for heading in ("tokens", "log-prob", "per token", "perplexity"):
        drawn.add_column(heading, no_wrap=True, justify="right")
    for target in dict.fromkeys(target for found in scores.values() for target in found):
        for graph, found in scores.items():
            if target in found:
                # As Texts, because in a string [brackets] are markup.
                names = [Text(target), Text(printable(graph))] if is_several else [Text(target)]
                drawn.add_row(*names, *_numbers(found[target]))
    return drawn


def _numbers(found: Score) -> list[str]:
    perplexity = found.perplexity
    drawn = f"{perplexity:,.3f}" if perplexity < 1e6 else f"{perplexity:.3g}"
    return [f"{found.num_tokens:,}", f"{found.total:,.4f}", f"{found.mean:,.4f}", drawn]


def score_data(scores: Scores) -> dict[str, Any]:
    """`{"graphs": [{"graph", "targets": {name: {...}}}]}`, graphs in the given order."""
    return {
        "graphs": [
            {"graph": graph, "targets": {target: _score_data(one) for target, one in found.items()}}
            for graph, found in scores.items()
        ]
    }


def _score_data(found: Score) -> dict[str, Any]:
    return {
        "num_tokens": found.num_tokens,
        "log_prob": found.total,
        "mean": found.mean,
        # JSON knows no infinity.
        "perplexity": found.perplexity if math.isfinite(found.perplexity) else None,
        "token_ids": list(found.token_ids),
        "tokens": list(found.tokens),
        "log_probs": list(found.log_probs),
    }
