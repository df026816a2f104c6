"""Decoded frames with exact times, and seeking that lands on the right one."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

from milnce.errors import InputError, VideoError
from milnce.video.container import as_video_errors, import_av, open_video
from milnce.video.picture import PictureMaker

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    import numpy as np
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from milnce.video.container import OpenVideo

# Decoding this far ahead costs about what a seek does (it lands on a keyframe, and decodes from there).
SEEK_WORTHWHILE_S = Fraction(2)
# A file that ends this much before its declared end is taken for truncated.
EARLY_END_S = Fraction(1)


@dataclass(frozen=True)
class TimedFrame:
    """A decoded frame; `time_s` and `end_s` are exact, relative to the stream's start.

    `frame` is what the reader's decoder makes: FFmpeg's a `VideoFrame`.
    """

    frame: Any
    time_s: Fraction
    end_s: Fraction


class PacketDecoder(Protocol):
    """Decodes a stream's packets, fed in the order of the file."""

    def decode(self, packet: Packet[VideoStream]) -> Iterable[Any]:
        """Return the frames that are complete, in the order they are shown: objects with `pts` and `duration` in ticks.

        The last packet of a file is empty, and gives what is left.
        """

    def restart(self) -> None:
        """Forget what was fed: the file has been wound to another keyframe."""


class FFmpegDecoder:
    """FFmpeg's own, which PyAV restarts as it winds the file."""

    def decode(self, packet: Packet[VideoStream]) -> Iterable[VideoFrame]:
        """Return the frames that are complete."""
        return packet.decode()

    def restart(self) -> None:
        """Do nothing."""


class FrameReader:
    """Reads an open video's frames in the order they are shown.

    Times never decrease: a frame stamped before its predecessor (a broken file) gets its predecessor's time.

    Args:
        video: The video.
        decoder: Decodes its packets; None is FFmpeg's.
    """

    def __init__(self, video: OpenVideo, decoder: PacketDecoder | None = None) -> None:
        self._video = video
        self._decoder: PacketDecoder = FFmpegDecoder() if decoder is None else decoder
        self._packets: Iterator[Packet[VideoStream]] = video.container.demux(video.stream)
        self._decoded: deque[TimedFrame] = deque()
        self._chunk_times: deque[int] = deque()
        self._seekable = _can_seek(video)
        self._worthwhile_s = SEEK_WORTHWHILE_S
        self._last: TimedFrame | None = None
        self.longest_gap_s = Fraction(0)

    def read(self) -> TimedFrame | None:
        """Return the next frame, or None at the end.

        Raises:
            VideoError: if the file cannot be read or decoded from here on.
        """
        while not self._decoded:
            at = 0.0 if self._last is None else float(self._last.time_s)
            with as_video_errors(self._video.path, f"decoding after {at:.3f} s"):
                packet = next(self._packets, None)
                if packet is None:
                    return None
                if packet.is_corrupt:
                    raise VideoError(
                        f"{self._video.path}: damaged or truncated after {at:.3f} s; copy or download it again"
                    )
                self._note_chunk(packet)
                self._decoded.extend(map(self._timed, self._decoder.decode(packet)))
        self._video.on_progress()
        self._last = self._decoded.popleft()
        return self._last

    def skip_to(self, time_s: Fraction) -> bool:
        """Seek so that the next frame read is at or before `time_s`, if that saves decoding.

        Returns:
            Whether it moved: frames between the last one read and the next one were then passed over (or come again).
        """
        position_s = Fraction(0) if self._last is None else self._last.time_s
        if not self._seekable or time_s - position_s <= self._worthwhile_s or not self._key_between(position_s, time_s):
            return False
        back_s = Fraction(0)
        while True:
            target_s = max(Fraction(0), time_s - back_s)
            if not self._seek(target_s):
                return False
            first = self.read()
            if first is not None and (first.time_s <= time_s or target_s == 0):
                self._decoded.appendleft(first)
                # Where keyframes are this far apart, a shorter jump would only decode the same frames again.
                self._worthwhile_s = max(self._worthwhile_s, time_s - first.time_s)
                return True
            if target_s == 0:
                raise VideoError(f"{self._video.path}: no frame can be decoded; copy or download it again")
            back_s = max(SEEK_WORTHWHILE_S, back_s * 4)

    def _seek(self, time_s: Fraction) -> bool:
        video = self._video
        try:
            video.container.seek(self._ticks(time_s), stream=video.stream)
        except import_av().error.FFmpegError:
            self._seekable = False  # nothing has moved yet: go on frame by frame
            return False
        self._packets = video.container.demux(video.stream)
        self._decoder.restart()
        self._decoded.clear()
        self._chunk_times.clear()
        self._last = None
        return True

    def _key_between(self, after_s: Fraction, time_s: Fraction) -> bool:
        """Whether a keyframe lies between; True where the file's index cannot tell."""
        entries = self._video.stream.index_entries
        if self._video.format not in {"mp4", "avi"} or not len(entries):
            return True
        if entries[len(entries) - 1].timestamp < self._ticks(time_s):
            return True  # a fragmented file: its index grows while it is read
        found = entries.search_timestamp(self._ticks(time_s), backward=True)
        return found < 0 or entries[found].timestamp > self._ticks(after_s)

    def _ticks(self, time_s: Fraction) -> int:
        return self._video.origin + math.floor(time_s / self._video.time_base)

    def _note_chunk(self, packet: Packet[VideoStream]) -> None:
        """AVI numbers its chunks and has no presentation times: frames come out in order, one a non-empty chunk."""
        if self._video.format == "avi" and packet.dts is not None and packet.size:
            self._chunk_times.append(packet.dts)

    def _timed(self, frame: Any) -> TimedFrame:  # noqa: ANN401 - what the decoder makes
        video = self._video
        ticks: int | None = frame.pts
        if video.format == "avi":
            ticks = self._chunk_times.popleft() if self._chunk_times else None
        previous = self._decoded[-1] if self._decoded else self._last
        if ticks is None:
            time_s = Fraction(0) if previous is None else previous.end_s
        else:
            time_s = (ticks - video.origin) * video.time_base
        duration_s = frame.duration * video.time_base if frame.duration > 0 else Fraction(0)
        if not duration_s and video.rate:
            duration_s = 1 / video.rate
        if previous is not None:
            time_s = max(time_s, previous.time_s)
            self.longest_gap_s = max(self.longest_gap_s, time_s - previous.time_s)
        return TimedFrame(frame, time_s, time_s + duration_s)

    def require_whole(self, duration_s: Fraction) -> None:
        """At the end: hold the time of the last frame against the declared duration.

        Raises:
            VideoError: if nothing was decoded, or the frames ended more than a second early, which a long last frame
                does not explain.
        """
        path = self._video.path
        if self._last is None:
            raise VideoError(f"{path}: no frame can be decoded; copy or download it again")
        missing_s = duration_s - self._last.end_s
        if missing_s > max(EARLY_END_S, 3 * self.longest_gap_s):
            raise VideoError(
                f"{path}: truncated, its frames end at {float(self._last.end_s):.2f} s"
                f" and {float(duration_s):.2f} s are declared; copy or download it again"
            )


def _can_seek(video: OpenVideo) -> bool:
    if video.format == "gif":
        return False  # every picture is painted over the one before
    # With B-frames, an AVI's chunk numbers give no frame's time unless all chunks are counted.
    return video.format != "avi" or not video.stream.codec_context.has_b_frames


def require_intact(video: OpenVideo, shown: TimedFrame) -> VideoFrame:
    """Return the frame to be used.

    Raises:
        VideoError: if its decoder marked it as damaged (concealed or incomplete).
    """
    if shown.frame.is_corrupt:
        raise VideoError(
            f"{video.path}: the picture at {float(shown.time_s):.3f} s is damaged; copy or download the file again"
        )
    frame: VideoFrame = shown.frame
    return frame


def read_frame(path: str | os.PathLike[str], time_s: float, *, height: int | None = None) -> NDArray[np.uint8]:
    """Read the whole picture that a player would show at a time, upright.

    Args:
        path: The video file.
        time_s: Seconds from the video's start, at least 0. Past the end, the last picture.
        height: Rows to scale the picture to, its proportions kept; None leaves its size.

    Returns:
        uint8 (height, width, 3) RGB.

    Raises:
        InputError: if `time_s` or `height` is out of range.
        VideoError: if the file cannot be decoded, or is refused.
    """
    if not math.isfinite(time_s) or time_s < 0:
        raise InputError(f"time_s must be a finite number of seconds, at least 0; got {time_s!r}")
    if height is not None and not 1 <= height <= 8192:  # noqa: PLR2004 - a bound for memory, not a property of anything
        raise InputError(f"height must be from 1 to 8192 pixels or None; got {height!r}")
    scale = () if height is None else (("scale", {"w": "-1", "h": str(height), "flags": "bicubic"}),)
    wanted_s = Fraction(time_s)
    with open_video(path) as video:
        reader = FrameReader(video)
        reader.skip_to(wanted_s)
        shown: TimedFrame | None = None
        while (following := reader.read()) is not None and (shown is None or following.time_s <= wanted_s):
            shown = following
        if shown is None:
            raise VideoError(f"{video.path}: no frame can be decoded; copy or download it again")
        with as_video_errors(video.path, f"converting the picture at {float(shown.time_s):.3f} s"):
            return PictureMaker(scale)(require_intact(video, shown))
