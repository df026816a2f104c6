"""Enums, shapes and loggers of the stand-in for TensorRT, with the names and values of the Python bindings."""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_DIMS = 8


class BoundEnum(enum.Enum):
    """As pybind11's enums: an int by `int()`, equal to its own kind alone."""

    def __int__(self) -> int:
        return int(self.value)


class DataType(BoundEnum):
    """Dtypes (the values are those of all versions; 8.5 lacks INT64)."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


class DataType85(BoundEnum):
    """Dtypes of TensorRT 8.5."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5


class TensorIOMode(BoundEnum):
    """What a tensor is to an engine."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(BoundEnum):
    """Where a tensor's memory has to be."""

    DEVICE = 0
    HOST = 1


class LayerInformationFormat(BoundEnum):
    """How an inspector answers."""

    ONELINE = 0
    JSON = 1


class ExecutionContextAllocationStrategy(BoundEnum):
    """Who allocates a context's activation memory."""

    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class EngineValidity(BoundEnum):
    """What TensorRT-RTX says of a plan before it is loaded."""

    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(BoundEnum):
    """Why a plan is invalid, as bits."""

    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class CudaGraphStrategy(BoundEnum):
    """Whether TensorRT-RTX captures graphs by itself."""

    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(BoundEnum):
    """When TensorRT-RTX compiles kernels for a shape."""

    LAZY = 0
    EAGER = 1
    NONE = 2


class Severity(enum.IntEnum):
    """Severity of a message; these compare as numbers, in the bindings too."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """What a caller derives its logger from; `log` is the caller's to write."""

    Severity: TypeAlias = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Severity, msg: str) -> None:
        """Take a message."""
        raise NotImplementedError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """The library's own logger: prints what is at least as severe as `min_severity`."""

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: Severity, msg: str) -> None:
        """Print a message."""
        if severity <= self.min_severity:
            sys.stderr.write(f"[TRT] [{severity.name[0]}] {msg}\n")


class Dims:
    """A shape: like a tuple in use, and no tuple."""

    MAX_DIMS = MAX_DIMS

    def __init__(self, shape: Sequence[int] = ()) -> None:
        if len(shape) > MAX_DIMS:
            raise ValueError(f"Input length {len(shape)}. Max expected length is {MAX_DIMS}")
        self._sizes = tuple(int(size) for size in shape)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  an int or a slice
        return self._sizes[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | tuple | Dims) and self._sizes == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # unhashable, as in the bindings

    def __str__(self) -> str:
        return str(self._sizes)

    __repr__ = __str__


class IHostMemory:
    """Bytes that the library made: has the buffer interface through `bytes()`, `nbytes` and nothing else."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data


def nptype(dtype: BoundEnum) -> type[np.generic]:
    """Return the NumPy type of a dtype."""
    types: dict[str, type[np.generic]] = {
        "FLOAT": np.float32,
        "HALF": np.float16,
        "INT8": np.int8,
        "INT32": np.int32,
        "INT64": np.int64,
        "BOOL": np.bool_,
        "UINT8": np.uint8,
    }
    return types[dtype.name]


def volume(shape: Sequence[int]) -> int:
    """Return the product of a shape's sizes."""
    return int(np.prod(list(shape), dtype=np.int64))


DTYPE_NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "uint8": "UINT8",
}
