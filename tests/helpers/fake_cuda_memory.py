"""Memory of the simulated GPUs: real host memory behind every address, with bounds, life times and poison.

Device and pinned allocations are both NumPy arrays, so an address can be read by a kernel written in Python. Fresh and
freed memory is filled with `POISON`; freed memory stays readable for a while, so that code which uses it sees poison
and the test sees a violation, and the process lives.
"""

from __future__ import annotations

import bisect
import enum
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

POISON = 0xCD
GUARD = 0xFB
_GUARD_BYTES = 64
_QUARANTINE_BYTES = 64 << 20


class Kind(enum.Enum):
    """What an allocation is; cudaMalloc aligns to 256 bytes, pinned host memory comes in pages."""

    DEVICE = "device"
    PINNED = "pinned"

    @property
    def alignment(self) -> int:
        """Return the alignment of such an allocation in bytes."""
        return 256 if self is Kind.DEVICE else 4096


class AccessError(Exception):
    """An address range does not lie in live memory; the violation is already recorded."""


@dataclass(eq=False)
class Block:
    """One allocation, live or freed.

    Attributes:
        kind: device or pinned.
        device: index of the GPU that was current when it was made.
        pointer: its address.
        nbytes: its size.
        storage: the memory, with room for the alignment before and guard bytes after.
        live: False once freed.
    """

    kind: Kind
    device: int
    pointer: int
    nbytes: int
    storage: Bytes
    live: bool = True

    def span(self, pointer: int, nbytes: int) -> Bytes:
        """Return the bytes of [pointer, pointer + nbytes), which the caller has checked."""
        start = pointer - int(self.storage.ctypes.data)
        return self.storage[start : start + nbytes]

    def guard_intact(self) -> bool:
        """Return whether nothing was written just past the end."""
        return bool((self.span(self.pointer + self.nbytes, _GUARD_BYTES) == GUARD).all())


class Memory:
    """All allocations of a simulated machine.

    Args:
        total_bytes: size of each GPU's memory.
        pinned_limit_bytes: how much host memory may be pinned; None for no limit.
        violations: where misuse is written down.
    """

    def __init__(self, total_bytes: Sequence[int], pinned_limit_bytes: int | None, violations: list[str]) -> None:
        self.total_bytes = list(total_bytes)
        self.pinned_limit_bytes = pinned_limit_bytes
        self.used_bytes = [0] * len(self.total_bytes)
        self.pinned_bytes = 0
        self.allocations: Counter[str] = Counter()
        self.frees: Counter[str] = Counter()
        self._violations = violations
        self._blocks: dict[int, Block] = {}
        self._addresses: list[int] = []
        self._quarantine: deque[Block] = deque()
        self._quarantined_bytes = 0

    def live(self, kind: Kind) -> list[Block]:
        """Return the allocations of `kind` that were not freed."""
        return [block for block in self._blocks.values() if block.live and block.kind is kind]

    def allocate(self, kind: Kind, device: int, nbytes: int) -> int | None:
        """Return the address of `nbytes` poisoned bytes, or None when there is not enough."""
        if kind is Kind.DEVICE:
            if self.used_bytes[device] + nbytes > self.total_bytes[device]:
                return None
            self.used_bytes[device] += nbytes
        else:
            if self.pinned_limit_bytes is not None and self.pinned_bytes + nbytes > self.pinned_limit_bytes:
                return None
            self.pinned_bytes += nbytes
        storage = np.full(nbytes + kind.alignment + _GUARD_BYTES, POISON, np.uint8)
        pointer = -(-int(storage.ctypes.data) // kind.alignment) * kind.alignment
        block = Block(kind, device, pointer, nbytes, storage)
        block.span(pointer + nbytes, _GUARD_BYTES)[:] = GUARD
        self._blocks[pointer] = block
        bisect.insort(self._addresses, pointer)
        self.allocations[kind.value] += 1
        return pointer

    def free(self, kind: Kind, pointer: int) -> Block | None:
        """Free the allocation at `pointer`; None, with a violation, if there is none such to free."""
        block = self._blocks.get(pointer)
        if block is None or block.kind is not kind or not block.live:
            what = "was freed before" if block is not None and block.kind is kind else f"is no {kind.value} allocation"
            self._violations.append(f"free of {pointer:#x}, which {what}")
            return None
        if not block.guard_intact():
            self._violations.append(
                f"something wrote past the end of the {kind.value} allocation {pointer:#x} of {block.nbytes} bytes"
            )
        block.live = False
        block.span(pointer, block.nbytes)[:] = POISON
        self.frees[kind.value] += 1
        if kind is Kind.DEVICE:
            self.used_bytes[block.device] -= block.nbytes
        else:
            self.pinned_bytes -= block.nbytes
        self._quarantine.append(block)
        self._quarantined_bytes += block.storage.nbytes
        while self._quarantined_bytes > _QUARANTINE_BYTES:
            gone = self._quarantine.popleft()
            self._quarantined_bytes -= gone.storage.nbytes
            del self._blocks[gone.pointer]
            self._addresses.remove(gone.pointer)
        return block

    def find(self, pointer: int) -> Block | None:
        """Return the allocation, live or lately freed, that `pointer` points into or just past the end of."""
        place = bisect.bisect_right(self._addresses, pointer) - 1
        if place < 0:
            return None
        block = self._blocks[self._addresses[place]]
        return block if pointer < block.pointer + block.nbytes + _GUARD_BYTES else None

    def check(self, pointer: int, nbytes: int, what: str) -> Block:
        """Return the live allocation that holds [pointer, pointer + nbytes).

        Raises:
            AccessError: there is none; the violation is recorded.
        """
        block = self.find(pointer)
        if block is None:
            problem = f"{what}: {pointer:#x} is no address of device or pinned memory"
        elif not block.live:
            problem = f"{what}: {pointer:#x} lies in {block.kind.value} memory that was freed"
        elif pointer + nbytes > block.pointer + block.nbytes:
            over = pointer + nbytes - block.pointer - block.nbytes
            problem = f"{what}: {nbytes} bytes at {pointer:#x} end {over} bytes after a {block.kind.value} allocation"
        else:
            return block
        self._violations.append(problem)
        raise AccessError(problem)

    def view(self, pointer: int, nbytes: int, what: str) -> Bytes:
        """Return the live bytes [pointer, pointer + nbytes) of device or pinned memory, to read and to write."""
        return self.check(pointer, nbytes, what).span(pointer, nbytes)
