"""FP16 graphs: what is FP16, what stays FP32, and that the cast is refused where it would lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from helpers.graphs import build, inferred, operators, run, weights_of
from milnce.errors import ExportError
from milnce_convert import measure
from milnce_convert.export import export_projection, export_text, half_precision
from milnce_convert.fixtures import moving_clips, random_tokens
from milnce_convert.parity import FP16_GATE, compare
from milnce_convert.precision import to_fp16

if TYPE_CHECKING:
    from helpers.graphs import Tensors, Traced
    from milnce_convert.export import ExportedGraph

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT
ISLAND = {"Sigmoid", "ReduceMean", "GlobalAveragePool", "Flatten", "Gemm"}


@pytest.fixture(scope="module")
def half(quarter: Traced) -> dict[str, ExportedGraph]:
    return {form: half_precision(graph) for form, graph in quarter.graphs().items()}


def _producers(tensors: Tensors) -> dict[str, onnx.NodeProto]:
    return {name: node for node in tensors.proto.graph.node for name in node.output}


def _is_gate(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> bool:
    """Whether a convolution belongs to a gate: its input is a mean."""
    source = producers.get(node.input[0])
    return source is not None and source.op_type in ISLAND


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_the_main_path_is_fp16_and_the_gates_and_the_end_are_fp32(half: dict[str, ExportedGraph], form: str) -> None:
    tensors = inferred(half[form].model)
    producers = _producers(tensors)
    counts = {FP16: 0, FP32: 0}
    for node in tensors.proto.graph.node:
        if node.op_type == "Cast":
            continue
        kept = node.op_type in ISLAND or (node.op_type == "Conv" and _is_gate(node, producers))
        expected = FP32 if kept else FP16
        floats = [name for name in (*node.input, *node.output) if tensors.dtypes.get(name) in {FP16, FP32}]
        # Not the integer axes of a mean; all that is floating point must be of the one dtype.
        assert floats
        assert {tensors.dtypes[name] for name in floats} == {expected}, (node.op_type, node.name)
        counts[expected] += node.op_type == "Conv"
    assert counts == {FP16: 76, FP32: 37}


def test_no_chain_of_fp32_nodes_is_rounded_in_between(half: dict[str, ExportedGraph]) -> None:
    tensors = inferred(half["uint8"].model)
    producers = _producers(tensors)
    casts = [node for node in tensors.proto.graph.node if node.op_type == "Cast"]
    sources = {node.input[0] for node in casts}
    assert len(sources) == len(casts), "one cast a value"
    for node in casts:
        following = [other.op_type for other in tensors.proto.graph.node if node.output[0] in other.input]
        if tensors.dtypes[node.output[0]] == FP32:
            assert set(following) <= {"ReduceMean", "GlobalAveragePool"}, "into an island only at its mean"
        elif node.input[0] != "video":
            assert (producers[node.input[0]].op_type, following) == ("Sigmoid", ["Mul"]), (
                "out of an island only after its sigmoid"
            )
    # One in and one out a gate, one into the last mean, one of the input.
    assert len(casts) == 2 * 37 + 1 + 1


def test_inputs_and_outputs_keep_their_dtypes(quarter: Traced, half: dict[str, ExportedGraph]) -> None:
    for form, graph in half.items():
        plain = quarter.graphs()[form]
        assert (graph.inputs, graph.outputs, graph.opset) == (plain.inputs, plain.outputs, plain.opset)
        assert (graph.precision, graph.module, graph.input_form) == ("fp16", "video", form)
        tensors = inferred(graph.model)
        assert tensors.dtypes["video"] == (TensorProto.UINT8 if form == "uint8" else FP32)
        assert tensors.dtypes["video_embedding"] == tensors.dtypes["mixed_5c"] == FP32


def test_no_fp32_copy_of_an_fp16_weight_stays(quarter: Traced, half: dict[str, ExportedGraph]) -> None:
    plain, cast = (weights_of(graph.model) for graph in (quarter.graphs()["uint8"], half["uint8"]))
    assert len(cast) == len(plain)
    large = [array.dtype for array in cast.values() if array.ndim == 5 and max(array.shape[2:]) > 1]
    assert len(large) == 1 + 2 + 9 * 4
    assert set(large) == {np.dtype(np.float16)}
    assert len(half["uint8"].model) < 0.75 * len(quarter.graphs()["uint8"].model)


def test_batchnorm_is_folded_in_fp32_before_the_cast(quarter: Traced, half: dict[str, ExportedGraph]) -> None:
    unit = quarter.towers.video.get_submodule("mixed_4c.conv_b1_b")
    state = {name: value.double() for name, value in unit.state_dict().items()}
    scale = state["bn1.weight"] / torch.sqrt(state["bn1.running_var"] + 1e-5)
    folded = (state["conv1.weight"] * scale.view(-1, 1, 1, 1, 1)).numpy()
    found = weights_of(half["uint8"].model)
    (weight,) = [
        array for name, array in found.items() if "mixed_4c.conv_b1_b.conv1.weight" in name and array.ndim == 5
    ]
    assert weight.dtype == np.float16
    # Half a unit in FP16's last place of the exact product: one rounding, not one of each factor.
    spacing = np.spacing(np.abs(folded).astype(np.float16)).astype(np.float64)
    assert (np.abs(weight.astype(np.float64) - folded) <= 0.501 * spacing + 1e-9).all()
    twice = (state["conv1.weight"].half() * scale.half().view(-1, 1, 1, 1, 1)).numpy()
    assert not np.array_equal(twice, weight), "folding in FP16 would be seen here"


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_outputs_differ_from_fp32s_and_lie_within_the_gate(full: Traced, form: str) -> None:
    graph = full.graphs()[form]
    clips = moving_clips(6, 16, 64, 64, seed=7)
    video = clips if form == "uint8" else (clips / np.float32(255)).transpose(0, 4, 1, 2, 3).astype(np.float32)
    plain, cast = run(graph.model, video=video), run(half_precision(graph).model, video=video)
    for name, value in plain.items():
        agreement = compare(value, cast[name])
        assert not agreement.identical
        assert FP16_GATE.failures(agreement) == []
        assert agreement.relative_error > 1e-5, "FP16 must be seen to round"


def test_text_tower_keeps_its_last_layer_in_fp32(quarter: Traced) -> None:
    plain = export_text(quarter.towers.text)
    graph = half_precision(plain)
    tensors = inferred(graph.model)
    for node in tensors.proto.graph.node:
        if node.op_type != "Cast":
            expected = FP32 if node.op_type == "Gemm" else FP16
            assert tensors.dtypes[node.output[0]] == expected, node.op_type
    assert tensors.dtypes["tokens"] == TensorProto.INT64
    assert operators(graph.model)["Cast"] == 1
    tokens = random_tokens(16, quarter.towers.text.config.rows)
    agreement = compare(*(run(item.model, tokens=tokens)["text_embedding"] for item in (plain, graph)))
    assert not agreement.identical
    assert FP16_GATE.failures(agreement) == []


def test_a_weight_beyond_fp16_is_refused() -> None:
    model = build(
        "g (float[N, 2] x) => (float[N, 2] y) { h = MatMul(x, heavy)\n y = Gemm(h, w) }",
        heavy=np.array([[1.0, 7e4], [0.0, -8.5e4]], np.float32),
        w=np.eye(2, dtype=np.float32),
    )
    with pytest.raises(ExportError) as caught:
        to_fp16(model)
    assert str(caught.value) == "weight heavy reaches 85000, beyond FP16's 65504; export without FP16: --precision fp32"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    model = build(
        "g (float[N, 1] x) => (float[N, 1] y) { h = MatMul(x, heavy)\n y = Gemm(h, w) }",
        heavy=np.array([[value]], np.float32),
        w=np.eye(1, dtype=np.float32),
    )
    with pytest.raises(ExportError, match="beyond FP16's 65504; export without FP16: --precision fp32"):
        to_fp16(model)


def test_a_weight_that_stays_fp32_may_be_large() -> None:
    model = build(
        "g (float[N, 2] x) => (float[N, 2] y) { h = MatMul(x, light)\n y = Gemm(h, w) }",
        light=np.eye(2, dtype=np.float32),
        w=np.eye(2, dtype=np.float32) * 1e6,
    )
    x = np.array([[1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(run(to_fp16(model), x=x)["y"], x * 1e6)


def test_casting_twice_is_refused(quarter: Traced, half: dict[str, ExportedGraph]) -> None:
    for graph in (half["uint8"], half_precision(export_text(quarter.towers.text))):
        with pytest.raises(ExportError, match="no FP32 weight to convert: the graph given is not an FP32 export"):
            half_precision(graph)


def test_a_graph_whose_last_layer_is_not_linear_is_refused() -> None:
    model = build(
        "g (float[N, 2] x) => (float[N, 2] y) { h = MatMul(x, w)\n y = Relu(h) }", w=np.eye(2, dtype=np.float32)
    )
    with pytest.raises(ExportError, match="output y would be FLOAT16; its last linear layer was not found"):
        to_fp16(model)


def test_the_projection_alone_has_nothing_to_cast(quarter: Traced) -> None:
    with pytest.raises(ExportError, match="no FP32 weight to convert"):
        half_precision(export_projection(quarter.towers.video))


def test_integer_arithmetic_on_shapes_stays_integer(quarter: Traced) -> None:
    graph = half_precision(quarter.graphs(fold_stem=False)["uint8"])
    tensors = inferred(graph.model)
    shapes = [node for node in tensors.proto.graph.node if node.op_type == "Shape"]
    assert shapes
    assert {tensors.dtypes[node.output[0]] for node in shapes} == {TensorProto.INT64}
    clips = moving_clips(2, 4, 32, 48)
    assert run(graph.model, video=clips)["video_embedding"].dtype == np.float32
    assert ir.serde.deserialize_model(tensors.proto).graph.inputs[0].dtype == ir.DataType.UINT8


def test_an_arm_processor_with_fp16_arithmetic_measures_the_weights_rounding_in_fp32(
    half: dict[str, ExportedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clips = half["uint8"].model, moving_clips(2, 8, 32, 32, seed=3)
    found = measure.run_graph(model, {"video": clips})
    monkeypatch.setattr(measure, "arm_features", lambda: ("asimdhp",))
    on_arm = measure.run_graph(model, {"video": clips})
    proto = onnx.load_from_string(measure.in_fp32(model))
    assert {tensor.data_type for tensor in proto.graph.initializer} == {FP32, TensorProto.INT64}
    assert not any(attribute.i == FP16 for node in proto.graph.node for attribute in node.attribute)
    for name, values in found.items():
        assert np.abs(values - on_arm[name]).max() > 0  # activations are rounded in the one alone
        assert FP16_GATE.failures(compare(values, on_arm[name])) == []
