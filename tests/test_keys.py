"""Names of keys and values: what changes them, and what does not."""

from __future__ import annotations

import re
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legraph import keys
from legraph.keys import chunk_key, model_fingerprint
from legraph.model import load_model, use_attention
from tests.tiny_models import tiny_model

A, B, M = ("a" * 64, "b" * 64, "m" * 64)
HEX = re.compile("[0-9a-f]{64}")

PARTS = {
    "model": M,
    "ids": np.array([1, 2, 3]),
    "parents": [(A, -5), (B, 0)],
    "start": None,
}


def key_of(**changed: Any) -> str:
    return chunk_key(**PARTS | changed)


def test_a_key_is_64_digits_and_the_same_every_time() -> None:
    assert HEX.fullmatch(key_of())
    assert key_of() == key_of()
    # Written out: another version of legraph, or another machine, must find what this one kept.
    content = b"legraph kv 1:" + M.encode() + b":None:3:"
    content += b"".join(int(i).to_bytes(8, "little") for i in (1, 2, 3))
    content += f":{A}@-5:{B}@0".encode()
    assert key_of() == sha256(content).hexdigest()


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "n" * 64},
        {"ids": np.array([1, 2, 4])},
        {"ids": np.array([1, 2])},
        {"ids": np.array([1, 3, 2])},
        {"ids": np.array([1, 2, 3, 0])},
        {"parents": [(A, -5)]},
        {"parents": [(A, -5), (B, 1)]},
        {"parents": [(A, 0), (B, -5)]},
        {"parents": [(A, -5), (B, 0), (B, 0)]},
        {"parents": []},
        {"start": 0},
        {"start": 7},
    ],
    ids=str,
)
def test_any_change_changes_the_key(changed: dict[str, Any]) -> None:
    assert key_of(**changed) != key_of()


def test_the_order_of_parents_and_the_integers_width_do_not() -> None:
    assert key_of(parents=[(B, 0), (A, -5)]) == key_of()
    assert key_of(ids=np.array([1, 2, 3], dtype=np.int32)) == key_of()
    assert key_of(parents=iter(PARTS["parents"])) == key_of()


IDS = st.lists(st.integers(0, 3), max_size=4)
PARENTS = st.lists(st.tuples(st.sampled_from([A, B]), st.integers(-12, 1)), max_size=3)


@given(one=st.tuples(IDS, PARENTS, st.none() | st.integers(0, 3)), other=st.tuples(IDS, PARENTS, st.none()))
def test_keys_are_equal_where_all_that_counts_is(one: Any, other: Any) -> None:
    """No two different contents run into each other by being written one after the other."""
    made = [
        chunk_key(M, np.array(ids, dtype=np.int64), parents, start) for ids, parents, start in (one, other)
    ]
    same = one[0] == other[0] and sorted(one[1]) == sorted(other[1]) and one[2] == other[2]
    assert (made[0] == made[1]) == same


# Models.


def test_two_loads_of_the_same_weights_are_one_model(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "here")
    tiny_model("llama").save_pretrained(tmp_path / "there")
    here, there = (load_model(str(tmp_path / name), "cpu") for name in ("here", "there"))
    fingerprint = model_fingerprint(here)
    assert HEX.fullmatch(fingerprint)
    assert fingerprint == model_fingerprint(there)
    # Which attention computes it makes no difference; nor does what the model was used for.
    for attn in ("eager", "sdpa", "flex", "flat"):
        use_attention(there, attn)
        there(torch.tensor([[1, 2, 3]])) if attn in ("eager", "sdpa") else None
        assert model_fingerprint(there) == fingerprint
    assert model_fingerprint(load_model(str(tmp_path / "here"), "cpu", "bfloat16")) != fingerprint


@pytest.mark.parametrize("name", ["gpt2", "gpt-oss", "gpt-neox"])
def test_models_of_other_kinds_have_one_too(name: str) -> None:
    assert model_fingerprint(tiny_model(name)) == model_fingerprint(deepcopy(tiny_model(name)))


def changed_weight(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight[5, 7] += 1e-3


def last_bit(model: Any) -> None:
    weight = model.model.norm.weight
    weight.view(torch.int32)[-1] ^= 1


def swapped_rows(model: Any) -> None:
    weight = model.model.embed_tokens.weight
    weight[[3, 4]] = weight[[4, 3]]


def swapped_layers(model: Any) -> None:
    one, other = (layer.self_attn.q_proj for layer in model.model.layers)
    one.weight, other.weight = other.weight, one.weight


def highest_bits(model: Any) -> None:
    """The signs of two weights."""
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight[0, 1] *= -1
    weight[0, 3] *= -1


def config(**values: Any) -> Any:
    def change(model: Any) -> None:
        for name, value in values.items():
            setattr(model.config, name, value)

    change.__name__ = str(values)
    return change


CHANGES = [
    changed_weight,
    last_bit,
    swapped_rows,
    swapped_layers,
    highest_bits,
    config(rms_norm_eps=1e-4),
    config(sliding_window=5),
    config(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_weights_or_settings_makes_another_model(change: Any) -> None:
    model = deepcopy(tiny_model("llama"))
    before = model_fingerprint(model)
    with torch.no_grad():
        change(model)
    assert model_fingerprint(model) != before


@pytest.mark.parametrize(
    "change", [config(_name_or_path="elsewhere"), config(use_cache=False), config(transformers_version="9")]
)
def test_what_changes_nothing_that_is_computed_does_not(change: Any) -> None:
    model = deepcopy(tiny_model("llama"))
    before = model_fingerprint(model)
    change(model)
    assert model_fingerprint(model) == before


@pytest.mark.parametrize("num_bytes", [1, 7, 8, 9, 64, 1000])
def test_the_checksum_of_pieces_is_that_of_the_whole(num_bytes: int, monkeypatch: Any) -> None:
    """In plain integers: each word, its upper half mixed into the lower, times an odd factor of its own."""
    data = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8)
    words = np.frombuffer(data.tobytes() + b"\0" * (-num_bytes % 8), dtype="<u8")
    expected = sum((w ^ (w >> 32)) * (i * 2 * keys._GOLDEN + 1) for i, w in enumerate(map(int, words)))
    expected %= 2**64
    weight = torch.from_numpy(data)
    assert keys._checksum(weight) == expected
    monkeypatch.setattr(keys, "_PIECE", 3)
    assert keys._checksum(weight) == expected
