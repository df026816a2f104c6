"""What a PyTorch user writes to embed videos: decode one, make its windows, run the model on them, take the next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from PIL import Image

from milnce.video.picture import square_maker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.video import Preset

    Clips = NDArray[np.uint8]


def plain_loop(
    paths: Sequence[Path], preset: Preset, encode: Callable[[Clips], NDArray[np.float32]], *, lean: bool = False
) -> list[NDArray[np.float32]]:
    """Embed videos one after the other; returns the embeddings (windows, 512) of each.

    Args:
        paths: The videos.
        preset: A preset with `fps` and `stride_frames`.
        encode: Runs the model on uint8 (windows, frames, size, size, 3).
        lean: See `clips_of`.
    """
    return [encode(clips_of(path, preset, lean=lean)) for path in paths]


def clips_of(path: Path, preset: Preset, *, lean: bool = False) -> Clips:
    """Return all windows of a video: uint8 (windows, frames, size, size, 3).

    Args:
        path: The video.
        preset: A preset with `fps` and `stride_frames`.
        lean: Resize only those frames that a window shows, by the pipeline's own means, which gives its very pixels.
            Otherwise every frame becomes an RGB picture of Pillow's that is cropped and resized.
    """
    if preset.fps is None or preset.stride_frames is None:
        raise ValueError(f"{preset}: sliding windows at a frame rate expected")
    pictures = _shown(path, preset) if lean else _every(path, preset)
    last = max(0, len(pictures) - preset.frames)
    firsts = list(range(0, last + 1, preset.stride_frames))
    if firsts[-1] < last:
        firsts.append(last)
    return np.stack([pictures[first : first + preset.frames] for first in firsts])


def _every(path: Path, preset: Preset) -> Clips:
    """Return the picture of every slot, all frames resized: the loop of PyAV's and Pillow's manuals."""
    found: dict[int, Clips] = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            picture = as_image(frame)
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            square = picture.crop((left, top, left + side, top + side))
            small = square.resize((preset.size, preset.size), Image.Resampling.BICUBIC)
            found[_slot(frame.time, stream, preset)] = np.asarray(small)
        return _filled(found, stream, preset)


def as_image(frame: Any) -> Image.Image:  # noqa: ANN401 - PyAV's stub of to_image is not annotated
    """Return a frame as Pillow's RGB picture."""
    image: Image.Image = frame.to_image()
    return image


def _shown(path: Path, preset: Preset) -> Clips:
    """Return the same with only those frames resized that are the last of their slot."""
    found: dict[int, Clips] = {}
    make = square_maker(preset.size, preset.interpolation)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        waiting: tuple[int, Any] | None = None
        for frame in container.decode(stream):
            slot = _slot(frame.time, stream, preset)
            if waiting is not None and waiting[0] < slot:
                found[waiting[0]] = make(waiting[1])
            waiting = (slot, frame)
        if waiting is not None:
            found[waiting[0]] = make(waiting[1])
        return _filled(found, stream, preset)


def _slot(time_s: float | None, stream: Any, preset: Preset) -> int:  # noqa: ANN401 - PyAV's stubs lack what is used
    """Return the sampled frame that a decoded one rounds to."""
    begin_s = float((stream.start_time or 0) * stream.time_base)
    return math.floor(((time_s or 0.0) - begin_s) * float(preset.fps or 0.0) + 0.5 + 1e-9)


def _filled(found: dict[int, Clips], stream: Any, preset: Preset) -> Clips:  # noqa: ANN401
    """Return a picture a slot, up to the stream's end: that of the last slot which has one."""
    slots = math.floor(float(stream.duration * stream.time_base) * float(preset.fps or 0.0) + 0.5)
    pictures: list[Clips] = []
    for slot in range(slots):
        pictures.append(found[slot] if slot in found else pictures[-1])
    return np.stack(pictures)
