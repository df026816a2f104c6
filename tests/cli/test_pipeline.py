"""From files to embeddings: batches across files, order, failures, bounds, early stops."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import make_audio, make_video, real_videos, truncate
from milnce.errors import BackendError, BundleError, InputError, NonFiniteError, RangeError, VideoError
from milnce.pipeline import FileEmbeddings, WindowSpan, embed_files, resolve_preset
from milnce.video import get_preset, iter_windows
from milnce.video.windows import iter_picture_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.commands import Tiny
    from milnce.model import Model

PRESET = get_preset("sliding", frames=4, size=32, stride_frames=3)


def expected(path: Path, tiny: Tiny) -> tuple[list[WindowSpan], Any, Any]:
    """Return what NumPy says about each window on its own."""
    windows = list(iter_windows(path, PRESET))
    embedding, mixed_5c = tiny.weights.video(np.stack([window.clip for window in windows]))
    return [WindowSpan(window.index, window.start_s, window.end_s) for window in windows], embedding, mixed_5c


def check(item: FileEmbeddings, tiny: Tiny) -> None:
    spans, embedding, mixed_5c = expected(item.path, tiny)
    assert item.error is None
    assert list(item.windows) == spans
    np.testing.assert_allclose(item.embedding, embedding, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(item.mixed_5c, mixed_5c, rtol=1e-4, atol=1e-3)


@pytest.fixture
def batches(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many clips each call of the model gets."""
    sizes: list[int] = []
    encode = model.encode_video

    def spy(clips: Any, *, batch_size: int = 8) -> Any:  # noqa: ANN401 - as the model's
        sizes.append(len(clips))
        return encode(clips, batch_size=batch_size)

    monkeypatch.setattr(model, "encode_video", spy)
    return sizes


@pytest.mark.parametrize("batch_size", [1, 5, 8, 1000])
def test_each_file_gets_its_own_windows_whatever_the_batch(
    batch_size: int, model: Model, tiny: Tiny, videos: Path, batches: list[int]
) -> None:
    paths = sorted(videos.iterdir())
    results = list(embed_files(model, paths, preset=PRESET, batch_size=batch_size, workers=0))
    assert [item.path for item in results] == paths
    for item in results:
        check(item, tiny)
    total = sum(len(item.windows) for item in results)
    # Full batches across files, and one rest.
    rest = [total % batch_size] if total % batch_size else []
    assert batches == [batch_size] * (total // batch_size) + rest


def test_real_videos_through_the_model(model: Model, tiny: Tiny) -> None:
    results = list(model.embed_files(real_videos(), preset=PRESET))
    assert len(results) == len(real_videos())
    for item in results:
        check(item, tiny)


def test_folders_are_searched(model: Model, videos: Path) -> None:
    results = list(embed_files(model, [videos], preset=PRESET))
    assert [item.path for item in results] == sorted(videos.iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_file_among_many_fails_alone(
    workers: int, model: Model, tiny: Tiny, videos: Path, tmp_path: Path, batches: list[int]
) -> None:
    good = sorted(videos.iterdir())
    (tmp_path / "empty.mp4").touch()
    bad = [
        make_audio(tmp_path / "sound.mp4"),
        truncate(make_video(tmp_path / "cut.mp4", frames=60), 0.5),
        tmp_path / "empty.mp4",
        tmp_path / "missing.mp4",
    ]
    paths = [good[0], bad[0], bad[1], good[1], bad[2], bad[3], good[2]]
    results = list(embed_files(model, paths, preset=PRESET, batch_size=6, workers=workers))
    assert [item.path for item in results] == paths
    for item in results:
        if item.path in good:
            check(item, tiny)
        else:
            assert isinstance(item.error, VideoError)
            assert str(item.path) in str(item.error)
            assert (item.windows, item.embedding.shape, item.mixed_5c.shape) == ((), (0, 8), (0, 12))
    assert max(batches) <= 6


@pytest.mark.parametrize(
    "error",
    [VideoError("broken at frame 99"), OSError(5, "Input/output error"), ZeroDivisionError("nobody's doing")],
)
def test_windows_of_a_file_that_breaks_midway_are_dropped_from_the_batch(
    error: Exception, model: Model, tiny: Tiny, videos: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sorted(videos.iterdir())
    breaking = Path("breaking.mp4")

    def windows(path: Path, *arguments: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401 - passed on
        if path != breaking:
            yield from iter_picture_windows(path, *arguments, **options)
            return
        for number, window in enumerate(iter_picture_windows(good[2], *arguments, **options)):
            if number == 3:
                raise error
            yield window

    monkeypatch.setattr("milnce.video.windows.iter_picture_windows", windows)
    results = list(embed_files(model, [good[0], breaking, good[1]], preset=PRESET, batch_size=50, workers=0))
    check(results[0], tiny)
    check(results[2], tiny)
    assert isinstance(results[1].error, VideoError)
    assert str(error) in str(results[1].error)
    assert results[1].windows == ()
    # The three windows that were decoded before it broke were not inferred either.
    assert sum(batches) == len(results[0].windows) + len(results[2].windows)


def test_results_come_while_later_files_are_not_yet_opened(model: Model, videos: Path, tmp_path: Path) -> None:
    late = tmp_path / "late.mp4"
    stream = embed_files(model, [*sorted(videos.iterdir()), late], preset=PRESET, batch_size=1, workers=0)
    assert next(stream).error is None
    make_video(late, frames=40)
    assert [item.error for item in stream] == [None, None, None]


def test_a_file_does_not_wait_for_the_end_of_the_next(model: Model, videos: Path) -> None:
    seen: list[Path] = []
    paths = [videos / "a.mp4", videos / "c.mp4"]
    alone = len(next(embed_files(model, paths[:1], preset=PRESET)).windows)
    assert alone % 2 == 1, "a last window must be left in the batch"
    stream = embed_files(
        model, paths, preset=PRESET, batch_size=2, workers=0, on_window=lambda path, _: seen.append(path)
    )
    assert next(stream).path == paths[0]
    assert seen == [paths[0]] * alone + [paths[1]]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only counted


@pytest.mark.parametrize("workers", [0, 2])
def test_stopping_early_closes_the_decoder(workers: int, model: Model, videos: Path) -> None:
    before = open_files()
    stream = embed_files(model, [videos / "a.mp4", videos / "c.mp4"], preset=PRESET, batch_size=2, workers=workers)
    next(stream)
    assert open_files() > before, "the second file is under way"
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert open_files() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_the_callback_closes_the_decoder_and_reaches_the_caller(
    workers: int, model: Model, videos: Path
) -> None:
    def interrupt(_: Path, window: WindowSpan) -> None:
        if window.index == 2:
            raise KeyboardInterrupt

    before = open_files()
    with pytest.raises(KeyboardInterrupt):
        list(embed_files(model, [videos], preset=PRESET, on_window=interrupt, workers=workers))
    assert open_files() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_the_callback_sees_every_window_in_order(workers: int, model: Model, videos: Path) -> None:
    seen: list[tuple[Path, WindowSpan]] = []
    stream = embed_files(
        model, [videos], preset=PRESET, on_window=lambda path, span: seen.append((path, span)), workers=workers
    )
    results = list(stream)
    # Those of several files come as they are decoded.
    assert sorted(seen, key=lambda each: each[0]) == [(item.path, span) for item in results for span in item.windows]


def test_start_and_end_bound_the_windows(model: Model, videos: Path) -> None:
    item = next(embed_files(model, [videos / "c.mp4"], preset=PRESET, start_s=1.0, end_s=2.0))
    assert item.error is None
    assert item.windows[0].start_s == pytest.approx(1.0, abs=0.05)
    assert item.windows[-1].start_s < 2.0


def test_a_failing_model_is_not_a_failing_file(model: Model, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BackendError("out of memory")

    monkeypatch.setattr(model, "encode_video", fail)
    with pytest.raises(BackendError, match="out of memory"):
        list(embed_files(model, [videos], preset=PRESET, batch_size=2))


def test_a_batch_that_is_not_finite_fails_its_own_files_alone(
    model: Model, tiny: Tiny, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [videos / "a.mp4", videos / "c.mp4", videos / "b.mkv"]
    before = len(next(embed_files(model, paths[:1], preset=PRESET)).windows)
    encode = model.encode_video
    calls: list[int] = []

    def spoil(clips: Any, *, batch_size: int = 8) -> Any:  # noqa: ANN401 - as the model's
        calls.append(len(clips))
        if len(calls) == 2:  # the first batch of c.mp4, which is still being decoded
            raise NonFiniteError("NaN in mixed_5c")
        return encode(clips, batch_size=batch_size)

    monkeypatch.setattr(model, "encode_video", spoil)
    results = list(embed_files(model, paths, preset=PRESET, batch_size=before, workers=0))
    assert [item.path for item in results] == paths
    check(results[0], tiny)
    check(results[2], tiny)
    assert isinstance(results[1].error, NonFiniteError)
    assert str(results[1].error) == f"{paths[1]}: NaN in mixed_5c"
    assert (results[1].windows, len(results[1].embedding)) == ((), 0)
    # What is left of a failed file is neither decoded nor inferred.
    assert sum(calls) == 2 * before + len(results[2].windows)


def test_a_range_that_one_file_lacks_fails_that_file_alone(model: Model, videos: Path) -> None:
    paths = [videos / "c.mp4", videos / "b.mkv", videos / "a.mp4"]
    results = list(embed_files(model, paths, preset=PRESET, end_s=1.5))
    assert [type(item.error) for item in results] == [type(None), RangeError, type(None)]
    assert "b.mkv: end_s=1.5 is beyond the end" in str(results[1].error)


@pytest.mark.parametrize("workers", [0, 2])
def test_equal_windows_of_a_short_video_are_inferred_once(
    workers: int, model: Model, tiny: Tiny, tmp_path: Path, batches: list[int]
) -> None:
    preset = get_preset("milnce-native", frames=4, size=32)
    short = make_video(tmp_path / "short.mp4", frames=12)  # 0.48 s: no room for ten starts
    long = make_video(tmp_path / "long.mp4", frames=60)
    results = list(embed_files(model, [short, long], preset=preset, batch_size=4, workers=workers))
    assert sum(batches) == 11, "one clip of the short video and ten of the long one"
    for item in results:
        assert [window.index for window in item.windows] == list(range(10))
        clips = np.stack([window.clip for window in iter_windows(item.path, preset)])
        np.testing.assert_allclose(item.embedding, tiny.weights.video(clips)[0], rtol=1e-4, atol=1e-3)


def test_a_preset_the_bundle_does_not_take_is_refused_before_decoding(model: Model, videos: Path) -> None:
    seen: list[Path] = []
    for odd in (get_preset("sliding", frames=5, size=32), get_preset("sliding", frames=4, size=14)):
        with pytest.raises(
            InputError, match=rf"preset sliding.* makes clips of {odd.frames} frames.*the bundle .*takes"
        ):
            embed_files(model, [videos], preset=odd, on_window=lambda path, _: seen.append(path))
    assert seen == []


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [10**12, 10**18])
def test_a_batch_beyond_the_memory_is_refused(workers: int, batch_size: int, model: Model, videos: Path) -> None:
    with pytest.raises(InputError, match=rf"batch_size is {batch_size}, too large .*; take a smaller one"):
        embed_files(model, [videos], preset=PRESET, batch_size=batch_size, workers=workers)


def test_wrong_arguments_are_refused_before_any_work(model: Model, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 0; a whole number of at least 1 expected"):
        embed_files(model, [videos], batch_size=0)
    with pytest.raises(InputError, match=r"start 2 s and end 1 s given; 0 <= start < end expected"):
        embed_files(model, [videos], start_s=2, end_s=1)
    with pytest.raises(InputError, match=r"start -1 s and end None s given"):
        embed_files(model, [videos], start_s=-1)
    with pytest.raises(InputError, match="start nan s"):
        embed_files(model, [videos], start_s=float("nan"))
    with pytest.raises(InputError, match="list of paths is empty"):
        embed_files(model, [])
    with pytest.raises(InputError, match="no videos in"):
        embed_files(model, [tmp_path])
    with pytest.raises(InputError, match="no preset 'fast'; there are milnce-eval"):
        embed_files(model, [videos], preset="fast")


def test_presets_come_by_name_as_such_or_from_the_bundle(model: Model) -> None:
    assert resolve_preset(model, "milnce-eval") == get_preset("milnce-eval")
    assert resolve_preset(model, PRESET) is PRESET
    assert resolve_preset(model, None) == get_preset("milnce-native", frames=4, size=32)


def test_a_bundle_with_sampling_of_another_release_says_so(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "odd", sampling={"preset": "milnce-next", "size": 32, "frames": 4})
    with (
        milnce.load(tmp_path / "odd", backend="onnxruntime") as odd,
        pytest.raises(BundleError, match=r"sampling is .*milnce-next.*name a preset yourself"),
    ):
        resolve_preset(odd, None)
