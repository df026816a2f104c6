"""Retrieval metrics by two published definitions, from `rank_similarity` or `rank_embeddings`.

They differ in what they make of a right candidate that shares its score with others, and so takes several positions:

- collaborative-experts (github.com/albanie/collaborative-experts, model/metric.py): their mean is the query's rank.
- MIL-NCE's evaluation (github.com/antoine77340/MIL-NCE_HowTo100M, metrics.py): each of them is a sample of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from milnce.errors import InputError
from milnce.ranks import QueryRanks, RetrievalRanks, rank_embeddings, rank_similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "QueryRanks",
    "RetrievalMetrics",
    "RetrievalRanks",
    "collaborative_experts",
    "mil_nce",
    "rank_embeddings",
    "rank_similarity",
]

Direction = Literal["t2v", "v2t"]
Definition = Literal["collaborative-experts", "mil-nce"]


@dataclass(frozen=True, slots=True)
class RetrievalMetrics:
    """One row of a retrieval table.

    Attributes:
        definition: Whose definition: "collaborative-experts" or "mil-nce".
        direction: "t2v" (a caption looks for its video) or "v2t" (a video looks for one of its captions).
        queries: Number of queries.
        candidates: Number of candidates that each query has.
        ties: Queries whose right candidate shares its score with another candidate.
        samples: What percentages are of: the queries, and for "mil-nce" every tied position besides.
        r1: Percentage at rank 0, in [0, 100]; so are `r5`, `r10` and `r50` for ranks below 5, 10 and 50.
        r5: See `r1`.
        r10: See `r1`.
        r50: See `r1`; None where the definition has none.
        median_rank: Median rank, counted from 1.
        mean_rank: Mean rank, counted from 1; None where the definition has none.
        geometric_mean: Geometric mean of r1, r5 and r10; None where the definition has none.
    """

    definition: Definition
    direction: Direction
    queries: int
    candidates: int
    ties: int
    samples: int
    r1: float
    r5: float
    r10: float
    r50: float | None
    median_rank: float
    mean_rank: float | None
    geometric_mean: float | None

    def to_json(self) -> dict[str, Any]:
        """Return every field, as JSON types."""
        return asdict(self)


def collaborative_experts(ranks: RetrievalRanks) -> tuple[RetrievalMetrics, RetrievalMetrics]:
    """Return the metrics of text to video and of video to text, by collaborative-experts' definition.

    A tie for the first place is no hit at 1: R@1 counts ranks of exactly 0, and such a rank is at least 0.5.
    """
    return _collaborative_experts("t2v", ranks.t2v), _collaborative_experts("v2t", ranks.v2t)


def mil_nce(ranks: RetrievalRanks) -> RetrievalMetrics:
    """Return the metrics of text to video, by the definition of MIL-NCE's own evaluation.

    Every tied position counts as a sample, so ties make the denominator grow. The reference prints fractions; these
    are percentages.

    Raises:
        InputError: unless every video has exactly one caption, as the definition is of a square matrix.
    """
    captions, videos = len(ranks.t2v.query), ranks.t2v.candidates
    if not captions == videos == len(ranks.v2t.query):
        raise InputError(
            f"MIL-NCE's metrics need exactly one caption for each video; {captions} captions and {videos} videos "
            f"given, of which {len(ranks.v2t.query)} have a caption. Use the collaborative-experts metrics"
        )
    better, tied = ranks.t2v.better, ranks.t2v.tied
    samples = captions + int(tied.sum())
    r1, r5, r10 = (100 * int(np.clip(most - better, 0, tied + 1).sum()) / samples for most in (1, 5, 10))
    return RetrievalMetrics(
        definition="mil-nce",
        direction="t2v",
        queries=captions,
        candidates=videos,
        ties=int(np.count_nonzero(tied)),
        samples=samples,
        r1=r1,
        r5=r5,
        r10=r10,
        r50=None,
        median_rank=_median_position(better, tied, videos) + 1,
        mean_rank=None,
        geometric_mean=None,
    )


def _median_position(better: NDArray[np.int64], tied: NDArray[np.int64], candidates: int) -> float:
    """Return the median of all positions better..better + tied, without making a list of them: it can be huge."""
    starts = np.bincount(better, minlength=candidates + 1)
    stops = np.bincount(better + tied + 1, minlength=candidates + 1)
    up_to = np.cumsum(np.cumsum(starts - stops))  # samples at a position or before it
    middle = [(int(up_to[-1]) - 1) // 2, int(up_to[-1]) // 2]
    return float(np.searchsorted(up_to, middle, side="right").mean())


def _collaborative_experts(direction: Direction, ranks: QueryRanks) -> RetrievalMetrics:
    rank, count = ranks.rank, len(ranks.query)
    r1, r5, r10, r50 = (
        100 * int(np.count_nonzero(hits)) / count
        for hits in (rank == 0, rank < 5, rank < 10, rank < 50)  # noqa: PLR2004  # the definition's own numbers
    )
    return RetrievalMetrics(
        definition="collaborative-experts",
        direction=direction,
        queries=count,
        candidates=ranks.candidates,
        ties=int(np.count_nonzero(ranks.tied)),
        samples=count,
        r1=r1,
        r5=r5,
        r10=r10,
        r50=r50,
        median_rank=float(np.median(rank)) + 1,
        mean_rank=float(rank.mean()) + 1,
        geometric_mean=float(np.cbrt(r1 * r5 * r10)),
    )
