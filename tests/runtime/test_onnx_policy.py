"""Models that read other files are refused, wherever they hide it."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import milnce
from helpers.tiny_bundle import TinyWeights, text_graph, video_graph
from milnce import onnx_policy
from milnce.errors import BundleError
from milnce.onnx_policy import refuse_external_data

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = TinyWeights.seeded()


def external_tensor(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_with(place: str, tensor: TensorProto) -> bytes:
    """Return a model that holds `tensor` in an initializer, an attribute, a branch or a function."""
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    nodes, initializers, functions = [helper.make_node("Add", ["x", "w"], ["y"])], [], []
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    if place == "initializer":
        initializers.append(tensor)
    elif place == "attribute":
        nodes.insert(0, constant)
    elif place == "branch":
        result = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
        branch = helper.make_graph([constant], "branch", [], [result])
        nodes.insert(0, helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch))
    elif place == "function":
        opset = [helper.make_opsetid("", 20)]
        functions.append(helper.make_function("own", "f", [], ["w"], [constant], opset))
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    return bytes(helper.make_model(graph, functions=functions, ir_version=10).SerializeToString())


def refusal(model: bytes) -> str | None:
    try:
        refuse_external_data(model, "m.onnx")
    except BundleError as error:
        return str(error)
    return None


@pytest.mark.parametrize("place", ["initializer", "attribute", "branch", "function"])
def test_external_data_is_refused_wherever_it_is(place: str) -> None:
    with pytest.raises(BundleError, match=r"m\.onnx keeps a tensor in another file"):
        refuse_external_data(model_with(place, external_tensor("/etc/passwd")), "m.onnx")
    inside = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w")
    refuse_external_data(model_with(place, inside), "m.onnx")  # the same model with its numbers inside passes


@pytest.mark.parametrize("form", ["uint8", "float32"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_single_file_graphs_pass(form: str, precision: str) -> None:
    refuse_external_data(video_graph(WEIGHTS, form=form, precision=precision), "m.onnx")


def test_every_cut_of_a_model_is_refused_or_still_holds_no_external_data() -> None:
    model = text_graph(WEIGHTS)
    messages = [refusal(model[:end]) for end in range(len(model))]
    assert set(messages) == {None, "m.onnx is not an ONNX model, or is cut; export the bundle again"}
    assert messages.count(None) < 10  # a cut between two fields of the model itself is seen by its hash alone


def peak_of(model: bytes) -> tuple[str | None, int]:
    """Return the refusal, and the bytes that were allocated at most on the way to it."""
    tracemalloc.start()
    try:
        return refusal(model), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def within(tag: int, content: bytes) -> bytes:
    """Return a field that holds `content`."""
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([tag << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("node", [b"\x0a\x00", b"\x0a\x02\x2a\x00"], ids=["empty", "with an empty attribute"])
def test_a_file_of_tiny_nodes_is_refused_before_it_costs_memory_or_minutes(node: bytes) -> None:
    many = within(7, node * (5_000_000 // len(node)))
    text, peak = peak_of(many)
    assert text == "m.onnx has more than 200000 fields, which no exporter of milnce writes; export the bundle again"
    assert peak < 100_000


def test_fewer_nodes_than_that_pass_and_one_after_them_is_still_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = b"\x0a\x02\x2a\x00" * 10_000
    text, peak = peak_of(within(7, nodes))
    assert (text, peak < 100_000) == (None, True)
    hidden = within(1, within(5, within(5, external_tensor("/etc/passwd").SerializeToString())))
    assert "keeps a tensor in another file" in str(refusal(within(7, nodes + hidden + nodes)))
    monkeypatch.setattr(onnx_policy, "_MOST_FIELDS", 20_001)  # the graph, and each node with its attribute
    assert refusal(within(7, nodes)) is None
    monkeypatch.setattr(onnx_policy, "_MOST_FIELDS", 20_000)
    assert "has more than 20000 fields" in str(refusal(within(7, nodes)))


@pytest.mark.parametrize(("below", "refused"), [(99, False), (100, True), (5_000, True)])
def test_what_no_reader_takes_so_deep_is_refused(below: int, refused: bool) -> None:
    content = b"\x18\x01"
    for level in range(below, 1, -1):  # in the graph: node, attribute, graph, node, ...
        content = within((1, 5, 6)[(level - 2) % 3], content)
    expected = "m.onnx is nested more than 100 messages deep, which no ONNX reader takes; export the bundle again"
    assert refusal(within(7, content)) == (expected if refused else None)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_passed_or_refused(data: bytes) -> None:
    assert (refusal(data) or "m.onnx ").startswith("m.onnx ")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_load_refuses_a_bundle_that_reads_another_file(copied: Path, backend: str) -> None:
    model = onnx.load_model_from_string((copied / "text-fp32.onnx").read_bytes())
    table = model.graph.initializer[0]
    (copied.parent / "secret").write_bytes(table.raw_data)
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value=str(copied.parent / "secret"))
    data = model.SerializeToString()
    (copied / "text-fp32.onnx").write_bytes(data)
    manifest = json.loads((copied / "manifest.json").read_text())
    for graph in manifest["graphs"]:
        if graph["file"] == "text-fp32.onnx":
            graph.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"text-fp32\.onnx keeps a tensor in another file"):
        milnce.load(copied, backend=backend)
