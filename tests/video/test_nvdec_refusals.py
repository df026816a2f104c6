"""What NVIDIA's decoder is not used for, and what is missing where it cannot be used: the errors and their words."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from helpers import fake_cuda, fake_nvdec
from helpers.videos import make_video, real_video, truncate
from milnce import cuda_kernels
from milnce.cuda import Cuda
from milnce.errors import (
    CudaUnavailableError,
    InputError,
    MilnceError,
    MissingDependencyError,
    RangeError,
    VideoError,
)
from milnce.video import Preset, iter_windows
from milnce.video.nvdec import iter_device_windows, problem

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.fake_nvdec import FakeNvdec

SLIDING = Preset("sliding", 10.0, 8, None, 4, size=32)
SPREAD = Preset("spread", 5.0, 6, 3, None, size=32)


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> FakeNvdec:
    """The stand-in over a simulated GPU."""
    return fake_nvdec.install(monkeypatch, fake_cuda.install(monkeypatch, policy="lazy"))


@pytest.mark.parametrize(
    ("span", "error", "words"),
    [
        ({"start_s": -1.0}, InputError, "start_s must be a finite number of seconds"),
        ({"end_s": float("nan")}, InputError, "end_s must be a finite number of seconds"),
        ({"start_s": 99.0}, RangeError, "start_s=99.0 is not inside the video; the video lasts 10.000 s"),
        ({"start_s": 2.0, "end_s": 1.0}, RangeError, "end_s=1.0 must be after start_s=2.0"),
    ],
)
def test_ranges_are_checked_as_on_the_cpu(
    lazy: FakeNvdec, span: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as found:
        next(iter_device_windows(real_video("bikes"), SPREAD, cuda=Cuda(), **span))
    assert words in str(found.value)
    assert lazy.created == []


def test_a_truncated_file_is_refused_as_on_the_cpu(lazy: FakeNvdec, tmp_path: Path) -> None:
    path = truncate(make_video(tmp_path / "cut.mkv", frames=100), 0.6)
    texts = []
    for windows in (iter_windows(path, SLIDING), iter_device_windows(path, SLIDING, cuda=Cuda())):
        with pytest.raises(VideoError) as error:
            list(windows)
        texts.append(str(error.value))
    assert texts[0] == texts[1]
    assert "truncated" in texts[0]
    assert lazy.open_decoders == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.avi", "it is AVI, whose packets have no times of their own"),
        ("a.gif", "it is GIF, whose packets have no times of their own"),
        ("444.mp4", "its pixel format is yuv444p"),
        ("mpeg4.mp4", "its codec is mpeg4; AV1, H264, HEVC, VP8, VP9 are decoded there"),
    ],
)
def test_what_is_left_to_the_cpu_is_refused_with_the_way_out(
    lazy: FakeNvdec, name: str, words: str, tmp_path: Path
) -> None:
    special: dict[str, dict[str, Any]] = {"444.mp4": {"pix_fmt": "yuv444p"}, "mpeg4.mp4": {"codec": "mpeg4"}}
    changes = special.get(name, {})
    path = make_video(tmp_path / name, frames=20, **changes)
    with pytest.raises(VideoError) as error:
        list(iter_device_windows(path, SLIDING, cuda=Cuda()))
    assert str(error.value).startswith(f"{path}: NVIDIA's decoder is not used for this file: {words}")
    assert str(error.value).endswith('; use decoder="cpu" for it')
    assert lazy.created == []


def test_what_the_decoder_raises_names_the_file_and_the_reason(lazy: FakeNvdec) -> None:
    lazy.failure = fake_nvdec.PyNvVCExceptionUnsupported(
        "HandleVideoSequence : \nError code : 801\nError Type : Resolution not supported on this GPU\n"
        "Resolution          : 9600x64\nat /project/src/NvDecoder.cpp:375\n"
    )
    path = real_video("bikes")
    with pytest.raises(VideoError) as error:
        list(iter_device_windows(path, SPREAD, cuda=Cuda()))
    assert str(error.value) == (
        f"{path}: decoding with NVIDIA's decoder failed (Resolution not supported on this GPU); the file is damaged, "
        'or this GPU does not decode it: try decoder="cpu"'
    )
    assert error.value.__cause__ is lazy.failure


def test_a_picture_of_an_unknown_time_is_refused(lazy: FakeNvdec) -> None:
    lazy.times = {512 * number: 7 for number in range(4, 8)}
    with pytest.raises(VideoError, match=r"it gave a picture of a time that was not asked of it \(tick 7\)"):
        list(iter_device_windows(real_video("bikes"), SLIDING, cuda=Cuda()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 320, "height": 136}, "it gave NV12 pictures of 320x136 where NV12 of 640x272 were expected"),
        ({"format": "yuv420p10le"}, "it gave P016 pictures of 640x272 where NV12 of 640x272 were expected"),
    ],
)
def test_surfaces_of_another_shape_are_refused(
    lazy: FakeNvdec, change: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy, "change", lambda frame: frame.reformat(**change))
    with pytest.raises(VideoError) as error:
        list(iter_device_windows(real_video("bikes"), SLIDING, cuda=Cuda()))
    assert words in str(error.value)


def test_the_problem_names_what_is_missing_and_the_cure(lazy: FakeNvdec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem() is None
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    text = problem()
    assert text is not None
    assert "which is not installed" in text
    assert text.endswith('; pip install "milnce[nvdec]"')
    with pytest.raises(MissingDependencyError, match="PyNvVideoCodec, which is not installed"):
        next(iter_device_windows(real_video("bikes"), SPREAD, cuda=Cuda()))
    assert lazy.created == []


def test_a_module_that_does_not_load_says_why_in_a_line(lazy: FakeNvdec, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:  # noqa: ANN401 - a module
        raise RuntimeError(f"{name}: libnvidia-encode.so.1 is not there\n\n=== TROUBLESHOOTING STEPS ===\n...")

    monkeypatch.setattr("importlib.import_module", fail)
    assert problem() == (
        "PyNvVideoCodec is installed and does not load: PyNvVideoCodec: libnvidia-encode.so.1 is not there; it needs "
        "the video libraries of NVIDIA's driver (in a container NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)"
    )
    with pytest.raises(CudaUnavailableError):
        next(iter_device_windows(real_video("bikes"), SPREAD, cuda=Cuda()))
    assert lazy.created == []


def test_without_a_driver_the_problem_is_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvdec.install(monkeypatch, fake_cuda.install(monkeypatch, driver="absent"))
    text = problem()
    assert text is not None
    assert "there is no NVIDIA driver here" in text


def test_without_the_compiler_the_problem_is_the_compiler(lazy: FakeNvdec, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:  # noqa: ANN401 - a module
        raise CudaUnavailableError("NVRTC does not load")

    monkeypatch.setattr(cuda_kernels, "compiler", missing)
    assert problem() == "NVRTC does not load"
    with pytest.raises(MilnceError, match="NVRTC does not load"):
        next(iter_device_windows(real_video("bikes"), SPREAD, cuda=Cuda()))
    assert lazy.open_decoders == 0
