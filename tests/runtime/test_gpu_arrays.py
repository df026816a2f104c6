"""Arrays on the GPU given to a backend and left there: in the order of the caller's streams, and no host waits."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers import fake_cuda
from helpers.doubling import Doubling, Foreign, doubled, floats, hold_completions, read_later
from milnce.backends.base import CudaOptions
from milnce.cuda import Cuda
from milnce.cuda_resources import Event, Stream
from milnce.device_arrays import DeviceArray
from milnce.errors import CudaError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.fake_cuda import FakeCuda

    Opened = Callable[..., Doubling]

POLICIES = [("lazy", 0), ("random", 1), ("random", 2)]


@pytest.fixture(params=POLICIES, ids=lambda p: f"{p[0]}{p[1]}")
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    policy, seed = request.param
    gpus = [fake_cuda.FakeGpu("First"), fake_cuda.FakeGpu("Second")]
    fake = fake_cuda.install(monkeypatch, policy=policy, seed=seed, gpus=gpus)
    yield fake
    fake.check()


@pytest.fixture
def opened(fake: FakeCuda) -> Iterator[Opened]:
    backends: list[Doubling] = []

    def make(device: int = 0, **options: Any) -> Doubling:  # noqa: ANN401 - CudaOptions' own
        backends.append(Doubling(fake, CudaOptions(**options), device=device))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()


@pytest.fixture
def stream(fake: FakeCuda) -> Iterator[Stream]:
    del fake
    with Cuda().stream() as made:
        yield made
        made.synchronize()


class Exported(Foreign):
    """An array that is exported by DLPack: its stream is waited for by the library that holds it."""

    __cuda_array_interface__ = property(lambda _: pytest.fail("DLPack was there"))

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int) -> object:
        with self.cuda.event() as event:
            event.record(self.cuda.borrowed_stream(self.stream or 0))
            self.cuda.borrowed_stream(stream).wait(event)
        data = (ctypes.c_uint8 * self.values.nbytes).from_address(self.buffer.pointer)
        return np.frombuffer(memoryview(data), self.values.dtype).reshape(self.values.shape).__dlpack__()


@pytest.mark.parametrize("kind", [Foreign, Exported])
@pytest.mark.parametrize("count", [3, 21])
def test_arrays_on_the_gpu_are_read_when_their_stream_has_written_them(
    opened: Opened, fake: FakeCuda, stream: Stream, kind: type[Foreign], count: int
) -> None:
    backend = opened(slots=2)
    expected = doubled(floats(count))
    for own in (stream.handle, None):
        before = fake.pageable_copies
        found = backend.run({"mixed_5c": kind(fake, floats(count), stream=own)})
        np.testing.assert_array_equal(found["video_embedding"], expected)
        future = backend.submit({"mixed_5c": kind(fake, floats(count), stream=own)})
        np.testing.assert_array_equal(future.result(timeout=60)["video_embedding"], expected)
        batches = ({"mixed_5c": kind(fake, floats(count), stream=own)} for _ in range(4))
        for streamed in backend.stream(batches):
            np.testing.assert_array_equal(streamed["video_embedding"], expected)
        assert fake.pageable_copies == before
    # Nothing of it went through the host.
    uploads = [call for call in fake.calls if call.name == "cudaMemcpyAsync" and int(call.args[3]) == 1]
    assert uploads == []


@pytest.mark.parametrize("count", [2, 21])
def test_results_stay_on_the_gpu_when_asked(opened: Opened, fake: FakeCuda, count: int) -> None:
    backend = opened(slots=2)
    first = len(fake.calls)
    found = backend.run({"mixed_5c": floats(count)}, on_device=True)["video_embedding"]
    directions = {int(call.args[3]) for call in fake.calls[first:] if call.name == "cudaMemcpyAsync"}
    assert directions == {1, 3}  # up, and from device to device
    assert isinstance(found, DeviceArray)
    assert (found.shape, found.dtype.name, found.device, found.stream) == ((count, 5), "float32", 0, None)
    # It is complete: the default stream, which nothing orders, reads it.
    read = read_later(fake, found, 0)
    np.testing.assert_array_equal(found.copy_to_host(), doubled(floats(count)))
    fake.cudaDeviceSynchronize()
    np.testing.assert_array_equal(read, doubled(floats(count)))


@pytest.mark.parametrize("count", [2, 21])
@pytest.mark.parametrize("where", ["host", "device"])
def test_the_caller_s_stream_orders_everything_and_the_host_waits_for_nothing(
    opened: Opened, fake: FakeCuda, stream: Stream, monkeypatch: pytest.MonkeyPatch, where: str, count: int
) -> None:
    backend = opened(slots=4)
    backend.run({"mixed_5c": floats(count)})  # memory is allocated by now
    waits: list[str] = []
    for kind in (Event, Stream):
        original = kind.synchronize

        def noted(self: Any, original: Any = original) -> None:  # noqa: ANN401
            if threading.current_thread() is threading.main_thread():
                waits.append(type(self).__name__)
            original(self)

        monkeypatch.setattr(kind, "synchronize", noted)
    gate = hold_completions(monkeypatch)
    given: Any = floats(count)
    if where == "device":
        given = Foreign(fake, np.zeros((count, 5), np.float32), stream=None, late=False)
        given.stream = stream.handle
        given.write(floats(count))  # a kernel of the caller's, on the caller's stream
        given.stream = 1  # and an interface that does not say so: the argument does
    found = backend.run({"mixed_5c": given}, cuda_stream=stream.handle)["video_embedding"]
    if where == "device":
        given.stream = stream.handle
        given.write(np.full((count, 5), 7, np.float32))  # the caller may write there again at once
    read = read_later(fake, found, stream.handle)
    assert waits == []
    assert found.stream == stream.handle
    gate.set()
    stream.synchronize()
    np.testing.assert_array_equal(read, doubled(floats(count)))
    # Another stream that honours the interface sees them too.
    np.testing.assert_array_equal(found.copy_to_host(), doubled(floats(count)))
    backend.close()
    assert found.stream is None  # they are complete, and the stream may go


def test_the_default_stream_can_be_the_caller_s(opened: Opened, fake: FakeCuda) -> None:
    backend = opened()
    for handle in (0, 1):
        given = Foreign(fake, floats(4))
        read = read_later(fake, backend.run({"mixed_5c": given}, cuda_stream=handle)["video_embedding"], handle)
        fake.cudaStreamSynchronize(handle)
        np.testing.assert_array_equal(read, doubled(floats(4)))


def test_results_may_be_dropped_before_they_are_computed(
    opened: Opened, fake: FakeCuda, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(slots=3)
    backend.run({"mixed_5c": floats(4)})
    used = backend.device_bytes
    gate = hold_completions(monkeypatch)
    backend.run({"mixed_5c": Foreign(fake, floats(4))}, cuda_stream=stream.handle)
    assert backend.device_bytes == used + 4 * 20
    gate.set()
    backend.close()
    assert fake.violations == []
    assert backend.device_bytes == 0


def test_results_live_and_count_after_the_model_is_closed(opened: Opened, fake: FakeCuda, stream: Stream) -> None:
    backend = opened()
    kept = [
        backend.run({"mixed_5c": floats(4)}, on_device=True)["video_embedding"],
        backend.run({"mixed_5c": floats(9)}, cuda_stream=stream.handle)["video_embedding"],
    ]
    backend.close()
    assert backend.device_bytes == 13 * 20
    for found, count in zip(kept, (4, 9), strict=True):
        np.testing.assert_array_equal(found.copy_to_host(), doubled(floats(count)))
    frees = fake.memory.frees["device"]
    del found
    kept.clear()
    assert backend.device_bytes == 0
    assert fake.memory.frees["device"] - frees == 2


def test_a_stream_that_is_being_captured_is_refused_and_lives(opened: Opened, fake: FakeCuda, stream: Stream) -> None:
    backend = opened()
    backend.run({"mixed_5c": floats(2)})
    with stream.capture() as capture:
        fake.launch(stream.handle, lambda: None)
        with pytest.raises(InputError, match=f"cuda_stream: {stream.handle:#x} is being captured into a CUDA graph"):
            backend.run({"mixed_5c": floats(2)}, cuda_stream=stream.handle)
        with ThreadPoolExecutor(1) as other:  # which the capture is none of
            found = other.submit(backend.run, {"mixed_5c": floats(2)}).result(timeout=60)
        np.testing.assert_array_equal(found["video_embedding"], doubled(floats(2)))
    capture.graph.launch(stream)
    capture.graph.close()
    given = Foreign(fake, floats(3), stream=stream.handle)
    found = backend.run({"mixed_5c": given}, cuda_stream=stream.handle)
    np.testing.assert_array_equal(found["video_embedding"].copy_to_host(), doubled(floats(3)))


@pytest.mark.parametrize("handle", [True, -1, "7", 1.0])
def test_what_is_no_stream_is_refused(opened: Opened, handle: object) -> None:
    backend = opened()
    with pytest.raises(InputError, match="a CUDA stream is given by its handle"):
        backend.run({"mixed_5c": floats(1)}, cuda_stream=handle)  # type: ignore[arg-type] # on purpose
    assert backend.device_bytes == 0


def test_a_stream_of_another_gpu_is_refused(opened: Opened, fake: FakeCuda) -> None:
    backend = opened(device=1)
    with (
        Cuda(0).stream() as other,
        pytest.raises(CudaError, match="a stream or event of another GPU or context was used"),
    ):
        backend.run({"mixed_5c": floats(1)}, cuda_stream=other.handle)
    np.testing.assert_array_equal(backend.run({"mixed_5c": floats(1)})["video_embedding"], doubled(floats(1)))
    fake.cudaSetDevice(0)


def refused(fake: FakeCuda, kind: str) -> tuple[Foreign, str]:
    """Return an array that is not taken, and what is said."""
    if kind == "another GPU":
        array = Foreign(fake, floats(2), device=1, late=False)
        return array, r"mixed_5c: it is on GPU 1, and the model runs on GPU 0 \(First\); copy it there"
    if kind == "dtype":
        return Foreign(
            fake, floats(2).astype(np.float16), late=False
        ), "mixed_5c: dtype float16 given, float32 expected"
    if kind == "shape":
        return Foreign(fake, np.zeros((2, 4), np.float32), late=False), "mixed_5c: axis 1 is 4"
    if kind == "no rows":
        return Foreign(fake, np.zeros((0, 5), np.float32), late=False), "mixed_5c: N is 0"
    array = Foreign(fake, floats(4), late=False)
    array.values, array.strides = array.values[:2], (40, 4)
    return array, "mixed_5c: .* is not C-contiguous"


@pytest.mark.parametrize("kind", ["another GPU", "dtype", "shape", "no rows", "strides"])
def test_arrays_that_do_not_fit_are_refused_with_what_is_wrong(opened: Opened, fake: FakeCuda, kind: str) -> None:
    backend = opened()
    array, text = refused(fake, kind)
    for call in (backend.run, backend.submit, lambda feeds: backend.run(feeds, on_device=True)):
        with pytest.raises(InputError, match=text):
            call({"mixed_5c": array})
    np.testing.assert_array_equal(backend.run({"mixed_5c": floats(1)})["video_embedding"], doubled(floats(1)))
    fake.cudaSetDevice(0)
