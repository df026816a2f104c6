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
            are kept in FP32 on purpose. None if the engine does not say its sizes.
    """

    name: str
    kind: str
    dtype: str | None
    on_maps: bool | None


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
            kind = _GATE if layer.on_maps is False and layer.kind == CONVOLUTION else layer.kind
            counts.setdefault(kind, Counter())[str(layer.dtype)] += 1
        layers = {kind: dict(dtypes) for kind, dtypes in counts.items()}
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"source": self.source, "tensors": dict(self.tensors), "shapes": shapes, "layers": layers}


def check(inspection: Inspection, graph: GraphFile, *, int64: bool, proves: bool) -> None:
    """Hold what was built against what it was built from.

    Args:
        inspection: What was built.
        graph: The graph's entry in the bundle's manifest.
        int64: Whether the library has int64 tensors; if not, ids are int32.
        proves: Whether an FP16 plan's precision rests on this: a network with strong typing, an engine without. If
            not, what it says must only not contradict it.

    Raises:
        PlanBuildError: if an input or output is missing, surplus or of another dtype, if layers do not compute in the
            graph's precision, or if that cannot be told where this is what proves it.
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
    _check_precision(inspection, graph, proves=proves)
    if proves and graph.precision == "fp16" and graph.module == "video":
        _require_proof(inspection, graph)


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


def _check_precision(inspection: Inspection, graph: GraphFile, *, proves: bool) -> None:
    layers = [layer for layer in inspection.layers if layer.dtype is not None]
    wanted = _PRECISIONS[graph.precision]

    def counts(layer: Layer) -> bool:
        """Whether a layer must be in the graph's precision. A proof has no convolution of unknown sizes excused."""
        unknown = proves and layer.kind == CONVOLUTION and layer.on_maps is None
        return wanted == "float32" or bool(layer.on_maps) or unknown

    wrong = [layer for layer in layers if layer.dtype != wanted and counts(layer)]
    seen = _count(len(layers), "layer")
    if wrong:
        names = ", ".join(layer.name for layer in wrong[:_NAMED]) + (", ..." if len(wrong) > _NAMED else "")
        kinds = Counter((layer.kind, layer.dtype) for layer in wrong)
        found = ", ".join(f"{_count(count, kind)} in {dtype}" for (kind, dtype), count in kinds.items())
        raise PlanBuildError(
            f"the {inspection.source} built from {graph} does not compute in {wanted}: of {seen} it has "
            f"{found} ({names}). Nothing was kept; export the bundle again, or ask for the precision it has"
        )
    if layers and all(layer.dtype != wanted for layer in layers):
        raise PlanBuildError(
            f"the {inspection.source} built from {graph} computes nothing in {wanted}: it has {seen} in "
            f"{', '.join(sorted({str(layer.dtype) for layer in layers}))}. Nothing was kept; export the bundle again"
        )


def _require_proof(inspection: Inspection, graph: GraphFile) -> None:
    """Refuse a video tower in FP16 of which not one convolution over pictures is seen to be in FP16."""
    convolutions = [layer for layer in inspection.layers if layer.kind == CONVOLUTION]
    if any(layer.on_maps and layer.dtype == "float16" for layer in convolutions):
        return
    raise PlanBuildError(
        f"the precision of the {inspection.source} built from {graph} could not be verified: it shows "
        f"{_count(len(convolutions), 'convolution')}, and none that is known to run over pictures in float16. Nothing "
        "was kept; report this with the version of TensorRT, or build without FP16: --precision fp32"
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


def _on_maps(shape: Sequence[int]) -> bool | None:
    """Whether a layer's input has more than one position in a picture; open sizes are -1. None without a shape.

    A gate sees (N, C, T, 1, 1). Counted rather than looked up by position, as inside an engine axes are permuted.
    """
    if not shape:
        return None
    return len(shape) == _VIDEO_RANK and sum(size == 1 for size in shape[1:]) < 2  # noqa: PLR2004 - height and width


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(tensors: Mapping[str, str] | Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in dict(tensors).items()) or "none"
