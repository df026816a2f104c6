"""Gates by their names, as benchmarks ask for them."""

from __future__ import annotations

import numpy as np
import pytest

from milnce.errors import InputError
from milnce_convert import parity
from milnce_convert.judge import gates, judge
from milnce_convert.torch_modes import COMPILED, EAGER, MODES

ROWS = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def test_every_gate_goes_by_its_name() -> None:
    found = gates()
    assert {"fp32", "fp16", "bf16"} <= set(found)
    assert found["fp16"] is parity.FP16_GATE
    assert all(name == gate.name for name, gate in found.items())


def test_outputs_are_judged_by_the_gate_that_is_named() -> None:
    figures, failures = judge("fp32", ROWS, ROWS)
    assert failures == []
    assert figures["rows"] == 4
    noise = ROWS * np.float32(1.002)
    assert any("scale error" in failure for failure in judge("fp32", ROWS, noise)[1])
    assert judge("fp16", ROWS, noise)[1] == []
    assert judge(parity.FP16_GATE, ROWS, noise)[1] == []
    assert judge("fp16", ROWS, ROWS)[1] == [
        "outputs are bit-identical: the same graph was compared with itself",
    ]
    with pytest.raises(InputError, match=r"gate 'fp8' given; gates are fp32, fp16, bf16"):
        judge("fp8", ROWS, ROWS)


def test_the_modes_of_pytorch_are_eager_on_both_devices_and_compiled_apart() -> None:
    for device in ("cpu", "cuda"):
        assert EAGER[device][0] == "eager FP32"
        assert not any(MODES[mode].compiled for mode in EAGER[device])
        assert all(MODES[mode].compiled for mode in COMPILED[device])
    assert MODES["eager bf16"].channels_last
    assert not MODES["eager FP32"].channels_last
    assert [mode for mode in MODES if MODES[mode].tf32] == ["eager TF32"]
    assert MODES["eager TF32"].gate.may_be_identical
