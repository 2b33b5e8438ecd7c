"""From logits to one token: greedy, or sampled with temperature, top-k and top-p.

The random numbers of a chunk depend on the run's seed and the chunk's name only, so a branch draws the same
numbers whatever other branches run beside it. They are drawn on the CPU: every device draws the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import isfinite
from typing import Any

import torch

from legraph.errors import ModelError
from legraph.graph import Generate

DEFAULT_SEED = 0


def settings_for(own: Generate | None, run: Generate) -> Generate:
    """What holds for a chunk: its own settings, and the run's where it has none.

    A chunk's own `max_new_tokens` is always its own. Who asks for top-k or top-p and names no temperature
    wants to sample: at temperature 1.
    """
    settings = run
    if own is not None:
        kept = {
            name: getattr(run, name)
            for name in ("temperature", "top_k", "top_p", "seed")
            if getattr(own, name) is None
        }
        settings = replace(own, **kept, stop=own.stop or run.stop)
    samples = settings.top_k is not None or settings.top_p is not None
    return replace(settings, temperature=1.0) if settings.temperature is None and samples else settings


class Sampler:
    """Draws the tokens of one chunk."""

    def __init__(self, settings: Generate, chunk: str, own_seed: int | None = None) -> None:
        """
        Args:
            own_seed: the seed that the chunk itself was given; it is used as it is. Otherwise the run's
                seed is mixed with the chunk's name, so that alike branches differ.
        """
        from transformers import (
            LogitsProcessorList,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self.chunk = chunk
        self.is_greedy = not settings.temperature
        self.warpers = LogitsProcessorList()
        if self.is_greedy:
            return
        self.warpers.append(TemperatureLogitsWarper(float(settings.temperature or 1.0)))
        if settings.top_k is not None:
            self.warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None and settings.top_p < 1:
            self.warpers.append(TopPLogitsWarper(settings.top_p))
        seed = own_seed if own_seed is not None else _mixed_seed(settings.seed or DEFAULT_SEED, chunk)
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, logits_V: torch.Tensor, best: int, highest: float) -> int:
        """The next token.

        Args:
            logits_V: at the chunk's last token.
            best: the id of the largest of them, and `highest`, that logit. NaN counts as the largest of all.

        Raises:
            ModelError: the logits are not numbers to choose by.
        """
        if not isfinite(highest):
            raise ModelError(
                f"the model's logits for chunk {self.chunk!r} are not finite numbers",
                "float16 overflows in many models: use --dtype bfloat16 or float32",
            )
        if self.is_greedy:
            return best
        # In float64 and counted down from the largest, no temperature is too small to divide by.
        scores = logits_V.double().cpu()
        no_ids: Any = torch.empty((1, 0), dtype=torch.long)
        scores = self.warpers(no_ids, (scores - scores.max())[None])
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self.generator))


def _mixed_seed(seed: int, chunk: str) -> int:
    digest = hashlib.sha256(f"{seed}:{chunk}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
