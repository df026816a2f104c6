"""Where the right candidate of every query lies, counted exactly and in bounded memory: what metrics are made of.

In the list of candidates sorted by falling score, positions counted from 0, a right candidate with `better` candidates
scored higher and `tied` others scored exactly the same takes positions `better` to `better + tied`. Counting these two
needs no sorting, so no more than one block of scores exists at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from milnce.arguments import positive
from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# 16 MiB of float32 scores, and as much again for what is compared with them.
BLOCK_SCORES = 1 << 22
_PAIRS_AT_ONCE = 4096
# NumPy's iterators take this many elements at a time; einsum sums a wider pair in parts, which depend on its place.
_WIDEST = 8192
_MATRIX = 2


@dataclass(frozen=True, slots=True, eq=False)
class QueryRanks:
    """Where the right candidate of each query of one direction lies.

    Attributes:
        query: int64 (queries,): numbers of the captions (t2v) or videos (v2t) that are queries, ascending.
        better: int64 (queries,): candidates with a higher score than the right one.
        tied: int64 (queries,): other candidates with exactly the right one's score.
        candidates: How many candidates each query has.
    """

    query: NDArray[np.int64]
    better: NDArray[np.int64]
    tied: NDArray[np.int64]
    candidates: int

    @property
    def rank(self) -> NDArray[np.float64]:
        """float64 (queries,): the mean of the tied positions, from 0."""
        return self.better + self.tied / 2


@dataclass(frozen=True, slots=True, eq=False)
class RetrievalRanks:
    """Ranks in both directions; `t2v` has a query a caption, `v2t` one a video that has a caption."""

    t2v: QueryRanks
    v2t: QueryRanks


def rank_similarity(
    similarity: NDArray[np.float32],
    video_of_caption: NDArray[np.int64],
    *,
    present: NDArray[np.bool_] | None = None,
    block_scores: int = BLOCK_SCORES,
) -> RetrievalRanks:
    """Rank by a matrix of scores that is there already.

    Args:
        similarity: float32 (captions, videos), larger is closer. Other widths are refused: rounding makes ties.
        video_of_caption: Integers (captions,): each caption's right video. Videos may have different numbers of
            captions, or none: such a video is a candidate of every caption, and no query.
        present: bool, one a caption in any shape: False for a caption that is missing. It is then neither query nor
            candidate. collaborative-experts' fixed layout is `video_of_caption = np.repeat(np.arange(videos), k)`
            with its `query_masks`.
        block_scores: Scores that are compared at a time, which bounds the memory (about 10 bytes a score).

    Returns:
        Ranks in both directions. In v2t a video's rank is that of its best-scored caption (ties averaged before that
        choice); its other captions stay in the list.

    Raises:
        InputError: if a dtype, shape or number does not fit, no caption is present, or a score is NaN or infinite.
    """
    if similarity.dtype != np.float32 or similarity.ndim != _MATRIX:
        raise InputError(
            f"similarity: {similarity.dtype} {similarity.shape} given; float32 (captions, videos) expected, as ranks "
            "are of FP32 scores. Convert it with .astype(np.float32)"
        )
    rows, truth = _truth(video_of_caption, present, similarity.shape)

    def block(first: int, last: int, left: int, right: int) -> NDArray[np.float32]:
        return similarity[rows[first:last], left:right]

    right_scores = np.asarray(similarity[rows, truth])
    return _count(block, right_scores, rows, truth, similarity.shape[1], positive("block_scores", block_scores))


def rank_embeddings(
    text: NDArray[np.float32],
    video: NDArray[np.float32],
    video_of_caption: NDArray[np.int64],
    *,
    present: NDArray[np.bool_] | None = None,
    block_scores: int = BLOCK_SCORES,
) -> RetrievalRanks:
    """Rank by the dot products of embeddings, block by block: the whole matrix of scores never exists.

    A score is FP32 and depends on its two embeddings alone, not on where they lie or on `block_scores`. So equal
    videos tie exactly, equal captions get equal ranks, and the result is the same for every block size.

    Args:
        text: float32 (captions, width), width at most 8192.
        video: float32 (videos, width).
        video_of_caption: As in `rank_similarity`.
        present: As in `rank_similarity`.
        block_scores: As in `rank_similarity`.

    Returns:
        As `rank_similarity`.

    Raises:
        InputError: if a dtype, shape or number does not fit, no caption is present, or a value or a score is NaN or
            infinite.
    """
    for name, array in (("text", text), ("video", video)):
        if array.dtype != np.float32 or array.ndim != _MATRIX:
            raise InputError(f"{name}: {array.dtype} {array.shape} given; float32 (rows, width) expected")
        _check_rows(name, array)
    if text.shape[1] != video.shape[1]:
        raise InputError(f"text is {text.shape[1]} wide and video {video.shape[1]}; both must come from the same model")
    if text.shape[1] > _WIDEST:
        raise InputError(f"the embeddings are {text.shape[1]} wide; at most {_WIDEST} can be ranked with exact ties")
    rows, truth = _truth(video_of_caption, present, (len(text), len(video)))
    # C order, so that einsum sums every pair along the width in the same way.
    text, video = np.ascontiguousarray(text), np.ascontiguousarray(video)

    def block(first: int, last: int, left: int, right: int) -> NDArray[np.float32]:
        # einsum and not `@`: BLAS may sum the same pair in another order at another place of the matrix, and then
        # equal rows would not tie. Measured on two cores at width 512: 10 against 23 billion products a second.
        scores: NDArray[np.float32] = np.einsum("qd,nd->qn", text[rows[first:last]], video[left:right], optimize=False)
        return scores

    right_scores = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _PAIRS_AT_ONCE):
        part = slice(first, first + _PAIRS_AT_ONCE)
        right_scores[part] = np.einsum("nd,nd->n", text[rows[part]], video[truth[part]], optimize=False)
    return _count(block, right_scores, rows, truth, len(video), positive("block_scores", block_scores))


def _truth(
    video_of_caption: NDArray[Any], present: NDArray[np.bool_] | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of the captions that are present, and the right video of each."""
    captions, videos = shape
    if video_of_caption.shape != (captions,) or video_of_caption.dtype.kind not in "iu":
        given = f"{video_of_caption.dtype} {video_of_caption.shape}"
        raise InputError(f"video_of_caption: {given} given; integers ({captions},) expected, one a caption")
    if present is not None and (present.dtype != np.bool_ or present.size != captions):
        raise InputError(f"present: {present.dtype} {present.shape} given; {captions} bool expected, one a caption")
    rows = np.arange(captions) if present is None else np.flatnonzero(present)
    if not len(rows):
        raise InputError("no caption is present, so there is nothing to measure; give at least one with its video")
    truth = video_of_caption[rows].astype(np.int64)
    wrong = np.flatnonzero((truth < 0) | (truth >= videos))
    if len(wrong):
        number = int(rows[wrong[0]])
        raise InputError(f"video_of_caption[{number}] is {truth[wrong[0]]}; a number from 0 to {videos - 1} expected")
    return rows.astype(np.int64), truth


def _check_rows(name: str, array: NDArray[np.float32]) -> None:
    for first in range(0, len(array), _PAIRS_AT_ONCE):
        finite = np.isfinite(array[first : first + _PAIRS_AT_ONCE]).all(axis=1)
        if not finite.all():
            raise InputError(f"{name} row {first + int(finite.argmin())} holds NaN or infinity; embed it again")


def _count(
    block: Callable[[int, int, int, int], NDArray[np.float32]],
    right_scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    truth: NDArray[np.int64],
    videos: int,
    block_scores: int,
) -> RetrievalRanks:
    """Hold every score against that of its caption's right video and that of its video's best caption.

    `block(first, last, left, right)` gives the scores of captions `rows[first:last]` and videos left to right.
    """
    if not np.isfinite(right_scores).all():
        wrong = int(np.isfinite(right_scores).argmin())
        _refuse_score(rows[wrong], truth[wrong], right_scores[wrong])
    # Of a video's captions the best-scored one has the best rank, its ties averaged or not.
    best_scores = np.full(videos, -np.inf, np.float32)
    np.maximum.at(best_scores, truth, right_scores)
    has_caption = np.zeros(videos, np.bool_)
    has_caption[truth] = True
    of_text, of_video = np.zeros((2, len(rows)), np.int64), np.zeros((2, videos), np.int64)
    wide = min(videos, block_scores)
    high = max(1, block_scores // wide)
    for first in range(0, len(rows), high):
        last = min(first + high, len(rows))
        for left in range(0, videos, wide):
            right = min(left + wide, videos)
            scores = block(first, last, left, right)
            _check_scores(scores, rows[first:last], left)
            for number, compare in enumerate((np.greater, np.equal)):
                hits = compare(scores, right_scores[first:last, None])
                of_text[number, first:last] += np.count_nonzero(hits, axis=1)
                hits = compare(scores, best_scores[None, left:right], out=hits)
                of_video[number, left:right] += np.count_nonzero(hits, axis=0)
    better, equal = of_video[:, has_caption]
    return RetrievalRanks(
        # The right candidate is equal to itself, and not tied with itself.
        QueryRanks(rows, of_text[0], of_text[1] - 1, videos),
        QueryRanks(np.flatnonzero(has_caption), better, equal - 1, len(rows)),
    )


def _check_scores(scores: NDArray[np.float32], rows: NDArray[np.int64], left: int) -> None:
    if not np.isfinite(scores).all():
        row, column = np.argwhere(~np.isfinite(scores))[0]
        _refuse_score(rows[row], left + column, scores[row, column])


def _refuse_score(caption: np.int64, video: np.int64, score: np.float32) -> NoReturn:
    raise InputError(f"the score of caption {caption} and video {video} is {score}; only finite scores can be ranked")
