"""Passes as plain numbers: cutting them, and their masks against the one rule applied slot by slot."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from legraph.passes import Segment, own_mask, split, visible_rows
from legraph.slots import Extent, merged
from tests.random_graphs import Dag, brute_force_mask, dags, drawn

RANDOM = st.randoms(use_true_random=False)


def segment(
    length: int, slot: int, own_start: int | None = None, *seen: Extent, wants: bool = False
) -> Segment:
    ids = np.arange(slot, slot + length)
    return Segment(ids, ids + 100, slot, slot if own_start is None else own_start, seen, wants)


def whole_graph(dag: Dag, gaps: list[int], first: int = 1) -> list[Segment]:
    """A segment for each chunk of a graph, with so many slots of others before each."""
    extents, at = list[Extent](), first
    for length, gap in zip(dag.lengths, gaps, strict=False):
        extents.append(Extent(at + gap, at + gap + length))
        at = extents[-1].end
    return [
        segment(length, extents[i].start, None, *merged(extents[p] for p in dag.parents[i]))
        for i, length in enumerate(dag.lengths)
    ]


def naive_rows(segments: list[Segment], num_slots: int) -> list[list[bool]]:
    """One pair of token and slot after the other."""
    return [
        [
            one.own_start <= slot <= one.slot + i or any(e.start <= slot < e.end for e in one.seen)
            for slot in range(num_slots)
        ]
        for one in segments
        for i in range(len(one))
    ]


def test_rows_in_a_picture() -> None:
    """Slot 0 is nobody's; 1 to 3 a parent; a chunk with slots from 4 on, of which two are there already."""
    rows = visible_rows([segment(2, 6, 4, Extent(1, 3)), segment(1, 3, 3)], 9)
    assert drawn(rows).split() == [".##.###..", ".##.####.", "...#....."]


@given(dag=dags(max_chunks=8), gaps=st.lists(st.integers(0, 3), min_size=8, max_size=8), cut=RANDOM)
def test_rows_are_the_rule(dag: Dag, gaps: list[int], cut: Random) -> None:
    segments = whole_graph(dag, gaps)
    num_slots = segments[-1].slot + len(segments[-1]) + 3
    rows = visible_rows(segments, num_slots)
    assert rows.dtype == np.bool_
    slots = np.concatenate([one.slots for one in segments])
    assert np.array_equal(rows[:, slots], brute_force_mask(dag))
    assert not np.delete(rows, slots, axis=1).any()
    for part in split(segments, cut.randint(1, 9)):
        assert visible_rows(part, num_slots).tolist() == naive_rows(part, num_slots)


@given(dag=dags(max_chunks=8), random=RANDOM, most=st.integers(1, 12))
def test_parts_are_the_same_tokens_and_none_is_too_long(dag: Dag, random: Random, most: int) -> None:
    segments = [replace(s, wants_logits=random.random() < 0.5) for s in whole_graph(dag, [0] * 8)]
    parts = list(split(segments, most))
    sizes = [sum(map(len, part)) for part in parts]
    assert all(0 < size <= most for size in sizes)
    # The next piece did not fit, and a chunk is cut only where it is longer than a part.
    for (size, _), (_, following) in pairwise(zip(sizes, parts, strict=True)):
        rest = next(one for one in segments if one.own_start == following[0].own_start)
        left = rest.slot + len(rest) - following[0].slot
        assert size + min(left, most) > most
    lengths = {one.own_start: len(one) for one in segments}
    assert all(
        len(one) == lengths[one.own_start] for p in parts for one in p if lengths[one.own_start] <= most
    )
    flat = [one for part in parts for one in part]
    for name in ("ids", "positions", "slots"):
        expected = np.concatenate([getattr(one, name) for one in segments])
        assert np.array_equal(np.concatenate([getattr(one, name) for one in flat]), expected)
    # Only the part with a chunk's last token wants logits, and every chunk that wants some gets them once.
    last = {one.slot + len(one) - 1 for one in segments if one.wants_logits}
    assert [one.slot + len(one) - 1 for one in flat if one.wants_logits] == sorted(last)
    assert [one.own_start for one in flat] == sorted(one.own_start for one in flat)
    assert list(split([], most)) == []


@given(dag=dags(max_chunks=12), gaps=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_a_whole_graph_has_a_mask_of_its_own(dag: Dag, gaps: list[int]) -> None:
    """Parents that lie side by side in the cache are one extent, with slots of others between or without."""
    mask = own_mask(whole_graph(dag, gaps))
    assert mask is not None
    assert np.array_equal(mask.dense(), brute_force_mask(dag))


@given(dag=dags(max_chunks=8), random=RANDOM)
def test_a_pass_that_sees_something_from_before_has_none(dag: Dag, random: Random) -> None:
    segments = whole_graph(dag, [1] * 8, first=20)
    i = random.randrange(len(segments))
    # A chunk that is not in the pass; a slot of nobody beside one that may be seen.
    for more in (Extent(3, 5), Extent(segments[0].slot - 1, segments[0].slot)):
        wider = replace(segments[i], seen=tuple(merged([*segments[i].seen, more])))
        assert own_mask([*segments[:i], wider, *segments[i + 1 :]]) is None
    # What comes first is cut off.
    if len(segments[i]) > 1:
        rest = segments[i].cut(1, len(segments[i]))
        assert own_mask([*segments[:i], rest, *segments[i + 1 :]]) is None


def test_segments_in_another_order_than_their_slots_have_no_mask_of_their_own() -> None:
    assert own_mask([segment(2, 5), segment(2, 1)]) is None
    assert own_mask([segment(2, 1), segment(2, 5)]) is not None
    # A child before its parent.
    assert own_mask([segment(2, 1, None, Extent(5, 7)), segment(2, 5)]) is None


def test_a_segment_is_cut_where_it_is_asked_to_be() -> None:
    whole = segment(5, 10, 10, Extent(1, 4), wants=True)
    part = whole.cut(1, 3)
    assert (len(part), part.slot, part.own_start, part.seen) == (2, 11, 10, (Extent(1, 4),))
    assert (part.ids.tolist(), part.positions.tolist()) == ([11, 12], [111, 112])
    assert part.slots.tolist() == [11, 12]
    assert not part.wants_logits
    assert whole.cut(3, 5).wants_logits
    assert not segment(5, 10).cut(3, 5).wants_logits
