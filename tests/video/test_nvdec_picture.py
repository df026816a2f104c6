"""The kernel that makes pictures on a GPU: its own source, run on the CPU, against libavfilter and OpenCV's resize."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from helpers.fake_nvdec import as_surface
from helpers.host_kernel import launcher, structure_bytes
from helpers.videos import make_video, real_video, real_videos, set_display_matrix
from milnce.errors import VideoError
from milnce.video import Preset
from milnce.video.nvdec_picture import (
    BLOCK,
    TOLERANCE,
    Geometry,
    Picture,
    Source,
    Table,
    bicubic_table,
    colour_weights,
    source,
)
from milnce.video.picture import square_maker

if TYPE_CHECKING:
    from collections.abc import Callable

    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

PATH = Path("video.mp4")
MATRICES = [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]
FULL_RANGE = 2


def preset(size: int, interpolation: Any = "bicubic") -> Preset:  # noqa: ANN401 - a literal
    return Preset("one", 25.0, 1, 1, None, size=size, interpolation=interpolation)


def frame_of(path: Path, number: int = 0) -> VideoFrame:
    with av.open(str(path)) as container:
        return next(frame for count, frame in enumerate(container.decode(video=0)) if count == number)


@functools.cache
def real_frame(path: Path, number: int) -> VideoFrame:
    return frame_of(path, number)


@pytest.fixture(scope="module")
def bunny() -> VideoFrame:
    """A real frame of 1280x720 with detail in every colour."""
    return real_frame(real_video("bigbuckbunny"), 20)


def made(
    frame: VideoFrame,
    wanted: Preset,
    *,
    text: str | None = None,
    change: Callable[[Geometry], object] | None = None,
    **stored: Any,  # noqa: ANN401 - fields of Source
) -> NDArray[np.uint8]:
    """Make a frame's picture with the kernel, on the CPU."""
    described = dataclasses.replace(Source.of(PATH, frame), **stored)
    geometry = Geometry(PATH, described, wanted)
    if change is not None:
        change(geometry)
    surface = as_surface(frame)
    luma, pitch = surface.ctypes.data, surface.strides[0]
    parts = [[np.ascontiguousarray(part) for part in table] for table in geometry.tables]
    addresses = [(first.ctypes.data, weights.ctypes.data) for first, weights in parts]
    out = np.full((wanted.size, wanted.size, 3), 99, np.uint8)
    job = geometry.picture(luma, luma + pitch * frame.height, pitch, addresses, out.ctypes.data)
    grid = (-(-wanted.size // BLOCK[0]), -(-wanted.size // BLOCK[1]))
    launcher(source() if text is None else text)(job, grid, BLOCK)
    return out


def difference(frame: VideoFrame, wanted: Preset, **options: Any) -> tuple[int, float]:  # noqa: ANN401 - of `made`
    """Return by how many levels a picture differs from the CPU's: at most, and on average."""
    expected = square_maker(wanted.size, wanted.interpolation)(frame).astype(int)
    levels = np.abs(made(frame, wanted, **options) - expected)
    return int(levels.max()), float(levels.mean())


def agrees(found: tuple[int, float]) -> bool:
    return found[0] <= TOLERANCE.largest and found[1] <= TOLERANCE.mean


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [64, 200, 224, 256])
def test_real_pictures_are_those_of_libavfilter_within_the_tolerance(path: Path, size: int) -> None:
    for number in (0, 20):
        assert agrees(difference(real_frame(path, number), preset(size))), number


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [64, 224])
def test_bilinear_pictures_are_the_notebook_s_to_the_bit(path: Path, size: int) -> None:
    assert difference(real_frame(path, 20), preset(size, "bilinear")) == (0, 0.0)


@pytest.mark.parametrize("shape", [(97, 63), (63, 97), (131, 262), (640, 361), (34, 20), (250, 250), (1280, 720)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv420p12le"])
def test_every_shape_and_depth_agrees(shape: tuple[int, int], pix_fmt: str, bunny: VideoFrame) -> None:
    frame = bunny.reformat(*shape, format=pix_fmt)
    for size in (64, 224):
        assert agrees(difference(frame, preset(size))), size


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
def test_pictures_that_need_no_scaling_are_the_same_to_the_bit(pix_fmt: str, bunny: VideoFrame) -> None:
    for shape in ((96, 64), (120, 65), (64, 64)):
        assert difference(bunny.reformat(*shape, format=pix_fmt), preset(64)) == (0, 0.0), shape


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("colorspace", [1, 2, 4, 5, 6, 7, 9])
def test_every_declared_matrix_and_range_is_used(colorspace: int, full_range: bool, bunny: VideoFrame) -> None:
    frame = bunny.reformat(160, 120, format="yuv420p")
    frame.colorspace, frame.color_range = colorspace, FULL_RANGE if full_range else 1
    assert agrees(difference(frame, preset(64)))
    assert difference(frame, preset(64, "bilinear")) == (0, 0.0)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("size", [(96, 64), (66, 94)])
def test_turned_and_mirrored_pictures_come_out_upright(
    matrix: tuple[int, int, int, int], size: tuple[int, int], tmp_path: Path
) -> None:
    frame = frame_of(set_display_matrix(make_video(tmp_path / "lying.mp4", frames=2, size=size), matrix))
    assert agrees(difference(frame, preset(56)))
    assert difference(frame, preset(56, "bilinear")) == (0, 0.0)
    upright = made(frame, preset(56), matrix=None)
    assert np.abs(upright.astype(int) - made(frame, preset(56))).mean() > 10


def swapped(text: str) -> str:
    return text.replace("p.red_v * v", "p.red_v * u").replace("p.blue_u * u", "p.blue_u * v")


def shifted(geometry: Geometry) -> None:
    """Lay the outputs half a source to the right, as code does that takes pixels for points."""

    def later(table: Table) -> Table:
        both = np.concatenate([table.weights, np.zeros_like(table.weights[:, :1])], 1)
        both[:, 1:] += table.weights
        return Table(table.first, (both / 2).astype(np.float32))

    one, two, three, four = geometry.tables
    geometry.tables = later(one), later(two), later(three), later(four)


def two_taps(geometry: Geometry) -> None:
    """Take the sources at each output's place alone, without antialiasing."""

    def alone(table: Table) -> Table:
        middle = table.weights.shape[1] // 2
        weights = np.zeros_like(table.weights)
        weights[:, middle - 1 : middle + 1] = 0.5
        return Table(table.first, weights)

    one, two, three, four = geometry.tables
    geometry.tables = alone(one), alone(two), alone(three), alone(four)


DEFECTS: dict[str, dict[str, Any]] = {
    "red and blue swapped": {"text": swapped(source())},
    "U and V swapped": {"text": source().replace("rounded(u), rounded(v)", "rounded(v), rounded(u)")},
    "half a pixel off": {"change": shifted},
    "no antialiasing": {"change": two_taps},
    "the matrix of BT.709": {"colorspace": 1},
    "full range": {"full_range": True},
    "lying on its side": {"matrix": (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)},
    "chroma of the next column": {"text": source().replace("column / 2", "(column / 2 + 1)")},
    "chroma of the next row": {"text": source().replace("row, column / 2", "row + 1, column / 2")},
    "luma truncated": {"text": source().replace("floorf(value + 0.5f)", "floorf(value)")},
    "edges black": {"text": source().replace("return index < 0 ? 0", "return index < 2 ? 0")},
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_tolerance_is_smaller_than_any_defect(defect: str, bunny: VideoFrame) -> None:
    options = DEFECTS[defect]
    assert options.get("text") != source(), "the defect is not in the source"
    assert agrees(difference(bunny, preset(224)))
    assert not agrees(difference(bunny, preset(224), **options))


@pytest.mark.parametrize(
    ("pix_fmt", "changes", "words"),
    [
        ("yuv444p", {}, "its pixel format is yuv444p; yuv420p, yuvj420p, yuv420p10le, yuv420p12le are converted there"),
        ("yuv422p", {}, "its pixel format is yuv422p"),
        ("gray", {}, "its pixel format is gray"),
        ("yuv420p", {"colorspace": 8}, "its colour space has FFmpeg's number 8; 1, 2, 4, 5, 6, 7, 9 are known"),
    ],
)
def test_pictures_that_the_kernel_cannot_make_are_left_to_the_cpu(
    pix_fmt: str, changes: dict[str, int], words: str, bunny: VideoFrame
) -> None:
    frame = bunny.reformat(64, 48, format=pix_fmt)
    for name, value in changes.items():
        setattr(frame, name, value)
    with pytest.raises(VideoError, match=r"video\.mp4: NVIDIA's decoder is not used for this file: ") as error:
        Source.of(PATH, frame)
    assert words in str(error.value)
    assert str(error.value).endswith('; use decoder="cpu" for it')


@pytest.mark.parametrize(("shape", "pix_fmt"), [((64, 49), "yuv420p"), ((64, 48), "yuv420p10le")])
def test_bilinear_pictures_that_libswscale_would_scale_are_left_to_the_cpu(
    shape: tuple[int, int], pix_fmt: str, bunny: VideoFrame
) -> None:
    stored = Source.of(PATH, bunny.reformat(*shape, format=pix_fmt))
    with pytest.raises(VideoError, match="preset 'one' resizes bilinearly, there only for 8-bit pictures with an even"):
        Geometry(PATH, stored, preset(32, "bilinear"))


def test_a_turn_by_an_odd_angle_is_left_to_the_cpu(bunny: VideoFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    tilted = (56756, 32768, 0, -32768, 56756, 0, 0, 0, 1 << 30)  # 30 degrees
    monkeypatch.setattr("milnce.video.nvdec_picture.display_matrix", lambda _: tilted)
    with pytest.raises(VideoError, match="turned by an angle that is no multiple of 90 degrees"):
        Source.of(PATH, bunny)


def test_an_interlaced_picture_is_left_to_the_cpu(tmp_path: Path) -> None:
    path = make_video(tmp_path / "tv.mp4", frames=4, codec_options={"flags": "+ildct+ilme", "x264-params": "tff=1"})
    frame = frame_of(path)
    assert frame.interlaced_frame
    with pytest.raises(VideoError, match="it is interlaced, and NVIDIA's decoder would deinterlace it"):
        Source.of(PATH, frame)


def test_the_structure_has_one_layout_on_both_sides() -> None:
    assert structure_bytes(source()) == ctypes.sizeof(Picture)


def test_filters_add_up_to_one_and_lie_around_their_outputs() -> None:
    for length, size in ((720, 224), (63, 224), (112, 112), (1080, 64), (31, 224)):
        table = bicubic_table(length, size)
        assert table.first.dtype == np.int32
        assert np.allclose(table.weights.sum(1), 1, atol=1e-6)
        centres = (np.arange(size) + 0.5) * length / size - 0.5
        found = ((table.first[:, None] + np.arange(table.weights.shape[1])) * table.weights).sum(1)
        assert np.abs(found - centres).max() < 0.12 * max(1, length / size), (length, size)


def test_white_black_and_grey_have_libswscale_s_levels() -> None:
    exact = (65536, 32768, 1.402 * 65536, -0.344136 * 65536, -0.714136 * 65536, 1.772 * 65536)
    assert colour_weights(2, full_range=True, scaled=True) == pytest.approx(exact, abs=3)
    step, start, *_ = colour_weights(2, full_range=False, scaled=True)
    assert [((luma * step) + start) >> 16 for luma in (16, 17, 235)] == [-2, -1, 253]
    assert colour_weights(1, full_range=False, scaled=False)[:2] == (9539, 16)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_nvcc_compiles_the_source_without_spilling(arch: str, tmp_path: Path) -> None:
    code = tmp_path / "kernel.cu"
    code.write_text(source(), encoding="utf-8")
    command = ["nvcc", f"-arch={arch}", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v", "-o", "kernel.cubin"]
    done = subprocess.run([*command, str(code)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
    assert (tmp_path / "kernel.cubin").stat().st_size > 1000
