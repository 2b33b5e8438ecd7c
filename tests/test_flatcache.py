"""Slots of keys and values: where a layer writes, what attention is given back, and what shapes there are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legraph.errors import ModelError
from legraph.flatcache import FlatCache, KVShape, Writing, kv_shape, rounded_capacity
from legraph.model import cache_argument, use_attention
from legraph.slots import Extent
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
# Three layers: one whose values are narrower, one that caches nothing, one as the first.
SHAPE = KVShape(((2, 4, 3), None, (2, 4, 3)), torch.float32)


def filled(capacity: int = 8) -> FlatCache:
    cache = FlatCache(SHAPE, CPU, capacity)
    for stack in cache.stacks:
        stack.copy_(torch.arange(stack.numel()).reshape(stack.shape))
    cache.positions[:] = torch.arange(100, 100 + capacity)
    return cache


@given(number=st.integers(0, 10**7))
def test_capacities_are_few_and_at_most_an_eighth_too_large(number: int) -> None:
    capacity = rounded_capacity(number)
    assert capacity >= max(number, 512)
    assert capacity == 512 or capacity < number + number / 8 + 1
    assert capacity % 64 == 0
    assert rounded_capacity(capacity) == capacity
    # At most eight between a power of two and the next.
    assert bin(capacity).rstrip("0").count("1") <= 4


def test_shapes_are_stacked_by_what_they_have_in_common() -> None:
    assert SHAPE.stacks() == [(2, 4), (2, 3)]
    assert SHAPE.places() == [[(0, 0), (1, 0)], [], [(0, 1), (1, 1)]]
    assert SHAPE.bytes_per_token() == 2 * (2 * 4 + 2 * 3) * 4
    alike = KVShape(((2, 4, 4),) * 2, torch.bfloat16)
    assert alike.stacks() == [(2, 4)]
    assert alike.places() == [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
    assert alike.bytes_per_token() == 2 * 2 * 2 * 4 * 2


@pytest.mark.parametrize(
    ("name", "heads", "channels"),
    [("llama", 4, 16), ("llama-gqa", 2, 16), ("gpt2", 4, 16), ("gemma3", 4, 16), ("gpt-oss", 4, 16)],
)
def test_a_model_says_what_it_caches(name: str, heads: int, channels: int) -> None:
    model = tiny_model(name)
    use_attention(model, "eager")
    shape = kv_shape(model, cache_argument(model))
    assert shape == KVShape(((heads, channels, channels),) * 2, torch.float32)


def test_a_model_that_caches_nothing_is_refused() -> None:
    class Forgetful:
        device, dtype = CPU, torch.float32

        def __call__(self, **_: object) -> SimpleNamespace:
            return SimpleNamespace()

    with pytest.raises(ModelError, match="Forgetful caches no keys and values"):
        kv_shape(Forgetful(), "past_key_values")


@pytest.mark.parametrize("num_shown", [None, 5, 8])
def test_a_layer_writes_to_the_slots_of_the_pass_and_gives_back_what_is_shown(num_shown: int | None) -> None:
    cache = FlatCache(SHAPE, CPU, 8)
    assert not any(stack.any() for stack in cache.stacks)
    cache.writing = Writing(torch.tensor([4, 1]), num_shown)
    keys, values = torch.rand(1, 2, 2, 4) + 1, torch.rand(1, 2, 2, 3) + 1
    for layer in (2, 0):
        k, v = cache.update(keys + layer, values + layer, layer)
        if num_shown is None:
            assert torch.equal(k, keys + layer) and torch.equal(v, values + layer)
        else:
            assert (k.shape, v.shape) == ((1, 2, num_shown, 4), (1, 2, num_shown, 3))
            assert torch.equal(k[:, :, [4, 1]], keys + layer) and torch.equal(v[:, :, [4, 1]], values + layer)
            assert not k[:, :, [0, 2, 3]].any()
    # Layer 2 is the second of its stack.
    assert torch.equal(cache.stacks[0][:, :, [4, 1]], torch.cat([keys, keys + 2]))
    assert torch.equal(cache.stacks[1][:, :, [4, 1]], torch.cat([values, values + 2]))
    assert cache.get_seq_length() == 0


def test_what_is_read_can_be_written_elsewhere() -> None:
    cache, other = filled(), filled(16)
    read = cache.read(Extent(2, 5))
    assert [tuple(part.shape) for part in read] == [(2, 2, 3, 4), (2, 2, 3, 3)]
    assert all(torch.equal(p, s[:, :, 2:5]) for p, s in zip(read, cache.stacks, strict=True))
    before = [stack.clone() for stack in other.stacks]
    other.write(Extent(9, 12), read)
    for stack, old, part in zip(other.stacks, before, read, strict=True):
        old[:, :, 9:12] = part
        assert torch.equal(stack, old)


def test_a_larger_cache_takes_everything_over() -> None:
    small, large = filled(8), FlatCache(SHAPE, CPU, 16)
    large.copy_from(small)
    for one, other in zip(small.stacks, large.stacks, strict=True):
        assert torch.equal(one, other[:, :, :8])
        assert not other[:, :, 8:].any()
    assert large.positions.tolist() == [*range(100, 108), *[0] * 8]
    assert large.num_bytes == 2 * small.num_bytes == 16 * SHAPE.bytes_per_token()


def test_cleared_slots_are_zero_and_others_stay() -> None:
    cache = filled()
    cache.stacks[0][:, :, 3] = float("nan")
    expected = [stack.clone() for stack in cache.stacks]
    cache.clear(Extent(3, 5))
    for stack, old in zip(cache.stacks, expected, strict=True):
        old[:, :, 3:5] = 0
        assert torch.equal(stack, old)
