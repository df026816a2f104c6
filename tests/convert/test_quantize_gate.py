"""The INT8 gate passes an honest INT8 graph of the demo and fails broken ones; what it cannot see is listed too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers.quantizing import require_nncf
from milnce import backends
from milnce.backends import BackendChoice
from milnce.bundle import Bundle
from milnce_convert.parity import INT8_GATE, Agreement, compare
from milnce_convert.quantize_nncf import quantize_graph
from milnce_convert.sample_inputs import moving_clips

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Change = Callable[[onnx.ModelProto], None]

DEMO = Path(__file__).parents[2] / "engines" / "demo"
_QUIET = {"cosine", "centred_cosine", "relative_error", "spread_error", "scale_error"}


class Weight:
    """A convolution's INT8 weights and their scales, to be changed in place."""

    def __init__(self, values: onnx.TensorProto, scale: onnx.TensorProto) -> None:
        self._tensors = {"values": values, "scale": scale}

    def get(self, name: str) -> NDArray[np.generic]:
        """Return "values" or "scale"."""
        return numpy_helper.to_array(self._tensors[name])

    def put(self, name: str, array: NDArray[np.generic]) -> None:
        """Replace one of them, in its own dtype."""
        tensor = self._tensors[name]
        kept = np.ascontiguousarray(array, dtype=numpy_helper.to_array(tensor).dtype)
        tensor.CopyFrom(numpy_helper.from_array(kept, tensor.name))


def weights(model: onnx.ModelProto) -> list[Weight]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    nodes = [producers.get(node.input[1]) for node in model.graph.node if node.op_type == "Conv"]
    return [Weight(tensors[node.input[0]], tensors[node.input[1]]) for node in nodes if node is not None]


def activation_scales(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return [tensors[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def _scaled_weights(factor: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for weight in weights(model):
            weight.put("scale", weight.get("scale").astype(np.float32) * np.float32(factor))

    return change


def _scaled_activations(factor: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for tensor in activation_scales(model):
            array = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, np.float32), tensor.name))

    return change


def _zeroed(every: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for weight in weights(model)[::every]:
            weight.put("values", np.zeros_like(weight.get("values")))

    return change


def _rolled_scales(model: onnx.ModelProto) -> None:
    for weight in weights(model):
        weight.put("scale", np.roll(weight.get("scale"), 1))


def _rolled_outputs(model: onnx.ModelProto) -> None:
    weight = weights(model)[30]
    weight.put("values", np.roll(weight.get("values"), 1, axis=0))


def _bgr(model: onnx.ModelProto) -> None:
    stem = weights(model)[0]
    stem.put("values", stem.get("values")[:, ::-1])


def _backwards(model: onnx.ModelProto) -> None:
    for weight in weights(model):
        weight.put("values", weight.get("values")[:, :, ::-1])


def _swapped_channels(model: onnx.ModelProto) -> None:
    weight = weights(model)[40]
    values = weight.get("values").copy()
    values[[3, 7]] = values[[7, 3]]
    weight.put("values", values)


DEFECTS: dict[str, Change] = {
    "weights x1.05": _scaled_weights(1.05),
    "ranges of activations halved": _scaled_activations(0.5),
    "ranges of activations a quarter too small": _scaled_activations(0.75),
    "every second layer zeroed": _zeroed(2),
    "every fifth layer zeroed": _zeroed(5),
    "scales of the next channel": _rolled_scales,
    "one layer's outputs in another order": _rolled_outputs,
    "BGR": _bgr,
    "kernels backwards in time": _backwards,
}


@pytest.fixture(scope="module")
def run() -> Callable[..., NDArray[np.float32]]:
    """Return a function that runs the demo's graph, quantised and then changed, on clips of moving shapes."""
    require_nncf()
    bundle = Bundle.open(DEMO)
    graph = bundle.graph("video")
    clips = moving_clips(40, 16, 64, 64, seed=11)
    honest = quantize_graph(bundle.read(graph), list(clips[:24]))

    def embed(change: Change | None, precision: str = "int8") -> NDArray[np.float32]:
        data = bundle.read(graph)
        if precision == "int8":
            model = onnx.load_from_string(honest)
            if change is not None:
                change(model)
            data = bytes(model.SerializeToString())
        entry = replace(graph, precision=precision)
        with backends.open_graph(BackendChoice("openvino", "cpu", precision, "tests"), data, entry) as opened:
            found: NDArray[np.float32] = opened.run({"video": clips[24:]})["video_embedding"]
        return found

    return embed


@pytest.fixture(scope="module")
def reference(run: Callable[..., NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the FP32 graph's embeddings of the clips."""
    return run(None, "fp32")


def _line(name: str, agreement: Agreement) -> str:
    figures = {key: value for key, value in agreement.to_json().items() if key in _QUIET}
    return f"{name:44s} " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items())


def test_an_honest_graph_passes_with_room(
    run: Callable[..., NDArray[np.float32]], reference: NDArray[np.float32]
) -> None:
    agreement = compare(reference, run(None))
    print("\n" + _line("honest", agreement))  # noqa: T201  what a person sets the gate by
    assert INT8_GATE.failures(agreement) == []
    assert 2 * (1 - agreement.centred_cosine) < 1 - INT8_GATE.centred_cosine
    assert 1.3 * agreement.spread_error < INT8_GATE.spread_error


def test_every_defect_fails(run: Callable[..., NDArray[np.float32]], reference: NDArray[np.float32]) -> None:
    found = {name: compare(reference, run(change)) for name, change in DEFECTS.items()}
    print("\n" + "\n".join(_line(name, agreement) for name, agreement in found.items()))  # noqa: T201  as above
    assert [name for name, agreement in found.items() if not INT8_GATE.failures(agreement)] == []


def test_what_drowns_in_the_rounding_passes_as_the_gate_says(
    run: Callable[..., NDArray[np.float32]], reference: NDArray[np.float32]
) -> None:
    agreement = compare(reference, run(_swapped_channels))
    assert not np.array_equal(run(_swapped_channels), run(None))
    assert INT8_GATE.failures(agreement) == []


def test_the_fp32_graph_is_no_int8_graph(reference: NDArray[np.float32]) -> None:
    assert INT8_GATE.failures(compare(reference, reference)) == [
        "outputs are bit-identical: the same graph was compared with itself"
    ]
