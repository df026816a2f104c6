"""A graph is taken for the text tower or the projection if it computes that, and never if it computes anything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers.tiny_bundle import TinyWeights, projection_graph, text_graph, video_graph
from milnce.onnx_reader import read_graph
from milnce.text_tower import TextTower
from milnce.tower_forms import projection_weights, text_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "table": RNG.standard_normal((20, 5), dtype=np.float32),
    "w1": RNG.standard_normal((5, 7), dtype=np.float32),
    "b1": RNG.standard_normal(7, dtype=np.float32),
    "w2": RNG.standard_normal((7, 4), dtype=np.float32),
    "b2": RNG.standard_normal(4, dtype=np.float32),
    "axis": np.array([1]),
    "minus": np.array([-2]),
    "zero": np.array([0]),
    "both": np.array([1, 2]),
}
ARRAYS["w2t"] = np.ascontiguousarray(ARRAYS["w2"].T)
ARRAYS["w1t"] = np.ascontiguousarray(ARRAYS["w1"].T)

Steps = list[tuple[str, list[str], str, dict[str, Any]]]

GATHER: Steps = [("Gather", ["table", "ids"], "e", {"axis": 0})]
FIRST: Steps = [("MatMul", ["e", "w1"], "m", {}), ("Add", ["m", "b1"], "h", {})]
RELU: Steps = [("Relu", ["h"], "r", {})]
MAXIMUM: Steps = [("ReduceMax", ["r", "axis"], "s", {"keepdims": 0})]
LAST: Steps = [("Gemm", ["s", "w2t", "b2"], "y", {"transB": 1, "alpha": 1.0, "beta": 1.0, "transA": 0})]

SAME: dict[str, tuple[Steps, int]] = {
    "as exported": (GATHER + FIRST + RELU + MAXIMUM + LAST, 20),
    "defaults left out": (
        [("Gather", ["table", "ids"], "e", {}), *FIRST, *RELU, *MAXIMUM, ("Gemm", ["s", "w2", "b2"], "y", {})],
        20,
    ),
    "bias first": (
        [*GATHER, ("MatMul", ["e", "w1"], "m", {}), ("Add", ["b1", "m"], "h", {}), *RELU, *MAXIMUM, *LAST],
        18,
    ),
    "no first bias": ([*GATHER, ("MatMul", ["e", "w1"], "h", {}), *RELU, *MAXIMUM, *LAST], 20),
    "no last bias": (GATHER + FIRST + RELU + MAXIMUM + [("Gemm", ["s", "w2"], "y", {})], 20),
    "last as MatMul and Add": (
        GATHER + FIRST + RELU + MAXIMUM + [("MatMul", ["s", "w2"], "l", {}), ("Add", ["l", "b2"], "y", {})],
        20,
    ),
    "ReLU after the maximum": (
        GATHER + FIRST + [("ReduceMax", ["h", "axis"], "r0", {"keepdims": 0}), ("Relu", ["r0"], "s", {})] + LAST,
        20,
    ),
    "axes counted from the end": (
        GATHER + FIRST + RELU + [("ReduceMax", ["r", "minus"], "s", {"keepdims": 0, "noop_with_empty_axes": 0})] + LAST,
        20,
    ),
    "opset 17": (GATHER + FIRST + RELU + [("ReduceMax", ["r"], "s", {"keepdims": 0, "axes": [1]})] + LAST, 17),
    "opset 13, from the end": (
        GATHER + FIRST + RELU + [("ReduceMax", ["r"], "s", {"keepdims": 0, "axes": [-2]})] + LAST,
        13,
    ),
}

# Each gives other numbers than the tower, or might.
OTHER: dict[str, Steps] = {
    "no ReLU": GATHER + FIRST + [("ReduceMax", ["h", "axis"], "s", {"keepdims": 0})] + LAST,
    "another activation": GATHER + FIRST + [("Tanh", ["h"], "r", {})] + MAXIMUM + LAST,
    "two ReLUs": GATHER + FIRST + [("Relu", ["h"], "h2", {}), ("Relu", ["h2"], "r", {})] + MAXIMUM + LAST,
    "the mean": GATHER + FIRST + RELU + [("ReduceMean", ["r", "axis"], "s", {"keepdims": 0})] + LAST,
    "over the batch": GATHER + FIRST + RELU + [("ReduceMax", ["r", "zero"], "s", {"keepdims": 0})] + LAST,
    "over both axes": GATHER + FIRST + RELU + [("ReduceMax", ["r", "both"], "s", {"keepdims": 0})] + LAST,
    "kept axis": GATHER + FIRST + RELU + [("ReduceMax", ["r", "axis"], "s", {})] + LAST,
    "axes that are not given": GATHER + FIRST + RELU + [("ReduceMax", ["r"], "s", {"keepdims": 0})] + LAST,
    "axes that are computed": [
        *GATHER,
        *FIRST,
        *RELU,
        ("Identity", ["axis"], "computed", {}),
        ("ReduceMax", ["r", "computed"], "s", {"keepdims": 0}),
        *LAST,
    ],
    "another axis of the table": [("Gather", ["table", "ids"], "e", {"axis": 1}), *FIRST, *RELU, *MAXIMUM, *LAST],
    "scaled": GATHER + FIRST + RELU + MAXIMUM + [("Gemm", ["s", "w2", "b2"], "y", {"alpha": 2.0})],
    "bias scaled": GATHER + FIRST + RELU + MAXIMUM + [("Gemm", ["s", "w2", "b2"], "y", {"beta": 0.0})],
    "transposed input": GATHER + FIRST + RELU + MAXIMUM + [("Gemm", ["s", "w2", "b2"], "y", {"transA": 1})],
    "an unknown attribute": GATHER + FIRST + [("Relu", ["h"], "r", {"slope": 0.5})] + MAXIMUM + LAST,
    "an operator more at the end": [
        *GATHER,
        *FIRST,
        *RELU,
        *MAXIMUM,
        *LAST[:-1],
        ("Gemm", ["s", "w2t", "b2"], "y0", {"transB": 1}),
        ("Neg", ["y0"], "y", {}),
    ],
    "an operator more in the middle": GATHER
    + FIRST
    + RELU
    + MAXIMUM
    + [("Neg", ["s"], "n", {})]
    + [("Gemm", ["n", "w2t", "b2"], "y", {"transB": 1})],
    "an operator more before": [
        ("Abs", ["ids"], "a", {}),
        ("Gather", ["table", "a"], "e", {}),
        *FIRST,
        *RELU,
        *MAXIMUM,
        *LAST,
    ],
    "an operator beside": [*GATHER, *FIRST, *RELU, *MAXIMUM, *LAST, ("Neg", ["s"], "unused", {})],
    "its own input added": [
        *GATHER,
        ("MatMul", ["e", "w1"], "m", {}),
        ("Add", ["m", "m"], "h", {}),
        *RELU,
        *MAXIMUM,
        *LAST,
    ],
    "weight on the left": [*GATHER, ("MatMul", ["w1t", "e"], "h", {}), *RELU, *MAXIMUM, *LAST],
    "a bias that does not fit": [
        *GATHER,
        ("MatMul", ["e", "w1"], "m", {}),
        ("Add", ["m", "b2"], "h", {}),
        *RELU,
        *MAXIMUM,
        *LAST,
    ],
    "a bias that is computed": [
        *GATHER,
        *FIRST,
        *RELU,
        *MAXIMUM,
        ("Neg", ["b2"], "nb", {}),
        ("Gemm", ["s", "w2t", "nb"], "y", {"transB": 1}),
    ],
    "layers that do not fit": [*GATHER, *FIRST, *RELU, *MAXIMUM, ("Gemm", ["s", "w1", "b1"], "y", {})],
    "ids as weights": [("Gather", ["axis", "ids"], "e", {}), *FIRST, *RELU, *MAXIMUM, *LAST],
    "another domain": GATHER + FIRST + [("Relu", ["h"], "r", {"domain": "com.example"})] + MAXIMUM + LAST,
}


def model_of(steps: Steps, opset: int = 20) -> bytes:
    nodes = [helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in steps]
    named = {name for _, inputs, _, _ in steps for name in inputs}
    tensors = [numpy_helper.from_array(array, name) for name, array in ARRAYS.items() if name in named]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "words"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "g", [ids], [y], tensors)
    opsets = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@pytest.mark.parametrize("name", SAME)
def test_the_tower_is_known_however_it_is_written_and_gives_onnx_runtimes_numbers(name: str) -> None:
    steps, opset = SAME[name]
    model = model_of(steps, opset)
    onnx.checker.check_model(model, full_check=True)
    weights = text_weights(read_graph(model, "m.onnx"))
    assert weights is not None
    tokens = np.random.default_rng(1).integers(0, 20, (9, 6))
    expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"ids": tokens})[0]
    np.testing.assert_allclose(TextTower(weights)(tokens), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", OTHER)
def test_what_computes_something_else_is_not_the_tower(name: str) -> None:
    assert text_weights(read_graph(model_of(OTHER[name]), "m.onnx")) is None


def change(edit: Callable[[onnx.GraphProto], object]) -> bytes:
    model = onnx.load_model_from_string(model_of(SAME["as exported"][0]))
    edit(model.graph)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "edit",
    [
        lambda graph: graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ["n", 7])),
        lambda graph: graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1])),
        lambda graph: graph.ClearField("output"),
        lambda graph: graph.ClearField("input"),
        lambda graph: graph.node[0].ClearField("input"),
        lambda graph: graph.node[3].ClearField("input"),
        lambda graph: graph.node[4].ClearField("input"),
        lambda graph: graph.node[1].input.pop(),
        lambda graph: graph.node[2].input.pop(),
        lambda graph: graph.node[5].ClearField("input"),
        lambda graph: graph.node[3].output.append("second"),
        lambda graph: graph.sparse_initializer.append(onnx.SparseTensorProto()),
        lambda graph: graph.initializer[0].ClearField("raw_data"),
    ],
)
def test_a_graph_that_lacks_something_is_not_the_tower(edit: Callable[[onnx.GraphProto], object]) -> None:
    assert text_weights(read_graph(change(edit), "m.onnx")) is None


def test_a_ring_of_operators_ends() -> None:
    # ONNX forbids it, and nothing checked it here.
    steps = [*FIRST, *RELU, *MAXIMUM, *LAST, ("Gather", ["table", "y"], "e", {})]
    assert text_weights(read_graph(model_of(steps), "m.onnx")) is None


def test_the_projection_is_one_linear_layer() -> None:
    weights = TinyWeights.seeded()
    layer = projection_weights(read_graph(projection_graph(weights), "m.onnx"))
    assert layer is not None
    np.testing.assert_array_equal(layer.weight, weights.fc.T)
    np.testing.assert_array_equal(layer.bias, weights.fc_bias)
    for other in (text_graph(weights), video_graph(weights), model_of(OTHER["scaled"][-1:])):
        assert projection_weights(read_graph(other, "m.onnx")) is None
    assert text_weights(read_graph(projection_graph(weights), "m.onnx")) is None


def test_the_fp16_tower_is_another_function() -> None:
    assert text_weights(read_graph(text_graph(TinyWeights.seeded(), precision="fp16"), "m.onnx")) is None
