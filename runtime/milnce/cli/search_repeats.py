"""What `milnce search` does about windows that several of its sources hold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from milnce.search import distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

# As a part of the highest score: far above what batches, threads and backends change in FP32.
_SCORE_TOLERANCE = 1e-3


class Repeats:
    """Windows of features files, so that those which come again, from a copy or the video itself, are found once.

    Args:
        remember: Whether anything can come again.

    Attributes:
        count: How many windows came again.
    """

    def __init__(self, *, remember: bool) -> None:
        self.count = 0
        self._remember = remember
        self._known: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float32]]]] = {}

    def remember(self, video: str, spans_s: NDArray[np.float64], scores: NDArray[np.float32]) -> None:
        """Keep times, float64 (windows, 2), and scores, float32 (windows, queries), of a video of a features file."""
        if self._remember:
            self._known.setdefault(_place(video), []).append((spans_s, scores))

    def new(self, video: str, spans_s: NDArray[np.float64], scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the rows that were not there before: of other videos, at other times, or with other scores."""
        rows = distinct(spans_s)
        for known_spans_s, known_scores in self._known.get(_place(video), ()):
            # Pairs of times as complex numbers, which NumPy compares as one value.
            times, known_times = (spans.view(np.complex128).ravel() for spans in (spans_s[rows], known_spans_s))
            _, here, there = np.intersect1d(times, known_times, return_indices=True)
            # Names alone say little: features made in two folders may name their videos alike, relative to each.
            # Scores of the same frames differ by rounding only.
            near = _SCORE_TOLERANCE * np.abs(known_scores).max()
            if np.allclose(scores[rows[here]], known_scores[there], rtol=0, atol=near):
                rows = np.delete(rows, here)
                self.count += len(here)
        return rows


def _place(video: str) -> str:
    return os.path.abspath(video)  # noqa: PTH100 - two links to a file are two videos
