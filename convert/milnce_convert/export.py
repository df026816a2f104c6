"""Towers to ONNX: one graph a module and input form, simplified, checked, in FP32 or FP16."""

from __future__ import annotations

import contextlib
import importlib
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    NameFixPass,
    ShapeInferencePass,
)
from torch import Tensor, nn

from milnce.errors import ExportError
from milnce.specs import Dimension, TensorSpec
from milnce_convert.precision import to_fp16
from milnce_convert.rewrite import simplify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from milnce_convert.towers import S3D, TextTower

# 18 is where ReduceMean and ReduceMax take their axes as an input, as the exporter writes them; 20 is the newest that
# TensorRT 10, ONNX Runtime 1.20 and OpenVINO 2025 all take.
DEFAULT_OPSET = 20
SUPPORTED_OPSETS = range(18, 21)

# Found by running the tower on every size from 1 up: 2 (one cell of space-to-depth) is the least that gives a
# non-empty map at every layer, on PyTorch, ONNX Runtime and OpenVINO alike.
MINIMUM_SIZE = 2

_BATCH = Dimension("batch", 1, None)


@dataclass(frozen=True)
class ExportedGraph:
    """One ONNX graph and what the manifest says of it.

    Attributes:
        module: "video", "text" or "projection".
        input_form: "uint8", "float32", "tokens" or "mixed_5c".
        precision: "fp32" or "fp16".
        opset: The graph's opset.
        inputs: Specs of its inputs.
        outputs: Specs of its outputs.
        model: The serialised ONNX model, weights inside.
    """

    module: str
    input_form: str
    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    model: bytes


class _Ordered(nn.Module):
    """A tower with its outputs as a tuple, in a fixed order: what the exporter wants."""

    def __init__(self, tower: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.tower, self.names = tower, outputs

    def forward(self, value: Tensor) -> tuple[Tensor, ...]:
        result = cast("dict[str, Tensor]", self.tower(value))
        return tuple(result[name] for name in self.names)


class _Projection(nn.Module):
    """The video tower's last layer alone: stored Mixed_5c features into the joint space."""

    def __init__(self, fc: nn.Linear) -> None:
        super().__init__()
        self.fc = fc

    def forward(self, value: Tensor) -> dict[str, Tensor]:
        return {"video_embedding": self.fc(value)}


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's remarks on packages it looks for and on its own deprecations; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _trace(
    module: nn.Module, example: Tensor, dynamic: Sequence[int], *, opset: int, names: tuple[str, ...]
) -> ir.Model:
    """Export a module with one input, and name its input, outputs and dynamic axes."""
    if opset not in SUPPORTED_OPSETS:
        raise ExportError(
            f"opset {opset} asked for; {SUPPORTED_OPSETS.start} to {SUPPORTED_OPSETS.stop - 1} are supported"
        )
    with _quiet_exporter(), torch.no_grad():
        # Imported here, not inside the exporter: there a Ctrl-C during this long import comes out as another error.
        importlib.import_module("torch._dynamo")
        try:
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                external_data=False,
                input_names=[names[0]],
                output_names=list(names[1:]),
                dynamic_shapes=(dict.fromkeys(dynamic, torch.export.Dim.AUTO),),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            if _was_interrupted(error):
                raise KeyboardInterrupt from error
            raise ExportError(f"torch.onnx.export failed on the {names[1]} graph: {error}") from error
    if program is None:
        raise ExportError("the PyTorch exporter returned no program")
    # Through bytes, so that the graph no longer shares memory with the live tower.
    return ir.serde.deserialize_model(onnx.ModelProto.FromString(program.model_proto.SerializeToString()))


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether a Ctrl-C is what the exporter wrapped in its own error."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def trace_video(tower: S3D, *, opset: int = DEFAULT_OPSET, fixed_size: tuple[int, int, int] | None = None) -> ir.Model:
    """Export the video tower as it is: input `video` float32 (batch, 3, frames, height, width), no rewrite yet."""
    frames, height, width = fixed_size or (16, 64, 96)
    module = _Ordered(tower, ("video_embedding", "mixed_5c"))
    axes = (0,) if fixed_size else (0, 2, 3, 4)
    example = torch.rand(2, 3, frames, height, width)
    return _trace(module, example, axes, opset=opset, names=("video", "video_embedding", "mixed_5c"))


def size_axes(tower: S3D, fixed_size: tuple[int, int, int] | None) -> tuple[Dimension, Dimension, Dimension]:
    """Return the frames, height and width axes: of the given size, or the ranges that the tower takes.

    Raises:
        ExportError: if the tower cannot take the fixed size.
    """
    step = tower.config.size_multiple
    if fixed_size is None:
        frames, height, width = (Dimension(name, MINIMUM_SIZE, None, step) for name in ("frames", "height", "width"))
        return frames, height, width
    for name, size in zip(("frames", "height", "width"), fixed_size, strict=True):
        if size < MINIMUM_SIZE or size % step:
            raise ExportError(
                f"fixed size: {name} {size} given; it must be a multiple of {step}, at least {MINIMUM_SIZE}"
            )
    return Dimension.fixed(fixed_size[0]), Dimension.fixed(fixed_size[1]), Dimension.fixed(fixed_size[2])


def export_video(
    tower: S3D,
    *,
    opset: int = DEFAULT_OPSET,
    fold_stem: bool = True,
    fixed_size: tuple[int, int, int] | None = None,
) -> dict[str, ExportedGraph]:
    """Export the video tower in FP32, in both input forms.

    Args:
        tower: The PyTorch tower.
        opset: ONNX opset, 18 to 20.
        fold_stem: One 3x4x8x8 stem convolution instead of space-to-depth and a 24-channel one.
        fixed_size: (frames, height, width) to fix those axes; they are dynamic otherwise. The batch always is.

    Returns:
        The graphs by input form: "uint8" (batch, frames, height, width, 3) and "float32"
        (batch, 3, frames, height, width) in [0, 1].

    Raises:
        ExportError: if the size is not one the tower takes or the graph is not what it should be.
    """
    size = size_axes(tower, fixed_size)
    outputs = (
        TensorSpec("video_embedding", "float32", (_BATCH, Dimension.fixed(tower.config.embedding))),
        TensorSpec("mixed_5c", "float32", (_BATCH, Dimension.fixed(tower.config.mixed_5c))),
    )
    model = simplify(trace_video(tower, opset=opset, fixed_size=fixed_size), fold_stem=fold_stem)
    _name_blocks(model.graph, tuple(tower.config.blocks))
    plain = TensorSpec("video", "float32", (_BATCH, Dimension.fixed(3), *size))
    pixels = TensorSpec("video", "uint8", (_BATCH, *size, Dimension.fixed(3)))
    graphs = {"float32": _finish(model.clone(), "video", "float32", (plain,), outputs)}
    _accept_uint8(model, pixels)
    graphs["uint8"] = _finish(model, "video", "uint8", (pixels,), outputs)
    return graphs


def export_text(tower: TextTower, *, opset: int = DEFAULT_OPSET) -> ExportedGraph:
    """Export the text tower in FP32: input `tokens` int64 (batch, words), both axes dynamic."""
    example = torch.randint(0, tower.config.rows, (2, 16))
    model = _trace(
        _Ordered(tower, ("text_embedding",)),
        example,
        (0, 1),
        opset=opset,
        names=("tokens", "text_embedding"),
    )
    tokens = TensorSpec("tokens", "int64", (_BATCH, Dimension("words", 1, None)))
    embedding = TensorSpec("text_embedding", "float32", (_BATCH, Dimension.fixed(tower.config.embedding)))
    return _finish(model, "text", "tokens", (tokens,), (embedding,))


def export_projection(tower: S3D, *, opset: int = DEFAULT_OPSET) -> ExportedGraph:
    """Export `fc` alone: input `mixed_5c` float32 (batch, mixed_5c), output `video_embedding`."""
    example = torch.rand(2, tower.config.mixed_5c)
    module = _Ordered(_Projection(tower.fc), ("video_embedding",))
    model = _trace(module, example, (0,), opset=opset, names=("mixed_5c", "video_embedding"))
    features = TensorSpec("mixed_5c", "float32", (_BATCH, Dimension.fixed(tower.config.mixed_5c)))
    embedding = TensorSpec("video_embedding", "float32", (_BATCH, Dimension.fixed(tower.config.embedding)))
    return _finish(model, "projection", "mixed_5c", (features,), (embedding,))


def half_precision(graph: ExportedGraph) -> ExportedGraph:
    """Return the FP16 graph of an FP32 one; inputs and outputs keep their dtypes."""
    model = to_fp16(ir.serde.deserialize_model(onnx.ModelProto.FromString(graph.model)))
    return _finish(model, graph.module, graph.input_form, graph.inputs, graph.outputs, precision="fp16")


def _name_blocks(graph: ir.Graph, blocks: tuple[str, ...]) -> None:
    """Name each Inception block's output after it, so that parity can be measured block by block."""
    concatenations = [node for node in graph if node.op_type == "Concat" and node.attributes.get_int("axis", 0) == 1]
    if len(concatenations) != len(blocks):
        raise ExportError(f"{len(concatenations)} Inception blocks found in the graph, {len(blocks)} expected")
    for node, block in zip(concatenations, blocks, strict=True):
        node.outputs[0].name = block_output(block)


def block_output(block: str) -> str:
    """Return the name, inside an exported graph, of an Inception block's output map."""
    return f"{block}_map"


def _accept_uint8(model: ir.Model, spec: TensorSpec) -> None:
    """Put (batch, frames, height, width, 3) uint8 in front: cast, divide by 255, then permute.

    The cast comes first because TensorRT refuses any other operator on uint8.
    """
    graph = model.graph
    (old,) = graph.inputs
    new = ir.Value(name=spec.name, type=ir.TensorType(ir.DataType.UINT8), shape=_shape(spec))
    old.name = "video_scaled"
    scale = ir.Value(name="video_maximum", const_value=ir.tensor([255.0], dtype=ir.DataType.FLOAT))
    scale.dtype, scale.shape = ir.DataType.FLOAT, ir.Shape([1])
    graph.register_initializer(scale)
    cast_node = ir.node("Cast", [new], {"to": ir.DataType.FLOAT}, name="video_cast")
    divide = ir.node("Div", [cast_node.outputs[0], scale], name="video_scale")
    permute = ir.node("Transpose", [divide.outputs[0]], {"perm": [0, 4, 1, 2, 3]}, name="video_permute")
    for node in (cast_node, divide, permute):
        node.outputs[0].name, node.outputs[0].dtype = f"{node.name}_output", ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(old, permute.outputs[0])
    graph.inputs[0] = new
    graph.insert_before(graph[0], [cast_node, divide, permute])


def _shape(spec: TensorSpec) -> ir.Shape:
    return ir.Shape([axis.name if axis.size is None else axis.size for axis in spec.shape])


def _finish(
    model: ir.Model,
    module: str,
    input_form: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    precision: str = "fp32",
) -> ExportedGraph:
    """Name the axes, infer shapes anew, drop the exporter's notes, check, serialise."""
    graph = model.graph
    graph.name = f"milnce_{module}"
    for value in (value for node in graph for value in node.outputs if value not in graph.outputs):
        value.shape = None  # the exporter's symbols; inferred again below from the named axes
    for value, spec in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
        if value.name != spec.name:
            raise ExportError(f"graph of {module}: tensor {value.name} found where {spec.name} belongs")
        value.shape = _shape(spec)
    ClearMetadataAndDocStringPass()(model)
    NameFixPass()(model)
    model = ShapeInferencePass(check_type=True, strict_mode=True, data_prop=True)(model).model
    model.producer_name, model.producer_version = "milnce", None
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    _check_io(proto, [*inputs, *outputs])
    opset = next(item.version for item in proto.opset_import if item.domain in {"", "ai.onnx"})
    return ExportedGraph(
        module, input_form, precision, opset, inputs, outputs, proto.SerializeToString(deterministic=True)
    )


def _check_io(proto: onnx.ModelProto, specs: list[TensorSpec]) -> None:
    """Hold the serialised graph's inputs and outputs against the specs the manifest will carry."""
    for value, spec in zip([*proto.graph.input, *proto.graph.output], specs, strict=True):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        sizes = [axis.dim_value or axis.dim_param for axis in tensor.shape.dim]
        expected = [axis.size or axis.name for axis in spec.shape]
        if (value.name, dtype, sizes) != (spec.name, spec.dtype, expected):
            raise ExportError(f"the graph has {value.name} {dtype} {sizes}; the manifest would say {spec}")
