"""Decoding with NVIDIA's decoder: windows whose clips never leave the GPU.

Windows, slots and times are those of `milnce.video.windows`, from the same code: FFmpeg opens the file, checks it and
takes it apart, NVIDIA's decoder (PyNvVideoCodec, the extra `nvdec`) decodes its packets, and one kernel makes pictures
of the frames. Pixels differ from the CPU's by rounding (`milnce.video.nvdec_picture.TOLERANCE`).

It has not run on hardware yet. Its parts are tested on a CPU: the kernel's own source against libavfilter, the rest
over simulated modules.

Left to the CPU, with an error that says so: containers other than MP4, MOV, Matroska and WebM; codecs other than H.264,
HEVC, VP8, VP9 and AV1; pictures that are not 4:2:0 of 8, 10 or 12 bits; interlaced ones; turns by odd angles. Not
noticed, where the CPU's decoder would: damage inside a picture (PyNvVideoCodec hides it), a size that shrinks in the
middle of a stream.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce import cuda_kernels
from milnce.cuda import gpus
from milnce.device_arrays import DeviceArray
from milnce.errors import CudaUnavailableError, MilnceError, MissingDependencyError, VideoError
from milnce.platforms import install
from milnce.video.container import import_av, nothing, open_video
from milnce.video.decode import FrameReader
from milnce.video.nvdec_decoder import NvdecDecoder, Pool, codec_of
from milnce.video.nvdec_picture import BLOCK, KERNEL, Geometry, Source, source
from milnce.video.windows import Studio, checked, sample

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from milnce.cuda import Cuda, DeviceBuffer, Stream
    from milnce.video.container import OpenVideo
    from milnce.video.decode import TimedFrame
    from milnce.video.presets import Preset
    from milnce.video.windows import Sampled


@dataclass(frozen=True, eq=False)
class DeviceWindow:
    """One window of a video, as `milnce.video.windows.Window` but on the GPU.

    Attributes:
        index: 0 for the first window of the file.
        start_s: Where it starts, in seconds from the video's start.
        end_s: Where it ends. Beyond the video's end when the clip was padded.
        video_s: Seconds that the whole video lasts.
        clip: uint8 (frames, size, size, 3) RGB on the GPU, complete (no stream to wait for), in memory of its own.
    """

    index: int
    start_s: float
    end_s: float
    video_s: float
    clip: DeviceArray


def problem() -> str | None:
    """Say why NVIDIA's decoder cannot be used here, with the cure, or None if it can."""
    try:
        gpus()
        import_av()
        decoder_module()
        cuda_kernels.compiler()
    except MilnceError as error:
        return str(error)
    return None


def decoder_module() -> Any:  # noqa: ANN401 - the module has no types
    """Import PyNvVideoCodec.

    Raises:
        MissingDependencyError: if it is not installed.
        CudaUnavailableError: if it does not load: NVIDIA's driver has no video libraries here, or is too old.
    """
    try:
        return importlib.import_module("PyNvVideoCodec")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"NVIDIA's decoder is used through PyNvVideoCodec, which is not installed ({error}); {install('nvdec')}"
        ) from error
    except Exception as error:  # it raises RuntimeError with a page of advice
        reason = str(error).strip().partition("\n")[0]
        raise CudaUnavailableError(
            f"PyNvVideoCodec is installed and does not load: {reason}; it needs the video libraries of NVIDIA's driver "
            "(in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
        ) from error


def iter_device_windows(
    path: str | os.PathLike[str],
    preset: Preset | str,
    *,
    cuda: Cuda,
    start_s: float | None = None,
    end_s: float | None = None,
    on_progress: Callable[[], None] = nothing,
) -> Generator[DeviceWindow, None, None]:
    """Decode a video's windows on the GPU, one by one, in order. See `milnce.video.windows.iter_windows`.

    Device memory does not depend on the video's length: a few decoded frames, the pictures of the windows under way,
    and the clips that the caller holds.

    Args:
        path: The video file.
        preset: A `Preset`, or the name of one.
        cuda: The GPU to decode on.
        start_s: Start of the range in seconds; None is the video's start.
        end_s: End of the range in seconds; None is the video stream's end.
        on_progress: Called whenever something was read from the file or a frame came out.

    Yields:
        `DeviceWindow`s.

    Raises:
        InputError: if there is no such preset, or a time is no finite number of at least 0.
        RangeError: if the range is not inside this video, or is empty.
        VideoError: if the file cannot be decoded as far as needed, or is refused, or left to the CPU.
        MissingDependencyError: if PyAV or PyNvVideoCodec is not installed.
        CudaUnavailableError: if PyNvVideoCodec or NVRTC does not load.
        DeviceMemoryError: if there is not enough device memory.
    """
    chosen = checked(preset, start_s, end_s)
    return _windows(path, chosen, (start_s, end_s), cuda, on_progress)


def _windows(
    path: str | os.PathLike[str],
    preset: Preset,
    span_s: tuple[float | None, float | None],
    cuda: Cuda,
    on_progress: Callable[[], None],
) -> Generator[DeviceWindow, None, None]:
    module = decoder_module()
    with cuda.stream() as stream, ExitStack() as held:
        held.callback(stream.synchronize)  # before anything that it may still use is freed
        darkroom = _Darkroom(cuda, stream, module, preset)
        windows = held.enter_context(closing(sample(path, preset, span_s, darkroom.studio, on_progress=on_progress)))
        for window in windows:
            yield DeviceWindow(window.index, window.start_s, window.end_s, window.video_s, darkroom.clip(window))


@dataclass(frozen=True, eq=False)
class _DevicePicture:
    """A picture (size, size, 3) in device memory."""

    pointer: int


class _Darkroom:
    """Makes pictures and clips on a GPU, all in one stream."""

    def __init__(self, cuda: Cuda, stream: Stream, module: Any, preset: Preset) -> None:  # noqa: ANN401 - no types
        self._cuda = cuda
        self._stream = stream
        self._module = module
        self._preset = preset
        self._picture_bytes = preset.size * preset.size * 3

    @contextmanager
    def studio(self, video: OpenVideo, preset: Preset) -> Iterator[Studio[_DevicePicture]]:
        """Decode and convert on the GPU."""
        codec_of(video)
        stored = _describe(video.path)
        geometry = Geometry(video.path, stored, preset)
        kernel = cuda_kernels.kernel(self._cuda, source(), KERNEL)
        pool = Pool(self._cuda, self._picture_bytes)
        grid = (-(-preset.size // BLOCK[0]), -(-preset.size // BLOCK[1]))
        with ExitStack() as held:
            tables, addresses = self._upload(geometry)
            held.callback(tables.close)
            held.callback(pool.close)
            decoder = NvdecDecoder(self._module, video, stored, self._cuda, self._stream)
            held.callback(decoder.close)
            held.callback(self._stream.synchronize)

            def make(shown: TimedFrame) -> _DevicePicture:
                frame, buffer = shown.frame, pool.take()
                picture = _DevicePicture(buffer.pointer)
                pool.lend(picture, buffer)
                job = geometry.picture(frame.luma, frame.chroma, frame.pitch, addresses, picture.pointer)
                kernel.launch(self._stream, job, grid, BLOCK)
                return picture

            yield Studio(FrameReader(video, decoder), make)

    def _upload(self, geometry: Geometry) -> tuple[DeviceBuffer, list[tuple[int, int]]]:
        """Put the tables on the GPU; return their memory, and the address of each one's two parts."""
        parts = [np.ascontiguousarray(part) for table in geometry.tables for part in table]
        buffer = self._cuda.device_buffer(sum(part.nbytes for part in parts))
        addresses, at = [], buffer.pointer
        for part in parts:
            self._cuda.upload(at, part.ctypes.data, part.nbytes, self._stream)
            addresses.append(at)
            at += part.nbytes
        self._stream.synchronize()  # the host's copies go now
        return buffer, list(zip(addresses[::2], addresses[1::2], strict=True))

    def clip(self, window: Sampled[_DevicePicture]) -> DeviceArray:
        """Put a window's pictures together, padded as the preset says, and wait until that is done."""
        size, frames = self._preset.size, self._preset.frames
        buffer = self._cuda.device_buffer(frames * self._picture_bytes)
        slots = window.slots()
        for slot, picture in enumerate(slots):
            place = buffer.pointer + slot * self._picture_bytes
            self._cuda.copy(place, picture.pointer, self._picture_bytes, self._stream)
        filled = len(slots) * self._picture_bytes
        if filled < buffer.nbytes:
            self._cuda.fill(buffer.pointer + filled, 0, buffer.nbytes - filled, self._stream)
        self._stream.synchronize()
        return DeviceArray(
            buffer.pointer,
            (frames, size, size, 3),
            np.dtype(np.uint8),
            device=self._cuda.info.index,
            owner=buffer,
        )


def _describe(path: Path) -> Source:
    """Decode the first frame on the CPU: it says all of a video's pictures that packets do not."""
    with open_video(path, threads=1) as video:
        first = FrameReader(video).read()
        if first is None:
            raise VideoError(f"{path}: no frame can be decoded; copy or download it again")
        return Source.of(path, first.frame)
