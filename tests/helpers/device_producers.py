"""Stand-ins for PyTorch, CuPy, PyCUDA and Numba: they export what those export, over simulated device memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from milnce import dlpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from helpers.fake_cuda import FakeCuda


class Interface:
    """Something with a `__cuda_array_interface__`."""

    def __init__(self, **fields: object) -> None:
        self.__cuda_array_interface__: Any = {"version": 3, "strides": None, "stream": None, **fields}


class Exported:
    """Something with `__dlpack__`, as PyTorch has it: its own stream is waited for when the array is exported.

    The capsule is NumPy's, over the simulated device memory.
    """

    def __init__(self, fake: FakeCuda, array: NDArray[Any], *, kind: int = 2, device: int = 0, stream: int = 0) -> None:
        self.fake, self.array, self.kind, self.device, self.stream = fake, array, kind, device, stream
        self.consumers: list[object] = []
        self.edit: Callable[[dlpack.Tensor], None] = lambda _: None

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.device

    def __dlpack__(self, *, stream: int) -> object:
        self.consumers.append(stream)
        assert self.fake.device == self.device, "PyTorch refuses to export what is on another GPU than the current one"
        if self.stream:
            event = self.fake.cudaEventCreateWithFlags(2)[1]
            assert self.fake.cudaEventRecord(event, self.stream)[0] == 0
            assert self.fake.cudaStreamWaitEvent(stream, event, 0)[0] == 0
            self.fake.cudaEventDestroy(event)
        capsule = self.array.__dlpack__()
        self.edit(dlpack.tensor_of(capsule))
        return capsule


def interface(pointer: int, shape: tuple[int, ...] = (2, 3), typestr: str = "<f4", **fields: object) -> Interface:
    return Interface(data=(pointer, False), shape=shape, typestr=typestr, **fields)


def numbers(fake: FakeCuda, pointer: int, shape: tuple[int, ...] = (2, 3), dtype: str = "float32") -> NDArray[Any]:
    """Return simulated device memory as an array."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return fake.view(pointer, count).view(dtype).reshape(shape)
