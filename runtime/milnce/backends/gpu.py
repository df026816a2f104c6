"""What the backends on a GPU share: batches go through a ring of slots, so that copies hide behind compute."""

from __future__ import annotations

import logging
import os
import weakref
from abc import abstractmethod
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from milnce.backends.base import Backend, CudaOptions
from milnce.backends.batches import Copier, Part, download, finish, join, settle, split, upload
from milnce.backends.completion import Completer, Joined
from milnce.backends.intake import Arrivals, check_values, room
from milnce.backends.slots import Ring
from milnce.cuda import Cuda
from milnce.errors import BackendError, MilnceError
from milnce.specs import check_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from milnce.backends.layouts import Bucket
    from milnce.backends.slots import Slot
    from milnce.cuda import Stream
    from milnce.manifest import GraphFile

    Outputs = dict[str, NDArray[Any]]

_LOG = logging.getLogger("milnce.backends")


def open_gpu(device: int, *, device_limit_bytes: int | None, pinned_limit_bytes: int | None) -> Cuda:
    """Open a GPU, and leave the calling thread's current one as it is. See `milnce.cuda.Cuda`."""
    with ThreadPoolExecutor(1) as opener:  # since every thread has a current GPU of its own
        limits = {"device_limit_bytes": device_limit_bytes, "pinned_limit_bytes": pinned_limit_bytes}
        return opener.submit(Cuda, device, **limits).result()


class GpuBackend(Backend):
    """One graph on a GPU. May be called from many threads at once.

    Batches are split at the largest bucket, and what is left is padded to the next one. A host array is copied once,
    into pinned memory, whatever its strides. Batches are computed in the order in which they were started, so one
    whose arrays on the GPU are late holds up those after it. A subclass says which buckets there are and how one is
    enqueued.
    """

    def __init__(
        self, graph: GraphFile, *, precision: str, cuda: Cuda, options: CudaOptions, index_limit: int | None = None
    ) -> None:
        index = cuda.info.index
        super().__init__(graph, device="cuda" if index == 0 else f"cuda:{index}", precision=precision)
        self._cuda = cuda
        self._options = options
        self._index_limit = index_limit
        self._process = os.getpid()
        # One batch is enqueued at a time: contexts and sessions may not be used by two threads at once.
        self._enqueueing = Lock()
        self._changing = Lock()
        self._completer: Completer | None = None
        self._freed = False
        with cuda.active(), ExitStack() as partial:
            self._copier = Copier()
            partial.callback(self._copier.close)
            self._arrivals = Arrivals(cuda)
            partial.callback(self._arrivals.close)
            self._ring = Ring(cuda, options.slots)
            partial.pop_all()

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

    @abstractmethod
    def _free_library(self) -> None:
        """Free what the library holds. Nothing is under way, and what was kept for the slots is closed."""

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

        With `cuda_stream` this waits on the host only while every slot is in use. Results on the GPU may be dropped
        when what reads them has been done.

        Raises:
            DeviceMemoryError: if there is no memory for a batch of this size. Smaller ones still run.
        """
        self._refuse_closed()
        with self._cuda.active(), self._batch(feeds, on_device=on_device, cuda_stream=cuda_stream) as parts:
            if cuda_stream is not None:
                self._run_behind(parts, self._cuda.borrowed_stream(cuda_stream))
                return dict(parts[0].results or {})
            outputs = self._run_in_turn(parts)
            return join(outputs) if parts[0].results is None else dict(parts[0].results)

    def submit(self, feeds: Mapping[str, Any]) -> Future[Outputs]:
        """Start one batch and return its future. Blocks while every slot is in use. See `Backend.submit`.

        Callbacks of the future run on a thread of this backend. They may run or submit batches and close the backend,
        but not wait for another future of it: nobody is left to tell that one.
        """
        completer = self._running_completer()
        with self._cuda.active(), self._batch(feeds, on_device=False, cuda_stream=None) as parts:
            joined = Joined(len(parts))
            try:
                for part in parts:
                    self._hand_over(part, completer, joined)
            except BackendError as error:
                joined.fail(error)
            return joined.future

    def stream(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[Outputs]:
        """Run batches, copying some while others are computed. See `Backend.stream`.

        What `batches` raises, or is refused, is raised in its place: after the results of the batches before it.
        """
        futures: deque[Future[Outputs]] = deque()
        coming = iter(batches)
        failed: Exception | None = None
        while failed is None:
            try:
                feeds = next(coming)
                futures.append(self.submit(feeds))
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - it is raised below
                failed = error
            if len(futures) > self._options.slots:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Wait for the batches in flight, then free everything. A second call does nothing.

        What CUDA refuses to free, as after an error that lost its context, is logged.
        """
        super().close()
        if os.getpid() != self._process:  # what the parent process holds is not this one's to free
            return
        self._ring.drain()
        with self._changing:
            freed_before, self._freed = self._freed, True
        if freed_before:
            return
        with ExitStack() as current:
            with suppress(MilnceError):  # without it the frees below are tried even so
                current.enter_context(self._cuda.active())
            # Graphs and bindings before the contexts and sessions they came from, those before their streams.
            completing = () if self._completer is None else (self._completer.close,)
            steps = (*completing, self._ring.forget, self._free_library, self._ring.close, self._arrivals.close)
            for step in (*steps, self._copier.close):
                self._free(step)

    def _free(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - what comes after it is freed all the same
            # As text: whoever keeps log records must not keep what the error's frames hold.
            _LOG.warning("%s: not everything could be freed: %s", str(self), str(error))

    def _refuse_closed(self) -> None:
        if os.getpid() != self._process:
            raise BackendError(
                f"{self.name}: {self.graph} was opened in process {self._process}, and this is a fork of it, where "
                "CUDA does not work; load the model here, in a process started with the 'spawn' method"
            )
        super()._refuse_closed()

    @contextmanager
    def _batch(self, feeds: Mapping[str, Any], *, on_device: bool, cuda_stream: int | None) -> Iterator[Sequence[Part]]:
        """Check a batch, find out when its arrays on the device may be read, and split it into parts.

        If the block fails, room for results is freed once nothing writes there any more.
        """
        with ExitStack() as resources, ExitStack() as on_error:
            arrays, arrived = self._arrivals.receive(feeds, cuda_stream, resources)
            check_feeds(self.inputs, arrays)
            shapes = {name: tuple(array.shape[1:]) for name, array in arrays.items()}
            count = len(next(iter(arrays.values())))
            largest = self._bucket(count, shapes)
            check_values(arrays, largest.inputs, self._index_limit)
            results = None
            if on_device or cuda_stream is not None:
                results = room(self._cuda, count, largest.outputs, on_error, stream=cuda_stream)
            parts = split(arrays, lambda rows: self._bucket(rows, shapes), arrived=arrived, results=results)
            on_error.callback(settle, parts)
            yield parts
            on_error.pop_all()  # the results are the caller's now

    def _run_in_turn(self, parts: Sequence[Part]) -> list[Outputs]:
        """Run parts and wait for them, with as many under way as there are slots to be had."""
        outputs: list[Outputs] = []
        under_way: deque[Part] = deque()
        try:
            for part in parts:
                # Waiting for a slot while holding others may deadlock, so those are given back first.
                while under_way and part.slot is None:
                    part.slot = self._ring.try_acquire(part.bucket, part)
                    if part.slot is None:
                        outputs.append(finish(self._ring, under_way.popleft()))
                part.slot = part.slot or self._ring.acquire(part.bucket, part)
                self._start(part, part.slot)
                under_way.append(part)
            while under_way:
                outputs.append(finish(self._ring, under_way.popleft()))
        except BaseException:
            self._ring.abandon(parts)
            raise
        return outputs

    def _run_behind(self, parts: Sequence[Part], stream: Stream) -> None:
        """Start parts and let `stream` wait for them; the host does not."""
        completer = self._running_completer()
        for part in parts:
            self._hand_over(part, completer, None, stream)

    def _hand_over(self, part: Part, completer: Completer, joined: Joined | None, behind: Stream | None = None) -> None:
        """Start a part when a slot is free, let the stream `behind` wait for it, and let `completer` complete it."""
        try:
            part.slot = self._ring.acquire(part.bucket, part)
            self._start(part, part.slot)
            if behind is not None:
                behind.wait(part.slot.finished)
            completer.add(part, joined)
        except BaseException:
            self._ring.abandon([part])
            raise

    def _running_completer(self) -> Completer:
        with self._changing:
            self._refuse_closed()
            if self._completer is None:
                self._completer = Completer(self.name, self._ring)
                weakref.finalize(self, self._completer.end)
            return self._completer

    def _start(self, part: Part, slot: Slot) -> None:
        """Enqueue a part's upload, its graph and its download."""
        try:
            upload(part, slot, self._copier)
            slot.uploaded.record(slot.stream)
            with self._enqueueing:
                self._ring.compute.wait(slot.uploaded)
                self._enqueue(slot, part.bucket)
                slot.computed.record(self._ring.compute)
            slot.stream.wait(slot.computed)
            download(part, slot)
            slot.finished.record(slot.stream)
        except MilnceError:
            raise
        except Exception as error:
            raise BackendError(f"{self.name} failed to run {self.graph} with {part.rows} rows: {error}") from error
