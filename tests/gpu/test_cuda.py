"""The CUDA layer on a real driver: memory comes back, copies arrive, streams wait, graphs replay."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milnce.cuda import Cuda, gpus
from milnce.errors import CudaError, CudaUnavailableError, DeviceMemoryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce.cuda import DeviceBuffer, Stream

MIB = 2**20
# The driver hands out device memory in blocks of 2 MiB.
GRAIN = 2 * MIB


def bytes_of(seed: int, count: int = 3 * MIB + 17) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def through_the_gpu(cuda: Cuda, stream: Stream, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy host -> pinned -> device -> device -> pinned -> host."""
    with ExitStack() as stack:
        sent, received = (stack.enter_context(cuda.pinned_buffer(data.nbytes)) for _ in range(2))
        there, beside = (stack.enter_context(cuda.device_buffer(data.nbytes)) for _ in range(2))
        sent.array("uint8", data.shape)[:] = data
        received.array("uint8", data.shape)[:] = 0
        cuda.upload(there.pointer, sent.pointer, data.nbytes, stream)
        cuda.copy(beside.pointer, there.pointer, data.nbytes, stream)
        cuda.download(received.pointer, beside.pointer, data.nbytes, stream)
        stream.synchronize()
        return received.array("uint8", data.shape).copy()


def test_the_driver_describes_its_gpus() -> None:
    found = gpus()
    assert [gpu.index for gpu in found] == list(range(len(found)))
    for gpu in found:
        assert gpu.name
        assert gpu.compute_capability >= (5, 0)
        assert gpu.total_bytes >= 256 * MIB
        assert gpu.driver_cuda >= (11, 0)
        assert gpu.multi_processors > 0
    with pytest.raises(CudaUnavailableError, match=f"there is no GPU {len(found)}; this process sees {len(found)}"):
        Cuda(len(found))


def test_fifty_cycles_of_everything_give_all_memory_back(cuda: Cuda) -> None:
    free = []
    for cycle in range(52):
        with ExitStack() as stack:
            stack.enter_context(cuda.device_buffer(16 * MIB))
            stack.enter_context(cuda.pinned_buffer(4 * MIB))
            stream = stack.enter_context(cuda.stream())
            event = stack.enter_context(cuda.event())
            event.record(stream)
            assert np.array_equal(through_the_gpu(cuda, stream, bytes_of(cycle, 4096)), bytes_of(cycle, 4096))
            assert cuda.device_bytes == 16 * MIB
            assert cuda.pinned_bytes == 4 * MIB
        assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)
        free.append(cuda.memory()[0])
    assert free[1] - free[-1] < GRAIN, f"free memory went from {free[1]:,} to {free[-1]:,} bytes"


def test_forgotten_memory_comes_back_too(cuda: Cuda) -> None:
    before = cuda.memory()[0]
    for _ in range(50):
        cuda.device_buffer(16 * MIB)
    assert cuda.device_bytes == 0
    assert before - cuda.memory()[0] < GRAIN


def test_bytes_come_back_as_they_went(cuda: Cuda) -> None:
    with cuda.stream() as stream:
        assert np.array_equal(through_the_gpu(cuda, stream, bytes_of(0)), bytes_of(0))


def test_the_default_stream_of_the_caller_is_taken_too(cuda: Cuda) -> None:
    with cuda.stream() as own:
        for handle in (0, own.handle):
            borrowed = cuda.borrowed_stream(handle)
            assert np.array_equal(through_the_gpu(cuda, borrowed, bytes_of(1)), bytes_of(1))
            borrowed.close()
        assert np.array_equal(through_the_gpu(cuda, own, bytes_of(2)), bytes_of(2))  # it was not destroyed


def test_fill_sets_every_byte_and_none_beside(cuda: Cuda) -> None:
    with cuda.stream() as stream, cuda.device_buffer(1000) as there, cuda.pinned_buffer(1000) as received:
        cuda.fill(there.pointer, 7, 1000, stream)
        cuda.fill(there.pointer + 100, 9, 50, stream)
        cuda.download(received.pointer, there.pointer, 1000, stream)
        stream.synchronize()
        found = received.array("uint8", (1000,))
        assert (found[100:150] == 9).all()
        assert (found[:100] == 7).all()
        assert (found[150:] == 7).all()


def test_one_stream_waits_for_anothers_event(cuda: Cuda) -> None:
    data, nbytes = bytes_of(3, 16 * MIB), 16 * MIB
    with ExitStack() as stack:
        first, second = (stack.enter_context(cuda.stream()) for _ in range(2))
        uploaded = stack.enter_context(cuda.event())
        sent, received = (stack.enter_context(cuda.pinned_buffer(nbytes)) for _ in range(2))
        there = stack.enter_context(cuda.device_buffer(nbytes))
        sent.array("uint8", (nbytes,))[:] = data
        for _ in range(5):
            cuda.fill(there.pointer, 0, nbytes, first)
            cuda.upload(there.pointer, sent.pointer, nbytes, first)
            uploaded.record(first)
            second.wait(uploaded)
            cuda.download(received.pointer, there.pointer, nbytes, second)
            second.synchronize()
            assert uploaded.done
            assert np.array_equal(received.array("uint8", (nbytes,)), data)


def test_events_take_times(cuda: Cuda) -> None:
    nbytes = 64 * MIB
    with ExitStack() as stack:
        stream = stack.enter_context(cuda.stream())
        began, ended = (stack.enter_context(cuda.event(timing=True)) for _ in range(2))
        there = stack.enter_context(cuda.device_buffer(nbytes))
        began.record(stream)
        cuda.fill(there.pointer, 1, nbytes, stream)
        ended.record(stream)
        ended.synchronize()
        assert ended.done
        assert 0 <= ended.elapsed_ms(began) < 10_000


def test_a_captured_graph_replays_with_what_memory_holds_then(cuda: Cuda) -> None:
    nbytes = MIB
    with ExitStack() as stack:
        stream = stack.enter_context(cuda.stream())
        sent, received = (stack.enter_context(cuda.pinned_buffer(nbytes)) for _ in range(2))
        there, beside = (stack.enter_context(cuda.device_buffer(nbytes)) for _ in range(2))
        with stream.capture() as capture:
            cuda.upload(there.pointer, sent.pointer, nbytes, stream)
            cuda.copy(beside.pointer, there.pointer, nbytes, stream)
            cuda.fill(beside.pointer, 5, 10, stream)
            cuda.download(received.pointer, beside.pointer, nbytes, stream)
        graph = stack.enter_context(capture.graph)
        for seed in range(3):
            data = bytes_of(seed, nbytes)
            sent.array("uint8", (nbytes,))[:] = data
            graph.launch(stream)
            stream.synchronize()
            found = received.array("uint8", (nbytes,))
            assert (found[:10] == 5).all()
            assert np.array_equal(found[10:], data[10:])


def test_an_error_inside_a_capture_leaves_the_stream_usable(cuda: Cuda) -> None:
    def fail(there: DeviceBuffer) -> None:
        with stream.capture():
            cuda.fill(there.pointer, 1, 16, stream)
            raise ValueError("on purpose")

    with cuda.stream() as stream, cuda.device_buffer(16) as buffer:
        with pytest.raises(ValueError, match="on purpose"):
            fail(buffer)
        assert np.array_equal(through_the_gpu(cuda, stream, bytes_of(4)), bytes_of(4))


def test_a_failed_call_is_named_and_leaves_no_error_behind(cuda: Cuda) -> None:
    with cuda.stream() as stream:
        with pytest.raises(CudaError, match=r"^cudaSetDevice failed: cudaErrorInvalidDevice \(101\): "):
            cuda.call("cudaSetDevice", 10**6)
        assert np.array_equal(through_the_gpu(cuda, stream, bytes_of(5)), bytes_of(5))


def test_more_memory_than_there_is_is_refused_and_less_works_after(cuda: Cuda) -> None:
    total = cuda.memory()[1]
    with pytest.raises(DeviceMemoryError, match=f"{2 * total:,} bytes of device memory asked for"):
        cuda.device_buffer(2 * total)
    with cuda.stream() as stream:
        assert np.array_equal(through_the_gpu(cuda, stream, bytes_of(6)), bytes_of(6))


def test_declared_limits_hold() -> None:
    limited = Cuda(device_limit_bytes=10 * MIB, pinned_limit_bytes=MIB)
    with limited.device_buffer(8 * MIB), limited.pinned_buffer(MIB):
        with pytest.raises(DeviceMemoryError, match="would pass the declared limit"):
            limited.device_buffer(3 * MIB)
        with pytest.raises(DeviceMemoryError, match="would pass the declared limit"):
            limited.pinned_buffer(1)
    limited.device_buffer(10 * MIB).close()


def test_addresses_are_told_apart(cuda: Cuda) -> None:
    with cuda.device_buffer(4096) as there, cuda.pinned_buffer(4096) as here:
        assert cuda.device_of(there.pointer) == cuda.info.index
        assert cuda.device_of(there.pointer + 100) == cuda.info.index
        assert cuda.device_of(here.pointer) is None
    assert cuda.device_of(bytes_of(7).ctypes.data) is None


def test_threads_copy_side_by_side(cuda: Cuda) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        with cuda.stream() as stream:
            for turn in range(10):
                data = bytes_of(100 * seed + turn)
                if not np.array_equal(through_the_gpu(cuda, stream, data), data):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)
