"""Slots handed out and taken back, against a set of numbers that knows no extents."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.slots import Extent, Residents, SlotPool, merged


def laid_out(steps: list[tuple[int, int]]) -> list[Extent]:
    """Extents one after the other, each behind a gap."""
    extents, at = list[Extent](), 0
    for gap, length in steps:
        extents.append(Extent(at + gap, at + gap + length))
        at = extents[-1].end
    return extents


RANDOM = st.randoms(use_true_random=False)
# Lengths of stretches that belong to an extent, and of gaps; extents come in any order, neighbours or not.
EXTENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6))).flatmap(
    lambda steps: st.permutations(laid_out(steps))
)


def slots(extent: Extent) -> set[int]:
    return set(range(extent.start, extent.end))


def lowest_fit(free: set[int], length: int) -> Extent | None:
    starts = (s for s in sorted(free) if all(s + i in free for i in range(length)))
    start = next(starts, None)
    return None if start is None else Extent(start, start + length)


def check(pool: SlotPool, free: set[int]) -> None:
    in_use = set(range(pool.capacity)) - free
    assert pool.num_free == len(free)
    assert pool.high_water == max(in_use, default=-1) + 1


@given(random=RANDOM, capacity=st.integers(0, 30))
def test_a_pool_is_a_set_of_free_slots(random: Random, capacity: int) -> None:
    pool, free, taken = SlotPool(capacity), set(range(capacity)), list[Extent]()
    for _ in range(60):
        what = random.choice(["take", "take", "give", "grow"])
        if what == "take":
            length = random.randint(1, 9)
            expected = lowest_fit(free, length)
            # Growing by so much is enough, and by one less is not.
            missing = pool.missing(length)
            tail = pool.capacity - pool.high_water
            assert missing == max(0, length - tail)
            found = pool.take(length)
            assert found == expected
            if found is not None:
                free -= slots(found)
                taken.append(found)
        elif what == "give" and taken:
            # Whole, or in two parts.
            extent = taken.pop(random.randrange(len(taken)))
            cut = random.randint(extent.start, extent.end)
            for part in (Extent(extent.start, cut), Extent(cut, extent.end)):
                pool.give(part)
            free |= slots(extent)
        elif what == "grow" and pool.capacity < 60:
            more = random.randint(0, 8)
            free |= set(range(pool.capacity, pool.capacity + more))
            pool.grow(pool.capacity + more)
        check(pool, free)


def test_after_growing_by_what_is_missing_it_fits() -> None:
    pool = SlotPool(10)
    pool.take(7)
    assert pool.take(5) is None
    assert pool.missing(5) == 2
    pool.grow(12)
    assert pool.take(5) == Extent(7, 12)
    assert pool.missing(3) == 3


@pytest.mark.parametrize("again", [Extent(0, 4), Extent(3, 5), Extent(2, 3), Extent(0, 8)])
def test_what_is_free_cannot_be_given_back(again: Extent) -> None:
    pool = SlotPool(8)
    pool.take(8)
    pool.give(Extent(0, 4))
    with pytest.raises(AssertionError, match="given back twice"):
        pool.give(again)


@given(extents=EXTENTS)
def test_merged_extents_hold_the_same_slots_apart_from_each_other(extents: list[Extent]) -> None:
    result = merged(extents)
    together = set[int]().union(*map(slots, extents))
    assert set[int]().union(*map(slots, result)) == together
    assert sum(map(len, result)) == len(together)
    for left, right in pairwise(result):
        assert left.end < right.start
    assert all(map(len, result))


def test_a_slot_that_two_extents_hold_is_not_merged_silently() -> None:
    """Who sees two chunks sees each of their tokens, also where both say the same."""
    with pytest.raises(AssertionError, match="a slot is seen once"):
        merged([Extent(3, 6), Extent(0, 4)])


@given(random=RANDOM)
def test_residents_give_way_least_recently_used_first_and_only_where_it_helps(random: Random) -> None:
    """Against a list of [place, extent, users, ever used] in the order of their last use."""
    pool = SlotPool(24)
    residents, kept, runs = Residents(pool), list[list](), list[Extent]()
    for _ in range(80):
        what = random.choice(["evict", "add", "use", "leave", "end", "clear"])
        place = (random.choice("abc"), random.randint(0, 2))
        known = next((entry for entry in kept if entry[0] == place), None)
        free = [entry for entry in kept if not entry[2]]
        if what == "evict":
            length = random.randint(1, 12)
            used = set[int]().union(*(slots(e[1]) for e in kept), *map(slots, runs))
            expected = lowest_fit(set(range(24)) - used, length)
            while expected is None and free:
                used -= slots(free.pop(0)[1])
                expected = lowest_fit(set(range(24)) - used, length)
            found = residents.evict(length)
            assert found == expected
            if found is not None:
                runs.append(found)
                kept = [entry for entry in kept if not slots(entry[1]) & slots(found)]
        elif what == "add" and runs:
            extent = runs.pop()
            residents.add(place, extent)
            if known is None:
                kept.append([place, extent, 0, False])
        elif what == "use" and known is not None:
            assert residents.use(place) == known[1]
            kept.remove(known)
            kept.append([place, known[1], known[2] + 1, True])
        elif what == "leave" and known is not None and known[2]:
            residents.leave(place)
            known[2] -= 1
        elif what == "clear" and random.random() < 0.1:
            residents.clear()
            kept = [entry for entry in kept if entry[2]]
        elif what == "end" and runs:
            pool.give(runs.pop(random.randrange(len(runs))))
        assert len(residents) == len(kept)
        assert residents.num_idle_slots() == sum(len(entry[1]) for entry in kept if not entry[2])
        assert residents.num_proved_slots() == sum(len(entry[1]) for entry in kept if entry[3])
        assert all(entry[0] in residents for entry in kept)
        assert ("never", 0) not in residents
        for key in "abc":
            assert sorted(residents.starts(key)) == sorted(e[0][1] for e in kept if e[0][0] == key)
        assert pool.num_free == 24 - sum(len(e[1]) for e in kept) - sum(map(len, runs))
