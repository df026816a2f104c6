"""An hour of video: as much memory as a minute, and little more work than ten short clips."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from helpers.videos import make_video, read_numbers
from milnce.video import get_preset, iter_windows, probe_video
from milnce.video.decode import FrameReader

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.video.decode import TimedFrame

# VmHWM, not ru_maxrss: the kernel lets the latter start at the peak of the process that spawned this one.
PEAK = """
import re, sys
from pathlib import Path
from milnce.video import get_preset, iter_windows
kept = [window.index for window in iter_windows(sys.argv[1], get_preset(sys.argv[2], size=112))]
print(len(kept), int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def peak_mib(path: Path, preset: str) -> tuple[int, float]:
    """Run a preset over a file in a process of its own; return its windows and its peak memory."""
    command = [sys.executable, "-c", PEAK, str(path), preset]
    count, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(count), float(peak)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Fraction]:
    """The times of the frames that are decoded from here on."""
    times: list[Fraction] = []
    read = FrameReader.read

    def counting(self: FrameReader) -> TimedFrame | None:
        frame = read(self)
        if frame is not None:
            times.append(frame.time_s)
        return frame

    monkeypatch.setattr(FrameReader, "read", counting)
    return times


def test_an_hour_takes_ten_windows_and_no_more_decoding(hour: Path, decoded: list[Fraction]) -> None:
    assert probe_video(hour).duration_s == pytest.approx(3600, abs=1)
    decoded.clear()
    windows = list(iter_windows(hour, get_preset("milnce-native", size=64)))
    for window in windows:
        first = round(window.start_s * 10) % 600
        numbers = read_numbers(window.clip)
        assert numbers == [(first + k) % 600 for k in range(32)]
    # Ten windows of 32 frames, each with at most one GOP of 50 before it: not 36,000 frames.
    assert len(decoded) <= 10 * (32 + 50 + 5)


def test_memory_does_not_grow_with_the_length(hour: Path, tmp_path: Path) -> None:
    minute = make_video(tmp_path / "minute.mp4", frames=600, fps=Fraction(10), gop=50, b_frames=2)
    for preset, of_minute, of_hour in (("milnce-native", 10, 10), ("sliding", 37, 2249)):
        windows_short, peak_short = peak_mib(minute, preset)
        windows_long, peak_long = peak_mib(hour, preset)
        assert (windows_short, windows_long) == (of_minute, of_hour)
        assert peak_long - peak_short < 30, f"{preset}: {peak_short:.0f} MiB for a minute, {peak_long:.0f} for an hour"


def test_overlapping_windows_decode_each_frame_once(tmp_path: Path, decoded: list[Fraction]) -> None:
    path = make_video(tmp_path / "short.mp4", frames=120, fps=Fraction(20), gop=30, b_frames=2)
    assert len(list(iter_windows(path, get_preset("milnce-native", windows=50, size=64)))) == 50
    assert len(decoded) <= 120
    assert len(set(decoded)) == len(decoded)


def test_one_keyframe_in_the_whole_file_is_not_decoded_again_for_each_window(
    tmp_path: Path, decoded: list[Fraction]
) -> None:
    for name in ("one.mp4", "one.mkv"):
        path = make_video(tmp_path / name, frames=1200, fps=Fraction(10), gop=5000)
        decoded.clear()
        windows = list(iter_windows(path, get_preset("milnce-eval", size=64, frames=8, windows=4)))
        # On screen at a start: the last frame less than half a slot (0.1 s) after it.
        expected = [max(n for n in range(1200) if n / 10 - window.start_s < 0.0999) for window in windows]
        assert [read_numbers(window.clip)[0] for window in windows] == expected
        # MP4's index says that seeking cannot help; with MKV one attempt finds out.
        assert len(decoded) <= (1200 if name == "one.mp4" else 2 * 1200)


def test_a_seek_that_lands_too_late_is_tried_again_further_back(hour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seek = FrameReader._seek  # noqa: SLF001 - no file here has an index that lies, so the seek has to
    asked: list[Fraction] = []

    def late(self: FrameReader, time_s: Fraction) -> bool:
        asked.append(time_s)
        return seek(self, time_s + 7)

    monkeypatch.setattr(FrameReader, "_seek", late)
    (window,) = iter_windows(hour, get_preset("milnce-native", size=64, windows=1), start_s=1234.5)
    assert read_numbers(window.clip) == [(12345 + k) % 600 for k in range(32)]
    assert asked == sorted(asked, reverse=True)
    assert len(asked) > 1
