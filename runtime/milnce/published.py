"""Published retrieval results of this model, to be printed beside one's own.

Only cells that were read in the source named are here; what a source does not state is None.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milnce.metrics import Definition, Direction

_CE = "github.com/albanie/collaborative-experts, README.md, row 'HowTo100m S3D' (commit 7eb3b9d)"
_README = "github.com/antoine77340/MIL-NCE_HowTo100M, README.md (arXiv:1912.06430): TPU, 2645 epochs, batch 8192"
_RERUN_YOUCOOK2 = "github.com/LuoweiZhou/YouCook2-Leaderboard: zero-shot, rerun with the official code"
_RERUN_MSRVTT = (
    "github.com/antoine77340/MIL-NCE_HowTo100M, issue 17: public code and weights, printed with two digits "
    "(recalls 0.1, 0.25 and 0.35)"
)


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row of a published table; percentages and ranks as in `milnce.metrics.RetrievalMetrics`.

    Attributes:
        data: The data set and its part.
        result: Whose result.
        definition: Whose definition of the metrics.
        direction: "t2v" or "v2t".
        r1: R@1 in percent.
        r5: R@5 in percent.
        r10: R@10 in percent.
        r50: R@50 in percent, or None.
        median_rank: Median rank.
        mean_rank: Mean rank, or None.
        geometric_mean: Geometric mean of R@1, R@5 and R@10, or None.
        source: Where it was read.
    """

    data: str
    result: str
    definition: Definition
    direction: Direction
    r1: float
    r5: float
    r10: float
    r50: float | None
    median_rank: float
    mean_rank: float | None
    geometric_mean: float | None
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return every field, as JSON types."""
        return asdict(self)


def _ce(data: str, direction: Direction, *cells: float) -> PublishedRow:
    r1, r5, r10, r50, median_rank, mean_rank, geometric_mean = cells
    means = (mean_rank, geometric_mean)
    name: Definition = "collaborative-experts"
    return PublishedRow(data, "HowTo100m S3D", name, direction, r1, r5, r10, r50, median_rank, *means, _CE)


def _mil_nce(data: str, result: str, source: str, *cells: float) -> PublishedRow:
    r1, r5, r10, median_rank = cells
    return PublishedRow(data, result, "mil-nce", "t2v", r1, r5, r10, None, median_rank, None, None, source)


PUBLISHED: tuple[PublishedRow, ...] = (
    _mil_nce("YouCook2 validation", "MIL-NCE S3D, paper", _README, 15.1, 38.0, 51.2, 10),
    _mil_nce("YouCook2 validation", "MIL-NCE S3D, public rerun", _RERUN_YOUCOOK2, 13.9, 36.3, 48.9, 11),
    _mil_nce("MSR-VTT 1k", "MIL-NCE S3D, paper", _README, 9.9, 24.0, 32.4, 29.5),
    _mil_nce("MSR-VTT 1k", "MIL-NCE S3D, public rerun", _RERUN_MSRVTT, 10, 25, 35, 31),
    _ce("QuerYD", "t2v", 13.5, 27.5, 34.5, 57.0, 35.0, 72.5, 23.4),
    _ce("QuerYD", "v2t", 12.4, 23.8, 30.8, 57.0, 33.0, 73.4, 20.9),
    _ce("QuerYDSegments", "t2v", 6.7, 14.7, 20.4, 36.6, 133.0, 342.0, 12.6),
    _ce("QuerYDSegments", "v2t", 8.4, 15.4, 19.8, 34.2, 154.5, 363.0, 13.7),
)
