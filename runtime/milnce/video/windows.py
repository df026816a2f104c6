"""Laying windows over a video and sampling their clips, in one forward pass.

Sampling is that of ffmpeg's `fps` filter with its default rounding: slot k of a window shows the last frame whose time
since the window's start, in slots, rounds to k or less. Two layouts differ in the frame that is on screen when a window
starts between two frames:

- `windows` (the reference's): frames before the start are dropped, as ffmpeg's `-ss` does, and the first one left fills
  the slots before it. Where none is left, the video's last frame is shown.
- `stride_frames`: the frame on screen is kept. These windows lie on one grid, so those that overlap agree on its slots.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from milnce.errors import InputError, RangeError
from milnce.video.container import as_video_errors, nothing, open_video
from milnce.video.decode import FrameReader, TimedFrame, require_intact
from milnce.video.picture import square_maker
from milnce.video.presets import Preset, get_preset
from milnce.video.probe import Length, measure_length

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from milnce.video.container import OpenVideo

    Picture = NDArray[np.uint8]

# The reference leaves this much room at the end, against frames that a container promises and does not have.
LINSPACE_MARGIN_S = 0.4
MICROSECONDS = 1_000_000

P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class Window:
    """One window of a video.

    Attributes:
        index: 0 for the first window of the file.
        start_s: Where it starts, in seconds from the video's start.
        end_s: Where it ends. Beyond the video's end when the clip was padded.
        clip: uint8 (frames, size, size, 3) RGB, C-contiguous.
    """

    index: int
    start_s: float
    end_s: float
    clip: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sampled(Generic[P]):
    """One window of a video whose pictures are not yet put together.

    Attributes:
        index: As in `Window`; so are the times.
        start_s: Where it starts, in seconds.
        end_s: Where it ends.
        video_s: Seconds that the whole video lasts.
        pictures: Those of the first slots; neighbouring windows share them.
        preset: How it was sampled.
    """

    index: int
    start_s: float
    end_s: float
    video_s: float
    pictures: list[P]
    preset: Preset

    def slots(self) -> list[P]:
        """Return what the clip's slots show from the first on, repeated as the preset says; the rest stays black."""
        repeated = self.preset.padding == "repeat"
        times = math.ceil(self.preset.frames / len(self.pictures)) if repeated else 1
        return [picture for picture in self.pictures for _ in range(times)][: self.preset.frames]


@dataclass(frozen=True, eq=False)
class PictureWindow(Sampled["Picture"]):
    """One window whose `pictures` are uint8 (size, size, 3)."""

    def write(self, clip: Picture) -> None:
        """Put the pictures together, padded as the preset says.

        Args:
            clip: uint8 (frames, size, size, 3), whatever it holds now.
        """
        slots = self.slots()
        for slot, picture in enumerate(slots):
            clip[slot] = picture
        clip[len(slots) :] = 0


@dataclass(frozen=True)
class Studio(Generic[P]):
    """What turns an open video into pictures; which slots of which windows show them is the same whatever does.

    Attributes:
        reader: Reads the frames.
        make: Makes the picture of a frame that a window shows, before the next frame but one is read.
    """

    reader: FrameReader
    make: Callable[[TimedFrame], P]


class _Range(NamedTuple):
    start_s: Fraction
    end_s: Fraction


def iter_windows(
    path: str | os.PathLike[str],
    preset: Preset | str,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Generator[Window, None, None]:
    """Decode a video's windows one by one, in order.

    Memory does not depend on the video's length: the pictures of the windows that are under way are held, and no more.
    Stretches between windows are skipped by seeking. Frames that several windows show are converted once.

    `start_s` and `end_s` limit where windows may lie. In a range shorter than one window, windows start inside it and
    run on past its end, as in the reference's loaders; black frames stand only for what is after the video's end.

    Args:
        path: The video file.
        preset: A `Preset`, or the name of one.
        start_s: Start of the range in seconds; None is the video's start.
        end_s: End of the range in seconds, up to the container's end; None is the video stream's end.

    Yields:
        `Window`s.

    Raises:
        InputError: if there is no such preset, or a time is no finite number of at least 0.
        RangeError: if the range is not inside this video, or is empty.
        VideoError: if the file cannot be decoded as far as needed, or is refused.
        MissingDependencyError: if PyAV is not installed.
    """
    return _put_together(iter_picture_windows(path, preset, start_s=start_s, end_s=end_s))


def _put_together(windows: Generator[PictureWindow, None, None]) -> Generator[Window, None, None]:
    with closing(windows):
        for window in windows:
            size = window.preset.size
            clip = np.empty((window.preset.frames, size, size, 3), np.uint8)
            window.write(clip)
            yield Window(window.index, window.start_s, window.end_s, clip)


def iter_picture_windows(  # what to decode, and how much of the machine it may take
    path: str | os.PathLike[str],
    preset: Preset | str,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    threads: int = 0,
    on_progress: Callable[[], None] = nothing,
) -> Generator[PictureWindow, None, None]:
    """Decode a video's windows as `iter_windows` does, for callers that have a place for the clips.

    Args:
        path: The video file.
        preset: A `Preset`, or the name of one.
        start_s: Start of the range.
        end_s: End of the range.
        threads: Threads of the decoder; 0 for one a core.
        on_progress: Called whenever something was read from the file or a frame came out.

    Yields:
        `PictureWindow`s.

    Raises:
        MilnceError: as `iter_windows`.
    """
    chosen = checked(preset, start_s, end_s)
    return _host_windows(sample(path, chosen, (start_s, end_s), host_studio, threads=threads, on_progress=on_progress))


def _host_windows(windows: Generator[Sampled[Picture], None, None]) -> Generator[PictureWindow, None, None]:
    with closing(windows):
        for window in windows:
            yield PictureWindow(
                window.index, window.start_s, window.end_s, window.video_s, window.pictures, window.preset
            )


def checked(preset: Preset | str, start_s: float | None, end_s: float | None) -> Preset:
    """Return the preset.

    Raises:
        InputError: if there is no such preset, or a time is no finite number of at least 0.
    """
    chosen = get_preset(preset)
    for name, value in (("start_s", start_s), ("end_s", end_s)):
        if value is not None and (not math.isfinite(value) or value < 0):
            raise InputError(f"{name} must be a finite number of seconds, at least 0; got {value!r}")
    return chosen


@contextmanager
def host_studio(video: OpenVideo, preset: Preset) -> Iterator[Studio[Picture]]:
    """Decode and convert on the CPU."""
    make = square_maker(preset.size, preset.interpolation)

    def picture(shown: TimedFrame) -> Picture:
        with as_video_errors(video.path, f"converting the picture at {float(shown.time_s):.3f} s"):
            return make(require_intact(video, shown))

    yield Studio(FrameReader(video), picture)


def sample(
    path: str | os.PathLike[str],
    preset: Preset,
    span_s: tuple[float | None, float | None],
    studio: Callable[[OpenVideo, Preset], AbstractContextManager[Studio[P]]],
    *,
    threads: int = 0,
    on_progress: Callable[[], None] = nothing,
) -> Generator[Sampled[P], None, None]:
    """Sample a video's windows as `iter_windows` does, with the pictures that a studio makes."""
    length = measure_length(path, on_progress=on_progress)
    limits = _range(path, length, *span_s)
    with open_video(path, threads=threads, on_progress=on_progress) as video, studio(video, preset) as at_work:
        if preset.fps is None:
            yield _first_frames(at_work, preset, limits, length)
        else:
            yield from _sampled(at_work, preset, window_starts(preset, *limits), length)


def _range(path: str | os.PathLike[str], length: Length, start_s: float | None, end_s: float | None) -> _Range:
    limits = _Range(
        Fraction(0) if start_s is None else _microseconds(start_s),
        length.video_s if end_s is None else _microseconds(end_s),
    )
    duration = f"the video lasts {float(length.video_s):.3f} s"
    if limits.start_s >= length.video_s:
        raise RangeError(f"{path}: start_s={start_s} is not inside the video; {duration}")
    # Durations printed with a few decimals may be rounded up.
    if limits.end_s > length.container_s + Fraction(1, 100):
        raise RangeError(f"{path}: end_s={end_s} is beyond the end; {duration}")
    if limits.end_s <= limits.start_s:
        raise RangeError(f"{path}: end_s={end_s} must be after start_s={start_s}; {duration}")
    return limits


def window_starts(preset: Preset, start_s: Fraction, end_s: Fraction) -> list[Fraction]:
    """Return when the windows of a preset with `fps` start, in seconds, ascending.

    With `windows`: the reference's linspace(start, max(start, end - frames / fps - 0.4), windows), each start cut to
    microseconds as ffmpeg's `-ss` does. With `stride_frames`: every stride, as long as a window fits; if a rest of the
    range is left over, one more window that ends with it (to the nearest slot); at least one window.
    """
    if preset.fps is None:
        raise InputError(f"preset {preset.name!r} takes frames as they come: it has one window, at the start")
    fps = Fraction(str(preset.fps))
    if preset.stride_frames is None:
        latest_s = max(start_s, end_s - preset.frames / fps - Fraction(str(LINSPACE_MARGIN_S)))
        return [_microseconds(time) for time in np.linspace(float(start_s), float(latest_s), preset.windows or 1)]
    slots = round_half_away((end_s - start_s) * fps)
    last = max(0, slots - preset.frames)
    firsts = [*range(0, last + 1, preset.stride_frames)]
    if firsts[-1] < last:
        firsts.append(last)
    return [start_s + first / fps for first in firsts]


def _microseconds(time_s: float) -> Fraction:
    return Fraction(math.floor(Fraction(repr(float(time_s))) * MICROSECONDS), MICROSECONDS)


def round_half_away(value: Fraction) -> int:
    """Round to the nearest integer, halves away from zero: FFmpeg's AV_ROUND_NEAR_INF."""
    nearest = math.floor(abs(value) + Fraction(1, 2))
    return nearest if value >= 0 else -nearest


@dataclass
class _OpenWindow(Generic[P]):
    """A window under way: the pictures of its first slots, shared with other windows."""

    index: int
    start_s: Fraction
    pictures: list[P] = field(default_factory=list)


def _sampled(
    studio: Studio[P], preset: Preset, starts_s: list[Fraction], length: Length
) -> Generator[Sampled[P], None, None]:
    fps = Fraction(str(preset.fps))
    reader = studio.reader
    waiting: deque[_OpenWindow[P]] = deque(_OpenWindow(index, start_s) for index, start_s in enumerate(starts_s))
    under_way: deque[_OpenWindow[P]] = deque()
    shown: TimedFrame | None = None
    while waiting or under_way:
        if not under_way and reader.skip_to(waiting[0].start_s):
            shown = None
        following = reader.read()
        if following is None:
            reader.require_whole(length.video_s)
        if shown is not None:
            # Only now is it known until when `shown` is shown, and so whether any window needs it.
            picture: P | None = None
            until_s = max(shown.end_s, length.video_s) if following is None else following.time_s
            while waiting and (following is None or _is_first_of(waiting[0], shown, until_s, preset)):
                under_way.append(waiting.popleft())
            for window in under_way:
                slots = min(preset.frames, round_half_away((until_s - window.start_s) * fps))
                missing = max(slots, 1) - len(window.pictures)
                if missing > 0:
                    if picture is None:
                        picture = studio.make(shown)
                    window.pictures += [picture] * missing
            while under_way and (following is None or len(under_way[0].pictures) == preset.frames):
                done = under_way.popleft()
                end_s = done.start_s + preset.frames / fps
                times_s = float(done.start_s), float(end_s), float(length.video_s)
                yield Sampled(done.index, *times_s, done.pictures, preset)
        shown = following


def _is_first_of(window: _OpenWindow[P], shown: TimedFrame, until_s: Fraction, preset: Preset) -> bool:
    """Whether a window's first slot shows a frame that is shown until `until_s`."""
    if preset.windows is not None and shown.time_s < window.start_s:
        return False
    return round_half_away((until_s - window.start_s) * Fraction(str(preset.fps))) > 0


def _first_frames(studio: Studio[P], preset: Preset, limits: _Range, length: Length) -> Sampled[P]:
    reader = studio.reader
    reader.skip_to(limits.start_s)
    pictures: list[P] = []
    shown = reader.read()
    end_s = limits.start_s
    while shown is not None and len(pictures) < preset.frames and (not pictures or shown.time_s < limits.end_s):
        following = reader.read()
        if following is None or following.time_s > limits.start_s:
            pictures.append(studio.make(shown))
            end_s = shown.end_s
        shown = following
    if shown is None:
        reader.require_whole(length.video_s)
    return Sampled(0, float(limits.start_s), float(end_s), float(length.video_s), pictures, preset)
