"""Which places for clips are free, and whose clips are in the others."""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milnce.decoding.events import ClipOf


class Slots:
    """Places for clips: regions of as many as make a full batch, which lie one behind the other.

    A slot is free, then granted to who will write a clip into it, then filled, then taken as part of a batch, and free
    again. Only filled slots that lie side by side in one region are taken together, so that a batch needs no copy.

    Args:
        regions: Number of regions, at least 1.
        size: Slots a region: the clips of a full batch.
        at_once: Clips in a batch where there need not be a full region; None to take full regions.
    """

    def __init__(self, regions: int, size: int, *, at_once: int | None = None) -> None:
        self._size = size
        self._at_once = at_once
        # Each a sorted list, and so a heap.
        self._free = [list(range(region * size, (region + 1) * size)) for region in range(regions)]
        self._filled: dict[int, ClipOf] = {}  # oldest first
        self._count = [0] * regions
        self._complete: deque[int] = deque()

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self._free) * self._size

    @property
    def filled(self) -> int:
        """How many hold clips that were not taken."""
        return len(self._filled)

    @property
    def free(self) -> int:
        """How many can be granted."""
        return sum(map(len, self._free))

    def grant(self) -> int | None:
        """Return a slot to be filled, or None if none is free.

        It is in the region that lacks fewest, so that regions are completed one after the other.
        """
        free = min((slots for slots in self._free if slots), key=len, default=None)
        return None if free is None else heapq.heappop(free)

    def give_back(self, slot: int) -> None:
        """Free a slot that was granted and is not going to be filled."""
        heapq.heappush(self._free[slot // self._size], slot)

    def fill(self, slot: int, owner: ClipOf) -> None:
        """Take note that a granted slot holds a clip."""
        region = slot // self._size
        self._filled[slot] = owner
        self._count[region] += 1
        if self._count[region] == self._size:
            self._complete.append(region)

    def drop(self, file: int) -> None:
        """Free the slots with clips of a file."""
        for slot in [slot for slot, owner in self._filled.items() if owner.file == file]:
            self._empty(slot)
            self.give_back(slot)

    def take(self, *, rest: bool) -> tuple[range, list[ClipOf]] | None:
        """Return slots of a batch and whose clips are in them, or None if there is no batch yet.

        Args:
            rest: No more clips are to come for now: take what is there, though it is no full region.
        """
        if self._at_once is not None:
            return self._run_of(self._at_once) if self._filled else None
        while self._complete:
            region = self._complete.popleft()
            if self._count[region] == self._size:  # none of its clips was dropped meanwhile
                return self._taken(range(region * self._size, (region + 1) * self._size))
        return self._run_of(self._size) if rest and self._filled else None

    def release(self, slots: range) -> None:
        """Free the slots of a batch."""
        for slot in slots:
            self.give_back(slot)

    def _run_of(self, largest: int) -> tuple[range, list[ClipOf]]:
        """Take the oldest clip and its neighbours."""
        first = next(iter(self._filled))
        end = first + 1
        while end - first < largest and end % self._size and end in self._filled:
            end += 1
        while end - first < largest and first % self._size and first - 1 in self._filled:
            first -= 1
        return self._taken(range(first, end))

    def _taken(self, slots: range) -> tuple[range, list[ClipOf]]:
        return slots, [self._empty(slot) for slot in slots]

    def _empty(self, slot: int) -> ClipOf:
        self._count[slot // self._size] -= 1
        return self._filled.pop(slot)
