"""Blocks counted in closed form are the blocks counted in the dense mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.blocks import EdgeBits, active_blocks, edge_bits
from tests.random_graphs import Dag, brute_force_mask, dags

SIZES = [1, 3, 16, 64, 128]


def pairs_by_block(dense: np.ndarray, size: int) -> np.ndarray:
    """int [blocks, blocks]: True entries of each block, the last ones cut off where the mask ends."""
    num_blocks = -(-len(dense) // size)
    edges = [slice(at * size, (at + 1) * size) for at in range(num_blocks)]
    return np.array([[int(dense[rows, columns].sum()) for columns in edges] for rows in edges])


# Longer chunks than elsewhere: with a few hundred tokens there are several blocks of 128 too.
@settings(max_examples=120)
@given(dag=dags(max_chunks=12, max_length=70))
@pytest.mark.parametrize("size", [16, 64, 128])
def test_blocks_hold_as_many_pairs_as_in_the_dense_mask(size: int, dag: Dag):
    check_blocks(dag, size)


@settings(max_examples=100)
@given(dag=dags(max_chunks=12, max_length=8))
@pytest.mark.parametrize("size", [1, 3])
def test_tiny_blocks_do_too(size: int, dag: Dag):
    check_blocks(dag, size)


def check_blocks(dag: Dag, size: int) -> None:
    blocks = active_blocks(dag.mask(), size)
    expected = pairs_by_block(dag.mask().dense(), size)
    found = np.zeros_like(expected)
    found[blocks.q_block, blocks.kv_block] = blocks.num_pairs
    assert np.array_equal(found, expected)
    assert len(blocks) == np.count_nonzero(expected), "a block is listed once, and only if it is active"
    assert (blocks.num_blocks, blocks.block_size) == (len(expected), size)
    places = list(zip(blocks.q_block.tolist(), blocks.kv_block.tolist(), strict=True))
    assert places == sorted(places)


@given(dag=dags(max_chunks=6, max_length=40))
@pytest.mark.parametrize("size", [1, 4, 16])
def test_a_block_is_full_when_all_its_pairs_are_visible(size: int, dag: Dag):
    blocks, dense = active_blocks(dag.mask(), size), brute_force_mask(dag)
    for q, kv, is_full in zip(blocks.q_block, blocks.kv_block, blocks.is_full, strict=True):
        square = dense[q * size : (q + 1) * size, kv * size : (kv + 1) * size]
        assert is_full == (square.shape == (size, size) and bool(square.all()))


@pytest.mark.parametrize("size", SIZES)
def test_one_token_is_one_block(size: int):
    blocks = active_blocks(Dag((1,), ((),)).mask(), size)
    assert (blocks.q_block.tolist(), blocks.kv_block.tolist(), blocks.num_pairs.tolist()) == ([0], [0], [1])
    assert blocks.is_full.tolist() == [size == 1]


def test_a_block_that_sticks_out_over_the_last_token_is_not_full():
    # 128 tokens of a parent, 127 of a child that sees them: the rectangle lacks one row of a whole block.
    blocks = active_blocks(Dag((128, 127), ((), (0,))).mask(), 128)
    assert blocks.num_pairs.tolist() == [128 * 129 // 2, 127 * 128, 127 * 128 // 2]
    assert not blocks.is_full.any()


def is_set(bits: EdgeBits, q_block: int, kv_block: int, child: int, parent: int) -> bool:
    """The bit of two chunks in a block, by the words of `EdgeBits`."""
    column = parent - bits.first_chunk[kv_block]
    row = (child - bits.first_chunk[q_block]) * bits.num_words[kv_block]
    word = bits.words[bits.offsets[q_block, kv_block] + row + column // 32]
    return bool(int(word) >> int(column % 32) & 1)


# With blocks of 100 there are more than 32 chunks in some, which is more than a word holds.
@settings(max_examples=40)
@given(dag=dags(max_length=6), long=st.integers(0, 60))
@pytest.mark.parametrize("size", [4, 16, 100])
def test_a_bit_says_in_every_block_whether_one_chunk_sees_another(size: int, dag: Dag, long: int):
    dag = Dag((*dag.lengths, *[1] * long), (*dag.parents, *[tuple(range(0, len(dag.lengths), 2))] * long))
    bits = edge_bits(dag.mask(), size)
    chunk_of = [chunk for chunk, length in enumerate(dag.lengths) for _ in range(length)]
    in_block = [sorted(set(chunk_of[at : at + size])) for at in range(0, len(chunk_of), size)]
    for q_block, children in enumerate(in_block):
        for kv_block, parents in enumerate(in_block):
            for child in children:
                seen = [parent for parent in parents if is_set(bits, q_block, kv_block, child, parent)]
                assert seen == [parent for parent in parents if parent in dag.parents[child]]


def test_a_block_that_several_parents_fill_together_is_full():
    blocks = active_blocks(Dag((5, 3, 8), ((), (), (0, 1))).mask(), 8)
    full = [
        (q, kv) for q, kv, yes in zip(blocks.q_block, blocks.kv_block, blocks.is_full, strict=True) if yes
    ]
    assert full == [(1, 0)]
