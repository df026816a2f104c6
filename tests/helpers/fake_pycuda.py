# ruff: noqa: D102  (methods have the names and the meaning of PyCUDA's)
"""A stand-in for PyCUDA over the simulated GPU: what examples/pycuda_interop.py uses of it, with its semantics.

Names, arguments and behaviour are those of inducer/pycuda 19bed90 (2026.1): pycuda/gpuarray.py and
pycuda/autoprimaryctx.py. `pycuda.autoinit` cannot be imported, as it makes a context of its own.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers import fake_cuda

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from numpy.typing import NDArray

    from helpers.fake_cuda import FakeCuda

_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2


class DeviceAllocation:
    """Memory that is freed when nobody holds it."""

    def __init__(self, fake: FakeCuda, nbytes: int) -> None:
        self._fake = fake
        error, self._pointer = fake.cudaMalloc(nbytes)
        assert error == 0

    def __int__(self) -> int:
        return int(self._pointer)

    def __del__(self) -> None:
        self._fake.cudaFree(self._pointer)


class Stream:
    """`pycuda.driver.Stream`."""

    def __init__(self, fake: FakeCuda) -> None:
        self._fake = fake
        error, self._stream = fake.cudaStreamCreateWithFlags(0)
        assert error == 0

    @property
    def handle(self) -> int:
        return int(self._stream)

    def synchronize(self) -> None:
        assert self._fake.cudaStreamSynchronize(self.handle)[0] == 0

    def __del__(self) -> None:
        self._fake.cudaStreamDestroy(self.handle)


class GPUArray:
    """`pycuda.gpuarray.GPUArray`, C-contiguous."""

    fake: FakeCuda

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,  # noqa: ANN401
        *,
        base: object = None,
        gpudata: Any = None,  # noqa: ANN401
    ) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        self.size = int(np.prod(self.shape, dtype=int))
        self.nbytes = self.size * self.dtype.itemsize
        if gpudata is None:
            gpudata = DeviceAllocation(self.fake, self.nbytes)
            assert base is None
        self.gpudata, self.base = gpudata, base

    @property
    def ptr(self) -> int:
        return int(self.gpudata)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        strides = np.empty(self.shape, self.dtype).strides
        return {
            "shape": self.shape,
            "strides": strides,
            "data": (self.ptr, False),
            "typestr": self.dtype.str,
            "stream": None,
            "version": 3,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[GPUArray]:
        step = self.nbytes // self.shape[0]
        for row in range(self.shape[0]):
            yield GPUArray(self.shape[1:], self.dtype, base=self, gpudata=self.ptr + row * step)

    def set_async(self, array: NDArray[Any], stream: Stream | None = None) -> None:
        assert (array.shape, array.dtype) == (self.shape, self.dtype)
        source = np.ascontiguousarray(array)
        handle = 0 if stream is None else stream.handle
        error = self.fake.cudaMemcpyAsync(self.ptr, source.ctypes.data, self.nbytes, _HOST_TO_DEVICE, handle)[0]
        assert error == 0

    def get(self) -> NDArray[Any]:
        found = np.empty(self.shape, self.dtype)
        assert self.fake.cudaMemcpy(found.ctypes.data, self.ptr, self.nbytes, _DEVICE_TO_HOST)[0] == 0
        return found


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeCuda) -> ModuleType:
    """Put PyCUDA in place for a test, and return its module `pycuda.gpuarray`."""
    package, driver, gpuarray, primary = (
        ModuleType(name) for name in ("pycuda", "pycuda.driver", "pycuda.gpuarray", "pycuda.autoprimaryctx")
    )

    class Array(GPUArray):
        pass

    Array.fake = fake

    def to_gpu_async(array: NDArray[Any], stream: Stream | None = None) -> GPUArray:
        made = Array(array.shape, array.dtype)
        made.set_async(array, stream)
        return made

    def dot(a: GPUArray, b: GPUArray, stream: Stream) -> GPUArray:
        result = Array((), np.float32)
        pointers, nbytes = (a.ptr, b.ptr, result.ptr), a.nbytes

        def kernel() -> None:
            first, second = (fake.view(pointer, nbytes).view(np.float32) for pointer in pointers[:2])
            fake.view(pointers[2], 4).view(np.float32)[:] = first @ second

        accesses = [fake_cuda.reads(pointer, nbytes) for pointer in pointers[:2]]
        assert fake.launch(stream.handle, kernel, accesses=[*accesses, fake_cuda.writes(pointers[2], 4)]) == 0
        return result

    vars(driver).update(Stream=lambda: Stream(fake))
    vars(gpuarray).update(GPUArray=Array, to_gpu_async=to_gpu_async, dot=dot)
    vars(package).update(__path__=[], driver=driver, gpuarray=gpuarray, autoprimaryctx=primary)
    fake.cudaSetDevice(0)  # what autoprimaryctx comes to
    for name, module in (("pycuda", package), ("driver", driver), ("gpuarray", gpuarray), ("autoprimaryctx", primary)):
        monkeypatch.setitem(sys.modules, name if module is package else f"pycuda.{name}", module)
    monkeypatch.setitem(sys.modules, "pycuda.autoinit", None)  # an ImportError
    return gpuarray
