"""FFmpeg's packets through NVIDIA's decoder, into frames that stay on the GPU.

PyNvVideoCodec's core decoder takes packets with their times and hands frames out with the same times, in the order they
are shown. It lends its surfaces until it is fed again, so each is copied, in the stream that the decoder works in.

Facts of PyNvVideoCodec 2.2.4, as its binary does it: views of P016 count strides in samples, an odd width has a column
of padding, and the views of an odd height leave the last row of chroma out; so only their addresses are believed.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from milnce.errors import VideoError
from milnce.video.nvdec_picture import refused

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

    from milnce.cuda import Cuda, DeviceBuffer, Stream
    from milnce.video.container import OpenVideo
    from milnce.video.nvdec_picture import Source

# Decoders of FFmpeg's, by the codec that NVIDIA's decoder knows them as.
CODECS = {
    "h264": "H264",
    "hevc": "HEVC",
    "vp8": "VP8",
    "libvpx": "VP8",
    "vp9": "VP9",
    "libvpx-vp9": "VP9",
    "libdav1d": "AV1",
    "av1": "AV1",
}
# Start codes in place of lengths, and the parameter sets before every keyframe: a seek may land on any of them.
_FILTERS = {
    "H264": "h264_mp4toannexb,dump_extra=freq=keyframe",
    "HEVC": "hevc_mp4toannexb,dump_extra=freq=keyframe",
}
_CONTAINERS = ("mp4", "matroska")
# More packets than any decoder holds back: those without a frame by now have none (VP8 and VP9 hide some).
_WAITING_PACKETS = 256


@dataclass(frozen=True, eq=False)
class DeviceFrame:
    """A decoded frame in device memory that is its own.

    Attributes:
        pts: Its time, in ticks.
        duration: How long it is shown, in ticks; 0 where the file does not say.
        luma: Address of its luma.
        chroma: Address of its chroma, U and V interleaved.
        pitch: Bytes from one row of either to the next.
    """

    pts: int
    duration: int
    luma: int
    chroma: int
    pitch: int


@dataclass(frozen=True)
class _Fed:
    """What a packet said of the frame in it."""

    duration: int
    discarded: bool


class Pool:
    """Device buffers of one size, used again when the object that holds one is forgotten.

    All work on them is in one stream, so a buffer may be filled again while what reads it is still queued.
    """

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda = cuda
        self.nbytes = nbytes
        self._free: list[DeviceBuffer] = []
        self._all: list[DeviceBuffer] = []

    def take(self) -> DeviceBuffer:
        """Return a buffer that nothing holds.

        Raises:
            DeviceMemoryError: if there is none and no more can be allocated.
        """
        if self._free:
            return self._free.pop()
        buffer = self._cuda.device_buffer(self.nbytes)
        self._all.append(buffer)
        return buffer

    def lend(self, holder: object, buffer: DeviceBuffer) -> None:
        """Let a buffer be taken again when `holder` is forgotten."""
        weakref.finalize(holder, self._free.append, buffer)

    def close(self) -> None:
        """Free them all."""
        self._free.clear()
        for buffer in self._all:
            buffer.close()
        self._all.clear()


@dataclass
class NvdecDecoder:
    """A `PacketDecoder` for one video, over PyNvVideoCodec.

    Attributes:
        module: PyNvVideoCodec.
        video: The video.
        source: How its pictures are stored.
        cuda: The GPU.
        stream: What the decoder and all that uses its frames work in.
    """

    module: Any
    video: OpenVideo
    source: Source
    cuda: Cuda
    stream: Stream
    _fed: dict[int, deque[_Fed]] = field(default_factory=dict)
    _from_pts: int | None = None
    _pool: Pool | None = None

    def __post_init__(self) -> None:
        codec = codec_of(self.video)
        self._decoder = self._guarded(
            "opening",
            self.module.CreateDecoder,
            gpuid=self.cuda.info.index,
            codec=getattr(self.module.cudaVideoCodec, codec),
            cudastream=self.stream.handle,
            usedevicememory=True,
        )
        self._filter = _bitstream_filter(self.video, codec)

    def decode(self, packet: Packet[VideoStream]) -> list[DeviceFrame]:
        """Return the frames that are complete, in the order they are shown."""
        if not packet.size:
            return self._frames(None)
        if packet.pts is None:
            raise refused(self.video.path, "one of its packets has no time")
        if packet.has_sidedata("new_extradata"):
            raise refused(self.video.path, "its format changes on the way")
        if self._from_pts is None:
            self._from_pts = packet.pts
        self._note(packet.pts, _Fed(packet.duration or 0, packet.is_discard))
        pts = packet.pts
        frames: list[DeviceFrame] = []
        # The filter takes the packet over: its fields are read by now.
        for each in [packet] if self._filter is None else self._filter.filter(packet):
            data = self.module.PacketData()
            data.bsl_data, data.bsl, data.pts = each.buffer_ptr, each.size, pts
            frames += self._frames(data)
        return frames

    def restart(self) -> None:
        """Forget what was fed."""
        # An empty packet ends a stream: what was held back comes out, and the next packet begins another.
        self._guarded("winding", self._decoder.Decode, self.module.PacketData())
        self._fed.clear()
        self._from_pts = None
        if self._filter is not None:
            self._filter.flush()

    def close(self) -> None:
        """Give the decoder and the frames' memory back, when the stream has done all work with them."""
        del self._decoder
        if self._pool is not None:
            self._pool.close()

    def _note(self, pts: int, fed: _Fed) -> None:
        self._fed.setdefault(pts, deque()).append(fed)
        while len(self._fed) > _WAITING_PACKETS:
            del self._fed[next(iter(self._fed))]

    def _frames(self, data: Any) -> list[DeviceFrame]:  # noqa: ANN401 - the module has no types
        """Feed a packet, or the end, and copy what comes out before the decoder is fed again."""
        data = self.module.PacketData() if data is None else data
        decoded = self._guarded("decoding", self._decoder.Decode, data)
        copies = []
        for frame in decoded:
            pts = int(frame.getPTS())
            waiting = self._fed.get(pts)
            if not waiting:
                raise refused(self.video.path, f"it gave a picture of a time that was not asked of it (tick {pts})")
            fed = waiting.popleft()
            if not waiting:
                del self._fed[pts]
            # What is shown before the keyframe that the decoder began with refers to pictures it never saw.
            if not fed.discarded and (self._from_pts is None or pts >= self._from_pts):
                copies.append(self._copy(frame, pts, fed.duration))
        return copies

    def _copy(self, frame: Any, pts: int, duration: int) -> DeviceFrame:  # noqa: ANN401 - the module has no types
        source = self.source
        pitch = (source.width + source.width % 2) * (2 if source.wide else 1)
        above, nbytes = pitch * source.height, pitch * (source.height + -(-source.height // 2))
        luma, chroma = int(frame.GetPtrToPlane(0)), int(frame.GetPtrToPlane(1))
        shape = [int(length) for length in frame.cuda()[0].shape[:2]]
        stored = [source.height, source.width + source.width % 2]
        expected = "P016" if source.wide else "NV12"
        if frame.format.name != expected or shape != stored or chroma - luma != above:
            raise refused(
                self.video.path,
                f"it gave {frame.format.name} pictures of {shape[1]}x{shape[0]} where {expected} of "
                f"{stored[1]}x{stored[0]} were expected, in one piece",
            )
        if self._pool is None:
            self._pool = Pool(self.cuda, nbytes)
        buffer = self._pool.take()
        self.cuda.copy(buffer.pointer, luma, nbytes, self.stream)
        copied = DeviceFrame(pts, duration, buffer.pointer, buffer.pointer + above, pitch)
        self._pool.lend(copied, buffer)
        return copied

    def _guarded(self, doing: str, function: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - no types
        """Call PyNvVideoCodec and turn what it raises into a VideoError that names the file."""
        self.cuda.activate()
        try:
            return function(*args, **options)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            told = next((line.partition(":")[2].strip() for line in lines if line.startswith("Error Type")), None)
            reason = told or (lines[0] if lines else type(error).__name__)
            raise VideoError(
                f"{self.video.path}: {doing} with NVIDIA's decoder failed ({reason}); the file is damaged, or this GPU "
                'does not decode it: try decoder="cpu"'
            ) from error


def codec_of(video: OpenVideo) -> str:
    """Return NVIDIA's name of a video's codec.

    Raises:
        VideoError: if its container or codec is left to the CPU.
    """
    name = video.stream.codec_context.name
    if video.format not in _CONTAINERS:
        raise refused(video.path, f"it is {video.format.upper()}, whose packets have no times of their own")
    if name not in CODECS:
        raise refused(video.path, f"its codec is {name}; {', '.join(sorted(set(CODECS.values())))} are decoded there")
    return CODECS[name]


def _bitstream_filter(video: OpenVideo, codec: str) -> Any:  # noqa: ANN401 - PyAV's, or None
    from av.bitstream import BitStreamFilterContext  # noqa: PLC0415 - av is imported by now, and only now

    name = _FILTERS.get(codec)
    return None if name is None else BitStreamFilterContext(name, in_stream=video.stream)
