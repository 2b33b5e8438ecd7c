"""`legraph show --cost`: counts that are counted a second way, and words for them."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from hypothesis import given, settings
from rich.console import Console

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.cost import CPU_SHAPE, GPU_SHAPE, estimates
from legraph.costshow import CostPicture, cost_data
from tests.random_graphs import Dag, bundles, tokenizer


@settings(max_examples=40)
@given(bundle=bundles(max_chunks=12, max_length=20))
def test_the_counts_are_those_of_the_dense_mask(bundle: Bundle) -> None:
    data, dense = cost_data(bundle), bundle.dense_mask()
    assert data["visible_pairs"] == dense.sum()
    assert data["causal_pairs"] == np.tri(len(bundle)).sum()
    for blocks in data["blocks"]:
        size = blocks["size"]
        room = -len(bundle) % size
        padded = np.pad(dense, (0, room)).reshape((len(bundle) + room) // size, size, -1, size)
        pairs = padded.sum((1, 3))
        assert blocks["active"] == (pairs > 0).sum()
        assert blocks["full"] == (pairs == size**2).sum()
        assert blocks["useful"] == pytest.approx(dense.sum() / ((pairs > 0).sum() * size**2))
    for device in data["devices"]:
        assert device["flops"] == 4 * dense.sum() * device["heads"] * device["channels"]
        times = [one["ms"] for one in device["kernels"]]
        assert times == sorted(times) and times[0] > 0
        assert device["taken"] in {one["kernel"] for one in device["kernels"]}


def test_the_picture_names_the_kernel_that_is_taken() -> None:
    documents = [Chunk("d" * 300, name=f"d{i}") for i in range(8)]
    bundle = compile_chunks([Chunk("q" * 20, parents=documents, name="q")], tokenizer())
    console = Console(width=150, record=True, file=StringIO())
    console.print(CostPicture(cost_data(bundle)))
    lines = console.export_text().splitlines()
    taken = [line.split()[0] for line in lines if line.rstrip().endswith("(taken)")]
    assert taken == ["intervals", "chunks"]
    assert "mask form" in lines[0]
    assert sum(line.startswith("plain causal") for line in lines) == 2


def test_documents_cost_less_than_a_chain_and_both_less_than_everything() -> None:
    lengths = (500,) * 40
    documents = Dag(lengths, ((),) * 40).mask()
    chain = Dag(lengths, ((), *((i,) for i in range(39)))).mask()
    causal = Dag(lengths, tuple(tuple(range(i)) for i in range(40))).mask()
    for shape, device in ((GPU_SHAPE, "gpu"), (CPU_SHAPE, "cpu")):
        fastest = [estimates(mask, shape, device)[0].milliseconds for mask in (documents, chain, causal)]
        assert fastest == sorted(fastest)
