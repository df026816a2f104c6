"""What was built: the dtypes of inputs, outputs and layers, read from TensorRT's network and from its engine.

A plan's precision is never a flag's promise. Networks are read after parsing: with strong typing their dtypes are the
plan's. Engines are read where there is a GPU to load them, from the inspector's JSON, whose keys have changed: TensorRT
8 and 10 say "Format/Datatype" of a tensor, in words ("Channel major FP16 format where channel % 8 == 0") or as
a name ("Half"); 11 says "Format" and "DataType" (docs.nvidia.com/deeplearning/tensorrt/11.3.0/api/migration/
tensorrt-10x-to-11x-IEngineInspector.html).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milnce.errors import PlanBuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from milnce.manifest import GraphFile

CONVOLUTION, MULTIPLICATION = "convolution", "matrix multiplication"
# What a convolution over one value a channel is in these towers: the linear layer of a self-gate.
_GATE = "gate"

_DTYPES = {"float": "float32", "half": "float16", "bf16": "bfloat16"}
# What a tensor is called in the inspector's words. Longer names first: "BFloat16" holds "Float16".
_WORDS = (
    ("bfloat16", r"bfloat16|bf16"),
    ("float16", r"float16|fp16|half"),
    ("float32", r"float32|fp32|float"),
    ("uint8", r"uint8"),
    ("int8", r"int8"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
)
_KINDS = ((CONVOLUTION, "conv"), (MULTIPLICATION, "gemm|matmul|matrix"))
_DTYPE_KEYS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType")
_PRECISIONS = {"fp32": "float32", "fp16": "float16"}
_NAMED = 3
_VIDEO_RANK = 5


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that does arithmetic worth its precision.

    Attributes:
        name: Its name in the graph or engine.
        kind: `CONVOLUTION` or `MULTIPLICATION`.
        dtype: NumPy's name of the dtype it computes in, or None if the engine does not say.
        on_maps: Whether it runs over pictures; if not, over one value a channel, as gates and projections do, which
            are kept in FP32 on purpose.
    """

    name: str
    kind: str
    dtype: str | None
    on_maps: bool


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a network or an engine is made of.

    Attributes:
        source: "network" or "engine".
        tensors: Input or output -> dtype.
        shapes: Input or output -> shape, with -1 where a size is open.
        layers: Its convolutions and matrix multiplications, as far as they can be seen: TensorRT-RTX shows an engine
            as one layer.
    """

    source: str
    tensors: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    layers: Sequence[Layer]

    def to_json(self) -> dict[str, Any]:
        """Return the tensors' dtypes and shapes and, for each kind of layer, how many compute in which dtype."""
        counts: dict[str, Counter[str]] = {}
        for layer in self.layers:
            kind = layer.kind if layer.on_maps or layer.kind != CONVOLUTION else _GATE
            counts.setdefault(kind, Counter())[str(layer.dtype)] += 1
        layers = {kind: dict(dtypes) for kind, dtypes in counts.items()}
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"source": self.source, "tensors": dict(self.tensors), "shapes": shapes, "layers": layers}


def check(inspection: Inspection, graph: GraphFile, *, int64: bool) -> None:
    """Hold what was built against what it was built from.

    Args:
        inspection: What was built.
        graph: The graph's entry in the bundle's manifest.
        int64: Whether the library has int64 tensors; if not, ids are int32.

    Raises:
        PlanBuildError: if an input or output is missing, surplus or of another dtype, or if layers do not compute in
            the graph's precision.
    """
    specs = {spec.name: spec.dtype for spec in (*graph.inputs, *graph.outputs)}
    expected = {name: "int32" if dtype == "int64" and not int64 else dtype for name, dtype in specs.items()}
    if dict(inspection.tensors) != expected:
        raise PlanBuildError(
            f"the {inspection.source} built from {graph} has the inputs and outputs {_listed(inspection.tensors)}; "
            f"{_listed(expected)} expected. Export the bundle again"
        )
    for spec in (*graph.inputs, *graph.outputs):
        shape = inspection.shapes[spec.name]
        pairs = zip(shape, spec.shape, strict=False)
        if len(shape) != len(spec.shape) or not all(size == -1 or axis.accepts(size) for size, axis in pairs):
            raise PlanBuildError(
                f"the {inspection.source} built from {graph} has {spec.name} of shape {shape}; {spec} expected. "
                "Export the bundle again"
            )
    _check_precision(inspection, graph)


def check_size(plan_bytes: int, graph: GraphFile) -> None:
    """Make sure that a plan has its weights.

    Raises:
        PlanBuildError: if it is smaller than half of the ONNX file, as plans stripped of their weights are.
    """
    if plan_bytes < graph.bytes / 2:
        raise PlanBuildError(
            f"the plan of {graph} has {plan_bytes} bytes and the graph {graph.bytes}, so its weights are not in it; "
            "build it again, and report this if it stays so"
        )


def read_network(trt: Any, network: Any) -> Inspection:  # noqa: ANN401 - the library is not typed
    """Read a parsed network. With strong typing its dtypes are those of the engine."""
    kinds = {trt.LayerType.CONVOLUTION: CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY: MULTIPLICATION}
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = kinds.get(layer.type)
        if kind is not None:
            tensor = layer.get_input(0)
            layers.append(Layer(layer.name, kind, dtype_name(tensor.dtype), _on_maps(tuple(tensor.shape))))
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    tensors += [network.get_output(index) for index in range(network.num_outputs)]
    dtypes = {tensor.name: dtype_name(tensor.dtype) for tensor in tensors}
    return Inspection("network", dtypes, {tensor.name: tuple(tensor.shape) for tensor in tensors}, layers)


def read_engine(trt: Any, engine: Any) -> Inspection:  # noqa: ANN401 - the library is not typed
    """Read a deserialised engine that was built with detailed profiling verbosity."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = {name: dtype_name(engine.get_tensor_dtype(name)) for name in names}
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
    return Inspection("engine", tensors, shapes, engine_layers(text))


def engine_layers(text: str) -> list[Layer]:
    """Return the layers in an inspector's JSON whose kind and dtype can be told.

    Raises:
        PlanBuildError: if it is not the inspector's JSON.
    """
    try:
        entries = json.loads(text)["Layers"]
        # Built without detailed verbosity, an entry is the layer's name alone.
        return [layer for entry in entries if isinstance(entry, dict) for layer in _engine_layer(entry)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanBuildError(
            f"TensorRT's description of the engine cannot be read ({type(error).__name__}: {error}), so its precision "
            "is not known; report this with the version of TensorRT"
        ) from error


def dtype_name(dtype: Any) -> str:  # noqa: ANN401 - the library is not typed
    """Return NumPy's name of a TensorRT dtype; `trt.nptype` needs a numpy.bool that newer NumPy lacks, in 8.5."""
    name = str(dtype.name).lower()
    return _DTYPES.get(name, name)


def _check_precision(inspection: Inspection, graph: GraphFile) -> None:
    layers = [layer for layer in inspection.layers if layer.dtype is not None]
    wanted = _PRECISIONS[graph.precision]
    wrong = [layer for layer in layers if layer.dtype != wanted and (layer.on_maps or wanted == "float32")]
    if wrong:
        names = ", ".join(layer.name for layer in wrong[:_NAMED]) + (", ..." if len(wrong) > _NAMED else "")
        kinds = Counter(f"{layer.kind}s in {layer.dtype}" for layer in wrong)
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise PlanBuildError(
            f"the {inspection.source} built from {graph} does not compute in {wanted}: of {len(layers)} layers it has "
            f"{found} ({names}). Nothing was kept; export the bundle again, or ask for the precision it has"
        )
    if layers and all(layer.dtype != wanted for layer in layers):
        raise PlanBuildError(
            f"the {inspection.source} built from {graph} computes nothing in {wanted}: its {len(layers)} layers are in "
            f"{', '.join(sorted({str(layer.dtype) for layer in layers}))}. Nothing was kept; export the bundle again"
        )


def _engine_layer(entry: Mapping[str, Any]) -> list[Layer]:
    described = f"{entry.get('LayerType', '')} {entry.get('ParameterType', '')}".lower()
    inputs = entry.get("Inputs") or []
    kind = (
        CONVOLUTION if "conv" in described else MULTIPLICATION if re.search("gemm|matmul|matrix", described) else None
    )
    if kind is None or not inputs:
        return []
    shape = tuple(inputs[0].get("Dimensions") or ())
    return [Layer(str(entry.get("Name", "unnamed")), kind, _engine_dtype(inputs[0]), _on_maps(shape))]


def _engine_dtype(tensor: Mapping[str, Any]) -> str | None:
    for key in _DTYPE_KEYS:
        said = str(tensor.get(key, "")).lower()
        for dtype, words in _WORDS:
            if re.search(rf"(?<![a-z0-9])({words})(?![0-9])", said):
                return dtype
    return None


def _on_maps(shape: Sequence[int]) -> bool:
    """Whether a layer's input has more than one position in a picture; sizes that are not known are -1.

    A gate sees (N, C, T, 1, 1). Counted rather than looked up by position, as inside an engine axes are permuted.
    """
    return len(shape) == _VIDEO_RANK and sum(size == 1 for size in shape[1:]) < 2  # noqa: PLR2004 - height and width


def _listed(tensors: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in dict(tensors).items()) or "none"
