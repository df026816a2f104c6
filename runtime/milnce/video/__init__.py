"""Video files in, clips out: presets, safe opening, frame-accurate sampling.

Importing this package loads the presets only; PyAV is imported when a file is first opened.
"""

from __future__ import annotations

from milnce.video.decode import read_frame
from milnce.video.files import VIDEO_SUFFIXES, find_videos
from milnce.video.presets import PRESETS, Preset, get_preset
from milnce.video.probe import VideoInfo, probe_video
from milnce.video.windows import Window, iter_windows

__all__ = [
    "PRESETS",
    "VIDEO_SUFFIXES",
    "Preset",
    "VideoInfo",
    "Window",
    "find_videos",
    "get_preset",
    "iter_windows",
    "probe_video",
    "read_frame",
]
