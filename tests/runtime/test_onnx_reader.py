"""The ONNX reader gives what the onnx package gives, or refuses; nothing else, whatever the bytes are."""

from __future__ import annotations

import re
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from helpers.tiny_bundle import TinyWeights, projection_graph, text_graph, video_graph
from milnce.errors import BundleError
from milnce.onnx_reader import OnnxGraph, read_graph
from milnce.tower_forms import projection_weights, text_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTS = TinyWeights.seeded()
TEXT = text_graph(WEIGHTS)


def model_of(*nodes: onnx.NodeProto, tensors: Sequence[onnx.TensorProto] = ()) -> bytes:
    """Return a model of these operators, unchecked."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph(nodes, "g", [x], [y], list(tensors))
    return bytes(helper.make_model(graph, ir_version=10).SerializeToString())


def refusal(model: bytes) -> str | None:
    """Read the model and look for both forms; return why it is refused, or None."""
    try:
        graph = read_graph(model, "m.onnx")
        text_weights(graph)
        projection_weights(graph)
    except BundleError as error:
        return str(error)
    return None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("make", [text_graph, video_graph])
def test_it_reads_what_the_onnx_package_reads(make: object, precision: str) -> None:
    data = make(WEIGHTS, precision=precision)  # type: ignore[operator] # one of two functions
    expected = onnx.load_model_from_string(data).graph
    for given_bytes in (data, memoryview(data)):
        found = read_graph(given_bytes, "m.onnx")
        assert found.inputs == tuple(value.name for value in expected.input)
        assert found.outputs == tuple(value.name for value in expected.output)
        assert [(node.kind, node.inputs, node.outputs) for node in found.nodes] == [
            (node.op_type, tuple(node.input), tuple(node.output)) for node in expected.node
        ]
        for node, right in zip(found.nodes, expected.node, strict=True):
            values = {item.name: helper.get_attribute_value(item) for item in right.attribute}
            assert node.attributes == {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        tensors = {item.name: numpy_helper.to_array(item) for item in expected.initializer}
        kept = {name for name, array in tensors.items() if array.dtype in (np.float32, np.int64)}
        assert set(found.weights) == kept
        for name in kept:
            np.testing.assert_array_equal(found.weights[name], tensors[name])
            assert found.weights[name].dtype == tensors[name].dtype
            assert not found.weights[name].flags.writeable


def test_weights_are_views_and_not_copies() -> None:
    big = numpy_helper.from_array(np.ones((1000, 1000), np.float32), "w")
    data = model_of(helper.make_node("Relu", ["x"], ["y"]), tensors=[big])
    tracemalloc.start()
    graph = read_graph(data, "m.onnx")
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert graph.weights["w"].sum() == 1_000_000
    assert held < 100_000


def test_attributes_of_every_kind() -> None:
    node = helper.make_node(
        "Odd", ["x", ""], ["y"], domain="com.example", axes=[-1, 2], keep=-3, alpha=0.5, name_="text", list_=[0.5]
    )
    (found,) = read_graph(model_of(node), "m.onnx").nodes
    assert (found.kind, found.inputs) == ("com.example.Odd", ("x", ""))
    assert found.attributes == {"axes": (-1, 2), "keep": -3, "alpha": 0.5, "name_": None, "list_": None}
    own = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")
    assert read_graph(model_of(own), "m.onnx").nodes[0].kind == "Relu"


def test_numbers_may_be_written_one_by_one() -> None:
    # proto2 writers did so; protobuf's rule is that readers take both.
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, raw_data=np.arange(6, dtype="<f4").tobytes())
    data = tensor.SerializeToString() + b"\x08\x02\x08\x03"  # dims: field 1 as varints
    graph = b"\x2a" + bytes([len(data)]) + data
    model = b"\x3a" + bytes([len(graph)]) + graph
    np.testing.assert_array_equal(read_graph(model, "m").weights["w"], np.arange(6.0).reshape(2, 3))


def test_what_is_not_read_is_left_out() -> None:
    tensors = [
        numpy_helper.from_array(np.ones(2, np.float16), "half"),
        helper.make_tensor("listed", TensorProto.FLOAT, [2], [1.0, 2.0]),
        numpy_helper.from_array(np.ones((0, 3), np.float32), "empty"),
        numpy_helper.from_array(np.array(2, np.float32), "scalar"),
    ]
    model = onnx.load_model_from_string(model_of(helper.make_node("Relu", ["x"], ["y"]), tensors=tensors))
    model.graph.input.append(helper.make_tensor_value_info("half", TensorProto.FLOAT16, [2]))
    model.graph.sparse_initializer.append(onnx.SparseTensorProto())
    graph = read_graph(model.SerializeToString(), "m.onnx")
    assert {name: values.tolist() for name, values in graph.weights.items()} == {"scalar": 2.0}
    assert graph.inputs == ("x",)  # what is an initializer too is not given by the caller
    assert [node.kind for node in graph.nodes] == ["Relu", "sparse_initializer"]


def tensor(dims: Sequence[int], raw: bytes, kind: int = TensorProto.FLOAT) -> bytes:
    item = TensorProto(name="w", data_type=kind, dims=dims, raw_data=raw)
    return model_of(helper.make_node("Relu", ["x"], ["y"]), tensors=[item])


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (tensor([1], b"\0" * 8), r"the shape \(1,\) of 'w' does not fit its 8 bytes"),
        (tensor([3], b"\0" * 8), r"the shape \(3,\) of 'w' does not fit its 8 bytes"),
        (tensor([2**62, 4], b""), "does not fit its 0 bytes"),
        (tensor([2**33, 2**33], b"\0" * 8), "does not fit its 8 bytes"),  # 2**66 numbers, 0 in 64 bits
        (tensor([-2, -1], b"\0" * 8), r"the shape \(-2, -1\)"),
        (tensor([1], b"\0" * 4, TensorProto.INT64), "does not fit its 4 bytes"),
        (tensor([1] * 17, b"\0" * 4), "a list of more than 16 numbers"),
        (b"", "it has 0 graphs"),
        (TEXT + TEXT, "it has 2 graphs"),
        (b"\x38\x01", "is not an ONNX model"),  # the graph as a number
        (b"\x3a\x02\x0a\x00" + b"\x08", "is not an ONNX model"),  # a field that is cut
        (b"\x3b\x3c", "is not an ONNX model"),  # a group, which nothing of today writes
        (b"\x3a\x04\x0a\x02\x22\x7f", "is not an ONNX model"),  # a name that ends after its operator
        (b"\x3a\x05\x0a\x03\x22\x01\xff", "'utf-8' codec"),
        (b"\x3a\x04\x0a\x02\x20\x01", "is not an ONNX model"),  # a type that is a number
        (b"\x3a\x02\x08\x01", "is not an ONNX model"),  # an operator that is a number
    ],
)
def test_what_no_exporter_writes_is_refused(model: bytes, text: str) -> None:
    with pytest.raises(BundleError, match=r"^m\.onnx is not an ONNX model, or is cut.*; export the bundle again"):
        read_graph(model, "m.onnx")
    assert re.search(text, refusal(model) or "")


def test_two_tensors_of_one_name_are_refused() -> None:
    twice = [numpy_helper.from_array(np.ones(2, np.float32), "w")] * 2
    with pytest.raises(BundleError, match="two tensors are named 'w'"):
        read_graph(model_of(helper.make_node("Relu", ["x"], ["y"]), tensors=twice), "m.onnx")


@pytest.mark.parametrize("part", [b"\x0a\x00", b"\x2a\x00", b"\x5a\x00", b"\x10\x01"])
def test_a_small_file_makes_no_large_objects(part: bytes) -> None:
    # A million empty operators, tensors, inputs, or fields that are none.
    count = 1_000_000
    body = part * count
    length = b"\x80\x89\x7a"  # 2,000,000
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"more than 20000 parts|two tensors are named ''"):
        read_graph(b"\x3a" + length + body, "m.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_long_names_and_lists_are_refused() -> None:
    long = model_of(helper.make_node("Relu", ["x" * 2000], ["y"]))
    assert refusal(long) is not None
    listed = model_of(helper.make_node("Relu", ["x"], ["y"], axes=list(range(1000))))
    assert "more than 16 numbers" in (refusal(listed) or "")


def test_every_cut_is_refused_or_no_tower() -> None:
    for end in range(len(TEXT)):
        said = refusal(TEXT[:end])
        if said is None:
            assert end > len(TEXT) - 10  # between the model's own last fields, which its hash alone tells
        else:
            assert said.startswith("m.onnx is not an ONNX model, or is cut")


def test_every_flipped_bit_is_refused_or_read() -> None:
    rng = np.random.default_rng(0)
    for data in (TEXT, projection_graph(WEIGHTS)):
        for position in rng.permutation(len(data))[:1500]:
            for bit in rng.permutation(8)[:2]:
                changed = bytearray(data)
                changed[position] ^= 1 << int(bit)
                refusal(bytes(changed))  # BundleError, or None: no other error leaves it


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    refusal(data)
    refusal(b"\x3a" + bytes([len(data) % 128]) + data)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(TEXT) - 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_any_damage_is_refused_or_read(damage: list[tuple[int, int]]) -> None:
    changed = bytearray(TEXT)
    for position, value in damage:
        changed[position] = value
    refusal(bytes(changed))


def test_a_graph_reads_as_data() -> None:
    graph = read_graph(TEXT, "m.onnx")
    assert isinstance(graph, OnnxGraph)
    weights = text_weights(graph)
    assert weights is not None
    np.testing.assert_array_equal(weights.table, WEIGHTS.table)
    np.testing.assert_array_equal(weights.first.weight, WEIGHTS.text_fc1)
    np.testing.assert_array_equal(weights.last.weight, WEIGHTS.text_fc2.T)
    np.testing.assert_array_equal(weights.last.bias, WEIGHTS.text_bias)
