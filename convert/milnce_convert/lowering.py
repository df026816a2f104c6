"""Lower a bundle's graphs to opset 17 for TensorRT 8.5 (JetPack 5), whose parser knows no newer one.

That parser does not look at the opset. In a newer graph it reads what it knows and passes over the rest without a
word: ReduceMean and ReduceMax take their axes from an attribute alone, so the axes that opset 18 and later give as an
input are not seen and the reduction runs over every axis, the batch too (https://github.com/NVIDIA/TensorRT/issues/3467;
10.0 is the first to read that input). It ignores an operator's domain, and the `start` and `end` of Shape, in the same
way. So no operator reaches it here whose import has not been read in its source: github.com/onnx/onnx-tensorrt at
84fd16d, "8.5.3 update", docs/operators.md and builtin_op_importers.cpp.

What the parser makes of a lowered graph, seen with the one in tensorrt 8.5.3.1's wheel writing to a recorded network,
no engine built: a uint8 input stays uint8; int64 tokens become an int32 input of the same name; named axes keep their
names; a layer is named after its node, but for what it adds itself (constants, reshapes, the sum of a Gemm's bias).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError
from onnx.version_converter import ConvertError

from milnce.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

OPSET = 17

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
# Operators of the exported graphs, each with the ONNX dtypes that 8.5 takes for its inputs and outputs. INT64 is read
# as INT32, clamped. UINT8 is a network input that goes into a cast to a floating dtype, and nothing else.
_DTYPES = {
    **dict.fromkeys(
        ("Add", "Concat", "Conv", "Div", "Flatten", "Gemm", "GlobalAveragePool", "MatMul", "MaxPool", "Mul"), _FLOATS
    ),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "Relu", "Sigmoid", "Transpose"), _FLOATS),
    "Cast": _FLOATS | {TensorProto.UINT8},
    "Gather": _FLOATS | {TensorProto.INT64},
}
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean"})


def lower_to_opset_17(model: bytes) -> bytes:
    """Turn a graph of opset 18 to 20 into the same function in opset 17, for TensorRT 8.5's parser.

    Nodes, names, weights, dtypes and dynamic axes stay; constant axes of reductions move from inputs to attributes.

    Args:
        model: A serialised ONNX model with its weights inside, as a bundle holds it.

    Returns:
        A serialised model of opset 17 and IR version 8 (ONNX 1.12's), checked, with its shapes inferred.

    Raises:
        ExportError: if TensorRT 8.5 would not take a node, naming it, or would take it for another function.
    """
    proto = onnx.ModelProto.FromString(model)
    _refuse_operators(proto.graph)
    try:
        lowered = onnx.version_converter.convert_version(proto, OPSET)
        # The converter keeps the IR version of the newer opset. 8.5 was built with ONNX 1.12, where 8 is the newest.
        lowered.ir_version = onnx.helper.find_min_ir_version_for(list(lowered.opset_import))
        onnx.checker.check_model(lowered, full_check=True)
    except (RuntimeError, ConvertError, ValidationError, InferenceError) as error:
        raise ExportError(f"the graph cannot be lowered to opset {OPSET} for TensorRT 8.5: {error}") from error
    _refuse_operators(lowered.graph)
    _refuse_dtypes(lowered.graph)
    return bytes(lowered.SerializeToString(deterministic=True))


def _refuse_operators(graph: onnx.GraphProto) -> None:
    """Refuse nodes that the parser would not import, or would import as something else; the dtypes aside."""
    weights = {weight.name for weight in graph.initializer}
    for node in graph.node:
        if node.domain not in {"", "ai.onnx"} or node.op_type not in _DTYPES:
            raise _refusal(node, f"it is none of {', '.join(sorted(_DTYPES))}, all of ONNX's own domain")
        if node.op_type == "MaxPool" and (len(node.output) > 1 or any(step != 1 for step in _ints(node, "dilations"))):
            raise _refusal(node, "its parser takes neither the indices output nor dilations of a pool")
        if node.op_type in _REDUCTIONS:
            if len(node.input) > 1 and node.input[1] not in weights:
                raise _refusal(node, "its axes are computed, and an attribute holds constants only")
            if any(item.name == "axes" and not item.ints for item in node.attribute):
                # Every axis to ONNX from opset 18 on, no axis to the parser.
                raise _refusal(node, "its list of axes is empty, which it reads in another way than ONNX")


def _refuse_dtypes(graph: onnx.GraphProto) -> None:
    """Refuse tensors of a dtype that the parser does not take at that operator."""
    dtypes = {weight.name: weight.data_type for weight in graph.initializer}
    dtypes |= {value.name: value.type.tensor_type.elem_type for value in _values(graph)}
    for node in graph.node:
        for name in filter(None, (*node.input, *node.output)):
            if dtypes[name] not in _DTYPES[node.op_type]:
                found = TensorProto.DataType.Name(dtypes[name])
                raise _refusal(node, f"its tensor {name} is {found}, which is not a dtype it takes there")


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return [value for item in node.attribute if item.name == name for value in item.ints]


def _refusal(node: onnx.NodeProto, reason: str) -> ExportError:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return ExportError(
        f"TensorRT 8.5 cannot take node {node.name or node.output[0]} ({operator}): {reason}; "
        "export the bundle again with the folded stem, which is the default, or build with TensorRT 10 or newer"
    )
