"""Opening a video file so that it can only be a video file.

FFmpeg reads playlists, opens URLs and other files they name, and knows hundreds of formats, picked by content and not
by suffix: a text file called `clip.mp4` may make it read another file. So, whatever a path points to:

1. we open the file ourselves and give PyAV a reader without a name: no protocol is chosen, no relative file found;
2. `format_whitelist` leaves five demuxers, none of which is a playlist;
3. `protocol_whitelist` names no protocol, and `io_open` refuses whatever a demuxer still asks for;
4. `codec_whitelist` and `max_pixels` are set on the codec context too, where decoding obeys them.

This limits what is reachable; it does not make FFmpeg's decoders safe. Decode untrusted files in a process that can be
thrown away.

A file that ends too early is refused as truncated: by its container's own structure (`milnce.video.integrity`), and,
where that is silent or wrong, because its frames end more than a second before the declared end. Damage inside a file
is an error where the demuxer or the decoder notices it in a range that is needed; VP9 and GIF can lose data unnoticed.
"""

from __future__ import annotations

import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from milnce.errors import MissingDependencyError, VideoError
from milnce.platforms import install
from milnce.video.integrity import truncation

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif"
CONTAINERS_FOR_PEOPLE = "MP4, MOV, MKV, WebM, AVI and GIF"

# Decoder names as the pinned builds have them: AV1 is libdav1d or av1, VP8 and VP9 are native or libvpx.
DECODERS = ("h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "libdav1d", "av1", "mpeg4", "mjpeg", "gif")

# 4096 x 4096: as far as FFmpeg's own fuzzers go (tools/target_dec_fuzzer.c). Nobody vouches for more.
MAX_PIXELS = 4096 * 4096
MAX_STREAMS = 16
PROBE_BYTES = 5_000_000
PROBE_DURATION_US = 5_000_000
READ_BUFFER_BYTES = 256 * 1024


def nothing() -> None:
    """Do nothing, where nobody wants to be told of progress."""


class _Reader:
    """The three methods PyAV needs, and no `name`: FFmpeg would take a name for a URL."""

    def __init__(self, file: BinaryIO, on_progress: Callable[[], None] = nothing) -> None:
        self._file = file
        self._on_progress = on_progress

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._on_progress()
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@dataclass(frozen=True)
class OpenVideo:
    """A video file, opened.

    Attributes:
        path: The file.
        container: PyAV's container, closed by `open_video`.
        stream: Its best video stream, its decoder restricted and multi-threaded.
        format: The demuxer: "mp4" (also MOV), "matroska" (also WebM), "avi" or "gif".
        time_base: Seconds a tick of the stream's clock.
        origin: The stream's first tick. Times in milnce are relative to it.
        rate: Nominal frames a second, or None where the file does not say.
        on_progress: Called whenever something was read or a frame came out.
    """

    path: Path
    container: InputContainer
    stream: VideoStream
    format: str
    time_base: Fraction
    origin: int
    rate: Fraction | None
    on_progress: Callable[[], None] = field(compare=False, repr=False)


def import_av() -> Any:  # noqa: ANN401 - a module
    """Import PyAV.

    Raises:
        MissingDependencyError: if it is not installed, or does not load.
    """
    try:
        import av  # noqa: PLC0415 - `import milnce` must not load it
    except ImportError as error:
        raise MissingDependencyError(
            f"videos are decoded with PyAV, which cannot be imported ({error}); run: {install('video')}"
        ) from error
    return av


@contextmanager
def as_video_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn whatever FFmpeg raises inside into a VideoError that names the file."""
    av = import_av()
    try:
        yield
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: {doing} failed ({type(error).__name__}: {reason}); the file is damaged or not a video in one of"
            f" {CONTAINERS_FOR_PEOPLE}. Copy it again, or convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
        ) from error


@contextmanager
def open_video(
    path: str | os.PathLike[str], *, threads: int = 0, on_progress: Callable[[], None] = nothing
) -> Iterator[OpenVideo]:
    """Open a local video file for decoding; close it on leaving, whatever happened.

    Args:
        path: The video file.
        threads: Threads of the decoder; 0 leaves the number to FFmpeg, which takes one a core.
        on_progress: Called whenever something was read or a frame came out: what is not called for long, hangs.

    Raises:
        VideoError: if there is no such file, it is not a whole video in one of the known containers, has no video
            stream, or its codec or size is refused.
        MissingDependencyError: if PyAV is not installed.
    """
    path = Path(path)
    av = import_av()
    with _open_file(path) as file:
        cut = truncation(file, on_progress)
        if cut is not None:
            raise VideoError(f"{path}: truncated, {cut}; copy or download it again")
        file.seek(0)
        with as_video_errors(path, "opening"):
            container = av.open(_Reader(file, on_progress), mode="r", **_open_arguments(av))
        try:
            stream = _restricted_stream(path, container)
            stream.codec_context.thread_count = threads
            yield _describe(path, container, stream, on_progress)
        finally:
            container.close()


def _open_file(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        # Before opening: to open a pipe waits for its writer.
        file = path.open("rb") if stat.S_ISREG(status.st_mode) and status.st_size else None
    except FileNotFoundError as error:
        raise VideoError(f"{path}: no such file; check the path (addresses are not opened: download first)") from error
    except PermissionError as error:
        raise VideoError(f"{path}: permission denied; make it readable for this user") from error
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be opened ({error}); check the path") from error
    if file is not None:
        return file
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path}: a directory, not a video file; find_videos lists the videos in a directory")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path}: not a regular file (a device, pipe or socket); give a video file")
    raise VideoError(f"{path}: empty (0 bytes); copy or download it again")


def _open_arguments(av: Any) -> dict[str, Any]:  # noqa: ANN401 - a module
    arguments: dict[str, Any] = {
        "options": {
            "format_whitelist": FORMATS,
            "protocol_whitelist": "none",  # a list that matches nothing: an empty one could be read as "no list"
            # For the decoders that FFmpeg itself opens while it looks for the streams' parameters.
            "codec_whitelist": ",".join(DECODERS),
            "max_streams": str(MAX_STREAMS),
            "probesize": str(PROBE_BYTES),
            "analyzeduration": str(PROBE_DURATION_US),
        },
        "io_open": _refuse_to_open,
        "buffer_size": READ_BUFFER_BYTES,
    }
    if int(av.__version__.partition(".")[0]) < 19:  # noqa: PLR2004 - PyAV 19 dropped the argument, and the need for it
        arguments["metadata_errors"] = "replace"
    return arguments


def _refuse_to_open(url: str, flags: int, options: object) -> NoReturn:  # noqa: ARG001 - PyAV's signature
    raise PermissionError(f"a video may not open other files or addresses; it asked for {url!r}")


def _restricted_stream(path: Path, container: InputContainer) -> VideoStream:
    from av.stream import Disposition  # noqa: PLC0415 - av is imported by now, and only now

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoError(f"{path}: no video stream (it holds: {kinds}); give a file with moving pictures")
    best = container.streams.best("video")
    stream = next((each for each in streams if best is not None and each.index == best.index), streams[0])
    context: VideoCodecContext | None = stream.codec_context  # None where the build has no decoder at all
    if context is None or context.name not in DECODERS:
        codec = "unknown" if context is None else context.name
        raise VideoError(
            f"{path}: codec {codec} is refused; milnce decodes {', '.join(DECODERS)}."
            " Convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
        )
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(
            f"{path}: pictures of {context.width}x{context.height} are refused, at most {MAX_PIXELS} pixels are taken."
            " Scale it down: ffmpeg -i INPUT -vf scale=1280:-2 OUTPUT.mp4"
        )
    # Only here are they obeyed while decoding (av.open's options end with probing): this also covers a size that
    # changes in the middle of a stream.
    context.options = {"codec_whitelist": ",".join(DECODERS), "max_pixels": str(MAX_PIXELS)}
    context.thread_type = "AUTO"
    return stream


def _describe(path: Path, container: InputContainer, stream: VideoStream, on_progress: Callable[[], None]) -> OpenVideo:
    time_base = stream.time_base
    if time_base is None or time_base <= 0:
        raise VideoError(f"{path}: the video stream has no clock; convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4")
    names = set(container.format.name.split(","))
    name = next(known for known in ("mp4", "matroska", "avi", "gif") if known in names)
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    origin = stream.start_time if stream.start_time is not None else 0
    fps = Fraction(rate) if rate else None
    return OpenVideo(path, container, stream, name, Fraction(time_base), origin, fps, on_progress)
