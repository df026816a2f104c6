"""Ranks from embeddings and matrices: equal rows tie, blocks change nothing, memory is bounded, and refusals."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milnce.errors import InputError
from milnce.metrics import (
    collaborative_experts,
    rank_embeddings,
    rank_similarity,
)

Matrix = Any


def f32(rows: list[list[float]]) -> Matrix:
    return np.array(rows, np.float32)


def embeddings(captions: int, videos: int, width: int, copies: int, seed: int) -> tuple[Matrix, Matrix, Matrix]:
    """Draw embeddings of which many are equal, and whose scores no order of summation gives alike by luck."""
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((copies, width), np.float32)[rng.integers(0, copies, captions)]
    video = rng.standard_normal((copies, width), np.float32)[rng.integers(0, copies, videos)]
    return text, video, rng.integers(0, videos, captions)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    width=st.sampled_from([1, 2, 3, 7, 8, 37, 64, 300, 512]),
    copies=st.integers(1, 6),
    seed=st.integers(0, 999),
    block=st.integers(1, 2000),
)
def test_blocks_of_embeddings_rank_as_their_scores_and_equal_rows_tie(
    sizes: tuple[int, int], width: int, copies: int, seed: int, block: int
) -> None:
    text, video, of = embeddings(*sizes, width, copies, seed)
    # One number for each pair of different vectors, so that equal ones tie by construction.
    unique_text, which_text = np.unique(text, axis=0, return_inverse=True)
    unique_video, which_video = np.unique(video, axis=0, return_inverse=True)
    exact = np.array(
        [[math.fsum(map(float.__mul__, a, b)) for b in unique_video.tolist()] for a in unique_text.tolist()]
    )
    order = np.unique(exact, return_inverse=True)[1].reshape(exact.shape)
    scores = order[which_text.reshape(-1)][:, which_video.reshape(-1)].astype(np.float32)
    expected = rank_similarity(scores, of)
    found = rank_embeddings(text, video, of, block_scores=block)
    assert collaborative_experts(found) == collaborative_experts(expected)


@pytest.mark.parametrize("block", [1, 7, 333, 4096])
def test_the_block_size_and_the_memory_layout_change_nothing(block: int) -> None:
    text, video, of = embeddings(150, 90, 512, 40, 3)
    whole = rank_embeddings(text, video, of)
    padded = np.zeros((90, 513), np.float32)
    padded[:, 1:] = video  # rows that are not aligned as the others are
    for other in (
        rank_embeddings(text, video, of, block_scores=block),
        rank_embeddings(np.asfortranarray(text), np.asfortranarray(video), of, block_scores=block),
        rank_embeddings(text, padded[:, 1:], of, block_scores=block),
    ):
        for direction in ("t2v", "v2t"):
            one, two = getattr(whole, direction), getattr(other, direction)
            assert (one.better.tolist(), one.tied.tolist()) == (two.better.tolist(), two.tied.tolist())
    assert collaborative_experts(whole)[0].ties > 100


def test_masks_reach_embeddings_too() -> None:
    text, video, of = embeddings(30, 10, 16, 9, 1)
    present = np.arange(30) % 3 > 0
    masked = rank_embeddings(text, video, of, present=present, block_scores=64)
    dropped = rank_embeddings(text[present], video, of[present])
    assert collaborative_experts(masked) == collaborative_experts(dropped)
    assert masked.t2v.query.tolist() == np.flatnonzero(present).tolist()


def test_memory_is_bounded_by_the_block_and_not_by_the_matrix() -> None:
    rng = np.random.default_rng(0)
    captions, videos, width = 60_000, 3_000, 2
    text, video = (rng.standard_normal((rows, width), np.float32) for rows in (captions, videos))
    of = np.repeat(np.arange(videos), captions // videos)
    tracemalloc.start()
    ranks = rank_embeddings(text, video, of)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ranks.t2v.query) == captions
    assert peak < 64 * 2**20, "the matrix of scores alone has 687 MiB"


SQUARE = np.zeros((3, 3), np.float32)
THREE = np.arange(3)


@pytest.mark.parametrize(
    ("similarity", "of", "present", "message"),
    [
        (SQUARE.astype(np.float64), THREE, None, r"similarity: float64 \(3, 3\) given.*astype\(np.float32\)"),
        (SQUARE[0], THREE, None, r"similarity: float32 \(3,\) given; float32 \(captions, videos\)"),
        (SQUARE, THREE[:2], None, r"video_of_caption: int64 \(2,\) given; integers \(3,\) expected"),
        (SQUARE, THREE.astype(float), None, r"video_of_caption: float64 \(3,\) given"),
        (SQUARE, np.array([0, 3, 1]), None, r"video_of_caption\[1\] is 3; a number from 0 to 2 expected"),
        (SQUARE, np.array([0, 1, -1]), None, r"video_of_caption\[2\] is -1"),
        (SQUARE, THREE, np.ones(2, bool), r"present: bool \(2,\) given; 3 bool expected"),
        (SQUARE, THREE, np.ones(3), r"present: float64 \(3,\) given"),
        (SQUARE, THREE, np.zeros(3, bool), "no caption is present"),
        (SQUARE[:0], THREE[:0], None, "no caption is present"),
        (f32([[0, np.nan, 0], [0, 0, 0], [0, 0, 0]]), THREE, None, "score of caption 0 and video 1 is nan"),
        (f32([[0, 0, 0], [0, np.nan, 0], [0, 0, 0]]), THREE, None, "score of caption 1 and video 1 is nan"),
        (f32([[0, 0, 0], [0, 0, 0], [0, 0, -np.inf]]), THREE, None, "score of caption 2 and video 2 is -inf"),
    ],
)
def test_refuses_what_has_no_ranks(similarity: Matrix, of: Matrix, present: Matrix, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rank_similarity(similarity, of, present=present)


def test_nan_in_any_block_is_refused_and_named_by_its_place() -> None:
    scores = np.zeros((40, 30), np.float32)
    scores[33, 17] = np.inf
    for block in (1, 50, 10_000):
        with pytest.raises(InputError, match="score of caption 33 and video 17 is inf"):
            rank_similarity(scores, np.zeros(40, int), block_scores=block)
    present = np.arange(40) != 33
    assert len(rank_similarity(scores, np.zeros(40, int), present=present).t2v.query) == 39


def test_ties_are_exact_up_to_the_widest_and_wider_ones_are_refused() -> None:
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((2, 1, 8193), np.float32)
    for captions, videos in ((1, 3), (1, 40), (3, 1), (5, 1), (7, 17)):
        text, video = pair[0].repeat(captions, 0), pair[1].repeat(videos, 0)
        ranks = rank_embeddings(text[:, :8192], video[:, :8192], np.zeros(captions, np.int64))
        assert ranks.t2v.tied.tolist() == [videos - 1] * captions
        with pytest.raises(InputError, match="the embeddings are 8193 wide; at most 8192 can be ranked"):
            rank_embeddings(text, video, np.zeros(captions, np.int64))


def row_with(value: float, row: int) -> Matrix:
    array = np.zeros((5000, 3), np.float32)
    array[row, 1] = value
    return array


@pytest.mark.parametrize(
    ("text", "video", "message"),
    [
        (row_with(np.nan, 4711), SQUARE, "text row 4711 holds NaN or infinity"),
        (row_with(0, 0), row_with(-np.inf, 4200), "video row 4200 holds NaN or infinity"),
        (row_with(0, 0), np.zeros((3, 4), np.float32), "text is 3 wide and video 4; both must come from the same"),
        (row_with(0, 0).astype(np.float16), SQUARE, r"text: float16 \(5000, 3\) given; float32 \(rows, width\)"),
        (row_with(0, 0), SQUARE[0], r"video: float32 \(3,\) given"),
        (row_with(1e30, 9), SQUARE + np.float32(1e30), "score of caption 9 and video 0 is inf"),
    ],
)
def test_refuses_embeddings_that_have_no_scores(text: Matrix, video: Matrix, message: str) -> None:
    with pytest.raises(InputError, match=message), np.errstate(over="ignore"):
        rank_embeddings(text, video, np.zeros(len(text), int))


@pytest.mark.parametrize("block", [0, -1, 2.5, True])
def test_a_block_has_at_least_one_score(block: Any) -> None:  # noqa: ANN401  # wrong types on purpose
    with pytest.raises(InputError, match=r"block_scores is .*; a whole number of at least 1 expected"):
        rank_similarity(SQUARE, THREE, block_scores=block)
    with pytest.raises(InputError, match=r"block_scores is .*; a whole number of at least 1 expected"):
        rank_embeddings(SQUARE, SQUARE, THREE, block_scores=block)
