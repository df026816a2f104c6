"""Merging neighbouring windows into moments: the stretches of video that a search shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Windows this close touch: their times are rounded to microseconds, and features files may round them further.
_TOUCH_S = 1e-3


@dataclass(frozen=True, slots=True)
class Stretch:
    """A best window and the neighbours merged with it.

    Attributes:
        row: The best window: its row in the arrays given to `find_stretches`.
        start_s: Where the stretch starts, in seconds.
        end_s: Where it ends, in seconds.
        windows: How many windows were merged, the best one included.
    """

    row: int
    start_s: float
    end_s: float
    windows: int


def find_stretches(
    scores: NDArray[np.float32],
    files: NDArray[np.int64],
    spans_s: NDArray[np.float64],
    top: int,
    *,
    merge: bool = True,
    per_file: bool = False,
) -> list[Stretch]:
    """Return the best stretches, best first, exactly: every window takes part.

    The best window that is left is the next stretch. Neighbours that overlap or touch it, before and after, are merged
    with it as long as their scores reach halfway from the median of all windows to the stretch's best. Windows that
    overlap a stretch are not found again. So a stretch depends neither on `top` nor on those after it, and where every
    window of a video overlaps the next one, the video does not become one stretch from end to end.

    Equal scores are ordered by file, then by start.

    Args:
        scores: float32 (rows,), higher is better.
        files: int64 (rows,), the number of each window's file.
        spans_s: float64 (rows, 2), start and end of each window in its file, in seconds.
        top: How many to return, at least 1; fewer come back when there are fewer.
        merge: Whether to merge at all; if not, every window is a stretch, overlapping ones too.
        per_file: Whether to return the best stretch of each file only.

    Raises:
        InputError: if the shapes differ, or `top` is below 1.
    """
    if scores.ndim != 1 or files.shape != scores.shape or spans_s.shape != (len(scores), 2):
        shapes = f"scores {scores.shape}, files {files.shape} and spans_s {spans_s.shape}"
        raise InputError(f"{shapes} given; (rows,), (rows,) and (rows, 2) expected")
    if top < 1:
        raise InputError(f"top is {top}; ask for at least 1")
    if not len(scores):
        return []
    rows = np.lexsort((spans_s[:, 0], files))
    windows = _Windows(scores[rows], files[rows], spans_s[rows])
    found: list[Stretch] = []
    for index in np.argsort(-windows.scores, kind="stable"):
        if windows.taken[index]:
            continue
        begin, finish, count = windows.stretch_around(int(index), merge=merge)
        found.append(Stretch(int(rows[index]), begin, finish, count))
        if len(found) == top:
            break
        windows.take(int(index), begin, finish, overlapping=merge, whole_file=per_file)
    return found


class _Windows:
    """The windows in order of file and start, and which of them are found already."""

    def __init__(self, scores: NDArray[np.float32], files: NDArray[np.int64], spans_s: NDArray[np.float64]) -> None:
        self.scores = scores
        self.files = files
        self.spans_s = spans_s
        self.taken: NDArray[np.bool_] = np.zeros(len(scores), np.bool_)
        self._median = float(np.median(scores))

    def stretch_around(self, best: int, *, merge: bool) -> tuple[float, float, int]:
        """Return start and end of the stretch around window `best`, and the number of windows merged."""
        enough = (float(self.scores[best]) + self._median) / 2
        start_s, end_s = map(float, self.spans_s[best])
        count = 1
        for step in (-1, 1) if merge else ():
            index = best + step
            while self._joins(index, best, enough) and self._touches(index, start_s, end_s):
                start_s = min(start_s, float(self.spans_s[index, 0]))
                end_s = max(end_s, float(self.spans_s[index, 1]))
                count += 1
                index += step
        return start_s, end_s, count

    def _joins(self, index: int, best: int, enough: float) -> bool:
        inside = 0 <= index < len(self.scores) and self.files[index] == self.files[best]
        return bool(inside and not self.taken[index] and self.scores[index] >= enough)

    def _touches(self, index: int, start_s: float, end_s: float) -> bool:
        begin_s, finish_s = self.spans_s[index]
        return bool(begin_s <= end_s + _TOUCH_S and finish_s >= start_s - _TOUCH_S)

    def take(self, best: int, start_s: float, end_s: float, *, overlapping: bool, whole_file: bool) -> None:
        """Let no window be found again that is the stretch's own, or overlaps it, or is in the same file."""
        self.taken[best] = True
        first, last = np.searchsorted(self.files, [self.files[best], self.files[best] + 1])
        own: Any = slice(first, last)
        if whole_file:
            self.taken[own] = True
        elif overlapping:
            begins_s, finishes_s = self.spans_s[own, 0], self.spans_s[own, 1]
            self.taken[own] |= (begins_s < end_s - _TOUCH_S) & (finishes_s > start_s + _TOUCH_S)
