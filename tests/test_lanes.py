"""Rows that are kept from step to step, against a list of sets of slots."""

from __future__ import annotations

from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st

from legraph.lanes import Lanes
from legraph.slots import Extent

CPU = torch.device("cpu")


def check(lanes: Lanes, owners: list[str], seen: dict[str, set[int]]) -> None:
    assert lanes.owners == owners
    assert len(lanes) == len(owners)
    assert lanes.rows.dtype == torch.bool
    found = [set(row.nonzero()[:, 0].tolist()) for row in lanes.rows]
    assert found == [seen[owner] for owner in owners] + [set()] * (len(lanes.rows) - len(owners))


@given(random=st.randoms(use_true_random=False))
@torch.inference_mode()
def test_each_owner_keeps_its_row_whoever_comes_and_goes(random: Random) -> None:
    lanes, owners, seen = Lanes(CPU), list[str](), dict[str, set[int]]()
    capacity = 10
    lanes.fit(0, capacity)
    for number in range(40):
        what = random.choice(["enter", "enter", "leave", "step", "fit"])
        if what == "enter":
            owner, start = f"owner {number}", random.randint(0, capacity - 4)
            first, second = Extent(start, start + 2), Extent(start + 3, start + 4)
            lanes.enter(owner, [second, first])
            owners.append(owner)
            seen[owner] = {start, start + 1, start + 3}
        elif what == "leave" and owners:
            owner = random.choice(owners)
            lanes.leave(owner)
            # The last lane takes its place.
            at, last = owners.index(owner), owners.pop()
            if last != owner:
                owners[at] = last
        elif what == "step":
            # As a decode step does it: one slot for each lane.
            slots = [random.randrange(capacity) for _ in owners]
            lanes.rows[: len(owners)].scatter_(1, torch.tensor(slots, dtype=torch.int64)[:, None], True)
            for owner, slot in zip(owners, slots, strict=True):
                seen[owner] |= {slot}
        elif what == "fit":
            capacity += random.randint(0, 3)
            lanes.fit(random.randint(0, 12), capacity)
        check(lanes, owners, seen)


def test_room_is_made_in_powers_of_two_and_never_given_up() -> None:
    lanes = Lanes(CPU)
    assert tuple(lanes.rows.shape) == (0, 0)
    lanes.fit(0, 5)
    assert tuple(lanes.rows.shape) == (8, 5)
    lanes.fit(9, 3)
    assert tuple(lanes.rows.shape) == (16, 5)
    rows = lanes.rows
    lanes.fit(16, 5)
    assert lanes.rows is rows
    lanes.fit(1, 6)
    assert tuple(lanes.rows.shape) == (16, 6)
