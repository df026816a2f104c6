"""The published tower at its published size, on both runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import openvino
import pytest
import torch

from helpers.graphs import run
from milnce_convert.fixtures import as_video, moving_clips
from milnce_convert.measure import measure_blocks
from milnce_convert.parity import FP32_GATE, compare

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helpers.graphs import Traced

pytestmark = pytest.mark.full

SIZE = (32, 224, 224)


def _openvino(model: bytes, clips: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled({"video": clips})
    return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}


def _with_single_means(model: bytes) -> bytes:
    """Put one GlobalAveragePool in the place of each gate's mean over space, and drop its mean over time."""
    graph = ir.serde.deserialize_model(onnx.ModelProto.FromString(model))
    for node in list(graph.graph):
        if node.op_type == "ReduceMean":
            (consumer,) = node.outputs[0].consumers()
            new = ir.node("GlobalAveragePool" if consumer.op_type == "Conv" else "Identity", [node.inputs[0]])
            ir.convenience.replace_nodes_and_values(graph.graph, node, [node], [new], node.outputs, new.outputs)
    return bytes(ir.to_proto(graph).SerializeToString())


def test_both_runtimes_give_the_towers_numbers_at_32x224x224(full: Traced) -> None:
    clips = moving_clips(3, *SIZE, seed=11)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in full.towers.video(as_video(clips)).items()}
    model = full.graphs()["uint8"].model
    single = _with_single_means(model)
    for runtime, found, coarse in (
        ("onnxruntime", run(model, video=clips), run(single, video=clips)),
        ("openvino", _openvino(model, clips), _openvino(single, clips)),
    ):
        for name, value in expected.items():
            agreement, of_single = compare(value, found[name]), compare(value, coarse[name])
            errors = f"{agreement.spread_error:.1e}, with single means {of_single.spread_error:.1e}"
            print(f"{runtime} {name}: spread error {errors}")  # noqa: T201  shown by pytest -s
            assert FP32_GATE.failures(agreement) == [], (runtime, name)
            assert agreement.spread_error < of_single.spread_error / 5, (runtime, name)


def test_every_mixed_block_agrees_at_32x224x224(full: Traced) -> None:
    agreements = measure_blocks(full.towers, full.graphs()["uint8"], SIZE)
    assert list(agreements) == [f"mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]
    for name, agreement in agreements.items():
        assert FP32_GATE.failures(agreement) == [], name
        assert not agreement.identical, f"{name}: another order of additions must be seen"
