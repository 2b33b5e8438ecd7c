"""A bundle answers by name or index, and its parts and model inputs say the same as the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.errors import BundleError
from legraph.graph import Generate
from tests.random_graphs import bundles, drawn, tokenizer


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """head <- doc1, doc2 <- question; doc1 <- note. The question does not list the head."""
    head = Chunk("ab", name="head")
    doc1 = Chunk("cde", name="doc1", parents=[head], start=10)
    doc2 = Chunk("f", name="doc2", parents=[head], generate=Generate(7))
    question = Chunk("gh", name="question", parents=[doc2, doc1])
    note = Chunk("i", name="note", parents=[doc1], generate=Generate(3))
    return compile_chunks([question, note], tokenizer())


def test_chunks_are_found_by_name_and_by_index(bundle: Bundle):
    # Parents come before their child in the order in which it lists them: doc2 before doc1.
    assert bundle.span_names == ("head", "doc2", "doc1", "question", "note")
    assert len(bundle) == 9
    spans = {"head": slice(0, 2), "doc2": slice(2, 3), "doc1": slice(3, 6), "question": slice(6, 8)}
    for at, (name, span) in enumerate(spans.items()):
        assert bundle.index(name) == bundle.index(at) == at
        assert bundle.span(name) == bundle.span(at) == bundle.span(np.int64(at)) == span  # pyright: ignore
        assert bundle.input_ids[span].tolist() == list(
            {"head": b"ab", "doc2": b"f", "doc1": b"cde"}.get(name, b"gh")
        )


def test_parents_are_indices_in_ascending_order(bundle: Bundle):
    expected = {"head": [], "doc1": [0], "doc2": [0], "question": [1, 2], "note": [2]}
    assert {name: bundle.parents(name).tolist() for name in bundle.span_names} == expected
    assert bundle.parent_offsets.tolist() == [0, 0, 1, 2, 4, 5]
    assert bundle.parent_indices.tolist() == [0, 0, 1, 2, 2]
    assert bundle.span_offsets.tolist() == [0, 2, 3, 6, 8, 9]


def test_leaves_are_the_chunks_that_nobody_sees(bundle: Bundle):
    assert bundle.leaves == (3, 4)


@given(bundle=bundles())
def test_leaves_have_no_true_column_outside_their_own_rows(bundle: Bundle):
    dense = bundle.dense_mask()
    alone = [
        i
        for i in range(bundle.mask.num_chunks)
        if not np.delete(dense[:, bundle.span(i)], bundle.span(i), 0).any()
    ]
    assert list(bundle.leaves) == alone


@pytest.mark.parametrize("ask", ["index", "span", "parents", "with_parents"])
def test_an_unknown_name_is_a_key_error_that_names_a_close_one(bundle: Bundle, ask: str):
    with pytest.raises(KeyError, match="no chunk named 'qestion': did you mean 'question'"):
        getattr(bundle, ask)("qestion")
    with pytest.raises(KeyError) as caught:
        getattr(bundle, ask)("zzz")
    assert caught.value.args == ("no chunk named 'zzz'",)


@pytest.mark.parametrize("ask", ["index", "span", "parents", "with_parents"])
@pytest.mark.parametrize("index", [-1, 5, np.int64(-5)])
def test_an_index_that_is_not_there_is_an_index_error(bundle: Bundle, ask: str, index: Any):
    """-1 too: an empty slice in the place of the last chunk would be a silent mistake."""
    with pytest.raises(IndexError, match=r"no chunk -?\d: the bundle has chunks 0\.\.4"):
        getattr(bundle, ask)(index)


def test_a_bundle_and_its_mask_cannot_be_exchanged(bundle: Bundle):
    with pytest.raises(AttributeError):
        bundle.mask = bundle.mask  # pyright: ignore[reportAttributeAccessIssue]


def test_with_parents_is_what_one_chunk_sees(bundle: Bundle):
    part = bundle.with_parents("question")
    assert part.span_names == ("doc2", "doc1", "question")
    assert bytes(part.input_ids.tolist()) == b"fcdegh"
    assert part.position_ids.tolist() == [2, 10, 11, 12, 13, 14]
    assert drawn(part.dense_mask()) == "\n".join(["#.....", ".#....", ".##...", ".###..", "#####.", "######"])
    assert part.meta.pinned == {"doc1"}
    assert part.meta.generate == {"doc2": Generate(7)}
    assert part.meta.tokenizer_fingerprint == bundle.meta.tokenizer_fingerprint


def test_a_root_with_its_parents_is_itself(bundle: Bundle):
    part = bundle.with_parents(0)
    assert (part.span_names, part.meta.pinned, part.meta.generate) == (("head",), frozenset(), {})


@settings(max_examples=150)
@given(bundle=bundles(max_chunks=12, plain=False), data=st.data())
def test_a_selection_is_the_rows_and_columns_of_its_chunks(bundle: Bundle, data: st.DataObject):
    chunks = data.draw(st.lists(st.integers(0, bundle.mask.num_chunks - 1), min_size=1))
    by_name = data.draw(st.lists(st.booleans(), min_size=len(chunks), max_size=len(chunks)))
    asked = [bundle.span_names[i] if named else i for i, named in zip(chunks, by_name, strict=True)]
    part = bundle.select(asked)
    kept = sorted(set(chunks))
    tokens = [token for i in kept for token in range(len(bundle))[bundle.span(i)]]
    assert part.span_names == tuple(bundle.span_names[i] for i in kept)
    assert np.array_equal(part.input_ids, bundle.input_ids[tokens])
    assert np.array_equal(part.position_ids, bundle.position_ids[tokens])
    assert np.array_equal(part.dense_mask(), bundle.dense_mask()[np.ix_(tokens, tokens)])
    assert part.parent_indices.dtype == part.span_offsets.dtype == part.input_ids.dtype == np.int64
    assert part.meta.pinned == {name for name in bundle.meta.pinned if name in part.span_names}
    assert part.meta.generate == {n: how for n, how in bundle.meta.generate.items() if n in part.span_names}


@given(bundle=bundles(max_chunks=10))
def test_a_selection_of_everything_is_the_bundle(bundle: Bundle):
    again = bundle.select(bundle.span_names[::-1])
    assert np.array_equal(again.dense_mask(), bundle.dense_mask())
    assert np.array_equal(again.input_ids, bundle.input_ids)
    assert again.meta == bundle.meta


def test_a_selection_of_nothing_is_refused(bundle: Bundle):
    with pytest.raises(BundleError, match="at least one chunk"):
        bundle.select([])


@pytest.mark.parametrize("attn", ["flex", "sdpa", "eager"])
def test_model_inputs_have_a_batch_of_one(bundle: Bundle, attn: str):
    inputs = bundle.model_inputs("cpu", attn)
    assert list(inputs) == ["input_ids", "position_ids", "attention_mask"]
    for key in ("input_ids", "position_ids"):
        assert inputs[key].dtype == torch.int64
        assert inputs[key].tolist() == [getattr(bundle, key).tolist()]


def test_flex_is_given_a_block_mask(bundle: Bundle):
    mask = bundle.model_inputs()["attention_mask"]
    assert isinstance(mask, BlockMask)
    assert mask.shape == (1, 1, 9, 9)
    tokens = torch.arange(9)
    assert drawn(mask.mask_mod(0, 0, tokens[:, None], tokens)) == drawn(bundle.dense_mask())


def test_sdpa_is_given_a_bool_mask(bundle: Bundle):
    mask = bundle.model_inputs(attn="sdpa")["attention_mask"]
    assert (mask.dtype, tuple(mask.shape)) == (torch.bool, (1, 1, 9, 9))
    assert drawn(mask[0, 0]) == drawn(bundle.dense_mask())


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_eager_is_given_an_additive_mask_in_the_models_dtype(bundle: Bundle, dtype: torch.dtype | None):
    mask = bundle.model_inputs(attn="eager", dtype=dtype)["attention_mask"]
    assert (mask.dtype, tuple(mask.shape)) == (dtype or torch.float32, (1, 1, 9, 9))
    assert drawn(mask[0, 0] == 0) == drawn(bundle.dense_mask())
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(mask.dtype).min}


def test_another_attention_is_a_value_error_that_names_the_three(bundle: Bundle):
    with pytest.raises(ValueError, match="attn is 'flash'; expected one of flex, sdpa, eager"):
        bundle.model_inputs(attn="flash")
