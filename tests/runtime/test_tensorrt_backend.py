"""The TensorRT backend, over simulated TensorRT 8.5, 10 and RTX on a simulated GPU that computes real numbers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

import milnce
from helpers import fake_cuda, fake_tensorrt
from helpers.fake_plans import write_fake_plan, write_fake_plans
from helpers.tiny_bundle import tiny_clips, write_tiny_bundle
from milnce import backends
from milnce.backends import BackendChoice, CudaOptions
from milnce.bundle import Bundle
from milnce.cuda import Cuda
from milnce.errors import BackendError, DeviceMemoryError, InputError
from milnce.plans import PlanProfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers.fake_cuda import FakeCuda
    from helpers.fake_tensorrt import Flavour
    from helpers.tiny_bundle import TinyWeights
    from milnce.backends.tensorrt import TensorRtBackend

MODULES: dict[Flavour, Literal["tensorrt", "tensorrt_rtx"]] = {
    "8.5": "tensorrt",
    "10": "tensorrt",
    "rtx": "tensorrt_rtx",
}
POLICIES = [("lazy", 0), ("random", 1), ("random", 2)]


@pytest.fixture(params=POLICIES, ids=lambda policy: f"{policy[0]}{policy[1]}")
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr("milnce.backends.selection._driver_problem", lambda: None)
    policy, seed = request.param
    return fake_cuda.install(monkeypatch, policy=policy, seed=seed, gpus=[fake_cuda.FakeGpu(), fake_cuda.FakeGpu()])


@pytest.fixture(params=["8.5", "10", "rtx"])
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, fake: FakeCuda) -> Flavour:
    found: Flavour = request.param
    monkeypatch.setattr("milnce.plans.find_spec", lambda _: None)  # what is really installed here
    fake_tensorrt.install(monkeypatch, fake, MODULES[found], flavour=found)
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Bundle, TinyWeights]:
    weights = write_tiny_bundle(tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle"), weights


@pytest.fixture
def opened(
    fake: FakeCuda, flavour: Flavour, bundle: tuple[Bundle, TinyWeights]
) -> Iterator[Callable[..., TensorRtBackend]]:
    made: list[Any] = []

    def open_plan(
        module: str = "video",
        form: str | None = None,
        profiles: list[PlanProfile] | None = None,
        options: CudaOptions | None = None,
        **plan: Any,  # noqa: ANN401 - write_fake_plan's own
    ) -> TensorRtBackend:
        graph = bundle[0].graph(module, input_form=form)
        write_fake_plan(bundle[0], graph, fake, flavour=flavour, profiles=profiles, **plan)
        choice = BackendChoice("tensorrt", "cuda", "fp32", "tests", plans=bundle[0].path / "plans")
        made.append(backends.open_graph(choice, None, graph, cuda=options))
        return made[-1]  # type: ignore[no-any-return] # of a list of anything

    yield open_plan
    for backend in made:
        backend.close()
    fake.check()


@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_video_gives_the_towers_numbers_at_any_batch(
    opened: Callable[..., TensorRtBackend], bundle: tuple[Bundle, TinyWeights], count: int
) -> None:
    backend = opened()
    for seed in range(3):  # the first run, the capture, the graph
        clips = tiny_clips(count, seed=seed)
        found = backend.run({"video": clips})
        embedding, mixed_5c = bundle[1].video(clips)
        np.testing.assert_allclose(found["video_embedding"], embedding, rtol=0, atol=2e-5)
        np.testing.assert_allclose(found["mixed_5c"], mixed_5c, rtol=0, atol=2e-5)


def test_text_projection_and_float_clips_run_too(
    opened: Callable[..., TensorRtBackend], bundle: tuple[Bundle, TinyWeights]
) -> None:
    weights = bundle[1]
    tokens = np.random.default_rng(0).integers(0, 13, (11, 16))
    text = opened("text")
    assert text.inputs[0].dtype == "int64"
    np.testing.assert_allclose(text.run({"tokens": tokens})["text_embedding"], weights.text(tokens), rtol=0, atol=2e-5)
    features = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    found = opened("projection").run({"mixed_5c": features})["video_embedding"]
    np.testing.assert_allclose(found, weights.project(features), rtol=0, atol=2e-5)
    clips = tiny_clips(3)
    floats = clips.transpose(0, 4, 1, 2, 3).astype(np.float32) / np.float32(255)
    found = opened(form="float32").run({"video": floats})["mixed_5c"]
    np.testing.assert_allclose(found, weights.video(clips)[1], rtol=0, atol=2e-5)


def test_stream_and_threads_give_what_run_gives(
    opened: Callable[..., TensorRtBackend], bundle: tuple[Bundle, TinyWeights]
) -> None:
    backend = opened()
    batches = [tiny_clips(index % 9 + 1, seed=index) for index in range(12)]
    expected = [bundle[1].video(clips)[1] for clips in batches]
    for _ in range(2):
        streamed = backend.stream({"video": clips} for clips in batches)
        for found, wanted in zip(streamed, expected, strict=True):
            np.testing.assert_allclose(found["mixed_5c"], wanted, rtol=0, atol=2e-5)
    with ThreadPoolExecutor(6) as threads:
        for found, wanted in zip(
            threads.map(lambda clips: backend.run({"video": clips}), batches), expected, strict=True
        ):
            np.testing.assert_allclose(found["mixed_5c"], wanted, rtol=0, atol=2e-5)


def test_graphs_are_captured_once_a_slot_and_bucket_and_replayed(
    opened: Callable[..., TensorRtBackend], fake: FakeCuda, flavour: Flavour
) -> None:
    backend = opened(options=CudaOptions(slots=2))
    backend.run({"video": tiny_clips(8)})
    for _ in range(5):
        list(backend.stream({"video": tiny_clips(size)} for size in (2, 2, 8, 8)))
    captures = fake.counts["cudaStreamBeginCapture"]
    launches = fake.counts["cudaGraphLaunch"]
    if flavour == "rtx":  # captures by itself
        assert (captures, launches) == (0, 0)
    else:  # the first run of each of two buckets in each of two slots is a plain one
        assert 2 <= captures <= 4
        assert 17 <= launches <= 19
    plain = opened(options=CudaOptions(slots=2, cuda_graphs=False))
    before = fake.counts["cudaGraphLaunch"]
    for _ in range(4):
        plain.run({"video": tiny_clips(2)})
    assert fake.counts["cudaGraphLaunch"] == before


def test_a_range_of_sizes_runs_at_every_size_without_padding(
    opened: Callable[..., TensorRtBackend], bundle: tuple[Bundle, TinyWeights]
) -> None:
    span = PlanProfile({"video": ((1, 4, 16, 16, 3), (2, 4, 16, 16, 3), (8, 8, 32, 32, 3))})
    backend = opened(profiles=[span])
    for frames, size, count in [(4, 16, 1), (8, 20, 5), (6, 32, 11), (4, 16, 3)]:
        clips = tiny_clips(count, frames=frames, size=size)
        found = backend.run({"video": clips})["mixed_5c"]
        np.testing.assert_allclose(found, bundle[1].video(clips)[1], rtol=0, atol=2e-5)
    assert [str(axis) for axis in backend.inputs[0].shape[1:]] == [
        "frames=4..8 step 2",
        "height=16..32 step 2",
        "width=16..32 step 2",
        "3",
    ]
    with pytest.raises(InputError, match=r"frames is 10, .*expected frames=4..8 step 2"):
        backend.run({"video": tiny_clips(1, frames=10)})


def test_sizes_between_two_profiles_are_refused_with_what_there_is(opened: Callable[..., TensorRtBackend]) -> None:
    graph_sizes = [((4, 16, 16, 3), 1), ((8, 16, 16, 3), 1)]
    profiles = [PlanProfile({"video": ((count, *item),) * 3}) for item, count in graph_sizes]
    backend = opened(profiles=profiles)
    backend.run({"video": tiny_clips(1, frames=8)})
    with pytest.raises(
        InputError, match=r"has no profile for video \(6, 16, 16, 3\); its profiles take video \(1, 4, 16"
    ):
        backend.run({"video": tiny_clips(1, frames=6)})


def test_wrong_batches_are_refused(opened: Callable[..., TensorRtBackend]) -> None:
    backend = opened()
    for array, text in (
        (tiny_clips(1).astype(np.float32), "video: dtype float32 given, uint8 expected"),
        (tiny_clips(1, size=18), r"height is 18, .*expected 16"),
        (tiny_clips(1)[:0], r"batch is 0, .*expected batch=1.."),
        ([1, 2], "video: a numpy.ndarray or an array on the GPU expected, list given"),
    ):
        for call in (backend.run, backend.submit):
            with pytest.raises(InputError, match=text):
                call({"video": array})
    with pytest.raises(InputError, match=r"inputs \['clip'\] given; the graph takes \['video'\]"):
        backend.run({"clip": tiny_clips(1)})


def test_memory_that_is_exhausted_is_said_and_smaller_batches_run(
    opened: Callable[..., TensorRtBackend], bundle: tuple[Bundle, TinyWeights], fake: FakeCuda
) -> None:
    clips = tiny_clips(8)
    expected = bundle[1].video(clips)[1]
    declared = opened(options=CudaOptions(slots=1, device_limit_bytes=20_000))
    small_gpu = opened()
    small_gpu.run({"video": clips[:2]})
    # The simulated GPU of 1 GiB is filled up, but for what a batch of two needs.
    free, _ = Cuda().memory()
    with Cuda().device_buffer(free - 16_384):
        for backend, text in ((declared, "would pass the declared limit of 20,000"), (small_gpu, "free on GPU 0")):
            for _ in range(2):
                found = backend.run({"video": clips[:2]})["mixed_5c"]
                np.testing.assert_allclose(found, expected[:2], rtol=0, atol=2e-5)
                with pytest.raises(DeviceMemoryError, match=text):
                    backend.run({"video": clips})
    np.testing.assert_allclose(small_gpu.run({"video": clips})["mixed_5c"], expected, rtol=0, atol=2e-5)
    assert fake.violations == []


def test_close_waits_for_what_is_under_way_and_frees_everything(
    opened: Callable[..., TensorRtBackend], bundle: tuple[Bundle, TinyWeights], fake: FakeCuda
) -> None:
    backend = opened()
    clips = tiny_clips(5)
    futures = [backend.submit({"video": clips}) for _ in range(7)]
    backend.close()
    expected = bundle[1].video(clips)[1]
    for future in futures:
        np.testing.assert_allclose(future.result(timeout=0)["mixed_5c"], expected, rtol=0, atol=2e-5)
    assert fake.leaks() == {}
    backend.close()
    for call in (backend.run, backend.submit):
        with pytest.raises(BackendError, match=r"tensorrt: video uint8 fp32 .* is closed; load the model again"):
            call({"video": clips})


def test_fifty_models_leave_nothing_behind(
    bundle: tuple[Bundle, TinyWeights], fake: FakeCuda, flavour: Flavour
) -> None:
    write_fake_plans(bundle[0], fake, flavour=flavour)
    for _ in range(50):
        with milnce.load(bundle[0].path) as model:
            assert model.backend.name == "tensorrt"
            model.encode_video(tiny_clips(2))
            model.encode_text("cut the tomato")
        assert fake.leaks() == {}
    fake.check()
