"""Retrieval metrics: worked examples, plain twins of both definitions, ties, masks and invariances."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnce.errors import InputError
from milnce.metrics import (
    RetrievalMetrics,
    RetrievalRanks,
    collaborative_experts,
    mil_nce,
    rank_similarity,
)

Matrix = Any


def f32(rows: list[list[float]]) -> Matrix:
    return np.array(rows, np.float32)


# The twins: plain Python, written from the definitions in the two repositories.


def positions(scores: list[float], right: float) -> list[int]:
    """Return every position at which `right` stands in the list sorted by falling score."""
    return [place for place, score in enumerate(sorted(scores, reverse=True)) if score == right]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def twin_t2v(scores: Matrix, videos: list[int], present: list[bool]) -> list[float]:
    rows = scores.tolist()
    kept = [caption for caption in range(len(rows)) if present[caption]]
    return [mean([*positions(rows[caption], rows[caption][videos[caption]])]) for caption in kept]


def twin_v2t(scores: Matrix, videos: list[int], present: list[bool]) -> list[float]:
    ranks = []
    for video in range(scores.shape[1]):
        listed = {caption: float(scores[caption, video]) for caption in range(len(scores)) if present[caption]}
        own = [
            mean([*positions(list(listed.values()), score)])
            for caption, score in listed.items()
            if videos[caption] == video
        ]
        if own:
            ranks.append(min(own))
    return ranks


def twin_metrics(ranks: list[float]) -> list[float]:
    """Return R@1, R@5, R@10, R@50, MdR, MnR and the geometric mean."""
    recalls = [100 * sum(rank == 0 for rank in ranks) / len(ranks)]
    recalls += [100 * sum(rank < most for rank in ranks) / len(ranks) for most in (5, 10, 50)]
    ordered = sorted(ranks)
    middle = mean([ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]])
    product = math.prod(recalls[:3])
    return [*recalls, middle + 1, mean(ranks) + 1, product ** (1 / 3)]


def twin_mil_nce(scores: Matrix) -> list[float]:
    """Return R@1, R@5, R@10, MdR and the number of samples."""
    rows = scores.tolist()
    samples = [place for number, row in enumerate(rows) for place in positions(row, row[number])]
    ordered = sorted(samples)
    middle = mean([ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]])
    return [100 * sum(place < most for place in samples) / len(samples) for most in (1, 5, 10)] + [
        middle + 1,
        len(samples),
    ]


def numbers(metrics: RetrievalMetrics) -> list[float | None]:
    recalls = [metrics.r1, metrics.r5, metrics.r10, metrics.r50]
    return [*recalls, metrics.median_rank, metrics.mean_rank, metrics.geometric_mean]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Matrix, list[int], list[bool], int]:
    """Draw scores with many ties, captions' videos in any order, a mask, and a block size."""
    captions, videos = draw(st.integers(1, 14)), draw(st.integers(1, 9))
    highest = draw(st.integers(0, 4))
    cells = st.lists(st.integers(-highest, highest), min_size=captions * videos, max_size=captions * videos)
    scores = np.array(draw(cells), np.float32).reshape(captions, videos)
    of = draw(st.lists(st.integers(0, videos - 1), min_size=captions, max_size=captions))
    present = draw(st.lists(st.booleans(), min_size=captions, max_size=captions).filter(any))
    return scores, of, present, draw(st.integers(1, 200))


# Worked by hand.


def test_four_captions_of_three_videos_by_hand() -> None:
    # Captions 0 and 3 are of video 0, 1 of video 1, 2 of video 2.
    scores = f32([[5, 1, 0], [2, 2, 2], [7, 8, 6], [3, 4, 3]])
    ranks = rank_similarity(scores, np.array([0, 1, 2, 0]))
    # Caption 0 is first. Caption 1 ties with both: positions 0, 1, 2. Caption 2 is last. Caption 3 shares 1 and 2.
    assert ranks.t2v.rank.tolist() == [0, 1, 2, 1.5]
    assert ranks.t2v.tied.tolist() == [0, 2, 0, 1]
    # Video 0 [5 2 7 3]: 5 is at 1, 3 at 2. Video 1 [1 2 8 4]: 2 is at 2. Video 2 [0 2 6 3]: 6 is at 0.
    assert ranks.v2t.rank.tolist() == [1, 2, 0]
    text, video = collaborative_experts(ranks)
    assert numbers(text)[:1] == [25.0]
    assert (text.r5, text.r50, text.median_rank, text.mean_rank) == (100, 100, 2.25, 2.125)
    assert text.geometric_mean == pytest.approx((25 * 100 * 100) ** (1 / 3))
    assert (text.queries, text.candidates, text.ties, text.samples) == (4, 3, 2, 4)
    assert (video.r1, video.median_rank, video.mean_rank) == pytest.approx((100 / 3, 2, 2))
    assert (video.queries, video.candidates, video.ties, video.direction) == (3, 4, 0, "v2t")


def test_a_tie_for_the_first_place_is_no_hit_at_1_but_one_sample_of_two_is() -> None:
    scores = f32([[3, 3], [0, 1]])
    ranks = rank_similarity(scores, np.arange(2))
    text, _ = collaborative_experts(ranks)
    assert (text.r1, text.mean_rank) == (50, 1.25)
    # Positions 0 and 1 of the first row, 0 of the second.
    own = mil_nce(ranks)
    assert (own.r1, own.samples, own.median_rank, own.ties) == pytest.approx((200 / 3, 3, 1, 1))


def test_a_constant_matrix_is_chance_and_not_perfect() -> None:
    ranks = rank_similarity(np.zeros((9, 9), np.float32), np.arange(9))
    text, video = collaborative_experts(ranks)
    for metrics in (text, video):
        assert (metrics.r1, metrics.r5, metrics.median_rank, metrics.mean_rank) == (0, 100, 5, 5)
        assert (metrics.ties, metrics.geometric_mean) == (9, 0)
    own = mil_nce(ranks)
    assert (own.samples, own.r1, own.r5) == pytest.approx((81, 100 / 9, 500 / 9))
    assert (own.median_rank, own.r10) == (5, 100)


def test_a_perfect_and_a_reversed_matrix() -> None:
    perfect = collaborative_experts(rank_similarity(np.eye(12, dtype=np.float32), np.arange(12)))
    assert all(numbers(metrics) == [100, 100, 100, 100, 1, 1, pytest.approx(100)] for metrics in perfect)
    worst = collaborative_experts(rank_similarity(-np.eye(12, dtype=np.float32), np.arange(12)))
    assert all(numbers(metrics) == [0, 0, 0, 100, 12, 12, 0] for metrics in worst)


def test_thresholds_are_at_1_5_10_and_50() -> None:
    # Caption i's right video has exactly i videos above it.
    size = 60
    scores = np.zeros((size, size), np.float32)
    for row in range(size):
        above = [other for other in range(size) if other != row][:row]
        scores[row, row], scores[row, above] = 1, 2
    text, _ = collaborative_experts(rank_similarity(scores, np.arange(size)))
    assert [text.r1, text.r5, text.r10, text.r50] == [pytest.approx(100 * most / size) for most in (1, 5, 10, 50)]
    own = mil_nce(rank_similarity(scores, np.arange(size)))
    assert [own.r1, own.r5, own.r10] == [pytest.approx(100 * most / size) for most in (1, 5, 10)]


def test_unequal_numbers_of_captions_and_a_video_without_any() -> None:
    scores = f32([[1, 9, 0, 5], [2, 8, 1, 6], [3, 7, 2, 7], [4, 6, 3, 8]])
    ranks = rank_similarity(scores, np.array([1, 1, 1, 3]))
    # Only videos 1 and 3 look for a caption; videos 0 and 2 are found by nobody, and are candidates all the same.
    assert ranks.v2t.query.tolist() == [1, 3]
    assert ranks.v2t.rank.tolist() == [0, 0]
    assert ranks.t2v.candidates == 4
    assert ranks.t2v.rank.tolist() == [0, 0, 0.5, 0]


def test_a_masked_caption_is_neither_query_nor_candidate() -> None:
    # Two videos of two captions; the second caption of video 0 is missing, and its garbage scores are the highest.
    scores = f32([[1, 0], [9, 9], [2, 3], [0, 2]])
    masks = np.array([[True, False], [True, True]])
    ranks = rank_similarity(scores, np.repeat(np.arange(2), 2), present=masks)
    assert ranks.t2v.query.tolist() == [0, 2, 3]
    assert ranks.t2v.rank.tolist() == [0, 0, 0]
    # Video 0 looks through [1 2 0]: its caption is second. Video 1 through [0 3 2]: its first caption wins.
    assert ranks.v2t.rank.tolist() == [1, 0]
    assert ranks.v2t.candidates == 3


# Against the twins.


@settings(max_examples=300, deadline=None)
@given(drawn())
def test_ranks_and_metrics_are_those_of_the_plain_definition(case: tuple[Matrix, list[int], list[bool], int]) -> None:
    scores, of, present, block = case
    ranks = rank_similarity(scores, np.array(of), present=np.array(present), block_scores=block)
    expected = twin_t2v(scores, of, present), twin_v2t(scores, of, present)
    assert (ranks.t2v.rank.tolist(), ranks.v2t.rank.tolist()) == expected
    for metrics, twin in zip(collaborative_experts(ranks), expected, strict=True):
        assert numbers(metrics) == pytest.approx(twin_metrics(twin), rel=1e-12, abs=1e-12)
        assert metrics.queries == metrics.samples == len(twin)


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 14), highest=st.integers(0, 3), seed=st.integers(0, 999), block=st.integers(1, 99))
def test_mil_nce_is_that_of_the_plain_definition(size: int, highest: int, seed: int, block: int) -> None:
    scores = np.random.default_rng(seed).integers(0, highest + 1, (size, size)).astype(np.float32)
    own = mil_nce(rank_similarity(scores, np.arange(size), block_scores=block))
    found = [own.r1, own.r5, own.r10, own.median_rank, own.samples]
    assert found == pytest.approx(twin_mil_nce(scores), rel=1e-12)


def test_both_definitions_agree_where_nothing_ties() -> None:
    scores = np.random.default_rng(0).permutation(80 * 80).reshape(80, 80).astype(np.float32)
    ranks = rank_similarity(scores, np.arange(80))
    text, own = collaborative_experts(ranks)[0], mil_nce(ranks)
    assert (own.r1, own.r5, own.r10, own.median_rank) == (text.r1, text.r5, text.r10, text.median_rank)
    assert (own.ties, own.samples) == (0, 80)


# What must not change them.


@settings(max_examples=100, deadline=None)
@given(drawn(), st.integers(0, 999))
def test_the_order_of_captions_and_videos_does_not_matter(
    case: tuple[Matrix, list[int], list[bool], int], seed: int
) -> None:
    scores, of, present, block = case
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(scores.shape[0]), rng.permutation(scores.shape[1])
    place = np.argsort(columns)
    before = rank_similarity(scores, np.array(of), present=np.array(present))
    after = rank_similarity(
        scores[rows][:, columns], place[np.array(of)[rows]], present=np.array(present)[rows], block_scores=block
    )
    assert collaborative_experts(before) == collaborative_experts(after)


@settings(max_examples=100, deadline=None)
@given(drawn())
def test_a_monotonic_change_of_the_scores_does_not_matter(case: tuple[Matrix, list[int], list[bool], int]) -> None:
    scores, of, present, _ = case
    before = rank_similarity(scores, np.array(of), present=np.array(present))
    after = rank_similarity(scores**3 * 4 - 1, np.array(of), present=np.array(present))
    assert collaborative_experts(before) == collaborative_experts(after)


def test_many_ties_do_not_make_a_list_of_samples() -> None:
    size = 3_000
    own_ranks = rank_similarity(np.zeros((size, size), np.float32), np.arange(size))
    tracemalloc.start()
    own = mil_nce(own_ranks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (own.samples, own.median_rank) == (size * size, (size + 1) / 2)
    assert peak < 2**20


@pytest.mark.parametrize(("of", "shape"), [([0, 1, 1], (3, 3)), ([0, 1], (2, 3)), ([0, 1, 1], (3, 2))])
def test_mil_nce_refuses_other_than_one_caption_a_video(of: list[int], shape: tuple[int, int]) -> None:
    ranks = rank_similarity(np.zeros(shape, np.float32), np.array(of))
    with pytest.raises(InputError, match=f"exactly one caption for each video; {shape[0]} captions and {shape[1]} vid"):
        mil_nce(ranks)


def test_mil_nce_takes_any_order_of_captions() -> None:
    scores = np.random.default_rng(5).integers(0, 3, (9, 9)).astype(np.float32)
    order = np.random.default_rng(6).permutation(9)
    diagonal = mil_nce(rank_similarity(scores, np.arange(9)))
    assert mil_nce(rank_similarity(scores[order], order)) == diagonal


def test_metrics_become_json() -> None:
    ranks: RetrievalRanks = rank_similarity(np.eye(3, dtype=np.float32), np.arange(3))
    for metrics in (*collaborative_experts(ranks), mil_nce(ranks)):
        assert RetrievalMetrics(**json.loads(json.dumps(metrics.to_json(), allow_nan=False))) == metrics
        assert replace(metrics, r1=0.0) != metrics
