"""How much worse a quantised graph retrieves than the FP32 graph that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import QuantizationError
from milnce.metrics import collaborative_experts, rank_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from milnce.evaluation import Evaluation

LARGEST_FALL_POINTS = 1.0
_MEASURES = ("r1", "r5")


@dataclass(frozen=True)
class Recall:
    """Recall of one kind of search with both graphs, in percent.

    Attributes:
        kind: What looks for what.
        queries: Number of queries; one of them is 100 / queries points.
        candidates: What each query chooses from.
        fp32: "r1" and "r5" of the FP32 graph.
        int8: The same of the INT8 graph.
    """

    kind: str
    queries: int
    candidates: int
    fp32: Mapping[str, float]
    int8: Mapping[str, float]

    @property
    def fall_points(self) -> float:
        """How many points R@1 or R@5 is lower with the INT8 graph, whichever fell more; 0 if neither did."""
        falls = [self.fp32[name] - self.int8[name] for name in _MEASURES]
        return float(np.max([0.0, *falls]))  # NaN comes through, and is refused

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {
            "queries": self.queries,
            "candidates": self.candidates,
            "fp32": dict(self.fp32),
            "int8": dict(self.int8),
            "fall_points": self.fall_points,
        }

    def __str__(self) -> str:
        values = ", ".join(
            f"{name.replace('r', 'R@')} {self.fp32[name]:.1f} in FP32 and {self.int8[name]:.1f} in INT8"
            for name in _MEASURES
        )
        return f"{self.kind}: {values} ({self.queries} queries, {self.candidates} candidates)"


def clip_recall(fp32: NDArray[np.float32], int8: NDArray[np.float32]) -> tuple[Recall, Recall]:
    """Let each clip's embedding of one graph look for the same clip among all embeddings of the other.

    The FP32 graph finds its own embeddings every time, so its recall is 100. Scores are cosines after the mean FP32
    embedding is taken off: that is what tells clips apart, and a common part would hide errors.

    Args:
        fp32: (N, D), the FP32 graph's embeddings of N different clips.
        int8: The INT8 graph's of the same clips.

    Returns:
        FP32 embeddings looking for INT8 ones, and the other way round.
    """
    centre = fp32.mean(axis=0, dtype=np.float64)
    ranks = rank_embeddings(_unit(fp32 - centre), _unit(int8 - centre), np.arange(len(fp32)))
    there, back = collaborative_experts(ranks)
    whole = dict.fromkeys(_MEASURES, 100.0)
    return (
        Recall("FP32 clips find their INT8 ones", len(fp32), len(fp32), whole, _figures(there)),
        Recall("INT8 clips find their FP32 ones", len(fp32), len(fp32), whole, _figures(back)),
    )


def caption_recall(fp32: Evaluation, int8: Evaluation) -> tuple[Recall, ...]:
    """Compare two evaluations of the same captions, one with each graph; one `Recall` a direction.

    Raises:
        QuantizationError: if no caption could be asked.
    """
    if not fp32.metrics or not int8.metrics:
        raise QuantizationError(
            f"none of the {len(fp32.captions.clips)} clips of {fp32.captions.path} is among the videos that were held "
            "out, so its captions measure nothing; give the videos that the captions are of"
        )
    names = {"t2v": "captions find their clips", "v2t": "clips find their captions"}
    return tuple(
        Recall(names[a.direction], a.queries, a.candidates, _figures(a), _figures(b))
        for a, b in zip(fp32.metrics, int8.metrics, strict=True)
    )


def require_recall(recalls: Iterable[Recall], largest_fall_points: float = LARGEST_FALL_POINTS) -> None:
    """Raise unless R@1 and R@5 of every search are at most `largest_fall_points` lower in INT8.

    Raises:
        QuantizationError: with the figures of every search that fell further.
    """
    fallen = [recall for recall in recalls if not recall.fall_points <= largest_fall_points]
    if fallen:
        listed = "".join(f"\n  - {recall}" for recall in fallen)
        raise QuantizationError(
            f"retrieval with the INT8 graph is worse by more than {largest_fall_points:g} "
            f"point{'s' * (largest_fall_points != 1)}, so it is not written:{listed}\n"
            "Calibrate on more clips (--clips), of videos like those that will be searched"
        )


def _figures(metrics: Any) -> dict[str, float]:  # noqa: ANN401 - RetrievalMetrics
    return {name: float(getattr(metrics, name)) for name in _MEASURES}


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0), dtype=np.float32)
