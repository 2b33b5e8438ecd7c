"""What a forward pass gives: logits on the device, and the best token of each row on the host.

Run side: imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits of the W tokens that were asked for.

    Attributes:
        rows: [W, V], on the device; the next pass may overwrite them.
        best: the id of the largest logit of each.
        highest: that logit; NaN if any of the row is.
    """

    rows: torch.Tensor
    best: list[int]
    highest: list[float]

    @staticmethod
    def of(rows_WV: torch.Tensor, best_2W: torch.Tensor | None = None) -> Logits:
        """
        Args:
            best_2W: what `best_and_highest` gave for the rows, if that is known already.
        """
        best_2W = best_and_highest(rows_WV) if best_2W is None else best_2W
        best, highest = best_2W.tolist()
        return Logits(rows_WV, [int(token) for token in best], highest)

    @staticmethod
    def joined(parts: Sequence[Logits]) -> Logits:
        """The rows of all parts, one after the other."""
        with_rows = [part for part in parts if part.best] or list(parts[:1])
        if len(with_rows) == 1:
            return with_rows[0]
        return Logits(
            torch.cat([part.rows for part in with_rows]),
            [token for part in with_rows for token in part.best],
            [logit for part in with_rows for logit in part.highest],
        )


def best_and_highest(rows_WV: torch.Tensor) -> torch.Tensor:
    """float64 [2, W]: ids and logits in one tensor, so that one copy brings both to the host."""
    highest, best = rows_WV.float().max(-1)
    return torch.stack([best.double(), highest.double()])
