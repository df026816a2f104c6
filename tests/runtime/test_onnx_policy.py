"""Models that read other files are refused, wherever they hide it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import milnce
from helpers.tiny_bundle import TinyWeights, text_graph, video_graph
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
