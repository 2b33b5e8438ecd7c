"""Loading models, and finding out which of them can be trusted with a graph. All are real model classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from legraph import flexattention
from legraph.errors import ModelError
from legraph.model import (
    cache_argument,
    check_obeys,
    dense_attention,
    load_model,
    max_positions,
    rotary_border,
    run_errors,
    supported_attention,
    use_attention,
)
from tests.tiny_models import SHAPE, VOCABULARY, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "llama"
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved model, to be damaged."""
    return shutil.copytree(saved, tmp_path / "model")


def changed_config(**values: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def only_first_bytes(number: int) -> Callable[[Path], object]:
    def cut(folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:number])

    return cut


def pickled_garbage(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"garbage")


def weights_of(model: Any) -> Callable[[Path], object]:
    """The config stays, the weights become another model's."""

    def change(folder: Path) -> None:
        model.save_pretrained(folder / "other")
        shutil.move(folder / "other" / "model.safetensors", folder / "model.safetensors")

    return change


def test_a_saved_model_loads_ready_to_run(saved: Path) -> None:
    model = load_model(str(saved), "cpu")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not model.training
    original = tiny_model("llama").state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[name], original[name]) for name in original)


@pytest.mark.parametrize(
    ("asked", "given"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_the_dtype_is_as_asked_and_float32_on_a_cpu(asked: str, given: torch.dtype, folder: Path) -> None:
    tiny_model("llama").save_pretrained(folder)
    changed_config(dtype="bfloat16")(folder)
    assert load_model(str(folder), "cpu", asked).dtype == given


CANNOT_LOAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "cannot be loaded: "),
    "no config": (without("config.json"), "cannot be loaded: Unrecognized model in"),
    "no weights": (without("model.safetensors"), "cannot be loaded: Error no file named model.safetensors"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "is not a valid JSON file"),
    "unknown class": (changed_config(model_type="no-such"), "model type `no-such`"),
    "no causal LM": (changed_config(model_type="t5"), "for this kind of AutoModel: AutoModelForCausalLM"),
    "wrong type": (changed_config(hidden_size="big"), "'hidden_size' expected int, got str"),
    "no heads": (changed_config(num_attention_heads=0), "cannot be loaded: "),
    "half a file": (only_first_bytes(5000), "cannot be loaded: Error while deserializing header"),
    "empty file": (only_first_bytes(0), "cannot be loaded: "),
    "garbage": (pickled_garbage, "cannot be loaded: Weights only load failed"),
    "more layers": (
        changed_config(num_hidden_layers=3),
        "lacks 9 of its weights, among them",
    ),
    "base model": (lambda folder: weights_of(tiny_model("llama").model)(folder), "lacks 1 of its weights"),
    "another class": (lambda folder: weights_of(tiny_model("gpt2"))(folder), "of its weights, among them"),
    "another size": (changed_config(vocab_size=300), "2 weights have another shape than config.json says"),
}


@pytest.mark.parametrize("case", CANNOT_LOAD)
def test_what_cannot_be_loaded_is_a_model_error_with_a_hint(case: str, folder: Path) -> None:
    damage, said = CANNOT_LOAD[case]
    damage(folder)
    with pytest.raises(ModelError) as error:
        load_model(str(folder), "cpu")
    assert str(folder) in error.value.message
    assert said in error.value.message
    assert "\n" not in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("device", ["cuda:77", "nonsense", "cpu:x"])
def test_a_device_that_is_not_there_is_a_model_error(device: str, saved: Path) -> None:
    with pytest.raises(ModelError, match=f"device '{device}' cannot be used here"):
        load_model(str(saved), device)


@pytest.mark.parametrize("dtype", ["int8", "float", "nonsense", "bool", "nn"])
def test_an_unknown_dtype_is_a_model_error(dtype: str, saved: Path) -> None:
    if dtype == "float":  # torch's other name for float32
        assert load_model(str(saved), "cpu", dtype).dtype == torch.float32
        return
    with pytest.raises(ModelError, match=f"unknown dtype '{dtype}'") as error:
        load_model(str(saved), "cpu", dtype)
    assert error.value.hint == "use auto, float32, bfloat16 or float16"


# Running out of memory.


def test_an_allocation_that_is_too_large_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="out of memory while trying") as error, run_errors("trying"):
        torch.empty(2**60, dtype=torch.uint8)
    assert "--dtype" in str(error.value)


def test_a_model_that_does_not_fit_into_memory_says_so(folder: Path) -> None:
    """A vocabulary of 10 ** 12 tokens: 256 TB of embeddings."""
    changed_config(vocab_size=10**12)(folder)
    with pytest.raises(ModelError, match="out of memory while loading model") as error:
        load_model(str(folder), "cpu")
    assert "--dtype" in str(error.value)


@pytest.mark.parametrize("raised", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_every_kind_of_memory_error_is_one(raised: BaseException) -> None:
    with pytest.raises(ModelError, match="out of memory while trying"), run_errors("trying"):
        raise raised


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="something else"), run_errors("trying"):
        raise RuntimeError("something else")


# Which models obey.

SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
OBEDIENT: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=2),
    "opt": lambda: transformers.OPTConfig(
        **SMALL,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        init_std=0.12,
    ),
    "gptj": lambda: transformers.GPTJConfig(
        **SMALL, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, initializer_range=0.12
    ),
    "falcon": lambda: transformers.FalconConfig(
        **SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.12
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE),
}
DISOBEDIENT: dict[str, tuple[Callable[[], Any], str]] = {
    "mamba": (
        lambda: transformers.MambaConfig(**SMALL, hidden_size=64, num_hidden_layers=2),
        "has layers of type linear_attention",
    ),
    "rwkv": (
        lambda: transformers.RwkvConfig(
            **SMALL, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64
        ),
        "takes no position ids",
    ),
    "bloom": (
        lambda: transformers.BloomConfig(**SMALL, hidden_size=64, n_layer=2, n_head=4),
        "takes no position ids",
    ),
    "mpt": (
        lambda: transformers.MptConfig(vocab_size=VOCABULARY, d_model=64, n_layers=2, n_heads=4),
        "takes no position ids",
    ),
    "bart": (
        lambda: transformers.BartConfig(
            vocab_size=VOCABULARY, d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=96
        ),
        "takes no position ids",
    ),
    "alibi": (
        lambda: transformers.FalconConfig(
            **SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=True
        ),
        "attends by distances that it counts in tokens (ALiBi)",
    ),
    "a mask of another form": (
        lambda: transformers.OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4),
        "cannot take a graph's mask and positions",
    ),
    "positions from 2": (
        lambda: transformers.RobertaConfig(
            **SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, is_decoder=True
        ),
        "counts positions, or cuts a window, in another way than its config says",
    ),
    "a window that is not used": (
        lambda: transformers.MoshiConfig(
            **SHAPE | {"intermediate_size": None}, head_dim=16, ffn_dim=96, sliding_window=2000
        ),
        "counts positions, or cuts a window, in another way than its config says",
    ),
    "no positions at all": (
        lambda: transformers.SmolLM3Config(**SHAPE, no_rope_layers=[0, 0]),
        "takes no notice of position ids",
    ),
    "a window over slots": (
        lambda: transformers.GPTNeoConfig(
            **SMALL, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
        ),
        "has a window over the last tokens, whichever the mask shows",
    ),
}


def made_from(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["llama", "llama-gqa", "gpt2", "mistral-window", "gemma2", "gemma3", "phi3"])
def test_ordinary_models_obey(name: str) -> None:
    check_obeys(tiny_model(name))


@pytest.mark.parametrize("name", OBEDIENT)
def test_models_with_other_attention_classes_obey(name: str) -> None:
    check_obeys(made_from(OBEDIENT[name]()))


@pytest.mark.parametrize("name", DISOBEDIENT)
def test_models_that_would_ignore_a_graph_are_refused(name: str) -> None:
    make_config, said = DISOBEDIENT[name]
    with pytest.raises(ModelError) as error:
        check_obeys(made_from(make_config()))
    assert said in error.value.message
    assert error.value.hint


def test_a_model_that_ignores_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_from(transformers.LlamaConfig(**SHAPE))
    forward = model.forward

    @wraps(forward)
    def causally(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        mask = None if attention_mask is None else torch.ones_like(attention_mask).tril()
        return forward(*args, attention_mask=mask, **kwargs)

    monkeypatch.setattr(model, "forward", causally)
    with pytest.raises(ModelError, match="looks at tokens that the mask hides"):
        check_obeys(model)


def test_the_window_is_as_before_after_the_check() -> None:
    model = made_from(transformers.MistralConfig(**SHAPE, sliding_window=77))
    check_obeys(model)
    assert model.config.sliding_window == 77


def test_a_model_that_looks_at_nothing_is_refused() -> None:
    """All its attention output is zero, so no token reaches another."""
    model = made_from(transformers.LlamaConfig(**SHAPE))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    with pytest.raises(ModelError, match="does not look at the tokens that the mask shows"):
        check_obeys(model)


# Attention implementations.


@pytest.mark.parametrize(
    ("name", "supported", "dense"),
    [
        ("llama", ["flex", "sdpa", "eager"], "sdpa"),
        ("gpt2", ["sdpa", "eager"], "sdpa"),
        # Its soft-capped logits are beyond sdpa.
        ("gemma2", ["flex", "eager"], "eager"),
    ],
)
def test_what_a_model_can_be_run_with(name: str, supported: list[str], dense: str) -> None:
    assert supported_attention(tiny_model(name)) == supported
    assert dense_attention(tiny_model(name)) == dense


@pytest.mark.parametrize(
    ("attn", "known_as"), [("eager", "eager"), ("sdpa", "sdpa"), ("flex", flexattention.NAME)]
)
def test_a_model_is_switched(attn: Any, known_as: str) -> None:
    model = tiny_model("llama")
    use_attention(model, attn)
    assert model.config._attn_implementation == known_as


def test_what_a_model_cannot_be_switched_to_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot use flex attention") as error:
        use_attention(tiny_model("gpt2"), "flex")
    assert error.value.hint == "use --attn sdpa or --attn eager"


# What a config says.


def test_the_number_of_positions_has_many_names() -> None:
    assert max_positions(tiny_model("llama").config) == 4096
    assert max_positions(tiny_model("gpt2").config) == 64
    assert max_positions(transformers.BloomConfig(**SMALL)) is None


def rope(kind: str, **more: Any) -> Any:
    parameters = {"rope_type": kind, "rope_theta": 10000.0} | more
    return transformers.LlamaConfig(**SHAPE, rope_parameters=parameters)


@pytest.mark.parametrize(
    ("config", "border"),
    [
        (transformers.LlamaConfig(**SHAPE), None),
        (rope("linear", factor=2.0), None),
        (rope("dynamic", factor=2.0), 4096),
        (
            rope(
                "longrope",
                short_factor=[1.0] * 8,
                long_factor=[2.0] * 8,
                original_max_position_embeddings=512,
                factor=8.0,
            ),
            512,
        ),
        (transformers.GPT2Config(), None),
    ],
    ids=["plain", "linear", "dynamic", "longrope", "learned"],
)
def test_where_the_rotary_embedding_changes(config: Any, border: int | None) -> None:
    assert rotary_border(config) == border


def test_the_border_of_models_with_rotary_settings_for_each_kind_of_layer() -> None:
    assert rotary_border(tiny_model("gemma3").config) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_the_cache_goes_in_under_the_name_the_model_takes(name: str) -> None:
    model = tiny_model(name)
    use_attention(model, "eager")
    given = {cache_argument(model): transformers.DynamicCache()}
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=True, **given)
    (cache,) = given.values()
    assert cache.get_seq_length() == 3
    assert output.logits.shape == (1, 3, VOCABULARY)
