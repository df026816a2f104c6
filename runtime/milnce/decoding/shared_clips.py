"""Memory for clips that processes share, without a name: it cannot outlive them, however they end."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import TYPE_CHECKING

import numpy as np

from milnce.decoding.descriptors import anonymous_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAGE = 4096
_COUNTER_BYTES = 8
MOST_WORKERS = _PAGE // _COUNTER_BYTES


class SharedClips:
    """Clips, and a counter a worker that it moves on while it makes progress.

    Pages are allocated when they are first written to.

    Attributes:
        fd: File descriptor of the memory; a process that inherits it attaches with it.
        clips: uint8 (slots, frames, size, size, 3).
        counters: uint64 (512,), one a worker.

    Args:
        shape: Shape of `clips`.
        fd: The memory of another process; None to make one.

    Raises:
        OSError: if there is not so much memory, or the system gives none.
        OverflowError: if there are not even so many addresses.
    """

    def __init__(self, shape: tuple[int, ...], fd: int | None = None) -> None:
        size = 1
        for axis in shape:  # numpy's product would overflow in silence
            size *= axis
        made = anonymous_file("milnce-clips", _PAGE + size) if fd is None else fd
        self._closing = weakref.finalize(self, os.close, made)
        self.fd = made
        try:
            memory = mmap.mmap(made, _PAGE + size)  # freed with the last view of it
        except BaseException:
            self._closing()
            raise
        self.counters = memoryview(memory)[:_PAGE].cast("Q")
        self.clips: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, size, _PAGE).reshape(shape)

    def close(self) -> None:
        """Close the memory. What was made of `clips` stays as it is, and keeps it as long as it lives."""
        self._closing()
        self.clips = np.empty((0, *self.clips.shape[1:]), np.uint8)
        self.counters = memoryview(b"")
