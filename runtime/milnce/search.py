"""Ranking the windows of videos by a sentence: exact, deterministic, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# 8 MiB of 512-wide float32 rows at a time, so a memory-mapped array far larger than memory can be ranked.
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
        embedding: float32 (rows, width); may be a memory map.
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
