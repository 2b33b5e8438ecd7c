"""The rows of the mask for chunks that are being continued, kept from step to step.

Run side: imports torch. Each live branch has a lane, a row of bools over the slots. A step adds one slot to
each row; nothing else of the mask changes, so nothing is built anew. Lanes are kept together at the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from legraph.slots import Extent

_MIN_LANES = 8


class Lanes:
    """Attributes:
    owners: whoever holds lane 0, 1, ...
    rows: bool [lanes, capacity] on the device; all False beyond the lanes in use.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.owners: list[Any] = []
        self._lane_of: dict[Any, int] = {}
        self.rows = torch.zeros((0, 0), dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self.owners)

    def __contains__(self, owner: Any) -> bool:
        return owner in self._lane_of

    @torch.inference_mode()
    def fit(self, num_lanes: int, capacity: int) -> None:
        """Makes room for so many lanes and slots; what is there stays."""
        lanes, slots = self.rows.shape
        if num_lanes <= lanes and capacity <= slots:
            return
        wanted = max(lanes, _MIN_LANES, 1 << max(0, num_lanes - 1).bit_length())
        rows = torch.zeros((wanted, max(slots, capacity)), dtype=torch.bool, device=self.device)
        rows[:lanes, :slots] = self.rows
        self.rows = rows

    @torch.inference_mode()
    def enter(self, owner: Any, seen: Sequence[Extent]) -> None:
        """Gives a branch the next lane. `seen`: its parents' slots and its own so far."""
        self.fit(len(self) + 1, self.rows.shape[1])
        row = np.zeros(self.rows.shape[1], dtype=np.bool_)
        for extent in seen:
            row[extent.start : extent.end] = True
        self.rows[len(self)] = torch.from_numpy(row).to(self.device)
        self._lane_of[owner] = len(self)
        self.owners.append(owner)

    @torch.inference_mode()
    def leave(self, owner: Any) -> None:
        """The last lane takes the place of the one that is left."""
        lane, last = self._lane_of.pop(owner), len(self) - 1
        if lane != last:
            self.rows[lane] = self.rows[last]
            self.owners[lane] = self.owners[last]
            self._lane_of[self.owners[lane]] = lane
        self.rows[last] = False
        self.owners.pop()
