"""Sizes into bins of one capacity: first-fit decreasing. Plain numbers; knows nothing of graphs.

From the largest on, each size goes into the first bin that has room for it. That needs at most 11/9 of the
fewest bins that are possible, and 2/3 of one (Johnson 1973; Dosa 2007).
"""

from __future__ import annotations

from collections.abc import Sequence


def first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices into `sizes`, largest first in each. O(n log n); the same for the same sizes.

    Raises:
        ValueError: a size is smaller than 1 or larger than the capacity.
    """
    if any(not 1 <= size <= capacity for size in sizes):
        raise ValueError(f"a size is not in 1..{capacity}")
    rooms = _Rooms(len(sizes), capacity)
    bins = list[list[int]]()
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found = rooms.take(sizes[i])
        if found == len(bins):
            bins.append([])
        bins[found].append(i)
    return bins


class _Rooms:
    """The room that each of many bins has left, in a tree whose nodes know the most room below them.

    A bin that nothing is in yet has all its room, so that it is found when no bin before it will do.
    """

    def __init__(self, num_bins: int, capacity: int) -> None:
        self.num_leaves = 1 << max(0, num_bins - 1).bit_length()
        # Node i has the children 2 i and 2 i + 1; the root is node 1.
        self.most = [capacity] * (2 * self.num_leaves)

    def take(self, size: int) -> int:
        """The first bin with so much room, which it then has no more."""
        most, node = self.most, 1
        while node < self.num_leaves:
            node *= 2
            if most[node] < size:
                node += 1
        found = node - self.num_leaves
        most[node] -= size
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return found
