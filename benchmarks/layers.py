"""Arithmetic and memory traffic of a video graph, layer by layer, from the shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What turns uint8 pixels into float32 channels: one pass in a backend that fuses, so one layer.
_INPUT_OPERATORS = ("Cast", "Div", "Transpose")
_KINDS = {
    "MaxPool": "max pool",
    "ReduceMean": "gate: mean",
    "Sigmoid": "gate: weights",
    "Mul": "gate: product",
    "Concat": "concatenation",
    "GlobalAveragePool": "head",
    "Flatten": "head",
    "Gemm": "head",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: a node of the graph, with the ReLU that follows it.

    Attributes:
        name: The node's name in the graph; of several nodes, the last one's.
        nodes: Names of all the nodes it stands for.
        tensors: Names of what they make: backends name a node that they have rewritten after its output.
        kind: Its kind in plain words, such as "convolution 1x3x3".
        flops: Two per multiply-add of convolutions and matrix products, as `torch.utils.flop_counter` counts:
            multiplications by padding included, everything else left out.
        inner_flops: The same without multiplications by padding: what has to be computed.
        operations: Comparisons, additions, products that are no multiply-adds: pools, means, gates.
        bytes: Its inputs, weights and outputs, each once.
        output: Shape of its output.
    """

    name: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    kind: str
    flops: int
    inner_flops: int
    operations: int
    bytes: int
    output: tuple[int, ...]

    @property
    def work(self) -> int:
        """Operations of any kind that cannot be left out."""
        return self.inner_flops + self.operations

    def bound_s(self, peak: float, bandwidth: float) -> float:
        """Return the roofline's bound in seconds, from a peak in FLOP/s and a bandwidth in bytes/s."""
        return max(self.work / peak, self.bytes / bandwidth)


def count_layers(model: bytes, clip: Sequence[int], *, batch: int = 1) -> list[Layer]:
    """Count a video graph's layers for clips of one size.

    Args:
        model: The serialised ONNX graph, in FP32.
        clip: (frames, height, width); all even.
        batch: Clips.

    Raises:
        ValueError: if the graph holds an operator that is not known here, or a shape cannot be inferred.
    """
    graph = _sized(model, batch, clip)
    shapes, widths = _tensors(graph)
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    done: set[str] = set()
    layers = []
    for node in graph.node:
        if node.name in done:
            continue
        nodes = _with_followers(node, users)
        done |= {member.name for member in nodes}
        layers.append(_layer(nodes, shapes, widths))
    return layers


def _sized(model: bytes, batch: int, clip: Sequence[int]) -> onnx.GraphProto:
    """Return the graph with every shape inferred for one size of clip."""
    proto = onnx.load_model_from_string(model)
    del proto.graph.value_info[:]  # they have the axes' names, which numbers would contradict
    axes = proto.graph.input[0].type.tensor_type.shape.dim
    last = [axis.dim_value for axis in axes][-1] == 3  # noqa: PLR2004 - colours: uint8 clips have them last
    sizes = [batch, *clip, 3] if last else [batch, 3, *clip]
    for axis, size in zip(axes, sizes, strict=True):
        axis.dim_value = size
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = batch
    return shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph


def _tensors(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return every tensor's shape, and how many bytes an element of it takes."""
    shapes: dict[str, tuple[int, ...]] = {}
    widths: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        sizes = tuple(axis.dim_value for axis in kind.shape.dim)
        if not all(sizes):
            raise ValueError(f"the shape of {value.name} is not known for this clip: {sizes}")
        shapes[value.name] = sizes
        widths[value.name] = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        shapes[weight.name], widths[weight.name] = array.shape, array.itemsize
    return shapes, widths


def _with_followers(node: onnx.NodeProto, users: Mapping[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """Return a node and those that any backend does in the same pass: a ReLU, the rest of the input's conversion."""
    nodes = [node]
    while True:
        following = users.get(nodes[-1].output[0], [])
        if len(following) != 1:
            return nodes
        fused = following[0].op_type == "Relu" or (
            node.op_type in _INPUT_OPERATORS and following[0].op_type in _INPUT_OPERATORS
        )
        if not fused:
            return nodes
        nodes.append(following[0])


def _layer(nodes: list[onnx.NodeProto], shapes: Mapping[str, tuple[int, ...]], widths: Mapping[str, int]) -> Layer:
    first, last = nodes[0], nodes[-1]
    source, output = shapes[first.input[0]], shapes[last.output[0]]
    flops, inner, operations = _work(first, shapes)
    tensors = [name for name in first.input if name] + list(last.output)
    return Layer(
        name=first.name if first.op_type not in _INPUT_OPERATORS else last.name,
        nodes=tuple(node.name for node in nodes),
        tensors=tuple(name for node in nodes for name in node.output),
        kind=_kind(first, source, shapes),
        flops=flops,
        inner_flops=inner,
        operations=operations,
        bytes=sum(math.prod(shapes[name]) * widths[name] for name in tensors),
        output=output,
    )


def _kind(node: onnx.NodeProto, source: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> str:
    if node.op_type in _INPUT_OPERATORS:
        return "cast and scale"
    if node.op_type != "Conv":
        return _KINDS[node.op_type]
    if math.prod(source[3:]) == 1:
        return "gate: weights"
    if source[1] == 3:  # noqa: PLR2004 - colours
        return "stem convolution"
    return "convolution " + "x".join(map(str, shapes[node.input[1]][2:]))


def _work(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """Return flops, flops without padding, and other operations of a node."""
    source, output = shapes[node.input[0]], math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return *_convolution(node, source, shapes[node.input[1]], shapes[node.output[0]]), 0
    if node.op_type == "Gemm":
        flops = 2 * output * shapes[node.input[1]][_attributes(node).get("transB", 0)]
        return flops, flops, 0
    if node.op_type == "MaxPool":
        return 0, 0, output * math.prod(_attributes(node)["kernel_shape"])
    if node.op_type in {"ReduceMean", "GlobalAveragePool"}:
        return 0, 0, math.prod(source)
    if node.op_type in {"Mul", "Sigmoid", *_INPUT_OPERATORS}:
        return 0, 0, output
    if node.op_type in {"Concat", "Flatten"}:
        return 0, 0, 0
    raise ValueError(f"operator {node.op_type} of {node.name} is not counted here; add it to {__name__}")


def _convolution(
    node: onnx.NodeProto, source: tuple[int, ...], weight: tuple[int, ...], output: tuple[int, ...]
) -> tuple[int, int]:
    """Return twice the multiply-adds of a convolution, with and without those by padding."""
    attributes = _attributes(node)
    rank = len(weight) - 2
    pads = attributes.get("pads", [0] * (2 * rank))
    strides, dilations = (attributes.get(name, [1] * rank) for name in ("strides", "dilations"))
    inside = [
        _pairs_inside(source[axis + 2], output[axis + 2], weight[axis + 2], strides[axis], dilations[axis], pads[axis])
        for axis in range(rank)
    ]
    channels = 2 * output[0] * weight[0] * weight[1]  # weight[1] is of one group
    return channels * math.prod(weight[2:]) * math.prod(output[2:]), channels * math.prod(inside)


def _pairs_inside(size: int, outputs: int, taps: int, stride: int, dilation: int, pad: int) -> int:
    """Return how many (output, tap) pairs of one axis meet a value and not padding."""
    places = np.arange(outputs)[:, None] * stride - pad + np.arange(taps) * dilation
    return int(((places >= 0) & (places < size)).sum())


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
