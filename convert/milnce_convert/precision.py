"""FP32 graph to FP16 graph, by casting tensors; precision is the dtype of the graph, not a builder's flag.

An own pass rather than a converter's: those insert a cast pair around every node that is kept in FP32, so that a
chain of kept nodes is rounded to FP16 between them, and they clamp small weights. Casting the exported FP32 graph,
rather than exporting a half model, keeps BatchNorm folded in FP32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from milnce.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable

_FP16_MAX = float(np.finfo(np.float16).max)

# Means over thousands of values and the gates' sigmoids, which FP16 would round before they scale whole channels.
_KEPT_OPERATORS = frozenset({"GlobalAveragePool", "Sigmoid", "Flatten", "ReduceMean"})


def kept_in_fp32(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes that stay FP32: means, gates, and the linear layer that makes an output.

    These work on one value a channel, so keeping them costs next to nothing.
    """
    outputs = set(graph.outputs)
    kept = {node for node in graph if node.op_type in _KEPT_OPERATORS}
    for node in graph:
        after_mean = (
            node.op_type in {"Conv", "Gemm"} and node.inputs[0] is not None and node.inputs[0].producer() in kept
        )
        makes_output = node.op_type == "Gemm" and any(value in outputs for value in node.outputs)
        if after_mean or makes_output:
            kept.add(node)
    return kept


def to_fp16(model: ir.Model) -> ir.Model:
    """Turn an FP32 graph into FP16, in place, its inputs' and outputs' dtypes unchanged.

    Raises:
        ExportError: if a weight does not fit FP16's range, or the graph is not FP32.
    """
    graph = model.graph
    kept = kept_in_fp32(graph)
    converter = _Caster(graph)
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is not None and converter.is_float(value):
                node.replace_input_with(
                    index, converter.cast(value, ir.DataType.FLOAT if node in kept else ir.DataType.FLOAT16)
                )
        if node in kept:
            continue
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT16)
        for value in node.outputs:
            if value.dtype in {ir.DataType.FLOAT, None} and _makes_float(node):
                value.dtype = ir.DataType.FLOAT16
    _check_outputs(graph.outputs)
    if not converter.converted:
        raise ExportError("no FP32 weight to convert: the graph given is not an FP32 export")
    converter.drop_unused()
    TopologicalSortPass()(model)
    return model


def _makes_float(node: ir.Node) -> bool:
    """Whether a node outside the FP32 islands makes floating-point data (Shape and its like make integers)."""
    return node.op_type not in {"Shape", "Gather"} or any(
        value is not None and value.dtype == ir.DataType.FLOAT16 for value in node.inputs
    )


def _check_outputs(outputs: Iterable[ir.Value]) -> None:
    for value in outputs:
        if value.dtype != ir.DataType.FLOAT:
            raise ExportError(f"output {value.name} would be {value.dtype}; its last linear layer was not found")


class _Caster:
    """Gives any float value in either precision: a converted copy of an initializer, or one shared Cast node."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.converted: dict[ir.Value, ir.Value] = {}
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    @staticmethod
    def is_float(value: ir.Value) -> bool:
        return value.dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16}

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        if value.is_initializer():
            return self._initializer(value)
        if (value, dtype) not in self._casts:
            self._casts[value, dtype] = self._node(value, dtype)
        return self._casts[value, dtype]

    def _initializer(self, value: ir.Value) -> ir.Value:
        if value not in self.converted:
            array = value.const_value.numpy() if value.const_value is not None else None
            if array is None:
                raise ExportError(f"initializer {value.name} holds no data")
            largest = float(np.abs(array).max(initial=0.0))
            if not largest <= _FP16_MAX:
                raise ExportError(
                    f"weight {value.name} reaches {largest:g}, beyond FP16's {_FP16_MAX:g}; "
                    "export without FP16: --precision fp32"
                )
            half = ir.Value(name=f"{value.name}.fp16", const_value=ir.tensor(array.astype(np.float16)))
            half.dtype, half.shape = ir.DataType.FLOAT16, value.shape
            self.graph.register_initializer(half)
            self.converted[value] = half
        return self.converted[value]

    def _node(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        suffix = "fp16" if dtype == ir.DataType.FLOAT16 else "fp32"
        output = ir.Value(name=f"{value.name}.{suffix}", shape=value.shape, type=ir.TensorType(dtype))
        cast = ir.node("Cast", [value], {"to": dtype}, outputs=[output], name=f"cast_{value.name}_{suffix}")
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(producer, cast)
        return output

    def drop_unused(self) -> None:
        for value in self.converted:
            if not value.uses() and value.name is not None:
                del self.graph.initializers[value.name]
