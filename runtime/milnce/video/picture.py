"""From a decoded frame to an upright RGB picture of the wanted size.

Cropping, scaling and colour conversion are libavfilter's, the code the reference evaluation runs through ffmpeg's
command line, so pixels agree. Exceptions are `bilinear`, which is OpenCV's, and on ARM what FFmpeg would not scale.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.platforms import is_arm
from milnce.video.container import import_av

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from milnce.video.presets import Interpolation

Step = tuple[str, dict[str, str]]

_RGB = "rgb24"
_QUARTER, _HALF, _THREE_QUARTERS = 90, 180, 270

# The reference's crop: the centred square of side min(width, height).
SQUARE: Step = ("crop", {"w": "min(iw,ih)", "h": "min(iw,ih)", "x": "(iw-min(iw,ih))*0.5", "y": "(ih-min(iw,ih))*0.5"})

# Pixel formats that FFmpeg, where it need not scale, converts by routines of the processor: with truncation on x86, by
# others on ARM, up to 3 levels away (FFmpeg 8.1.2). The reference's pixels are those of x86.
_CONVERTED_BY_PROCESSOR = frozenset({"yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p"})
# Of red in V, of blue in U, of green in U and in V, in 1/65536, by AVColorSpace; FFmpeg's ff_yuv2rgb_coeffs.
_BT601 = (104597, 132201, -25675, -53279)
_COEFFICIENTS = {
    1: (117489, 138438, -13975, -34925),
    4: (104448, 132798, -24759, -53109),
    7: (117579, 136230, -16907, -35559),
    9: (110013, 140363, -12277, -42626),
}
_SPACES = frozenset({2, 5, 6, *_COEFFICIENTS})  # 2, 5, 6: unspecified and BT.601. FFmpeg has its own way with others
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG

_FIXED_POINT = 2048  # OpenCV's INTER_RESIZE_COEF_SCALE: weights of 8-bit pictures have 11 bits


def display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """Return the frame's 3x3 display matrix, row by row in FFmpeg's fixed point, or None."""
    from av.sidedata.sidedata import Type  # noqa: PLC0415 - av is imported by now, and only now

    # PyAV's stubs say names; its side data are keyed by type.
    side_data: Any = frame.side_data
    data = side_data.get(Type.DISPLAYMATRIX)
    return None if data is None else struct.unpack("=9i", bytes(data))


def rotation_of(matrix: tuple[int, ...] | None) -> float:
    """Return by how many degrees clockwise, in [0, 360), a picture must be turned to be upright."""
    if matrix is None:
        return 0.0
    # av_display_rotation_get gives the counterclockwise turn that the matrix does; ffmpeg negates it.
    scale_x, scale_y = math.hypot(matrix[0], matrix[3]), math.hypot(matrix[1], matrix[4])
    if not scale_x or not scale_y:
        return 0.0
    return math.degrees(math.atan2(matrix[1] / scale_y, matrix[0] / scale_x)) % 360


def upright_steps(matrix: tuple[int, ...] | None) -> list[Step]:
    """Return the filters that make a picture upright: those the ffmpeg command line would insert (ffmpeg_filter.c)."""
    if matrix is None:
        return []
    angle = rotation_of(matrix)
    turn = round(angle / _QUARTER) * _QUARTER
    if abs(angle - turn) >= 1:
        return [("rotate", {"a": f"{angle}*PI/180"})]
    if turn == _QUARTER:
        return [("transpose", {"dir": "cclock_flip" if matrix[3] > 0 else "clock"})]
    if turn == _THREE_QUARTERS:
        return [("transpose", {"dir": "clock_flip" if matrix[3] < 0 else "cclock"})]
    steps: list[Step] = [("hflip", {})] if turn == _HALF and matrix[0] < 0 else []
    return [*steps, ("vflip", {})] if matrix[4] < 0 else steps


class PictureMaker:
    """Turns decoded frames into RGB arrays, keeping one filter graph as long as the frames' format stays the same.

    Args:
        steps: Filters after the picture was made upright, before it becomes RGB.
    """

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self._steps = steps
        self._key: tuple[Any, ...] | None = None
        self._graph: Graph | None = None
        self._converts_first = False

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return `frame` as uint8 (height, width, 3) RGB, upright."""
        matrix = display_matrix(frame)
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, matrix)
        if self._graph is None or key != self._key:
            self._graph, self._key = self._prepare(frame, [*upright_steps(matrix), *self._steps]), key
        picture = _through(self._graph, _as_rgb(frame) if self._converts_first else frame)
        if picture.format.name != _RGB:
            return rgb_as_on_x86(picture)
        return np.ascontiguousarray(picture.to_ndarray(), dtype=np.uint8)

    def _prepare(self, frame: VideoFrame, steps: list[Step]) -> Graph:
        """Return the graph for frames like this one. Where FFmpeg's RGB would not be that of x86, it is left to us."""
        names = {name for name, _ in steps}
        ours = is_arm() and frame.format.name in _CONVERTED_BY_PROCESSOR and int(frame.colorspace) in _SPACES
        # FFmpeg turns 4:2:0 as it is, and 4:2:2 as RGB, or as 4:4:4 where it scales too.
        turned = "422" in frame.format.name and names & {"transpose", "rotate"}
        self._converts_first = ours and bool(turned) and "scale" not in names and frame.height % 2 == 0
        if self._converts_first:
            frame = _as_rgb(frame)
        elif ours and not turned:
            bare = [step for step in steps if step[0] != "scale"]
            # A copy, as vflip leaves the rows in reverse.
            graph = _graph(frame, [*bare, ("copy", {})], frame.format.name)
            picture = _through(graph, frame)
            if picture.height % 2 == 0 and all(_keeps_size(picture, step) for step in steps):
                return graph
        return _graph(frame, steps, _RGB)


def _keeps_size(picture: VideoFrame, step: Step) -> bool:
    """Whether a step is no scaling, or one to the size that the picture has."""
    width, height = str(picture.width), str(picture.height)
    return step[0] != "scale" or (step[1].get("h") == height and step[1].get("w") in {width, "-1"})


def _as_rgb(frame: VideoFrame) -> VideoFrame:
    found: VideoFrame = import_av().VideoFrame.from_ndarray(rgb_as_on_x86(frame), format=_RGB)
    found.pts = frame.pts
    return found


def _graph(frame: VideoFrame, steps: list[Step], pixel_format: str) -> Graph:
    graph: Graph = import_av().filter.Graph()
    graph.threads = 1  # the pictures are small; decoding has the threads
    source = graph.add(
        "buffer",
        video_size=f"{frame.width}x{frame.height}",
        pix_fmt=frame.format.name,
        time_base="1/1",
        pixel_aspect="1/1",
        # Declared, so that libavfilter need not set itself up a second time at the first frame.
        colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )
    nodes = [graph.add(name, **arguments) for name, arguments in [*steps, ("format", {"pix_fmts": pixel_format})]]
    graph.link_nodes(source, *nodes, graph.add("buffersink"))
    graph.configure()
    return graph


def _through(graph: Graph, frame: VideoFrame) -> VideoFrame:
    graph.vpush(frame)
    return graph.vpull()


def rgb_as_on_x86(picture: VideoFrame) -> NDArray[np.uint8]:
    """Return a picture of 8-bit YUV, 4:2:0 or 4:2:2, as uint8 (height, width, 3) RGB, as FFmpeg converts it on x86.

    That is libswscale's yuv_2_rgb.asm, number for number: chroma is repeated, products are cut at 16 bits. FFmpeg
    takes a fraction of the time.
    """
    planes = [
        np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
        for plane in picture.planes[:3]
    ]
    full = picture.color_range == _FULL_RANGE or picture.format.name.startswith("yuvj")
    luma, red, blue, green_u, green_v = _conversion(int(picture.colorspace), full)
    y, u, v = luma[planes[0]], planes[1], planes[2]
    rows = 2 if u.shape[0] < y.shape[0] else 1
    channels = (red[v], green_u[u] + green_v[v], blue[u])
    sums = [y + part.repeat(2, 1).repeat(rows, 0)[:, : y.shape[1]] for part in channels]
    return np.stack(np.clip(sums, 0, 255).astype(np.uint8), axis=-1)


@functools.cache
def _conversion(space: int, full: bool) -> NDArray[np.int16]:
    """Return int16 (5, 256): what each value of luma, and of chroma to red, to blue and twice to green, adds."""
    factors = list(_COEFFICIENTS.get(space, _BT601))
    luma, black = 1 << 16, 0
    if full:
        factors = [int(factor * 224 / 255) for factor in factors]
    else:
        luma, black = luma * 255 // 219, 16
    values = np.arange(256, dtype=np.int64) << 3
    rows = [((values - (black << 3)) * _rounded(luma)) >> 16]
    rows += [((values - (128 << 3)) * _rounded(factor)) >> 16 for factor in factors]
    return np.array(rows, np.int16)


def _rounded(factor: int) -> int:
    return ((factor << 13) + (1 << 15)) >> 16


def square_maker(size: int, interpolation: Interpolation) -> PictureMaker | BilinearSquareMaker:
    """Return what turns frames into (size, size, 3): centre square, then resize."""
    if interpolation == "bilinear":
        return BilinearSquareMaker(size)
    return PictureMaker((SQUARE, ("scale", {"w": str(size), "h": str(size), "flags": "bicubic"})))


class BilinearSquareMaker:
    """Turns frames into centre squares as the TF-Hub notebook does: RGB, then NumPy's crop and OpenCV's resize."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._rgb = PictureMaker(())

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return `frame` as uint8 (size, size, 3) RGB."""
        return resize_bilinear(crop_center_square(self._rgb(frame)), self._size)


def crop_center_square(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the centre square of (height, width, 3), as the notebook's function of the same name cuts it."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    return picture[top : top + side, left : left + side]


def resize_bilinear(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize (height, width, 3) to (size, size, 3) as OpenCV's INTER_LINEAR does with 8-bit pictures.

    Two taps around half-pixel centres, edges repeated, no antialiasing, fixed-point weights.
    """
    rows, row_weights = bilinear_taps(picture.shape[0], size)
    columns, column_weights = bilinear_taps(picture.shape[1], size)
    # Along a row OpenCV gives an edge pixel the whole weight; down a column it splits the weight and truncates twice.
    at_edge = columns[0] == columns[1]
    column_weights[:, at_edge] = [[_FIXED_POINT], [0]]
    pixels = picture.astype(np.int32)
    near, far = column_weights[:, :, None]
    mixed = pixels[:, columns[0]] * near + pixels[:, columns[1]] * far
    near, far = row_weights[:, :, None, None]
    # OpenCV's VResizeLinear for uchar, shift for shift.
    above = ((mixed[rows[0]] >> 4) * near) >> 16
    below = ((mixed[rows[1]] >> 4) * far) >> 16
    resized: NDArray[np.uint8] = ((above + below + 2) >> 2).astype(np.uint8)
    return resized


def bilinear_taps(length: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """Return (2, size) source indices and (2, size) weights of the two taps of each output, rounded as OpenCV does."""
    centres = ((np.arange(size, dtype=np.float64) + 0.5) * (length / size) - 0.5).astype(np.float32)
    first = np.floor(centres)
    fraction = centres - first
    weights = np.rint(np.stack([np.float32(1) - fraction, fraction]) * _FIXED_POINT).astype(np.int32)
    return np.clip(np.stack([first, first + 1]).astype(np.intp), 0, length - 1), weights
