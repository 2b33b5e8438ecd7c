"""Passes as intervals of slots: the closed form against the rows, attention by parts against the formula."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph import flatattention, forward
from legraph.flatattention import NAME, RowMask, flat_attention_forward, plain_attention
from legraph.graph import Generate
from legraph.intervalkernel import plan
from legraph.passes import Segment, seen_intervals, visible_rows
from legraph.seen import SeenIntervals
from legraph.tiles import Variant, Variants, lay_tiles
from tests.naive import engine, ids_of, oracle
from tests.random_graphs import Dag, dags, running
from tests.test_passes import whole_graph

RANDOM = st.randoms(use_true_random=False)
GAPS = st.lists(st.integers(0, 3), min_size=8, max_size=8)


def later_half(segments: list[Segment], cut: Random) -> list[Segment]:
    """Some of the segments, a few of them without their first tokens: what comes before was run earlier."""
    kept = [one for one in segments if cut.random() < 0.7] or segments[-1:]
    return [one.cut(cut.randrange(len(one)), len(one)) if cut.random() < 0.3 else one for one in kept]


@given(dag=dags(max_chunks=8), gaps=GAPS, cut=RANDOM)
def test_intervals_say_what_the_rows_say(dag: Dag, gaps: list[int], cut: Random) -> None:
    segments = later_half(whole_graph(dag, gaps), cut)
    num_slots = max(one.slot + len(one) for one in segments) + 2
    rows, seen = visible_rows(segments, num_slots), seen_intervals(segments)
    assert np.array_equal(rows_of(seen, num_slots), rows)
    lasts = np.cumsum([len(one) for one in segments]) - 1
    assert seen.num_keys().tolist() == rows[lasts].sum(1).tolist()
    # No stretch touches another one, or the chunk's own.
    for i in range(len(segments)):
        some = slice(seen.range_offsets[i], seen.range_offsets[i + 1])
        borders = [*zip(seen.range_starts[some], seen.range_ends[some], strict=True)]
        assert all(end < start for (_, end), (start, _) in pairwise([*borders, (seen.causal_starts[i], 0)]))


@given(
    dag=dags(max_chunks=8),
    gaps=GAPS,
    cut=RANDOM,
    rows=st.sampled_from([4, 16, 64]),
    block=st.sampled_from([1, 2, 4]),
    max_keys=st.sampled_from([3, 7, None]),
)
def test_a_plan_covers_every_pair_once(
    dag: Dag, gaps: list[int], cut: Random, rows: int, block: int, max_keys: int | None
) -> None:
    """What the kernel's programs would do, done pair by pair."""
    segments = later_half(whole_graph(dag, gaps), cut)
    num_slots = max(one.slot + len(one) for one in segments)
    expected = visible_rows(segments, num_slots).astype(int)
    variants = Variants(*(Variant(rows * size, block, 4, 1) for size in (1, 2, 4)))
    made = plan(seen_intervals(segments), 2, 2, "cpu", variants=variants, max_keys=max_keys)
    found, scratch = np.zeros_like(expected), dict[int, np.ndarray]()
    for variant, per_tile, is_packed, tiles in made.groups:
        assert per_tile == variant.rows // 2
        for query, count, slot, whole, own, first, end, first_listed, end_listed, part in tiles.tolist():
            assert count <= per_tile
            for t in range(count):
                row = np.zeros(num_slots, dtype=int)
                for begin, stop in [*made.ranges[first:end].tolist(), (whole, own)]:
                    assert (stop - begin) % block == 0
                    row[begin:stop] += 1
                np.add.at(row, made.listed[first_listed:end_listed].numpy(), 1)
                low = int(made.causal_starts[query + t]) if is_packed else own
                row[max(own, low) : slot + t + 1] += 1
                if part < 0:
                    found[query + t] += row
                else:
                    assert part + t not in scratch
                    scratch[part + t] = row
    for query, first, number, stride in made.joins.tolist():
        for i in range(number):
            found[query] += scratch.pop(first + i * stride)
    assert not scratch
    assert np.array_equal(found, expected)


def test_short_chunks_that_see_the_same_share_tiles() -> None:
    """Ten documents of three tokens behind a head that they all see, and one long one."""
    mask = Dag((1, *(3,) * 10, 40), ((), *((0,),) * 10, ())).mask()
    variants = Variants(*[Variant(16, 8, 4, 1)] * 3)
    made = lay_tiles(SeenIntervals.of(mask), 1, 1, variants)
    packed, alone = (
        next(one for one in made.groups if one.is_packed is is_packed) for is_packed in (True, False)
    )
    # Document 1 lies directly behind the head: the two are one causal stretch.
    assert packed.tiles[:, 1].tolist() == [16, 11]
    assert sorted(alone.tiles[:, 1].tolist()) == [4, 8, 16, 16]


@given(dag=dags(max_chunks=12), gaps=GAPS, cut=RANDOM)
def test_melted_intervals_say_the_same_in_fewer_segments(dag: Dag, gaps: list[int], cut: Random) -> None:
    segments = later_half(whole_graph(dag, (gaps * 2)[: len(dag.lengths)]), cut)
    num_slots = max(one.slot + len(one) for one in segments)
    seen = seen_intervals(segments)
    melted = seen.melted()
    assert np.array_equal(rows_of(melted, num_slots), visible_rows(segments, num_slots))
    assert len(melted.counts) <= len(seen.counts)
    assert melted.num_pairs() == seen.num_pairs() == visible_rows(segments, num_slots).sum()


def test_a_fully_causal_graph_melts_into_plain_causal_attention() -> None:
    mask = Dag((3, 1, 5, 2), ((), (0,), (0, 1), (0, 1, 2))).mask()
    assert not SeenIntervals.of(mask).is_causal()
    assert SeenIntervals.of(mask).melted().is_causal()
    cut_edge = Dag((3, 1, 5, 2), ((), (0,), (1,), (0, 1, 2))).mask()
    assert not SeenIntervals.of(cut_edge).melted().is_causal()


def rows_of(seen: SeenIntervals, num_slots: int) -> np.ndarray:
    """bool [T, num_slots], spelled out query by query."""
    rows = np.zeros((seen.num_queries, num_slots), dtype=np.bool_)
    for i, query in enumerate(seen.queries):
        for t in range(seen.counts[i]):
            row = rows[query + t]
            row[seen.causal_starts[i] : seen.slots[i] + t + 1] = True
            for j in range(seen.range_offsets[i], seen.range_offsets[i + 1]):
                row[seen.range_starts[j] : seen.range_ends[j]] = True
    return rows


@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (4.0, False), (None, True)])
@pytest.mark.parametrize("most", [2**26, 40])
@given(dag=dags(max_chunks=8), gaps=GAPS, cut=RANDOM)
def test_attention_by_parts_is_the_formula(
    softcap: float | None, sinks: bool, most: int, dag: Dag, gaps: list[int], cut: Random
) -> None:
    segments = later_half(whole_graph(dag, gaps), cut)
    num_slots = max(one.slot + len(one) for one in segments) + 1
    visible = torch.from_numpy(visible_rows(segments, num_slots))
    generator = torch.Generator().manual_seed(num_slots)
    q, k, v = (
        torch.randn((1, heads, length, 8), generator=generator)
        for heads, length in ((4, len(visible)), (2, num_slots), (2, num_slots))
    )
    s_aux = torch.randn(4, generator=generator) if sinks else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatattention, "_MAX_PART_ENTRIES", most)
        mask = RowMask.of_intervals(seen_intervals(segments), 2, 2, "cpu")
    assert mask.parts is not None
    found, _ = flat_attention_forward(torch.nn.Module(), q, k, v, mask, softcap=softcap, s_aux=s_aux)
    expected = plain_attention(q, k, v, visible[None, None], 8**-0.5, softcap, s_aux)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gemma2"])
@settings(max_examples=30)
@given(bundle=running(max_chunks=7, max_length=5))
def test_an_engine_that_prefills_by_parts_gives_the_same(name: str, bundle) -> None:  # type: ignore[no-untyped-def]
    """Gemma 2 has windows, so it must not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "chunks_ms", lambda *_: 0.0)
        calls = list[bool]()
        make = RowMask.of_intervals
        patch.setattr(
            RowMask, "of_intervals", staticmethod(lambda *given: (calls.append(True), make(*given))[1])
        )
        made = engine(name)
        result = made.run(bundle, Generate(max_new_tokens=2))
    assert bool(calls) == (name != "gemma2")
    leaves = {bundle.span_names[i] for i in bundle.leaves}
    own = {chunk: how.max_new_tokens for chunk, how in bundle.meta.generate.items()}
    assert ids_of(result) == oracle(name, bundle, dict.fromkeys(leaves, 2) | own)


def test_by_parts_where_that_is_cheaper() -> None:
    """Many documents that do not see each other, and not a handful of words."""
    made = engine("llama")._forward
    documents = whole_graph(Dag((200,) * 8, ((),) * 8), [0] * 8)
    words = whole_graph(Dag((2,) * 8, ((),) * 8), [0] * 8)
    assert made._intervals_pay(seen_intervals(documents))
    assert not made._intervals_pay(seen_intervals(words))
    assert NAME == "legraph_flat_attention"
