"""Recognises the text tower and the projection in an ONNX graph, by what is connected with what.

Names differ from exporter to exporter, and so do opsets and whether a bias is an operator of its own. A graph that has
one operator more, or one attribute else, is another function, and is not taken for the tower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.text_tower import Linear, TextWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce.onnx_reader import Node, OnnxGraph

_MATRIX = 2
_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def text_weights(graph: OnnxGraph) -> TextWeights | None:
    """Return the weights if the graph is a text tower, else None.

    That is, from its one input (ids) to its one output: Gather of rows of a table, a linear layer, ReLU and the
    maximum over axis 1 in either order, a linear layer.
    """
    walk = _Walk(graph)
    last = walk.linear()
    relu = walk.relu()
    maximum = walk.maximum()
    relu = relu or walk.relu()
    first = walk.linear()
    table = walk.gather()
    if last is None or not relu or not maximum or first is None or table is None or not walk.ended():
        return None
    if table.shape[1] != len(first.weight) or len(first.bias) != len(last.weight):
        return None
    return TextWeights(table, first, last)


def projection_weights(graph: OnnxGraph) -> Linear | None:
    """Return the layer if the graph is one linear layer from its one input to its one output, else None."""
    walk = _Walk(graph)
    layer = walk.linear()
    return layer if walk.ended() else None


class _Walk:
    """Walks a graph from its output to its input, and takes what it expects at each step if it is there."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._makers = {node.outputs[0]: node for node in graph.nodes if len(node.outputs) == 1}
        self._at = graph.outputs[0] if len(graph.outputs) == 1 else ""
        self._taken = 0

    def ended(self) -> bool:
        """Whether the walk has come to the graph's one input, and no operator lay beside its way."""
        return (self._at,) == self._graph.inputs and self._taken == len(self._graph.nodes)

    def linear(self) -> Linear | None:
        """Take Gemm, MatMul and Add, or MatMul alone."""
        node = self._take("Gemm", **_GEMM, transB=0) or self._take("Gemm", **_GEMM, transB=1)
        if node is not None:
            transposed = node.attributes.get("transB", 0) == 1
            return self._gemm(node, transposed=transposed)
        bias = None
        node = self._take("Add")
        if node is not None:
            bias, value = self._weight_and_value(node)
            if bias is None or value is None:
                return None
            self._at = value
        node = self._take("MatMul")
        if node is None or len(node.inputs) != 2:  # noqa: PLR2004 - two operands
            return None
        self._at = node.inputs[0]
        return _layer(self._weight(node.inputs[1]), bias)

    def relu(self) -> bool:
        """Take Relu."""
        return self._follow(self._take("Relu"))

    def maximum(self) -> bool:
        """Take ReduceMax over axis 1; the axes are an attribute before opset 18, and an input from there on."""
        attribute = self._take("ReduceMax", keepdims=0, axes=(1,)) or self._take("ReduceMax", keepdims=0, axes=(-2,))
        if attribute is not None:
            return len(attribute.inputs) == 1 and self._follow(attribute)
        node = self._take("ReduceMax", keepdims=0, noop_with_empty_axes=0)
        if node is None or len(node.inputs) != 2:  # noqa: PLR2004 - what to reduce, and along which axes
            return False
        axes = self._graph.weights.get(node.inputs[1])
        return axes is not None and axes.shape == (1,) and int(axes[0]) in {1, -2} and self._follow(node)

    def gather(self) -> NDArray[np.float32] | None:
        """Take Gather of rows of a matrix."""
        node = self._take("Gather", axis=0)
        if node is None or len(node.inputs) != 2:  # noqa: PLR2004 - the table and the ids
            return None
        self._at = node.inputs[1]
        table = self._weight(node.inputs[0])
        return table if table is not None and table.ndim == _MATRIX else None

    def _gemm(self, node: Node, *, transposed: bool) -> Linear | None:
        if len(node.inputs) not in {2, 3}:
            return None
        bias = self._weight(node.inputs[2]) if len(node.inputs) == 3 else None  # noqa: PLR2004 - with a bias
        weight = self._weight(node.inputs[1])
        if weight is None or (bias is None and len(node.inputs) == 3):  # noqa: PLR2004 - likewise
            return None
        self._at = node.inputs[0]
        return _layer(weight.T if transposed else weight, bias)

    def _weight_and_value(self, node: Node) -> tuple[NDArray[np.float32] | None, str | None]:
        """Tell the operands of an Add apart: the one that is a weight, and the name of the other."""
        for name, other in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():  # noqa: PLR2004
            weight = self._weight(name)
            if weight is not None:
                return weight, other
        return None, None

    def _take(self, kind: str, **expected: float | tuple[int, ...]) -> Node | None:
        """Take the operator that makes the tensor under way.

        Args:
            kind: Its type.
            expected: What its attributes must be; it must have no others. One that the graph leaves out has the value
                of `_DEFAULTS`.
        """
        node = self._makers.get(self._at)
        if node is None or node.kind != kind or not set(node.attributes) <= set(expected):
            return None
        if any(node.attributes.get(name, _DEFAULTS.get(name)) != value for name, value in expected.items()):
            return None
        self._taken += 1
        return node

    def _follow(self, node: Node | None) -> bool:
        if node is None or not node.inputs:
            return False
        self._at = node.inputs[0]
        return True

    def _weight(self, name: str) -> NDArray[Any] | None:
        values = self._graph.weights.get(name)
        return values if values is not None and values.dtype.kind == "f" else None


# ONNX's own, of attributes that are not written. `axes` has none.
_DEFAULTS: dict[str, float] = {**_GEMM, "transB": 0, "axis": 0, "keepdims": 1, "noop_with_empty_axes": 0}


def _layer(weight: NDArray[np.float32] | None, bias: NDArray[np.float32] | None) -> Linear | None:
    if weight is None or weight.ndim != _MATRIX:
        return None
    if bias is None:
        bias = np.zeros(weight.shape[1], np.float32)
    return Linear(weight, bias) if bias.shape == (weight.shape[1],) else None
