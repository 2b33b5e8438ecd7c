"""Which slots of the flat cache belong to whom: stretches of neighbouring slots, taken and given back.

Plain integers; nothing here knows what a slot holds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Extent:
    """Slots `start:end`."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def merged(extents: Iterable[Extent]) -> list[Extent]:
    """The same slots, in ascending order, with neighbours melted into one. None may be there twice."""
    result = list[Extent]()
    for extent in sorted(filter(len, extents), key=lambda extent: extent.start):
        assert not result or result[-1].end <= extent.start, "a slot is seen once"
        if result and result[-1].end == extent.start:
            result[-1] = Extent(result[-1].start, extent.end)
        else:
            result.append(extent)
    return result


class SlotPool:
    """Hands out extents of `0:capacity`, always the lowest that fits, so that neighbours stay neighbours."""

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = 0
        # Free extents, ascending, never touching each other.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.grow(capacity)

    @property
    def num_free(self) -> int:
        return sum(self._ends) - sum(self._starts)

    @property
    def high_water(self) -> int:
        """Just past the last slot in use."""
        is_free_to_the_end = self._ends and self._ends[-1] == self.capacity
        return self._starts[-1] if is_free_to_the_end else self.capacity

    def take(self, length: int) -> Extent | None:
        """`length` neighbouring slots, or None if no free extent is that long."""
        for i, start in enumerate(self._starts):
            if self._ends[i] - start >= length:
                self._starts[i] += length
                if self._starts[i] == self._ends[i]:
                    del self._starts[i], self._ends[i]
                return Extent(start, start + length)
        return None

    def copy(self) -> SlotPool:
        other = SlotPool()
        other.capacity, other._starts, other._ends = self.capacity, self._starts.copy(), self._ends.copy()
        return other

    def give(self, extent: Extent) -> Extent:
        """Takes back slots that were handed out. Returns the free extent that they are part of now."""
        if not len(extent):
            return extent
        at = bisect_left(self._starts, extent.start)
        assert at == 0 or self._ends[at - 1] <= extent.start, "given back twice"
        assert at == len(self._starts) or extent.end <= self._starts[at], "given back twice"
        self._starts.insert(at, extent.start)
        self._ends.insert(at, extent.end)
        for right in (at + 1, at):
            if 0 < right < len(self._starts) and self._ends[right - 1] == self._starts[right]:
                self._ends[right - 1] = self._ends[right]
                del self._starts[right], self._ends[right]
        at = bisect_right(self._starts, extent.start) - 1
        return Extent(self._starts[at], self._ends[at])

    def grow(self, capacity: int) -> None:
        """Adds free slots at the end."""
        assert capacity >= self.capacity
        added = Extent(self.capacity, capacity)
        self.capacity = capacity
        self.give(added)

    def missing(self, length: int) -> int:
        """By how many slots the pool must grow for an extent of `length`."""
        return max(0, length - (self.capacity - self.high_water))


@dataclass(slots=True)
class _Resident:
    extent: Extent
    num_users: int = 0
    has_proved: bool = False


@dataclass(slots=True)
class Residents:
    """Chunks whose keys and values stay in the cache after the run that computed them, by key and start.

    Where a chunk is wanted again at the same position, it is used where it lies. Those that nobody uses are
    given up when their slots are needed, least recently used first.
    """

    pool: SlotPool
    _by_place: dict[tuple[str, int], _Resident] = field(default_factory=dict[tuple[str, int], _Resident])
    _starts_of: dict[str, set[int]] = field(default_factory=dict[str, set[int]])

    def __len__(self) -> int:
        return len(self._by_place)

    def __contains__(self, place: tuple[str, int]) -> bool:
        return place in self._by_place

    def use(self, place: tuple[str, int]) -> Extent:
        """Keeps a resident from being given up until `leave`."""
        # Python's dicts keep the order of insertion: the least recently used comes first.
        resident = self._by_place[place] = self._by_place.pop(place)
        resident.num_users += 1
        resident.has_proved = True
        return resident.extent

    def leave(self, place: tuple[str, int]) -> None:
        self._by_place[place].num_users -= 1

    def add(self, place: tuple[str, int], extent: Extent) -> None:
        """Makes a chunk a resident; the slots are given back if there is one like it."""
        if place in self._by_place:
            self.pool.give(extent)
        else:
            self._by_place[place] = _Resident(extent)
            self._starts_of.setdefault(place[0], set()).add(place[1])

    def starts(self, key: str) -> list[int]:
        """Positions at which a chunk lies in the cache, ascending."""
        return sorted(self._starts_of.get(key, ()))

    def num_idle_slots(self) -> int:
        """Slots of those that nobody uses."""
        return sum(len(one.extent) for one in self._by_place.values() if not one.num_users)

    def num_proved_slots(self) -> int:
        """Slots of those that were ever used."""
        return sum(len(one.extent) for one in self._by_place.values() if one.has_proved)

    def evict(self, length: int) -> Extent | None:
        """As `SlotPool.take`, giving up residents that nobody uses where their slots are needed.

        Looks where it fits first if they go one after the other, the least recently used first; only those
        that lie there go. If it fits nowhere, all stay.
        """
        found, trial = self.pool.take(length), self.pool.copy()
        if found is not None:
            return found
        idle = list[tuple[tuple[str, int], Extent]]()
        for place, one in self._by_place.items():
            if one.num_users:
                continue
            idle.append((place, one.extent))
            free = trial.give(one.extent)
            if len(free) >= length:
                wanted = Extent(free.start, free.start + length)
                for each, extent in idle:
                    if extent.start < wanted.end and wanted.start < extent.end:
                        self._give_up(each)
                return self.pool.take(length)
        return None

    def clear(self) -> None:
        """Gives up all that nobody uses."""
        for place in [place for place, one in self._by_place.items() if not one.num_users]:
            self._give_up(place)

    def _give_up(self, place: tuple[str, int]) -> None:
        self.pool.give(self._by_place.pop(place).extent)
        self._starts_of[place[0]].remove(place[1])
        if not self._starts_of[place[0]]:
            del self._starts_of[place[0]]
