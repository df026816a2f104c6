"""Finding moments by a sentence: ranking the windows of videos, exact and deterministic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Scores of this many rows at a time are sorted with the best so far, so that no score of every row is kept.
_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best rows for a sentence, best first.

    Attributes:
        index: int64 (k,), row numbers in the array that was ranked.
        score: float32 (k,), dot products, highest first.
        lowest: The lowest score of all rows, shown or not: the zero point of a bar chart.
    """

    index: NDArray[np.int64]
    score: NDArray[np.float32]
    lowest: float


@dataclass(frozen=True, slots=True)
class Moment:
    """One window that was found.

    Attributes:
        rank: Its place, from 1.
        score: Dot product of sentence and window.
        path: The video.
        start_s: Where the window starts, in seconds.
        end_s: Where it ends, in seconds.
    """

    rank: int
    score: float
    path: str
    start_s: float
    end_s: float


@dataclass(slots=True)
class WindowPool:
    """The windows of many videos, to be searched together. All are held in memory, 2 KiB a window of 512.

    A window is its video's path and its times: one that comes again is left out, so that it is found once. Videos
    shorter than a window have the same one many times over.
    """

    _paths: list[str] = field(default_factory=list)
    _files: list[NDArray[np.int64]] = field(default_factory=list)
    _spans_s: list[NDArray[np.float64]] = field(default_factory=list)
    _embedding: list[NDArray[np.float32]] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self._embedding))

    def add(
        self,
        paths: Sequence[str],
        start_s: Sequence[float] | NDArray[np.float64],
        end_s: Sequence[float] | NDArray[np.float64],
        embedding: NDArray[np.float32],
    ) -> None:
        """Add windows: their video's path, their times in seconds, float32 (windows, 512); one entry a window each.

        Of windows with the same path and times the first is kept. A video's windows come in one call: the same path
        in another call is another video.

        Raises:
            InputError: if the lengths differ, or the width is not that of the windows added before.
        """
        lengths = {len(paths), len(start_s), len(end_s), len(embedding)}
        if len(lengths) > 1:
            raise InputError(f"paths, start_s, end_s and embedding have {sorted(lengths)} entries; as many of each")
        if self._embedding and self._embedding[0].shape[1:] != embedding.shape[1:]:
            raise InputError(f"embedding is {embedding.shape[1:]} wide, those before {self._embedding[0].shape[1:]}")
        # Counted anew in each call: features made in two folders may name two videos alike.
        number = {path: len(self._paths) + index for index, path in enumerate(dict.fromkeys(paths))}
        self._paths += number
        first: dict[tuple[str, float, float], int] = {}
        for row, key in enumerate(zip(paths, start_s, end_s, strict=True)):
            first.setdefault(key, row)
        new = list(first.values())
        self._files.append(np.array([number[paths[row]] for row in new], np.int64))
        self._spans_s.append(np.stack([start_s, end_s], axis=1, dtype=np.float64)[new])
        self._embedding.append(embedding if len(new) == len(embedding) else embedding[new])

    def search(self, text: NDArray[np.float32], top: int, *, per_file: bool = False) -> tuple[list[Moment], float]:
        """Rank all windows by one sentence.

        Args:
            text: float32 (512,), the sentence's embedding.
            top: How many moments to return.
            per_file: Whether each video is represented by its best window only.

        Returns:
            The best moments, best first, and the lowest score of all windows.

        Raises:
            InputError: as `rank` does.
        """
        width = text.shape[0] if text.ndim == 1 else 0
        embedding = _joined(self._embedding, np.empty((0, width), np.float32))
        files = _joined(self._files, np.empty(0, np.int64))
        spans_s = _joined(self._spans_s, np.empty((0, 2), np.float64))
        ranking = rank(text, embedding, top, groups=files if per_file else None)
        moments = [
            Moment(place, float(score), self._paths[files[row]], float(spans_s[row, 0]), float(spans_s[row, 1]))
            for place, (row, score) in enumerate(zip(ranking.index, ranking.score, strict=True), 1)
        ]
        return moments, ranking.lowest


def rank(
    text: NDArray[np.float32],
    embedding: NDArray[np.float32],
    top: int,
    *,
    groups: NDArray[np.int64] | None = None,
) -> Ranking:
    """Rank every row of `embedding` by its dot product with one sentence's embedding.

    The product is the score MIL-NCE was trained with; nothing is normalised. Every row is compared (no index, no
    approximation). A row's score depends on that row alone, so equal rows tie exactly, and the lower row comes first.

    Args:
        text: float32 (width,), one sentence.
        embedding: float32 (rows, width).
        top: How many rows to return, at least 1; fewer come back when there are fewer.
        groups: int64 (rows,), such as a file number: at most the best row of each group is returned. None ranks rows.

    Returns:
        The ranking.

    Raises:
        InputError: if a dtype, shape or width does not fit, there are no rows, `top` is below 1, or a value is NaN or
            infinite.
    """
    _check(text, embedding, top, groups)
    index = np.empty(0, np.int64)
    score = np.empty(0, np.float32)
    lowest = np.inf
    for start in range(0, len(embedding), _CHUNK_ROWS):
        rows = np.asarray(embedding[start : start + _CHUNK_ROWS])
        # einsum and not `@`: BLAS may sum the same row in another order at another place of the matrix, and then
        # equal rows would not tie.
        scores = np.einsum("nd,d->n", rows, text, optimize=False)
        _check_finite(scores, rows, start)
        lowest = min(lowest, float(scores.min()))
        index = np.concatenate([index, np.arange(start, start + len(rows), dtype=np.int64)])
        score = np.concatenate([score, scores])
        order = np.argsort(-score, kind="stable")
        if groups is not None:
            _, first = np.unique(groups[index[order]], return_index=True)
            order = order[np.sort(first)]
        index, score = index[order[:top]], score[order[:top]]
    return Ranking(index, score, lowest)


def _check(
    text: NDArray[Any],
    embedding: NDArray[Any],
    top: int,
    groups: NDArray[np.int64] | None,
) -> None:
    for name, array, rank_expected in (("text", text, 1), ("embedding", embedding, 2)):
        if array.dtype != np.float32 or array.ndim != rank_expected:
            shape = "(width,)" if rank_expected == 1 else "(rows, width)"
            raise InputError(f"{name}: {array.dtype} {array.shape} given; float32 {shape} expected")
    if text.shape[0] != embedding.shape[1]:
        raise InputError(
            f"text is {text.shape[0]} wide and embedding {embedding.shape[1]}; both must come from the same model"
        )
    if len(embedding) == 0:
        raise InputError("embedding has no rows, so there is nothing to rank; embed at least one video")
    if top < 1:
        raise InputError(f"top is {top}; ask for at least 1")
    if groups is not None and groups.shape != (len(embedding),):
        raise InputError(f"groups has shape {groups.shape}; one number a row expected, ({len(embedding)},)")
    if not np.isfinite(text).all():
        raise InputError("text holds NaN or infinity; encode the sentence again")


def _check_finite(scores: NDArray[np.float32], rows: NDArray[np.float32], start: int) -> None:
    # Finite rows can still overflow to infinity in the product, but only from values near 1e19: refused as well.
    if np.isfinite(scores).all():
        return
    bad = int(np.flatnonzero(~np.isfinite(scores))[0])
    what = "holds NaN or infinity" if not np.isfinite(rows[bad]).all() else "gives an infinite score"
    raise InputError(f"embedding row {start + bad} {what}; embed that video again")


def _joined(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    # One part stays as it is: it may be large, and a copy would double it.
    return np.concatenate(parts) if len(parts) > 1 else (parts or [empty])[0]
