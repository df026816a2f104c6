"""Graphs for TensorRT 8.5: opset 17, the same numbers, and nothing that its parser would misread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from helpers.graphs import ROWS, build, inferred, integers, normal, operators, run, serialised, weights_of
from milnce_convert.export import export_projection, export_text, export_video, half_precision
from milnce_convert.fixtures import moving_clips, random_tokens
from milnce_convert.lowering import lower_to_opset_17

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    from helpers.graphs import Traced
    from milnce_convert.export import ExportedGraph

# "Supported Types" of TensorRT 8.5.3, from docs/operators.md of github.com/onnx/onnx-tensorrt at 84fd16d. INT64 is read
# as INT32; UINT8 is not in that table, but builtin_op_importers.cpp there lets Cast take it to FP32 or FP16.
TENSORRT_8_5 = {
    "Add": {"FLOAT", "FLOAT16", "INT32", "INT64"},
    "Cast": {"FLOAT", "FLOAT16", "INT32", "INT64", "INT8", "BOOL", "UINT8"},
    "Concat": {"FLOAT", "FLOAT16", "INT32", "INT64", "INT8", "BOOL"},
    "Conv": {"FLOAT", "FLOAT16", "INT8"},
    "Div": {"FLOAT", "FLOAT16", "INT32", "INT64"},
    "Flatten": {"FLOAT", "FLOAT16", "INT32", "INT64", "BOOL"},
    "Gather": {"FLOAT", "FLOAT16", "INT8", "INT32", "INT64", "BOOL"},
    "Gemm": {"FLOAT", "FLOAT16", "INT8"},
    "GlobalAveragePool": {"FLOAT", "FLOAT16", "INT8"},
    "MatMul": {"FLOAT", "FLOAT16"},
    "MaxPool": {"FLOAT", "FLOAT16", "INT8"},
    "Mul": {"FLOAT", "FLOAT16", "INT32", "INT64"},
    "ReduceMax": {"FLOAT", "FLOAT16"},
    "ReduceMean": {"FLOAT", "FLOAT16"},
    "Relu": {"FLOAT", "FLOAT16", "INT8"},
    "Sigmoid": {"FLOAT", "FLOAT16", "INT8"},
    "Transpose": {"FLOAT", "FLOAT16", "INT32", "INT64", "INT8", "BOOL"},
}
GRAPHS = [
    *((f"video-{form}", precision) for form in ("uint8", "float32") for precision in ("fp32", "fp16")),
    ("text", "fp32"),
    ("text", "fp16"),
    ("projection", "fp32"),
]
# Clips, frames, height, width. Of 32 frames 4 steps reach the last mean over time; the pool before it makes 2 equal.
SIZES = [(2, 8, 64, 64), (3, 4, 34, 46), (1, 32, 96, 32), (2, 2, 2, 2)]


@pytest.fixture(scope="module")
def graphs(quarter: Traced) -> dict[tuple[str, str], ExportedGraph]:
    plain = {f"video-{form}": graph for form, graph in quarter.graphs().items()}
    plain["text"] = export_text(quarter.towers.text)
    made = {(name, "fp32"): graph for name, graph in plain.items()}
    made |= {(name, "fp16"): half_precision(graph) for name, graph in plain.items()}
    made["projection", "fp32"] = export_projection(quarter.towers.video)
    return made


@pytest.fixture(scope="module")
def lowered(graphs: dict[tuple[str, str], ExportedGraph]) -> dict[tuple[str, str], bytes]:
    return {key: lower_to_opset_17(graph.model) for key, graph in graphs.items()}


def _feeds(graph: ExportedGraph) -> list[dict[str, NDArray[Any]]]:
    """Return feeds of several sizes of every dynamic axis."""
    if graph.module == "text":
        return [{"tokens": random_tokens(count, ROWS, words=words)} for count, words in ((5, 16), (1, 1), (3, 30))]
    if graph.module == "projection":
        return [{"mixed_5c": normal(count, 256)} for count in (1, 7)]
    clips = [moving_clips(*size, seed=3) for size in SIZES]
    if graph.input_form == "float32":
        clips = [np.ascontiguousarray(clip.transpose(0, 4, 1, 2, 3) / np.float32(255)) for clip in clips]
    return [{"video": clip} for clip in clips]


def _differences(original: bytes, other: bytes, feeds: dict[str, NDArray[Any]]) -> list[str]:
    """Name the outputs that are not the same to the last bit."""
    expected, found = run(original, **feeds), run(other, **feeds)
    assert expected.keys() == found.keys()
    return [name for name, value in expected.items() if not np.array_equal(value, found[name])]


def _without_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its reductions' axes dropped from the inputs or attributes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    axes = {name for node in copy.graph.node if node.op_type.startswith("Reduce") for name in node.input[1:]}
    for node in copy.graph.node:
        if node.op_type.startswith("Reduce"):
            del node.input[1:]
            kept = [item for item in node.attribute if item.name != "axes"]
            del node.attribute[:]
            node.attribute.extend(kept)
    kept_weights = [weight for weight in copy.graph.initializer if weight.name not in axes]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept_weights)
    return copy


def _content(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return (node.name, node.op_type, list(node.input), list(node.output), attributes)


def _face(graph: onnx.GraphProto) -> list[tuple[str, onnx.TypeProto]]:
    """Return what a caller sees: the names, dtypes and axes of the inputs and outputs, in order."""
    return [(value.name, value.type) for value in (*graph.input, *graph.output)]


@pytest.mark.parametrize("key", GRAPHS)
def test_it_is_a_sound_graph_of_opset_17(lowered: dict[tuple[str, str], bytes], key: tuple[str, str]) -> None:
    proto = onnx.ModelProto.FromString(lowered[key])
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 17)]
    assert proto.ir_version == 8  # ONNX 1.12's, which TensorRT 8.5 was built with
    onnx.checker.check_model(proto, full_check=True)
    said = {value.name for value in (*proto.graph.value_info, *proto.graph.output)}
    assert {name for node in proto.graph.node for name in node.output} == said


@pytest.mark.parametrize("key", GRAPHS)
def test_the_numbers_are_the_same_to_the_last_bit(
    graphs: dict[tuple[str, str], ExportedGraph], lowered: dict[tuple[str, str], bytes], key: tuple[str, str]
) -> None:
    # ONNX Runtime has one kernel for both forms of a reduction, and everything else is untouched: no tolerance.
    for feeds in _feeds(graphs[key]):
        assert _differences(graphs[key].model, lowered[key], feeds) == []


@pytest.mark.parametrize("key", GRAPHS)
def test_nothing_changes_but_where_the_axes_stand(
    graphs: dict[tuple[str, str], ExportedGraph], lowered: dict[tuple[str, str], bytes], key: tuple[str, str]
) -> None:
    before, after = onnx.ModelProto.FromString(graphs[key].model), onnx.ModelProto.FromString(lowered[key])
    assert list(map(_content, _without_axes(after).graph.node)) == list(map(_content, _without_axes(before).graph.node))
    faces = [
        [(value.name, value.type) for value in (*graph.input, *graph.output)] for graph in (before.graph, after.graph)
    ]
    assert faces[1] == faces[0]
    assert after.graph.name == before.graph.name
    constants = weights_of(graphs[key].model)
    for old, new in zip(before.graph.node, after.graph.node, strict=True):
        if old.op_type in {"ReduceMean", "ReduceMax"}:
            (axes,) = [item for item in new.attribute if item.name == "axes"]
            assert list(axes.ints) == constants[old.input[1]].tolist()
            assert len(new.input) == 1


@pytest.mark.parametrize("key", GRAPHS)
def test_the_weights_are_there_once_and_unchanged(
    graphs: dict[tuple[str, str], ExportedGraph], lowered: dict[tuple[str, str], bytes], key: tuple[str, str]
) -> None:
    before = _without_axes(onnx.ModelProto.FromString(graphs[key].model))
    after = onnx.ModelProto.FromString(lowered[key])
    assert list(after.graph.initializer) == list(before.graph.initializer)
    assert 0.95 < len(lowered[key]) / len(graphs[key].model) <= 1


@pytest.mark.parametrize("key", GRAPHS)
def test_tensorrt_8_5_takes_every_operator_with_its_dtypes(
    lowered: dict[tuple[str, str], bytes], key: tuple[str, str]
) -> None:
    tensors = inferred(lowered[key])
    for node in tensors.proto.graph.node:
        assert node.domain == ""
        found = {TensorProto.DataType.Name(tensors.dtypes[name]) for name in (*node.input, *node.output)}
        assert found <= TENSORRT_8_5[node.op_type], node.name
    for weight in tensors.proto.graph.initializer:
        assert weight.data_type in {TensorProto.FLOAT, TensorProto.FLOAT16}, weight.name
        assert weight.HasField("raw_data")


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        # 37 gates, each a mean over space, then one over time; a single one would cost most of FP32's accuracy.
        (("video-uint8", "fp32"), {"ReduceMean": 74, "GlobalAveragePool": 1, "Sigmoid": 37}),
        (("video-float32", "fp16"), {"ReduceMean": 74, "GlobalAveragePool": 1, "Sigmoid": 37}),
        (("text", "fp16"), {"ReduceMax": 1, "Gather": 1}),
    ],
)
def test_the_two_steps_of_each_gates_mean_are_kept(
    lowered: dict[tuple[str, str], bytes], key: tuple[str, str], counts: dict[str, int]
) -> None:
    found = operators(lowered[key])
    assert {name: found[name] for name in counts} == counts


def _edit(model: bytes, position: int, change: Callable[[onnx.AttributeProto], None], attribute: str) -> bytes:
    """Change one attribute of one reduction of a lowered graph, with nothing left that would contradict it."""
    proto = onnx.ModelProto.FromString(model)
    node = [node for node in proto.graph.node if node.op_type in {"ReduceMean", "ReduceMax"}][position]
    (found,) = [item for item in node.attribute if item.name == attribute]
    change(found)
    if found.name == "axes" and not found.ints:
        node.attribute.remove(found)
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString())


def _is_seen(original: bytes, mutant: bytes, feeds: dict[str, NDArray[Any]]) -> bool:
    """Whether the mutant gives other numbers, or no longer fits together."""
    try:
        return bool(_differences(original, mutant, feeds))
    except (Fail, InvalidArgument, RuntimeException):
        return True


def _flip(attribute: onnx.AttributeProto) -> None:
    attribute.i = 1 - attribute.i


def _another_axis(attribute: onnx.AttributeProto) -> None:
    attribute.ints[-1] = {2: 4, 4: 2, 1: 0}[attribute.ints[-1]]


def _no_axes(attribute: onnx.AttributeProto) -> None:
    attribute.ints[:] = []


@pytest.mark.parametrize("key", [("video-float32", "fp32"), ("video-uint8", "fp16"), ("text", "fp32")])
@pytest.mark.parametrize("position", [0, -1])
@pytest.mark.parametrize(("change", "attribute"), [(_no_axes, "axes"), (_another_axis, "axes"), (_flip, "keepdims")])
def test_a_reduction_lowered_wrongly_is_seen(
    graphs: dict[tuple[str, str], ExportedGraph],
    lowered: dict[tuple[str, str], bytes],
    key: tuple[str, str],
    position: int,
    change: Callable[[onnx.AttributeProto], None],
    attribute: str,
) -> None:
    mutant = _edit(lowered[key], position, change, attribute)
    assert any(_is_seen(graphs[key].model, mutant, feeds) for feeds in _feeds(graphs[key]))


def test_older_and_lowered_graphs_are_taken_too(quarter: Traced, lowered: dict[tuple[str, str], bytes]) -> None:
    older = lower_to_opset_17(export_text(quarter.towers.text, opset=18).model)
    assert onnx.ModelProto.FromString(older).opset_import[0].version == 17
    assert lower_to_opset_17(lowered["text", "fp32"]) == lowered["text", "fp32"]


def test_a_graph_of_one_size_keeps_it(quarter: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    quarter.patch(monkeypatch)
    fixed = export_video(quarter.towers.video, fixed_size=(8, 64, 64))["uint8"]
    shapes = inferred(lower_to_opset_17(fixed.model)).shapes
    assert shapes["video"] == ["batch", 8, 64, 64, 3]


def test_no_axes_at_all_stay_every_axis() -> None:
    graph = serialised(build("g (float[n, 4] x) => (float y) { y = ReduceMean <keepdims = 0> (x) }"))
    values = normal(3, 4)
    assert _differences(graph, lower_to_opset_17(graph), {"x": values}) == []


def test_axes_shared_by_two_reductions_reach_both() -> None:
    graph = build(
        "g (float[n, 4, 5] x) => (float[n, 1, 1] y, float[n, 1, 1] z) {"
        " y = ReduceMean(x, axes) positive = Relu(x) z = ReduceMax(positive, axes) }",
        axes=integers(1, -1),
    )
    lowered = lower_to_opset_17(serialised(graph))
    assert weights_of(lowered) == {}
    assert _differences(serialised(graph), lowered, {"x": normal(2, 4, 5)}) == []
