"""The figures of parity by hand on tiny arrays, and the gates figure by figure."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from milnce.errors import ParityError
from milnce_convert.measure import gate_of
from milnce_convert.parity import BF16_GATE, FP16_GATE, FP32_GATE, Agreement, Gate, changed_winners, compare, require

PERFECT = Agreement(
    rows=3,
    cosine=1.0,
    centred_cosine=1.0,
    relative_error=0.0,
    spread_error=0.0,
    scale_error=0.0,
    identical=False,
)


def test_figures_by_hand() -> None:
    # The rows' mean is (2, 2): centred they are (2, -2) and (-2, 2), each 2 sqrt 2 from it.
    reference = np.array([[4.0, 0.0], [0.0, 4.0]], np.float32)
    candidate = np.array([[4.0, 1.0], [0.0, 4.0]], np.float32)
    found = compare(reference, candidate)
    assert found.rows == 2
    assert found.cosine == pytest.approx(16 / (4 * math.sqrt(17)))
    assert found.centred_cosine == pytest.approx(6 / (math.sqrt(8) * math.sqrt(5)))  # (2, -2) and (2, -1)
    assert found.relative_error == pytest.approx(1 / 4)
    assert found.spread_error == pytest.approx(1 / math.sqrt(8))
    assert found.scale_error == pytest.approx(0.0)
    assert not found.identical


def test_scale_error_sees_what_no_cosine_sees() -> None:
    reference = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    for factor in (1.01, 0.9, 255.0):
        found = compare(reference, reference * factor)
        assert found.cosine == pytest.approx(1.0)
        assert found.scale_error == pytest.approx(abs(factor - 1))


def test_centred_cosine_sees_what_a_common_offset_hides() -> None:
    generator = np.random.default_rng(0)
    clips = generator.normal(size=(4, 8))
    reference, wrong = clips + 100, clips[::-1] + 100
    found = compare(reference, wrong)
    assert found.cosine > 0.999
    assert found.centred_cosine < 0.5


def test_the_worst_row_counts() -> None:
    reference = np.eye(4)
    candidate = reference.copy()
    candidate[2] = -candidate[2]
    found = compare(reference, candidate)
    assert found.cosine == -1.0
    assert found.relative_error == 2.0


def test_identical_means_every_bit() -> None:
    reference = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert compare(reference, reference.copy()).identical
    assert not compare(reference, np.nextafter(reference, 9)).identical


def _with(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    candidate = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    candidate[1, 0] = value
    return candidate


@pytest.mark.parametrize("gate", [FP32_GATE, FP16_GATE, replace(FP16_GATE, may_be_identical=True)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_pass(gate: Gate, value: float) -> None:
    agreement = compare(_with(3.0), _with(value))
    failures = "; ".join(gate.failures(agreement))
    for figure in ("cosine", "centred cosine", "relative error", "spread error", "scale error"):
        assert figure in failures


def test_a_row_of_zeros_never_passes() -> None:
    reference = np.array([[1.0, 2.0], [3.0, -4.0]])
    candidate = reference.copy()
    candidate[0] = 0
    assert FP16_GATE.failures(compare(reference, candidate))


def test_a_reference_with_nan_is_refused() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(ParityError, match="the reference holds NaN or infinity"):
            compare(_with(value), _with(1.0))


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [((2, 3), (2, 4)), ((2, 3), (3, 2)), ((1, 3), (1, 3)), ((0, 3), (0, 3)), ((3,), (3,)), ((2, 3, 1), (2, 3, 1))],
)
def test_wrong_shapes_are_refused(reference: tuple[int, ...], candidate: tuple[int, ...]) -> None:
    with pytest.raises(ParityError) as caught:
        compare(np.ones(reference), np.ones(candidate))
    assert str(caught.value) == f"cannot compare {candidate} with {reference}: the same (N >= 2, D) is needed"


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_a_constant_reference_tells_nothing(constant: float) -> None:
    with pytest.raises(ParityError, match="every reference row is the same"):
        compare(np.full((3, 4), constant), np.full((3, 4), constant))


def test_fp16_refuses_identical_outputs_and_fp32_does_not() -> None:
    same = replace(PERFECT, identical=True)
    assert FP32_GATE.failures(same) == []
    assert FP16_GATE.failures(same) == ["outputs are bit-identical: the same graph was compared with itself"]


@pytest.mark.parametrize("gate", [FP32_GATE, FP16_GATE])
@pytest.mark.parametrize("figure", ["cosine", "centred_cosine", "relative_error", "spread_error", "scale_error"])
def test_each_figure_alone_fails_a_gate(gate: Gate, figure: str) -> None:
    bound = getattr(gate, figure)
    outside = bound - 1e-7 if "cosine" in figure else bound * 1.01
    assert gate.failures(PERFECT) == []
    assert gate.failures(replace(PERFECT, **{figure: bound})) == []
    (failure,) = gate.failures(replace(PERFECT, **{figure: outside}))
    assert failure.startswith(figure.replace("_", " "))
    assert ("at least" if "cosine" in figure else "at most") in failure


def test_require_names_the_subject_and_every_figure() -> None:
    require(PERFECT, FP32_GATE, "video")
    bad = replace(PERFECT, cosine=0.5, scale_error=0.25)
    with pytest.raises(ParityError) as caught:
        require(bad, FP32_GATE, "video uint8 fp32, mixed_5c")
    assert str(caught.value) == (
        "video uint8 fp32, mixed_5c fails the fp32 parity gate: cosine 0.5, at least 0.999999 needed; "
        f"scale error 0.25, at most {FP32_GATE.scale_error:.3g} allowed"
    )


def test_the_fp32_gate_is_at_least_as_strict_as_promised() -> None:
    assert FP32_GATE.cosine >= 0.999999
    assert FP32_GATE.relative_error <= 1e-4
    assert gate_of("fp32") is FP32_GATE
    assert gate_of("fp16") is FP16_GATE


def test_an_agreement_is_plain_json() -> None:
    assert json.loads(json.dumps(PERFECT.to_json()))["rows"] == 3


def test_the_bf16_gate_is_wider_than_the_fp16_gate_and_still_refuses_what_is_wrong() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(6, 32))
    rounded = reference + 0.08 * generator.normal(size=reference.shape)
    assert FP16_GATE.failures(compare(reference, rounded))
    assert not BF16_GATE.failures(compare(reference, rounded))
    assert BF16_GATE.failures(compare(reference, reference[::-1]))
    assert BF16_GATE.failures(compare(reference, reference)) == [
        "outputs are bit-identical: the same graph was compared with itself"
    ]


def test_a_changed_winner_counts_only_beyond_the_noise_of_the_scores() -> None:
    # Query 0 has a clear winner, query 1 a tie within 0.001. The other scores move by 0.01, so the noise is near that.
    reference = np.array([[1.0, 0.0, -1.0, 0.2], [0.500, 0.501, -1.0, 0.1]])
    noise = np.array([[0.01, -0.01, 0.01, -0.01], [0.01, -0.01, 0.01, -0.01]])
    tied = reference + noise
    assert tied[1].argmax() != reference[1].argmax()
    assert changed_winners(reference, tied) == []
    swapped = tied.copy()
    swapped[0, [0, 3]] = 0.95, 0.97  # noise of the table is now 0.27, four times that is 1.09: more than 0.8 apart
    assert changed_winners(reference, swapped) == []
    many = np.tile(reference[:1], (100, 1))
    wrong = many.copy()
    wrong[7, [0, 3]] = wrong[7, [3, 0]]  # noise 0.057, the two clips 0.8 apart
    assert changed_winners(many, wrong) == [7]


def test_scores_that_are_not_numbers_have_no_winner() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert changed_winners(reference, np.array([[1.0, 0.0], [0.0, math.nan]])) == [0, 1]
    with pytest.raises(ParityError, match=r"cannot rank \(2, 1\) against \(2, 2\)"):
        changed_winners(reference, np.zeros((2, 1)))
