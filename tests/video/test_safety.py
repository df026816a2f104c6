"""Each control against hostile files bites, and the same files do harm to one who opens them plainly."""

from __future__ import annotations

import os
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import pytest

from helpers.videos import make_video, numbered, read_numbers
from milnce.errors import VideoError
from milnce.video import Preset, container, iter_windows, probe_video, read_frame

if TYPE_CHECKING:
    from pathlib import Path

ALL = Preset("all", 25.0, 20, 1, None, size=64)


def plain_frames(path: Path) -> int:
    """Count the frames that a careless `av.open` gets out of a file."""
    with av.open(str(path)) as opened:
        return sum(1 for _ in opened.decode(video=0))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A video that no other file should make us read."""
    return make_video(tmp_path / "secret.mp4", frames=20)


def concat(folder: Path) -> Path:
    path = folder / "upload.mp4"
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    return path


def playlist(folder: Path) -> Path:
    with av.open(str(folder / "secret.mp4")) as source, av.open(str(folder / "segment.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    path = folder / "upload.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nsegment.ts\n#EXT-X-ENDLIST\n")
    return path


@pytest.mark.parametrize("make", [concat, playlist])
def test_a_playlist_reads_another_file_plainly_and_is_refused_here(make: Any, secret: Path, tmp_path: Path) -> None:  # noqa: ANN401 - a function
    path = make(tmp_path)
    assert secret.exists()
    assert plain_frames(path) == 20, "the hostile file is not hostile: this test would prove nothing"
    for use in (probe_video, lambda p: next(iter_windows(p, ALL)), lambda p: read_frame(p, 0)):
        with pytest.raises(VideoError, match=r"upload\.\w+: opening failed .* not a video in one of MP4, MOV"):
            use(path)


@pytest.mark.parametrize("suffix", [".ts", ".flv", ".nut"])
def test_other_containers_are_refused_by_content_not_by_name(suffix: str, tmp_path: Path) -> None:
    other = make_video(tmp_path / f"other{suffix}", frames=20)
    disguised = other.rename(tmp_path / "video.mp4")
    assert plain_frames(disguised) == 20
    with pytest.raises(VideoError, match=r"video\.mp4: opening failed .*ffmpeg -i INPUT -c:v libx264 OUTPUT\.mp4"):
        probe_video(disguised)


def test_the_protocol_list_refuses_what_the_format_list_would_let_through(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "FORMATS", container.FORMATS + ",concat,hls,mpegts")
    monkeypatch.setattr(container, "_refuse_to_open", lambda url, flags, options: open(url, "rb"))  # noqa: ARG005, PTH123, SIM115 - PyAV's signature
    monkeypatch.chdir(tmp_path)
    path = concat(tmp_path)
    assert plain_frames(path) == 20
    with pytest.raises(VideoError, match=r"upload\.mp4: "):
        probe_video(path)
    assert secret.exists()


def test_the_reader_has_no_name_that_ffmpeg_could_take_for_an_address(secret: Path) -> None:
    with secret.open("rb") as file:
        reader = container._Reader(file)  # noqa: SLF001 - the property that counts has no other way to be seen
        assert not hasattr(reader, "name")
        assert reader.read(8)[4:] == b"ftyp"
    with container.open_video(secret) as video:
        assert "secret" not in str(video.container.name)


def test_a_codec_off_the_list_is_named_and_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "lossless.mkv", frames=20, codec="ffv1")
    assert plain_frames(path) == 20
    with pytest.raises(VideoError, match=r"lossless\.mkv: codec ffv1 is refused; milnce decodes h264, hevc, .*gif"):
        probe_video(path)


def test_the_decoder_itself_obeys_the_codec_list(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Everything(tuple[str, ...]):
        __slots__ = ()

        def __contains__(self, name: object) -> bool:
            return True

    monkeypatch.setattr(container, "DECODERS", Everything(("vp9",)))  # our own check passes; FFmpeg is told: only VP9
    with pytest.raises(VideoError, match=r"secret\.mp4: decoding after 0.000 s failed"):
        probe_video(secret)


def test_pictures_beyond_the_limit_are_refused_with_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "big.mp4", frames=20, size=(640, 480))
    assert probe_video(path).width == 640
    monkeypatch.setattr(container, "MAX_PIXELS", 640 * 480 - 1)
    with pytest.raises(VideoError, match=r"big\.mp4: pictures of 640x480 are refused, at most 307199 pixels are taken"):
        probe_video(path)


def growing(path: Path) -> Path:
    """Write a WebM whose pictures grow in the middle of the stream, behind a header that says 96x64."""
    with av.open(str(path), "w") as target:
        stream: Any = None
        for part, (width, height) in enumerate([(96, 64), (640, 480)]):
            encoder: Any = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            encoder.options = {"deadline": "realtime", "cpu-used": "8", "b": "2M"}
            if stream is None:
                stream = target.add_stream("libvpx", rate=25)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            packets = []
            for number in range(10):
                frame = av.VideoFrame.from_ndarray(numbered(part * 10 + number, width, height), "rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = part * 10 + number, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode()]:
                packet.stream = stream
                packet.time_base = Fraction(1, 25)
                target.mux(packet)
    return path


def test_a_size_that_changes_midway_is_followed_up_to_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = growing(tmp_path / "growing.webm")
    (window,) = iter_windows(path, ALL)
    assert read_numbers(window.clip) == list(range(20))
    monkeypatch.setattr(container, "MAX_PIXELS", 100_000)
    assert probe_video(path).width == 96, "the header alone is within the limit"
    with pytest.raises(VideoError, match=r"growing\.webm: decoding after 0\.3\d\d s failed"):
        list(iter_windows(path, ALL))


def test_addresses_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"no such file; check the path \(addresses are not opened: download first\)"):
        probe_video("http://127.0.0.1:9/video.mp4")
    with pytest.raises(VideoError, match=r"/dev/zero: not a regular file \(a device, pipe or socket\)"):
        probe_video("/dev/zero")
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    with pytest.raises(VideoError, match=r"pipe\.mp4: not a regular file"):
        probe_video(tmp_path / "pipe.mp4")


def test_an_mp4_may_not_keep_its_pictures_in_another_file(secret: Path, tmp_path: Path) -> None:
    data = bytearray(make_video(tmp_path / "reference.mp4", frames=20).read_bytes())
    url = data.index(b"url ")
    assert data[url + 4 : url + 8] == b"\x00\x00\x00\x01"
    data[url + 7] = 0  # "the data are elsewhere"
    path = tmp_path / "elsewhere.mp4"
    path.write_bytes(data)
    assert secret.exists()
    (window,) = iter_windows(path, ALL)  # FFmpeg keeps to the file it has (enable_drefs is off)
    assert read_numbers(window.clip) == list(range(20))
