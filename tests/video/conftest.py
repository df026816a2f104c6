"""Numbered videos that several tests read, made once a session."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from helpers.videos import KINDS, loop_video, make_video

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def numbered_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """24 seconds of numbered frames in every container, by the names of `KINDS`."""
    folder = tmp_path_factory.mktemp("numbered")
    return {name: make_video(folder / f"{name}{suffix}", recipe) for name, (suffix, recipe) in KINDS.items()}


@pytest.fixture(scope="session")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of video: 60 s of numbered frames at 10 fps, a keyframe every 5 s, repeated 60 times."""
    folder = tmp_path_factory.mktemp("hour")
    minute = make_video(folder / "minute.mp4", frames=600, fps=Fraction(10), gop=50, b_frames=2)
    return loop_video(minute, folder / "hour.mp4", times=60)
