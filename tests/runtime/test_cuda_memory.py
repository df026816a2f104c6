"""Memory of the CUDA layer: all of it is freed, whatever fails, and never more is taken than was declared."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings import runtime

from helpers.cuda_use import roundtrip
from helpers.fake_cuda import FakeCuda, install
from milnce.cuda import Cuda
from milnce.errors import (
    BackendError,
    CudaError,
    CudaUnavailableError,
    DeviceMemoryError,
    InputError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


Error = runtime.cudaError_t
# Failing these is failing to give something back: that one thing stays, and nothing else may.
RELEASES = {
    "cudaFree": "device",
    "cudaFreeHost": "pinned",
    "cudaStreamDestroy": "streams",
    "cudaEventDestroy": "events",
    "cudaGraphDestroy": "graphs",
    "cudaGraphExecDestroy": "executables",
}
# Before freeing, these may fail: it is tried all the same.
PREPARATIONS = {"cudaGetDevice", "cudaThreadExchangeStreamCaptureMode"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Simulate one GPU whose work waits until somebody waits for it; nothing may be wrong or left at the end."""
    fake = install(monkeypatch, policy="lazy")
    yield fake
    gc.collect()
    fake.check()


def test_everything_allocated_is_freed(fake: FakeCuda) -> None:
    cuda = Cuda()
    for _ in range(3):
        roundtrip(cuda)
    assert fake.leaks() == {}
    for lend, take in (
        ("cudaMalloc", "cudaFree"),
        ("cudaHostAlloc", "cudaFreeHost"),
        ("cudaStreamCreateWithFlags", "cudaStreamDestroy"),
        ("cudaEventCreateWithFlags", "cudaEventDestroy"),
        ("cudaStreamEndCapture", "cudaGraphDestroy"),
        ("cudaGraphInstantiate", "cudaGraphExecDestroy"),
    ):
        assert fake.counts[lend] == fake.counts[take] > 0, lend
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)


def calls_of_a_roundtrip() -> list[tuple[str, int]]:
    """Return every call of `roundtrip`, with how many of its name came before it."""
    with pytest.MonkeyPatch.context() as patch:
        fake = install(patch)
        roundtrip(Cuda())
    seen: dict[str, int] = {}
    calls = []
    for made in fake.calls:
        calls.append((made.name, seen.get(made.name, 0)))
        seen[made.name] = seen.get(made.name, 0) + 1
    return [one for one in calls if one[0] not in ("cudaDriverGetVersion", "cudaRuntimeGetVersion")]


@pytest.mark.parametrize(("name", "before"), calls_of_a_roundtrip())
def test_whichever_call_fails_nothing_else_is_left(monkeypatch: pytest.MonkeyPatch, name: str, before: int) -> None:
    fake = install(monkeypatch)  # eager: what is under way when a with block breaks is the caller's to wait for
    fake.fail(name, after=before, error=Error.cudaErrorUnknown)
    failed = "" if name in PREPARATIONS else "nothing"
    try:
        roundtrip(Cuda())
    except (CudaError, CudaUnavailableError) as error:
        failed = str(error)
    words = f"{name} failed: cudaErrorUnknown (999): unknown error"
    assert not failed or failed.removeprefix("GPU 0, Fake GPU, cannot be used: ").startswith(words)
    gc.collect()
    assert fake.leaks() == ({RELEASES[name]: 1} if name in RELEASES else {})
    # A with block that breaks frees what is still in use; to wait before is for who enqueued it.
    assert [problem for problem in fake.violations if "nothing has waited for" not in problem] == []
    if "Exchange" not in name:
        assert fake.capture_mode == runtime.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
    fake.captures.clear()  # one that was not ended went with its stream
    roundtrip(Cuda())  # and everything still works


def test_an_allocation_whose_preparation_or_end_fails_leaves_nothing(fake: FakeCuda) -> None:
    cuda = Cuda()
    for after in (0, 1):
        fake.fail("cudaThreadExchangeStreamCaptureMode", after=after, error=Error.cudaErrorUnknown)
        with pytest.raises(CudaError, match=r"^cudaThreadExchangeStreamCaptureMode failed: cudaErrorUnknown"):
            cuda.device_buffer(8)
        assert cuda.device_bytes == 0
        assert fake.leaks() == {}
    assert fake.counts["cudaMalloc"] == fake.counts["cudaFree"] == 1


def test_a_failure_of_a_with_block_is_not_hidden_by_one_of_freeing(fake: FakeCuda) -> None:
    buffer = Cuda().device_buffer(8)
    pointer = buffer.pointer
    fake.fail("cudaFree", error=Error.cudaErrorIllegalAddress)
    with pytest.raises(ZeroDivisionError), buffer:
        raise ZeroDivisionError
    assert fake.counts["cudaFree"] == 1
    fake.cudaFree(pointer)


def test_closing_twice_frees_once(fake: FakeCuda) -> None:
    cuda = Cuda()
    things = [cuda.device_buffer(8), cuda.pinned_buffer(8), cuda.stream(), cuda.event()]
    for thing in (*things, *things):
        thing.close()
    assert [fake.counts[name] for name in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaEventDestroy")] == [
        1
    ] * 4


def test_what_is_forgotten_is_freed(fake: FakeCuda) -> None:
    cuda = Cuda()
    things: list[Any] = [cuda.device_buffer(8), cuda.pinned_buffer(16), cuda.stream(), cuda.event()]
    with things[2].capture() as capture:
        pass
    things.append(capture)
    assert len(fake.leaks()) == 5
    del capture
    things.clear()
    gc.collect()
    assert fake.leaks() == {}
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)


def test_forgetting_never_raises(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    buffer = Cuda().device_buffer(8)
    pointer = buffer.pointer
    fake.fail("cudaFree", error=Error.cudaErrorIllegalAddress)
    del buffer
    gc.collect()
    assert fake.counts["cudaFree"] == 1
    assert not raised
    fake.cudaFree(pointer)


def test_what_is_left_is_freed_when_the_program_ends() -> None:
    code = """
import atexit, pytest
from helpers.fake_cuda import install
fake = install(pytest.MonkeyPatch())
atexit.register(lambda: print(fake.leaks()))  # runs after what was registered later
from milnce.cuda import Cuda
cuda = Cuda()
kept = [cuda.device_buffer(8), cuda.pinned_buffer(8), cuda.stream(), cuda.event()]
print(len(fake.leaks()))
"""
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("4\n{}\n", "")


def test_a_driver_that_has_gone_already_is_no_error(fake: FakeCuda) -> None:
    buffer = Cuda().device_buffer(8)
    pointer = buffer.pointer
    fake.fail("cudaFree", error=Error.cudaErrorCudartUnloading)
    buffer.close()
    fake.cudaFree(pointer)


def test_after_the_context_is_lost_everything_is_still_given_back(fake: FakeCuda) -> None:
    cuda = Cuda()
    device, pinned, stream = cuda.device_buffer(8), cuda.pinned_buffer(8), cuda.stream()

    def broken() -> None:
        raise OSError  # as a kernel that reads what it must not

    fake.launch(stream.handle, broken)
    with pytest.raises(CudaError, match="the CUDA context of this process is lost"):
        stream.synchronize()
    for thing in (device, pinned, stream):
        with pytest.raises(CudaError, match="the CUDA context of this process is lost"):
            thing.close()
        thing.close()
    assert fake.leaks() == {}
    assert (cuda.device_bytes, cuda.pinned_bytes) == (0, 0)
    fake.violations.clear()  # the kernel's own


@pytest.mark.usefixtures("fake")
def test_use_after_close_is_refused() -> None:
    cuda = Cuda()
    device, pinned, stream, event = cuda.device_buffer(8), cuda.pinned_buffer(8), cuda.stream(), cuda.event()
    with stream.capture() as capture:
        pass
    graph = capture.graph
    for thing in (device, pinned, event, graph):
        thing.close()
    for use, kind in (
        (lambda: device.pointer, "DeviceBuffer"),
        (lambda: pinned.pointer, "PinnedBuffer"),
        (lambda: pinned.array("uint8", (8,)), "PinnedBuffer"),
        (lambda: event.record(stream), "Event"),
        (event.synchronize, "Event"),
        (lambda: graph.launch(stream), "Graph"),
    ):
        with pytest.raises(BackendError, match=f"^this {kind} is closed$"):
            use()
    stream.close()
    with pytest.raises(BackendError, match=r"^this Stream is closed$"):
        stream.synchronize()


def test_the_bytes_in_use_are_counted(fake: FakeCuda) -> None:
    cuda, other = Cuda(), Cuda()
    with cuda.device_buffer(100), cuda.pinned_buffer(30) as pinned, other.device_buffer(7):
        assert (cuda.device_bytes, cuda.pinned_bytes) == (100, 30)
        assert other.device_bytes == 7
        pinned.close()
        assert (cuda.device_bytes, cuda.pinned_bytes) == (100, 0)
    assert (cuda.device_bytes, other.device_bytes) == (0, 0)
    assert fake.memory.used_bytes == [0]


@pytest.mark.parametrize("kind", ["device", "pinned"])
def test_a_declared_limit_is_never_passed(fake: FakeCuda, kind: str) -> None:
    cuda = Cuda(device_limit_bytes=1000, pinned_limit_bytes=1000)
    allocate = cuda.device_buffer if kind == "device" else cuda.pinned_buffer
    with allocate(600) as first:
        with pytest.raises(DeviceMemoryError) as caught:
            allocate(401)
        assert str(caught.value) == (
            f"401 bytes of {kind} memory would pass the declared limit of 1,000 for GPU 0, of which 600 are in use; "
            "use smaller batches or raise the limit"
        )
        assert isinstance(caught.value, MemoryError)
        assert fake.memory.allocations == {kind: 1}, "the call must not be made"
        allocate(400).close()
        first.close()
        allocate(1000).close()


def test_exhausted_device_memory_says_how_much_there_is(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(1 << 29):
        with pytest.raises(DeviceMemoryError) as caught:
            cuda.device_buffer((1 << 29) + 1)
        assert str(caught.value) == (
            "cudaMalloc failed: cudaErrorMemoryAllocation (2): out of memory; use smaller batches, or end other "
            "programs on the GPU (nvidia-smi lists them) (536,870,913 bytes of device memory asked for; 536,870,912 "
            "are in use by this model, 536,870,912 of 1,073,741,824 free on GPU 0, Fake GPU)"
        )
        assert cuda.device_bytes == 1 << 29
        assert fake.cudaGetLastError() == (Error.cudaSuccess,)
        cuda.device_buffer(1 << 29).close()


def test_exhausted_pinned_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, pinned_limit_bytes=100)
    cuda = Cuda()
    with pytest.raises(DeviceMemoryError, match=r"^cudaHostAlloc failed: .*\(101 bytes of pinned memory asked for; 0"):
        cuda.pinned_buffer(101)
    assert cuda.pinned_bytes == 0
    fake.fail("cudaMemGetInfo", error=Error.cudaErrorUnknown)
    with pytest.raises(DeviceMemoryError, match=r"101 bytes of pinned memory asked for; 0 are in use by this model\)$"):
        cuda.pinned_buffer(101)
    cuda.pinned_buffer(100).close()
    fake.check()


def test_a_buffer_without_bytes_needs_no_call(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.device_buffer(0) as device, cuda.pinned_buffer(0) as pinned:
        assert (device.pointer, pinned.pointer) == (0, 0)
        assert pinned.array("float32", (0, 3)).shape == (0, 3)
    assert fake.counts["cudaMalloc"] == fake.counts["cudaFree"] == fake.counts["cudaFreeHost"] == 0
    for allocate in (cuda.device_buffer, cuda.pinned_buffer):
        with pytest.raises(InputError, match=r"^a buffer has 0 bytes or more; -1 asked for$"):
            allocate(-1)


def test_many_threads_never_pass_the_limit_and_end_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch)
    cuda = Cuda(device_limit_bytes=1000)
    highest = [0]

    def work(size: int) -> bool:
        try:
            with cuda.device_buffer(size):
                highest.append(fake.memory.used_bytes[0])
        except DeviceMemoryError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(work, [*range(100, 400, 3)] * 4))
    assert True in done
    assert max(highest) <= 1000
    assert cuda.device_bytes == 0
    fake.check()


def test_a_pinned_array_is_the_memory(fake: FakeCuda) -> None:
    with Cuda().pinned_buffer(64) as pinned:
        halves = pinned.array("float16", (2, 3), offset=8)
        halves[:] = [[1, 2, 3], [4, 5, 6]]
        assert halves.ctypes.data == pinned.pointer + 8
        assert halves.dtype == np.float16
        assert halves.flags.c_contiguous
        assert halves.flags.writeable
        raw = fake.view(pinned.pointer + 8, 12)
        assert raw.tobytes() == np.arange(1, 7, dtype=np.float16).tobytes()
        assert pinned.array("int64", ()).shape == ()


@pytest.mark.parametrize(
    ("dtype", "shape", "offset"),
    [
        ("uint8", (65,), 0),
        ("uint8", (64,), 1),
        ("float32", (4, 4), 4),
        ("float32", (2,), 2),
        ("float32", (2,), -4),
        ("float32", (-2, -2), 0),
        ("uint8", (0,), 65),
    ],
)
def test_a_pinned_array_that_does_not_fit_is_refused(
    fake: FakeCuda, dtype: str, shape: tuple[int, ...], offset: int
) -> None:
    with Cuda().pinned_buffer(64) as pinned, pytest.raises(InputError) as caught:
        pinned.array(dtype, shape, offset)
    assert str(caught.value).startswith(
        f"a {dtype} array of shape {shape} at byte {offset} does not fit a pinned buffer of 64 bytes; it must begin at "
    )
    assert fake.violations == []


def test_an_array_keeps_its_pinned_buffer(fake: FakeCuda) -> None:
    array = Cuda().pinned_buffer(8).array("uint8", (8,))[2:]
    gc.collect()
    assert fake.leaks() == {"pinned": 1}
    array[:] = 7
    del array
    gc.collect()
    assert fake.leaks() == {}
