"""Streams, events, copies and captured graphs of the CUDA layer, and the GPU each thread works on."""

from __future__ import annotations

import gc
import importlib
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings import runtime

from helpers.fake_cuda import FakeCuda, FakeGpu, install
from milnce import cuda_binding
from milnce.cuda import Cuda
from milnce.errors import (
    BackendError,
    CudaError,
    InputError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


Error = runtime.cudaError_t


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Simulate one GPU whose work waits until somebody waits for it; nothing may be wrong or left at the end."""
    fake = install(monkeypatch, policy="lazy")
    yield fake
    gc.collect()
    fake.check()


def test_copies_move_the_bytes_in_each_direction(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(16) as device, cuda.pinned_buffer(16) as pinned, cuda.stream() as stream:
        array = pinned.array("uint8", (16,))
        array[:] = range(16)
        cuda.upload(device.pointer, pinned.pointer, 16, stream)
        cuda.copy(device.pointer, device.pointer + 8, 4, stream)
        cuda.fill(device.pointer + 12, 200, 4, stream)
        stream.synchronize()
        array[:] = 0
        cuda.download(pinned.pointer, device.pointer, 16, stream)
        stream.synchronize()
        assert array.tolist() == [8, 9, 10, 11, 4, 5, 6, 7, 8, 9, 10, 11, 200, 200, 200, 200]
    kinds = [made.args[3].name for made in fake.calls if made.name == "cudaMemcpyAsync"]
    assert kinds == ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToDevice", "cudaMemcpyDeviceToHost"]


def test_streams_do_not_wait_for_the_default_stream(fake: FakeCuda) -> None:
    with Cuda().stream():
        assert [made.args for made in fake.calls if made.name == "cudaStreamCreateWithFlags"] == [
            (runtime.cudaStreamNonBlocking,)
        ]


def test_a_stream_waits_for_an_event_and_the_host_does_not(fake: FakeCuda) -> None:
    cuda = Cuda()
    order: list[str] = []
    with cuda.stream() as first, cuda.stream() as second, cuda.event() as event:
        fake.launch(first.handle, lambda: order.append("first"))
        event.record(first)
        second.wait(event)
        fake.launch(second.handle, lambda: order.append("second"))
        assert not order
        second.synchronize()
        assert order == ["first", "second"]


def test_an_event_knows_whether_it_has_been_reached(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as stream, cuda.event() as event:
        done = [event.done]
        fake.launch(stream.handle, lambda: None)
        event.record(stream)
        done.append(event.done)
        event.synchronize()
        done.append(event.done)
    assert done == [True, False, True]
    assert fake.cudaGetLastError() == (Error.cudaSuccess,)


def test_only_an_event_made_for_it_takes_times(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as stream, cuda.event() as plain, cuda.event(timing=True) as timed:
        for event in (plain, timed):
            event.record(stream)
        stream.synchronize()
        assert timed.elapsed_ms(timed) == 0
        with pytest.raises(CudaError, match=r"^cudaEventElapsedTime failed: cudaErrorInvalidResourceHandle"):
            timed.elapsed_ms(plain)
    flags = [made.args for made in fake.calls if made.name == "cudaEventCreateWithFlags"]
    assert flags == [(runtime.cudaEventDisableTiming,), (0,)]


def test_a_borrowed_stream_stays_open(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as own:
        with cuda.borrowed_stream(own.handle) as borrowed:
            assert borrowed.handle == own.handle
            borrowed.synchronize()
        own.synchronize()
    assert fake.counts["cudaStreamDestroy"] == 1
    cuda.borrowed_stream(0).synchronize()


@pytest.mark.parametrize("handle", [-1, True, "0x10", 1.0, None])
def test_what_is_no_handle_of_a_stream_is_refused(fake: FakeCuda, handle: Any) -> None:  # noqa: ANN401 - wrong types
    with pytest.raises(InputError) as caught:
        Cuda().borrowed_stream(handle)
    assert str(caught.value) == f"a CUDA stream is given by its handle, an integer from 0; {handle!r} given"
    assert fake.violations == []


def test_pointers_tell_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, gpus=(FakeGpu(), FakeGpu()))
    first, second = Cuda(0), Cuda(1)
    host = np.zeros(4)
    with first.device_buffer(8) as one, second.device_buffer(8) as two, first.pinned_buffer(8) as pinned:
        assert first.device_of(one.pointer) == 0
        assert first.device_of(two.pointer) == 1
        assert first.device_of(two.pointer + 4) == 1
        assert first.device_of(pinned.pointer) is None
        assert first.device_of(int(host.ctypes.data)) is None
    fake.fail("cudaPointerGetAttributes", error=Error.cudaErrorInvalidValue)
    assert first.device_of(0x1234) is None
    assert fake.cudaGetLastError() == (Error.cudaSuccess,)
    fake.fail("cudaPointerGetAttributes", error=Error.cudaErrorUnknown)
    with pytest.raises(CudaError, match=r"^cudaPointerGetAttributes failed: cudaErrorUnknown"):
        first.device_of(0x1234)
    fake.check()


def test_managed_memory_is_on_its_gpu(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    managed = runtime.cudaPointerAttributes()
    managed.type, managed.device = runtime.cudaMemoryType.cudaMemoryTypeManaged, 0
    monkeypatch.setattr(fake, "cudaPointerGetAttributes", lambda _: (Error.cudaSuccess, managed))
    assert Cuda().device_of(0x1000) == 0


def test_every_thread_works_on_the_gpu_of_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, gpus=(FakeGpu(total_bytes=1000), FakeGpu(total_bytes=2000)))
    cuda = Cuda(1)
    with cuda.device_buffer(8) as buffer, cuda.stream() as stream, cuda.event() as event:
        for use in (
            cuda.activate,
            cuda.memory,
            lambda: cuda.device_buffer(0),
            lambda: cuda.device_of(buffer.pointer),
            lambda: cuda.fill(buffer.pointer, 0, 8, stream),
            lambda: cuda.copy(buffer.pointer, buffer.pointer + 4, 4, stream),
            lambda: event.record(stream),
            lambda: event.done,
            event.synchronize,
            stream.synchronize,
        ):
            with ThreadPoolExecutor(1) as pool:  # a new thread begins on GPU 0
                assert pool.submit(lambda: fake.device).result() == 0
                pool.submit(use).result()
                assert pool.submit(lambda: fake.device).result() == 1
    for make in (lambda: cuda.device_buffer(8), lambda: cuda.pinned_buffer(8), cuda.stream, cuda.event):
        with ThreadPoolExecutor(1) as pool, pool.submit(make).result():
            assert fake.memory.used_bytes[0] == 0
            assert {one.device for one in fake.streams.values()} <= {1}
            assert {one.device for one in fake.events.values()} <= {1}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cuda.memory).result() == (2000, 2000)
    fake.check()


def test_giving_back_leaves_the_threads_gpu_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, gpus=(FakeGpu(), FakeGpu()))
    cuda = Cuda(1)
    buffer = cuda.device_buffer(8)
    fake.cudaSetDevice(0)
    freed_on, free = [], fake.cudaFree

    def recorded(pointer: int) -> tuple[Any, ...]:
        freed_on.append(fake.device)
        return free(pointer)

    monkeypatch.setattr(fake, "cudaFree", recorded)
    buffer.close()
    assert freed_on == [1], "on GPU 0 it could make a context there, which takes hundreds of MB"
    assert fake.device == 0
    with cuda.active():
        assert fake.device == 1
    assert fake.device == 0
    with pytest.raises(ZeroDivisionError), cuda.active():
        raise ZeroDivisionError
    assert fake.device == 0
    cuda.activate()
    before = fake.counts["cudaSetDevice"]
    with cuda.active():
        pass
    assert fake.counts["cudaSetDevice"] == before, "nothing to do on the right GPU"
    fake.check()


def test_a_gpu_that_nobody_uses_gets_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, gpus=(FakeGpu(), FakeGpu()))
    cuda = Cuda(1)
    with ThreadPoolExecutor(1) as pool:  # a thread that has not used CUDA is on GPU 0, by default

        def work() -> int:
            with cuda.active():
                cuda.device_buffer(8).close()
            return fake.device

        assert pool.submit(work).result() == 1
    assert fake.contexts == {1}
    fake.check()


@pytest.mark.parametrize(
    ("found", "state", "expected"),
    [(0, (0, 0, 1), True), (0, (0, 0, 0), False), (0, (999, 0, 1), False), (101, (0, 0, 1), False)],
)
def test_the_driver_tells_whether_a_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch, found: int, state: tuple[int | None, ...], expected: bool
) -> None:
    class Driver:
        @staticmethod
        def cuDeviceGet(index: int) -> tuple[int, int]:  # noqa: N802 - the driver's name
            return found, index + 40

        @staticmethod
        def cuDevicePrimaryCtxGetState(device: int) -> tuple[int | None, ...]:  # noqa: N802 - the driver's name
            assert device == 47
            return state

    real = importlib.import_module("cuda.bindings.driver")
    assert len(inspect.signature(real.cuDeviceGet).parameters) == 1
    assert len(inspect.signature(real.cuDevicePrimaryCtxGetState).parameters) == 1
    monkeypatch.setattr("cuda.bindings.driver", Driver)
    assert cuda_binding.has_context(7) is expected


def test_a_graph_repeats_what_was_captured(fake: FakeCuda) -> None:
    cuda = Cuda()
    done = []
    with cuda.stream() as stream:
        with stream.capture() as capture:
            fake.launch(stream.handle, lambda: done.append(1))
            with pytest.raises(BackendError, match=r"^the graph is not captured yet; take it after the with block$"):
                _ = capture.graph
        assert fake.counts["cudaGraphDestroy"] == 1
        with capture.graph as graph:
            for _ in range(3):
                graph.launch(stream)
            stream.synchronize()
    assert done == [1, 1, 1]


def test_a_capture_disturbs_no_other_thread(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as stream, stream.capture() as capture:
        thread = threading.Thread(target=fake.cudaDeviceSynchronize)
        thread.start()
        thread.join()
    capture.graph.close()
    assert fake.cudaGetLastError() == (Error.cudaSuccess,)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, CudaError])
def test_an_error_in_a_capture_ends_it_and_leaves_nothing(fake: FakeCuda, error: type[BaseException]) -> None:
    cuda = Cuda()
    with cuda.stream() as stream:
        with pytest.raises(error), stream.capture() as capture:
            raise error
        assert fake.leaks() == {"streams": 1}
        assert fake.captures == []
        with pytest.raises(BackendError, match="not captured yet"):
            _ = capture.graph
        with stream.capture() as capture:  # the stream works as before
            pass
        capture.graph.close()
        stream.synchronize()


def test_a_call_that_cannot_be_captured_is_an_error_and_the_stream_lives(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as stream:
        with pytest.raises(CudaError) as caught, stream.capture():
            stream.synchronize()
        assert str(caught.value) == (
            "cudaStreamSynchronize failed: cudaErrorStreamCaptureUnsupported (900): operation not permitted when "
            "stream is capturing; a call was made that a CUDA graph cannot record: run without CUDA graphs"
        )
        with (
            pytest.raises(CudaError, match=r"^cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated"),
            stream.capture(),
        ):
            fake.cudaMalloc(8)  # by another library, which did not check
        stream.synchronize()
    assert fake.leaks() == {}


def test_memory_may_be_allocated_and_freed_while_a_graph_is_captured(fake: FakeCuda) -> None:
    cuda = Cuda()
    forgotten = [cuda.device_buffer(8), cuda.pinned_buffer(8)]
    with cuda.stream() as stream:
        with stream.capture() as capture:
            forgotten.clear()
            gc.collect()
            with cuda.device_buffer(8), cuda.pinned_buffer(8):
                fake.launch(stream.handle, lambda: None)
        capture.graph.close()
    assert fake.capture_mode == runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal


def test_the_capture_of_another_library_is_not_broken(fake: FakeCuda) -> None:
    cuda = Cuda()
    theirs = fake.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking)[1]
    fake.cudaStreamBeginCapture(theirs, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal)
    thread = threading.Thread(target=lambda: cuda.device_buffer(8).close())
    thread.start()
    thread.join()
    error, graph = fake.cudaStreamEndCapture(theirs)
    assert error == Error.cudaSuccess
    fake.cudaGraphDestroy(graph)
    fake.cudaStreamDestroy(theirs)
