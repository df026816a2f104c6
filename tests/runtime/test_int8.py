"""INT8 graphs in OpenVINO: taken when asked for, computed in INT8 or not at all, and kept apart from FP32."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers.quantizing import add_int8_by_hand
from helpers.tiny_bundle import tiny_clips, write_tiny_bundle
from milnce import backends
from milnce.backends import Availability
from milnce.backends.openvino_int8 import require_int8
from milnce.bundle import Bundle
from milnce.errors import BackendError, BackendUnavailableError, BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.manifest import GraphFile


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a tiny bundle with FP32, FP16 and INT8 graphs."""
    folder = tmp_path_factory.mktemp("int8")
    write_tiny_bundle(folder / "plain")
    return add_int8_by_hand(folder / "plain", folder / "both")


def _needs_int8() -> None:
    found = {item.name: item for item in backends.available()}["openvino"]
    if "int8" not in found.precisions:
        pytest.skip("OpenVINO has no INT8 on this CPU")


def test_an_int8_model_runs_the_quantised_video_graph_and_the_fp32_graphs_of_all_else(both: Bundle) -> None:
    _needs_int8()
    clips = tiny_clips(4)
    with milnce.load(both.path, precision="int8") as model, milnce.load(both.path, backend="openvino") as plain:
        assert str(model.backend).startswith("openvino on cpu in int8: ")
        assert model.open("video").graph.precision == "int8"
        assert model.open("text").graph.precision == model.open("projection").graph.precision == "fp32"
        found, expected = model.encode_video(clips), plain.encode_video(clips)
        np.testing.assert_array_equal(model.encode_text("open the door"), milnce_text(both, "open the door"))
    difference = np.abs(found.embedding - expected.embedding).max() / np.abs(expected.embedding).max()
    assert 0 < difference < 0.02  # weights rounded to 8 bits, and not the FP32 graph


def test_text_and_projection_stay_fp32_where_openvino_runs_them_too(both: Bundle) -> None:
    _needs_int8()
    with milnce.load(both.path, backend="openvino", precision="int8") as model:
        assert model.open("text").graph.precision == model.open("projection").graph.precision == "fp32"
        found = model.encode_text("open the door")
    np.testing.assert_allclose(found, milnce_text(both, "open the door"), rtol=0, atol=2e-5)


def milnce_text(bundle: Bundle, sentence: str) -> Any:  # noqa: ANN401 - an array
    with milnce.load(bundle.path, modules=("text",)) as model:
        return model.encode_text(sentence)


def test_int8_is_taken_only_when_asked_for(both: Bundle) -> None:
    with milnce.load(both.path) as model:
        assert (model.backend.precision, model.open("video").graph.precision) == ("fp32", "fp32")
    with milnce.load(both.path, precision="fp16", backend="onnxruntime") as model:
        assert model.open("video").graph.precision == "fp16"


def test_a_bundle_without_an_int8_graph_names_the_command_that_makes_one(tmp_path: Path) -> None:
    _needs_int8()
    write_tiny_bundle(tmp_path / "b")
    with pytest.raises(BackendUnavailableError) as caught:
        milnce.load(tmp_path / "b", precision="int8")
    assert str(caught.value) == (
        f"precision int8 needs int8 graphs; bundle {str(tmp_path / 'b')!r} has its video graphs in fp32 and fp16. Ask "
        'for that: load(..., precision="fp32") or --precision fp32; or quantise it: milnce quantize'
    )


def test_clips_of_the_other_form_are_answered_with_what_there_is(both: Bundle) -> None:
    _needs_int8()
    clips = tiny_clips(1).transpose(0, 4, 1, 2, 3).astype(np.float32) / np.float32(255)
    with (
        milnce.load(both.path, precision="int8") as model,
        pytest.raises(BundleError, match=r"no graph video float32 int8; it has: .*video uint8 int8"),
    ):
        model.encode_video(clips)


def test_onnx_runtime_does_not_offer_int8(both: Bundle) -> None:
    with pytest.raises(
        BackendUnavailableError, match="onnxruntime on cpu: it computes in fp32, fp16 here, not in int8"
    ):
        milnce.load(both.path, backend="onnxruntime", precision="int8")


def test_onnx_runtime_can_read_the_quantised_graph_all_the_same(both: Bundle) -> None:
    graph = both.graph("video", precision="int8")
    clips = tiny_clips(2)
    with backends.open_graph(
        backends.BackendChoice("onnxruntime", "cpu", "fp32", "tests"), both.read(graph), graph
    ) as other:
        found = other.run({"video": clips})["video_embedding"]
    with milnce.load(both.path, backend="onnxruntime") as plain:
        expected = plain.encode_video(clips).embedding
    assert 0 < np.abs(found - expected).max() / np.abs(expected).max() < 0.02


def test_a_graph_that_is_not_quantised_is_not_run_as_int8(tmp_path: Path) -> None:
    _needs_int8()
    write_tiny_bundle(tmp_path / "plain")
    plain = Bundle.open(tmp_path / "plain")
    model = plain.read(plain.graph("video", input_form="uint8"))
    add_int8_by_hand(tmp_path / "plain", tmp_path / "b", model=model)
    with (
        milnce.load(tmp_path / "b", precision="int8") as opened,
        pytest.raises(BackendError, match=r"int8 \(video-uint8-int8.onnx\) has no convolution with 8-bit weights"),
    ):
        opened.encode_video(tiny_clips(1))


def test_int8_needs_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from milnce.backends import openvino  # noqa: PLC0415 - the backend whose library is pretended

    core = SimpleNamespace(available_devices=["CPU"], get_property=lambda *_: ["FP32", "BF16"])
    monkeypatch.setattr(openvino, "_core", lambda: core)
    found = openvino.probe()
    assert isinstance(found, Availability)
    assert found.precisions == ("fp32", "fp16", "bf16")
    monkeypatch.setattr(core, "get_property", lambda *_: ["FP32", "INT8"])
    assert openvino.probe().precisions == ("fp32", "fp16", "int8")


@dataclass
class Node:
    """What `require_int8` looks at of an operator or a layer."""

    kind: str
    inputs: list[Node] = field(default_factory=list)
    element: str = "f32"
    info: dict[str, str] = field(default_factory=dict)

    def get_type_name(self) -> str:  # noqa: D102 - the name is openvino's
        return self.kind

    def input_value(self, index: int) -> Any:  # noqa: ANN401, D102 - the library is not typed
        return SimpleNamespace(get_node=lambda: self.inputs[index])

    def get_element_type(self) -> Any:  # noqa: ANN401, D102 - likewise
        return SimpleNamespace(get_type_name=lambda: self.element)

    def get_rt_info(self) -> dict[str, Any]:  # noqa: D102 - the name is openvino's
        return {key: SimpleNamespace(value=value) for key, value in self.info.items()}


def _convolution(element: str) -> Node:
    constant = Node("Constant", element=element)
    return Node("Convolution", [Node("Parameter"), Node("Multiply", [Node("Convert", [constant])])])


def _graphs(nodes: list[Node], layers: list[tuple[str, str]]) -> tuple[Any, Any]:
    run = [Node("ExecutionNode", info={"layerType": kind, "runtimePrecision": type_}) for kind, type_ in layers]
    runtime = SimpleNamespace(get_ops=lambda: run)
    return SimpleNamespace(get_ops=lambda: nodes), SimpleNamespace(get_runtime_model=lambda: runtime)


def test_every_quantised_convolution_must_be_computed_in_8_bits(both: Bundle) -> None:
    graph: GraphFile = both.graph("video", precision="int8")
    nodes = [_convolution("i8"), _convolution("i8"), _convolution("f32"), Node("Constant", element="i8")]
    eight = [("Convolution", "u8"), ("Convolution", "i8"), ("Convolution", "f32"), ("Pooling", "u8")]
    require_int8(*_graphs(nodes, eight), graph)
    fallen = [("Convolution", "u8"), ("Convolution", "f32"), ("Convolution", "bf16"), ("Pooling", "u8")]
    with pytest.raises(BackendUnavailableError) as caught:
        require_int8(*_graphs(nodes, fallen), graph)
    assert str(caught.value) == (
        "openvino was asked to compute video uint8 int8 (video-uint8-int8.onnx) in int8, but on this CPU it would "
        "compute 1 of its 2 quantised convolutions in bf16 and f32; ask for precision='fp32'"
    )
    with pytest.raises(BackendError, match="has no convolution with 8-bit weights"):
        require_int8(*_graphs([_convolution("f32")], eight), graph)
