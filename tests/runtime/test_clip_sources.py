"""Where clips come from: stored features, and names that stand for one file or none."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.evaluations import PRESET, captions_of, videos_of, whole
from helpers.videos import make_video
from milnce import pipeline
from milnce.captions import Clip
from milnce.clip_sources import NameIndex, StoredFeatures, mean_of_windows
from milnce.errors import InputError, RangeError
from milnce.evaluation import embed_clips, evaluate
from milnce.features import Features, FeaturesMetadata, FeatureWriter, read_features
from milnce.pipeline import WindowSpan
from milnce.video import get_preset

if TYPE_CHECKING:
    from milnce.model import Model
    from milnce.video import Preset


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
        range_s = {name: changes[name] for name in ("start_s", "end_s") if name in changes}
        for item in model.embed_files(videos, preset=preset, **range_s):
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


def test_a_stored_stretch_is_not_taken_for_the_whole_video(model: Model, folder: Path, tmp_path: Path) -> None:
    sliding = get_preset("sliding", frames=4, size=32, stride_frames=2)
    path = store(model, tmp_path / "f.npz", [folder / "a.mp4"], sliding, start_s=0.5, end_s=1.5)
    stored, name = read(model, path, preset=sliding), str(folder / "a.mp4")
    for clip in (whole("a"), Clip("a", None, 1.5), Clip("a", 0.4, 1.5), Clip("a", 0.5, 1.6), Clip("a", 0.5, None)):
        with pytest.raises(RangeError, match=r"a\.mp4: stored from 0\.5 s to 1\.5 s, which the clip is not inside of"):
            stored.embed(name, clip)
    inside = stored.embed(name, Clip("a", 0.5, 1.5))
    (item,) = model.embed_files([folder / "a.mp4"], preset=sliding, start_s=0.5, end_s=1.5)
    np.testing.assert_array_equal(inside, mean_of_windows(item.embedding))
    begun = read(model, store(model, tmp_path / "g.npz", [folder / "a.mp4"], sliding, start_s=0.5), preset=sliding)
    with pytest.raises(RangeError, match=r"stored from 0\.5 s to its end"):
        begun.embed(name, whole("a"))
    begun.embed(name, Clip("a", 0.5, None))
    stopped = read(model, store(model, tmp_path / "h.npz", [folder / "a.mp4"], sliding, end_s=1), preset=sliding)
    with pytest.raises(RangeError, match=r"stored from 0 s to 1 s"):
        stopped.embed(name, whole("a"))


def handmade(path: Path, windows: list[tuple[str, float, float]], embedding: Any) -> Features:  # noqa: ANN401  # an array
    """Write and read features whose windows are said, not sampled."""
    metadata = FeaturesMetadata("digest", PRESET.name, PRESET.digest, PRESET.to_json(), "none", "fp32", "0")
    with FeatureWriter(path, metadata) as writer:
        for (name, start_s, end_s), row in zip(windows, embedding, strict=True):
            writer.append(name, [WindowSpan(0, start_s, end_s)], row[None], row[None])
        writer.commit()
    return read_features(path)


def test_starts_are_compared_to_the_microsecond_and_ends_to_half_a_sampled_frame(tmp_path: Path) -> None:
    # Windows of 0.4 s and 4 frames, so half a frame is 0.05 s; decoding rounds a stretch to frames in the same way.
    starts = [0.3 - 1e-9, 0.3 - 2e-6, 0.35 + 1e-9, 0.35 + 4e-6, 0.3]
    windows = [("a", start_s, start_s + 0.4) for start_s in starts]
    handmade(tmp_path / "f.npz", windows, np.diag(np.array([1, 10, 100, 1000, 2], np.float32)))
    stored = StoredFeatures.read([tmp_path / "f.npz"], model_digest="digest", preset=PRESET)
    assert (3 * stored.embed("a", Clip("a", 0.3, 0.7))).tolist() == pytest.approx([1, 0, 100, 0, 2])


@pytest.mark.parametrize("end_s", [2.96, 2.8, 2.0])
def test_a_clip_to_the_very_end_has_the_same_windows_stored_and_decoded(
    end_s: float, model: Model, tmp_path: Path
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=74)  # 2.96 s, 29.6 sampled frames: decoded as 30
    sliding = get_preset("sliding", frames=4, size=32, stride_frames=2)
    captions = captions_of((Clip("v", None, end_s), "run"))
    stored = read(model, store(model, tmp_path / "f.npz", [video], sliding), preset=sliding)
    kept = embed_clips(model, captions, preset=sliding, stored=stored)
    assert kept.error == (None,)
    decoded = embed_clips(model, captions, preset=sliding, videos=[video])
    np.testing.assert_array_equal(kept.embedding, decoded.embedding)


def test_an_end_far_beyond_the_video_fails_stored_as_it_does_decoded(
    model: Model, folder: Path, tmp_path: Path
) -> None:
    captions = captions_of((Clip("a", None, 40.0), "run"))
    decoded = embed_clips(model, captions, preset=PRESET, videos=[folder / "a.mp4"])
    assert "end_s=40.0 is beyond the end; the video lasts 4.000 s" in str(decoded.error[0])
    for preset in (PRESET, get_preset("sliding", frames=4, size=32, stride_frames=2)):
        features = store(model, tmp_path / f"{preset.name}.npz", [folder / "a.mp4"], preset)
        stored = read(model, features, preset=preset)
        clips = embed_clips(model, captions, preset=preset, stored=stored)
        assert "a.mp4: the clip ends at 40 s, but the last stored window ends at " in str(clips.error[0])
        stored.embed(str(folder / "a.mp4"), Clip("a", None, 4.0))
    one = get_preset("milnce-native", frames=4, size=32, windows=1)  # it does not show where the video ends
    stored = read(model, store(model, tmp_path / "one.npz", [folder / "a.mp4"], one), preset=one)
    assert embed_clips(model, captions, preset=one, stored=stored).error == (None,)


def test_a_clip_whose_mean_gives_no_scores_fails_alone(model: Model, tmp_path: Path) -> None:
    embedding = np.ones((2, 8), np.float32)
    embedding[1] = 3e38
    handmade(tmp_path / "f.npz", [("a", 0.0, 0.8), ("b", 0.0, 0.8)], embedding)
    stored = StoredFeatures.read([tmp_path / "f.npz"], model_digest="digest", preset=PRESET)
    captions = captions_of((whole("a"), "run"), (whole("b"), "cut"), (whole("b"), "open"))
    clips = embed_clips(model, captions, preset=PRESET, stored=stored)
    result = evaluate(model, captions, clips)
    message = "b: its mean embedding reaches 3e+38, which gives no finite scores; embed that video again"
    assert [(str(item.error), item.queries) for item in result.failed] == [(message, 2)]
    assert len(result.asked) == 1


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


def test_one_video_stored_and_as_a_file_under_two_names_is_refused(model: Model, folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "old" / "a.mp4"  # as the features call it; it is elsewhere now
    moved.parent.mkdir()
    shutil.copy(folder / "a.mp4", moved)
    stored = read(model, store(model, tmp_path / "f.npz", [moved]))
    moved.unlink()
    captions = captions_of((whole("a"), "run"), (whole(f"{folder.name}/a"), "cut"))
    with pytest.raises(InputError, match=rf"the captions call .*a\.mp4 both 'a' and '{folder.name}/a'"):
        embed_clips(model, captions, preset=PRESET, stored=stored, videos=videos_of(folder))
    link = tmp_path / "link.mp4"
    link.symlink_to(folder / "a.mp4")
    with pytest.raises(InputError, match=r"the captions call .*link\.mp4 both 'a' and 'link'"):
        embed_clips(
            model,
            captions_of((whole("a"), "run"), (whole("link"), "cut")),
            preset=PRESET,
            videos=[folder / "a.mp4", link],
        )


def test_a_file_is_found_by_its_absolute_path_and_is_one_in_two_spellings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index = NameIndex(["v/x.mp4", f"{tmp_path}/v/x.mp4", "v/../v/x.mp4", f"{tmp_path}/v/y.mp4", "v/y.mp4"])
    assert len(index) == 2
    assert [index.find(name) for name in ("x", f"{tmp_path}/v/x.mp4", f"{tmp_path}/v/x", f"{tmp_path.name}/v/x")] == [
        "v/x.mp4"
    ] * 4
    assert index.find("v/y") == f"{tmp_path}/v/y.mp4"
    assert index.find("/v/x.mp4") is None


def test_features_of_one_video_in_two_spellings_are_refused(
    model: Model, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    store(model, tmp_path / "a.npz", [folder / "b.mkv"])
    store(model, tmp_path / "b.npz", [Path("b.mkv")])
    with pytest.raises(InputError, match=r"b\.npz: holds the windows of b\.mkv, as does another features file"):
        read(model, tmp_path)
