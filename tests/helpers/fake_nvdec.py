# ruff: noqa: N802, N815  (functions and fields have the names and the meaning of PyNvVideoCodec's)
"""A stand-in for PyNvVideoCodec whose frames lie on a simulated GPU.

It really decodes, with FFmpeg, what it is fed: packets in Annex B form, without any other parameter sets. It behaves as
PyNvVideoCodec 2.2.4 was seen to, its binary run over a made-up driver: an empty packet ends the stream, surfaces are
lent until the next call and then filled again from the first on, in the decoder's stream and without waiting for it;
views of an odd width have a padded column, those of an odd height lack chroma's last row, P016's strides are wrong.

Put it in place with `install(monkeypatch, fake)`, `fake` being the `FakeCuda` of helpers.fake_cuda.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from helpers import fake_kernels
from helpers.fake_cuda import exclusive, writes

if TYPE_CHECKING:
    import pytest
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

    from helpers.fake_cuda import FakeCuda

_FFMPEG = {"H264": "h264", "HEVC": "hevc", "VP8": "vp8", "VP9": "vp9", "AV1": "libdav1d"}
_SHIFTS = {"yuv420p": 0, "yuvj420p": 0, "yuv420p10le": 6, "yuv420p12le": 4}


class PyNvVCException(Exception):  # noqa: N818 - PyNvVideoCodec's name
    """What it raises for most of what fails."""


class PyNvVCExceptionUnsupported(Exception):  # noqa: N818 - PyNvVideoCodec's name
    """What it raises for what the GPU does not decode."""


class cudaVideoCodec(IntEnum):  # noqa: N801 - PyNvVideoCodec's name
    """Codecs."""

    H264, HEVC, VP8, VP9, AV1 = 4, 8, 9, 10, 11


@dataclass
class PacketData:
    """A packet: the address of its bytes, how many there are, and its times."""

    bsl_data: int = 0
    bsl: int = 0
    pts: int = 0
    dts: int = 0
    duration: int = 0
    key: int = 0
    decode_flag: int = 0
    bytes: bytes = b""  # for tests: what was at the address when it was fed


@dataclass
class DecodedFrame:
    """A frame in one of the decoder's surfaces."""

    timestamp: int
    format: Any
    views: list[Any]

    def getPTS(self) -> int:
        """Return its time."""
        return self.timestamp

    def GetPtrToPlane(self, plane: int) -> int:
        """Return the address of a plane."""
        return int(self.views[plane].dataptr)

    def cuda(self) -> list[Any]:
        """Return its views."""
        return self.views


def as_surface(frame: VideoFrame) -> NDArray[Any]:
    """Return a 4:2:0 frame as NV12 (uint8) or P016 (uint16): rows of luma, then of U and V interleaved."""
    shift = _SHIFTS[frame.format.name]
    dtype = np.uint16 if shift else np.uint8
    height, width = frame.height, frame.width
    below, half = (height + 1) // 2, (width + 1) // 2

    def plane(index: int, rows: int, columns: int) -> NDArray[Any]:
        stored = frame.planes[index]
        lines = np.frombuffer(bytes(stored), np.uint8).reshape(-1, stored.line_size)[:rows]
        samples: NDArray[Any] = lines.view(dtype)
        shifted: NDArray[Any] = np.left_shift(samples[:, :columns], shift)
        return shifted

    surface = np.full((height + below, 2 * half), 0x5A, dtype)
    surface[:height, :width] = plane(0, height, width)
    surface[height:, 0::2] = plane(1, below, half)
    surface[height:, 1::2] = plane(2, below, half)
    return surface


class Decoder:
    """What CreateDecoder returns."""

    def __init__(self, fakes: FakeNvdec, codec: cudaVideoCodec, stream: int, gpu: int) -> None:
        self._fakes, self._stream, self._gpu = fakes, stream, gpu
        self._context: Any = av.CodecContext.create(_FFMPEG[codec.name], "r")
        self._context.thread_count = 1
        self._surfaces: list[tuple[int, int]] = []
        fakes.open_decoders += 1

    def Decode(self, packet: PacketData) -> list[DecodedFrame]:
        """Decode a packet, or what is left if it is empty."""
        fakes = self._fakes
        fakes.packets.append(packet)
        if fakes.failure is not None:
            raise fakes.failure
        if not packet.bsl:
            frames = self._context.decode(None)
            self._context.flush_buffers()
        else:
            packet.bytes = ctypes.string_at(packet.bsl_data, packet.bsl)
            fed = av.Packet(packet.bytes)
            fed.pts = fed.dts = packet.pts
            frames = self._context.decode(fed)
        return [self._lend(slot, fakes.change(frame)) for slot, frame in enumerate(frames)]

    def _lend(self, slot: int, frame: VideoFrame) -> DecodedFrame:
        surface, cuda = as_surface(frame), self._fakes.cuda
        data = surface.tobytes()
        if slot == len(self._surfaces):
            self._surfaces.append((int(cuda.cudaMalloc(len(data))[1]), len(data)))
        pointer, _ = self._surfaces[slot]

        def fill() -> None:
            cuda.view(pointer, len(data), "decoder")[:] = np.frombuffer(data, np.uint8)

        accesses = (writes(pointer, len(data)), exclusive(("decoder", id(self))))
        cuda.launch(self._stream, fill, accesses=accesses, label="decoder's copy to a surface")
        item, width = surface.dtype.itemsize, surface.shape[1]
        below = pointer + frame.height * width * item
        views = [
            SimpleNamespace(shape=[frame.height, width, 1], stride=[width, 1, 1], dataptr=pointer),
            SimpleNamespace(shape=[frame.height // 2, width // 2, 2], stride=[width, 2, 1], dataptr=below),
        ]
        assert frame.pts is not None
        form = SimpleNamespace(name="P016" if item > 1 else "NV12")
        return DecodedFrame(self._fakes.times.get(frame.pts, frame.pts), form, views)

    def __del__(self) -> None:
        for pointer, _ in self._surfaces:
            self._fakes.cuda.cudaFree(pointer)
        self._fakes.open_decoders -= 1


@dataclass
class FakeNvdec:
    """The module, and what a test may do to it.

    Attributes:
        cuda: The simulated GPU.
        packets: Every packet that was fed.
        created: The arguments of every decoder that was made.
        failure: What Decode raises from now on.
        times: Times that come out in place of others.
        open_decoders: How many decoders are alive.
    """

    cuda: FakeCuda
    packets: list[PacketData] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    failure: Exception | None = None
    times: dict[int, int] = field(default_factory=dict)
    open_decoders: int = 0
    cudaVideoCodec: Any = cudaVideoCodec
    PacketData: Any = PacketData

    @staticmethod
    def change(frame: VideoFrame) -> VideoFrame:
        """Return what is handed out for a frame; a test may put another function here."""
        return frame

    def CreateDecoder(
        self,
        gpuid: int = 0,
        codec: cudaVideoCodec = cudaVideoCodec.H264,
        cudacontext: int = 0,
        cudastream: int = 0,
        usedevicememory: bool = False,
    ) -> Decoder:
        """Make a decoder."""
        self.created.append(
            {"gpuid": gpuid, "codec": codec, "cudastream": cudastream, "usedevicememory": usedevicememory}
        )
        assert cudacontext == 0, "the primary context is asked for by 0"
        assert usedevicememory, "frames are to stay on the GPU"
        return Decoder(self, codec, cudastream, gpuid)


def install(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> FakeNvdec:
    """Put it in place of PyNvVideoCodec, and let its frames be converted by kernels that run on the host."""
    fake = FakeNvdec(cuda)
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", fake)
    fake_kernels.install(monkeypatch, cuda)
    return fake
