"""Evaluation: the numbers against plain NumPy, spans, stored features, names, distractors, and what failures cost."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import make_video
from milnce import evaluation_page, pipeline
from milnce.captions import Caption, Captions, Clip
from milnce.clip_sources import NameIndex, StoredFeatures, mean_of_windows
from milnce.errors import InputError, RangeError, VideoError
from milnce.evaluation import ClipEmbeddings, Evaluation, embed_clips, evaluate
from milnce.features import Features, FeaturesMetadata, FeatureWriter, read_features
from milnce.metrics import collaborative_experts, mil_nce, rank_similarity
from milnce.pipeline import WindowSpan, embed_spans
from milnce.published import PUBLISHED
from milnce.video import get_preset, iter_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from milnce.model import Model
    from milnce.video import Preset

PRESET = get_preset("milnce-native", frames=4, size=32, windows=3)
SENTENCES = ["open the door", "cut the tomato", "pour water", "run", "someone cutting", "a door"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three videos of different length, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    make_video(folder / "a.mp4", frames=100)
    make_video(folder / "b.mkv", frames=50, size=(64, 96))
    make_video(folder / "sub" / "c.mp4", frames=75, size=(128, 72))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(path)
    with milnce.load(path, backend="onnxruntime") as opened:
        yield opened


def videos_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def captions_of(*rows: tuple[Clip, str], queries: set[int] | None = None) -> Captions:
    """Make captions of (clip, sentence) rows; `queries` are the rows that are asked, None for all."""
    clips = {clip: number for number, clip in enumerate(dict.fromkeys(clip for clip, _ in rows))}
    captions = [
        Caption(row, text, clips[clip], query=queries is None or row in queries)
        for row, (clip, text) in enumerate(rows, 1)
    ]
    return Captions(Path("captions.csv"), tuple(clips), tuple(captions), (), ())


def whole(video: str) -> Clip:
    return Clip(video, None, None)


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
    embed_clips(model, captions_of(*ROWS), preset=PRESET, videos=videos_of(folder), batch_size=4)
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


# Stored features.


def store(model: Model, path: Path, videos: list[Path], preset: Preset = PRESET, **changes: Any) -> Path:  # noqa: ANN401
    metadata = FeaturesMetadata(
        model_digest=model.bundle.manifest.model_digest,
        preset_name=preset.name,
        preset_digest=preset.digest,
        preset=preset.to_json(),
        backend="onnxruntime cpu",
        precision="fp32",
        milnce_version="0",
    )
    with FeatureWriter(path, replace(metadata, **changes)) as writer:
        for item in model.embed_files(videos, preset=preset):
            writer.append(item.path, item.windows, item.embedding, item.mixed_5c)
        writer.commit()
    return path


def read(model: Model, *paths: Path, preset: Preset = PRESET) -> StoredFeatures:
    return StoredFeatures.read(paths, model_digest=model.bundle.manifest.model_digest, preset=preset)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_stored_features_give_the_same_numbers_and_nothing_is_decoded(
    suffix: str, model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = captions_of((whole("a"), "run"), (whole("b"), "cut the tomato"), (whole("sub/c"), "open the door"))
    decoded = embed_clips(model, captions, preset=PRESET, videos=videos_of(folder))
    stored = read(model, store(model, tmp_path / f"f{suffix}", videos_of(folder)))
    monkeypatch.delattr(pipeline, "embed_spans")
    clips = embed_clips(model, captions, preset=PRESET, stored=stored, videos=videos_of(folder))
    np.testing.assert_array_equal(clips.embedding, decoded.embedding)
    assert clips.stored == (True, True, True)
    assert clips.path == decoded.path
    assert evaluate(model, captions, clips).metrics == evaluate(model, captions, decoded).metrics


def test_only_what_is_not_stored_is_decoded(model: Model, folder: Path, tmp_path: Path) -> None:
    captions = captions_of((whole("a"), "run"), (whole("b"), "cut"), (whole("c"), "open"))
    stored = read(model, store(model, tmp_path / "f.npz", [folder / "b.mkv"]))
    told: list[str] = []

    class Progress:
        def on_window(self, path: Path, window: WindowSpan) -> None:
            told.append(f"{path.name} {window.index}")

        def on_file(self) -> None:
            told.append("done")

    clips = embed_clips(
        model, captions, preset=PRESET, stored=stored, videos=videos_of(folder), batch_size=3, progress=Progress()
    )
    assert clips.stored == (False, True, False)
    assert sorted(told) == [f"{name} {n}" for name in ("a.mp4", "c.mp4") for n in range(3)] + ["done"] * 3
    np.testing.assert_array_equal(
        clips.embedding, embed_clips(model, captions, preset=PRESET, videos=videos_of(folder)).embedding
    )


def test_a_clip_takes_the_stored_windows_inside_it(model: Model, folder: Path, tmp_path: Path) -> None:
    sliding = get_preset("sliding", frames=4, size=32, stride_frames=2)
    path = store(model, tmp_path / "f.npz", [folder / "a.mp4"], sliding)
    (item,) = model.embed_files([folder / "a.mp4"], preset=sliding)
    stored = read(model, path, preset=sliding)
    inside = [n for n, window in enumerate(item.windows) if window.start_s >= 0.6 - 1e-9 and window.end_s <= 2 + 1e-9]
    assert [item.windows[n].start_s for n in (inside[0], inside[-1])] == pytest.approx([0.6, 1.6])
    name = str(folder / "a.mp4")
    np.testing.assert_array_equal(stored.embed(name, Clip("a", 0.6, 2.0)), mean_of_windows(item.embedding[inside]))
    np.testing.assert_array_equal(stored.embed(name, whole("a")), mean_of_windows(item.embedding))
    captions = captions_of((Clip("a", 0.5, 0.8), "run"), (whole("a"), "cut"))
    clips = embed_clips(model, captions, preset=sliding, stored=stored)
    assert "a.mp4: none of its 19 stored windows lies from 0.5 s to 0.8 s; embed its clips" in str(clips.error[0])
    assert evaluate(model, captions, clips).queries_lost == 1


def handmade(path: Path, windows: list[tuple[str, float, float]], embedding: Any) -> Features:  # noqa: ANN401  # an array
    """Write and read features whose windows are said, not sampled."""
    metadata = FeaturesMetadata("digest", PRESET.name, PRESET.digest, PRESET.to_json(), "none", "fp32", "0")
    with FeatureWriter(path, metadata) as writer:
        for (name, start_s, end_s), row in zip(windows, embedding, strict=True):
            writer.append(name, [WindowSpan(0, start_s, end_s)], row[None], row[None])
        writer.commit()
    return read_features(path)


def test_times_are_compared_to_the_microsecond(tmp_path: Path) -> None:
    starts = [0.3 - 1e-9, 0.3 - 2e-6, 0.3, 0.3]
    ends = [0.7 + 1e-9, 0.7, 0.7 + 2e-6, 0.7]
    windows = [("a", start_s, end_s) for start_s, end_s in zip(starts, ends, strict=True)]
    handmade(tmp_path / "f.npz", windows, np.diag(np.array([1, 10, 100, 1000], np.float32)))
    stored = StoredFeatures.read([tmp_path / "f.npz"], model_digest="digest", preset=PRESET)
    assert stored.embed("a", Clip("a", 0.3, 0.7)).tolist() == [0.5, 0, 0, 500]


def test_windows_that_lie_apart_in_a_file_are_averaged_in_their_order(tmp_path: Path) -> None:
    embedding = np.random.default_rng(0).standard_normal((300, 9), np.float32)
    windows = [(f"{number % 3}.mp4", 0.0, 1.0) for number in range(300)]
    features = handmade(tmp_path / "f.npz", windows, embedding)
    stored = StoredFeatures.read([tmp_path / "f.npz"], model_digest="digest", preset=PRESET)
    assert len(features.path) == 300
    for number in range(3):
        found = stored.embed(f"{number}.mp4", whole("any"))
        np.testing.assert_array_equal(found, mean_of_windows(embedding[number::3]))


def test_the_mean_of_windows_is_plain_and_fp32() -> None:
    windows = np.array([[3, 0], [0, 8], [0, 1]], np.float32)
    mean = mean_of_windows(windows)
    assert mean.tolist() == [1, 3]
    assert str(mean.dtype) == "float32"


def test_features_of_another_model_or_preset_are_refused(model: Model, folder: Path, tmp_path: Path) -> None:
    other = store(model, tmp_path / "m.npz", [folder / "b.mkv"], model_digest="0123456789abcdef")
    with pytest.raises(InputError, match=r"m\.npz: made with the model 0123456789ab\.\.\., but the bundle is .*again"):
        read(model, other)
    sampled = store(model, tmp_path / "p.npz", [folder / "b.mkv"])
    message = (
        r"p\.npz: sampled with preset .*windows 3, size 32\), but sliding \(fps 10\.0, frames 32, stride_frames 16"
    )
    with pytest.raises(InputError, match=message):
        read(model, sampled, preset=get_preset("sliding"))


def test_folders_of_features_are_read_and_the_same_video_twice_refused(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no features file in this folder; looked for \.npz and \.parquet"):
        read(model, tmp_path)
    store(model, tmp_path / "a.npz", [folder / "a.mp4"])
    store(model, tmp_path / "b.parquet", [folder / "b.mkv"])
    stored = read(model, tmp_path)
    assert (len(stored.names), sorted(path.name for path in stored.metadata)) == (2, ["a.npz", "b.parquet"])
    assert read(model, tmp_path / "a.npz", tmp_path).metadata.keys() == stored.metadata.keys()
    store(model, tmp_path / "c.npz", [folder / "b.mkv"])
    with pytest.raises(InputError, match=r"c\.npz: holds the windows of .*b\.mkv, as does another features file"):
        read(model, tmp_path)


def test_stored_videos_need_not_exist(model: Model, folder: Path, tmp_path: Path) -> None:
    stored = read(model, store(model, tmp_path / "f.npz", videos_of(folder)))
    clips = embed_clips(model, captions_of((whole("a"), "run"), (whole("z"), "cut")), preset=PRESET, stored=stored)
    assert clips.error[0] is None
    assert clips.path[0] == folder / "a.mp4"
    assert "z: no such video among the 3 videos with stored features" in str(clips.error[1])


# Names.


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("x", "v/226/x.mp4"),
        ("x.mp4", "v/226/x.mp4"),
        ("226/x", "v/226/x.mp4"),
        ("v/226/x.mp4", "v/226/x.mp4"),
        ("227/y", "v/227/y.mkv"),
        ("y.mkv.mp4", "v/y.mkv.mp4"),
        ("26/x", None),
        ("x.webm", None),
        ("../x", None),
        ("X", None),
        ("w/v/226/x", None),
    ],
)
def test_a_name_is_the_end_of_a_path(name: str, found: str | None) -> None:
    assert NameIndex(["v/226/x.mp4", "v/227/y.mkv", "v/228/y.webm", "v/y.mkv.mp4"]).find(name) == found


def test_a_name_with_its_suffix_goes_before_one_without() -> None:
    assert NameIndex(["v/y.mkv", "v/y.mkv.mp4"]).find("y.mkv") == "v/y.mkv"


def test_two_files_of_one_name_are_listed_and_not_guessed(model: Model, tmp_path: Path) -> None:
    index = NameIndex([f"{number}/y.mp4" for number in range(6)])
    with pytest.raises(InputError, match=r"y is 6 files: 0/y\.mp4, 1/y\.mp4, 2/y\.mp4, 3/y\.mp4, \.\.\.; name it with"):
        index.find("y")
    captions = captions_of((whole("y"), "run"), (whole("1/y"), "cut"))
    files = [make_video(tmp_path / "y.mp4", frames=12), make_video(tmp_path / "y.mkv", frames=12)]
    clips = embed_clips(model, captions, preset=PRESET, videos=files)
    assert "y is 2 files" in str(clips.error[0])


def test_one_video_under_two_names_is_refused(model: Model, folder: Path) -> None:
    captions = captions_of((whole("a"), "run"), (whole("a.mp4"), "cut"))
    with pytest.raises(
        InputError, match=r"the captions call .*a\.mp4 both 'a' and 'a\.mp4'.*the same name in every row"
    ):
        embed_clips(model, captions, preset=PRESET, videos=videos_of(folder))


def test_spans_are_checked_before_any_work(model: Model, folder: Path) -> None:
    spans = [(folder / "a.mp4", None, None), (folder / "a.mp4", 3.0, 2.0)]
    with pytest.raises(InputError, match=r"start 3\.0 s and end 2\.0 s given; 0 <= start < end expected"):
        embed_spans(model, spans, preset=PRESET)
    with pytest.raises(InputError, match="makes clips of"):
        embed_spans(model, [], preset=get_preset("milnce-native", size=8))


# The page.


def measured(count: int, embedding: Any, of: list[int], model: Model) -> Evaluation:  # noqa: ANN401  # an array
    """Evaluate drawn embeddings, without any video."""
    captions = captions_of(*[(whole(f"v{of[n]}"), SENTENCES[n % 6]) for n in range(count)])
    paths = tuple(Path(clip.video) for clip in captions.clips)
    total = len(captions.clips)
    return evaluate(model, captions, ClipEmbeddings(embedding, (None,) * total, paths, (False,) * total))


def test_the_page_shows_the_top_and_the_right_one(model: Model) -> None:
    embedding = np.random.default_rng(0).standard_normal((30, 8), np.float32)
    result = measured(30, embedding, list(range(30)), model)
    drawn: list[str] = []

    def draw(path: Path, start_s: float | None, end_s: float | None) -> bytes:
        assert (start_s, end_s) == (None, None)
        drawn.append(path.name)
        if path.name == "v3":
            raise VideoError("v3: gone")
        return path.name.encode()

    queries, pictures, missing = evaluation_page.page_content(result, draw, queries=30, top=4)
    scores = result.text @ embedding.T
    assert result.ranks is not None
    assert [query.caption for query in queries] == [SENTENCES[n % 6] for n in range(30)]
    for number, query in enumerate(queries):
        order = np.argsort(-scores[number])
        rank = int(np.flatnonzero(order == number)[0])
        expected = [*order[:4].tolist(), *([number] if rank >= 4 else [])]
        assert [video.video for video in query.shown] == [f"v{clip}" for clip in expected]
        assert [video.rank for video in query.shown] == [1, 2, 3, 4, *([rank + 1] if rank >= 4 else [])]
        assert [video.correct for video in query.shown] == [clip == number for clip in expected]
        assert [video.score for video in query.shown] == pytest.approx(scores[number][expected].tolist(), rel=1e-5)
        assert query.rank == rank + 1 == result.ranks.t2v.rank[number] + 1
        for video in query.shown:
            assert video.picture is None or pictures[video.picture].decode() == video.video
            assert (video.picture is None) == (video.video == "v3")
    assert sorted(drawn) == sorted(set(drawn))
    assert [str(error) for error in missing] == ["v3: gone"]


def test_the_queries_of_the_page_are_evenly_chosen(model: Model) -> None:
    embedding = np.ones((1, 8), np.float32)
    result = measured(100, embedding, [0] * 100, model)
    chosen, _, _ = evaluation_page.page_content(result, lambda *_: b"", queries=4, top=1)
    assert [query.caption for query in chosen] == [SENTENCES[n % 6] for n in (0, 33, 66, 99)]
    everything, _, _ = evaluation_page.page_content(result, lambda *_: b"", queries=1000, top=1)
    assert len(everything) == 100


def test_a_shared_rank_is_shown_as_such(model: Model) -> None:
    result = measured(2, np.ones((2, 8), np.float32), [0, 1], model)
    queries, _, _ = evaluation_page.page_content(result, lambda *_: b"", queries=9, top=2)
    assert [query.rank for query in queries] == [1.5, 1.5]


# The published rows.


def test_published_rows_agree_with_their_own_geometric_mean() -> None:
    for row in PUBLISHED:
        if row.geometric_mean is not None:
            assert row.geometric_mean == pytest.approx((row.r1 * row.r5 * row.r10) ** (1 / 3), abs=0.06)
        assert row.r1 < row.r5 < row.r10 < (row.r50 or 100)
        assert row.source.startswith("github.com/")


def test_published_rows_are_those_of_the_sources() -> None:
    cells = [(row.data, row.direction, row.r1, row.median_rank) for row in PUBLISHED]
    assert cells == [
        ("YouCook2 validation", "t2v", 15.1, 10),
        ("YouCook2 validation", "t2v", 13.9, 11),
        ("MSR-VTT 1k", "t2v", 9.9, 29.5),
        ("MSR-VTT 1k", "t2v", 10, 31),
        ("QuerYD", "t2v", 13.5, 35),
        ("QuerYD", "v2t", 12.4, 33),
        ("QuerYDSegments", "t2v", 6.7, 133),
        ("QuerYDSegments", "v2t", 8.4, 154.5),
    ]
