"""Files through a model on a GPU, which is simulated: batches are full, and copied while others are computed."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Timer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers import fake_cuda, gpu_fakes
from helpers.videos import make_video
from milnce import embedding_stream
from milnce.backends import CudaOptions
from milnce.decoding.here import DecodingHere
from milnce.decoding.on_gpu import GpuClips
from milnce.device_arrays import DeviceArray
from milnce.errors import BackendError, BackendUnavailableError
from milnce.pipeline import embed_files
from milnce.video import get_preset, iter_windows
from milnce.video.nvdec import DeviceWindow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.fake_cuda import FakeCuda
    from helpers.tiny_bundle import Tiny
    from milnce.cuda import Cuda
    from milnce.decoding.events import Batch
    from milnce.model import Model
    from milnce.video import Preset

PRESET = get_preset("sliding", frames=4, size=32, stride_frames=3)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr("milnce.backends.selection._driver_problem", lambda: None)
    simulated = fake_cuda.install(monkeypatch, policy="random", gpus=[gpu_fakes.GPU])
    gpu_fakes.install_onnxruntime(monkeypatch, simulated)
    return simulated


@pytest.fixture
def on_gpu(tiny: Tiny, fake: FakeCuda) -> Iterator[Model]:
    with milnce.load(tiny.path, backend="onnxruntime", device="cuda", cuda=CudaOptions(slots=2)) as opened:
        yield opened
    fake.check()


@pytest.fixture
def batches(on_gpu: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many clips are submitted at once; clips change as soon as they may."""
    backend = on_gpu.open("video", input_form="uint8")
    submit, sizes = backend.submit, []

    def spy(feeds: Any) -> Any:  # noqa: ANN401 - as the backend's
        sizes.append(len(feeds["video"]))
        future = submit(feeds)
        feeds["video"][:] = 99
        return future

    monkeypatch.setattr(backend, "submit", spy)
    return sizes


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [make_video(tmp_path / f"{number}.mp4", frames=frames) for number, frames in enumerate((40, 25, 70, 12))]


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 3), (2, 3), (1, 64)])
def test_every_window_gets_its_own_row_and_batches_are_full(
    workers: int, batch_size: int, on_gpu: Model, tiny: Tiny, paths: list[Path], batches: list[int]
) -> None:
    found = list(embed_files(on_gpu, paths, preset=PRESET, workers=workers, batch_size=batch_size))
    assert [item.path for item in found] == paths
    for item in found:
        assert item.error is None
        clips = np.stack([window.clip for window in iter_windows(item.path, PRESET)])
        embedding, mixed_5c = tiny.weights.video(clips)
        np.testing.assert_allclose(item.embedding, embedding, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(item.mixed_5c, mixed_5c, rtol=1e-4, atol=1e-3)
    total = sum(len(item.windows) for item in found)
    rest = [total % batch_size] if total % batch_size else []
    assert batches == [batch_size] * (total // batch_size) + rest


def test_results_are_not_waited_for_one_by_one(
    on_gpu: Model, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[int] = []
    finish = embedding_stream.EmbeddingStream._finish  # noqa: SLF001 - to look inside

    def spy(self: embedding_stream.EmbeddingStream, *batch: Any) -> None:  # noqa: ANN401 - passed on
        under_way.append(len(self._under_way))
        finish(self, *batch)

    monkeypatch.setattr(embedding_stream.EmbeddingStream, "_finish", spy)
    list(embed_files(on_gpu, paths, preset=PRESET, workers=0, batch_size=2))
    assert max(under_way) == 2, "besides the one that is waited for"


def test_a_batch_that_is_not_finite_fails_its_own_files_alone(
    on_gpu: Model, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = on_gpu.open("video", input_form="uint8")
    submit, calls = backend.submit, []

    def spoil(feeds: Any) -> Any:  # noqa: ANN401 - as the backend's
        future = submit(feeds)
        calls.append(len(feeds["video"]))
        if len(calls) == 2:
            future.result()["mixed_5c"][0, 0] = np.inf
        return future

    first = len(list(iter_windows(paths[0], PRESET)))
    monkeypatch.setattr(backend, "submit", spoil)
    found = list(embed_files(on_gpu, paths, preset=PRESET, workers=0, batch_size=first))
    failed = [str(item.error) for item in found if item.error is not None]
    assert failed
    assert found[0].error is None
    assert found[3].error is None
    assert failed[0].startswith(f"{paths[1]}: video in fp32 on onnxruntime gave NaN or infinity in mixed_5c")


@pytest.fixture
def nvdec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put clips that the CPU decodes on the GPU, in the place of NVIDIA's decoder (tests/video has one simulated)."""

    def windows(path: Path, preset: Preset, *, cuda: Cuda, **span_s: float | None) -> Iterator[DeviceWindow]:
        with cuda.stream() as stream:
            for window in iter_windows(path, preset, **span_s):
                buffer = cuda.device_buffer(window.clip.nbytes)
                cuda.upload(buffer.pointer, window.clip.ctypes.data, window.clip.nbytes, stream)
                stream.synchronize()
                clip = DeviceArray(buffer.pointer, window.clip.shape, window.clip.dtype, device=0, owner=buffer)
                yield DeviceWindow(window.index, window.start_s, window.end_s, 1.0, clip)

    monkeypatch.setattr("milnce.video.nvdec.problem", lambda: None)
    monkeypatch.setattr("milnce.video.nvdec.iter_device_windows", windows)


@pytest.mark.usefixtures("nvdec")
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_clips_that_are_decoded_on_the_gpu_give_the_same(batch_size: int, on_gpu: Model, paths: list[Path]) -> None:
    found = list(on_gpu.embed_files(paths, preset=PRESET, batch_size=batch_size, decoder="nvdec"))
    for item, expected in zip(found, on_gpu.embed_files(paths, preset=PRESET, workers=0), strict=True):
        assert item.error is None
        assert item.windows == expected.windows
        np.testing.assert_allclose(item.embedding, expected.embedding, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("nvdec")
def test_closing_early_waits_for_what_reads_the_clips_on_the_gpu(
    on_gpu: Model, paths: list[Path], fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = on_gpu.open("video", input_form="uint8")
    submit, close = backend.submit, GpuClips.close
    futures: list[Future[Any]] = []
    done: list[bool] = []

    def late(feeds: Any) -> Future[Any]:  # noqa: ANN401 - as the backend's
        futures.append(Future())
        Timer(0.2, futures[-1].set_result, [submit(feeds).result()]).start()
        return futures[-1]

    def closed(self: GpuClips) -> None:
        done.extend(future.done() for future in futures)
        close(self)

    monkeypatch.setattr(backend, "submit", late)
    monkeypatch.setattr(GpuClips, "close", closed)
    stream = on_gpu.embed_files(paths, preset=PRESET, batch_size=1, decoder="nvdec")
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert done
    assert all(done)
    fake.check(leaks=False)


@pytest.mark.usefixtures("nvdec")
def test_clips_on_the_gpu_keep_their_places_until_their_batch_is_done(
    on_gpu: Model, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = on_gpu.open("video", input_form="uint8")
    submit, release, futures = backend.submit, DecodingHere.release, []
    done: list[bool] = []

    def noted(feeds: Any) -> Any:  # noqa: ANN401 - as the backend's
        futures.append(submit(feeds))
        return futures[-1]

    def released(self: DecodingHere, batch: Batch) -> None:
        done.append(futures[len(done)].done())
        release(self, batch)

    monkeypatch.setattr(backend, "submit", noted)
    monkeypatch.setattr(DecodingHere, "release", released)
    list(on_gpu.embed_files(paths, preset=PRESET, batch_size=2, decoder="nvdec"))
    assert done == [True] * len(futures)
    assert len(done) > 5


def test_a_decoder_that_is_not_there_says_what_to_do(on_gpu: Model, paths: list[Path]) -> None:
    with pytest.raises(BackendUnavailableError, match=r"decoder nvdec was asked for: .*; or decode on the CPU"):
        on_gpu.embed_files(paths, preset=PRESET, decoder="nvdec")


def test_a_gpu_that_fails_is_not_a_failing_file(
    on_gpu: Model, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise BackendError("the GPU is lost")

    monkeypatch.setattr(on_gpu.open("video", input_form="uint8"), "submit", fail)
    with pytest.raises(BackendError, match="the GPU is lost"):
        list(embed_files(on_gpu, paths, preset=PRESET, workers=2))
