"""Attention from chunk to chunk is what the eager model itself says it attended to, added up."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph import Bundle, Chunk, Generate, compile_chunks
from legraph.attentionmass import AttentionMass
from legraph.engine import Engine
from legraph.errors import BundleError, InputError, ModelError
from legraph.model import use_attention
from legraph.observe import observe
from tests.naive import engine
from tests.random_graphs import bundles, tokenizer
from tests.tiny_models import VOCABULARY, tiny_model

FEW = settings(max_examples=12)
# Grouped heads, learned positions, query norms, windows, soft caps, sinks.
KINDS = ("llama", "llama-gqa", "opt", "qwen3", "mistral-window", "gemma2", "gemma3", "gpt-oss", "gpt-neox")


def eager_attention(model: Any, bundle: Bundle) -> np.ndarray:
    """float64 [L, H, N, N]: the weights that transformers' own attention returns."""
    use_attention(model, "eager")
    inputs = bundle.model_inputs(attn="eager", config=model.config)
    with torch.inference_mode():
        layers = model(**inputs, use_cache=False, output_attentions=True).attentions
    return np.stack([layer[0].double().numpy() for layer in layers])


def added_up(tokens: np.ndarray, bundle: Bundle) -> np.ndarray:
    """float64 [L, H, K, K]: for each pair of chunks, sums over keys, means over queries."""
    spans = [bundle.span(name) for name in bundle.span_names]
    rows = [[tokens[:, :, q, k].sum(-1).mean(-1) for k in spans] for q in spans]
    return np.array(rows).transpose(2, 3, 0, 1)


def as_matrices(found: AttentionMass) -> np.ndarray:
    planes = [[found.matrix(i, h) for h in range(found.num_heads)] for i in range(found.num_layers)]
    return np.array(planes)


def sums(found: AttentionMass) -> np.ndarray:
    """float64 [L, H, K], of each query chunk's pairs."""
    return np.add.reduceat(found.mass.astype(np.float64), found.pair_offsets[:-1], axis=2)


@pytest.mark.parametrize("name", KINDS)
@FEW
@given(bundle=bundles(max_chunks=8, max_length=6))
def test_mass_is_that_of_the_eager_model(name: str, bundle: Bundle) -> None:
    found = observe(engine(name), bundle)
    expected = added_up(eager_attention(tiny_model(name), bundle), bundle)
    np.testing.assert_allclose(as_matrices(found), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window"])
@FEW
@given(bundle=bundles(max_chunks=8, max_length=6))
def test_attention_of_tokens_is_that_of_the_eager_model(name: str, bundle: Bundle) -> None:
    found = observe(engine(name), bundle, tokens=True)
    assert found.tokens is not None
    np.testing.assert_allclose(found.tokens, eager_attention(tiny_model(name), bundle), atol=1e-5, rtol=0)


@FEW
@given(bundle=bundles(), name=st.sampled_from(["llama", "gemma3"]))
def test_the_pairs_of_a_chunk_sum_to_one(bundle: Bundle, name: str) -> None:
    found = observe(engine(name), bundle)
    np.testing.assert_allclose(sums(found), 1, atol=1e-5)
    assert found.sinks is None


@FEW
@given(bundle=bundles(max_chunks=8))
def test_what_is_missing_to_one_went_to_the_sinks(bundle: Bundle) -> None:
    found = observe(engine("gpt-oss"), bundle)
    assert found.sinks is not None
    assert found.sinks.max() > 1e-3
    np.testing.assert_allclose(sums(found) + found.sinks, 1, atol=1e-5)


@FEW
@given(bundle=bundles(max_chunks=8), piece=st.integers(1, 9))
def test_passes_of_any_size_give_the_same(bundle: Bundle, piece: int) -> None:
    in_pieces = Engine(tiny_model("llama-gqa"), tokenizer(), prefill_tokens=piece)
    whole, cut = observe(engine("llama-gqa"), bundle), observe(in_pieces, bundle)
    np.testing.assert_allclose(cut.mass, whole.mass, atol=1e-5)


@FEW
@given(bundle=bundles(max_chunks=8), most=st.integers(1, 300))
def test_few_queries_at_a_time_give_the_same(bundle: Bundle, most: int) -> None:
    """As happens where a chunk sees very much."""
    whole = observe(engine("llama-gqa"), bundle, tokens=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("legraph.observedattention._MAX_WEIGHTS", most)
        cut = observe(engine("llama-gqa"), bundle, tokens=True)
    np.testing.assert_allclose(cut.mass, whole.mass, atol=1e-5)
    np.testing.assert_allclose(cut.tokens, whole.tokens, atol=1e-5)


def finished() -> Bundle:
    """A fork that has run: `join` sees what both branches generated."""
    head = Chunk("a b c ", name="head")
    left = Chunk("left ", parents=[head], name="left", generate=Generate(5))
    right = Chunk("right ", parents=[head], name="right", generate=Generate(3))
    join = Chunk("join", parents=[left, right], name="join")
    return engine("llama").run(compile_chunks([join], tokenizer=tokenizer()), Generate(4)).bundle


def test_a_finished_run_is_watched_with_what_it_generated() -> None:
    bundle = finished()
    found = observe(engine("llama"), bundle)
    expected = added_up(eager_attention(tiny_model("llama"), bundle), bundle)
    np.testing.assert_allclose(as_matrices(found), expected, atol=1e-5)
    assert found.bundle is bundle


def test_pairs_are_named_in_the_order_of_the_mass() -> None:
    found = observe(engine("llama"), finished())
    names = found.bundle.span_names
    pairs = [(names[q], names[k]) for q, k in zip(found.pair_queries, found.pair_keys, strict=True)]
    assert pairs == [
        ("head", "head"),
        ("left", "head"),
        ("left", "left"),
        ("right", "head"),
        ("right", "right"),
        ("join", "left"),
        ("join", "right"),
        ("join", "join"),
    ]


def test_means_over_layers_and_heads() -> None:
    found = observe(engine("llama"), finished(), tokens=True)
    planes = as_matrices(found)
    np.testing.assert_allclose(found.matrix(), planes.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(found.matrix(layer=1), planes[1].mean(0), atol=1e-6)
    np.testing.assert_allclose(found.matrix(head=2), planes[:, 2].mean(0), atol=1e-6)
    assert found.tokens is not None
    token_matrix = found.token_matrix(layer=0)
    assert token_matrix is not None
    np.testing.assert_allclose(token_matrix, found.tokens[0].mean(0), atol=1e-6)
    assert replace(found, tokens=None).token_matrix() is None


@pytest.mark.parametrize(("layer", "head"), [(2, None), (-1, None), (None, 4)])
def test_a_layer_or_head_that_is_not_there(layer: int | None, head: int | None) -> None:
    found = observe(engine("llama"), finished())
    with pytest.raises(IndexError, match=r"no (layer 2|layer -1|head 4): there are (layers 0..1|heads 0..3)"):
        found.of(layer, head)


def test_observing_leaves_the_engine_as_it_was() -> None:
    bundle = compile_chunks([Chunk("What does", name="q")], tokenizer=tokenizer())
    model = copy.deepcopy(tiny_model("llama"))
    runs = Engine(model, tokenizer())
    before = runs.run(bundle).outputs["q"].token_ids
    observe(runs, bundle)
    assert runs.run(bundle).outputs["q"].token_ids == before


def test_progress_counts_tokens() -> None:
    done: list[int] = []
    in_pieces = Engine(tiny_model("llama"), tokenizer(), prefill_tokens=4)
    bundle = finished()
    observe(in_pieces, bundle, advance=done.append)
    assert sum(done) == len(bundle)
    assert len(done) == -(-len(bundle) // 4)


# What is refused


def test_too_much_for_single_tokens() -> None:
    parts = [Chunk("x" * 3000, name=name) for name in ("a", "b")]
    big = compile_chunks(parts, tokenizer=tokenizer())
    with pytest.raises(InputError, match=r"6,000 single tokens in 8 heads takes 1\.1 GiB") as caught:
        observe(engine("llama"), big, tokens=True)
    assert "at most 1.0 GiB" in str(caught.value)


def test_too_many_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("legraph.observe.MAX_PAIR_WEIGHTS", 50)
    with pytest.raises(InputError, match=r"8 heads in all layers and 4 edges make 256 B of attention"):
        observe(engine("llama"), finished())


def test_a_class_with_attention_of_its_own() -> None:
    torch.manual_seed(0)
    config = transformers.XGLMConfig(
        vocab_size=VOCABULARY, d_model=64, ffn_dim=96, num_layers=2, attention_heads=4, init_std=0.12
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ModelError, match="computes attention in a way of its own"):
        observe(Engine(model, tokenizer()), finished())


def test_weights_that_are_no_numbers() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    runs = Engine(model, tokenizer())
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.fill_(float("nan"))
    # The model is tried out first, and NaN is not what it was expected to say.
    with pytest.raises(ModelError):
        observe(runs, finished())


# Files


@pytest.fixture
def observed() -> AttentionMass:
    return observe(engine("gpt-oss"), _observed_bundle(), tokens=True)


@cache
def _observed_bundle() -> Bundle:
    return finished()


def test_a_file_holds_everything(tmp_path: Path, observed: AttentionMass) -> None:
    path = tmp_path / "attention.npz"
    observed.save(path)
    loaded = AttentionMass.load(path)
    for name in ("mass", "sinks", "tokens"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(observed, name))
    assert loaded.bundle.span_names == observed.bundle.span_names


def test_a_file_of_attention_is_a_bundle(tmp_path: Path, observed: AttentionMass) -> None:
    path = tmp_path / "attention.npz"
    observed.save(path)
    bundle = Bundle.load(path)
    assert bundle.input_ids.tolist() == observed.bundle.input_ids.tolist()
    assert bundle.meta == observed.bundle.meta


def test_a_bundle_without_attention_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle.npz"
    finished().save(path)
    with pytest.raises(BundleError, match=r"holds no attention; legraph run GRAPH --attention OUT\.npz"):
        AttentionMass.load(path)


@pytest.mark.parametrize("key", ["attention_mass", "attention_sinks", "attention_tokens"])
@pytest.mark.parametrize("damage", ["shape", "dtype", "nan", "planes"])
def test_attention_of_another_graph_is_refused(
    tmp_path: Path, observed: AttentionMass, key: str, damage: str
) -> None:
    path = tmp_path / "attention.npz"
    observed.save(path)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    array = content[key]
    content[key] = {
        "shape": array[..., :-1],
        "dtype": array.astype(np.float64),
        "nan": np.full_like(array, np.nan),
        "planes": array[0],
    }[damage]
    np.savez(path, **content)
    with pytest.raises(BundleError, match=f"'{key}' does not belong to the graph in the same file"):
        AttentionMass.load(path)


def test_another_suffix_is_refused(tmp_path: Path, observed: AttentionMass) -> None:
    with pytest.raises(BundleError, match=r"ends in \.npz"):
        observed.save(tmp_path / "attention.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama-gqa", "gpt-oss", "gemma3"])
@FEW
@given(bundle=bundles(max_chunks=8, max_length=6))
def test_on_a_gpu_mass_is_that_of_the_eager_model(name: str, bundle: Bundle) -> None:
    found = observe(_on_gpu(name), bundle)
    expected = added_up(eager_attention(tiny_model(name), bundle), bundle)
    np.testing.assert_allclose(as_matrices(found), expected, atol=1e-4, rtol=0)


@cache
def _on_gpu(name: str) -> Engine:
    return Engine(copy.deepcopy(tiny_model(name)).cuda(), tokenizer())
