"""What "the same numbers" means: how far outputs may lie from the PyTorch tower's, and why there.

Every tolerance of the project is here. A check takes the outputs under test as its argument, and refuses outputs that
are bit-identical where two precisions are compared, since that is what comparing a thing with itself looks like.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import ParityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_ROWS = 2  # one row alone has no spread to measure an error against


@dataclass(frozen=True)
class Agreement:
    """How far a candidate's rows lie from the reference's; each figure is the worst over the rows.

    Attributes:
        rows: Number of rows compared.
        cosine: Least cosine between a row and its reference.
        centred_cosine: The same after the reference's mean row is taken off both: what is left is what tells one
            clip from another, so a common offset cannot hide an error.
        relative_error: Largest absolute difference over the reference's largest absolute value.
        spread_error: Largest row error (2-norm) over the mean distance of the reference's rows from their mean.
        scale_error: How far the factor that best maps the reference onto the candidate is from 1. Rounding averages
            out in it and a wrong scale, which no cosine sees, does not.
        identical: Whether every bit is the same.
    """

    rows: int
    cosine: float
    centred_cosine: float
    relative_error: float
    spread_error: float
    scale_error: float
    identical: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Gate:
    """Bounds an `Agreement` must keep.

    Attributes:
        name: What the gate is for.
        cosine: Least cosine.
        centred_cosine: Least centred cosine.
        relative_error: Largest relative error.
        spread_error: Largest spread error.
        scale_error: Largest scale error.
        may_be_identical: False where two precisions are compared.
    """

    name: str
    cosine: float
    centred_cosine: float
    relative_error: float
    spread_error: float
    scale_error: float
    may_be_identical: bool = True

    def failures(self, agreement: Agreement) -> list[str]:
        """Return what is out of bounds, figure by figure; empty when the gate is passed. NaN never passes."""
        found = [
            f"{figure} {value:.9g}, at least {bound:.9g} needed"
            for figure, value, bound in (
                ("cosine", agreement.cosine, self.cosine),
                ("centred cosine", agreement.centred_cosine, self.centred_cosine),
            )
            if not value >= bound
        ]
        found += [
            f"{figure} {value:.3g}, at most {bound:.3g} allowed"
            for figure, value, bound in (
                ("relative error", agreement.relative_error, self.relative_error),
                ("spread error", agreement.spread_error, self.spread_error),
                ("scale error", agreement.scale_error, self.scale_error),
            )
            if not value <= bound
        ]
        if agreement.identical and not self.may_be_identical:
            found.append("outputs are bit-identical: the same graph was compared with itself")
        return found


# FP32 against the PyTorch tower: what another order of the same FP32 additions may cost. Seen at full width over three
# seeds, both outputs and sizes from 4x32x200 to 32x224x224 (benchmarks/parity.py): 1 - cosine 1e-10, centred 1.3e-10,
# relative error 2e-5, spread error 1.5e-5, scale error 6e-7.
FP32_GATE = Gate(
    "fp32", cosine=0.999999, centred_cosine=0.999999, relative_error=1e-4, spread_error=2e-4, scale_error=2e-5
)

# An FP16 graph against the PyTorch tower. Over the same seeds and sizes an honest cast costs at most: 1 - cosine
# 1.6e-4, centred 2e-4, relative error 1.8e-2, spread error 1.9e-2, scale error 1.4e-3. The weakest defect has 2.7e-2
# (two of 112 channels swapped), 2.6e-2, 0.14 (both: text without ReLU), 0.27 (channels) and, for a pure scaling by 1%,
# a scale error of 1e-2. Each bound is near the geometric middle. Both sides are measured again, and the margins
# asserted, in tests/convert/test_mutants.py.
FP16_GATE = Gate(
    "fp16",
    cosine=0.998,
    centred_cosine=0.998,
    relative_error=0.05,
    spread_error=0.08,
    scale_error=4e-3,
    may_be_identical=False,
)

# bf16 keeps 8 bits of mantissa where FP16 keeps 11, so its rounding is 8 times coarser and the gate's bounds follow.
# That only tells a bf16 run from a broken one: defects that the FP16 gate catches would pass.
BF16_GATE = Gate(
    "bf16",
    cosine=1 - 64 * (1 - FP16_GATE.cosine),
    centred_cosine=1 - 64 * (1 - FP16_GATE.centred_cosine),
    relative_error=8 * FP16_GATE.relative_error,
    spread_error=8 * FP16_GATE.spread_error,
    scale_error=8 * FP16_GATE.scale_error,
    may_be_identical=False,
)

# An INT8 graph against its FP32 graph on real clips: 8 bits for weights, and 8 for what passes between convolutions. On
# 1728 clips of the demo that it was not calibrated on, an honest one costs at most: 1 - cosine 1.9e-2, centred 2.2e-2,
# relative error 0.23, spread error 0.27, scale error 1.4e-3; with seeded weights of full width 1.2e-2, 6.3e-2, 0.13,
# 0.35, 4e-3. Refused are ranges of activations that are a fifth too small (centred 0.13, spread 0.51, scale 0.12),
# weights of all layers 1% too large (scale 3.3e-2), one layer's outputs in the wrong order (3.8e-2), a layer of zeros
# (3.8e-2) and every second one (centred 1.6). It tells a quantised graph from a broken one and no more: two channels
# swapped, one layer's weights 10% too large, or zero points off by one drown in the rounding and pass, and whether a
# graph retrieves as well is measured beside it. tests/convert/test_quantize_gate.py measures again.
INT8_GATE = Gate(
    "int8",
    cosine=0.9,
    centred_cosine=0.88,
    relative_error=0.4,
    spread_error=0.5,
    scale_error=0.02,
    may_be_identical=False,
)

# How many times the noise of the scores two clips must lie apart for a change of their order to count. Within it they
# are a tie: honest FP16 swaps the first two of about one query in a hundred.
_TIE = 4.0


def compare(reference: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> Agreement:
    """Measure how far `candidate` lies from `reference`.

    Args:
        reference: (N, D) float, N >= 2.
        candidate: The same shape.

    Raises:
        ParityError: if the shapes differ, there are fewer than two rows, or the reference's rows are all the same
            or not finite.
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or len(reference) < _LEAST_ROWS:  # noqa: PLR2004
        raise ParityError(f"cannot compare {candidate.shape} with {reference.shape}: the same (N >= 2, D) is needed")
    if not np.isfinite(reference).all():
        raise ParityError("the reference holds NaN or infinity, so nothing can be told from agreement with it")
    expected, found = reference.astype(np.float64), candidate.astype(np.float64)
    centre = expected.mean(axis=0)
    spread = float(np.linalg.norm(expected - centre, axis=1).mean())
    largest = float(np.abs(expected).max())
    if not spread > 0 or not largest > 0:
        raise ParityError("every reference row is the same, so nothing can be told from agreement with it")
    return Agreement(
        rows=len(reference),
        cosine=_least_cosine(expected, found),
        centred_cosine=_least_cosine(expected - centre, found - centre),
        relative_error=float(np.abs(found - expected).max()) / largest,
        spread_error=float(np.linalg.norm(found - expected, axis=1).max()) / spread,
        scale_error=abs(float(np.vdot(expected, found) / np.vdot(expected, expected)) - 1.0),
        identical=bool(np.array_equal(reference, candidate)),
    )


def _least_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.einsum("nd,nd->n", a, b) / norms
    return float(cosines.min())  # NaN, from a row of zeros or NaN, comes through and fails every gate


def require(agreement: Agreement, gate: Gate, subject: str) -> None:
    """Raise unless `agreement` passes `gate`.

    Raises:
        ParityError: naming the subject and every figure that is out of bounds.
    """
    failures = gate.failures(agreement)
    if failures:
        cure = ". Export without it: --precision fp32" if gate.name == "fp16" else ""
        raise ParityError(f"{subject} fails the {gate.name} parity gate: {'; '.join(failures)}{cure}")


def changed_winners(reference: NDArray[np.floating[Any]], candidate: NDArray[np.floating[Any]]) -> list[int]:
    """Return the queries whose best clip is another one in `candidate`, ties left out.

    A change counts where the two clips' scores in `reference` lie further apart than 4 times the noise, which is the
    root mean square of the differences between the two tables. Ranks are what users see, but they tell defects from
    rounding poorly: hold the embeddings to a `Gate` too.

    Args:
        reference: (Q, N) float scores, larger is better.
        candidate: The same shape.

    Raises:
        ParityError: if the shapes differ or are not (Q, N >= 2).
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or reference.shape[1] < _LEAST_ROWS:  # noqa: PLR2004
        raise ParityError(f"cannot rank {candidate.shape} against {reference.shape}: the same (Q, N >= 2) is needed")
    expected, found = reference.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(found).all():
        return list(range(len(expected)))  # scores that are not numbers have no winner
    noise = float(np.sqrt(np.mean((found - expected) ** 2)))
    queries = np.arange(len(expected))
    lost = expected.max(axis=1) - expected[queries, found.argmax(axis=1)]
    return [int(query) for query in np.flatnonzero(lost > _TIE * noise)]
