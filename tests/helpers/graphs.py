"""Traced towers, made once a session, and small tools to build, run and look into ONNX graphs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from milnce_convert import export
from milnce_convert.fixtures import WORDS, seeded_towers
from milnce_convert.measure import run_graph
from milnce_convert.towers import TowersConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce_convert.checkpoint import Towers
    from milnce_convert.export import ExportedGraph

    Arrays = dict[str, NDArray[Any]]

ROWS = len(WORDS) + 1
REORDERED = 1e-5  # another order of the same FP32 additions; a wrong graph is off by more than 1e-1


@dataclass
class Traced:
    """Towers with the trace of their video tower, from which every form of the graph is derived in a second.

    Attributes:
        towers: The PyTorch towers.
        trace: The exporter's graph, before any rewrite.
    """

    towers: Towers
    trace: ir.Model
    _graphs: dict[bool, dict[str, ExportedGraph]] = field(default_factory=dict)

    def graphs(self, *, fold_stem: bool = True) -> dict[str, ExportedGraph]:
        """Return what `export_video` makes of the trace, by input form."""
        if fold_stem not in self._graphs:
            with pytest.MonkeyPatch.context() as patch:
                self.patch(patch)
                self._graphs[fold_stem] = export.export_video(self.towers.video, fold_stem=fold_stem)
        return self._graphs[fold_stem]

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Make `export_video` take this trace instead of tracing anew, which costs tens of seconds."""
        patch.setattr(export, "trace_video", lambda *_, **__: self.trace.clone())


def trace(towers: Towers) -> Traced:
    """Trace the towers' video tower."""
    return Traced(towers, export.trace_video(towers.video))


def short_towers(*, space_to_depth: bool = True) -> Towers:
    """Return towers of an eighth of the width with three Inception blocks: quick to trace."""
    config = TowersConfig.scaled(0.125, rows=ROWS, space_to_depth=space_to_depth)
    kept = ("mixed_3b", "mixed_4b", "mixed_5c")
    video = replace(config.video, blocks={name: config.video.blocks[name] for name in kept})
    return seeded_towers(0, TowersConfig(video, config.text))


def build(text: str, *, opset: int = 20, **weights: NDArray[Any]) -> ir.Model:
    """Parse `text` in ONNX's own notation, with `weights` as initializers and every shape inferred."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(proto, full_check=True)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def serialised(model: ir.Model) -> bytes:
    """Return a checked, serialised copy."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def run(model: ir.Model | bytes, **feeds: NDArray[Any]) -> Arrays:
    """Run a graph on ONNX Runtime."""
    return run_graph(model if isinstance(model, bytes) else serialised(model), feeds)


def operators(model: ir.Model | bytes) -> Counter[str]:
    """Count the operators of a graph."""
    if isinstance(model, bytes):
        return Counter(node.op_type for node in onnx.ModelProto.FromString(model).graph.node)
    return Counter(node.op_type for node in model.graph)


@dataclass(frozen=True)
class Tensors:
    """The element type and the shape that shape inference gives every tensor of a serialised graph."""

    proto: onnx.ModelProto
    dtypes: dict[str, int]
    shapes: dict[str, list[int | str]]


def inferred(model: bytes) -> Tensors:
    """Strip what the file says of its inner tensors and infer it again, so that the file is not believed."""
    proto = onnx.ModelProto.FromString(model)
    del proto.graph.value_info[:]
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True, data_prop=True)
    dtypes = {weight.name: weight.data_type for weight in proto.graph.initializer}
    shapes: dict[str, list[int | str]] = {weight.name: list(weight.dims) for weight in proto.graph.initializer}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        dtypes[value.name] = value.type.tensor_type.elem_type
        shapes[value.name] = [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
    return Tensors(proto, dtypes, shapes)


def weights_of(model: bytes) -> Arrays:
    """Return a graph's initializers by name."""
    graph = onnx.ModelProto.FromString(model).graph
    return {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}


def relative_error(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    """Return the largest difference over the largest absolute value of the reference."""
    assert reference.shape == candidate.shape
    return float(np.abs(candidate - reference).max() / np.abs(reference).max())


def apply(model: ir.Model, *rules: Any) -> int:  # noqa: ANN401  the rewriter's own rule class, untyped
    """Apply rules in place and return how often they matched."""
    return sum(rule.apply_to_model(model) for rule in rules)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return seeded normal values."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*values: int) -> NDArray[np.int64]:
    """Return int64 values, as shapes, pads and axes are."""
    return np.array(values, np.int64)


def assert_unchanged(model: ir.Model, *rules: Any) -> None:  # noqa: ANN401  as above
    """Check that none of the rules matches, and that the graph is the same byte for byte."""
    before = serialised(model)
    assert apply(model, *rules) == 0
    assert serialised(model) == before
