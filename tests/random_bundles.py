"""Random bundles for models: DAGs with ragged lengths, diamonds and several leaves, over the byte tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.tokens import bytes_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@cache
def tokenizer() -> Any:
    return bytes_tokenizer()


@st.composite
def bundles(draw: st.DrawFn, max_chunks: int = 30, max_length: int = 9) -> Bundle:
    """A chunk chooses its parents among all chunks before it, so diamonds and skips are common."""
    num_chunks = draw(st.integers(1, max_chunks))
    positions = draw(st.sampled_from(["causal", "flat", "local"]))
    random = draw(st.randoms(use_true_random=False))
    share = draw(st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]))
    chunks: list[Chunk] = []
    for i in range(num_chunks):
        parents = [chunk for chunk in chunks if random.random() < share]
        text = "".join(random.choice(LETTERS) for _ in range(random.randint(1, max_length)))
        chunks.append(Chunk(text, parents=parents, name=f"c{i}"))
    seen = {parent for chunk in chunks for parent in chunk.parents}
    leaves = [chunk for chunk in chunks if chunk not in seen]
    return compile_chunks(leaves, tokenizer(), positions=positions)
