"""What a GPU lends: buffers, streams, events and graphs, each given back once, by close() or when it is forgotten."""

from __future__ import annotations

import logging
import math
import weakref
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import BackendError, CudaError, InputError, MilnceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from milnce.cuda import Cuda

_LOG = logging.getLogger("milnce.cuda")


class _Resource:
    """Something to give back: by close(), at the end of a with block, when forgotten, or when the program ends."""

    def __init__(self, cuda: Cuda, release: Callable[[], None]) -> None:
        self._cuda = cuda
        self._finalizer = weakref.finalize(self, _quietly, release)

    def close(self) -> None:
        """Give it back. A second call does nothing.

        Raises:
            CudaError: if CUDA refuses, as it does after an error that loses the context.
        """
        last = self._finalizer.detach()
        if last is not None:
            (release,) = last[2]
            release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with suppress(CudaError):  # the error under way says more
                self.close()

    def _refuse_closed(self) -> None:
        if not self._finalizer.alive:
            raise BackendError(f"this {type(self).__name__} is closed")


class DeviceBuffer(_Resource):
    """Device memory.

    Attributes:
        nbytes: Its size.
    """

    def __init__(self, cuda: Cuda, pointer: int, nbytes: int) -> None:
        super().__init__(cuda, partial(_free, cuda, "cudaFree", pointer, device_bytes=nbytes))
        self.nbytes = nbytes
        self._pointer = pointer

    @property
    def pointer(self) -> int:
        """Its address on the GPU, 0 if it has no bytes.

        Raises:
            BackendError: if it is closed.
        """
        self._refuse_closed()
        return self._pointer


class PinnedBuffer(_Resource):
    """Page-locked host memory, seen through `array`.

    Attributes:
        nbytes: Its size.
    """

    def __init__(self, cuda: Cuda, pointer: int, nbytes: int) -> None:
        super().__init__(cuda, partial(_free, cuda, "cudaFreeHost", pointer, pinned_bytes=nbytes))
        self.nbytes = nbytes
        self._pointer = pointer

    @property
    def pointer(self) -> int:
        """Its address on the host, 0 if it has no bytes.

        Raises:
            BackendError: if it is closed.
        """
        self._refuse_closed()
        return self._pointer

    def array(self, dtype: str, shape: tuple[int, ...], offset: int = 0) -> NDArray[Any]:
        """Return this memory as an array, without a copy.

        An array keeps the buffer from being forgotten. But close() frees the memory under it, and reading the array
        after that may end the process: close a buffer when nobody holds its arrays.

        Args:
            dtype: NumPy's name of the dtype.
            shape: Its shape.
            offset: Where it begins, in bytes; a multiple of the dtype's size.

        Raises:
            InputError: if it does not lie within the buffer, or not on a multiple of the dtype's size.
            BackendError: if the buffer is closed.
        """
        item = np.dtype(dtype)
        nbytes = math.prod(shape) * item.itemsize
        if min(shape, default=1) < 0 or offset < 0 or offset + nbytes > self.nbytes or offset % item.itemsize:
            raise InputError(
                f"a {dtype} array of shape {shape} at byte {offset} does not fit a pinned buffer of {self.nbytes} "
                f"bytes; it must begin at a multiple of {item.itemsize} and take at most what follows"
            )
        if nbytes == 0:
            return np.empty(shape, item)  # NumPy 2.2 takes no null address
        return np.asarray(_Window(self, self.pointer + offset, item, shape))


class _Window:
    """What NumPy keeps as the base of an array in pinned memory."""

    def __init__(self, buffer: PinnedBuffer, pointer: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._buffer = buffer
        self.__array_interface__ = {"version": 3, "data": (pointer, False), "typestr": dtype.str, "shape": shape}


class Event(_Resource):
    """A point in a stream, to wait for."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        super().__init__(cuda, partial(cuda.release, "cudaEventDestroy", handle))
        self._handle = handle

    @property
    def handle(self) -> int:
        """Its handle (cudaEvent_t).

        Raises:
            BackendError: if it is closed.
        """
        self._refuse_closed()
        return self._handle

    @property
    def done(self) -> bool:
        """Whether the work before it has been done; True before it is recorded.

        Raises:
            CudaError: if that work failed.
        """
        return self._cuda.event_done(self.handle)

    def record(self, stream: Stream) -> None:
        """Put it behind the work enqueued in `stream` so far."""
        self._cuda.call("cudaEventRecord", self.handle, stream.handle)

    def synchronize(self) -> None:
        """Wait, on the host, until the work before it has been done.

        Raises:
            CudaError: if that work failed.
        """
        self._cuda.call("cudaEventSynchronize", self.handle)

    def elapsed_ms(self, since: Event) -> float:
        """Return the milliseconds from `since` to this event; both were made with timing and have been done."""
        return float(self._cuda.call("cudaEventElapsedTime", since.handle, self.handle))


class Graph(_Resource):
    """Work captured once, to launch as a whole. It uses the addresses that were captured."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        super().__init__(cuda, partial(cuda.release, "cudaGraphExecDestroy", handle))
        self._handle = handle

    def launch(self, stream: Stream) -> None:
        """Enqueue all of it in `stream`."""
        self._refuse_closed()
        self._cuda.call("cudaGraphLaunch", self._handle, stream.handle)


class Capture:
    """A graph in the making."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def set(self, graph: Graph) -> None:
        """Keep what was captured."""
        self._graph = graph

    @property
    def graph(self) -> Graph:
        """What was captured, once the with block has ended.

        Raises:
            BackendError: before that.
        """
        if self._graph is None:
            raise BackendError("the graph is not captured yet; take it after the with block")
        return self._graph


class Stream(_Resource):
    """A queue of work on the GPU, done in order. A borrowed one stays open when this object is closed."""

    def __init__(self, cuda: Cuda, handle: int, *, owned: bool) -> None:
        super().__init__(cuda, partial(cuda.release, "cudaStreamDestroy", handle) if owned else _nothing)
        self._handle = handle

    @property
    def handle(self) -> int:
        """Its handle (cudaStream_t), 0 for the default stream.

        Raises:
            BackendError: if it is closed.
        """
        self._refuse_closed()
        return self._handle

    def synchronize(self) -> None:
        """Wait, on the host, until all that was enqueued has been done.

        Raises:
            CudaError: if some of it failed.
        """
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on wait for `event`, as it was recorded last. The host does not wait."""
        self._cuda.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Capture what the with block enqueues in this stream, in place of doing it.

        The mode is thread-local: other threads go on using CUDA. An error in the block ends the capture and leaves
        nothing behind.

        Returns:
            An object whose `graph` is there once the block has ended.

        Raises:
            CudaError: if a call in the block cannot be captured.
        """
        capture = Capture()
        self._cuda.begin_capture(self.handle)
        try:
            yield capture
        except BaseException:
            with suppress(MilnceError):  # a capture that something broke ends with an error and gives no graph
                self._end_capture().close()
            raise
        template = self._end_capture()
        with template:
            graph = Graph(self._cuda, int(self._cuda.call("cudaGraphInstantiate", template.handle, 0)))
        capture.set(graph)

    def _end_capture(self) -> _Template:
        return _Template(self._cuda, int(self._cuda.call("cudaStreamEndCapture", self.handle)))


class _Template(_Resource):
    """What a capture gives: a graph's nodes (cudaGraph_t), to make one from that can be launched."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        super().__init__(cuda, partial(cuda.release, "cudaGraphDestroy", handle))
        self.handle = handle


def _free(cuda: Cuda, name: str, pointer: int, **nbytes: int) -> None:
    if pointer:
        cuda.release(name, pointer, **nbytes)


def _nothing() -> None:
    """Give nothing back."""


def _quietly(release: Callable[[], None]) -> None:
    """Release what was forgotten, where nobody could catch an error."""
    try:
        release()
    except MilnceError as error:
        _LOG.debug("what was forgotten could not be released: %s", error)
