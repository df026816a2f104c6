"""The published tower at its published size, on both runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino
import pytest
import torch

from helpers.graphs import run
from milnce_convert.fixtures import as_video, moving_clips
from milnce_convert.measure import measure_blocks
from milnce_convert.parity import FP32_GATE, compare

if TYPE_CHECKING:
    from helpers.graphs import Traced

pytestmark = pytest.mark.full

SIZE = (32, 224, 224)


def test_both_runtimes_give_the_towers_numbers_at_32x224x224(full: Traced) -> None:
    clips = moving_clips(2, *SIZE, seed=11)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in full.towers.video(as_video(clips)).items()}
    model = full.graphs()["uint8"].model
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled({"video": clips})
    found = {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}
    for runtime, outputs in (("onnxruntime", run(model, video=clips)), ("openvino", found)):
        for name, value in expected.items():
            agreement = compare(value, outputs[name])
            assert FP32_GATE.failures(agreement) == [], (runtime, name)


def test_every_mixed_block_agrees_at_32x224x224(full: Traced) -> None:
    agreements = measure_blocks(full.towers, full.graphs()["uint8"], SIZE)
    assert list(agreements) == [f"mixed_{name}" for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")]
    for name, agreement in agreements.items():
        assert FP32_GATE.failures(agreement) == [], name
        assert not agreement.identical, f"{name}: another order of additions must be seen"
