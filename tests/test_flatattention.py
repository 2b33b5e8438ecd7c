"""Attention over slots, against a softmax over python lists of the slots that each query sees."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legraph.errors import ModelError
from legraph.flatattention import RowMask, flat_attention_forward, plain_attention
from legraph.flatkernel import BLOCK, tiles

HEADS, GROUPS, CHANNELS, OUT = 4, 2, 8, 6


def inputs(num_queries: int, num_slots: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn((1, HEADS, num_queries, CHANNELS), generator=generator)
    k = torch.randn((1, GROUPS, num_slots, CHANNELS), generator=generator)
    v = torch.randn((1, GROUPS, num_slots, OUT), generator=generator)
    return q, k, v


def rows_of(seen: list[list[int]], num_slots: int) -> torch.Tensor:
    rows = torch.zeros((len(seen), num_slots), dtype=torch.bool)
    for row, slots in zip(rows, seen, strict=True):
        row[slots] = True
    return rows


def by_hand(
    q: Any, k: Any, v: Any, seen: list[list[int]], scale: float, softcap: Any = None, sinks: Any = None
) -> torch.Tensor:
    """[T, H, E], one query and head after the other, in python floats."""
    out = torch.zeros((len(seen), HEADS, OUT))
    for t, slots in enumerate(seen):
        for h in range(HEADS):
            j = h // (HEADS // GROUPS)
            scores = [scale * sum((q[0, h, t] * k[0, j, s]).tolist()) for s in slots]
            if softcap is not None:
                scores = [softcap * math.tanh(score / softcap) for score in scores]
            weights = [math.exp(score) for score in scores]
            total = sum(weights) + (0 if sinks is None else math.exp(sinks[h].item()))
            for slot, weight in zip(slots, weights, strict=True):
                out[t, h] += weight / total * v[0, j, slot]
    return out


# Slots close together; apart, so that they are copied out first; one alone; not from 0 on.
SEEN = {
    "dense": [[0, 1, 2], [0, 1, 2, 3], [2, 3, 4]],
    "sparse": [[0, 1, 39], [0, 39], [1, 20]],
    "one": [[17]],
    "late": [[30, 31, 32], [31], [30, 33]],
}


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("case", SEEN)
def test_attention_is_a_softmax_over_what_is_seen(case: str, scale: Any, softcap: Any, sinks: bool) -> None:
    seen, num_slots = SEEN[case], 40
    q, k, v = inputs(len(seen), num_slots)
    s_aux = torch.tensor([0.3, -1.0, 2.0, 0.0]) if sinks else None
    mask = RowMask.make(rows_of(seen, num_slots), HEADS // GROUPS)
    assert isinstance(mask.seen, slice) == (case in ("dense", "late", "one"))
    # What nobody sees does not count, whatever lies there.
    nobody = sorted(set(range(num_slots)) - {slot for slots in seen for slot in slots})
    k[:, :, nobody], v[:, :, nobody] = 1e4, -1e4
    out, weights = flat_attention_forward(None, q, k, v, mask, scale, softcap, s_aux)  # type: ignore[arg-type]
    assert weights is None
    expected = by_hand(q, k, v, seen, CHANNELS**-0.5 if scale is None else scale, softcap, s_aux)
    torch.testing.assert_close(out[0], expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_plain_formula_is_the_same(softcap: Any, sinks: bool) -> None:
    seen = SEEN["sparse"]
    q, k, v = inputs(len(seen), 40, seed=1)
    s_aux = torch.tensor([0.3, -1.0, 2.0, 0.0]) if sinks else None
    out = plain_attention(q, k, v, rows_of(seen, 40)[None, None], 0.5, softcap, s_aux)
    expected = by_hand(q, k, v, seen, 0.5, softcap, s_aux)
    torch.testing.assert_close(out[0].transpose(0, 1), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_halves_stay_halves(softcap: Any) -> None:
    seen = SEEN["dense"]
    q, k, v = inputs(len(seen), 8)
    mask = RowMask.make(rows_of(seen, 8), 2)
    half = torch.bfloat16
    # Under autocast queries come as float32.
    out, _ = flat_attention_forward(None, q, k.to(half), v.to(half), mask, 0.5, softcap)  # type: ignore[arg-type]
    assert out.dtype == half
    expected = by_hand(q, k, v, seen, 0.5, softcap)
    torch.testing.assert_close(out[0].float(), expected, atol=0.05, rtol=0.05)


def test_a_row_mask_is_a_mask_of_four_dimensions_that_passes_through_transformers() -> None:
    rows = rows_of(SEEN["dense"], 8)
    mask = RowMask.make(rows, 1)
    assert tuple(mask.shape) == (1, 1, 3, 8)
    assert mask.dtype == torch.bool and mask.dim() == 4
    assert torch.equal(mask[0, 0], rows)
    assert type(mask[0, 0]) is torch.Tensor
    assert (mask.tiled, mask.seen) == (None, slice(0, 5))


@pytest.mark.parametrize("kind", ["no mask", "a tensor", "dropout"])
def test_what_it_cannot_honour_is_a_model_error(kind: str) -> None:
    q, k, v = inputs(3, 8)
    rows = rows_of(SEEN["dense"], 8)
    mask = {"no mask": None, "a tensor": rows[None, None], "dropout": RowMask.make(rows, 2)}[kind]
    with pytest.raises(ModelError, match="takes a RowMask and no dropout"):
        flat_attention_forward(None, q, k, v, mask, dropout=0.1 if kind == "dropout" else 0.0)  # type: ignore[arg-type]


# What the kernel of a GPU is told; the kernel itself has tests in test_kernel_gpu.


@given(
    num_queries=st.integers(1, 40),
    num_slots=st.integers(1, 300),
    group_size=st.sampled_from([1, 2, 4, 7, 8, 100]),
    random=st.randoms(use_true_random=False),
)
def test_tiles_name_the_blocks_that_some_query_of_them_sees(
    num_queries: int, num_slots: int, group_size: int, random: Random
) -> None:
    seen = [random.sample(range(num_slots), random.randint(1, min(3, num_slots))) for _ in range(num_queries)]
    rows = rows_of(seen, num_slots)
    found = tiles(rows, group_size)
    size = found.queries_per_tile
    # Rows of scores in a program: query heads of a group times queries, a few dozen at most.
    assert size == 1 or size * group_size <= 64
    assert torch.equal(found.rows_TS.bool(), rows)
    assert len(found.blocks) == len(found.counts) == -(-num_queries // size)
    for tile in range(len(found.counts)):
        mine = seen[tile * size : (tile + 1) * size]
        expected = sorted({slot // BLOCK for slots in mine for slot in slots})
        assert int(found.counts[tile]) == len(expected)
        assert found.blocks[tile, : len(expected)].tolist() == expected


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("is_whole", [False, True])
def test_queries_with_stretches_of_their_own_are_a_call_for_each(
    is_whole: bool, softcap: float | None
) -> None:
    """Three graphs of one, two and three queries, in any order among each other, far apart in the cache."""
    stretches, generator = [(0, 4000), (4000, 9000), (9500, 12000)], torch.Generator().manual_seed(2)
    seen = list[list[int]]()
    for number, (start, end) in enumerate(stretches):
        for _ in range(number + 1):
            some = torch.randint(start, end, (700,), generator=generator).tolist()
            seen.append(sorted({start + number, end - 1 - number, *some}))
    if is_whole:
        # Nothing between its first slot and its last is hidden from the query.
        seen[0] = list(range(seen[0][0], seen[0][-1] + 1))
    order = [3, 0, 5, 2, 4, 1]
    seen = [seen[i] for i in order]
    q, k, v = inputs(len(seen), 12_100, seed=3)
    mask = RowMask.make(rows_of(seen, 12_100), HEADS // GROUPS)
    assert mask.groups is not None and mask.seen is None
    order, groups = mask.groups.order, mask.groups.groups
    assert [sorted(order[group.queries].tolist()) for group in groups] == [[1], [3, 5], [0, 2, 4]]
    assert (groups[0].visible is None) == is_whole
    out, _ = flat_attention_forward(None, q, k, v, mask, softcap=softcap)  # type: ignore[arg-type]
    expected = by_hand(q, k, v, seen, CHANNELS**-0.5, softcap)
    torch.testing.assert_close(out[0], expected, atol=2e-5, rtol=1e-5)
    # One query that sees across all of them, and they are one stretch.
    across = [*seen[:5], [0, 12_099]]
    assert RowMask.make(rows_of(across, 12_100), HEADS // GROUPS).groups is None
    # Short stretches are cheaper in one call.
    assert RowMask.make(rows_of([[0, 1], [2, 3]], 8), HEADS // GROUPS).groups is None
