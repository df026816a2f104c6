"""ONNX Runtime on CUDA: bindings to the ring's buffers, options and refusals, with real sessions on a simulated GPU."""

from __future__ import annotations

import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from helpers import fake_cuda, fake_onnxruntime
from helpers.doubling import Foreign, read_later
from helpers.tiny_bundle import tiny_clips
from milnce import backends
from milnce.backends import BackendChoice, CudaOptions
from milnce.bundle import Bundle
from milnce.cuda import Cuda
from milnce.errors import BackendError, BackendUnavailableError, DeviceMemoryError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.fake_cuda import FakeCuda
    from helpers.fake_cuda_streams import Policy
    from helpers.fake_onnxruntime import CudaSession
    from helpers.tiny_bundle import Tiny
    from milnce.backends import Backend


in_any_order = pytest.mark.parametrize("fake", ["lazy", "random"], indirect=True)


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    policy: Policy = getattr(request, "param", "lazy")
    return fake_cuda.install(monkeypatch, policy=policy, gpus=[fake_cuda.FakeGpu(), fake_cuda.FakeGpu()])


@pytest.fixture
def sessions(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> type[CudaSession]:
    return fake_onnxruntime.install(monkeypatch, fake)


@pytest.fixture
def opened(tiny: Tiny, fake: FakeCuda, sessions: type[CudaSession]) -> Iterator[Callable[..., Backend]]:
    assert sessions.opened == []
    bundle = Bundle.open(tiny.path)
    made: list[Backend] = []

    def open_graph(
        module: str = "video",
        device: str = "cuda",
        precision: str = "fp32",
        index_limit: int | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Backend:
        graph = bundle.graph(module, precision=precision)
        choice = BackendChoice("onnxruntime", device, precision, "tests")
        cuda = CudaOptions(**options)
        made.append(backends.open_graph(choice, bundle.read(graph), graph, cuda=cuda, index_limit=index_limit))
        return made[-1]

    yield open_graph
    for backend in made:
        backend.close()
    fake.check()


@in_any_order
@pytest.mark.parametrize("count", [1, 3, 40])
def test_video_gives_the_towers_numbers_at_any_batch(opened: Callable[..., Backend], tiny: Tiny, count: int) -> None:
    clips = tiny_clips(count)
    found = opened().run({"video": clips})
    embedding, mixed_5c = tiny.weights.video(clips)
    np.testing.assert_allclose(found["video_embedding"], embedding, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found["mixed_5c"], mixed_5c, rtol=0, atol=2e-5)


@in_any_order
def test_sizes_may_change_from_call_to_call_and_back(opened: Callable[..., Backend], tiny: Tiny) -> None:
    backend = opened()
    for frames, size in [(4, 16), (8, 20), (6, 32), (4, 16)]:
        clips = tiny_clips(3, frames=frames, size=size, seed=size)
        found = backend.run({"video": clips})["mixed_5c"]
        np.testing.assert_allclose(found, tiny.weights.video(clips)[1], rtol=0, atol=2e-5)


def test_text_runs_in_buckets_of_sentences(opened: Callable[..., Backend], tiny: Tiny) -> None:
    backend = opened("text")
    tokens = np.random.default_rng(0).integers(0, 13, (300, 16))
    found = backend.run({"tokens": tokens})["text_embedding"]
    np.testing.assert_allclose(found, tiny.weights.text(tokens), rtol=0, atol=2e-5)
    assert backend.largest_batch == 256


def test_ids_outside_the_vocabulary_are_refused(opened: Callable[..., Backend], tiny: Tiny) -> None:
    backend = opened("text", index_limit=14)
    tokens = np.zeros((2, 16), np.int64)
    for value in (14, -1):
        tokens[1, 3] = value
        with pytest.raises(InputError, match=rf"tokens: id {value} given; ids are 0 \(padding\) to 13"):
            backend.run({"tokens": tokens})
    tokens[1, 3] = 13
    found = backend.run({"tokens": tokens})["text_embedding"]
    np.testing.assert_allclose(found, tiny.weights.text(tokens), rtol=0, atol=2e-5)


@in_any_order
def test_clips_on_the_gpu_embeddings_left_there_and_streams(
    opened: Callable[..., Backend], tiny: Tiny, fake: FakeCuda
) -> None:
    backend = opened(slots=2)
    clips = tiny_clips(5)
    expected = tiny.weights.video(clips)[1]
    for _ in range(2):
        found = backend.run({"video": Foreign(fake, clips)}, on_device=True)
        np.testing.assert_allclose(found["mixed_5c"].copy_to_host(), expected, rtol=0, atol=2e-5)
    for streamed in backend.stream({"video": clips} for _ in range(5)):
        np.testing.assert_allclose(streamed["mixed_5c"], expected, rtol=0, atol=2e-5)
    with Cuda().stream() as stream:
        left = backend.run({"video": Foreign(fake, clips, stream=stream.handle)}, cuda_stream=stream.handle)
        read = read_later(fake, left["mixed_5c"], stream.handle)
        stream.synchronize()
    np.testing.assert_allclose(read, expected, rtol=0, atol=2e-5)


def test_threads_share_a_session_one_at_a_time(
    opened: Callable[..., Backend], sessions: type[CudaSession], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(slots=3)
    inside: list[int] = []
    original = sessions.run_with_iobinding

    def alone(self: CudaSession, binding: Any, options: Any) -> None:  # noqa: ANN401 - the library is not typed
        assert inside == []
        inside.append(1)
        time.sleep(0.001)
        original(self, binding, options)
        inside.pop()

    monkeypatch.setattr(sessions, "run_with_iobinding", alone)

    def work(count: int) -> None:
        clips = tiny_clips(count, seed=count)
        found = backend.run({"video": clips})["mixed_5c"]
        np.testing.assert_allclose(found, tiny.weights.video(clips)[1], rtol=0, atol=2e-5)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, [1, 5, 9, 40, 2, 33, 1, 8]))


def test_bindings_are_cleared_before_their_buffers_and_the_session_ends_before_its_stream(
    opened: Callable[..., Backend], fake: FakeCuda, sessions: type[CudaSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = opened(slots=1)
    cleared: list[int] = []
    original = fake_onnxruntime.Binding.clear_binding_outputs

    def clear(self: fake_onnxruntime.Binding) -> None:
        fake.view(*self.ranges[0])  # still memory
        cleared.append(1)
        original(self)

    monkeypatch.setattr(fake_onnxruntime.Binding, "clear_binding_outputs", clear)
    backend.run({"video": tiny_clips(1)})
    backend.run({"video": tiny_clips(2)})
    assert cleared == [1]
    ended: list[bool] = []
    stream = backend._ring.compute.handle  # noqa: SLF001
    (session,) = sessions.opened
    weakref.finalize(session, lambda: ended.append(stream in fake.streams))
    sessions.opened.clear()
    del session
    backend.close()
    assert cleared == [1, 1]
    assert ended == [True]


def test_the_session_is_told_the_ring_s_stream_and_no_tf32(
    opened: Callable[..., Backend], sessions: type[CudaSession]
) -> None:
    opened()
    opened(device="cuda:1", device_limit_bytes=8 * 2**20, exhaustive_search=True)
    plain, limited = sessions.opened
    stream = plain.provider_options.pop("user_compute_stream")
    assert int(stream) > 0
    assert plain.provider_options == {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert limited.provider_options.pop("user_compute_stream") != stream
    assert limited.provider_options == {
        "device_id": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "gpu_mem_limit": str(7 * 2**20),
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert plain.disable_cpu_ep_fallback == limited.disable_cpu_ep_fallback == "1"


def test_an_fp16_graph_keeps_its_tensor_cores(opened: Callable[..., Backend], sessions: type[CudaSession]) -> None:
    # ONNX Runtime takes use_tf32=0 for "no tensor cores" whatever the graph's dtype.
    opened(precision="fp16")
    opened("projection", precision="fp32")
    half, projection = sessions.opened
    assert "use_tf32" not in half.provider_options
    assert projection.provider_options["use_tf32"] == "0"


def test_a_session_that_falls_back_to_the_cpu_is_refused(
    opened: Callable[..., Backend], sessions: type[CudaSession], fake: FakeCuda
) -> None:
    sessions.used_providers = ["CPUExecutionProvider"]
    with pytest.raises(
        BackendUnavailableError, match=r"asked for cuda but took CPUExecutionProvider: .* did not start"
    ):
        opened()
    fake.check()


def test_a_graph_the_session_does_not_take_is_an_error_with_its_words(
    sessions: type[CudaSession], tiny: Tiny, fake: FakeCuda
) -> None:
    del sessions
    graph = Bundle.open(tiny.path).graph("video")
    choice = BackendChoice("onnxruntime", "cuda", "fp32", "tests")
    with pytest.raises(BackendError, match=r"onnxruntime cannot open video uint8 fp32 .* on cuda: .*INVALID_PROTOBUF"):
        backends.open_graph(choice, b"no graph", graph)
    other = Bundle.open(tiny.path).graph("text")
    with pytest.raises(BackendError, match=r"has the inputs \['tokens'\], the manifest says \['video'\]"):
        backends.open_graph(choice, Bundle.open(tiny.path).read(other), graph)
    fake.check()


def test_an_onnxruntime_without_cuda_says_what_to_install(
    opened: Callable[..., Backend], fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match=r"is not among CPUExecutionProvider; install: .*milnce.cuda"):
        opened()
    fake.check()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 512", DeviceMemoryError),
        ("CUDA failure 2: out of memory", DeviceMemoryError),
        ("CUDNN_STATUS_EXECUTION_FAILED", BackendError),
    ],
)
def test_what_the_library_says_is_passed_on_and_the_next_batch_runs(
    opened: Callable[..., Backend],
    sessions: type[CudaSession],
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    kind: type[Exception],
) -> None:
    backend = opened()
    clips = tiny_clips(2)

    def failing(*_: object) -> None:
        raise RuntimeError(said)

    with monkeypatch.context() as patched:
        patched.setattr(sessions, "run_with_iobinding", failing)
        for call in (lambda: backend.run({"video": clips}), lambda: backend.submit({"video": clips}).result(60)):
            with pytest.raises(kind, match=f"onnxruntime failed to run video uint8 fp32 .* with 2 rows: .*{said}"):
                call()
    found = backend.run({"video": clips})["mixed_5c"]
    np.testing.assert_allclose(found, tiny.weights.video(clips)[1], rtol=0, atol=2e-5)
