# ruff: noqa: D102  (methods have the names and the meaning of the binding's)
"""Networks and configurations of the stand-in for TensorRT's builder; see `fake_builder`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx

from helpers.fake_tensorrt_types import BoundEnum, IHostMemory

if TYPE_CHECKING:
    import enum
    from collections.abc import Sequence

_LAYERS = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Cast": "CAST"}


class LayerType(BoundEnum):
    """Kinds of layers that matter here."""

    CONVOLUTION = 0
    CAST = 1
    CONSTANT = 2
    MATRIX_MULTIPLY = 3
    SHUFFLE = 4
    ELEMENTWISE = 5


class ProfilingVerbosity(BoundEnum):
    """How much an engine tells of itself."""

    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class MemoryPoolType(BoundEnum):
    """Kinds of memory with a limit."""

    WORKSPACE = 0


class HardwareCompatibilityLevel(BoundEnum):
    """How portable a plan is, in the order of the binding."""

    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


@dataclass(eq=False)
class Tensor:
    """A tensor of a network."""

    name: str
    dtype: Any
    shape: tuple[int, ...]


@dataclass(eq=False)
class Layer:
    """A layer of a network. `precision` and `output_types` are what the caller set."""

    name: str
    type: LayerType
    inputs: list[Tensor]
    outputs: list[Tensor]
    precision: Any = None
    output_types: dict[int, Any] = field(default_factory=dict)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def set_output_type(self, index: int, dtype: Any) -> None:  # noqa: ANN401  a dtype of any flavour
        self.output_types[index] = dtype


class Network:
    """A network definition."""

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.onnx = b""
        self.layers: list[Layer] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]


class TimingCache:
    """Timings of kernels."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.data + b" and one more build")


class Config:
    """A builder's configuration, with everything that was set in it."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.flags = {"TF32"}
        self.profiles: list[dict[str, Any]] = []
        self.pools: dict[str, int] = {}
        self.tactics: int | None = None
        self.cache: TimingCache | None = None
        self.profiling_verbosity: Any = ProfilingVerbosity.LAYER_NAMES_ONLY

    def set_flag(self, flag: enum.Enum) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: enum.Enum) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
        self.pools[pool.name] = size

    def set_tactic_sources(self, sources: int) -> bool:
        self.tactics = sources
        return True

    def add_optimization_profile(self, profile: Profile) -> int:
        if any(not low <= best <= high for low, best, high in profile.shapes.values()):
            return -1
        self.profiles.append(dict(profile.shapes))
        return len(self.profiles) - 1

    def create_timing_cache(self, blob: bytes) -> TimingCache | None:
        return TimingCache(blob or self._key) if not blob or blob.startswith((self._key, b"other ")) else None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if not cache.data.startswith(self._key) and not ignore_mismatch:
            return False
        self.cache = cache
        return True


class Config10(Config):
    """A configuration of TensorRT 10 and 11."""

    progress_monitor: Any = None
    builder_optimization_level = 3
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE


class Profile:
    """An optimisation profile."""

    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int]) -> None:
        self.shapes[name] = (tuple(low), tuple(best), tuple(high))


def read_onnx(network: Network, model: bytes, dtypes: Any) -> None:  # noqa: ANN401
    """Fill a network from an ONNX graph."""
    proto = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(model), strict_mode=True, data_prop=True)
    names = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "UINT8": "UINT8", "INT64": "INT64"}
    tensors: dict[str, Tensor] = {}
    for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output):
        name = names[onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)]
        # TensorRT 8.5 has no int64.
        dtype = getattr(dtypes, name, None) or dtypes.INT32
        shape = tuple(axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim)
        tensors[value.name] = Tensor(value.name, dtype, shape)
    network.onnx = model
    network.inputs = [tensors[value.name] for value in proto.graph.input]
    network.outputs = [tensors[value.name] for value in proto.graph.output]
    for node in proto.graph.node:
        inputs = [tensors[name] for name in node.input if name in tensors]
        outputs = [tensors[name] for name in node.output]
        kind = LayerType[_LAYERS.get(node.op_type, "ELEMENTWISE")]
        if node.op_type == "Gemm":
            # A constant for the weights, and the bias added by a layer of its own, as the real parser has it.
            weight = Tensor(node.input[1], inputs[0].dtype, (1, 1))
            product = Tensor(
                f"(Unnamed Layer* {len(network.layers)}) [Matrix Multiply]_output", inputs[0].dtype, (-1, 1)
            )
            network.layers.append(Layer(f"{node.name}_weight", LayerType.CONSTANT, [], [weight]))
            network.layers.append(Layer(node.name, kind, [inputs[0], weight], [product]))
            network.layers.append(Layer(f"{node.name}_bias", LayerType.ELEMENTWISE, [product], outputs))
        else:
            network.layers.append(Layer(node.name, kind, inputs, outputs))
