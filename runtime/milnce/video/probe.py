"""What a video file is, and how long."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from milnce.errors import VideoError
from milnce.video.container import as_video_errors, nothing, open_video
from milnce.video.decode import FrameReader
from milnce.video.picture import display_matrix, rotation_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

    from milnce.video.container import OpenVideo

_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)$")


@dataclass(frozen=True)
class VideoInfo:
    """What `probe_video` found.

    Attributes:
        path: The file.
        container: "mp4" (also MOV), "matroska" (also WebM), "avi" or "gif".
        codec: The decoder's name, such as "h264".
        width: Pixels, of the upright picture.
        height: Pixels, of the upright picture.
        rotation: Degrees clockwise, 0 to 359, by which the stored picture is turned to be upright.
        fps: Nominal frames a second, or None where the file does not say. With a variable rate, an average.
        duration_s: Seconds of the video stream.
        container_duration_s: Seconds of the longest stream (the sound may outlast the pictures): what ffprobe prints as
            the format's duration.
        has_audio: Whether there is a sound track.
    """

    path: Path
    container: str
    codec: str
    width: int
    height: int
    rotation: int
    fps: float | None
    duration_s: float
    container_duration_s: float
    has_audio: bool


@dataclass(frozen=True)
class Length:
    """How long a video is, exactly, from its first frame on."""

    video_s: Fraction
    container_s: Fraction


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Open a video, decode its first frame, and describe it.

    Raises:
        VideoError: if the file cannot be decoded, or is refused.
        MissingDependencyError: if PyAV is not installed.
    """
    length = measure_length(path)
    with open_video(path) as video:
        first = FrameReader(video).read()
        if first is None:
            raise VideoError(f"{video.path}: no frame can be decoded; copy or download it again")
        rotation = round(rotation_of(display_matrix(first.frame))) % 360
        width, height = first.frame.width, first.frame.height
        if rotation in {90, 270}:
            width, height = height, width
        return VideoInfo(
            path=video.path,
            container=video.format,
            codec=video.stream.codec_context.name,
            width=width,
            height=height,
            rotation=rotation,
            fps=float(video.rate) if video.rate else None,
            duration_s=float(length.video_s),
            container_duration_s=float(length.container_s),
            has_audio=bool(video.container.streams.audio),
        )


def measure_length(path: str | os.PathLike[str], *, on_progress: Callable[[], None] = nothing) -> Length:
    """Find how long a video is: as declared where a declaration can be trusted, else by reading on to its end.

    Args:
        path: The video file.
        on_progress: As in `open_video`.

    Raises:
        VideoError: if the file cannot be read, or is refused.
    """
    with open_video(path, on_progress=on_progress) as video:
        declared_s = _declared_s(video)
        video_s = _end_of_packets_s(video) if declared_s is None else declared_s
        if video_s <= 0:
            raise VideoError(f"{video.path}: no pictures in its video stream; give a file with moving pictures")
        microseconds = video.container.duration
        container_s = video_s if microseconds is None else Fraction(microseconds, 1_000_000)
        return Length(video_s, max(video_s, container_s))


def _declared_s(video: OpenVideo) -> Fraction | None:
    """Return the duration that the stream itself declares, or None if only the whole container's is known.

    A fragmented MP4 is not believed, as what is derived from its fragments can be some frames off (DASH). It has no
    sample table, so its number of frames is 0. Reading all packets of an hour took 0.4 s.
    """
    stream = video.stream
    if video.format == "matroska":
        # Written by FFmpeg and mkvmerge: when the track ends.
        matched = _TAG.match(stream.metadata.get("DURATION", ""))
        if matched is None:
            return None
        hours, minutes, seconds = matched.groups()
        end_s = int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
        return end_s - video.origin * video.time_base
    if video.format == "gif" or not stream.duration or not stream.frames:
        return None
    return stream.duration * video.time_base


def _end_of_packets_s(video: OpenVideo) -> Fraction:
    """Read all packets, decoding none, and return when the last frame ends."""
    end = video.origin
    with as_video_errors(video.path, "reading"):
        for packet in video.container.demux(video.stream):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                ticks = packet.duration or (round(1 / (video.rate * video.time_base)) if video.rate else 0)
                end = max(end, time + max(1, ticks))
    return (end - video.origin) * video.time_base
