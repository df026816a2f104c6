"""Ranking: exact, stable on ties, per file, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnce import search
from milnce.errors import InputError
from milnce.search import WindowPool, rank


def drawn(rows: int, width: int = 16, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(width, np.float32), rng.standard_normal((rows, width), np.float32)


def test_ranks_as_a_full_sort_in_double_precision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_CHUNK_ROWS", 100)
    text, embedding = drawn(1037)
    exact = embedding.astype(np.float64) @ text.astype(np.float64)
    ranking = rank(text, embedding, 50)
    assert ranking.index.tolist() == np.argsort(-exact, kind="stable")[:50].tolist()
    np.testing.assert_allclose(ranking.score, np.sort(exact)[::-1][:50], rtol=1e-5, atol=1e-5)
    assert ranking.score.dtype == np.float32
    assert ranking.lowest == pytest.approx(exact.min(), rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(copies=st.lists(st.integers(0, 4), min_size=1, max_size=60), chunk=st.integers(1, 70), top=st.integers(1, 70))
def test_equal_rows_tie_exactly_and_the_lower_row_comes_first(copies: list[int], chunk: int, top: int) -> None:
    text, distinct = drawn(5, width=37)
    embedding = distinct[copies]
    best = np.argsort(-(distinct @ text))
    expected = [row for value in best for row, copy in enumerate(copies) if copy == value]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_CHUNK_ROWS", chunk)
        ranking = rank(text, embedding, top)
    assert ranking.index.tolist() == expected[:top]


@pytest.mark.parametrize("chunk", [7, 1000])
def test_groups_keep_the_best_row_of_each(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_CHUNK_ROWS", chunk)
    text, embedding = drawn(200)
    groups = np.random.default_rng(1).integers(0, 20, 200)
    scores = embedding @ text
    best = sorted(int(np.flatnonzero(groups == g)[scores[groups == g].argmax()]) for g in set(groups.tolist()))
    ranking = rank(text, embedding, 200, groups=groups)
    assert sorted(ranking.index.tolist()) == best
    assert (np.diff(ranking.score) <= 0).all()
    assert rank(text, embedding, 3, groups=groups).index.tolist() == ranking.index[:3].tolist()


def test_fewer_rows_than_asked_for_are_all_returned() -> None:
    text, embedding = drawn(3)
    assert sorted(rank(text, embedding, 10).index.tolist()) == [0, 1, 2]


def broken(value: float) -> Any:  # noqa: ANN401 - an array
    _, embedding = drawn(5000)
    embedding[4711, 3] = value
    return embedding


@pytest.mark.parametrize(
    ("text", "embedding", "top", "message"),
    [
        (np.ones(4, np.float64), np.ones((2, 4), np.float32), 1, r"text: float64 \(4,\) given; float32 \(width,\)"),
        (np.ones((1, 4), np.float32), np.ones((2, 4), np.float32), 1, r"text: float32 \(1, 4\) given"),
        (np.ones(4, np.float32), np.ones(4, np.float32), 1, r"embedding: float32 \(4,\) given.*\(rows, width\)"),
        (np.ones(4, np.float32), np.ones((2, 5), np.float32), 1, "text is 4 wide and embedding 5"),
        (np.ones(4, np.float32), np.empty((0, 4), np.float32), 1, "no rows.*embed at least one video"),
        (np.ones(4, np.float32), np.ones((2, 4), np.float32), 0, "top is 0; ask for at least 1"),
        (np.full(4, np.nan, np.float32), np.ones((2, 4), np.float32), 1, "text holds NaN"),
        (
            np.ones(16, np.float32),
            broken(np.nan),
            1,
            "embedding row 4711 holds NaN or infinity; embed that video again",
        ),
        (np.ones(16, np.float32), broken(-np.inf), 1, "embedding row 4711 holds NaN or infinity"),
    ],
)
def test_refuses_what_cannot_be_ranked(text: Any, embedding: Any, top: int, message: str) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=message):
        rank(text, embedding, top)


def test_groups_must_be_one_number_a_row() -> None:
    text, embedding = drawn(3)
    with pytest.raises(InputError, match=r"groups has shape \(2,\); one number a row expected, \(3,\)"):
        rank(text, embedding, 1, groups=np.zeros(2, np.int64))


def test_a_pool_names_file_and_time_of_what_it_finds() -> None:
    pool = WindowPool()
    pool.add(["a", "a"], [0.0, 1.0], [1.0, 2.0], np.array([[1, 0], [3, 0]], np.float32))
    pool.add(["b", "c"], [5.0, 7.5], [6.0, 8.5], np.array([[2, 0], [4, 0]], np.float32))
    text = np.array([1, 1], np.float32)
    moments, lowest = pool.search(text, 3)
    found = [(moment.rank, moment.score, moment.path, moment.start_s, moment.end_s) for moment in moments]
    assert found == [(1, 4.0, "c", 7.5, 8.5), (2, 3.0, "a", 1.0, 2.0), (3, 2.0, "b", 5.0, 6.0)]
    assert lowest == 1.0
    assert len(pool) == 4
    best, _ = pool.search(text, 3, per_file=True)
    assert [(moment.path, moment.score) for moment in best] == [("c", 4.0), ("a", 3.0), ("b", 2.0)]


def test_a_window_that_comes_again_is_found_once() -> None:
    pool = WindowPool()
    one = np.ones((3, 2), np.float32)
    pool.add(["a", "a", "a"], [0.0, 0.0, 0.0], [3.2, 3.2, 1.6], one)
    pool.add(["b", "b"], np.array([0.0, 0.0]), np.array([3.2, 3.2]), 2 * one[:2])
    moments, _ = pool.search(np.array([1, 1], np.float32), 9)
    found = [(moment.path, moment.end_s, moment.score) for moment in moments]
    assert found == [("b", 3.2, 4.0), ("a", 3.2, 2.0), ("a", 1.6, 2.0)]
    assert len(pool) == 3


def test_videos_of_the_same_relative_name_are_both_found() -> None:
    pool = WindowPool()
    for score in (1, 2):
        pool.add(["b.mp4"], [0.0], [3.2], np.full((1, 2), score, np.float32))
    moments, _ = pool.search(np.array([1, 1], np.float32), 9)
    assert [moment.score for moment in moments] == [4.0, 2.0]
    moments, _ = pool.search(np.array([1, 1], np.float32), 9, per_file=True)
    assert [moment.score for moment in moments] == [4.0, 2.0]


def test_a_pool_refuses_uneven_columns_other_widths_and_emptiness() -> None:
    pool = WindowPool()
    with pytest.raises(InputError, match="nothing to rank"):
        pool.search(np.ones(2, np.float32), 1)
    with pytest.raises(InputError, match=r"have \[1, 2\] entries"):
        pool.add(["a"], [0.0], [1.0], np.ones((2, 2), np.float32))
    pool.add(["a"], [0.0], [1.0], np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match=r"embedding is \(3,\) wide, those before \(2,\)"):
        pool.add(["a"], [0.0], [1.0], np.ones((1, 3), np.float32))
