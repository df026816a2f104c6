"""Looping pictures: of the span that was asked for, upright, and small."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from helpers.videos import make_video, numbered, read_number, real_video, set_display_matrix, stored_for
from milnce.errors import InputError, MissingDependencyError, RangeError, VideoError
from milnce.page_pictures import video_loop
from milnce.video.decode import FrameReader

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.video.decode import TimedFrame


def pictures(data: bytes) -> list[Any]:
    """Return a loop's pictures, uint8 (height, width, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "WEBP"
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def durations(data: bytes) -> list[int]:
    with Image.open(io.BytesIO(data)) as image:
        found = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            found.append(int(frame.info["duration"]))
        return found


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm", ".avi"])
@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        # 10 fps, 80 frames: the middles of four parts.
        (None, None, [10, 30, 50, 70]),
        (4.0, 5.6, [42, 46, 50, 54]),
        (4.0, None, [45, 55, 65, 75]),
        (None, 1.6, [2, 6, 10, 14]),
        (6.4, 60.0, [66, 70, 74, 78]),  # the last window may end after the video
    ],
)
def test_pictures_come_from_the_middles_of_the_parts_of_the_span(
    suffix: str, start_s: float | None, end_s: float | None, expected: list[int], tmp_path: Path
) -> None:
    path = make_video(tmp_path / f"v{suffix}", frames=80, fps=Fraction(10), gop=80)
    shown = pictures(video_loop(path, start_s, end_s, frames=4))
    assert [read_number(picture) for picture in shown] == expected


@pytest.mark.parametrize(
    ("span", "expected", "most"),
    [
        ((51.0, 52.6), [512, 516, 520, 524], 40),  # the first picture, one keyframe's stretch, and the span
        ((1.0, 59.0), [82, 227, 372, 517], 120),  # parts of 14.5 s: seeks between the pictures too
    ],
)
def test_what_lies_before_and_between_the_pictures_is_not_decoded(
    span: tuple[float, float], expected: list[int], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "v.mp4", frames=600, fps=Fraction(10), gop=50, b_frames=2)
    read, count = FrameReader.read, 0

    def counted(reader: FrameReader) -> TimedFrame | None:
        nonlocal count
        count += 1
        return read(reader)

    monkeypatch.setattr(FrameReader, "read", counted)
    assert [read_number(picture) for picture in pictures(video_loop(path, *span, frames=4))] == expected
    assert 4 < count < most


def test_fewer_frames_than_pictures_are_shown_longer(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.gif", frames=2, fps=Fraction(1))
    data = video_loop(path, None, None, frames=8)
    # Pillow joins pictures that are the same: 8 of 250 ms in two runs.
    assert [read_number(picture) for picture in pictures(data)] == [0, 1]
    assert durations(data) == [1000, 1000]


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], ids=["90", "180", "270"])
def test_pictures_are_upright(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    def draw(number: int, width: int, height: int) -> Any:  # noqa: ANN401 - an array
        sideways = matrix[0] == 0
        return stored_for(numbered(number, *((height, width) if sideways else (width, height))), matrix)

    path = make_video(tmp_path / "v.mp4", frames=20, fps=Fraction(10), size=(96, 64), draw=draw)
    set_display_matrix(path, matrix)
    shown = pictures(video_loop(path, None, None, frames=2))
    assert [read_number(picture) for picture in shown] == [5, 15]
    assert shown[0].shape == ((96, 64, 3) if matrix[0] == 0 else (96, 144, 3))


@pytest.mark.parametrize(
    ("size", "height", "expected"),
    [((96, 64), 96, (96, 144)), ((96, 64), 48, (48, 72)), ((64, 96), 96, (96, 64)), ((320, 32), 96, (24, 240))],
    ids=["landscape", "smaller", "portrait", "panorama"],
)
def test_pictures_keep_their_proportions_in_the_height(
    size: tuple[int, int], height: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    path = make_video(tmp_path / "v.mp4", frames=10, size=size)
    assert {picture.shape[:2] for picture in pictures(video_loop(path, None, None, height=height))} == {expected}


@pytest.mark.parametrize(("span_s", "expected"), [(0.16, 60), (1.6, 200), (7.0, 400)])
def test_loops_run_as_fast_as_the_video_within_bounds(span_s: float, expected: int, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", frames=200)
    data = video_loop(path, 0.5, 0.5 + span_s)
    assert set(durations(data)) <= {expected, 2 * expected, 3 * expected}  # the same picture twice is shown longer
    assert sum(durations(data)) == 8 * expected


def test_loops_repeat_for_ever(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", frames=50)
    with Image.open(io.BytesIO(video_loop(path, None, None))) as image:
        assert image.info["loop"] == 0
        assert getattr(image, "n_frames", 1) == 8


def test_a_loop_of_real_video_is_small() -> None:
    data = video_loop(real_video("bigbuckbunny"), 1.0, 4.2)
    assert len(pictures(data)) == 8
    assert len(data) < 30_000  # 21 kB measured; a page of a thousand stays below 30 MB


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", frames=50)
    for start_s, end_s, message in (
        (-1.0, None, r"start_s must be a finite number of seconds, at least 0; got -1.0"),
        (0.0, float("nan"), r"end_s must be a finite number of seconds, at least 0; got nan"),
    ):
        with pytest.raises(InputError, match=message):
            video_loop(path, start_s, end_s)
    with pytest.raises(RangeError, match=r"v.mp4: start_s=2.0 is not inside the video; the video lasts 2.000 s"):
        video_loop(path, 2.0, None)
    with pytest.raises(RangeError, match=r"v.mp4: end_s=1.0 must be after start_s=1.0"):
        video_loop(path, 1.0, 1.0)
    for height, frames, message in (
        (0, 8, "height must be from 1 to 1080; got 0"),
        (1081, 8, "height must be from 1 to 1080; got 1081"),
        (96, 0, "frames must be from 1 to 64; got 0"),
        (96, 65, "frames must be from 1 to 64; got 65"),
    ):
        with pytest.raises(InputError, match=message):
            video_loop(path, None, None, height=height, frames=frames)
    with pytest.raises(VideoError, match="no such file"):
        video_loop(tmp_path / "gone.mp4", None, None)


def test_without_pillow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        MissingDependencyError, match=r'looping pictures need Pillow; run: pip install "milnce\[video\]"'
    ):
        video_loop(tmp_path / "v.mp4", None, None)
