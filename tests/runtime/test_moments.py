"""Merging windows into stretches: by hand, against a brute-force twin, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnce.errors import InputError
from milnce.moments import Stretch, find_stretches

if TYPE_CHECKING:
    from collections.abc import Sequence


def found(
    scores: Sequence[float],
    spans_s: Sequence[tuple[float, float]],
    top: int = 9,
    files: Sequence[int] | None = None,
    *,
    merge: bool = True,
    per_file: bool = False,
) -> list[tuple[int, float, float, int]]:
    stretches = find_stretches(
        np.array(scores, np.float32),
        np.zeros(len(scores), np.int64) if files is None else np.array(files),
        np.array(spans_s, np.float64).reshape(-1, 2),
        top,
        merge=merge,
        per_file=per_file,
    )
    assert all(isinstance(stretch, Stretch) for stretch in stretches)
    return [(stretch.row, stretch.start_s, stretch.end_s, stretch.windows) for stretch in stretches]


HALVES = [(0.5 * index, 0.5 * index + 1) for index in range(8)]  # 1 s every 0.5 s
TILES = [(float(index), index + 1.0) for index in range(8)]


def test_neighbours_that_score_nearly_as_well_are_one_moment() -> None:
    # Median 0: windows join from half the best score on.
    scores = [0, 0, 6, 10, 5, 0, 0, 0]
    assert found(scores, HALVES, 1) == [(3, 1.0, 3.0, 3)]


def test_a_window_below_half_of_the_best_stays_out_and_is_not_shown_where_it_overlaps() -> None:
    scores = [0, 0, 4.9, 10, 5, 0, 0, 0]
    # Rows 2 and 5 overlap the moment from 1.5 to 3; row 1 ends where it begins, row 6 begins where it ends.
    assert found(scores, HALVES) == [(3, 1.5, 3.0, 2), (0, 0.0, 1.5, 2), (6, 3.0, 4.5, 2)]


def test_a_moment_reaches_the_same_whatever_is_asked_for() -> None:
    scores = [3, 9, 8, 0, 0, 7, 6, 1]
    everything = found(scores, HALVES)
    assert [found(scores, HALVES, top) for top in range(1, 4)] == [everything[:top] for top in range(1, 4)]


def test_windows_that_only_touch_are_merged_or_shown_each() -> None:
    assert found([0, 0, 0, 8, 6, 0, 0, 0], TILES, 2) == [(3, 3.0, 5.0, 2), (0, 0.0, 3.0, 3)]
    assert found([0, 0, 1, 8, 3, 0, 0, 0], TILES, 3) == [(3, 3.0, 4.0, 1), (4, 4.0, 5.0, 1), (2, 2.0, 3.0, 1)]


def test_a_gap_ends_a_moment_and_a_rounding_does_not() -> None:
    median_0 = [(100.0, 101), (200, 201), (300, 301)]
    assert found([9, 8, 0, 0, 0], [(0, 1), (1.002, 2), *median_0], 1) == [(0, 0.0, 1.0, 1)]
    assert found([9, 8, 0, 0, 0], [(0, 1), (1.0005, 2), *median_0], 1) == [(0, 0.0, 2.0, 2)]


def test_a_low_window_between_ends_a_moment() -> None:
    assert found([9, 1, 9, 0, 0, 0, 0, 0], TILES, 2) == [(0, 0.0, 1.0, 1), (2, 2.0, 3.0, 1)]


def test_files_are_never_merged() -> None:
    spans_s = [(0.0, 1.0), (1.0, 2.0)] * 2
    assert found([9, 9, 9, 9], spans_s, files=[0, 0, 1, 1]) == [(0, 0.0, 2.0, 2), (2, 0.0, 2.0, 2)]
    # The rows of a file need not stand together.
    assert found([9, 9, 9, 9], [(0, 1), (0, 1), (1, 2), (1, 2)], files=[1, 0, 1, 0]) == [
        (1, 0.0, 2.0, 2),
        (0, 0.0, 2.0, 2),
    ]


def test_ties_are_ordered_by_file_and_start() -> None:
    spans_s = [(5.0, 6.0), (0.0, 1.0), (3.0, 4.0)]
    assert [row for row, *_ in found([1, 1, 1], spans_s, files=[1, 1, 0], merge=False)] == [2, 1, 0]


def test_per_file_gives_the_best_of_each() -> None:
    spans_s = [(0.0, 1.0), (5.0, 6.0), (0.0, 1.0)]
    assert found([1, 3, 2], spans_s, files=[0, 0, 1], per_file=True) == [(1, 5.0, 6.0, 1), (2, 0.0, 1.0, 1)]


def test_without_merging_every_window_is_shown() -> None:
    assert found([1, 3, 2], [(0, 1), (0.5, 1.5), (1, 2)], merge=False) == [
        (1, 0.5, 1.5, 1),
        (2, 1.0, 2.0, 1),
        (0, 0.0, 1.0, 1),
    ]


def test_a_frame_without_a_length_is_found_once() -> None:
    assert found([1, 2], [(3.0, 3.0), (8.0, 8.0)]) == [(1, 8.0, 8.0, 1), (0, 3.0, 3.0, 1)]


@pytest.mark.parametrize(
    ("files", "spans_s", "top", "message"),
    [
        ([0], [[0, 1], [1, 2]], 1, r"scores \(2,\), files \(1,\) and spans_s \(2, 2\) given"),
        ([0, 0], [[0, 1]], 1, r"spans_s \(1, 2\) given; \(rows,\), \(rows,\) and \(rows, 2\) expected"),
        ([0, 0], [[0, 1], [1, 2]], 0, "top is 0; ask for at least 1"),
    ],
)
def test_refuses_uneven_columns_and_no_results(files: Any, spans_s: Any, top: int, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=message):
        find_stretches(np.zeros(2, np.float32), np.array(files), np.array(spans_s, np.float64), top)


def twin(
    scores: list[float], files: list[int], spans_s: list[tuple[float, float]], top: int, *, merge: bool, per_file: bool
) -> list[tuple[int, float, float, int]]:
    """Do what `find_stretches` says, with sets and no thought for speed."""
    left = set(range(len(scores)))
    ranked = sorted(left, key=lambda row: (-scores[row], files[row], spans_s[row][0], row))
    level = float(np.median(scores)) if scores else 0.0
    result: list[tuple[int, float, float, int]] = []
    while left and len(result) < top:
        best = next(row for row in ranked if row in left)
        own = sorted((row for row in range(len(scores)) if files[row] == files[best]), key=lambda r: (spans_s[r][0], r))
        begin, end, count, at = *spans_s[best], 1, own.index(best)
        for side in (own[:at][::-1], own[at + 1 :]) if merge else ():
            for row in side:
                near = spans_s[row][0] <= end + 1e-3 and spans_s[row][1] >= begin - 1e-3
                if row not in left or not near or scores[row] < (scores[best] + level) / 2:
                    break
                begin, end, count = min(begin, spans_s[row][0]), max(end, spans_s[row][1]), count + 1
        result.append((best, begin, end, count))
        left.discard(best)
        if per_file:
            left -= set(own)
        elif merge:
            left -= {row for row in own if spans_s[row][0] < end - 1e-3 and spans_s[row][1] > begin + 1e-3}
    return result


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 3), st.integers(0, 12), st.integers(0, 4)), max_size=40),
    top=st.integers(1, 12),
    merge=st.booleans(),
    per_file=st.booleans(),
)
def test_agrees_with_a_brute_force_twin(
    rows: list[tuple[int, int, int, int]], top: int, *, merge: bool, per_file: bool
) -> None:
    scores = [float(row[0]) for row in rows]
    files = [row[1] for row in rows]
    spans_s = [(row[2] / 2, (row[2] + row[3]) / 2) for row in rows]
    expected = twin(scores, files, spans_s, top, merge=merge, per_file=per_file)
    assert found(scores, spans_s, top, files, merge=merge, per_file=per_file) == expected
