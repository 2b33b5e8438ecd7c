"""The recall model's tokenizer: byte-level BPE, so that any text round-trips, trained on training worlds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from . import graphs

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|eot|>", "<|pad|>")


def train_tokenizer(vocab_size: int, seed: int, num_graphs: int) -> PreTrainedTokenizerFast:
    """Learns merges from the texts of training graphs; digits stay single, so that any number is spelled."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(Random(f"tokenizer/{seed}"), num_graphs), trainer)
    bos, eos, _, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad)


def load_or_train(folder: Path, vocab_size: int, seed: int, num_graphs: int) -> Any:
    """The tokenizer in a folder; trained, and saved there, if there is none."""
    if not (folder / "tokenizer.json").exists():
        # Whole or not at all: half a tokenizer would be taken for one by the next run.
        part = folder.with_suffix(".part")
        train_tokenizer(vocab_size, seed, num_graphs).save_pretrained(part)
        part.rename(folder)
    return AutoTokenizer.from_pretrained(folder)


def _texts(random: Random, num_graphs: int) -> Iterator[str]:
    """The texts of training graphs, each chunk once."""
    for _ in range(num_graphs):
        graph = graphs.training_graph(random, max_documents=4)
        seen, waiting = set[int](), list(graph.leaves)
        while waiting:
            chunk = waiting.pop()
            if id(chunk) not in seen:
                seen.add(id(chunk))
                waiting.extend(chunk.parents)
                yield chunk.text + (chunk.completion or "")
