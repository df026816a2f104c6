"""Plans for the stand-in of TensorRT: a header, what an engine knows of itself as JSON, and the ONNX file."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, ...]
Range: TypeAlias = tuple[Shape, Shape, Shape]

# As tensorrt_rtx 1.7.1 says in Runtime.engine_header_size.
HEADER_BYTES = 64
MAGIC = b"FAKEPLAN"
# Magic, library version, bit mask of COMPUTE_CAPABILITIES (0 for any), bytes of JSON, SHA-256 of all that follows.
_HEADER = struct.Struct("<8s16sII32s")
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "12.0", "12.1")
_ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class PlanDamagedError(Exception):
    """The bytes are no plan, or not the plan that was written."""


@dataclass(frozen=True)
class PlanTensor:
    """An input or output: dtype as NumPy names it, shape with -1 where it is open."""

    name: str
    is_input: bool
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class FakePlan:
    """What a plan says.

    Attributes:
        version: exact version of the library that built it.
        compute_capabilities: GPUs it was built for; empty for any.
        tensors: inputs, then outputs.
        profiles: for each, input name -> (minimum, optimum, maximum) shape.
        memory_bytes: activation memory of each profile.
        version_compatible: whether it holds the lean runtime and runs on newer versions.
        capturable: whether a caller may capture it into a CUDA graph (TensorRT-RTX: REQUIRE_USER_ALLOCATION).
        onnx: the graph that it computes.
    """

    version: str
    compute_capabilities: tuple[str, ...]
    tensors: tuple[PlanTensor, ...]
    profiles: tuple[dict[str, Range], ...]
    memory_bytes: tuple[int, ...]
    version_compatible: bool
    capturable: bool
    onnx: bytes


def make_fake_plan(
    onnx: bytes,
    profiles: Sequence[Mapping[str, Sequence[Sequence[int]]]],
    *,
    version: str = "11.1.0.1",
    compute_capabilities: Sequence[str] = (),
    memory_bytes: int | Sequence[int] = 4096,
    version_compatible: bool = False,
    capturable: bool = True,
) -> bytes:
    """Return a plan that computes what an ONNX graph computes, in float32 or whatever its tensors say.

    Args:
        onnx: the graph; its input and output dtypes are the plan's (version 8 takes int64 as int32, as TensorRT 8.5).
        profiles: for each profile, input name -> (minimum, optimum, maximum) shape.
        version: of the library that "built" it.
        compute_capabilities: the GPUs it runs on ("9.0"); none for any.
        memory_bytes: activation memory, for all profiles or for each.
        version_compatible: as built with BuilderFlag.VERSION_COMPATIBLE.
        capturable: whether a caller may capture it into a CUDA graph.
    """
    session = session_of(onnx)
    tensors = [
        PlanTensor(value.name, is_input, _plan_dtype(value.type, version), _plan_shape(value.shape))
        for is_input, values in ((True, session.get_inputs()), (False, session.get_outputs()))
        for value in values
    ]
    sizes = [memory_bytes] * len(profiles) if isinstance(memory_bytes, int) else list(memory_bytes)
    text = json.dumps(
        {
            "tensors": [asdict(tensor) for tensor in tensors],
            "profiles": [{name: list(map(list, shapes)) for name, shapes in profile.items()} for profile in profiles],
            "memory_bytes": sizes,
            "version_compatible": version_compatible,
            "capturable": capturable,
        }
    ).encode()
    mask = sum(1 << COMPUTE_CAPABILITIES.index(capability) for capability in compute_capabilities)
    body = text + onnx
    return _HEADER.pack(MAGIC, version.encode(), mask, len(text), hashlib.sha256(body).digest()) + body


def read_header(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return version and compute capabilities from the first `HEADER_BYTES`.

    Raises:
        PlanDamagedError: too short, or another magic.
    """
    if len(data) < HEADER_BYTES:
        raise PlanDamagedError(f"{len(data)} bytes are too few for a plan")
    magic, version, mask, _, _ = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise PlanDamagedError("Magic tag does not match")
    named = tuple(name for bit, name in enumerate(COMPUTE_CAPABILITIES) if mask >> bit & 1)
    return version.rstrip(b"\0").decode(errors="replace"), named


def read_plan(data: bytes) -> FakePlan:
    """Return what a plan says.

    Raises:
        PlanDamagedError: anything but the bytes that `make_fake_plan` made.
    """
    version, capabilities = read_header(data)
    _, _, _, text_bytes, digest = _HEADER.unpack_from(data)
    body = data[HEADER_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise PlanDamagedError("Serialization assertion failed: the plan is damaged")
    said = json.loads(body[:text_bytes])
    return FakePlan(
        version,
        capabilities,
        tuple(PlanTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in said["tensors"]),
        tuple(
            {name: (tuple(low), tuple(best), tuple(high)) for name, (low, best, high) in profile.items()}
            for profile in said["profiles"]
        ),
        tuple(said["memory_bytes"]),
        said["version_compatible"],
        said["capturable"],
        body[text_bytes:],
    )


_sessions: dict[bytes, Any] = {}


def session_of(onnx: bytes) -> Any:  # noqa: ANN401  onnxruntime is not typed
    """Return the session that computes a graph, one for all plans of it, on one thread."""
    key = hashlib.sha256(onnx).digest()
    if key not in _sessions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        _sessions[key] = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return _sessions[key]


def compute(onnx: bytes, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the outputs of a graph; inputs are cast to the dtypes it wants (int32 ids to int64)."""
    session = session_of(onnx)
    cast = {value.name: feeds[value.name].astype(_ORT_DTYPES[value.type]) for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(np.ascontiguousarray, session.run(names, cast)), strict=True))


def _plan_dtype(ort_type: str, version: str) -> str:
    dtype = _ORT_DTYPES[ort_type]
    return "int32" if dtype == "int64" and version.startswith("8.") else dtype


def _plan_shape(shape: Sequence[int | str | None]) -> Shape:
    return tuple(size if isinstance(size, int) else -1 for size in shape)
