"""The ring of slots: pinned and device memory for a few batches in flight, allocated once and used in turn."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from threading import Condition
from typing import TYPE_CHECKING, Any

from milnce.backends.layouts import Capacity
from milnce.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from milnce.backends.layouts import Bucket, Layout
    from milnce.cuda import Cuda, DeviceBuffer, Event, PinnedBuffer, Stream


class Slot:
    """Buffers, a stream and events for one batch in flight.

    Attributes:
        cuda: The GPU.
        index: Its place in the ring.
        holder: Who has it, None if it is free.
        stream: Carries the slot's copies, in both directions.
        uploaded: The inputs are on the device.
        computed: The outputs are on the device.
        finished: Nothing of the batch is under way any more.
        kept: What a backend keeps for this slot and its present addresses (graphs, bindings), by bucket.
    """

    def __init__(self, cuda: Cuda, index: int, resources: ExitStack) -> None:
        self.index = index
        self.holder: object | None = None
        self.stream: Stream = resources.enter_context(cuda.stream())
        self.uploaded: Event = resources.enter_context(cuda.event())
        self.computed: Event = resources.enter_context(cuda.event())
        self.finished: Event = resources.enter_context(cuda.event())
        self.kept: dict[tuple[object, ...], Any] = {}
        self.pinned_inputs: PinnedBuffer
        self.pinned_outputs: PinnedBuffer
        self.device_inputs: DeviceBuffer
        self.device_outputs: DeviceBuffer
        self.cuda = cuda
        self._buffers = ExitStack()

    def allocate(self, capacity: Capacity) -> None:
        """Allocate the four buffers, or none."""
        with ExitStack() as partial:
            self.pinned_inputs = partial.enter_context(self.cuda.pinned_buffer(capacity.inputs))
            self.pinned_outputs = partial.enter_context(self.cuda.pinned_buffer(capacity.outputs))
            self.device_inputs = partial.enter_context(self.cuda.device_buffer(capacity.inputs))
            self.device_outputs = partial.enter_context(self.cuda.device_buffer(capacity.outputs))
            try:
                # Rows that pad a batch are computed too: they must be numbers, and not what another program left.
                self.cuda.fill(self.device_inputs.pointer, 0, capacity.inputs, self.stream)
                self.stream.synchronize()
            except BaseException:
                with suppress(BackendError):  # the first error says more; but nothing is freed under work
                    self.stream.synchronize()
                raise
            self._buffers = partial.pop_all()

    def forget(self) -> None:
        """Close what was kept for the present addresses."""
        with ExitStack() as closes:
            while self.kept:
                closes.callback(self.kept.popitem()[1].close)

    def free(self) -> None:
        """Free the buffers and what was kept for their addresses."""
        try:
            self.forget()
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
    than any before it. A slot is held by whoever is named in it: that is one assignment, so an interrupted thread
    either has a slot or has not, and `release` and `abandon` find out which.

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
        with ExitStack() as partial:
            self.compute = partial.enter_context(cuda.stream())
            self.slots = [Slot(cuda, index, partial) for index in range(count)]
            self._resources = partial.pop_all()

    @property
    def scratch(self) -> int:
        """Address of the shared scratch memory, 0 if there is none."""
        return 0 if self._scratch is None else self._scratch.pointer

    def acquire(self, bucket: Bucket, holder: object) -> Slot:
        """Wait for a free slot that holds `bucket`, and let `holder` have it.

        Raises:
            BackendError: if the ring is closed.
            DeviceMemoryError: if there is no memory for it; the ring keeps what it had.
        """
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or (self._free() and not self._growing))
                self._refuse_closed()
                if self.capacity.holds(bucket):
                    return self._take(holder)
            self._grow(bucket)

    def try_acquire(self, bucket: Bucket, holder: object) -> Slot | None:
        """Let `holder` have a slot that is free now and holds `bucket`, if there is one."""
        with self._condition:
            self._refuse_closed()
            if self._free() and not self._growing and self.capacity.holds(bucket):
                return self._take(holder)
            return None

    def release(self, holder: object) -> None:
        """Take back what `holder` has, if anything; nothing of it may be under way on the GPU."""
        with self._condition:
            for slot in self.slots:
                if slot.holder is holder:
                    slot.holder = None
            self._condition.notify_all()

    def abandon(self, holders: Sequence[object]) -> None:
        """Take back what `holders` have after an error, once the GPU is done with what they enqueued."""
        held = [slot for slot in self.slots if any(slot.holder is holder for holder in holders)]
        try:
            for stream in (*(slot.stream for slot in held), *([self.compute] if held else [])):
                with suppress(BackendError):  # the first error says more
                    stream.synchronize()
        finally:
            for holder in holders:
                self.release(holder)

    def drain(self) -> None:
        """Refuse new batches from now on, and wait for those in flight. May be called again when interrupted."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: len(self._free()) == len(self.slots))

    def forget(self) -> None:
        """Close what was kept for the slots' addresses. The ring must be drained."""
        with ExitStack() as closes:
            for slot in self.slots:
                closes.callback(slot.forget)

    def close(self) -> None:
        """Free everything. The ring must be drained; a second call does nothing."""
        try:
            self._deallocate()
        finally:
            self._resources.close()

    def _free(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.holder is None]

    def _take(self, holder: object) -> Slot:
        slot = self._free()[0]
        slot.holder = holder
        return slot

    def _grow(self, bucket: Bucket) -> None:
        holder = object()
        try:
            self._take_all(holder)
            before, wanted = self.capacity, self.capacity.grown(bucket)
            if before == wanted:  # another thread came first
                return
            self._deallocate()  # first, so that the peak is what is declared and not the sum of both
            try:
                self._allocate(wanted)
            except BaseException:
                with suppress(BackendError):  # the first error says more; the next batch allocates what it needs
                    self._allocate(before)
                raise
        finally:
            self.release(holder)

    def _take_all(self, holder: object) -> None:
        """Take every slot, so that no batch is in flight."""
        with self._condition:
            self._growing += 1
            try:
                # While another thread grows the ring it holds every slot, so this waits for it too.
                self._condition.wait_for(lambda: self._closed or len(self._free()) == len(self.slots))
                self._refuse_closed()
                for slot in self.slots:
                    slot.holder = holder
            finally:
                self._growing -= 1
                self._condition.notify_all()

    def _allocate(self, capacity: Capacity) -> None:
        if capacity == Capacity():
            return
        allocated: list[Slot] = []
        try:
            self._scratch = self.cuda.device_buffer(capacity.scratch)
            for slot in self.slots:
                slot.allocate(capacity)
                allocated.append(slot)
        except BaseException:
            with suppress(BackendError):  # the first error says more
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
