"""The mask_mod is the mask in every form, pair by pair, and so is what FlexAttention computes with it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from legraph.bundle import Bundle
from legraph.flexattention import many_flex_versions
from legraph.flexmask import block_mask
from legraph.maskform import ADJACENCY, BITS, MaskForm, cheapest_form, forms_of
from legraph.maskmod import mask_mod, mask_mod_of_form
from tests.mask_forms import (  # noqa: F401
    ALL_FORMS,
    form_id,
    graph_of,
    no_table_where_bits_are_wanted,
    over_all_pairs,
)
from tests.random_graphs import Dag, brute_force_mask, bundles, dags

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
each_form = pytest.mark.parametrize("form", ALL_FORMS, ids=form_id)

# Pair by pair


def every_second_parent(num_stretches: int) -> Dag:
    """Chunks of one token: the last one sees every second one before it, not the one directly before it."""
    num_before = 2 * num_stretches + 1
    parents = tuple(range(0, num_before - 1, 2))
    return Dag((1,) * (num_before + 1), ((),) * num_before + (parents,))


# Short chunks, here and below: a mask_mod outside a kernel is slow.
@settings(max_examples=200)
@given(dag=dags(max_length=4))
def test_the_mask_mod_over_all_pairs_is_the_mask(dag: Dag):
    mod = mask_mod(dag.mask(), "cpu")
    assert np.array_equal(over_all_pairs(mod, dag.num_tokens), brute_force_mask(dag))


@settings(max_examples=40)
@given(dag=dags(max_length=40))
def test_so_it_is_where_chunks_lie_across_blocks(dag: Dag):
    mod = mask_mod(dag.mask(), "cpu")
    assert np.array_equal(over_all_pairs(mod, dag.num_tokens), dag.mask().dense())


@settings(max_examples=120)
@given(dag=dags(max_length=4))
def test_so_it_is_in_every_form_that_the_graph_has(dag: Dag):
    expected = brute_force_mask(dag)
    for form in forms_of(dag.mask()):
        mod = mask_mod_of_form(dag.mask(), form, "cpu")
        assert np.array_equal(over_all_pairs(mod, dag.num_tokens), expected), form


@each_form
@pytest.mark.parametrize("num_tokens", [None, 300])
def test_so_it_is_for_a_graph_that_needs_the_form(form: MaskForm, num_tokens: int | None):
    dag = graph_of(form, num_tokens)
    assert np.array_equal(over_all_pairs(mask_mod(dag.mask(), "cpu"), dag.num_tokens), brute_force_mask(dag))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("max_length", [1, 3])
def test_so_it_is_where_many_chunks_lie_in_one_block(share: float, max_length: int):
    """400 chunks, each of which sees a share of those before it."""
    chance = random.Random(f"{share} {max_length}")
    parents = tuple(tuple(k for k in range(i) if chance.random() < share) for i in range(400))
    dag = Dag(tuple(chance.randint(1, max_length) for _ in range(400)), parents)
    for form in (cheapest_form(dag.mask()), ADJACENCY, BITS):
        mod = mask_mod_of_form(dag.mask(), form, "cpu")
        assert np.array_equal(over_all_pairs(mod, dag.num_tokens), dag.mask().dense())


# Bits stand in words of 32, block by block.
@pytest.mark.parametrize("num_stretches", [0, 1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 400])
def test_every_stretch_is_seen_however_many_there_are(num_stretches: int):
    dag = every_second_parent(num_stretches)
    keys = torch.arange(dag.num_tokens)
    for form in forms_of(dag.mask()):
        mod = mask_mod_of_form(dag.mask(), form, "cpu")
        for q in (dag.num_tokens - 1, dag.num_tokens - 2, 0):
            row = mod(torch.tensor(0), torch.tensor(0), torch.tensor(q), keys)
            parents = dag.parents[-1] if q == dag.num_tokens - 1 else ()
            assert np.flatnonzero(row).tolist() == sorted({*parents, q})


@each_form
@pytest.mark.parametrize("num_more", [1, 128])
def test_past_the_last_token_queries_see_themselves_and_nobody_is_seen(form: MaskForm, num_more: int):
    dag = graph_of(form)
    n = dag.num_tokens
    seen = over_all_pairs(mask_mod(dag.mask(), "cpu"), n + num_more)
    assert seen.diagonal().all()
    assert not seen[:n, n:].any()


def within(dense: np.ndarray, position_ids: np.ndarray, window: int) -> np.ndarray:
    """The dense mask without the pairs that are `window` positions or more apart."""
    at = position_ids.tolist()
    return dense & np.array([[abs(q - k) < window for k in at] for q in at])


@settings(max_examples=100)
@given(bundle=bundles(max_length=4, plain=False), window=st.integers(1, 120))
def test_a_window_is_a_distance_in_positions(bundle: Bundle, window: int):
    mod = mask_mod(bundle.mask, "cpu", bundle.position_ids, window)
    expected = within(bundle.dense_mask(), bundle.position_ids, window)
    assert np.array_equal(over_all_pairs(mod, len(bundle)), expected)


@each_form
@pytest.mark.parametrize("window", [1, 7, 20])
def test_a_window_goes_with_every_form(form: MaskForm, window: int):
    """Positions in which chunks lie over each other."""
    dag = graph_of(form)
    positions = np.arange(dag.num_tokens) % 37
    mod = mask_mod(dag.mask(), "cpu", positions, window)
    expected = within(brute_force_mask(dag), positions, window)
    assert np.array_equal(over_all_pairs(mod, dag.num_tokens), expected)
    assert expected.sum() < brute_force_mask(dag).sum()


# In FlexAttention, against sdpa with the dense mask


def heads(num_tokens: int, num_heads: int, num_kv_heads: int, channels: int, **how: Any) -> Heads:
    """Queries, keys and values [1, H, N, D] that gradients are asked of."""
    torch.manual_seed(num_tokens)
    shapes = [(1, number, num_tokens, channels) for number in (num_heads, num_kv_heads, num_kv_heads)]
    q, k, v = (torch.randn(shape).to(**how).requires_grad_() for shape in shapes)
    return q, k, v


def with_gradients(out: torch.Tensor, parts: Heads) -> list[torch.Tensor]:
    """The output and the gradients of queries, keys and values, from a gradient that differs everywhere."""
    torch.manual_seed(1)
    gradient = torch.randn(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, parts, gradient)]


def sdpa(parts: Heads, dag: Dag) -> torch.Tensor:
    q, k, v = parts
    dense = torch.from_numpy(brute_force_mask(dag)).to(q.device)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense, enable_gqa=True)


def one_token_chunks(form: MaskForm) -> Dag:
    structure = graph_of(form).parents
    return Dag((1,) * len(structure), structure)


# Uncompiled flex_attention warns that it is slow; here it is asked for what it computes.
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
@each_form
@pytest.mark.parametrize(
    "num_tokens, num_heads, num_kv_heads, channels",
    [("one each", 1, 1, 256), (None, 2, 2, 32), (128, 2, 1, 128), (301, 4, 2, 64)],
)
def test_flex_attention_and_its_gradients_are_those_of_sdpa(
    num_tokens: Any,
    num_heads: int,
    num_kv_heads: int,
    channels: int,
    form: MaskForm,
    monkeypatch: pytest.MonkeyPatch,
):
    """Chunks of one token, less than a block, a block, blocks and a rest; with and without shared keys."""
    # torch refuses gradients on a CPU, where only its compiled kernels have none: uncompiled, they are there.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *parts: None)
    dag = one_token_chunks(form) if num_tokens == "one each" else graph_of(form, num_tokens)
    parts = heads(dag.num_tokens, num_heads, num_kv_heads, channels)
    made = block_mask(dag.mask(), "cpu")
    out: Any = flex_attention(*parts, block_mask=made, enable_gqa=num_heads != num_kv_heads)
    found, expected = with_gradients(out, parts), with_gradients(sdpa(parts, dag), parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


# On a GPU

ON_GPU = [
    *(
        (dtype, MaskForm(*form))
        for dtype in (torch.float32, torch.bfloat16)
        for form in (("query", 1, 0), ("key", 0, 1), ("mixed", 1, 1), ("adjacency",), ("bits",))
    ),
    *((torch.bfloat16, MaskForm(*form)) for form in (("query", 4, 0), ("key", 0, 4), ("mixed", 4, 4))),
]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype, form", ON_GPU, ids=[f"{dtype}-{form_id(form)}" for dtype, form in ON_GPU])
def test_on_a_gpu_the_kernel_and_its_gradients_are_those_of_sdpa(dtype: torch.dtype, form: MaskForm):
    """float32 products may be rounded to TF32 there, hence its tolerance."""
    dag = graph_of(form, 557)
    parts = heads(dag.num_tokens, 4, 2, 64, device="cuda", dtype=dtype)
    kernel: Any = torch.compile(flex_attention, dynamic=False)
    with many_flex_versions():
        out = kernel(*parts, block_mask=block_mask(dag.mask(), "cuda"), enable_gqa=True)
        found = with_gradients(out, parts)
    exact: Any = tuple(part.detach().double().requires_grad_() for part in parts)
    tolerance = {torch.float32: 5e-3, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(found, with_gradients(sdpa(exact, dag), exact), strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() < tolerance * other.norm()
