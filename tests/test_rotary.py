"""Keys moved to other positions, against a rotation of complex numbers and against the models themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from legraph.flatcache import kv_shape
from legraph.model import cache_argument, use_attention
from legraph.rotary import KeyShift, Rotation, find_shift
from tests.tiny_models import tiny_model

INV_FREQ = torch.tensor([1.0, 0.25, 0.01])
# Channels that turn in each layer, and how they are paired.
KINDS: dict[str, list[tuple[int, str] | None]] = {
    "llama": [(16, "halves")] * 2,
    "llama-linear": [(16, "halves")] * 2,
    "llama-llama3": [(16, "halves")] * 2,
    "llama-yarn": [(16, "halves")] * 2,
    "gpt-neox": [(4, "halves")] * 2,
    "phi3-partial": [(8, "halves")] * 2,
    "cohere": [(16, "pairs")] * 2,
    "glm": [(8, "pairs")] * 2,
    "gemma3": [(16, "halves")] * 2,
    "smollm3": [(16, "halves"), None],
}


def turned_by_hand(key: list[float], pairs: list[tuple[int, int]], distance: int) -> list[float]:
    """Each pair of channels is a complex number, turned by its frequency times the distance."""
    result = list(key)
    for (x, y), frequency in zip(pairs, INV_FREQ.tolist(), strict=True):
        number = complex(key[x], key[y]) * complex(
            math.cos(frequency * distance), math.sin(frequency * distance)
        )
        result[x], result[y] = number.real, number.imag
    return result


@pytest.mark.parametrize(
    ("layout", "pairs"),
    [("halves", [(0, 3), (1, 4), (2, 5)]), ("pairs", [(0, 1), (2, 3), (4, 5)])],
)
@pytest.mark.parametrize("distance", [-7, 0, 1, 300])
def test_pairs_of_channels_turn_and_the_rest_stays(layout: Any, pairs: Any, distance: int) -> None:
    """Six channels turn, two do not; three tokens in two heads."""
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn((2, 3, 8), generator=generator)
    old = torch.tensor([10, 11, 400])
    found = Rotation(INV_FREQ, layout).turned(keys, old, old + distance)
    expected = [[turned_by_hand(key, pairs, distance) for key in head] for head in keys.tolist()]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    assert torch.equal(found[..., 6:], keys[..., 6:])


def keys_and_values(model: Any, ids: torch.Tensor, start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What transformers' own cache holds after a text that begins at position `start`."""
    use_attention(model, "eager")
    cache = DynamicCache()
    positions = torch.arange(start, start + len(ids))[None]
    with torch.inference_mode():
        model(ids[None], position_ids=positions, use_cache=True, **{cache_argument(model): cache})
    return [(layer.keys[0], layer.values[0]) for layer in cache.layers]


def stacked(shape: Any, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """As a flat cache holds them: [n, H, T, D] for each stack."""
    stacks: list[list[torch.Tensor]] = [[] for _ in shape.stacks()]
    for place, layer in zip(shape.places(), layers, strict=True):
        for (stack, _), tensor in zip(place, layer, strict=True):
            stacks[stack].append(tensor)
    return [torch.stack(tensors) for tensors in stacks]


@pytest.mark.parametrize(("old", "new"), [(0, 1), (0, 900), (37, 5), (2000, 3000), (8, 8)])
@pytest.mark.parametrize("name", KINDS)
def test_moved_keys_are_what_the_model_computes_there(name: str, old: int, new: int) -> None:
    model = tiny_model(name)
    argument = cache_argument(model)
    use_attention(model, "eager")
    shape = kv_shape(model, argument)
    shift = find_shift(model, shape, argument)
    assert isinstance(shift, KeyShift), shift
    ids = torch.tensor([7, 99, 3, 250, 12, 12, 64])
    here, there = (stacked(shape, keys_and_values(model, ids, start)) for start in (old, new))
    # The second layer sees what the model's own rounding of angles (float32) did in the first.
    tolerance = 2e-5 + 2**-24 * max(old, new)
    for found, expected in zip(shift.moved(here, old, new), there, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    if old != new:
        assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_each_layer_has_its_own_way_to_turn(name: str) -> None:
    model = tiny_model(name)
    use_attention(model, "eager")
    shift = find_shift(model, kv_shape(model, cache_argument(model)), cache_argument(model))
    assert isinstance(shift, KeyShift), shift
    found = [None if one is None else (2 * len(one.inv_freq), one.layout) for one, _ in shift.layers]
    assert found == KINDS[name]
    assert {values for _, values in shift.layers} == {None}
    if name == "gemma3":
        # Windowed layers turn by 10,000, the others by 1,000,000.
        bases = [float(one.inv_freq[1]) ** -8 for one, _ in shift.layers if one is not None]
        assert [round(math.log10(base)) for base in bases] == [4, 6]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama-dynamic", "its rotary embedding is of type dynamic"),
        ("gpt2", "it has no rotary embedding that legraph knows"),
        ("opt", "it has no rotary embedding that legraph knows"),
        ("gptj", "it has no rotary embedding that legraph knows"),
    ],
)
def test_what_cannot_be_moved_says_why(name: str, reason: str) -> None:
    model = tiny_model(name)
    use_attention(model, "eager")
    assert find_shift(model, kv_shape(model, cache_argument(model)), cache_argument(model)) == reason


def test_a_model_that_turns_otherwise_than_its_table_says_is_refused() -> None:
    """Its keys are rotated by the half of their positions: nothing that legraph could guess."""
    model = tiny_model("llama")
    use_attention(model, "eager")
    rotary = model.model.rotary_emb

    def halve(module: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"position_ids": kwargs["position_ids"] // 2}

    handle = rotary.register_forward_pre_hook(halve, with_kwargs=True)
    try:
        found = find_shift(model, kv_shape(model, cache_argument(model)), cache_argument(model))
    finally:
        handle.remove()
    assert found == "the keys of layer 0 do not turn with the position in a way that legraph knows"


def test_a_model_that_knows_where_it_is_besides_is_refused() -> None:
    """Values that grow with the position, as if learned positions were added besides."""
    model = tiny_model("llama")
    use_attention(model, "eager")
    positions = list[torch.Tensor]()
    note = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"]), with_kwargs=True
    )
    handle = model.model.layers[1].self_attn.v_proj.register_forward_hook(
        lambda module, args, values: values + positions[-1][..., None] / 100
    )
    try:
        found = find_shift(model, kv_shape(model, cache_argument(model)), cache_argument(model))
    finally:
        note.remove()
        handle.remove()
    assert found == "what layer 1 computes depends on absolute positions"


def test_moving_leaves_what_was_given_alone() -> None:
    model = tiny_model("llama")
    use_attention(model, "eager")
    shape = kv_shape(model, cache_argument(model))
    shift = find_shift(model, shape, cache_argument(model))
    assert isinstance(shift, KeyShift)
    tensors = [torch.randn(4, 4, 3, 16)]
    kept = tensors[0].clone()
    moved = shift.moved(tensors, 0, 5)
    assert torch.equal(tensors[0], kept)
    # Keys lie in rows 0 and 2, values in rows 1 and 3.
    assert torch.equal(moved[0][1::2], kept[1::2])
    assert not torch.equal(moved[0][0::2], kept[0::2])
    # And a half moves in float32 and comes back as a half.
    halves = [tensors[0].to(torch.bfloat16)]
    again = replace(shift, shape=shape).moved(halves, 0, 5)
    assert again[0].dtype == torch.bfloat16
    torch.testing.assert_close(again[0].float(), moved[0], atol=0.05, rtol=0.02)
