"""Bad files: a typed error that names the file and the cure, never a shorter success; and nothing left open."""

from __future__ import annotations

import builtins
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import av
import pytest

from helpers.videos import make_audio, make_video, read_numbers, truncate
from milnce.errors import MilnceError, MissingDependencyError, VideoError
from milnce.video import Preset, iter_windows, probe_video, read_frame
from milnce.video.container import nothing, open_video
from milnce.video.decode import FrameReader
from milnce.video.integrity import truncation

if TYPE_CHECKING:
    from collections.abc import Callable

SUFFIXES = [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"]
EVERYTHING = Preset("everything", 25.0, 100, None, 100, size=32)


def decode_all(path: Path) -> list[int | None]:
    return [number for window in iter_windows(path, EVERYTHING) for number in read_numbers(window.clip)]


def directory(folder: Path) -> Path:
    (folder / "folder.mp4").mkdir()
    return folder / "folder.mp4"


def empty(folder: Path) -> Path:
    (folder / "empty.mp4").write_bytes(b"")
    return folder / "empty.mp4"


def text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("not a video at all\n" * 100)
    return folder / "text.mp4"


def header_only(folder: Path) -> Path:
    return truncate(make_video(folder / "header.gif", frames=5), 0.01)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "missing.mp4", r"missing\.mp4: no such file; check the path"),
    "directory": (directory, r"folder\.mp4: a directory, not a video file; find_videos lists the videos"),
    "empty": (empty, r"empty\.mp4: empty \(0 bytes\); copy or download it again"),
    "text": (
        text,
        r"text\.mp4: opening failed .* is damaged or not a video in one of MP4, MOV, MKV, WebM, AVI and GIF",
    ),
    "audio": (lambda folder: make_audio(folder / "sound.mp4"), r"sound\.mp4: no video stream \(it holds: audio\)"),
    "audio in mkv": (lambda folder: make_audio(folder / "sound.mkv"), r"sound\.mkv: no video stream"),
    "header": (header_only, r"header\.gif: (truncated|opening failed)"),
    "null byte": (lambda folder: folder / "a\0b.mp4", r"cannot be opened \(.*embedded null (byte|character)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_cure(name: str, tmp_path: Path) -> None:
    make, message = BAD[name]
    path = make(tmp_path)
    uses: list[Callable[[Path], Any]] = [probe_video, decode_all, lambda file: read_frame(file, 0)]
    for use in uses:
        with pytest.raises(VideoError, match=message):
            use(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "private.mp4", frames=5)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so the mode would not do
    with pytest.raises(VideoError, match=r"private\.mp4: permission denied; make it readable for this user"):
        probe_video(path)


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    cover = make_video(tmp_path / "cover.avi", frames=1, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(cover)) as source, av.open(str(path), "w") as target:
        stream: Any = target.add_stream_from_template(source.streams.video[0])
        stream.disposition = av.stream.Disposition.attached_pic
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with av.open(str(path)) as written:
        assert written.streams.video[0].disposition & av.stream.Disposition.attached_pic
    with pytest.raises(VideoError, match=r"song\.mp4: no video stream"):
        probe_video(path)


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.75, 0.9, 0.97, 0.995])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_never_looks_like_a_shorter_video(suffix: str, keep: float, tmp_path: Path) -> None:
    path = make_video(tmp_path / f"cut{suffix}", frames=200)
    assert decode_all(path) == list(range(200))
    truncate(path, keep)
    for use in (probe_video, decode_all):
        with pytest.raises(VideoError, match=rf"cut{suffix}: (truncated, |opening failed )"):
            use(path)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_an_mp4_with_its_index_in_front_is_truncated_too(keep: float, tmp_path: Path) -> None:
    path = make_video(tmp_path / "front.mp4", frames=200, container_options={"movflags": "faststart"})
    truncate(path, keep)
    with pytest.raises(VideoError, match=r"front\.mp4: truncated, its 'mdat' part should end at byte \d+ and the file"):
        decode_all(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
def test_a_file_whose_tail_never_arrived_is_truncated_though_its_size_is_right(suffix: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / f"torrent{suffix}", frames=300, container_options={"movflags": "faststart"})
    data = path.read_bytes()
    kept = int(len(data) * 0.6)
    path.write_bytes(data[:kept] + bytes(len(data) - kept))
    with pytest.raises(
        VideoError, match=rf"torrent{suffix}: (truncated, its frames end at|decoding after|the picture at)"
    ):
        decode_all(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_damage_in_the_needed_range_is_an_error_and_outside_it_is_not(suffix: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / f"hole{suffix}", frames=300, gop=25)
    data = bytearray(path.read_bytes())
    hole = slice(len(data) // 2, len(data) // 2 + len(data) // 8)
    data[hole] = bytes(len(data) // 8)
    path.write_bytes(data)
    with pytest.raises(VideoError, match=rf"hole{suffix}: (decoding after|the picture at|damaged)"):
        decode_all(path)
    (window,) = iter_windows(path, Preset("early", 25.0, 25, 1, None, size=32), end_s=2.0)
    assert read_numbers(window.clip) == list(range(25))


def test_a_last_picture_that_was_cut_is_an_error_though_its_decoder_is_content(tmp_path: Path) -> None:
    # The last part of an MP4 may leave its size open, so the structure cannot tell; a JPEG decoder fills up what lacks.
    path = make_video(
        tmp_path / "cut.mp4",
        frames=100,
        codec="mjpeg",
        pix_fmt="yuvj420p",
        container_options={"movflags": "faststart"},
    )
    data = bytearray(path.read_bytes())
    box = data.rindex(b"mdat")
    data[box - 4 : box] = bytes(4)
    path.write_bytes(data)
    assert decode_all(path) == list(range(100))
    path.write_bytes(data[:-200])
    with path.open("rb") as file:
        assert truncation(file, nothing) is None
    with pytest.raises(VideoError, match=r"cut\.mp4: damaged or truncated after 3\.\d+ s; copy or download it again"):
        decode_all(path)


def test_frames_may_end_a_second_before_the_declared_end_and_no_earlier(tmp_path: Path) -> None:
    with open_video(make_video(tmp_path / "four.mp4", frames=100)) as video:
        reader = FrameReader(video)
        while reader.read() is not None:
            pass
        reader.require_whole(Fraction(5))
        with pytest.raises(VideoError, match=r"truncated, its frames end at 4\.00 s and 5\.04 s are declared"):
            reader.require_whole(Fraction("5.04"))


def test_without_pyav_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "fine.mp4", frames=5)
    real_import = builtins.__import__

    def no_av(name: str, *arguments: Any, **others: Any) -> Any:  # noqa: ANN401 - __import__'s signature
        if name == "av" or name.startswith("av."):
            raise ImportError("No module named 'av'")
        return real_import(name, *arguments, **others)

    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(
        MissingDependencyError, match=r'PyAV, which cannot be imported .* pip install "milnce\[video\]"'
    ):
        probe_video(path)


def test_nothing_stays_open_after_two_hundred_files_good_and_bad(tmp_path: Path) -> None:
    good = make_video(tmp_path / "good.mp4", frames=30)
    cut = truncate(make_video(tmp_path / "cut.mkv", frames=30), 0.7)
    refused = make_video(tmp_path / "refused.mkv", frames=5, codec="ffv1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for turn in range(50):
        assert probe_video(good).width == 96
        for bad in (cut, refused):
            with pytest.raises(MilnceError):
                decode_all(bad)
        windows = iter_windows(good, Preset("some", 25.0, 4, 5, None, size=32))
        next(windows)
        if turn % 2:
            windows.close()
        else:
            del windows
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_container_is_closed_when_the_caller_fails(tmp_path: Path) -> None:
    path = make_video(tmp_path / "good.mp4", frames=5)
    with pytest.raises(KeyError, match="caller"), open_video(path) as video:
        raise KeyError("caller")
    with pytest.raises(AssertionError, match="not open"):
        next(video.container.demux(video.stream))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole_files_are_not_called_truncated_even_with_bytes_after_their_end(suffix: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / f"whole{suffix}", frames=10)
    with path.open("rb") as file:
        assert truncation(file, nothing) is None
    path.write_bytes(path.read_bytes() + bytes(40))
    with path.open("rb") as file:
        assert truncation(file, nothing) is None
    assert decode_all(path)[:10] == list(range(10))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"GIF89a" + bytes(20), "its end mark is missing"),
        (b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x00\x01mdat" + (99).to_bytes(8, "big"), "'mdat'"),
        (b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x00\x00mdat", None),
        (b"RIFF" + (1000).to_bytes(4, "little") + b"AVI LIST", "its RIFF part should end at byte 1008"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", None),
        (b"\x1a\x45\xdf\xa3\x81\x00\x18\x53\x80\x67\x84abc", "its segment should end at byte 15 and the file at 14"),
        (b"\x1a\x45\xdf\xa3\x81\x00\x18\x53\x80\x67\x01" + b"\xff" * 7, None),
        (b"\x1a\x45\xdf\xa3", None),
        (b"anything else", None),
    ],
)
def test_the_outer_structure_tells_a_cut(data: bytes, expected: str | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        found = truncation(file, nothing)
    assert found is None if expected is None else expected in str(found)


def test_looking_for_a_cut_tells_of_its_progress_part_by_part(tmp_path: Path) -> None:
    box = b"\x00\x00\x00\x10moofabcdefgh"
    chunk = b"RIFF\x08\x00\x00\x00AVI abcd"
    for data in (b"\x00\x00\x00\x10ftypisomabcd" + 999 * box, 1000 * chunk):
        path = tmp_path / "file"
        path.write_bytes(data)
        calls = Mock()
        with path.open("rb") as file:
            assert truncation(file, calls) is None
        assert calls.call_count >= 1000
    path = make_video(tmp_path / "fragments.mp4", frames=40, container_options={"movflags": "frag_every_frame"})
    calls = Mock()
    with open_video(path, on_progress=calls):
        assert calls.call_count > 80, "two boxes a frame"
