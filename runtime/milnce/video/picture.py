"""From a decoded frame to an upright RGB picture of the wanted size.

Cropping, scaling and colour conversion are libavfilter's, the code the reference evaluation runs through ffmpeg's
command line, so pixels agree. The one exception is `bilinear`, which is OpenCV's.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.video.container import import_av

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from milnce.video.presets import Interpolation

Step = tuple[str, dict[str, str]]

_QUARTER, _HALF, _THREE_QUARTERS = 90, 180, 270

# The reference's crop: the centred square of side min(width, height).
SQUARE: Step = ("crop", {"w": "min(iw,ih)", "h": "min(iw,ih)", "x": "(iw-min(iw,ih))*0.5", "y": "(ih-min(iw,ih))*0.5"})

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

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return `frame` as uint8 (height, width, 3) RGB, upright."""
        matrix = display_matrix(frame)
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, matrix)
        if self._graph is None or key != self._key:
            self._graph, self._key = self._build(frame, matrix), key
        self._graph.vpush(frame)
        return np.ascontiguousarray(self._graph.vpull().to_ndarray(), dtype=np.uint8)

    def _build(self, frame: VideoFrame, matrix: tuple[int, ...] | None) -> Graph:
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
        steps = [*upright_steps(matrix), *self._steps, ("format", {"pix_fmts": "rgb24"})]
        nodes = [graph.add(name, **arguments) for name, arguments in steps]
        graph.link_nodes(source, *nodes, graph.add("buffersink"))
        graph.configure()
        return graph


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
