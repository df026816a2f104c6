"""Pixels: upright, cropped, scaled and coloured as ffmpeg does; OpenCV's bilinear for the notebook's preset."""

from __future__ import annotations

import hashlib
import platform
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import av
import numpy as np
import pytest

from helpers.videos import (
    ffmpeg_clip,
    make_video,
    numbered,
    read_number,
    read_numbers,
    real_video,
    set_display_matrix,
    stored_for,
)
from milnce.errors import InputError
from milnce.video import Preset, get_preset, iter_windows, picture, probe_video, read_frame
from milnce.video.picture import SQUARE, PictureMaker, crop_center_square, resize_bilinear

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# The eight ways a picture can lie: each matrix with the clockwise turn that `probe_video` reports for it.
MATRICES = {
    (1, 0, 0, 1): 0,
    (0, 1, -1, 0): 90,
    (-1, 0, 0, -1): 180,
    (0, -1, 1, 0): 270,
    (-1, 0, 0, 1): 180,
    (1, 0, 0, -1): 0,
    (0, 1, 1, 0): 90,
    (0, -1, -1, 0): 270,
}


@pytest.mark.parametrize(("matrix", "turn"), MATRICES.items())
def test_rotated_and_mirrored_videos_are_shown_upright(
    matrix: tuple[int, int, int, int], turn: int, tmp_path: Path
) -> None:
    size = (96, 64) if matrix[0] or matrix[3] else (64, 96)

    def draw(number: int, _width: int, _height: int) -> NDArray[np.uint8]:
        return stored_for(numbered(number), matrix)

    path = set_display_matrix(make_video(tmp_path / "lying.mp4", frames=20, size=size, draw=draw), matrix)
    info = probe_video(path)
    assert (info.width, info.height, info.rotation) == (96, 64, turn)
    assert read_frame(path, 0.3).shape == (64, 96, 3)
    assert read_number(read_frame(path, 0.3)) == 7
    for interpolation in ("bicubic", "bilinear"):
        preset = Preset("all", 25.0, 20, 1, None, size=64, interpolation=interpolation)
        (window,) = iter_windows(path, preset)
        assert read_numbers(window.clip) == list(range(20))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("odd.mp4", {"size": (97, 63), "pix_fmt": "yuv444p"}),
        ("odd.webm", {"size": (95, 65)}),
        ("odd.gif", {"size": (95, 65)}),
        ("odd.avi", {"size": (95, 65), "codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("tall.mp4", {"size": (64, 128)}),
        ("full-range.mp4", {"pix_fmt": "yuvj420p"}),
        ("ten-bit.mp4", {"pix_fmt": "yuv420p10le"}),
    ],
)
def test_odd_sizes_and_other_pixel_formats_agree_with_ffmpeg(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    path = make_video(tmp_path / name, frames=20, **changes)
    info = probe_video(path)
    assert (info.width, info.height) == changes.get("size", (96, 64))
    (window,) = iter_windows(path, Preset("all", 25.0, 20, 1, None, size=112))
    assert read_numbers(window.clip) == list(range(20))
    assert np.array_equal(window.clip, ffmpeg_clip(path, 0, fps=25, frames=20, size=112))
    assert read_frame(path, 0.3, height=33).shape[0] == 33


@pytest.mark.parametrize("colorspace", ["bt709", "smpte170m"])
def test_the_colour_matrix_that_a_video_declares_is_used(colorspace: str, tmp_path: Path) -> None:
    options = {"x264-params": f"colorprim={colorspace}:transfer={colorspace}:colormatrix={colorspace}"}
    path = make_video(tmp_path / "colour.mp4", frames=10, codec_options=options)
    (window,) = iter_windows(path, Preset("all", 25.0, 10, 1, None, size=48))
    assert np.array_equal(window.clip, ffmpeg_clip(path, 0, fps=25, frames=10, size=48))
    # The two matrices do give different colours, so the test above can tell.
    other = make_video(tmp_path / "plain.mp4", frames=10)
    (plain,) = iter_windows(other, Preset("all", 25.0, 10, 1, None, size=48))
    assert np.array_equal(plain.clip, window.clip) == (colorspace == "smpte170m")


def test_transparent_gif_pixels_get_the_colour_that_ffmpeg_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "transparent.gif"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr8"
        for number in range(4):
            picture = numbered(number, 32, 32)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="bgr8")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    control = data.index(b"\x21\xf9\x04")
    data[control + 3] |= 1  # declare one colour of the first frame transparent
    data[control + 6] = 0
    path.write_bytes(data)
    (window,) = iter_windows(path, Preset("all", 10.0, 4, 1, None, size=32))
    assert np.array_equal(window.clip, ffmpeg_clip(path, 0, fps=10, frames=4, size=32))


def test_clips_are_rgb_uint8_and_contiguous() -> None:
    (window,) = iter_windows(real_video("bikes"), get_preset("milnce-eval", windows=1))
    assert window.clip.shape == (16, 224, 224, 3)
    assert window.clip.dtype == np.uint8
    assert window.clip.flags.c_contiguous
    assert window.clip.flags.writeable


# Computed with opencv-python-headless 4.14.0 (cv2.resize, its default INTER_LINEAR) from `pattern` below:
# the centre square of it, resized, its bytes through SHA-256 and the first 16 digits of that.
OPENCV = {
    (5, 7, 4): "f625af974f104db4",
    (48, 48, 224): "75a3194bd3ba1cb7",
    (240, 135, 224): "2c5c2ccd665d2f1d",
    (3, 3, 9): "66012367ddf5b38b",
}


def pattern(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * 7 + y * 3) % 256, (x * y) % 251, (x * x + 5 * y) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize(("sizes", "digest"), OPENCV.items())
def test_bilinear_is_opencv_s_to_the_bit(sizes: tuple[int, int, int], digest: str) -> None:
    height, width, size = sizes
    resized = resize_bilinear(crop_center_square(pattern(height, width)), size)
    assert hashlib.sha256(resized.tobytes()).hexdigest()[:16] == digest


def test_bilinear_takes_two_taps_at_half_pixel_centres() -> None:
    row = np.array([0, 100, 200, 40], np.uint8)
    picture = np.repeat(np.tile(row, (4, 1))[:, :, None], 3, axis=2)
    # Halving: each output lies midway between two inputs. Doubling: a quarter off, edges repeated.
    assert resize_bilinear(picture, 2)[0, :, 0].tolist() == [50, 120]
    assert resize_bilinear(picture, 8)[3, :, 0].tolist() == [0, 25, 75, 125, 175, 160, 80, 40]
    # No antialiasing: a 16th of the pixels decides.
    spike = np.zeros((32, 32, 3), np.uint8)
    spike[0, 0] = 255
    assert not resize_bilinear(spike, 2).any()


def test_crop_center_square_rounds_as_the_notebook_does() -> None:
    assert crop_center_square(pattern(5, 8))[0, 0].tolist() == pattern(5, 8)[0, 2].tolist()
    assert crop_center_square(pattern(7, 4))[0, 0].tolist() == pattern(7, 4)[1, 0].tolist()


@pytest.mark.parametrize("time_s", [-0.1, float("nan"), float("inf")])
def test_read_frame_refuses_times_that_are_none(time_s: float) -> None:
    with pytest.raises(InputError, match="time_s must be a finite number of seconds, at least 0"):
        read_frame(real_video("bikes"), time_s)


def test_read_frame_refuses_a_height_of_nothing_and_shows_the_last_frame_past_the_end(tmp_path: Path) -> None:
    path = make_video(tmp_path / "short.mp4", frames=10)
    with pytest.raises(InputError, match="height must be from 1 to 8192 pixels or None; got 0"):
        read_frame(path, 0, height=0)
    assert read_number(read_frame(path, 99.0)) == 9


def random_frame(size: tuple[int, int], pixel_format: str, space: int, levels: int) -> av.VideoFrame:
    frame = av.VideoFrame(*size, pixel_format)
    generator = np.random.default_rng(size)
    for plane in frame.planes:
        plane.update(generator.integers(0, 256, plane.buffer_size, np.uint8).tobytes())
    frame.pts, frame.colorspace, frame.color_range = 0, space, levels
    return frame


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with FFmpeg's own pixels, which differ elsewhere")
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p", "yuv444p"])
@pytest.mark.parametrize("size", [(224, 224), (250, 130), (34, 18), (223, 224), (224, 223), (225, 225), (2, 2)])
@pytest.mark.parametrize("scaled", [False, True])
def test_pictures_that_are_not_scaled_are_on_arm_what_they_are_on_x86(
    pixel_format: str, size: tuple[int, int], scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (SQUARE, ("scale", {"w": "224", "h": "224", "flags": "bicubic"})) if scaled else ()
    colours = [(None, 2, 0), (None, 1, 0), (None, 4, 0), (None, 7, 0), (None, 9, 0), (None, 1, 2)]  # space and range
    turned = [(matrix, 2, 0) for matrix in (*MATRICES, (0.8, 0.6, -0.6, 0.8))]
    for matrix, space, levels in [*colours, *turned]:
        frame = random_frame(size, pixel_format, space, levels)
        lying = None
        if matrix is not None:
            first, second, third, fourth = (int(part * 2**16) for part in matrix)
            lying = (first, second, 0, third, fourth, 0, 0, 0, 2**30)
        monkeypatch.setattr(picture, "display_matrix", lambda _, lying=lying: lying)
        monkeypatch.setattr(picture, "is_arm", lambda: False)
        expected = PictureMaker(steps)(frame)
        ours = Mock(side_effect=picture.rgb_as_on_x86)
        monkeypatch.setattr(picture, "is_arm", lambda: True)
        with monkeypatch.context() as patch:
            patch.setattr(picture, "rgb_as_on_x86", ours)
            np.testing.assert_array_equal(PictureMaker(steps)(frame), expected)
        assert ours.called == is_only_converted(pixel_format, size, matrix, scaled=scaled)


def is_only_converted(
    pixel_format: str, size: tuple[int, int], matrix: tuple[float, float, float, float] | None, *, scaled: bool
) -> bool:
    """Whether FFmpeg converts such a picture by a routine of the processor: 8-bit, not scaled, of even height."""
    turned = matrix is not None and matrix[1] != 0
    if pixel_format == "yuv444p" or (scaled and "422" in pixel_format and turned):
        return False
    if scaled:
        return size == (224, 224) or (size == (225, 225) and "420" in pixel_format)  # whose crop is even
    height = size[0] if "420" in pixel_format and matrix is not None and matrix[0] == 0 else size[1]
    return height % 2 == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with FFmpeg's own pixels, which differ elsewhere")
@pytest.mark.parametrize("height", [None, 64, 32])
def test_a_frame_of_its_own_height_is_on_arm_what_it_is_on_x86(
    height: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "plain.mp4", frames=4)  # 96x64
    expected = read_frame(path, 0, height=height)
    ours = Mock(side_effect=picture.rgb_as_on_x86)
    monkeypatch.setattr(picture, "rgb_as_on_x86", ours)
    monkeypatch.setattr(picture, "is_arm", lambda: True)
    np.testing.assert_array_equal(read_frame(path, 0, height=height), expected)
    assert ours.called == (height != 32)


@pytest.mark.parametrize("space", [8, 14])
def test_colours_that_ffmpeg_has_its_own_way_with_are_left_to_it(space: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*, on_arm: bool) -> object:
        monkeypatch.setattr(picture, "is_arm", lambda: on_arm)
        try:
            return PictureMaker(())(random_frame((64, 64), "yuv420p", space, 0)).tolist()
        except (OSError, ValueError, NotImplementedError) as error:  # some it refuses
            return repr(error)

    assert answer(on_arm=True) == answer(on_arm=False)
