"""What the backends on a GPU share: batches go through a ring of slots, so that copies hide behind compute."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from threading import Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.backends.base import Backend, CudaOptions
from milnce.backends.batches import Copier, Joined, Part, join
from milnce.backends.slots import Bucket, Ring, Slot
from milnce.device_arrays import DeviceArray, as_device_array, is_device_array
from milnce.errors import BackendError, InputError
from milnce.specs import check_feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from milnce.cuda import Cuda, Stream
    from milnce.manifest import GraphFile


class GpuBackend(Backend):
    """One graph on a GPU. May be called from many threads at once.

    Batches are split at the largest bucket, and what is left is padded to the next one. A host array is copied once,
    into pinned memory, whatever its strides. A subclass says which buckets there are and how one is enqueued.
    """

    def __init__(self, graph: GraphFile, *, precision: str, cuda: Cuda, options: CudaOptions) -> None:
        index = cuda.info.index
        super().__init__(graph, device="cuda" if index == 0 else f"cuda:{index}", precision=precision)
        self._cuda = cuda
        self._options = options
        # One batch is enqueued at a time: contexts and sessions may not be used by two threads at once.
        self._enqueueing = Lock()
        self._closing = Lock()
        self._completions: SimpleQueue[tuple[Part, Joined] | None] = SimpleQueue()
        self._completer: Thread | None = None
        with ExitStack() as resources:
            self._copier = Copier()
            resources.callback(self._copier.close)
            # Producers of device arrays are waited for on this stream, and slots then wait for an event of it.
            self._arrivals: Stream = resources.enter_context(cuda.stream())
            self._ring = Ring(cuda, options.slots)
            resources.callback(self._ring.close)
            self._resources = resources.pop_all()

    @abstractmethod
    def _bucket(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> Bucket:
        """Return the smallest bucket that holds `rows` items, or else the largest.

        Args:
            rows: Clips or sentences.
            shapes: Shape of one item of each input, without the batch axis.

        Raises:
            InputError: if there is none for such items.
        """

    @abstractmethod
    def _enqueue(self, slot: Slot, bucket: Bucket) -> None:
        """Enqueue the graph on the ring's compute stream, from the slot's device inputs to its device outputs."""

    @property
    def device_bytes(self) -> int:
        """Device memory that this graph's inputs, outputs, scratch and results on the device take now."""
        return self._cuda.device_bytes

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory that this graph takes now."""
        return self._cuda.pinned_bytes

    def run(
        self, feeds: Mapping[str, Any], *, on_device: bool = False, cuda_stream: int | None = None
    ) -> dict[str, Any]:
        """Run one batch. See `Backend.run`.

        Raises:
            DeviceMemoryError: if there is no memory for a batch of this size. Smaller ones still run.
        """
        parts = self._parts(feeds, on_device=on_device or cuda_stream is not None, cuda_stream=cuda_stream)
        if cuda_stream is not None:
            return self._run_on_stream(parts, self._cuda.borrowed_stream(cuda_stream))
        outputs: list[dict[str, NDArray[Any]]] = []
        under_way: deque[Part] = deque()
        try:
            for part in parts:
                self._start(part, self._slot(part, under_way, outputs))
                under_way.append(part)
            while under_way:
                outputs.append(self._finish(under_way.popleft()))
        except BaseException:
            for part in under_way:
                with suppress(BackendError):
                    self._finish(part)
            raise
        return dict(parts[0].results) if parts[0].results is not None else join(outputs)

    def submit(self, feeds: Mapping[str, Any]) -> Future[dict[str, NDArray[Any]]]:
        """Start one batch and return its future. Blocks while every slot is in use. See `Backend.submit`."""
        parts = self._parts(feeds, on_device=False, cuda_stream=None)
        joined = Joined(len(parts))
        self._start_completer()
        for part in parts:
            try:
                self._start(part, self._ring.acquire(part.bucket))
            except BackendError as error:
                joined.fail(error)
                break
            self._completions.put((part, joined))
        return joined.future

    def stream(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Run batches, copying some while others are computed. See `Backend.stream`."""
        futures: deque[Future[dict[str, NDArray[Any]]]] = deque()
        for feeds in batches:
            futures.append(self.submit(feeds))
            if len(futures) > self._options.slots:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()

    def close(self) -> None:
        """Wait for the batches in flight, then free everything. A second call does nothing."""
        with self._closing:
            if self._closed:
                return
            super().close()
        self._resources.close()  # the ring waits for its slots, which the completer gives back
        if self._completer is not None:
            self._completions.put(None)
            if self._completer is not current_thread():  # closed in a future's callback
                self._completer.join()

    def _parts(self, feeds: Mapping[str, Any], *, on_device: bool, cuda_stream: int | None) -> list[Part]:
        """Check a batch, find out when its arrays on the device may be read, and split it into buckets."""
        self._refuse_closed()
        arrays = {name: self._readable(name, value) for name, value in feeds.items()}
        check_feeds(self.inputs, arrays)
        arrived = None
        if any(isinstance(array, DeviceArray) for array in arrays.values()) or cuda_stream is not None:
            if cuda_stream is not None:
                with self._cuda.event() as reached:
                    reached.record(self._cuda.borrowed_stream(cuda_stream))
                    self._arrivals.wait(reached)
            arrived = self._cuda.event()
            arrived.record(self._arrivals)
        shapes = {name: tuple(array.shape[1:]) for name, array in arrays.items()}
        count = len(next(iter(arrays.values())))
        results = self._device_results(count, shapes) if on_device else None
        parts, first = [], 0
        while first < count:
            bucket = self._bucket(count - first, shapes)
            rows = min(bucket.rows, count - first)
            parts.append(Part(bucket, first, rows, arrays, arrived, results))
            first += rows
        return parts

    def _readable(self, name: str, value: Any) -> NDArray[Any] | DeviceArray:  # noqa: ANN401 - anything may be given
        if isinstance(value, np.ndarray):
            return value
        if is_device_array(value):
            return as_device_array(value, self._cuda, self._arrivals, name=name)
        raise InputError(f"{name}: a numpy.ndarray or an array on the GPU expected, {type(value).__name__} given")

    def _device_results(self, count: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, DeviceArray]:
        layout = self._bucket(count, shapes).outputs
        with ExitStack() as partial:
            results = {}
            for name, shape in layout.shapes.items():
                buffer = partial.enter_context(self._cuda.device_buffer(count * layout.row_bytes(name)))
                dtype = np.dtype(layout.dtypes[name])
                results[name] = DeviceArray(
                    buffer.pointer, (count, *shape[1:]), dtype, device=self._cuda.info.index, owner=buffer
                )
            partial.pop_all()
        return results

    def _slot(self, part: Part, under_way: deque[Part], outputs: list[dict[str, NDArray[Any]]]) -> Slot:
        """Return a slot for `part`, finishing parts before it for one: waiting while holding slots may deadlock."""
        while under_way:
            slot = self._ring.try_acquire(part.bucket)
            if slot is not None:
                return slot
            outputs.append(self._finish(under_way.popleft()))
        return self._ring.acquire(part.bucket)

    def _start(self, part: Part, slot: Slot) -> None:
        """Enqueue a part's upload, its graph and its download; on an error give its slot back."""
        part.slot = slot
        try:
            self._upload(part, slot)
            slot.uploaded.record(slot.stream)
            with self._enqueueing:
                self._ring.compute.wait(slot.uploaded)
                self._enqueue(slot, part.bucket)
                slot.computed.record(self._ring.compute)
            slot.stream.wait(slot.computed)
            self._download(part, slot)
            slot.finished.record(slot.stream)
        except BaseException as error:
            with suppress(BackendError):  # what was enqueued still reads and writes the buffers
                slot.stream.synchronize()
                self._ring.compute.synchronize()
            self._ring.release(slot)
            if isinstance(error, Exception) and not isinstance(error, BackendError):
                raise BackendError(f"{self.name} failed to run {self.graph} with {part.rows} rows: {error}") from error
            raise

    def _upload(self, part: Part, slot: Slot) -> None:
        layout = part.bucket.inputs
        rows = slice(part.first, part.first + part.rows)
        if part.arrived is not None:
            slot.stream.wait(part.arrived)
        for name, array in part.feeds.items():
            pointer, nbytes = slot.device_inputs.pointer + layout.offsets[name], part.rows * layout.row_bytes(name)
            if isinstance(array, DeviceArray):
                if array.dtype != layout.dtypes[name]:  # TensorRT 8.5 takes int64 ids as int32
                    raise InputError(f"{name}: this plan takes {layout.dtypes[name]} on the GPU; give a numpy.ndarray")
                source = array.pointer + part.first * layout.row_bytes(name)
                self._cuda.copy(pointer, source, nbytes, slot.stream)
            else:
                self._copier.copy(slot.input_array(layout, name)[: part.rows], array[rows])
                self._cuda.upload(pointer, slot.pinned_inputs.pointer + layout.offsets[name], nbytes, slot.stream)

    def _download(self, part: Part, slot: Slot) -> None:
        layout = part.bucket.outputs
        for name, offset in layout.offsets.items():
            pointer, nbytes = slot.device_outputs.pointer + offset, part.rows * layout.row_bytes(name)
            if part.results is None:
                self._cuda.download(slot.pinned_outputs.pointer + offset, pointer, nbytes, slot.stream)
            else:
                destination = part.results[name].pointer + part.first * layout.row_bytes(name)
                self._cuda.copy(destination, pointer, nbytes, slot.stream)

    def _finish(self, part: Part) -> dict[str, NDArray[Any]]:
        """Wait for a part, take its results out of pinned memory, and give its slot back."""
        slot = part.held()
        try:
            slot.finished.synchronize()
            if part.results is not None:
                return {}
            layout = part.bucket.outputs
            return {name: slot.output_array(layout, name)[: part.rows].copy() for name in layout.shapes}
        finally:
            self._ring.release(slot)

    def _run_on_stream(self, parts: Sequence[Part], stream: Stream) -> dict[str, Any]:
        """Start all parts, let `stream` wait for them, and return without waiting on the host."""
        self._start_completer()
        joined = Joined(len(parts))
        for part in parts:
            self._start(part, self._ring.acquire(part.bucket))
            stream.wait(part.held().finished)
            self._completions.put((part, joined))
        return dict(parts[0].results or {})

    def _start_completer(self) -> None:
        with self._closing:
            self._refuse_closed()
            if self._completer is None:
                self._completer = Thread(target=self._complete, name=f"milnce-{self.name}", daemon=True)
                self._completer.start()

    def _complete(self) -> None:
        while (item := self._completions.get()) is not None:
            part, joined = item
            try:
                joined.add(self._finish(part))
            except BaseException as error:  # noqa: BLE001 - the future carries it to its reader
                joined.fail(error)
