"""The parts a batch is split into on its way through the ring, and the copies into and out of pinned memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.device_arrays import DeviceArray

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from milnce.backends.layouts import Bucket
    from milnce.backends.slots import Ring, Slot
    from milnce.cuda import Event

    Outputs = dict[str, NDArray[Any]]

# Threads and bytes from which on a copy is shared among them. One thread fills pinned memory at some 10 GB/s on a
# server, that is 2,000 clips of 4.8 MB a second, and a large GPU computes more than that.
_COPY_THREADS = 4
_SHARED_COPY_BYTES = 2**20


@dataclass(slots=True, eq=False)
class Part:
    """Rows of a batch that run at once. It is what holds a slot.

    Attributes:
        bucket: What they are padded to.
        first: The row of the batch they begin at.
        rows: How many they are.
        feeds: The whole batch's inputs.
        arrived: When inputs on the device may be read; None if all are on the host.
        results: Where results that stay on the device go; None if they are downloaded.
        slot: The slot they run in, or ran in.
        completed: Set when a completer is done with it; None if none has it.
    """

    bucket: Bucket
    first: int
    rows: int
    feeds: Mapping[str, NDArray[Any] | DeviceArray]
    arrived: Event | None
    results: Mapping[str, DeviceArray] | None
    slot: Slot | None = None
    completed: threading.Event | None = None

    def held(self) -> Slot:
        """Return the slot of a part that was started."""
        if self.slot is None:
            raise RuntimeError("a part without a slot was used; this is a defect of milnce")
        return self.slot


def split(
    feeds: Mapping[str, NDArray[Any] | DeviceArray],
    bucket_of: Callable[[int], Bucket],
    *,
    arrived: Event | None,
    results: Mapping[str, DeviceArray] | None,
) -> list[Part]:
    """Split a batch into parts, each of the bucket that `bucket_of` gives for the rows that are left."""
    parts, first, count = [], 0, len(next(iter(feeds.values())))
    while first < count:
        bucket = bucket_of(count - first)
        rows = min(bucket.rows, count - first)
        parts.append(Part(bucket, first, rows, feeds, arrived, results))
        first += rows
    return parts


def upload(part: Part, slot: Slot, copier: Copier) -> None:
    """Enqueue the copies of a part's inputs into its slot; those of the host are in pinned memory when this returns."""
    layout, cuda = part.bucket.inputs, slot.cuda
    if part.arrived is not None:
        slot.stream.wait(part.arrived)
    for name, array in part.feeds.items():
        pointer, nbytes = slot.device_inputs.pointer + layout.offsets[name], part.rows * layout.row_bytes(name)
        if isinstance(array, DeviceArray):
            cuda.copy(pointer, array.pointer + part.first * layout.row_bytes(name), nbytes, slot.stream)
        else:
            copier.copy(slot.input_array(layout, name)[: part.rows], array[part.first : part.first + part.rows])
            cuda.upload(pointer, slot.pinned_inputs.pointer + layout.offsets[name], nbytes, slot.stream)


def download(part: Part, slot: Slot) -> None:
    """Enqueue the copies of a part's outputs out of its slot, into pinned memory or to where they stay."""
    layout, cuda = part.bucket.outputs, slot.cuda
    for name, offset in layout.offsets.items():
        pointer, nbytes = slot.device_outputs.pointer + offset, part.rows * layout.row_bytes(name)
        if part.results is None:
            cuda.download(slot.pinned_outputs.pointer + offset, pointer, nbytes, slot.stream)
        else:
            cuda.copy(part.results[name].pointer + part.first * layout.row_bytes(name), pointer, nbytes, slot.stream)


def finish(ring: Ring, part: Part) -> Outputs:
    """Wait for a part, take its results out of pinned memory, and give its slot back.

    Raises:
        CudaError: if its work failed. The slot is still held then: `Ring.abandon` takes it back.
    """
    slot, layout = part.held(), part.bucket.outputs
    slot.finished.synchronize()
    outputs = {}
    if part.results is None:
        outputs = {name: slot.output_array(layout, name)[: part.rows].copy() for name in layout.shapes}
    else:
        for array in part.results.values():
            if part.first + part.rows == len(array):  # the last part, and parts are finished in order
                array.stream = None  # complete: the caller may destroy the stream
    ring.release(part)
    return outputs


def settle(parts: Sequence[Part]) -> None:
    """Wait for those parts that a completer has, whether or not they succeed.

    Their slots may be another's by now, or gone, so nothing of CUDA is asked.
    """
    for part in parts:
        if part.completed is not None:
            part.completed.wait()


def join(parts: Sequence[Outputs]) -> Outputs:
    """Return the parts' rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Copier:
    """Copies arrays, large ones by several threads."""

    def __init__(self) -> None:
        self._count = min(_COPY_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="milnce-copy")

    def copy(self, destination: NDArray[Any], source: NDArray[Any]) -> None:
        """Copy `source` into `destination`, a contiguous array of the same shape, whatever the source's strides.

        An integer source may be wider than its destination (TensorRT 8.5 takes int64 ids as int32), and of the other
        byte order. Nothing is copied any more when this returns or raises.
        """
        if source.nbytes < _SHARED_COPY_BYTES or not source.flags.c_contiguous:
            np.copyto(destination, source)
            return
        to, of = destination.reshape(-1), source.reshape(-1)
        bounds = np.linspace(0, to.size, self._count + 1).astype(int)
        first, *others = [slice(start, stop) for start, stop in pairwise(bounds)]
        under_way: list[Future[None]] = []
        try:
            # NumPy gives up the interpreter's lock while it copies.
            for span in others:
                under_way.append(self._threads.submit(np.copyto, to[span], of[span]))  # noqa: PERF401
            np.copyto(to[first], of[first])
        finally:
            wait(under_way)  # interrupted or not: another batch may get this memory next
        for other in under_way:
            other.result()

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown()
