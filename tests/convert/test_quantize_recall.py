"""Recall of an INT8 graph beside FP32: what is counted, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from milnce.errors import QuantizationError
from milnce_convert.quantize_recall import Recall, clip_recall, require_recall

WHOLE = {"r1": 100.0, "r5": 100.0}


def embeddings(count: int = 40, width: int = 16) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)


def test_equal_embeddings_are_all_found_both_ways() -> None:
    fp32 = embeddings()
    there, back = clip_recall(fp32, fp32.copy())
    assert (there.fp32, there.int8, back.int8) == (WHOLE, WHOLE, WHOLE)
    assert (there.queries, there.candidates, there.fall_points) == (40, 40, 0.0)
    assert there.kind == "FP32 clips find their INT8 ones"
    assert back.kind == "INT8 clips find their FP32 ones"


def test_two_clips_that_took_each_others_place_are_two_misses() -> None:
    fp32 = embeddings()
    int8 = fp32.copy()
    int8[[3, 9]] = int8[[9, 3]]
    for recall in clip_recall(fp32, int8):
        assert recall.int8["r1"] == 95.0
        assert recall.fall_points == 5.0


def test_a_clip_that_several_are_mistaken_for_counts_in_one_direction_more_than_in_the_other() -> None:
    fp32 = embeddings()
    int8 = fp32.copy()
    int8[1] = int8[2] = int8[0]  # ties for the first place are no hits
    there, back = clip_recall(fp32, int8)
    assert there.int8["r1"] == pytest.approx(92.5)
    assert back.int8["r1"] == pytest.approx(95.0)


def test_a_common_part_of_all_embeddings_hides_nothing() -> None:
    fp32 = embeddings()
    noise = np.random.default_rng(1).standard_normal(fp32.shape).astype(np.float32)
    plain = clip_recall(fp32, fp32 + noise)[0].int8["r1"]
    shifted = clip_recall(fp32 + 1000, fp32 + 1000 + noise)[0].int8["r1"]
    assert plain < 90
    assert shifted == pytest.approx(plain, abs=2.6)  # one clip, for what float32 rounds at 1000


def test_a_fall_of_one_point_is_allowed_and_more_is_not() -> None:
    allowed = Recall("captions find their clips", 200, 50, {"r1": 97.5, "r5": 100.0}, {"r1": 96.5, "r5": 100.0})
    better = Recall("clips find their captions", 50, 200, {"r1": 90.0, "r5": 98.0}, {"r1": 94.0, "r5": 98.0})
    require_recall([allowed, better])
    assert (allowed.fall_points, better.fall_points) == (1.0, 0.0)
    fallen = Recall("captions find their clips", 200, 50, {"r1": 97.5, "r5": 100.0}, {"r1": 97.5, "r5": 98.5})
    with pytest.raises(QuantizationError) as caught:
        require_recall([better, fallen])
    assert str(caught.value) == (
        "retrieval with the INT8 graph is worse by more than 1 point, so it is not written:\n"
        "  - captions find their clips: R@1 97.5 in FP32 and 97.5 in INT8, R@5 100.0 in FP32 and 98.5 in INT8 "
        "(200 queries, 50 candidates)\n"
        "Calibrate on more clips (--clips), of videos like those that will be searched"
    )
    require_recall([fallen], 1.5)
    with pytest.raises(QuantizationError, match="more than 0 points"):
        require_recall([allowed], 0.0)


def test_a_recall_that_is_no_number_is_refused() -> None:
    broken = Recall("captions find their clips", 1, 1, {"r1": 100.0, "r5": 100.0}, {"r1": float("nan"), "r5": 100.0})
    with pytest.raises(QuantizationError):
        require_recall([broken])
