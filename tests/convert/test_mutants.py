"""The gates pass the honest graphs and fail every planted defect, with room on both sides. `-s` prints the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from helpers.graphs import run
from helpers.mutants import TEXT_MUTANTS, VIDEO_MUTANTS, text_outputs, video_outputs
from milnce_convert.export import export_text, half_precision
from milnce_convert.fixtures import moving_clips, random_tokens
from milnce_convert.parity import FP16_GATE, FP32_GATE, Agreement, compare

if TYPE_CHECKING:
    from helpers.graphs import Traced

MARGIN = 2.0  # the bound's distance from the honest error below and from the weakest defect above, as factors
# Rounding averages out in the best scale, and these change nothing else: `scale_error` is what must see them.
PURE_SCALINGS = {"last layer x1.01"}


@dataclass(frozen=True)
class Measured:
    """Agreements with the PyTorch tower."""

    fp32: Agreement
    fp16: Agreement
    mutants: dict[str, Agreement]


@pytest.fixture(scope="module")
def video(full: Traced) -> Measured:
    clips = moving_clips(6, 16, 64, 64, seed=7)
    reference = video_outputs(full.towers, clips)
    plain = full.graphs()["uint8"]
    return Measured(
        compare(reference, run(plain.model, video=clips)["video_embedding"]),
        compare(reference, run(half_precision(plain).model, video=clips)["video_embedding"]),
        {name: compare(reference, video_outputs(full.towers, clips, mutant)) for name, mutant in VIDEO_MUTANTS.items()},
    )


@pytest.fixture(scope="module")
def text(full: Traced) -> Measured:
    tokens = random_tokens(32, full.towers.text.config.rows, seed=1)
    reference = text_outputs(full.towers, tokens)
    plain = export_text(full.towers.text)
    return Measured(
        compare(reference, run(plain.model, tokens=tokens)["text_embedding"]),
        compare(reference, run(half_precision(plain).model, tokens=tokens)["text_embedding"]),
        {name: compare(reference, text_outputs(full.towers, tokens, mutant)) for name, mutant in TEXT_MUTANTS.items()},
    )


@pytest.fixture(params=["video", "text"])
def measured(request: pytest.FixtureRequest) -> Measured:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Measured)
    return found


def _line(name: str, agreement: Agreement) -> str:
    return (
        f"{name:32s} 1-cos {1 - agreement.cosine:8.1e}  1-centred {1 - agreement.centred_cosine:8.1e}  "
        f"relative {agreement.relative_error:8.1e}  spread {agreement.spread_error:8.1e}  "
        f"scale {agreement.scale_error:8.1e}"
    )


def test_there_are_at_least_12_different_defects(video: Measured, text: Measured) -> None:
    assert len(VIDEO_MUTANTS) >= 12
    assert len({agreement.spread_error for agreement in video.mutants.values()}) == len(VIDEO_MUTANTS)
    assert len({agreement.spread_error for agreement in text.mutants.values()}) == len(TEXT_MUTANTS)


def test_honest_graphs_pass(measured: Measured) -> None:
    assert FP32_GATE.failures(measured.fp32) == []
    assert FP16_GATE.failures(measured.fp16) == []


def test_every_defect_fails_both_gates(measured: Measured) -> None:
    lines = [_line("honest fp32", measured.fp32), _line("honest fp16", measured.fp16)]
    lines += [_line(name, agreement) for name, agreement in measured.mutants.items()]
    print("\n" + "\n".join(lines))  # noqa: T201  the table is what a person sets the gate by
    passed = {
        (gate.name, name)
        for gate in (FP16_GATE, FP32_GATE)
        for name, agreement in measured.mutants.items()
        if not gate.failures(agreement)
    }
    assert passed == set()


@pytest.mark.parametrize("figure", ["spread_error", "relative_error", "centred_cosine", "cosine"])
def test_the_fp16_bound_lies_between_the_honest_error_and_the_weakest_defect(measured: Measured, figure: str) -> None:
    def error(agreement: Agreement) -> float:
        value: float = getattr(agreement, figure)
        return 1 - value if "cosine" in figure else value

    value: float = getattr(FP16_GATE, figure)
    bound = 1 - value if "cosine" in figure else value
    weakest = min(error(agreement) for name, agreement in measured.mutants.items() if name not in PURE_SCALINGS)
    assert error(measured.fp16) * MARGIN < bound
    assert bound * MARGIN < weakest


def test_the_scale_bound_lies_between_the_honest_error_and_a_scaling_by_one_percent(measured: Measured) -> None:
    assert measured.fp16.scale_error * MARGIN < FP16_GATE.scale_error
    for name in PURE_SCALINGS & set(measured.mutants):
        assert FP16_GATE.scale_error * MARGIN < measured.mutants[name].scale_error
        assert measured.mutants[name].cosine > FP16_GATE.cosine, "no cosine sees it"


def test_the_fp32_gate_is_far_below_every_defect_and_above_the_honest_error(measured: Measured) -> None:
    weakest = min(agreement.relative_error for agreement in measured.mutants.values())
    assert measured.fp32.relative_error * MARGIN < FP32_GATE.relative_error
    assert FP32_GATE.relative_error * 50 < weakest
