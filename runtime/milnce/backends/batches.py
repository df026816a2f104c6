"""The parts a batch is split into on its way through the ring, and how their results come together again."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from milnce.backends.slots import Bucket, Slot
    from milnce.cuda import Event
    from milnce.device_arrays import DeviceArray

# Threads and bytes from which on a copy is shared among them. One thread fills pinned memory at some 10 GB/s on a
# server, that is 2,000 clips of 4.8 MB a second, and a large GPU computes more than that.
_COPY_THREADS = 4
_SHARED_COPY_BYTES = 2**20


@dataclass(slots=True)
class Part:
    """Rows of a batch that run at once.

    Attributes:
        bucket: What they are padded to.
        first: The row of the batch they begin at.
        rows: How many they are.
        feeds: The whole batch's inputs.
        arrived: When inputs on the device may be read; None if all are on the host.
        results: Where results that stay on the device go; None if they are downloaded.
        slot: The slot they run in.
    """

    bucket: Bucket
    first: int
    rows: int
    feeds: Mapping[str, NDArray[Any] | DeviceArray]
    arrived: Event | None
    results: Mapping[str, DeviceArray] | None
    slot: Slot | None = None

    def held(self) -> Slot:
        """Return the slot of a part that was started."""
        if self.slot is None:
            raise RuntimeError("a part without a slot was used; this is a defect of milnce")
        return self.slot


class Joined:
    """Puts the parts of one batch together, and then resolves its future. May be used from two threads."""

    def __init__(self, count: int) -> None:
        self.future: Future[dict[str, NDArray[Any]]] = Future()
        # What is on its way to the GPU cannot be called back.
        self.future.set_running_or_notify_cancel()
        self._lock = Lock()
        self._count = count
        self._parts: list[dict[str, NDArray[Any]]] = []

    def add(self, outputs: dict[str, NDArray[Any]]) -> None:
        """Take the results of the next part."""
        with self._lock:
            self._parts.append(outputs)
            complete = len(self._parts) == self._count and not self.future.done()
        if complete:
            self.future.set_result(join(self._parts))

    def fail(self, error: BaseException) -> None:
        """Fail the batch; results of its other parts are dropped."""
        with self._lock:
            first = not self.future.done()
            if first:
                self._count = 0
        if first:
            self.future.set_exception(error)


def join(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the parts' rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Copier:
    """Copies arrays, large ones by several threads."""

    def __init__(self) -> None:
        count = min(_COPY_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="milnce-copy")
        self._count = count

    def copy(self, destination: NDArray[Any], source: NDArray[Any]) -> None:
        """Copy `source` into `destination`, a contiguous array of the same shape, whatever the source's strides.

        An integer source may be wider than its destination: TensorRT 8.5 takes int64 ids as int32.
        """
        if source.nbytes < _SHARED_COPY_BYTES or not source.flags.c_contiguous or source.dtype != destination.dtype:
            np.copyto(destination, source, casting="same_kind")
            return
        to, of = destination.reshape(-1), source.reshape(-1)
        bounds = np.linspace(0, to.size, self._count + 1).astype(int)
        spans = [slice(start, stop) for start, stop in pairwise(bounds)]
        # NumPy gives up the interpreter's lock while it copies.
        others = [self._threads.submit(np.copyto, to[span], of[span]) for span in spans[1:]]
        np.copyto(to[spans[0]], of[spans[0]])
        for other in others:
            other.result()

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown()
