"""Finding moments by a query: scoring every window exactly, and ranking them deterministically in bounded memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError
from milnce.moments import find_stretches

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows that are scored at a time.
_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Moment:
    """A stretch of video that was found.

    Attributes:
        rank: Its place, from 1.
        score: Dot product of the query and the best window.
        path: The video.
        start_s: Where it starts, in seconds.
        end_s: Where it ends, in seconds.
        windows: How many windows were merged.
        best_start_s: Where the best window starts, in seconds.
        best_end_s: Where the best window ends, in seconds.
    """

    rank: int
    score: float
    path: str
    start_s: float
    end_s: float
    windows: int
    best_start_s: float
    best_end_s: float


def score(queries: NDArray[np.float32], embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the dot product of every window with every query, the score that MIL-NCE was trained with.

    Nothing is normalised and nothing approximated. A row's score depends on that row and the query alone, so equal
    rows tie exactly.

    Args:
        queries: float32 (queries, width).
        embedding: float32 (rows, width).

    Returns:
        float32 (rows, queries).

    Raises:
        InputError: if a dtype, shape or width does not fit, or a value is NaN or infinite.
    """
    for name, given in (("queries", queries), ("embedding", embedding)):
        if given.dtype != np.float32 or given.ndim != 2:  # noqa: PLR2004 - a matrix
            raise InputError(f"{name}: {given.dtype} {given.shape} given; float32 (rows, width) expected")
    if queries.shape[1] != embedding.shape[1]:
        raise InputError(
            f"queries are {queries.shape[1]} wide and embedding {embedding.shape[1]}; both must come from the same "
            "model"
        )
    if not np.isfinite(queries).all():
        raise InputError("the query holds NaN or infinity; make it again")
    scores = np.empty((len(embedding), len(queries)), np.float32)
    for start in range(0, len(embedding), _CHUNK_ROWS):
        rows = np.asarray(embedding[start : start + _CHUNK_ROWS])
        for number, query in enumerate(queries):
            # einsum and not `@`: BLAS may sum the same row in another order at another place of the matrix, and then
            # equal rows would not tie.
            with np.errstate(over="ignore", invalid="ignore"):  # refused below, in words
                scored = np.einsum("nd,d->n", rows, query, optimize=False)
            _check_finite(scored, rows, query, start)
            scores[start : start + len(rows), number] = scored
    return scores


class ScoredWindows:
    """The scores of the windows of many videos, to be ranked together.

    Embeddings are not kept: a window takes 24 bytes and 4 more a query, so a million windows take under 30 MB.

    Args:
        queries: How many scores a window has.
    """

    def __init__(self, queries: int = 1) -> None:
        self._queries = queries
        self._paths: list[str] = []
        # Arrays of the standard library grow in place, without a second copy to join parts.
        self._files = array("q")
        self._spans_s = array("d")
        self._scores = array("f")

    def __len__(self) -> int:
        return len(self._files)

    def add_file(self, path: str) -> None:
        """Begin another video, even if one of the same path was there: two folders' features may name videos alike."""
        self._paths.append(path)

    def add(self, spans_s: NDArray[np.float64], scores: NDArray[np.float32]) -> None:
        """Add windows of the video begun last.

        Of windows with the same times the first is kept, so that it is found once: videos shorter than a window have
        the same one many times over.

        Args:
            spans_s: float64 (windows, 2), start and end in seconds.
            scores: float32 (windows, queries).

        Raises:
            InputError: if the shapes do not fit, or no video was begun.
        """
        if spans_s.shape != (len(scores), 2) or scores.shape != (len(spans_s), self._queries):
            expected = f"(windows, 2) and (windows, {self._queries}) expected"
            raise InputError(f"spans_s {spans_s.shape} and scores {scores.shape} given; {expected}")
        if not self._paths:
            raise InputError("no video begun: call add_file first")
        new = distinct(spans_s)
        self._files.frombytes(np.full(len(new), len(self._paths) - 1, np.int64).tobytes())
        self._spans_s.frombytes(spans_s[new].astype(np.float64, copy=False).tobytes())
        self._scores.frombytes(scores[new].astype(np.float32, copy=False).tobytes())

    def find(
        self, top: int, *, query: int = 0, merge: bool = True, per_file: bool = False
    ) -> tuple[list[Moment], float]:
        """Rank all windows by one query.

        Args:
            top: How many moments to return, at least 1.
            query: Which query, from 0.
            merge: Whether neighbouring windows that score nearly as well become one moment, as
                `milnce.moments.find_stretches` says.
            per_file: Whether each video is represented by its best moment only.

        Returns:
            The best moments, best first, and the lowest score of all windows: the zero point of a bar chart. Without
            any windows, none and 0.

        Raises:
            InputError: if `top` is below 1.
        """
        if not len(self):
            return [], 0.0
        files = np.frombuffer(self._files, np.int64)
        spans_s = np.frombuffer(self._spans_s, np.float64).reshape(-1, 2)
        scores = np.frombuffer(self._scores, np.float32).reshape(-1, self._queries)[:, query]
        stretches = find_stretches(scores, files, spans_s, top, merge=merge, per_file=per_file)
        moments = [
            Moment(
                rank=rank,
                score=float(scores[stretch.row]),
                path=self._paths[files[stretch.row]],
                start_s=stretch.start_s,
                end_s=stretch.end_s,
                windows=stretch.windows,
                best_start_s=float(spans_s[stretch.row, 0]),
                best_end_s=float(spans_s[stretch.row, 1]),
            )
            for rank, stretch in enumerate(stretches, 1)
        ]
        return moments, float(scores.min())


def distinct(spans_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the rows of a video's windows, float64 (windows, 2), that have other times than all rows before them."""
    if (np.diff(spans_s[:, 0]) > 0).all():  # as windows nearly always are; the general way is many times slower
        return np.arange(len(spans_s))
    return np.sort(np.unique(spans_s, axis=0, return_index=True)[1])


def _check_finite(scores: NDArray[np.float32], rows: NDArray[Any], query: NDArray[np.float32], start: int) -> None:
    if np.isfinite(scores).all():
        return
    bad = int(np.flatnonzero(~np.isfinite(scores))[0])
    if not np.isfinite(rows[bad]).all():
        raise InputError(f"embedding row {start + bad} holds NaN or infinity; embed that video again")
    # Finite values can still overflow in the product, but only from some near 1e19: the larger ones are no embedding's.
    of_query, of_row = float(np.abs(query).max()), float(np.abs(rows[bad]).max())
    raise InputError(
        f"embedding row {start + bad} gives an infinite score: its values reach {of_row:.3g}, the query's "
        f"{of_query:.3g}; {'make the query' if of_query > of_row else 'embed that video'} again"
    )
