"""Windows decoded on a GPU: the same windows and times as on the CPU, over a simulated GPU and a stand-in decoder."""

from __future__ import annotations

import gc
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import fake_cuda, fake_nvdec
from helpers.videos import make_video, read_numbers, real_video, set_display_matrix
from milnce import cuda_kernels
from milnce.cuda import Cuda
from milnce.errors import (
    DeviceMemoryError,
    VideoError,
)
from milnce.video import Preset, get_preset, iter_windows
from milnce.video.nvdec import DeviceWindow, iter_device_windows
from milnce.video.nvdec_picture import TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.fake_cuda import FakeCuda
    from helpers.fake_nvdec import FakeNvdec

SLIDING = Preset("sliding", 10.0, 8, None, 4, size=32)
SPREAD = Preset("spread", 5.0, 6, 3, None, size=32)
AS_THEY_COME = Preset("as they come", None, 12, 1, None, size=32, interpolation="bilinear", padding="repeat")


@pytest.fixture(params=["eager", "lazy", "random"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A simulated GPU on which nothing may be done wrong, nor left behind."""
    fake = fake_cuda.install(monkeypatch, policy=request.param)
    yield fake
    gc.collect()
    fake.check()


@pytest.fixture
def nvdec(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeNvdec:
    return fake_nvdec.install(monkeypatch, gpu)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> FakeNvdec:
    """The stand-in over one simulated GPU, for tests that need no other order of work."""
    return fake_nvdec.install(monkeypatch, fake_cuda.install(monkeypatch, policy="lazy"))


def assert_same(
    path: Path, preset: Preset, *, start_s: float | None = None, end_s: float | None = None
) -> list[DeviceWindow]:
    found = list(iter_device_windows(path, preset, cuda=Cuda(), start_s=start_s, end_s=end_s))
    expected = list(iter_windows(path, preset, start_s=start_s, end_s=end_s))
    assert [(w.index, w.start_s, w.end_s) for w in found] == [(w.index, w.start_s, w.end_s) for w in expected]
    for window, wanted in zip(found, expected, strict=True):
        clip = window.clip.copy_to_host()
        assert clip.dtype == np.uint8
        levels = np.abs(clip.astype(int) - wanted.clip)
        assert levels.max() <= TOLERANCE.largest, window.index
        assert levels.mean() <= TOLERANCE.mean, window.index
    return found


@pytest.mark.parametrize("preset", [SLIDING, SPREAD, AS_THEY_COME], ids=lambda preset: preset.name)
def test_windows_and_times_are_those_of_the_cpu(nvdec: FakeNvdec, preset: Preset) -> None:
    found = assert_same(real_video("bikes"), preset, end_s=4.0)
    assert all(window.clip.shape == (preset.frames, 32, 32, 3) for window in found)
    assert all(window.video_s == pytest.approx(10) for window in found)
    assert [created["codec"].name for created in nvdec.created] == ["H264"]


@pytest.mark.parametrize(
    "kind",
    [
        "mp4",
        "mp4-b-frames",
        "mp4-29.97",
        "mp4-fragmented",
        "mp4-dash",
        "mp4-hevc",
        "mov",
        "mkv",
        "webm-vp9",
        "webm-vp8",
    ],
)
def test_every_container_and_codec_is_sampled_as_on_the_cpu(
    lazy: FakeNvdec, kind: str, numbered_videos: dict[str, Path]
) -> None:
    path = numbered_videos[kind]
    assert_same(path, SPREAD)
    (window,) = assert_same(path, get_preset(SPREAD, windows=1), start_s=13.03, end_s=15.5)
    numbers = read_numbers(window.clip.copy_to_host())
    assert numbers[0] is not None
    assert numbers[0] >= 13 * 25
    lazy.cuda.finish()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.fractions(0, 20, max_denominator=100),
    length=st.fractions(Fraction(1, 10), 4, max_denominator=100),
    fps=st.sampled_from([2.0, 5.0, 10.0, 29.97, 40.0]),
    frames=st.integers(1, 12),
    stride=st.one_of(st.none(), st.integers(1, 12)),
)
def test_any_sampling_gives_the_windows_of_the_cpu(
    lazy: FakeNvdec,
    numbered_videos: dict[str, Path],
    start: Fraction,
    length: Fraction,
    fps: float,
    frames: int,
    stride: int | None,
) -> None:
    assert lazy.failure is None
    preset = Preset("any", fps, frames, 2 if stride is None else None, stride, size=16)
    assert_same(numbered_videos["mp4-b-frames"], preset, start_s=float(start), end_s=float(start + length))


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_rotated_videos_come_out_upright(lazy: FakeNvdec, matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = set_display_matrix(make_video(tmp_path / "lying.mp4", frames=20), matrix)
    assert_same(path, SLIDING)
    assert_same(path, AS_THEY_COME)
    assert lazy.packets


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ten-bit.mp4", {"pix_fmt": "yuv420p10le"}),
        ("full-range.mp4", {"pix_fmt": "yuvj420p"}),
        ("odd.webm", {"size": (95, 65)}),
        ("tall.mp4", {"size": (64, 128)}),
    ],
)
def test_depths_ranges_and_odd_shapes_agree(
    lazy: FakeNvdec, name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    assert_same(make_video(tmp_path / name, frames=20, **changes), SLIDING)
    assert lazy.open_decoders == 0


def test_an_odd_height_upside_down_shows_its_last_row_of_chroma(lazy: FakeNvdec, tmp_path: Path) -> None:
    path = make_video(tmp_path / "odd.mp4", frames=20, size=(95, 65), codec="libvpx-vp9")
    assert_same(set_display_matrix(path, (1, 0, 0, -1)), SLIDING)
    assert lazy.cuda.violations == []


def test_a_variable_rate_and_a_short_video_are_sampled_alike(lazy: FakeNvdec, tmp_path: Path) -> None:
    ticks = [0, 40, 45, 300, 310, 900, 940, 1500, 1501, 2100]
    path = make_video(tmp_path / "variable.mkv", frames=10, ticks=ticks)
    assert_same(path, SLIDING)
    (window,) = assert_same(make_video(tmp_path / "short.mp4", frames=3), AS_THEY_COME)
    assert read_numbers(window.clip.copy_to_host()) == [n for n in range(3) for _ in range(4)]
    (window,) = assert_same(tmp_path / "short.mp4", get_preset(SPREAD, windows=1, padding="black"))
    assert read_numbers(window.clip.copy_to_host())[1:] == [None] * 5
    assert lazy.open_decoders == 0


def test_windows_in_the_middle_are_reached_by_seeking(lazy: FakeNvdec, numbered_videos: dict[str, Path]) -> None:
    preset = get_preset(SPREAD, windows=1)
    assert_same(numbered_videos["mp4-b-frames"], preset, start_s=21.0, end_s=23.0)
    fed = [packet for packet in lazy.packets if packet.bsl]
    assert len(fed) < 300  # of 600: the keyframes are 250 frames apart
    assert any(not packet.bsl for packet in lazy.packets[:3]), "the decoder was not told that the file was wound"


def test_a_seek_to_a_keyframe_of_an_open_group_brings_its_parameters(lazy: FakeNvdec, tmp_path: Path) -> None:
    options = {"x264-params": "open-gop=1:scenecut=0", "preset": "ultrafast"}
    path = make_video(tmp_path / "open.mp4", frames=200, gop=50, b_frames=2, codec_options=options)
    assert_same(path, get_preset(SPREAD, windows=1), start_s=6.5, end_s=8.0)
    (created,) = lazy.created
    assert created["codec"].name == "H264"
    first = next(packet.bytes for packet in lazy.packets if packet.bsl)
    assert [first[at + 4] & 31 for at in starts(first)][:2] == [7, 8], "no parameter sets before the first picture"
    assert 5 not in [first[at + 4] & 31 for at in starts(first)], "an IDR picture is no open group's"


def starts(stream: bytes) -> list[int]:
    """Return where the long start codes of an Annex B stream lie."""
    return [at for at in range(len(stream) - 4) if stream[at : at + 4] == b"\0\0\0\1"]


def test_the_clip_is_complete_and_outlives_the_decoding(nvdec: FakeNvdec) -> None:
    windows = iter_device_windows(real_video("bikes"), SPREAD, cuda=Cuda())
    first = next(windows)
    assert first.clip.stream is None
    assert first.clip.__cuda_array_interface__["stream"] is None
    before = first.clip.copy_to_host()
    for _ in windows:
        pass
    assert np.array_equal(first.clip.copy_to_host(), before)
    assert nvdec.open_decoders == 0


def test_device_memory_does_not_grow_with_the_video(gpu: FakeCuda, nvdec: FakeNvdec) -> None:
    used = []
    for window in iter_device_windows(real_video("bikes"), SLIDING, cuda=Cuda(), start_s=5.0):
        used.append(gpu.memory.used_bytes[0])
        del window
    assert len(used) > 10
    assert max(used[:-3]) == max(used[:4])
    # At the end the decoder gives all that it held back at once.
    assert max(used) <= max(used[:4]) + 4 * 640 * 272 * 3 // 2
    assert nvdec.open_decoders == 0


def test_a_caller_who_stops_leaves_nothing_behind(gpu: FakeCuda, nvdec: FakeNvdec) -> None:
    windows = iter_device_windows(real_video("bikes"), SLIDING, cuda=Cuda())
    next(windows)
    windows.close()
    gc.collect()
    assert nvdec.open_decoders == 0
    assert gpu.leaks() == {}


@pytest.mark.parametrize("after", [1, 5, 20])
def test_exhausted_memory_is_an_error_and_leaves_nothing_behind(gpu: FakeCuda, nvdec: FakeNvdec, after: int) -> None:
    gpu.fail("cudaMalloc", after=after)
    with pytest.raises((DeviceMemoryError, VideoError)):
        list(iter_device_windows(real_video("bikes"), SLIDING, cuda=Cuda()))
    gc.collect()
    assert nvdec.open_decoders == 0
    assert gpu.leaks() == {}


def test_progress_is_told(lazy: FakeNvdec) -> None:
    told: list[int] = []
    windows = iter_device_windows(real_video("bikes"), SPREAD, cuda=Cuda(), on_progress=lambda: told.append(1))
    assert len(list(windows)) == 3
    assert len(told) > len([packet for packet in lazy.packets if packet.bsl]) / 2


def test_the_decoder_works_on_the_gpu_and_in_the_stream_that_all_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [fake_cuda.FakeGpu(name="first"), fake_cuda.FakeGpu(name="second")]
    gpu = fake_cuda.install(monkeypatch, policy="lazy", gpus=gpus)
    nvdec = fake_nvdec.install(monkeypatch, gpu)
    (window,) = iter_device_windows(real_video("bikes"), get_preset(SPREAD, windows=1), cuda=Cuda(1))
    assert window.clip.device == 1
    (created,) = nvdec.created
    assert created["gpuid"] == 1
    streams = {stream for _, stream in cuda_kernels.driver().launches}
    assert streams == {created["cudastream"]}
    assert created["cudastream"] != 0


def test_pictures_that_several_slots_show_are_made_once(lazy: FakeNvdec) -> None:
    found = assert_same(real_video("bikes"), Preset("twice", 50.0, 20, None, 10, size=16), start_s=1.0, end_s=3.0)
    launches = len(cuda_kernels.driver().launches)
    assert launches <= 2 * 25 + 2
    assert len(found) * 20 > 3 * launches
    assert lazy.open_decoders == 0
