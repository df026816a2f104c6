# ruff: noqa: D102  (methods have the names and the meaning of the binding's)
"""The builder's half of the stand-in for TensorRT: what parses, configures and builds, in three generations.

    trt = fake_tensorrt.install(monkeypatch, fake_cuda.install(monkeypatch), "tensorrt", flavour="10")
    builder = fake_builder.add(trt, "10")

- "8.5": no strong typing, so the FP16 flag and precisions of layers decide; no progress, no effort level.
- "10": strong typing on request, the FP16 flag beside it.
- "11": strong typing always, no FP16 flag.

A network has a layer for each node of the ONNX graph, and those that the real parser adds for a Gemm. What is built
runs in `fake_tensorrt`, and its inspector speaks as the generation does.
"""

from __future__ import annotations

import enum
import json
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from helpers.fake_builder_network import (
    Config,
    Config10,
    HardwareCompatibilityLevel,
    Layer,
    LayerType,
    MemoryPoolType,
    Network,
    Profile,
    ProfilingVerbosity,
    Tensor,
    read_onnx,
)
from helpers.fake_tensorrt_plan import make_fake_plan
from helpers.fake_tensorrt_types import IHostMemory

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    Generation = Literal["8.5", "10", "11"]

_FLAGS = {
    "8.5": ("FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"),
    "10": ("FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"),
    "11": ("TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"),
}
_NETWORK_FLAGS = {"8.5": ("EXPLICIT_BATCH",), "10": ("EXPLICIT_BATCH", "STRONGLY_TYPED"), "11": ("STRONGLY_TYPED",)}
_OLD_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN")
_TACTICS = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
_WORDS = {"HALF": "Channel major FP16 format where channel % 8 == 0", "FLOAT": "Row major linear FP32 format"}


@dataclass
class FakeBuilder:
    """What was built, and what goes wrong.

    Attributes:
        networks, configs: each network and configuration that was used, in order.
        ignores_precision: Build FP32 whatever is asked for, as weak typing may.
        describes: What the inspector answers instead of its JSON.
        fails: Log this and build nothing.
        parser_errors: The parser's answer, as (node, operator, text).
        before_build: Called with the configuration, in the builder.
        parser: The last parser, for as long as it lives: it owns the weights of its network.
    """

    trt: ModuleType
    generation: Generation
    networks: list[Network] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)
    ignores_precision: bool = False
    describes: str | None = None
    fails: str | None = None
    parser_errors: tuple[tuple[str, str, str], ...] = ()
    before_build: Callable[[Any], None] | None = None
    descriptions: dict[bytes, str] = field(default_factory=dict)
    parser: weakref.ref[OnnxParser] | None = None

    def describe(self, network: Network, config: Any) -> str:  # noqa: ANN401
        """Return the inspector's JSON of what is built."""
        if config.profiling_verbosity is not ProfilingVerbosity.DETAILED:
            return json.dumps({"Layers": [layer.name for layer in network.layers]})
        layers = []
        for layer in network.layers:
            dtype = self._dtype(network, config, layer)
            kind = {"CONVOLUTION": "CaskConvolution", "MATRIX_MULTIPLY": "CaskGemmMatrixMultiply"}
            entry: dict[str, Any] = {"Name": layer.name, "LayerType": kind.get(layer.type.name, layer.type.name)}
            entry["Inputs"] = [self._described(tensor, dtype) for tensor in layer.inputs]
            layers.append(entry)
        names = [tensor.name for tensor in (*network.inputs, *network.outputs)]
        io = {"I/O Tensors": [{"Name": name} for name in names]} if self.generation == "11" else {"Bindings": names}
        return json.dumps({"Layers": layers, **io})

    def _dtype(self, network: Network, config: Any, layer: Layer) -> str:  # noqa: ANN401
        strong = network.flags >> 1 & 1 or self.generation == "11"
        if self.ignores_precision:
            return "FLOAT"
        if strong:
            return str(layer.inputs[0].dtype.name) if layer.inputs else "FLOAT"
        obeys = {"FP16", "OBEY_PRECISION_CONSTRAINTS"} <= config.flags
        return str(layer.precision.name) if obeys and layer.precision is not None else "FLOAT"

    def _described(self, tensor: Tensor, dtype: str) -> dict[str, Any]:
        described: dict[str, Any] = {"Name": tensor.name, "Location": "Device", "Dimensions": list(tensor.shape)}
        if self.generation == "8.5":
            return {**described, "Format/Datatype": _WORDS.get(dtype, dtype)}
        if self.generation == "10":
            return {**described, "Format/Datatype": dtype.capitalize()}
        return {**described, "Format": "Row major linear format (kLINEAR)", "DataType": dtype.capitalize()}


class OnnxParser:
    """Parses ONNX into a network."""

    fake: FakeBuilder

    def __init__(self, network: Network, logger: Any) -> None:  # noqa: ANN401
        self._network, self._log = network, logger.log
        self.fake.parser = weakref.ref(self)

    def parse(self, model: bytes) -> bool:
        if self.fake.parser_errors:
            self._log(self.fake.trt.ILogger.ERROR, f"ModelImporter.cpp:140: {self.fake.parser_errors}")
            return False
        read_onnx(self._network, model, self.fake.trt.DataType)
        return True

    @property
    def num_errors(self) -> int:
        return len(self.fake.parser_errors)

    def get_error(self, index: int) -> Any:  # noqa: ANN401
        name, operator, text = self.fake.parser_errors[index]
        error = SimpleNamespace(desc=lambda: text, node=lambda: index)
        if self.fake.generation != "8.5":
            error.node_name, error.node_operator = lambda: name, lambda: operator
        return error


class Builder:
    """Builds a network into a plan."""

    fake: FakeBuilder

    def __init__(self, logger: Any) -> None:  # noqa: ANN401
        self._log = logger.log

    def create_network(self, flags: int) -> Network:
        self.fake.networks.append(Network(flags))
        return self.fake.networks[-1]

    def create_builder_config(self) -> Config:
        key = f"timings of {self.fake.trt.__version__}".encode()
        config = Config(key) if self.fake.generation == "8.5" else Config10(key)
        self.fake.configs.append(config)
        return config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> IHostMemory | None:
        fake = self.fake
        if fake.before_build is not None:
            fake.before_build(config)
        reason = fake.fails or (None if _progressed(config) else "BuildCanceled")
        if reason is not None:
            self._log(fake.trt.ILogger.ERROR, f"IBuilder::buildSerializedNetwork: {reason}")
            return None
        compatible = "VERSION_COMPATIBLE" in config.flags
        version = fake.trt.__version__
        plan = make_fake_plan(network.onnx, config.profiles, version=version, version_compatible=compatible)
        fake.descriptions[plan] = fake.describe(network, config) if fake.describes is None else fake.describes
        return IHostMemory(plan)


class _Describing:
    """Mixed into a module's Runtime: its engines describe the layers that were built."""

    fake: FakeBuilder

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:  # noqa: ANN401
        engine = super().deserialize_cuda_engine(serialized_engine)  # type: ignore[misc]  # of the class it is mixed into
        text = self.fake.descriptions.get(bytes(serialized_engine))
        if engine is not None and text is not None:
            engine.create_engine_inspector = lambda: SimpleNamespace(get_engine_information=lambda _: text)
        return engine


def add(trt: ModuleType, generation: Generation) -> FakeBuilder:
    """Give a module of `fake_tensorrt` what a builder needs, and return its records."""
    fake = FakeBuilder(trt, generation)
    contents: dict[str, Any] = {
        "Builder": type("Builder", (Builder,), {"fake": fake}),
        "OnnxParser": type("OnnxParser", (OnnxParser,), {"fake": fake}),
        "Runtime": type("Runtime", (_Describing, vars(trt)["Runtime"]), {"fake": fake}),
        "IBuilderConfig": Config if generation == "8.5" else Config10,
        "LayerType": LayerType,
        "ProfilingVerbosity": ProfilingVerbosity,
        "MemoryPoolType": MemoryPoolType,
        "BuilderFlag": _enum("BuilderFlag", _FLAGS[generation]),
        "TacticSource": _enum("TacticSource", _TACTICS if generation == "11" else _OLD_TACTICS + _TACTICS),
        "NetworkDefinitionCreationFlag": _enum("NetworkDefinitionCreationFlag", _NETWORK_FLAGS[generation]),
    }
    if generation != "8.5":
        contents["HardwareCompatibilityLevel"] = HardwareCompatibilityLevel
        contents["IProgressMonitor"] = type("IProgressMonitor", (), {})
    vars(trt).update(contents)
    return fake


def _enum(name: str, members: tuple[str, ...]) -> type[enum.IntEnum]:
    made: Any = enum.IntEnum(name, {member: index for index, member in enumerate(members)})  # type: ignore[misc]  # made by name
    return made


def _progressed(config: Any) -> bool:  # noqa: ANN401
    """Tell the monitor of a build of two phases; return whether it let the build go on."""
    monitor = getattr(config, "progress_monitor", None)
    if monitor is None:
        return True
    monitor.phase_start("Building engine", None, 2)
    for step in range(2):
        monitor.phase_start("Timing tactics", "Building engine", 4)
        if not all(monitor.step_complete("Timing tactics", inner) for inner in range(4)):
            return False
        monitor.phase_finish("Timing tactics")
        if not monitor.step_complete("Building engine", step):
            return False
    monitor.phase_finish("Building engine")
    return True
