"""The ring of slots: pinned and device memory for a few batches in flight, allocated once and used in turn."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from milnce.cuda import Cuda, DeviceBuffer, Event, PinnedBuffer, Stream

# cudaMalloc aligns to 256 bytes, and TensorRT wants its tensors so.
_ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tensors of one batch lie in a slot's buffers.

    Attributes:
        shapes: Shape of each tensor.
        dtypes: NumPy's name of each tensor's dtype.
        offsets: Bytes from the start of the buffer.
        nbytes: Size of them all.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    offsets: Mapping[str, int]
    nbytes: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> Layout:
        """Lay tensors out one after the other."""
        offsets, end = {}, 0
        for name, shape in shapes.items():
            offsets[name] = end
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtypes[name]).itemsize
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        return cls(dict(shapes), dict(dtypes), offsets, end)

    def row_bytes(self, name: str) -> int:
        """Return the bytes of one row, that is of one clip or sentence, of tensor `name`."""
        return int(np.prod(self.shapes[name][1:], dtype=np.int64)) * np.dtype(self.dtypes[name]).itemsize


@dataclass(frozen=True, slots=True)
class Bucket:
    """A batch of fixed shapes that the backend is ready to run: what smaller batches are padded to.

    Attributes:
        rows: Clips or sentences.
        profile: Index of the plan's profile; 0 where there are none.
        inputs: The inputs in a slot's input buffers.
        outputs: The outputs in a slot's output buffers.
        scratch_bytes: Device memory for what lies between them, used by one batch at a time.
    """

    rows: int
    profile: int
    inputs: Layout
    outputs: Layout
    scratch_bytes: int

    @property
    def key(self) -> tuple[object, ...]:
        """What tells two buckets apart."""
        return (self.profile, *self.inputs.shapes.items())


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes a ring holds for each slot's inputs and outputs, and once for all as scratch."""

    inputs: int = 0
    outputs: int = 0
    scratch: int = 0

    def holds(self, bucket: Bucket) -> bool:
        """Whether `bucket` fits."""
        return self.grown(bucket) == self

    def grown(self, bucket: Bucket) -> Capacity:
        """Return the smallest capacity that holds `bucket` and what this one holds."""
        return Capacity(
            max(self.inputs, bucket.inputs.nbytes),
            max(self.outputs, bucket.outputs.nbytes),
            max(self.scratch, bucket.scratch_bytes),
        )


class Slot:
    """Buffers, a stream and events for one batch in flight.

    Attributes:
        index: Its place in the ring.
        stream: Carries the slot's copies, in both directions.
        uploaded: The inputs are on the device.
        computed: The outputs are on the device.
        finished: Nothing of the batch is under way any more.
        kept: What a backend keeps for this slot and its present addresses (contexts, graphs, bindings), by bucket.
    """

    def __init__(self, cuda: Cuda, index: int, resources: ExitStack) -> None:
        self.index = index
        self.stream: Stream = resources.enter_context(cuda.stream())
        self.uploaded: Event = resources.enter_context(cuda.event())
        self.computed: Event = resources.enter_context(cuda.event())
        self.finished: Event = resources.enter_context(cuda.event())
        self.kept: dict[tuple[object, ...], Any] = {}
        self.pinned_inputs: PinnedBuffer
        self.pinned_outputs: PinnedBuffer
        self.device_inputs: DeviceBuffer
        self.device_outputs: DeviceBuffer
        self._cuda = cuda
        self._buffers = ExitStack()

    def allocate(self, capacity: Capacity) -> None:
        """Allocate the four buffers, or none."""
        with ExitStack() as partial:
            self.pinned_inputs = partial.enter_context(self._cuda.pinned_buffer(capacity.inputs))
            self.pinned_outputs = partial.enter_context(self._cuda.pinned_buffer(capacity.outputs))
            self.device_inputs = partial.enter_context(self._cuda.device_buffer(capacity.inputs))
            self.device_outputs = partial.enter_context(self._cuda.device_buffer(capacity.outputs))
            # Rows that pad a batch are computed too: they must be numbers, and never what another program left behind.
            self._cuda.fill(self.device_inputs.pointer, 0, capacity.inputs, self.stream)
            self.stream.synchronize()
            self._buffers = partial.pop_all()

    def free(self) -> None:
        """Free the buffers and what was kept for their addresses."""
        kept, self.kept = list(self.kept.values()), {}
        try:
            for item in kept:
                item.close()
        finally:
            self._buffers.close()

    def input_array(self, layout: Layout, name: str) -> NDArray[Any]:
        """Return the pinned memory of an input as an array."""
        return self.pinned_inputs.array(layout.dtypes[name], layout.shapes[name], layout.offsets[name])

    def output_array(self, layout: Layout, name: str) -> NDArray[Any]:
        """Return the pinned memory of an output as an array."""
        return self.pinned_outputs.array(layout.dtypes[name], layout.shapes[name], layout.offsets[name])


class Ring:
    """A fixed number of slots, and the scratch memory they share.

    Nothing is allocated until the first batch says how large batches are, and anew only for a batch that is larger
    than any before it.

    Attributes:
        cuda: The GPU.
        slots: The slots.
        compute: The stream on which the graphs run, one after the other: side by side they would only share the
            GPU's units, and each would need scratch memory of its own.
        capacity: What is allocated now.
    """

    def __init__(self, cuda: Cuda, count: int) -> None:
        self.cuda = cuda
        self.capacity = Capacity()
        self._scratch: DeviceBuffer | None = None
        self._condition = Condition()
        self._growing = 0  # threads that want every slot; no other gets one until they have had them
        self._closed = False
        self._resources = ExitStack()
        with ExitStack() as partial:
            self.compute = partial.enter_context(cuda.stream())
            self.slots = [Slot(cuda, index, partial) for index in range(count)]
            self._resources = partial.pop_all()
        self._free = list(self.slots)

    @property
    def scratch(self) -> int:
        """Address of the shared scratch memory, 0 if there is none."""
        return 0 if self._scratch is None else self._scratch.pointer

    def acquire(self, bucket: Bucket) -> Slot:
        """Wait for a free slot that holds `bucket`.

        Raises:
            BackendError: if the ring is closed.
            DeviceMemoryError: if there is no memory for it; the ring keeps what it had.
        """
        while True:
            with self._condition:
                self._condition.wait_for(lambda: (self._free and not self._growing) or self._closed)
                self._refuse_closed()
                if self.capacity.holds(bucket):
                    return self._free.pop(0)
            self._grow(bucket)

    def try_acquire(self, bucket: Bucket) -> Slot | None:
        """Return a slot that is free now and holds `bucket`, or None."""
        with self._condition:
            self._refuse_closed()
            if self._free and not self._growing and self.capacity.holds(bucket):
                return self._free.pop(0)
            return None

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        with self._condition:
            self._free.append(slot)
            self._condition.notify_all()

    def close(self) -> None:
        """Wait for the batches in flight, then free everything. A second call does nothing."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: len(self._free) == len(self.slots))
            try:
                self._deallocate()
            finally:
                self._resources.close()

    def _grow(self, bucket: Bucket) -> None:
        with self._all_slots():
            if self.capacity.holds(bucket):  # another thread came first
                return
            before, wanted = self.capacity, self.capacity.grown(bucket)
            self._deallocate()  # first, so that the peak is what is declared and not the sum of both
            try:
                self._allocate(wanted)
            except BaseException:
                self._allocate(before)
                raise

    @contextmanager
    def _all_slots(self) -> Iterator[None]:
        """Take every slot, so that no batch is in flight, and give them back."""
        with self._condition:
            self._growing += 1
            try:
                # While another thread grows the ring it holds every slot, so this waits for it too.
                self._condition.wait_for(lambda: len(self._free) == len(self.slots) or self._closed)
                self._refuse_closed()
                self._free.clear()
            finally:
                self._growing -= 1
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._free = list(self.slots)
                self._condition.notify_all()

    def _allocate(self, capacity: Capacity) -> None:
        if capacity == Capacity():
            return
        allocated: list[Slot] = []
        try:
            if capacity.scratch:
                self._scratch = self.cuda.device_buffer(capacity.scratch)
            for slot in self.slots:
                slot.allocate(capacity)
                allocated.append(slot)
        except BaseException:
            self._free_all(allocated)
            raise
        self.capacity = capacity

    def _deallocate(self) -> None:
        self.capacity = Capacity()
        self._free_all(self.slots)

    def _free_all(self, slots: Sequence[Slot]) -> None:
        with ExitStack() as frees:  # every one is freed, also if another fails
            if self._scratch is not None:
                frees.callback(self._scratch.close)
                self._scratch = None
            for slot in slots:
                frees.callback(slot.free)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BackendError("the model was closed while in use; load it again")
