"""Which frames a window shows: libavfilter's own answer, frame numbers worked out by hand, and every preset."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.videos import ffmpeg_clip, loop_video, make_video, read_numbers, real_videos
from milnce.errors import InputError, RangeError, VideoError
from milnce.video import Preset, get_preset, iter_windows, probe_video
from milnce.video.windows import round_half_away, window_starts

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = [0, 10, 20, 200, 210, 500, 1200, 1210, 1900, 1950, 2500, 2600, 4000, 4040, 4080, 4500]


def shown(times: list[Fraction], start: Fraction, end: Fraction, fps: int, frames: int) -> list[int | None]:
    """Work out which frame each slot of a reference window shows, from the rule alone; None after the video's end."""
    first = next((n for n, time in enumerate(times) if time >= start), len(times) - 1)
    slots = [math.floor((time - start) * fps + Fraction(1, 2)) for time in times]
    last = max(1, math.floor((end - start) * fps + Fraction(1, 2)))
    return [
        max((n for n, slot in enumerate(slots) if slot <= k and n >= first), default=first) if k < last else None
        for k in range(frames)
    ]


@pytest.mark.parametrize("preset_name", ["milnce-eval", "milnce-native", "sliding"])
@pytest.mark.parametrize("video", real_videos(), ids=lambda path: path.stem)
def test_clips_of_real_videos_equal_libavfilter_s(video: Path, preset_name: str) -> None:
    preset = get_preset(preset_name)
    assert preset.fps is not None
    count = 0
    for window in itertools.islice(iter_windows(video, preset), 0, None, 3):
        start_us = math.floor(Fraction(repr(window.start_s)) * 1_000_000)
        expected = ffmpeg_clip(
            video,
            start_us,
            fps=int(preset.fps),
            frames=preset.frames,
            size=preset.size,
            drop_earlier=preset.windows is not None,
        )
        assert np.array_equal(window.clip, expected), f"window {window.index} at {window.start_s} s"
        count += 1
    assert count


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("start_ms", [0, 49, 50, 51, 333, 1200, 4400])
def test_a_variable_rate_is_sampled_by_time(suffix: str, start_ms: int, tmp_path: Path) -> None:
    path = make_video(tmp_path / f"variable{suffix}", frames=len(VARIABLE), ticks=VARIABLE)
    (window,) = iter_windows(path, get_preset("milnce-native", windows=1), start_s=start_ms / 1000)
    times = [Fraction(tick, 1000) for tick in VARIABLE]
    end = Fraction(probe_video(path).duration_s).limit_denominator(1000)
    assert read_numbers(window.clip) == shown(times, Fraction(start_ms, 1000), end, 10, 32)
    if suffix != ".webm":
        # The last frame of a WebM has no duration of its own: FFmpeg would end with it.
        assert np.array_equal(window.clip, ffmpeg_clip(path, start_ms * 1000, fps=10, frames=32, size=224))


@pytest.mark.parametrize("start_ms", [0, 1, 100, 200, 250, 333, 417, 1000, 1990, 2950])
@pytest.mark.parametrize(("fps", "frames"), [(5, 25), (12, 60)])
def test_at_a_low_rate_reference_windows_drop_what_is_before_and_sliding_ones_keep_it(
    fps: int, frames: int, start_ms: int, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "low.mp4", frames=frames, fps=Fraction(fps), b_frames=2)
    for preset in (get_preset("milnce-native", windows=1, frames=16), get_preset("sliding", frames=16)):
        window = next(iter_windows(path, preset, start_s=start_ms / 1000))
        drop = preset.windows is not None
        expected = ffmpeg_clip(path, start_ms * 1000, fps=10, frames=16, size=224, drop_earlier=drop)
        assert np.array_equal(window.clip, expected)
        on_screen, following = start_ms * fps // 1000, math.ceil(start_ms * fps / 1000)
        assert read_numbers(window.clip)[0] in ((following,) if drop else (on_screen, following))


def test_the_layouts_differ_between_two_frames_and_share_the_last_one(tmp_path: Path) -> None:
    path = make_video(tmp_path / "five.gif", frames=10, fps=Fraction(5))
    (reference,) = iter_windows(path, get_preset("milnce-native", windows=1, frames=6), start_s=0.25)
    assert read_numbers(reference.clip) == [2, 2, 2, 2, 3, 3]
    sliding = next(iter_windows(path, get_preset("sliding", frames=6), start_s=0.25))
    assert read_numbers(sliding.clip) == [1, 1, 2, 2, 3, 3]
    for name in ("milnce-native", "sliding"):  # no frame starts after 1.85 s
        late = next(iter_windows(path, get_preset(name, frames=6), start_s=1.85))
        assert read_numbers(late.clip) == [9, 9, None, None, None, None]


@pytest.mark.parametrize(("fps", "frames"), [(Fraction(8), 40), (Fraction(30000, 1001), 150), (Fraction(60), 300)])
def test_the_reference_windows_show_the_frames_of_their_times(fps: Fraction, frames: int, tmp_path: Path) -> None:
    path = make_video(tmp_path / "rate.mp4", frames=frames, fps=fps, b_frames=2)
    end = frames / fps
    for name, rate, count in (("milnce-eval", 5, 16), ("milnce-native", 10, 32)):
        windows = list(iter_windows(path, name))
        starts = np.linspace(0.0, max(0.0, float(end) - count / rate - 0.4), 10)
        assert [window.index for window in windows] == list(range(10))
        assert [window.start_s for window in windows] == pytest.approx(list(starts), abs=1e-6)
        for window in windows:
            assert window.end_s == pytest.approx(window.start_s + 3.2)
            start = Fraction(repr(window.start_s))
            times = [n / fps for n in range(frames)]
            assert read_numbers(window.clip) == shown(times, start, end, rate, count)


def test_sliding_windows_cover_the_video_and_end_with_it(tmp_path: Path) -> None:
    path = make_video(tmp_path / "ten.mp4", frames=100, fps=Fraction(10))
    windows = list(iter_windows(path, "sliding"))
    assert [window.start_s for window in windows] == pytest.approx([0, 1.6, 3.2, 4.8, 6.4, 6.8])
    assert [window.end_s for window in windows] == pytest.approx([3.2, 4.8, 6.4, 8.0, 9.6, 10.0])
    for window, first in zip(windows, [0, 16, 32, 48, 64, 68], strict=True):
        assert read_numbers(window.clip) == list(range(first, first + 32))
    (whole,) = iter_windows(path, "sliding", start_s=2.0, end_s=5.2)
    assert read_numbers(whole.clip) == list(range(20, 52))
    closer = [window.start_s for window in iter_windows(path, get_preset("sliding", stride_frames=8))]
    assert closer == pytest.approx([0, 0.8, 1.6, 2.4, 3.2, 4.0, 4.8, 5.6, 6.4, 6.8])


def test_a_short_video_gives_one_padded_sliding_window_and_ten_equal_reference_windows(tmp_path: Path) -> None:
    path = make_video(tmp_path / "short.mp4", frames=10, fps=Fraction(10))
    expected = [*range(10), *[None] * 22]
    (window,) = iter_windows(path, "sliding")
    assert (window.start_s, window.end_s) == (0.0, 3.2)
    assert read_numbers(window.clip) == expected
    for window in iter_windows(path, "milnce-native"):
        assert window.start_s == 0.0
        assert read_numbers(window.clip) == expected


def test_a_range_shorter_than_a_window_runs_on_past_its_end(tmp_path: Path) -> None:
    path = make_video(tmp_path / "ten.mp4", frames=100, fps=Fraction(10))
    for window in iter_windows(path, "milnce-native", start_s=2.0, end_s=3.0):
        assert read_numbers(window.clip) == list(range(20, 52))
    starts = [window.start_s for window in iter_windows(path, "milnce-native", start_s=2.0, end_s=8.0)]
    assert starts == pytest.approx(list(np.linspace(2.0, 4.4, 10)), abs=1e-6)


@pytest.mark.parametrize(("count", "repeats"), [(1, 32), (5, 7), (16, 2), (20, 2), (31, 2), (32, 1), (40, 1)])
def test_the_notebook_s_preset_takes_first_frames_and_repeats_each(count: int, repeats: int, tmp_path: Path) -> None:
    path = make_video(tmp_path / "notebook.gif", frames=count, fps=Fraction(20))
    (window,) = iter_windows(path, get_preset("tfhub-colab", size=64))
    expected = [number for number in range(count) for _ in range(repeats)][:32]
    assert read_numbers(window.clip) == expected
    assert window.start_s == 0.0
    assert window.end_s == pytest.approx(min(count, 32) / 20)


def test_frames_as_they_come_start_at_the_frame_on_screen_and_stop_at_the_end_of_the_range(tmp_path: Path) -> None:
    path = make_video(tmp_path / "native.mp4", frames=200, fps=Fraction(20), gop=100)
    (window,) = iter_windows(path, get_preset("tfhub-colab", size=64), start_s=8.03)
    assert read_numbers(window.clip) == list(range(160, 192))
    (window,) = iter_windows(path, get_preset("tfhub-colab", size=64), start_s=8.0, end_s=8.2)
    assert read_numbers(window.clip) == [160] * 8 + [161] * 8 + [162] * 8 + [163] * 8


def test_times_count_from_the_first_frame_whatever_its_time_stamp(tmp_path: Path) -> None:
    late = make_video(tmp_path / "late.mkv", frames=60, ticks=[7000 + 40 * n for n in range(60)], b_frames=2)
    assert probe_video(late).duration_s == pytest.approx(2.4, abs=0.002)
    (window,) = iter_windows(late, Preset("all", 25.0, 8, 1, None, size=64), start_s=0.4)
    assert read_numbers(window.clip) == list(range(10, 18))


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        (-1.0, None, r"start_s must be a finite number of seconds, at least 0; got -1.0"),
        (None, math.nan, r"end_s must be a finite number of seconds"),
    ],
)
def test_what_is_no_time_is_the_caller_s_mistake(start_s: float | None, end_s: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        iter_windows("never opened.mp4", "milnce-native", start_s=start_s, end_s=end_s)
    assert not isinstance(caught.value, VideoError)


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        (4.0, None, r"start_s=4.0 is not inside the video; the video lasts 4.000 s"),
        (None, 4.2, r"end_s=4.2 is beyond the end; the video lasts 4.000 s"),
        (2.0, 2.0, r"end_s=2.0 must be after start_s=2.0; the video lasts 4.000 s"),
        (3.0, 1.0, r"end_s=1.0 must be after start_s=3.0; the video lasts 4.000 s"),
    ],
)
def test_a_range_outside_the_video_is_an_error_of_that_file_with_its_duration(
    start_s: float | None, end_s: float | None, message: str, tmp_path: Path
) -> None:
    path = make_video(tmp_path / "four.mp4", frames=40, fps=Fraction(10))
    with pytest.raises(RangeError, match=message):
        next(iter_windows(path, "milnce-native", start_s=start_s, end_s=end_s))


def test_the_end_may_be_the_container_s_when_the_sound_is_longer(tmp_path: Path) -> None:
    path = make_video(tmp_path / "sound.mp4", frames=50, audio_s=3.0)
    info = probe_video(path)
    assert info.duration_s == pytest.approx(2.0)
    assert info.container_duration_s > 2.9
    windows = list(iter_windows(path, get_preset("milnce-eval", frames=4, windows=3), end_s=info.container_duration_s))
    assert windows[-1].start_s == pytest.approx(info.container_duration_s - 0.8 - 0.4, abs=1e-6)


def test_decoding_is_the_same_every_time_with_all_threads() -> None:
    (video,) = [path for path in real_videos() if path.stem == "bigbuckbunny"]
    first, second = (np.stack([window.clip for window in iter_windows(video, "sliding")]) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_looped_video_repeats_its_frames(tmp_path: Path) -> None:
    path = loop_video(make_video(tmp_path / "one.mp4", frames=20, fps=Fraction(10)), tmp_path / "loop.mp4", times=3)
    (window,) = iter_windows(path, Preset("all", 10.0, 60, 1, None, size=64))
    assert read_numbers(window.clip) == [*range(20)] * 3


@given(
    duration_us=st.integers(1, 4_000_000_000),
    fps=st.sampled_from([5.0, 10.0, 16.0, 29.97, 30.0]),
    frames=st.integers(1, 64),
    stride=st.integers(1, 100),
)
def test_sliding_starts_ascend_by_the_stride_and_reach_the_end(
    duration_us: int, fps: float, frames: int, stride: int
) -> None:
    end = Fraction(duration_us, 1_000_000)
    stride = max(stride, math.ceil(end * Fraction(str(fps)) / 2000))
    starts = window_starts(Preset("any", fps, frames, None, stride), Fraction(0), end)
    step = Fraction(stride) / Fraction(str(fps))
    assert starts[0] == 0
    assert all(later - earlier == step for earlier, later in itertools.pairwise(starts[:-1]))
    assert all(0 < later - earlier <= step for earlier, later in itertools.pairwise(starts))
    span = Fraction(frames) / Fraction(str(fps))
    assert starts[-1] + span >= end - Fraction(1, 2) / Fraction(str(fps))
    if len(starts) > 1:
        assert starts[-1] + span <= end + Fraction(1, 2) / Fraction(str(fps))


@pytest.mark.parametrize(("value", "expected"), [("0.5", 1), ("-0.5", -1), ("2.5", 3), ("-0.4", 0), ("1.49", 1)])
def test_halves_round_away_from_zero_as_ffmpeg_s_do(value: str, expected: int) -> None:
    assert round_half_away(Fraction(value)) == expected
