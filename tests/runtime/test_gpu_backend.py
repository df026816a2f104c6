"""The ring that batches go through on a GPU, over a simulated one: order, memory, threads, failures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers import fake_cuda
from milnce.backends.base import CudaOptions
from milnce.backends.gpu import GpuBackend
from milnce.backends.slots import Bucket, Layout
from milnce.cuda import Cuda
from milnce.errors import DeviceMemoryError
from milnce.manifest import GraphFile
from milnce.specs import Dimension, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from helpers.fake_cuda import FakeCuda
    from milnce.backends.slots import Slot

WIDTH = 5
SIZES = (1, 2, 4, 8)
BATCH = Dimension("N", 1, None)
GRAPH = GraphFile(
    module="projection",
    input_form="mixed_5c",
    precision="fp32",
    file="projection-fp32.onnx",
    sha256="0" * 64,
    bytes=1,
    opset=20,
    inputs=(TensorSpec("mixed_5c", "float32", (BATCH, Dimension.fixed(WIDTH))),),
    outputs=(TensorSpec("video_embedding", "float32", (BATCH, Dimension.fixed(WIDTH))),),
)


class Doubling(GpuBackend):
    """A graph that doubles its input and adds 1, on the simulated GPU."""

    name = "doubling"
    largest_batch = SIZES[-1]

    def __init__(self, fake: FakeCuda, options: CudaOptions, scratch_row_bytes: int = 64) -> None:
        self.fake = fake
        self.scratch_row_bytes = scratch_row_bytes
        self.enqueued: list[int] = []
        cuda = Cuda(0, device_limit_bytes=options.device_limit_bytes, pinned_limit_bytes=options.pinned_limit_bytes)
        super().__init__(GRAPH, precision="fp32", cuda=cuda, options=options)

    def _bucket(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> Bucket:
        size = next((size for size in SIZES if size >= rows), SIZES[-1])
        inputs = {name: (size, *shape) for name, shape in shapes.items()}
        outputs = {"video_embedding": (size, WIDTH)}
        dtypes = {"mixed_5c": "float32", "video_embedding": "float32"}
        return Bucket(size, 0, Layout.of(inputs, dtypes), Layout.of(outputs, dtypes), size * self.scratch_row_bytes)

    def _enqueue(self, slot: Slot, bucket: Bucket) -> None:
        self.enqueued.append(bucket.rows)
        source, destination = slot.device_inputs.pointer, slot.device_outputs.pointer
        nbytes, scratch = bucket.rows * WIDTH * 4, self._ring.scratch

        def kernel() -> None:
            self.fake.view(scratch, bucket.scratch_bytes)[:] = 1
            values = self.fake.view(source, nbytes).view(np.float32)
            self.fake.view(destination, nbytes).view(np.float32)[:] = values * 2 + 1

        self.fake.launch(
            self._ring.compute.handle,
            kernel,
            accesses=[
                fake_cuda.reads(source, nbytes),
                fake_cuda.writes(destination, nbytes),
                fake_cuda.writes(scratch, bucket.scratch_bytes),
            ],
        )


Open = "Callable[..., Doubling]"


@pytest.fixture(params=[("lazy", 0), ("random", 1), ("random", 2), ("eager", 0)], ids=lambda p: f"{p[0]}{p[1]}")
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    policy, seed = request.param
    return fake_cuda.install(monkeypatch, policy=policy, seed=seed)


@pytest.fixture
def opened(fake: FakeCuda) -> Iterator[Callable[..., Doubling]]:
    backends: list[Doubling] = []

    def make(**options: Any) -> Doubling:  # noqa: ANN401 - CudaOptions' own
        backends.append(Doubling(fake, CudaOptions(**options)))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()
    fake.check()


def rows(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed + count).random((count, WIDTH), dtype=np.float32)


def run(backend: Doubling, array: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = backend.run({"mixed_5c": array})["video_embedding"]
    return result


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 30, 70])
def test_batches_of_any_size_are_split_and_padded_in_order(opened: Callable[..., Doubling], count: int) -> None:
    backend = opened()
    array = rows(count)
    np.testing.assert_array_equal(run(backend, array), array * 2 + 1)
    whole, rest = divmod(count, SIZES[-1])
    padded = [next(size for size in SIZES if size >= rest)] if rest else []
    assert backend.enqueued == [SIZES[-1]] * whole + padded


def test_stream_yields_in_order_and_takes_no_more_than_the_slots_ahead(opened: Callable[..., Doubling]) -> None:
    backend = opened(slots=2)
    taken = 0

    def batches() -> Iterator[dict[str, NDArray[np.float32]]]:
        nonlocal taken
        for index in range(20):
            taken += 1
            yield {"mixed_5c": rows(index % 11 + 1, seed=index)}

    for index, found in enumerate(backend.stream(batches())):
        np.testing.assert_array_equal(found["video_embedding"], rows(index % 11 + 1, seed=index) * 2 + 1)
        assert taken - index <= 3
    assert taken == 20


def test_submitted_batches_may_be_changed_by_the_caller_at_once(opened: Callable[..., Doubling]) -> None:
    backend = opened()
    array = rows(6)
    expected = array * 2 + 1
    future = backend.submit({"mixed_5c": array})
    array[:] = 0
    np.testing.assert_array_equal(future.result(timeout=60)["video_embedding"], expected)


def test_results_are_the_callers_own(opened: Callable[..., Doubling]) -> None:
    backend = opened(slots=1)
    first = run(backend, rows(4))
    kept = first.copy()
    run(backend, rows(4, seed=9))
    np.testing.assert_array_equal(first, kept)


def test_many_threads_share_one_backend(opened: Callable[..., Doubling]) -> None:
    backend = opened(slots=2)

    def work(seed: int) -> None:
        for count in (1, 3, 8, 17, 2):
            array = rows(count, seed)
            if (seed + count) % 2:
                np.testing.assert_array_equal(run(backend, array), array * 2 + 1)
            else:
                found = backend.submit({"mixed_5c": array}).result(timeout=60)
                np.testing.assert_array_equal(found["video_embedding"], array * 2 + 1)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, seed) for seed in range(24)]:
            done.result(timeout=120)


def test_memory_is_allocated_once_and_anew_only_for_a_larger_batch(
    opened: Callable[..., Doubling], fake: FakeCuda
) -> None:
    backend = opened(slots=3)
    run(backend, rows(2))
    small = (backend.device_bytes, backend.pinned_bytes)
    before = fake.counts["cudaMalloc"]
    for _ in range(5):
        run(backend, rows(2))
        run(backend, rows(1))
    assert fake.counts["cudaMalloc"] == before
    run(backend, rows(8))
    large = (backend.device_bytes, backend.pinned_bytes)
    assert large[0] > small[0]
    allocated = fake.counts["cudaMalloc"]
    run(backend, rows(70))
    assert fake.counts["cudaMalloc"] == allocated
    assert (backend.device_bytes, backend.pinned_bytes) == large
    assert backend.device_bytes == 3 * (256 + 256) + 8 * 64
    assert backend.pinned_bytes == 3 * (256 + 256)


def test_a_batch_past_the_declared_memory_is_refused_and_smaller_ones_still_run(
    opened: Callable[..., Doubling],
) -> None:
    backend = opened(slots=2, device_limit_bytes=2 * 512 + 2 * 64)
    small = rows(2)
    np.testing.assert_array_equal(run(backend, small), small * 2 + 1)
    for _ in range(2):
        with pytest.raises(DeviceMemoryError, match="would pass the declared limit of 1,152"):
            run(backend, rows(8))
        np.testing.assert_array_equal(run(backend, small), small * 2 + 1)
    assert isinstance(backend.submit({"mixed_5c": rows(8)}).exception(timeout=60), DeviceMemoryError)
    np.testing.assert_array_equal(run(backend, small), small * 2 + 1)
