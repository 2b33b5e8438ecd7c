"""Graphs in Python: the forms of a bundle, and an answer from the model that ships with legraph.

    python examples/python_api.py

The first graph has three chunks in a chain and a question that sees the last of them; its mask is drawn, one
byte a token. The second asks about two documents and is run.
"""

from __future__ import annotations

import numpy as np
import rich
import torch

import legraph


def chain() -> legraph.Bundle:
    x1 = legraph.Chunk("one.", name="X1")
    x2 = legraph.Chunk("two.", parents=[x1], name="X2")
    x3 = legraph.Chunk("three.", parents=[x2], name="X3")
    question = legraph.Chunk("four?", parents=[x3], name="Q")
    # The ancestors of the leaves are collected.
    return legraph.compile_chunks([question], tokenizer="bytes", positions="local")


def draw(mask: np.ndarray) -> str:
    """Rows are queries, columns are keys: `#` may be attended to."""
    return "\n".join("  " + " ".join("#" if seen else "." for seen in row) for row in mask)


def show(bundle: legraph.Bundle) -> None:
    rich.print(legraph.tree(bundle))

    print("\ninput_ids     ", bundle.input_ids.tolist())
    print("position_ids  ", bundle.position_ids.tolist())
    print("span of Q     ", bundle.span("Q"))
    print("\nThe whole mask:")
    print(draw(bundle.dense_mask()))

    q, x1, x3 = (bundle.span(name).start for name in ("Q", "X1", "X3"))
    print("\nQ sees X3:", bundle.visible(q, x3), "  Q sees X1:", bundle.visible(q, x1))

    part = bundle.with_parents("Q")
    print(f"\nQ and its parents alone ({', '.join(part.span_names)}):")
    print(draw(part.dense_mask()))

    # For flex_attention: a function of indices, and the blocks that hold anything. Both are made from the
    # spans and edges, never from an N x N matrix.
    mask_mod = bundle.mask_mod()
    index = torch.arange(len(bundle))
    same = mask_mod(0, 0, index[:, None], index[None, :]).numpy() == bundle.dense_mask()
    print("\nmask_mod agrees with the dense mask:", bool(same.all()))
    print("block mask:", tuple(bundle.block_mask(block_size=128).shape))


def ask() -> str:
    engine = legraph.Engine.load()
    amber = legraph.Chunk("The amber key of Voldan opens the north gate.")
    silver = legraph.Chunk("The silver key of Maren opens the south gate.")
    text = "Which gate does the silver key of Maren open?"
    question = legraph.Chunk(text, parents=[amber, silver], name="Q")
    result = engine.run(legraph.compile_chunks([question], engine.tokenizer))
    return text + result.outputs["Q"].text


def main() -> None:
    show(chain())
    print("\n" + ask())


if __name__ == "__main__":
    main()
