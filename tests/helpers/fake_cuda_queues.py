# ruff: noqa: N802, D102  (the functions have the names and the meaning of the binding they stand in for)
"""Streams and events of the simulated CUDA runtime."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, SupportsInt, TypeVar

from cuda.bindings import runtime

from helpers.fake_cuda_calls import Calls, CudaFailureError, Error, Result, api
from helpers.fake_cuda_streams import Event, GraphExec, Node, Stream, merge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from helpers.fake_cuda_streams import Operation

    Handle = SupportsInt

T = TypeVar("T")
LEGACY, _PER_THREAD = (0, 1), 2
_LAZY_QUERIES = 2  # the second query of an event under "lazy" finds it done
_MS_PER_OPERATION = 0.25


def _nothing() -> None:
    """Do the work of a mark in a stream."""


class QueueCalls(Calls):
    """Streams and events, and what is in a capture or a graph."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  the options of Calls, handed on
        super().__init__(**options)
        self._handles = itertools.count(0x7000_0000, 0x10)
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, tuple[Node, ...]] = {}
        self.executables: dict[int, GraphExec] = {}
        self._defaults: dict[tuple[int, int], Stream] = {}

    # Streams

    @api(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Result:
        blocking = int(flags) != runtime.cudaStreamNonBlocking
        stream = Stream(next(self._handles), self.device, blocking)
        self.streams[stream.handle] = stream
        return (runtime.cudaStream_t(stream.handle),)

    @api(1)
    def cudaStreamCreate(self) -> Result:
        stream = Stream(next(self._handles), self.device, blocking=True)
        self.streams[stream.handle] = stream
        return (runtime.cudaStream_t(stream.handle),)

    @api(anyway=True)
    def cudaStreamDestroy(self, stream: Handle) -> Result:
        found = self.taken(self.streams, stream, "stream")
        if found.capture is not None:
            found.capture.invalid = True
        del self.streams[found.handle]
        return ()

    @api()
    def cudaStreamSynchronize(self, stream: Handle) -> Result:
        self.wait_for_stream(self.stream_of(stream))
        return ()

    @api()
    def cudaStreamQuery(self, stream: Handle) -> Result:
        found = self.stream_of(stream)
        self._refuse_capturing(found)
        if found.last is not None and not found.last.done:
            if self._scheduler.policy == "lazy":
                self._scheduler.force(found.last)
            raise CudaFailureError(Error.cudaErrorNotReady)
        self._scheduler.host_waited(found.clock)
        return ()

    @api()
    def cudaStreamWaitEvent(self, stream: Handle, event: Handle, flags: int) -> Result:
        del flags
        found, mark = self.stream_of(stream), self.taken(self.events, event, "event")
        if mark.capture is not None:
            if mark.capture not in self.captures:
                raise CudaFailureError(Error.cudaErrorCapturedEvent)
            if found.capture not in (None, mark.capture):
                mark.capture.invalid = True
                raise CudaFailureError(Error.cudaErrorStreamCaptureMerge)
            mark.capture.join(found, mark.clock)
        elif mark.operation is not None:
            if found.capture is not None:
                found.capture.invalid = True
                raise CudaFailureError(Error.cudaErrorStreamCaptureIsolation)
            merge(found.clock, mark.clock)
            self.enqueue(found, Node("wait", _nothing, ()), (mark.operation,))
        return ()

    def wait_for_stream(self, stream: Stream) -> None:
        """Run everything queued on `stream`; the host knows it then.

        Raises:
            CudaFailureError: the stream captures, or an operation faulted.
        """
        self._refuse_capturing(stream)
        for one in self._ordered_with(stream):
            if one.last is not None:
                self._scheduler.force(one.last)
            self._scheduler.host_waited(one.clock)
        self.raise_fault(stream.device)

    def enqueue(self, stream: Stream, node: Node, after: Iterable[Operation | None] = ()) -> Operation | None:
        """Queue `node`, or record it in the capture of `stream` (None then).

        Raises:
            CudaFailureError: the capture is broken, or cannot be ordered with the default stream.
        """
        if stream.capture is not None:
            if stream.capture.invalid:
                raise CudaFailureError(Error.cudaErrorStreamCaptureInvalidated)
            stream.capture.add(stream, node)
            return None
        others = [other for other in self._ordered_with(stream) if other is not stream]
        for other in others:
            if other.capture is not None:
                other.capture.invalid = True
                raise CudaFailureError(Error.cudaErrorStreamCaptureImplicit)
            merge(stream.clock, other.clock)
        return self._scheduler.add(stream, node, [*after, *[other.last for other in others]])

    def _ordered_with(self, stream: Stream) -> list[Stream]:
        """Return `stream` and those which the default stream's old rule orders it with."""
        legacy = self._default(LEGACY[0], stream.device)
        if not stream.blocking:
            return [stream]
        if stream is not legacy:
            return [legacy, stream]
        every = [*self.streams.values(), *self._defaults.values()]
        return [one for one in every if one.blocking and one.device == stream.device]

    def _default(self, key: int, device: int) -> Stream:
        if (key, device) not in self._defaults:
            self._defaults[key, device] = Stream(next(self._handles), device, blocking=True)
        return self._defaults[key, device]

    def stream_of(self, handle: Handle) -> Stream:
        """Return a stream by its handle; 0 and 1 are the default stream, 2 that of the thread."""
        number = int(handle)
        if number in LEGACY:
            return self._default(0, self.device)
        if number == _PER_THREAD:
            return self._default(threading.get_ident(), self.device)
        return self.taken(self.streams, handle, "stream")

    def taken(self, table: dict[int, T], handle: Handle, what: str) -> T:
        """Return the object of `handle`; one that never was, or was destroyed, is a violation."""
        found = table.get(int(handle))
        if found is None:
            self.violations.append(f"{self.calls[-1].name} was given {int(handle):#x}, which is no live {what}")
            raise CudaFailureError(Error.cudaErrorInvalidResourceHandle)
        return found

    def _refuse_capturing(self, stream: Stream) -> None:
        for one in self._ordered_with(stream):
            if one.capture is not None:
                one.capture.invalid = True
                raise CudaFailureError(Error.cudaErrorStreamCaptureUnsupported)

    # Events

    @api(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Result:
        timing = not int(flags) & runtime.cudaEventDisableTiming
        event = Event(next(self._handles), self.device, timing)
        self.events[event.handle] = event
        return (runtime.cudaEvent_t(event.handle),)

    @api(1)
    def cudaEventCreate(self) -> Result:
        event = Event(next(self._handles), self.device, timing=True)
        self.events[event.handle] = event
        return (runtime.cudaEvent_t(event.handle),)

    @api(anyway=True)
    def cudaEventDestroy(self, event: Handle) -> Result:
        del self.events[self.taken(self.events, event, "event").handle]
        return ()

    @api()
    def cudaEventRecord(self, event: Handle, stream: Handle) -> Result:
        mark, found = self.taken(self.events, event, "event"), self.stream_of(stream)
        if mark.device != found.device:
            raise CudaFailureError(Error.cudaErrorInvalidResourceHandle)
        mark.queries = 0
        mark.capture = found.capture
        mark.operation = self.enqueue(found, Node("event record", _nothing, ()))
        mark.clock = dict(found.clock if found.capture is None else found.capture.clocks[found.handle])
        return ()

    @api(unsafe=True)
    def cudaEventSynchronize(self, event: Handle) -> Result:
        mark = self._uncaptured(event)
        if mark.operation is not None:
            self._scheduler.force(mark.operation)
            self._scheduler.host_waited(mark.clock)
        self.raise_fault(mark.device)
        return ()

    @api(unsafe=True)
    def cudaEventQuery(self, event: Handle) -> Result:
        mark = self._uncaptured(event)
        mark.queries += 1
        if mark.operation is not None and not mark.operation.done:
            if self._scheduler.policy != "lazy" or mark.queries < _LAZY_QUERIES:
                raise CudaFailureError(Error.cudaErrorNotReady)
            self._scheduler.force(mark.operation)
        self._scheduler.host_waited(mark.clock)
        self.raise_fault(mark.device)
        return ()

    @api(1)
    def cudaEventElapsedTime(self, start: Handle, end: Handle) -> Result:
        marks = [self._uncaptured(start), self._uncaptured(end)]
        finished = []
        for mark in marks:
            if mark.operation is None or not mark.timing:
                raise CudaFailureError(Error.cudaErrorInvalidResourceHandle)
            if not mark.operation.done:
                raise CudaFailureError(Error.cudaErrorNotReady)
            finished.append(mark.operation.finished_at)
        return ((finished[1] - finished[0]) * _MS_PER_OPERATION,)

    def _uncaptured(self, event: Handle) -> Event:
        mark = self.taken(self.events, event, "event")
        if mark.capture is not None:
            mark.capture.invalid = True
            raise CudaFailureError(Error.cudaErrorCapturedEvent)
        return mark
