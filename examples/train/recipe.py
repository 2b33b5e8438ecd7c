"""What decides the result of a training, and the file that keeps it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import transformers

import legraph


@dataclass(frozen=True)
class Recipe:
    """Everything that, with the code, the number of workers and the time limit, decides the result.

    `many_share` is the share of graphs with 1 to `max_documents` documents; the others have 16 at most.
    """

    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 8
    intermediate_size: int = 384
    vocab_size: int = 1536
    tokenizer_graphs: int = 6000
    max_positions: int = 8192
    batch_tokens: int = 32768
    max_documents: int = 64
    many_share: float = 0.1
    steps: int = 100_000
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    text_loss_weight: float = 0.1
    seed: int = 0

    def changed(self, changes: Iterable[str]) -> Recipe:
        """With some fields set anew, each as `key=value`, the value in JSON.

        Raises:
            ValueError: no such field, or no JSON.
        """
        given = dict(change.split("=", 1) for change in changes)
        unknown = sorted(given.keys() - {field.name for field in fields(self)})
        if unknown:
            raise ValueError(f"the recipe has no {', '.join(unknown)}")
        return Recipe(**asdict(self) | {key: json.loads(value) for key, value in given.items()})


SMOKE = Recipe(
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    intermediate_size=96,
    vocab_size=512,
    tokenizer_graphs=100,
    batch_tokens=1536,
    max_documents=4,
    steps=4,
    warmup_steps=2,
)


def record_phase(path: Path, recipe: Recipe, first_step: int, max_seconds: float, num_workers: int) -> None:
    """Adds what a run does to a file: a training may have several phases, one recipe each."""
    known = json.loads(path.read_text())["phases"] if first_step else []
    limits = {"max_seconds": max_seconds if max_seconds < float("inf") else None, "workers": num_workers}
    phases = [*known, {"first_step": first_step, **limits, **asdict(recipe)}]
    content = {"machine": machine(), "versions": versions(), "phases": phases}
    path.write_text(json.dumps(content, indent=2) + "\n")


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"


def versions() -> dict[str, str]:
    return {
        "legraph": legraph.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
