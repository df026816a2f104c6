"""What is given to a backend on a GPU: arrays on the host or on the device, when they may be read, and their values."""

from __future__ import annotations

from threading import Condition
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.device_arrays import DeviceArray, as_device_array, is_device_array
from milnce.errors import BackendError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from numpy.typing import NDArray

    from milnce.backends.layouts import Layout
    from milnce.cuda import Cuda, Event

    Arrays = Mapping[str, NDArray[Any] | DeviceArray]


class Arrivals:
    """Takes arrays in, and knows when those on the device may be read: one stream that waits for their producers."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.stream()
        self._condition = Condition()
        self._visitors: set[object] = set()
        self._closed = False

    def receive(
        self, feeds: Mapping[str, Any], caller: int | None, resources: ExitStack
    ) -> tuple[Arrays, Event | None]:
        """Return the arrays of `feeds`, those on the device without a copy, and the event after which they are there.

        Args:
            feeds: What was given.
            caller: Handle of the caller's stream; what it holds now comes before the event.
            resources: Closes the event.

        Returns:
            The arrays, and the event, or None if everything is on the host and there is no `caller`.

        Raises:
            InputError: for what is no array, an array on the device that cannot be read there, or a `caller` that is
                being captured into a graph.
            CudaError: if `caller` is no stream of this GPU.
            BackendError: if this is closed.
        """
        if caller is None and all(isinstance(value, np.ndarray) for value in feeds.values()):
            return feeds, None
        visitor = object()
        try:
            with self._condition:
                if self._closed:
                    raise BackendError("the model was closed while in use; load it again")
                self._visitors.add(visitor)
            arrays = {name: self._array(name, value) for name, value in feeds.items()}
            arrived = resources.enter_context(self._cuda.event())
            self._mark(arrived, caller)
            return arrays, arrived
        finally:
            with self._condition:
                self._visitors.discard(visitor)
                self._condition.notify_all()

    def close(self) -> None:
        """Give the stream back, once nobody is in `receive`."""
        with self._condition:
            self._closed = True
            self._condition.wait_for(lambda: not self._visitors)
        self._stream.close()

    def _mark(self, arrived: Event, caller: int | None) -> None:
        if caller is not None:
            stream = self._cuda.borrowed_stream(caller)
            if int(self._cuda.call("cudaStreamIsCapturing", stream.handle)) != 0:
                raise InputError(
                    f"cuda_stream: {caller:#x} is being captured into a CUDA graph; run batches outside of captures"
                )
            with self._cuda.event() as reached:
                reached.record(stream)
                self._stream.wait(reached)
        arrived.record(self._stream)

    def _array(self, name: str, value: Any) -> NDArray[Any] | DeviceArray:  # noqa: ANN401 - anything may be given
        if isinstance(value, np.ndarray):
            return value
        if is_device_array(value):
            return as_device_array(value, self._cuda, self._stream, name=name)
        raise InputError(f"{name}: a numpy.ndarray or an array on the GPU expected, {type(value).__name__} given")


def check_values(arrays: Arrays, held: Layout, index_limit: int | None) -> None:
    """Refuse what a GPU does not refuse but computes with: ids outside the table that they point into.

    TensorRT and ONNX Runtime's CUDA provider give zeros for such ids, or what lies beside the table. Ids that are on
    the device are not looked at.

    Args:
        arrays: A batch, of the names, dtypes and shapes that the backend takes.
        held: How the library holds it: TensorRT 8.5 takes int64 ids as int32.
        index_limit: Rows of the table; None if unknown.

    Raises:
        InputError: naming the tensor, the id and the range.
    """
    for name, array in arrays.items():
        if isinstance(array, DeviceArray):
            if array.dtype != held.dtypes[name]:
                raise InputError(
                    f"{name}: {array.dtype} given on the GPU, where this plan takes {held.dtypes[name]}; "
                    "give a numpy.ndarray, which is converted"
                )
        elif array.dtype.kind == "i":
            most = int(np.iinfo(held.dtypes[name]).max) if index_limit is None else index_limit - 1
            lowest, highest = int(array.min()), int(array.max())
            if lowest < 0 or highest > most:
                wrong = lowest if lowest < 0 else highest
                raise InputError(
                    f"{name}: id {wrong} given; ids are 0 (padding) to {most}, as the tokenizer gives them"
                )


def room(cuda: Cuda, count: int, layout: Layout, on_error: ExitStack, *, stream: int | None) -> dict[str, DeviceArray]:
    """Allocate `count` rows of results on the device.

    Args:
        cuda: The GPU.
        count: Rows.
        layout: The outputs of a bucket, for their names, dtypes and rows.
        on_error: Frees them, unless its callbacks are taken away.
        stream: Handle of the caller's stream in whose order they are complete; None if that is waited for.

    Raises:
        DeviceMemoryError: if there is no memory, or the declared limit would be passed.
    """
    results = {}
    for name, shape in layout.shapes.items():
        buffer = on_error.enter_context(cuda.device_buffer(count * layout.row_bytes(name)))
        dtype, whole = np.dtype(layout.dtypes[name]), (count, *shape[1:])
        results[name] = DeviceArray(buffer.pointer, whole, dtype, device=cuda.info.index, owner=buffer, stream=stream)
    return results
