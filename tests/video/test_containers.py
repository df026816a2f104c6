"""Every container through one suite: what it is, every frame in its place, seeking accurate to the frame."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.videos import KINDS, Recipe, make_video, read_number, read_numbers
from milnce.video import Preset, iter_windows, probe_video, read_frame

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parametrize("kind", KINDS)
# As many frames a second as the video has: each frame in its own slot.
EVERY_FRAME = Preset(name="every frame", fps=25.0, frames=40, windows=None, stride_frames=40, size=64)


def rate_of(kind: str) -> Fraction:
    return KINDS[kind][1].fps


def test_probe_describes_the_file(kind: str, numbered_videos: dict[str, Path]) -> None:
    info = probe_video(numbered_videos[kind])
    suffix, recipe = KINDS[kind]
    assert info.container == {".mp4": "mp4", ".mov": "mp4", ".mkv": "matroska", ".webm": "matroska"}.get(
        suffix, suffix[1:]
    )
    assert (info.width, info.height, info.rotation) == (96, 64, 0)
    assert info.duration_s == pytest.approx(recipe.frames / float(recipe.fps), abs=0.002)
    assert info.fps == pytest.approx(float(recipe.fps), rel=1e-3)
    assert info.has_audio == bool(recipe.audio_s)
    assert info.container_duration_s >= info.duration_s


def test_every_frame_is_decoded_once_and_in_order(kind: str, numbered_videos: dict[str, Path]) -> None:
    preset = EVERY_FRAME if rate_of(kind) == 25 else Preset("all", float(rate_of(kind)), 40, None, 40, size=64)
    numbers = [number for window in iter_windows(numbered_videos[kind], preset) for number in read_numbers(window.clip)]
    assert numbers == list(range(600))


def test_read_frame_lands_on_the_frame_at_fifty_random_times(kind: str, numbered_videos: dict[str, Path]) -> None:
    path, fps = numbered_videos[kind], rate_of(kind)
    chance = random.Random(kind)  # noqa: S311 - the same times in every run
    for number in chance.sample(range(600), 50):
        middle_s = float((number + Fraction(1, 2)) / fps)
        assert read_number(read_frame(path, middle_s)) == number, f"asked for {middle_s} s"


def test_windows_at_random_starts_show_the_frames_of_their_times(kind: str, numbered_videos: dict[str, Path]) -> None:
    path, fps = numbered_videos[kind], rate_of(kind)
    preset = Preset(name="short", fps=10.0, frames=8, windows=1, stride_frames=None, size=64)
    chance = random.Random(kind)  # noqa: S311 - the same times in every run
    for _ in range(6):
        start_s = chance.randrange(0, 19_000) / 1000
        (window,) = iter_windows(path, preset, start_s=start_s)
        slots = [math.floor((n / fps - Fraction(str(start_s))) * 10 + Fraction(1, 2)) for n in range(600)]
        if "mp4" not in kind and "avi" not in kind and "mov" not in kind:
            # Those store whole milliseconds or hundredths: compute with what they store.
            unit = 100 if kind == "gif" else 1000
            slots = [
                math.floor((Fraction(round(n / fps * unit), unit) - Fraction(str(start_s))) * 10 + Fraction(1, 2))
                for n in range(600)
            ]
        expected = [max((n for n in range(600) if slots[n] <= k), default=0) for k in range(8)]
        assert read_numbers(window.clip) == expected, f"start {start_s}"


def test_seeking_over_a_long_gap_gives_the_same_clips_as_decoding_all(
    kind: str, numbered_videos: dict[str, Path]
) -> None:
    path = numbered_videos[kind]
    sparse = Preset(name="sparse", fps=5.0, frames=4, windows=3, stride_frames=None, size=64)
    for window in iter_windows(path, sparse):
        (alone,) = iter_windows(path, Preset("one", 5.0, 4, 1, None, size=64), start_s=window.start_s)
        assert np.array_equal(window.clip, alone.clip)
        first = read_numbers(window.clip)[0]
        assert first is not None
        assert abs(first / float(rate_of(kind)) - window.start_s) <= 0.1 + 0.5 / float(rate_of(kind))


def test_a_single_frame_is_a_video(kind: str, tmp_path: Path) -> None:
    suffix, recipe = KINDS[kind]
    changes = {**recipe.__dict__, "frames": 1, "audio_s": 0.0}
    path = make_video(tmp_path / f"one{suffix}", Recipe(**changes))
    (window,) = iter_windows(path, Preset("one", 10.0, 4, 1, None, size=64))
    assert read_numbers(window.clip) == [0, None, None, None]
    (window,) = iter_windows(path, Preset("repeat", None, 4, 1, None, size=64, padding="repeat"))
    assert read_numbers(window.clip) == [0, 0, 0, 0]
    assert read_number(read_frame(path, 0.0)) == 0
