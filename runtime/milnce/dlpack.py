"""Reads what a DLPack capsule says about an array on the GPU, without taking the capsule over.

The capsule stays the array's owner: as long as it lives the memory stays, and its own destructor gives the memory back.
Structures: https://dmlc.github.io/dlpack/latest/c_api.html (DLTensor, unversioned capsules named "dltensor").
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from milnce.errors import InputError

CUDA, CUDA_MANAGED = 2, 13  # DLDeviceType
_KINDS = {0: "int", 1: "uint", 2: "float"}  # DLDataTypeCode
_REFUSED_KINDS = {4: "bfloat", 5: "complex", 6: "bool"}

_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class Tensor(ctypes.Structure):
    """DLTensor of DLPack."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Description:
    """An array in memory.

    Attributes:
        pointer: Address of its first element, 0 if it has none.
        shape: Its shape.
        strides: Bytes from one element to the next along each axis; None if C-contiguous.
        dtype: Its dtype.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str


def tensor_of(capsule: object) -> Tensor:
    """Return the DLTensor in a capsule, as it lies in memory.

    Raises:
        InputError: if it is no unversioned DLPack capsule.
    """
    try:
        return Tensor.from_address(_pointer_of(capsule, b"dltensor"))
    except ValueError as error:
        raise InputError(f"its __dlpack__ gives {capsule!r}, where a capsule named 'dltensor' is expected") from error


def read_capsule(capsule: object) -> Description:
    """Describe the array in a capsule that `__dlpack__` returned. The capsule must outlive the use of the memory.

    Raises:
        InputError: if it is no unversioned DLPack capsule, or of a dtype that is not taken here.
    """
    tensor = tensor_of(capsule)
    dtype = _dtype(tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes)
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = None
    if tensor.strides:  # counted in elements
        strides = tuple(step * np.dtype(dtype).itemsize for step in tensor.strides[: tensor.ndim])
    return Description((tensor.data or 0) + tensor.byte_offset, shape, strides, dtype)


def _dtype(code: int, bits: int, lanes: int) -> str:
    name = f"{_KINDS.get(code) or _REFUSED_KINDS.get(code, f'DLPack type {code}, ')}{bits}"
    if code not in _KINDS or lanes != 1 or bits not in (8, 16, 32, 64) or name == "float8":
        vectors = f" in vectors of {lanes}" if lanes != 1 else ""
        raise InputError(f"its dtype is {name}{vectors}; integers or floating-point numbers of 8 to 64 bits expected")
    return name
