"""The `BlockMask` that FlexAttention is given is the mask, block by block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from legraph.bundle import Bundle
from legraph.flexmask import block_mask
from tests.mask_forms import over_all_pairs
from tests.random_graphs import Dag, brute_force_mask, bundles, dags


def rows_of(counts: torch.Tensor | None, indices: torch.Tensor | None) -> list[set[int]]:
    """Used columns of each row of torch's ragged tables."""
    assert counts is not None and indices is not None
    rows = zip(counts[0, 0].tolist(), indices[0, 0].tolist(), strict=True)
    return [set(columns[:count]) for count, columns in rows]


def tables(mask: BlockMask) -> dict[str, list[set[int]]]:
    """Partial and full blocks, by query block and by key block."""
    return {
        "kv": rows_of(mask.kv_num_blocks, mask.kv_indices),
        "full_kv": rows_of(mask.full_kv_num_blocks, mask.full_kv_indices),
        "q": rows_of(mask.q_num_blocks, mask.q_indices),
        "full_q": rows_of(mask.full_q_num_blocks, mask.full_q_indices),
    }


def counts(mask: BlockMask) -> list[list[int]]:
    found = (mask.kv_num_blocks, mask.full_kv_num_blocks, mask.q_num_blocks, mask.full_q_num_blocks)
    return [numbers[0, 0].tolist() for numbers in found if numbers is not None]


def kernel_view(mask: BlockMask) -> np.ndarray:
    """bool [N, N] as a kernel reads it: full blocks without a look, partial ones through the mask_mod."""
    num_tokens = mask.seq_lengths[0]
    size = mask.BLOCK_SIZE[0]
    by_pair = over_all_pairs(mask.mask_mod, num_tokens)
    seen = np.zeros_like(by_pair)
    for q, (partial, full) in enumerate(zip(tables(mask)["kv"], tables(mask)["full_kv"], strict=True)):
        rows = slice(q * size, (q + 1) * size)
        for kv in partial:
            columns = slice(kv * size, (kv + 1) * size)
            seen[rows, columns] = by_pair[rows, columns]
        for kv in full:
            seen[rows, kv * size : (kv + 1) * size] = True
    return seen


def within(bundle: Bundle, window: int) -> np.ndarray:
    """The dense mask without the pairs that are `window` positions or more apart."""
    at = bundle.position_ids.tolist()
    near = [[abs(q - k) < window for k in at] for q in at]
    return bundle.dense_mask() & np.array(near)


@settings(max_examples=70)
@given(dag=dags(max_chunks=15, max_length=60))
@pytest.mark.parametrize("size", [16, 64, 128])
def test_the_block_mask_is_the_one_torch_finds_by_looking_at_every_pair(size: int, dag: Dag):
    ours = block_mask(dag.mask(), "cpu", size)
    visible = torch.from_numpy(dag.mask().dense())
    n = dag.num_tokens
    theirs = create_block_mask(lambda b, h, q, k: visible[q, k], None, None, n, n, "cpu", BLOCK_SIZE=size)
    assert tables(ours) == tables(theirs)
    assert counts(ours) == counts(theirs)
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert ours.sparsity() == theirs.sparsity()
    assert torch.equal(ours.to_dense(), theirs.to_dense())


@settings(max_examples=30)
@given(dag=dags(max_chunks=10, max_length=15), more=st.integers(0, 100))
def test_a_padded_block_mask_has_blocks_for_more_tokens_that_see_nothing(dag: Dag, more: int):
    n, length = dag.num_tokens, dag.num_tokens + more
    visible = torch.zeros((length, length), dtype=torch.bool)
    visible[:n, :n] = torch.from_numpy(dag.mask().dense())
    theirs = create_block_mask(
        lambda b, h, q, k: visible[q, k], None, None, length, length, "cpu", BLOCK_SIZE=16
    )
    ours = block_mask(dag.mask(), "cpu", 16, padded_length=length)
    assert (tables(ours), ours.shape) == (tables(theirs), theirs.shape)
    # Queries past the end are nobody's; the others must not see keys there.
    assert np.array_equal(over_all_pairs(ours.mask_mod, length)[:n], visible[:n].numpy())


@settings(max_examples=30)
@given(dag=dags(max_chunks=10, max_length=15))
def test_torch_finds_the_same_block_mask_through_our_mask_mod(dag: Dag):
    """As above, with the bundle's own mask_mod in the place of a matrix."""
    ours, n = block_mask(dag.mask(), "cpu", 16), dag.num_tokens
    assert tables(ours) == tables(create_block_mask(ours.mask_mod, None, None, n, n, "cpu", BLOCK_SIZE=16))


@settings(max_examples=50)
@given(bundle=bundles(max_chunks=12, max_length=25, plain=False), window=st.none() | st.integers(1, 200))
@pytest.mark.parametrize("size", [16, 64])
def test_a_kernel_that_reads_the_block_mask_sees_the_mask(size: int, bundle: Bundle, window: int | None):
    made = block_mask(bundle.mask, "cpu", size, bundle.position_ids, window)
    expected = bundle.dense_mask() if window is None else within(bundle, window)
    assert np.array_equal(kernel_view(made), expected)


def test_blocks_outside_the_window_are_skipped():
    """A chain of two long chunks: without a window the second one's last block sees the first one's start."""
    dag = Dag((64, 64), ((), (0,)))
    made = block_mask(dag.mask(), "cpu", 16, np.arange(128), window=16)
    active = [
        partial | full for partial, full in zip(tables(made)["kv"], tables(made)["full_kv"], strict=True)
    ]
    # A query reaches back 15 positions: into the block before its own, and no further.
    assert active == [{0}, *({q - 1, q} for q in range(1, 8))]


@pytest.mark.parametrize("window, is_full", [(31, False), (32, True)])
def test_a_block_is_full_only_if_its_farthest_pair_is_inside_the_window(window: int, is_full: bool):
    """The child's last token and the parent's first one are 31 positions apart."""
    made = block_mask(Dag((16, 16), ((), (0,))).mask(), "cpu", 16, np.arange(32), window)
    assert tables(made)["full_kv"] == [set(), {0} if is_full else set()]
    assert tables(made)["kv"] == [{0}, {1} if is_full else {0, 1}]


@pytest.mark.parametrize("window, is_kept", [(15, False), (16, False), (17, True), (18, True)])
def test_a_block_is_kept_if_its_nearest_pair_is_inside_the_window(window: int, is_kept: bool):
    """A gap of 15 positions: the child's first token and the parent's last one are 16 apart."""
    positions = np.concatenate([np.arange(16), np.arange(31, 47)])
    made = block_mask(Dag((16, 16), ((), (0,))).mask(), "cpu", 16, positions, window)
    assert tables(made)["kv"][1] == ({0, 1} if is_kept else {1})


@settings(max_examples=25)
@given(bundle=bundles(max_chunks=10, plain=False))
def test_the_bundles_own_methods_give_the_same(bundle: Bundle):
    n = len(bundle)
    assert np.array_equal(over_all_pairs(bundle.mask_mod(), n), bundle.dense_mask())
    assert np.array_equal(
        create_mask(bundle.mask_mod(), 1, 1, n, n, "cpu")[0, 0].numpy(), bundle.dense_mask()
    )
    assert np.array_equal(kernel_view(bundle.block_mask(block_size=16)), bundle.dense_mask())


def test_the_default_block_is_128():
    dag = Dag((100, 100), ((), (0,)))
    assert block_mask(dag.mask(), "cpu").BLOCK_SIZE == (128, 128)


# Uncompiled flex_attention warns that it is slow; here it is asked for what it computes.
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
@settings(max_examples=15)
@given(dag=dags(max_chunks=8, max_length=10))
def test_flex_attention_with_the_block_mask_is_sdpa_with_the_dense_mask(dag: Dag):
    torch.manual_seed(dag.num_tokens)
    q, k, v = torch.randn(3, 1, 2, dag.num_tokens, 16)
    flex = flex_attention(q, k, v, block_mask=block_mask(dag.mask(), "cpu", 16))
    dense = torch.from_numpy(brute_force_mask(dag))
    sdpa = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    torch.testing.assert_close(flex, sdpa)
