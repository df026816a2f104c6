"""Evaluation: the numbers against plain NumPy, spans, distractors, what failures cost, and the published rows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.evaluations import PRESET, SENTENCES, captions_of, videos_of, whole
from milnce import evaluation_page
from milnce.captions import Clip
from milnce.errors import InputError, RangeError, VideoError
from milnce.evaluation import embed_clips, evaluate
from milnce.metrics import collaborative_experts, mil_nce, rank_similarity
from milnce.pipeline import embed_spans
from milnce.published import PUBLISHED
from milnce.video import get_preset, iter_windows

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.model import Model


def expected_clip(model: Model, path: Path, start_s: float | None, end_s: float | None) -> Any:  # noqa: ANN401  # an array
    clips = [window.clip for window in iter_windows(path, PRESET, start_s=start_s, end_s=end_s)]
    return np.mean([model.encode_video(clip[None]).embedding[0] for clip in clips], axis=0)


CLIPS = [
    Clip("a", 0.0, 1.5),
    Clip("a", 1.5, None),
    Clip("b.mkv", None, None),
    Clip("sub/c", 0.5, 2.5),
    Clip("sub/c", None, 1.0),
]
ROWS = [*zip(CLIPS, SENTENCES, strict=False), (CLIPS[0], "a door")]


def test_clips_are_embedded_from_their_start_to_their_end(model: Model, folder: Path) -> None:
    clips = embed_clips(model, captions_of(*ROWS), preset=PRESET, videos=videos_of(folder), batch_size=4)
    assert clips.error == (None,) * 5
    paths = [folder / "a.mp4", folder / "a.mp4", folder / "b.mkv", folder / "sub" / "c.mp4", folder / "sub" / "c.mp4"]
    assert list(clips.path) == paths
    assert not any(clips.stored)
    for clip, path, row in zip(CLIPS, paths, clips.embedding, strict=True):
        np.testing.assert_allclose(row, expected_clip(model, path, clip.start_s, clip.end_s), rtol=1e-4, atol=1e-4)


def test_clips_of_several_files_share_batches(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = model.encode_video

    def spy(clips: Any, *, batch_size: int = 8) -> Any:  # noqa: ANN401  # as the model's
        sizes.append(len(clips))
        return encode(clips, batch_size=batch_size)

    monkeypatch.setattr(model, "encode_video", spy)
    embed_clips(model, captions_of(*ROWS), preset=PRESET, videos=videos_of(folder), batch_size=4, workers=0)
    assert sizes == [4, 4, 4, 3]


def test_the_numbers_are_those_of_the_matrix(model: Model, folder: Path) -> None:
    captions = captions_of(*ROWS)
    clips = embed_clips(model, captions, preset=PRESET, videos=videos_of(folder))
    result = evaluate(model, captions, clips, metric="both")
    text = model.encode_text([sentence for _, sentence in ROWS])
    of = np.array([0, 1, 2, 3, 4, 0])
    scores = np.asarray(text @ clips.embedding.T)
    assert result.metrics[:2] == collaborative_experts(rank_similarity(scores, of))
    # MIL-NCE lists clip 0 twice, once for each of its captions; equal columns give equal scores.
    assert result.metrics[2] == mil_nce(rank_similarity(np.ascontiguousarray(scores[:, of]), np.arange(6)))
    assert result.metrics[2].ties == 2
    assert (result.asked, result.candidates) == (tuple(range(6)), tuple(range(5)))
    assert (result.failed, result.unknown, result.queries_lost) == ((), (), 0)
    assert [row.definition for row in evaluate(model, captions, clips, metric="milnce").metrics] == ["mil-nce"]
    assert len(evaluate(model, captions, clips).metrics) == 2


def test_clips_without_a_query_stay_candidates(model: Model, folder: Path) -> None:
    captions = captions_of(*ROWS, queries={2, 4})
    clips = embed_clips(model, captions, preset=PRESET, videos=videos_of(folder))
    result = evaluate(model, captions, clips)
    scores = np.asarray(model.encode_text([SENTENCES[1], SENTENCES[3]]) @ clips.embedding.T)
    assert result.metrics == collaborative_experts(rank_similarity(scores, np.array([1, 3])))
    text, video = result.metrics
    assert (text.queries, text.candidates, video.queries, video.candidates) == (2, 5, 2, 2)
    with pytest.raises(InputError, match="3 of 5 clips have no query; leave --queries out or take --metric ce"):
        evaluate(model, captions, clips, metric="both")


def test_a_failed_clip_costs_its_queries_and_is_no_candidate(model: Model, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    rows = [
        (whole("a"), "run"),
        (whole("broken"), "cut"),
        (whole("gone"), "pour water"),
        (whole("gone"), "water"),
        (Clip("b", 7, 9), "a door"),
        (whole("c"), "open"),
    ]
    captions = captions_of(*rows)
    clips = embed_clips(model, captions, preset=PRESET, videos=[*videos_of(folder), tmp_path / "broken.mp4"])
    result = evaluate(model, captions, clips)
    assert [(str(item.clip), type(item.error), item.queries) for item in result.failed] == [
        ("broken", VideoError, 1),
        ("gone", VideoError, 2),
        ("b [7 s to 9 s]", RangeError, 1),
    ]
    assert "gone: no such video among the 4 video files" in str(result.failed[1].error)
    assert (result.queries_lost, result.asked, result.candidates) == (4, (0, 5), (0, 4))
    scores = np.asarray(model.encode_text(["run", "open"]) @ clips.embedding[[0, 4]].T)
    assert result.metrics == collaborative_experts(rank_similarity(scores, np.arange(2)))
    document = result.to_json()
    assert (document["queries"], document["queries_lost"], document["clips"], document["candidates"]) == (2, 4, 5, 2)
    assert document["failed"][1] == {
        "video": "gone",
        "start_s": None,
        "end_s": None,
        "error": "gone: no such video among the 4 video files",
        "type": "VideoError",
        "queries": 2,
    }


def test_when_all_clips_fail_there_are_no_metrics(model: Model) -> None:
    captions = captions_of((whole("x"), "run"), (whole("y"), "cut"))
    result = evaluate(model, captions, embed_clips(model, captions, preset=PRESET), metric="both")
    assert (result.metrics, result.ranks, result.queries_lost) == ((), None, 2)
    assert evaluation_page.page_content(result, lambda *_: b"", queries=9, top=3) == ([], {}, [])


def test_captions_without_a_known_word_are_counted_and_asked(model: Model, folder: Path) -> None:
    captions = captions_of((whole("a"), "zucchini"), (whole("b"), "run"), (whole("c"), "!?"))
    clips = embed_clips(model, captions, preset=PRESET, videos=videos_of(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(model, captions, clips)
    assert result.unknown == (0, 2)
    assert result.metrics[0].queries == 3
    assert result.to_json()["unknown_only"] == [{"row": 1, "caption": "zucchini"}, {"row": 3, "caption": "!?"}]


def test_only_queries_are_counted_as_lost_and_numbers_stay_those_of_the_file(model: Model, folder: Path) -> None:
    rows = [(whole("gone"), "run"), (whole("gone"), "cut"), (whole("a"), "zucchini"), (whole("b"), "run")]
    captions = captions_of(*rows, queries={2, 3})
    result = evaluate(model, captions, embed_clips(model, captions, preset=PRESET, videos=videos_of(folder)))
    assert [item.queries for item in result.failed] == [1]
    assert (result.asked, result.unknown) == ((2,), (2,))


def test_max_words_reaches_the_tokenizer(model: Model, folder: Path) -> None:
    captions = captions_of((whole("a"), "run cut pour"), (whole("b"), "cut"))
    clips = embed_clips(model, captions, preset=PRESET, videos=videos_of(folder))
    result = evaluate(model, captions, clips, max_words=1)
    np.testing.assert_array_equal(result.text, model.encode_text(["run", "cut"], max_words=1))


def test_spans_are_checked_before_any_work(model: Model, folder: Path) -> None:
    spans = [(folder / "a.mp4", None, None), (folder / "a.mp4", 3.0, 2.0)]
    with pytest.raises(InputError, match=r"start 3\.0 s and end 2\.0 s given; 0 <= start < end expected"):
        embed_spans(model, spans, preset=PRESET)
    with pytest.raises(InputError, match="makes clips of"):
        embed_spans(model, [], preset=get_preset("milnce-native", size=8))


def test_published_rows_agree_with_their_own_geometric_mean() -> None:
    for row in PUBLISHED:
        if row.geometric_mean is not None:
            assert row.geometric_mean == pytest.approx((row.r1 * row.r5 * row.r10) ** (1 / 3), abs=0.06)
        assert row.r1 < row.r5 < row.r10 < (row.r50 or 100)
        assert row.source.startswith("github.com/")


def test_published_rows_are_those_of_the_sources() -> None:
    # R@1, R@5, R@10, R@50, median rank, mean rank and geometric mean, as the sources print them.
    ce, milnce = "collaborative-experts", "mil-nce"
    paper, rerun = "MIL-NCE S3D, paper", "MIL-NCE S3D, public rerun"
    assert [tuple(row.to_json().values())[:-1] for row in PUBLISHED] == [
        ("YouCook2 validation", paper, milnce, "t2v", 15.1, 38.0, 51.2, None, 10, None, None),
        ("YouCook2 validation", rerun, milnce, "t2v", 13.9, 36.3, 48.9, None, 11, None, None),
        ("MSR-VTT 1k", paper, milnce, "t2v", 9.9, 24.0, 32.4, None, 29.5, None, None),
        ("MSR-VTT 1k", rerun, milnce, "t2v", 10, 25, 35, None, 31, None, None),
        ("QuerYD", "HowTo100m S3D", ce, "t2v", 13.5, 27.5, 34.5, 57.0, 35.0, 72.5, 23.4),
        ("QuerYD", "HowTo100m S3D", ce, "v2t", 12.4, 23.8, 30.8, 57.0, 33.0, 73.4, 20.9),
        ("QuerYDSegments", "HowTo100m S3D", ce, "t2v", 6.7, 14.7, 20.4, 36.6, 133.0, 342.0, 12.6),
        ("QuerYDSegments", "HowTo100m S3D", ce, "v2t", 8.4, 15.4, 19.8, 34.2, 154.5, 363.0, 13.7),
    ]
    sources = [
        "antoine77340/MIL-NCE_HowTo100M, README.md",
        "LuoweiZhou/YouCook2-Leaderboard",
        "antoine77340/MIL-NCE_HowTo100M, README.md",
        "antoine77340/MIL-NCE_HowTo100M, issue 17",
        *["albanie/collaborative-experts, README.md"] * 4,
    ]
    for row, source in zip(PUBLISHED, sources, strict=True):
        assert row.source.startswith(f"github.com/{source}")
    assert PUBLISHED[3].source.endswith("printed with two digits (recalls 0.1, 0.25 and 0.35)")
