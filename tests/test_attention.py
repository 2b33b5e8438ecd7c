"""The three attention paths are one function: they agree with each other, and with what the mask says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.attention import attention_mask, layer_windows
from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.errors import ModelError
from legraph.flexattention import many_flex_versions, padded_length
from legraph.model import supported_attention, use_attention
from tests.random_graphs import bundles, tokenizer
from tests.tiny_models import tiny_model

# One length for all bundles: one compilation of flex for each number of search steps.
MAX_TOKENS = padded_length(30 * 8)
MODELS = ["llama", "llama-gqa", "qwen3", "mistral", "gpt-neox", "gemma3", "phi3"]
# FlexAttention is compiled for each.
COMPILED = [
    name if name in ("llama-gqa", "gpt-neox", "gemma3") else pytest.param(name, marks=pytest.mark.slow)
    for name in MODELS
]
WINDOWED = ["mistral-window", "gemma3", "gemma2"]


def logits(model: Any, bundle: Bundle, attn: str) -> torch.Tensor:
    use_attention(model, attn)  # type: ignore[arg-type]
    inputs = bundle.model_inputs("cpu", attn, config=model.config)
    if attn == "flex":
        # As the engine does: padded, so that graphs of other lengths need no other compilation.
        length = MAX_TOKENS
        inputs["attention_mask"] = attention_mask(
            bundle.mask, bundle.position_ids, "cpu", "flex", model.config, padded_length=length
        )
    with torch.inference_mode(), many_flex_versions():
        return model(**inputs, use_cache=False).logits[0]


@settings(max_examples=60, deadline=None)
@given(bundle=bundles())
@pytest.mark.parametrize("name", COMPILED)
def test_flex_sdpa_and_eager_agree(name: str, bundle: Bundle) -> None:
    model = tiny_model(name)
    sdpa = logits(model, bundle, "sdpa")
    for attn in ("eager", "flex"):
        torch.testing.assert_close(logits(model, bundle, attn), sdpa, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=60, deadline=None)
@given(bundle=bundles(), data=st.data())
def test_only_descendants_notice_a_changed_chunk(name: str, bundle: Bundle, data: st.DataObject) -> None:
    """Bit for bit under sdpa: what a chunk may not see, even through others, does not exist for it."""
    model = tiny_model(name)
    changed = data.draw(st.integers(0, bundle.mask.num_chunks - 1))
    ids = bundle.input_ids.copy()
    ids[bundle.span(changed)] = (ids[bundle.span(changed)] + 101) % 256
    before, after = logits(model, bundle, "sdpa"), logits(model, replace(bundle, input_ids=ids), "sdpa")
    descendants = {changed}
    for chunk in range(changed + 1, bundle.mask.num_chunks):
        if descendants & set(bundle.parents(chunk).tolist()):
            descendants.add(chunk)
    for chunk in range(bundle.mask.num_chunks):
        span = bundle.span(chunk)
        if chunk not in descendants:
            assert torch.equal(before[span], after[span]), "a chunk noticed what it cannot see"
        elif changed in bundle.parents(chunk):
            # Gemma's windowed layer may hide a far parent; its full layer does not.
            assert not torch.equal(before[span], after[span]), "a child did not notice its parent"


@pytest.mark.parametrize("name", WINDOWED)
@settings(max_examples=30, deadline=None)
@given(bundle=bundles(max_chunks=8))
def test_a_window_hides_what_is_far_in_positions(name: str, bundle: Bundle) -> None:
    """Eager attention with masks written out here, by a double loop, against what `model_inputs` makes."""
    model = tiny_model(name)
    n = len(bundle)
    dense = bundle.dense_mask()
    windowed = np.zeros((n, n), dtype=bool)
    for q in range(n):
        for k in range(n):
            near = abs(int(bundle.position_ids[q]) - int(bundle.position_ids[k])) < 5
            windowed[q, k] = dense[q, k] and near

    def additive(mask: np.ndarray) -> torch.Tensor:
        hidden = torch.finfo(torch.float32).min
        return torch.where(torch.from_numpy(mask), 0.0, hidden)[None, None]

    masks: Any = additive(windowed)
    if name != "mistral-window":
        masks = {"full_attention": additive(dense), "sliding_attention": additive(windowed)}
    use_attention(model, "eager")
    inputs = bundle.model_inputs("cpu", "eager", config=model.config)
    with torch.inference_mode():
        expected = model(**inputs | {"attention_mask": masks}, use_cache=False).logits[0]
    for attn in supported_attention(model):
        torch.testing.assert_close(logits(model, bundle, attn), expected, atol=1e-5, rtol=1e-5)


def test_the_window_matters_for_these_models() -> None:
    model = tiny_model("mistral-window")
    bundle = compile_chunks([Chunk("a text that is longer than the window of five")], tokenizer())
    with_window = logits(model, bundle, "sdpa")
    use_attention(model, "sdpa")
    with torch.inference_mode():
        without = model(**bundle.model_inputs("cpu", "sdpa"), use_cache=False).logits[0]
    assert not torch.allclose(with_window, without, atol=1e-3)


def test_plain_causal_text_equals_the_model_without_us() -> None:
    """One chunk is ordinary causal attention: transformers' own mask must give the same logits."""
    model = tiny_model("llama")
    bundle = compile_chunks([Chunk("The fox says ring-ding-ding.")], tokenizer())
    use_attention(model, "sdpa")
    with torch.inference_mode():
        expected = model(torch.from_numpy(bundle.input_ids)[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits(model, bundle, "sdpa"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(), {"full_attention": None}),
        (transformers.MistralConfig(sliding_window=7), {"full_attention": 7}),
        (transformers.MistralConfig(sliding_window=None), {"full_attention": None}),
        (
            transformers.Gemma3TextConfig(
                num_hidden_layers=2, sliding_window=9, layer_types=["sliding_attention", "full_attention"]
            ),
            {"full_attention": None, "sliding_attention": 9},
        ),
        (transformers.Qwen2Config(use_sliding_window=False, sliding_window=7), {"full_attention": None}),
    ],
    ids=["llama", "mistral", "mistral-off", "gemma3", "qwen2-off"],
)
def test_layer_windows(config: Any, expected: dict[str, int | None]) -> None:
    assert layer_windows(config) == expected


def test_layers_that_take_no_mask_are_refused() -> None:
    config = transformers.Qwen3NextConfig(
        num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]
    )
    with pytest.raises(ModelError, match="'qwen3_next' has layers of type linear_attention"):
        layer_windows(config)


def test_model_inputs_shapes_and_dtypes() -> None:
    bundle = compile_chunks([Chunk("abc")], tokenizer())
    sdpa, eager = bundle.model_inputs("cpu", "sdpa"), bundle.model_inputs("cpu", "eager", dtype=torch.float16)
    assert sdpa["input_ids"].shape == sdpa["position_ids"].shape == (1, 3)
    assert sdpa["input_ids"].dtype == sdpa["position_ids"].dtype == torch.int64
    assert sdpa["attention_mask"].dtype == torch.bool
    assert eager["attention_mask"].dtype == torch.float16
    assert sdpa["attention_mask"].shape == eager["attention_mask"].shape == (1, 1, 3, 3)
    with pytest.raises(ValueError, match="attn is 'flash'; expected one of flex, sdpa, eager"):
        bundle.model_inputs("cpu", "flash")
