# ruff: noqa: D102, ANN401  (methods are the protocol's, which says what they do; arrays of no typed library)
"""Libraries whose arrays live on the GPU, each behind the same few calls: PyTorch, CuPy, PyCUDA, a bare one."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from milnce.cuda import Cuda
from milnce.device_arrays import DeviceArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from milnce.cuda import Stream

# Work that keeps a GPU busy for some milliseconds, so that what does not wait for it is seen to be too early.
_BUSY_BYTES, _BUSY_TURNS = 2**24, 200


class Producer(Protocol):
    """A library with arrays on the GPU. Its arrays are of type Any here: no library is typed."""

    def upload(self, host: NDArray[Any]) -> Any:
        """Return a copy on the GPU, complete when this returns."""

    def download(self, array: Any) -> NDArray[Any]:
        """Return a copy on the host, after the work of the current stream."""

    def pointer(self, array: Any) -> int:
        """Return the address."""

    def view(self, array: DeviceArray) -> Any:
        """Return an array of the library over the same memory."""

    def not_contiguous(self, array: Any) -> Any | None:
        """Return a view with gaps, or None if the library has none."""

    def stream(self) -> Any:
        """Return a context manager that makes a new stream current and gives its handle."""

    def write_late(self, array: Any, source: Any) -> None:
        """Enqueue on the current stream: long work, then `array` becomes a copy of `source`."""


class Bare:
    """The least an array on the GPU can be: an object with `__cuda_array_interface__` and a dtype."""

    class Array:
        """One array, whose interface names the stream that fills it."""

        def __init__(self, array: DeviceArray, stream: Stream | None, strides: tuple[int, ...] | None = None) -> None:
            self.array, self.stream, self.strides = array, stream, strides

        @property
        def dtype(self) -> np.dtype[Any]:
            return self.array.dtype

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            found = dict(self.array.__cuda_array_interface__)
            if self.stream is not None:
                found["stream"] = self.stream.handle
            if self.strides is not None:
                shape = found["shape"]
                found |= {"strides": self.strides, "shape": (shape[0] // 2, *shape[1:])}
            return found

    def __init__(self) -> None:
        self._cuda = Cuda()
        self._current: Stream | None = None
        self._busy = self._cuda.device_buffer(_BUSY_BYTES)  # kept, since freeing waits for the GPU

    def upload(self, host: NDArray[Any]) -> Array:
        buffer = self._cuda.device_buffer(host.nbytes)
        with self._cuda.stream() as stream, self._cuda.pinned_buffer(host.nbytes) as staged:
            staged.array(host.dtype.name, host.shape)[:] = host
            self._cuda.upload(buffer.pointer, staged.pointer, host.nbytes, stream)
            stream.synchronize()
        array = DeviceArray(buffer.pointer, host.shape, host.dtype, device=self._cuda.info.index, owner=buffer)
        return self.Array(array, self._current)

    def download(self, array: Array) -> NDArray[Any]:
        if self._current is not None:
            self._current.synchronize()
        return array.array.copy_to_host()

    def pointer(self, array: Array) -> int:
        return array.array.pointer

    def view(self, array: DeviceArray) -> Array:
        return self.Array(array, self._current)

    def not_contiguous(self, array: Array) -> Array:
        shape, size = array.array.shape, array.array.dtype.itemsize
        steps = [size * int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        return self.Array(array.array, self._current, (2 * steps[0], *steps[1:]))

    @contextmanager
    def stream(self) -> Iterator[int]:
        with self._cuda.stream() as stream:
            self._current = stream
            try:
                yield stream.handle
            finally:
                stream.synchronize()
                self._current = None

    def write_late(self, array: Array, source: Array) -> None:
        assert self._current is not None, "a stream is needed"
        for turn in range(_BUSY_TURNS):
            self._cuda.fill(self._busy.pointer, turn, _BUSY_BYTES, self._current)
        self._cuda.copy(array.array.pointer, source.array.pointer, array.array.nbytes, self._current)
        array.stream = self._current


class Torch:
    """PyTorch's tensors, which are taken by DLPack."""

    def __init__(self) -> None:
        self._torch: Any = import_module("torch")

    def upload(self, host: NDArray[Any]) -> Any:
        tensor = self._torch.from_numpy(np.ascontiguousarray(host)).to("cuda")
        self._torch.cuda.synchronize()
        return tensor

    def download(self, array: Any) -> NDArray[Any]:
        return np.asarray(array.cpu().numpy())

    def pointer(self, array: Any) -> int:
        return int(array.data_ptr())

    def view(self, array: DeviceArray) -> Any:
        return self._torch.as_tensor(array, device="cuda")

    def not_contiguous(self, array: Any) -> Any:
        return array[::2]

    @contextmanager
    def stream(self) -> Iterator[int]:
        stream = self._torch.cuda.Stream()
        with self._torch.cuda.stream(stream):
            yield int(stream.cuda_stream)
        stream.synchronize()

    def write_late(self, array: Any, source: Any) -> None:
        busy = self._torch.empty(_BUSY_BYTES, dtype=self._torch.uint8, device="cuda")
        for turn in range(_BUSY_TURNS):
            busy.fill_(turn)
        array.copy_(source)


class CuPy:
    """CuPy's arrays."""

    def __init__(self) -> None:
        self._cupy: Any = import_module("cupy")

    def upload(self, host: NDArray[Any]) -> Any:
        array = self._cupy.asarray(host)
        self._cupy.cuda.get_current_stream().synchronize()
        return array

    def download(self, array: Any) -> NDArray[Any]:
        return np.asarray(self._cupy.asnumpy(array))

    def pointer(self, array: Any) -> int:
        return int(array.data.ptr)

    def view(self, array: DeviceArray) -> Any:
        return self._cupy.asarray(array)

    def not_contiguous(self, array: Any) -> Any:
        return array[::2]

    @contextmanager
    def stream(self) -> Iterator[int]:
        stream = self._cupy.cuda.Stream(non_blocking=True)
        with stream:
            yield int(stream.ptr)
        stream.synchronize()

    def write_late(self, array: Any, source: Any) -> None:
        busy = self._cupy.empty(_BUSY_BYTES, dtype=self._cupy.uint8)
        for turn in range(_BUSY_TURNS):
            busy.fill(turn)
        array[...] = source


class PyCuda:
    """PyCUDA's GPUArrays, in the device's primary context. Their kernels run in the default stream unless told."""

    def __init__(self) -> None:
        self._context: Any = import_module("pycuda.autoprimaryctx").context
        self._driver: Any = import_module("pycuda.driver")
        self._gpuarray: Any = import_module("pycuda.gpuarray")
        self._busy: Any = None  # kept, since freeing waits for the GPU

    def upload(self, host: NDArray[Any]) -> Any:
        return self._gpuarray.to_gpu(np.ascontiguousarray(host))

    def download(self, array: Any) -> NDArray[Any]:
        return np.asarray(array.get())

    def pointer(self, array: Any) -> int:
        return int(array.gpudata)

    def view(self, array: DeviceArray) -> Any:
        return self._gpuarray.GPUArray(array.shape, array.dtype, gpudata=array.pointer, base=array)

    def not_contiguous(self, array: Any) -> None:
        del array  # its views of every second row are not to be had for all ranks

    @contextmanager
    def stream(self) -> Iterator[int]:
        yield 0  # GPUArrays name no stream: the default one is theirs
        self._context.synchronize()

    def write_late(self, array: Any, source: Any) -> None:
        self._busy = self._busy or self._driver.mem_alloc(_BUSY_BYTES)
        for turn in range(_BUSY_TURNS):
            self._driver.memset_d8_async(self._busy, turn, _BUSY_BYTES)
        self._driver.memcpy_dtod_async(array.gpudata, source.gpudata, array.nbytes)


PRODUCERS: dict[str, type[Producer]] = {"cuda": Bare, "torch": Torch, "cupy": CuPy, "pycuda": PyCuda}
