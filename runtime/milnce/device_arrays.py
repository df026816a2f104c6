"""Arrays on the GPU, from PyTorch, CuPy, JAX, PyCUDA or Numba, taken in and handed out without a copy.

Taken in are objects with `__dlpack__` or with `__cuda_array_interface__`, handed out are objects with the latter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.cuda import Cuda
from milnce.dlpack import CUDA, CUDA_MANAGED, Description, read_capsule
from milnce.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce.cuda import Stream

_LEGACY_DEFAULT_STREAM = 1  # cudaStreamLegacy; 0 may be this one or the calling thread's own


class DeviceArray:
    """A C-contiguous array in the memory of a GPU, as PyTorch, CuPy and Numba take it.

    `torch.as_tensor(array, device="cuda")`, `cupy.asarray(array)` and `numba.cuda.as_cuda_array(array)` make arrays of
    theirs over the same memory; `pycuda.gpuarray.GPUArray(array.shape, array.dtype, gpudata=array.pointer, base=array)`
    does. JAX takes it through one of those.

    Attributes:
        pointer: Its address, 0 if it has no elements.
        shape: Its shape.
        dtype: Its dtype.
        device: Index of the GPU.
        owner: What owns the memory. It lives as long as this object.
        stream: Handle of the stream whose work completes the array; None if it is complete.
    """

    def __init__(
        self,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        device: int,
        owner: object,
        stream: int | None = None,
    ) -> None:
        self.pointer = pointer
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.device = device
        self.owner = owner
        self.stream = stream

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html."""
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream or (None if self.stream is None else _LEGACY_DEFAULT_STREAM),
        }

    def __array__(self, dtype: object = None, copy: object = None) -> NDArray[Any]:
        raise InputError(f"{self!r} is on the GPU; copy_to_host() gives a numpy.ndarray")

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def copy_to_host(self) -> NDArray[Any]:
        """Return a copy in host memory, waiting for the stream that completes the array.

        Raises:
            CudaError: if the copy fails, or the work before it did.
        """
        copy = np.empty(self.shape, self.dtype)
        if self.nbytes == 0:
            return copy
        cuda = Cuda(self.device)
        with cuda.stream() as stream:
            if self.stream is not None:
                _order(cuda, stream, self.stream)
            cuda.download(copy.ctypes.data, self.pointer, self.nbytes, stream)
            stream.synchronize()
        return copy


def is_device_array(value: object) -> bool:
    """Whether `value` is an array on a GPU: by its `__dlpack_device__`, or by its `__cuda_array_interface__`.

    An array that has one of these and will not be exported (a tensor that requires a gradient) is one; a tensor of
    PyTorch on the CPU is none.
    """
    kind = _dlpack_device(value)[0]
    if kind is not None:
        return kind in (CUDA, CUDA_MANAGED)
    try:
        return getattr(value, "__cuda_array_interface__", None) is not None
    except Exception:  # noqa: BLE001 - it has the property, and refuses for reasons that as_device_array repeats
        return True


def as_device_array(value: object, cuda: Cuda, stream: Stream, *, name: str = "array") -> DeviceArray:
    """Take an array that another library holds on the GPU, without a copy.

    What is enqueued in `stream` afterwards comes after the work that fills the array: after the current stream of
    PyTorch, CuPy or JAX, after the stream that a `__cuda_array_interface__` names, or after the default stream where
    it names none. (By the letter of the interface nothing needs to be waited for then, but PyCUDA and Numba name none
    for arrays that their kernels still write in the default stream.)

    Args:
        value: The array; C-contiguous, of integers or floating-point numbers.
        cuda: The GPU on which it must be.
        stream: Where it will be read.
        name: What to call it in errors.

    Returns:
        An array over the same memory, which keeps `value` alive.

    Raises:
        InputError: if it is on another GPU or in host memory, not C-contiguous, of another dtype, or not to be had
            (it requires a gradient; its interface is not valid).
    """
    try:
        return _taken(value, cuda, stream)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error.__cause__


def _taken(value: object, cuda: Cuda, stream: Stream) -> DeviceArray:
    kind, device = _dlpack_device(value)
    if kind is None:
        return _checked(_from_interface(value, cuda, stream), value, cuda)
    if kind not in (CUDA, CUDA_MANAGED):
        raise InputError(f"this {_type(value)} is not on an NVIDIA GPU (its DLPack device is {kind})")
    _check_device(device, cuda)
    cuda.activate()  # PyTorch exports only what is on the current device
    owner, found = _from_dlpack(value, stream)
    return _checked(found, owner, cuda)


def _from_dlpack(value: Any, stream: Stream) -> tuple[object, Description]:  # noqa: ANN401 - whatever has __dlpack__
    """Let the producer order `stream` after its own, and describe its memory."""
    try:
        capsule = value.__dlpack__(stream=stream.handle or _LEGACY_DEFAULT_STREAM)
    except Exception as error:
        raise InputError(f"this {_type(value)} cannot be exported: {error}") from error
    return (value, capsule), read_capsule(capsule)


def _from_interface(value: Any, cuda: Cuda, stream: Stream) -> Description:  # noqa: ANN401 - whatever has the property
    try:
        interface = value.__cuda_array_interface__
    except Exception as error:
        raise InputError(f"this {_type(value)} cannot be exported: {error}") from error
    try:
        pointer, shape, strides = interface["data"][0], interface["shape"], interface.get("strides")
        found = Description(
            0 if pointer is None else int(pointer),
            tuple(int(size) for size in shape),
            None if strides is None else tuple(int(step) for step in strides),
            _number(str(interface["typestr"])),
        )
        producer = interface.get("stream")
        producer = _LEGACY_DEFAULT_STREAM if producer is None else int(producer)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the __cuda_array_interface__ of this {_type(value)} is not valid ({type(error).__name__}: {error})"
        ) from error
    if interface.get("mask") is not None:
        raise InputError(f"this {_type(value)} has a mask; fill the masked elements first")
    if producer <= 0:
        raise InputError(
            f"the __cuda_array_interface__ of this {_type(value)} names stream {producer}, which is forbidden there: "
            "1 is the default stream, and larger numbers are handles"
        )
    _order(cuda, stream, producer)
    return found


def _number(typestr: str) -> str:
    """Return NumPy's name of a dtype given by its type string, such as "<f4"."""
    dtype = np.dtype(typestr)
    if dtype.kind not in "iuf" or not dtype.isnative:
        name = "bfloat16" if typestr == "<V2" else dtype  # as PyTorch and ml_dtypes write it
        raise InputError(f"its dtype is {name}; integers or floating-point numbers of this machine expected")
    return dtype.name


def _checked(found: Description, owner: object, cuda: Cuda) -> DeviceArray:
    dtype = np.dtype(found.dtype)
    if min(found.shape, default=0) < 0:
        raise InputError(f"its shape is {found.shape}")
    array = DeviceArray(found.pointer, found.shape, dtype, device=cuda.info.index, owner=owner)
    if array.nbytes == 0:
        return array
    if not _contiguous(found, dtype.itemsize):
        raise InputError(
            f"shape {found.shape} with strides of {found.strides} bytes is not C-contiguous; "
            "make it so with .contiguous() (PyTorch) or ascontiguousarray (CuPy)"
        )
    device = cuda.device_of(found.pointer)
    if device is None:
        raise InputError("it is in host memory, behind an interface for arrays on the GPU; give a numpy.ndarray")
    _check_device(device, cuda)
    return array


def _check_device(device: int, cuda: Cuda) -> None:
    if device != cuda.info.index:
        raise InputError(
            f"it is on GPU {device}, and the model runs on GPU {cuda.info.index} ({cuda.info.name}); "
            "copy it there, or load the model on its GPU"
        )


def _contiguous(found: Description, itemsize: int) -> bool:
    """Whether the strides are those of a C-contiguous array; along an axis of one element any stride is."""
    if found.strides is None:
        return True
    if len(found.strides) != len(found.shape):
        return False
    expected = itemsize
    for size, step in zip(reversed(found.shape), reversed(found.strides), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _order(cuda: Cuda, stream: Stream, producer: int) -> None:
    """Let `stream` wait for what is enqueued in the stream with the handle `producer`."""
    if producer == stream.handle:
        return
    with cuda.event() as event:
        event.record(cuda.borrowed_stream(producer))
        stream.wait(event)


def _dlpack_device(value: Any) -> tuple[int | None, int]:  # noqa: ANN401 - anything may be asked
    """Return (kind of device, index) as DLPack numbers them; the kind is None if `value` does not say."""
    try:
        kind, index = value.__dlpack_device__()
        return int(kind), int(index)
    except Exception:  # noqa: BLE001 - it has none, lies on several devices, or is a class and no array
        return None, 0


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
