"""What the kernel that makes a clip's pictures of decoded surfaces is told: geometry, weights and colours.

The kernel's sums are those of libswscale (bicubic) or OpenCV (bilinear), from tables made here. They differ from
libavfilter's pictures, which `milnce.video.picture` makes on the CPU, by rounding alone: see `TOLERANCE`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from milnce.errors import VideoError
from milnce.video.picture import bilinear_taps, display_matrix, upright_steps

if TYPE_CHECKING:
    from pathlib import Path

    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from milnce.video.presets import Preset


class Tolerance(NamedTuple):
    """By how many 8-bit levels a picture may differ from libavfilter's.

    Attributes:
        largest: Anywhere in it.
        mean: On average over its samples, without signs.
    """

    largest: int
    mean: float


# libswscale rounds its weights to 14 and 12 bits on the way and the kernel sums in float, so a sum near a half may be
# rounded the other way, and a level of chroma is two of blue. Measured on real and generated pictures of 34 to 1280
# columns: 4 at most, 0.08 on average at most; bilinear ones, and those not scaled, are the same to the bit. That moves
# embeddings of the demo by 0.0015 of their length (centred cosine 0.99999), where one pixel's shift moves them by 0.11.
# Defects lie far outside: half a pixel's shift 2.5 on average, another matrix 2.8, no antialiasing 2.8, truncation 1.2.
TOLERANCE = Tolerance(largest=6, mean=0.2)

KERNEL = "milnce_picture"
BLOCK = (32, 8)

# Luma's share of red and blue, by FFmpeg's AVColorSpace; what is not declared is taken for BT.601, as libswscale does.
_SHARES = {
    1: (0.2126, 0.0722),  # BT.709
    2: (0.299, 0.114),
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601, 625 lines
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_EIGHT_BITS = {"yuv420p": False, "yuvj420p": True}  # whether the format itself says full range
_MORE_BITS = ("yuv420p10le", "yuv420p12le")

# Weights at both ends of a filter are left out as long as they add up to less than this (SWS_MAX_REDUCE_CUTOFF).
_CUTOFF = 0.002
_BICUBIC_C = 0.6  # libswscale's default, with B = 0


def source() -> str:
    """Return the kernel's CUDA C++ source."""
    return files("milnce.video").joinpath("nvdec_picture.cu").read_text(encoding="utf-8")


def refused(path: Path, reason: str) -> VideoError:
    """Say why a video is not decoded by NVIDIA's decoder, and what to do."""
    return VideoError(f'{path}: NVIDIA\'s decoder is not used for this file: {reason}; use decoder="cpu" for it')


class Axis(ctypes.Structure):
    """`Axis` of the kernel's source."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("taps", ctypes.c_int),
        ("length", ctypes.c_int),
    )


class Picture(ctypes.Structure):
    """`Picture` of the kernel's source, field for field."""

    _fields_ = (
        ("luma", ctypes.c_void_p),
        ("chroma", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("luma_down", ctypes.c_longlong),
        ("luma_right", ctypes.c_longlong),
        ("chroma_down", ctypes.c_longlong),
        ("chroma_right", ctypes.c_longlong),
        ("luma_y", Axis),
        ("luma_x", Axis),
        ("chroma_y", Axis),
        ("chroma_x", Axis),
        ("luma_step", ctypes.c_int),
        ("luma_start", ctypes.c_int),
        ("red_v", ctypes.c_int),
        ("green_u", ctypes.c_int),
        ("green_v", ctypes.c_int),
        ("blue_u", ctypes.c_int),
        ("size", ctypes.c_int),
        ("wide", ctypes.c_int),
        ("rgb_first", ctypes.c_int),
    )


class Table(NamedTuple):
    """What each output of an axis is made of: (outputs,) first sources and (outputs, taps) weights."""

    first: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """Pictures as a decoder stores them, all of one video.

    Attributes:
        width: Columns of luma.
        height: Rows of luma.
        wide: Whether a sample takes two bytes (P016), not one (NV12).
        full_range: Whether luma goes from 0 to 255, not from 16 to 235.
        colorspace: FFmpeg's AVColorSpace.
        matrix: The display matrix, or None.
    """

    width: int
    height: int
    wide: bool
    full_range: bool
    colorspace: int
    matrix: tuple[int, ...] | None

    @classmethod
    def of(cls, path: Path, frame: VideoFrame) -> Source:
        """Describe a video by its first frame, decoded on the CPU.

        Raises:
            VideoError: if the kernel cannot convert such pictures.
        """
        name, colorspace, matrix = frame.format.name, int(frame.colorspace), display_matrix(frame)
        reason = None
        if name not in _EIGHT_BITS and name not in _MORE_BITS:
            reason = f"its pixel format is {name}; {', '.join((*_EIGHT_BITS, *_MORE_BITS))} are converted there"
        elif colorspace not in _SHARES:
            reason = f"its colour space has FFmpeg's number {colorspace}; {', '.join(map(str, _SHARES))} are known"
        elif frame.interlaced_frame:
            reason = "it is interlaced, and NVIDIA's decoder would deinterlace it"
        elif any(step == "rotate" for step, _ in upright_steps(matrix)):
            reason = "it is turned by an angle that is no multiple of 90 degrees"
        elif min(frame.width, frame.height) < 2:  # noqa: PLR2004 - one sample of chroma
            reason = f"its pictures have {frame.width}x{frame.height} pixels"
        if reason is not None:
            raise refused(path, reason)
        full = _EIGHT_BITS.get(name, False) or int(frame.color_range) == _FULL_RANGE
        return cls(frame.width, frame.height, name in _MORE_BITS, full, colorspace, matrix)


class _Plane(NamedTuple):
    """A plane seen upright: where its top left sample is and how far apart its samples are, in samples of the plane."""

    height: int
    width: int
    offset: tuple[int, int]  # stored row and column of the upright top left
    down: tuple[int, int]  # by how many stored rows and columns the next upright row is away
    right: tuple[int, int]


def _upright(height: int, width: int, matrix: tuple[int, ...] | None) -> _Plane:
    """Do to a plane's coordinates what `upright_steps` has libavfilter do to the picture."""
    plane = _Plane(height, width, (0, 0), (1, 0), (0, 1))
    for step, arguments in upright_steps(matrix):
        direction = arguments.get("dir", "")
        if step == "transpose":
            # libavfilter's "cclock_flip" is the plain transpose; the others are it with one or both axes mirrored.
            plane = _Plane(plane.width, plane.height, plane.offset, plane.right, plane.down)
        if step == "hflip" or direction in {"clock", "clock_flip"}:
            plane = plane._replace(offset=_along(plane.offset, plane.right, plane.width - 1), right=_back(plane.right))
        if step == "vflip" or direction in {"cclock", "clock_flip"}:
            plane = plane._replace(offset=_along(plane.offset, plane.down, plane.height - 1), down=_back(plane.down))
    return plane


def _along(offset: tuple[int, int], step: tuple[int, int], times: int) -> tuple[int, int]:
    return offset[0] + step[0] * times, offset[1] + step[1] * times


def _back(step: tuple[int, int]) -> tuple[int, int]:
    return -step[0], -step[1]


class Geometry:
    """How the pictures of one video become a preset's pictures, whatever memory they lie in.

    Raises:
        VideoError: if the kernel cannot convert such pictures as the preset wants.
    """

    def __init__(self, path: Path, source: Source, preset: Preset) -> None:
        self.source = source
        self.size = preset.size
        self._luma = _upright(source.height, source.width, source.matrix)
        self._chroma = _upright(-(-source.height // 2), -(-source.width // 2), source.matrix)
        bilinear = preset.interpolation == "bilinear"
        if bilinear and (source.wide or self._luma.height % 2):
            raise refused(
                path, f"preset {preset.name!r} resizes bilinearly, there only for 8-bit pictures with an even height"
            )
        short = min(self._luma.height, self._luma.width)
        lengths = (self._luma.height, self._luma.width)
        if bilinear:
            self._side = short
            self._top, self._left = (length // 2 - short // 2 for length in lengths)
        else:  # libavfilter's crop rounds halves to even, and keeps to whole chroma samples
            self._side = short & ~1
            self._top, self._left = (round((length - short) * 0.5) & ~1 for length in lengths)
        # What libswscale need not scale it turns to RGB pixel by pixel, each with the chroma that it lies on.
        self._rgb_first = bilinear or (self._side == self.size and not source.wide)
        self.tables = self._bilinear_tables() if self._rgb_first else self._bicubic_tables()

    def _bicubic_tables(self) -> tuple[Table, Table, Table, Table]:
        side, size = self._side, self.size  # both even: a preset's size is
        luma = bicubic_table(side, size)
        return luma, luma, bicubic_table(side // 2, size), bicubic_table(side // 2, size // 2)

    def _bilinear_tables(self) -> tuple[Table, Table, Table, Table]:
        sources, weights = bilinear_taps(self._side, self.size)
        rows = Table(_first_of(sources, self._side, self.size), weights.T.astype(np.float32))
        columns = Table(rows.first, rows.weights.copy())
        # Along a row OpenCV gives an edge pixel the whole weight: see `resize_bilinear`.
        columns.weights[sources[0] == sources[1]] = (2048, 0)
        nothing = np.zeros((self._side, 1), np.float32)
        chroma = [
            Table(((first + np.arange(self._side)) // 2).astype(np.int32), nothing) for first in (self._top, self._left)
        ]
        return rows, columns, chroma[0], chroma[1]

    def picture(self, luma: int, chroma: int, pitch: int, tables: list[tuple[int, int]], out: int) -> Picture:
        """Describe one picture to make.

        Args:
            luma: Address of a surface's luma.
            chroma: Address of its chroma.
            pitch: Bytes from one row of either to the next.
            tables: Where each of `tables` lies: addresses of its first sources and of its weights.
            out: Address of the (size, size, 3) bytes to fill.
        """
        step = 2 if self.source.wide else 1
        crop = (0, 0) if self._rgb_first else (self._top // 2, self._left // 2)
        luma_at, luma_down, luma_right = _bytes(self._luma, (self._top, self._left), pitch, step)
        chroma_at, chroma_down, chroma_right = _bytes(self._chroma, crop, pitch, 2 * step)
        lengths = (self._side, self._side, self._chroma.height, self._chroma.width)
        if not self._rgb_first:
            lengths = (self._side, self._side, self._side // 2, self._side // 2)
        axes = [
            Axis(first, weights, table.weights.shape[1], length)
            for table, (first, weights), length in zip(self.tables, tables, lengths, strict=True)
        ]
        return Picture(
            luma + luma_at,
            chroma + chroma_at,
            out,
            luma_down,
            luma_right,
            chroma_down,
            chroma_right,
            *axes,
            *colour_weights(self.source.colorspace, full_range=self.source.full_range, scaled=not self._rgb_first),
            self.size,
            self.source.wide,
            self._rgb_first,
        )


def _bytes(plane: _Plane, crop: tuple[int, int], pitch: int, step: int) -> tuple[int, int, int]:
    """Return the offset of the crop's top left and the steps down and right, in bytes."""
    corner = _along(_along(plane.offset, plane.down, crop[0]), plane.right, crop[1])
    offset, down, right = (row * pitch + column * step for row, column in (corner, plane.down, plane.right))
    return offset, down, right


def _first_of(sources: NDArray[np.intp], length: int, size: int) -> NDArray[np.int32]:
    """Return the first of two neighbouring sources before edges are repeated: -1 at the near edge."""
    near = (np.arange(size) + 0.5) * (length / size) < 0.5  # noqa: PLR2004 - half a pixel
    return np.where(near & (sources[0] == sources[1]), -1, sources[0]).astype(np.int32)


def bicubic_table(length: int, size: int) -> Table:
    """Make libswscale's bicubic filter (initFilter in libswscale/utils.c) from `length` sources to `size` outputs.

    Shrinking widens the filter, so it antialiases. Sources and outputs lie at half-pixel centres, those of chroma too.
    """
    increment = ((length << 16) + size // 2) // size / 65536
    scale = max(1.0, length / size)
    taps = 5 if increment <= 1 else 1 + -(-4 * length // size)
    taps = max(1, min(taps, length - 2))
    centres = (np.arange(size) * increment) + (increment - 1) / 2
    first = np.trunc(centres - (taps - 2) / 2).astype(np.int64)
    sources = first[:, None] + np.arange(taps)
    weights = _bicubic(np.abs(sources - centres[:, None]) / scale)
    if length == size:
        first, weights = np.arange(size), np.ones((size, 1))
    first, weights = _trimmed(first, weights / weights.sum(1, keepdims=True))
    return Table(first.astype(np.int32), (weights / weights.sum(1, keepdims=True)).astype(np.float32))


def _bicubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mitchell and Netravali's cubic with B = 0, times 6."""
    c = 6 * _BICUBIC_C
    near = (12 - c) * distance**3 + (c - 18) * distance**2 + 6
    far = -c * distance**3 + 5 * c * distance**2 - 8 * c * distance + 4 * c
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))  # noqa: PLR2004 - where the cubic ends


def _trimmed(first: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Leave out ends that hardly count, each output's own on the left, the same number for all on the right."""
    first, weights = first.copy(), weights.copy()
    for row in range(len(weights)):
        cut = 0.0
        while weights.shape[1] > 1:
            cut += abs(weights[row, 0])
            if cut > _CUTOFF:
                break
            weights[row] = [*weights[row, 1:], 0.0]
            first[row] += 1
    needed = 1
    for line in weights:
        kept = len(line)
        while kept > 1 and np.abs(line[kept - 1 :]).sum() <= _CUTOFF:
            kept -= 1
        needed = max(needed, kept)
    return first, weights[:, :needed]


def colour_weights(colorspace: int, *, full_range: bool, scaled: bool) -> tuple[int, int, int, int, int, int]:
    """Return the kernel's `luma_step`, `luma_start`, `red_v`, `green_u`, `green_v` and `blue_u`.

    They follow libswscale/yuv2rgb.c from its integer coefficients in 65536ths on, truncation for truncation: for
    pictures that it scales, ff_yuv2rgb_c_init_tables, where 384 and 326 are the places that luma 0 has in its tables;
    for the others, what its vector instructions take.
    """
    red, blue = _SHARES[colorspace]
    green = 1 - red - blue
    exact = (2 * (1 - red), 2 * (1 - blue) * blue / green, 2 * (1 - red) * red / green, 2 * (1 - blue))
    red_v, green_u, green_v, blue_u = (round(weight * 255 / 224 * 65536) for weight in exact)
    step, black, place = 65536 * 255 // 219, 16, 326
    if full_range:
        red_v, green_u, green_v, blue_u = (weight * 224 // 255 for weight in (red_v, green_u, green_v, blue_u))
        step, black, place = 65536, 0, 384
    weights = (red_v, -green_u, -green_v, blue_u)
    if not scaled:
        return (step + 4) >> 3, black, *((weight + 4) >> 3 for weight in weights)  # type: ignore[return-value]
    start = place * step - ((384 + black) << 16) + 0x8000
    return step, start, *(int((weight * 65536 + 0x8000) / step) for weight in weights)  # type: ignore[return-value]
