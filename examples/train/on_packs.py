"""Trains a small model on packed graphs with the Trainer of transformers, as one would train one's own.

    legraph pack graphs.jsonl -o packs --length 1024          # graphs with 'loss: true'
    python -m examples.train.on_packs packs --out runs/packs

On a GPU the model attends with FlexAttention and the structured mask; on a CPU, where torch has no gradients
for that, with SDPA and a dense mask. `pip install 'legraph[train]'` brings datasets and accelerate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import Trainer, TrainingArguments

import legraph
from legraph.flexattention import many_flex_versions
from legraph.model import use_attention
from legraph.packfile import read_info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", help="a folder that legraph pack wrote")
    parser.add_argument("--out", required=True, help="folder for the model")
    parser.add_argument("--model", default="recall", help="path or hub id of a causal LM")
    parser.add_argument("--rows", type=int, default=2, help="packs in a batch")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    options = parser.parse_args()
    attn = "flex" if torch.cuda.is_available() else "sdpa"
    model = legraph.load_model(options.model, dtype="float32")
    use_attention(model, attn)
    collator = legraph.Collator(
        read_info(options.packs).length, config=model.config, attn=attn, rows=options.rows
    )
    arguments = TrainingArguments(
        output_dir=options.out,
        per_device_train_batch_size=options.rows,
        max_steps=options.steps,
        learning_rate=options.rate,
        bf16=attn == "flex",
        # The collator needs spans and parents, which no model has an argument for.
        remove_unused_columns=False,
        logging_steps=max(1, options.steps // 10),
        save_strategy="no",
        report_to=[],
    )
    packs = load_dataset(str(Path(options.packs).resolve()), split="train")
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=packs)
    # Graphs of different kinds are different programs for FlexAttention: more than torch keeps by default.
    with many_flex_versions():
        trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
