"""Trains the small recall model that ships with legraph, on prompt graphs compiled by legraph.

    python -m examples.train.train --out runs/recall --max-seconds 510    # on a GPU: minutes
    python -m examples.train.train --out runs/smoke --smoke               # on a CPU: proves that it runs

Worker processes make random graphs (`graphs`), compile them and pack them as disjoint unions into batches of
a fixed length (`packing`); the model sees each batch as one sequence through FlexAttention with the
structured mask. The loss counts the tokens that the bundles' `labels` name, the answers, and a tenth of all
others. `--resume` goes on after an interruption, or with another recipe: a second phase.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch.utils.data import DataLoader

from legraph.flexattention import many_flex_versions

from .heldout import evaluate
from .model import batch_loss, new_model, publish
from .packing import PackedGraphs
from .recipe import SMOKE, Recipe, record_phase
from .tokenizer import load_or_train


class Training:
    """The state of a training, and the folder that keeps it: checkpoint, curve, tokenizer."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.recipe, self.step = recipe, 0
        self.checkpoint, self.curve = out / "checkpoint.pt", out / "curve.jsonl"
        self.tokenizer = load_or_train(
            out / "tokenizer", recipe.vocab_size, recipe.seed, recipe.tokenizer_graphs
        )
        self.model: Any = new_model(recipe, self.tokenizer).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=device.type == "cuda",
        )

    def resume(self) -> None:
        """Goes back to the checkpoint, if there is one; the curve forgets what came after it."""
        rows = list[str]()
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=self.model.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = int(state["step"])
            rows = [row for row in _whole_rows(self.curve) if json.loads(row)["step"] <= self.step]
        self.curve.write_text("".join(rows))

    def save(self) -> None:
        """Whole or not at all: an interruption while writing must not cost the run."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def learn(self, bundle: Any, done: float) -> torch.Tensor:
        """One step. `done` is the share of the run that lies behind."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * rate(self.step, done, self.recipe.warmup_steps)
        loss = batch_loss(self.model, bundle, self.recipe.text_loss_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()


def _whole_rows(curve: Path) -> Iterator[str]:
    """The rows of a curve; a last one that was not written to its end is left out."""
    lines = curve.read_text().splitlines(keepends=True) if curve.exists() else []
    return (line for line in lines if line.endswith("\n"))


def rate(step: int, done: float, warmup_steps: int) -> float:
    """Share of the learning rate: warm-up, then a cosine down to a hundredth. `done` goes from 0 to 1."""
    warm = min(1.0, (step + 1) / warmup_steps)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(recipe: Recipe, options: argparse.Namespace) -> None:
    out: Path = options.out
    training = Training(recipe, out, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if options.resume:
        training.resume()
    else:
        training.curve.write_text("")
    first_step = training.step
    record_phase(out / "recipe.json", recipe, first_step, options.max_seconds, options.workers)
    graphs = PackedGraphs(recipe, training.tokenizer, first_step)
    batches = DataLoader(graphs, batch_size=None, num_workers=options.workers)
    started, seconds = time.perf_counter(), 0.0
    with many_flex_versions(), progress_bar() as (progress, bar):
        for bundle in islice(batches, max(0, recipe.steps - first_step)):
            # A run that is limited in time cools down in time.
            done = max(training.step / recipe.steps, seconds / options.max_seconds)
            loss = training.learn(bundle, done)
            seconds = time.perf_counter() - started
            progress.update(bar, completed=done, description=f"step {training.step:,}")
            is_last = training.step >= recipe.steps or seconds > options.max_seconds
            if is_last or training.step % options.log_every == 0:
                row = {"step": training.step, "loss": round(loss.item(), 4), "seconds": round(seconds)}
                row["steps_per_second"] = round((training.step - first_step) / seconds, 2)
                if is_last or training.step % options.evaluate_every == 0:
                    row["exact"] = evaluate(
                        training.model, training.tokenizer, options.evaluation_graphs, recipe
                    )
                log(training.curve, row, progress.console)
            if is_last or training.step % options.save_every == 0:
                training.save()
            if is_last:
                break
    publish(training.model, training.tokenizer, out / "model", options.dtype)


@contextmanager
def progress_bar() -> Iterator[tuple[Progress, TaskID]]:
    """On stderr, and only where somebody looks: in a log there are the rows of the curve instead."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty()) as progress:
        yield progress, progress.add_task("starting", total=1.0)


def log(curve: Path, row: dict[str, Any], console: Console) -> None:
    line = json.dumps(row)
    with curve.open("a") as file:
        file.write(line + "\n")
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, curve and model")
    parser.add_argument("--smoke", action="store_true", help="a tiny model for a few steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--log-every", type=int, help="steps (100; smoke: 1)")
    parser.add_argument("--evaluate-every", type=int, default=2000, help="steps")
    parser.add_argument("--evaluation-graphs", type=int, help="graphs of each kind (200; smoke: 2)")
    parser.add_argument("--save-every", type=int, default=1000, help="steps")
    parser.add_argument("--dtype", default="float16", help="of the published weights")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the recipe")
    options = parser.parse_args()
    options.log_every = options.log_every or (1 if options.smoke else 100)
    options.evaluation_graphs = options.evaluation_graphs or (2 if options.smoke else 200)
    try:
        recipe = (SMOKE if options.smoke else Recipe()).changed(options.set)
    except ValueError as error:
        parser.error(f"--set: {error}")
    train(recipe, options)


if __name__ == "__main__":
    main()
