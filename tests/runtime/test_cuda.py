"""The CUDA layer, on simulated GPUs: what is called, what is freed, and what is said when a call fails."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings import runtime

import milnce.cuda
from helpers.fake_cuda import FakeCuda, FakeGpu, install, writes
from milnce import cuda_binding
from milnce.cuda import Cuda, GpuInfo, call, gpus
from milnce.errors import (
    BackendError,
    BackendUnavailableError,
    CudaError,
    CudaUnavailableError,
    DeviceMemoryError,
    InputError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Error = runtime.cudaError_t
SOURCES = [Path(milnce.cuda.__file__).with_name(name) for name in ("cuda.py", "cuda_resources.py", "cuda_binding.py")]
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
def unloaded() -> Iterator[None]:
    """Forget the bindings that were loaded, before and after."""
    cuda_binding.load.cache_clear()
    yield
    cuda_binding.load.cache_clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Simulate one GPU whose work waits until somebody waits for it; nothing may be wrong or left at the end."""
    fake = install(monkeypatch, policy="lazy")
    yield fake
    gc.collect()
    fake.check()


def roundtrip(cuda: Cuda) -> None:
    """Use every part of the layer once, in the order a backend does."""
    with (
        cuda.device_buffer(64) as device,
        cuda.pinned_buffer(64) as pinned,
        cuda.stream() as stream,
        cuda.stream() as other,
        cuda.event() as event,
        cuda.event(timing=True) as start,
        cuda.event(timing=True) as end,
    ):
        sent = pinned.array("float32", (4, 4))
        sent[:] = np.arange(16).reshape(4, 4)
        start.record(stream)
        with stream.capture() as capture:
            cuda.upload(device.pointer, pinned.pointer, 64, stream)
        with capture.graph as graph:
            graph.launch(stream)
            event.record(stream)
            other.wait(event)
            cuda.download(pinned.pointer, device.pointer, 32, other)
            event.record(other)
            assert event.done in (True, False)
            event.synchronize()
            cuda.fill(device.pointer, 0, 64, stream)
            cuda.copy(device.pointer + 32, device.pointer, 32, stream)
            end.record(stream)
            stream.synchronize()
        assert end.elapsed_ms(start) > 0
        assert cuda.device_of(device.pointer) == 0
        assert cuda.memory()[0] < cuda.memory()[1]


# Which GPUs there are


def test_a_gpu_is_described(fake: FakeCuda) -> None:
    assert gpus() == (
        GpuInfo(
            index=0,
            name="Fake GPU",
            compute_capability=(9, 0),
            total_bytes=1 << 30,
            driver_cuda=(13, 0),
            multi_processors=132,
        ),
    )
    assert Cuda().info == gpus()[0]
    assert fake.counts["cudaMalloc"] == 0


def test_several_gpus_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus=(FakeGpu("A", (8, 6), 1 << 20, 84), FakeGpu("B", (12, 0), 1 << 21, 170)))
    assert [(gpu.index, gpu.name, gpu.compute_capability, gpu.multi_processors) for gpu in gpus()] == [
        (0, "A", (8, 6), 84),
        (1, "B", (12, 0), 170),
    ]
    assert Cuda(1).info.total_bytes == 1 << 21
    assert Cuda(1).memory() == (1 << 21, 1 << 21)


@pytest.mark.parametrize("device", [-1, 1, 7])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(fake: FakeCuda, device: int) -> None:
    with pytest.raises(CudaUnavailableError) as caught:
        Cuda(device)
    assert str(caught.value) == f"there is no GPU {device}; this process sees 1 (0: Fake GPU)"
    assert fake.counts["cudaSetDevice"] == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            Error.cudaErrorDevicesUnavailable,
            (
                "cudaErrorDevicesUnavailable (46): CUDA-capable device(s) is/are busy or unavailable; "
                "another program has the GPU for itself (nvidia-smi shows it and the compute mode)"
            ),
        ),
        (
            Error.cudaErrorMemoryAllocation,
            (
                "cudaErrorMemoryAllocation (2): out of memory; use smaller batches, or end other programs on the GPU "
                "(nvidia-smi lists them)"
            ),
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_unavailable(fake: FakeCuda, error: Any, words: str) -> None:  # noqa: ANN401
    fake.fail("cudaSetDevice", error=error)
    with pytest.raises(CudaUnavailableError) as caught:
        Cuda()
    assert str(caught.value) == f"GPU 0, Fake GPU, cannot be used: cudaSetDevice failed: {words}"


def test_without_a_driver_the_real_bindings_give_the_words_for_it() -> None:
    if runtime.cudaDriverGetVersion()[1] != 0:
        pytest.skip("this machine has an NVIDIA driver")
    for use in (gpus, Cuda):
        with pytest.raises(CudaUnavailableError) as caught:
            use()
        assert str(caught.value) == (
            "there is no NVIDIA driver here; install it, or give the container its GPUs (docker run --gpus all)"
        )


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, driver="absent")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # not the reason here
    with pytest.raises(CudaUnavailableError, match=r"^there is no NVIDIA driver here; install it, or give the"):
        gpus()


@pytest.mark.parametrize(
    ("driver", "name", "cure"),
    [
        (11040, "11.4", "update the driver"),
        (12040, "12.4", 'update the driver, or pip install "cuda-python==12.*"'),
    ],
)
def test_with_a_driver_older_than_the_bindings(
    monkeypatch: pytest.MonkeyPatch, driver: int, name: str, cure: str
) -> None:
    fake = install(monkeypatch, driver="old")
    monkeypatch.setattr(fake, "cudaDriverGetVersion", lambda: (Error.cudaSuccess, driver))
    with pytest.raises(BackendUnavailableError) as caught:
        gpus()
    assert str(caught.value) == (
        f"the NVIDIA driver runs CUDA {name} at most, and the installed CUDA bindings are for CUDA 13.0; {cure}"
    )


def test_with_a_driver_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, driver="no device")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(CudaUnavailableError) as caught:
        gpus()
    assert str(caught.value) == "the NVIDIA driver finds no GPU; nvidia-smi -L lists those it finds"


@pytest.mark.parametrize("visible", ["", "-1", "9"])
def test_with_every_gpu_hidden(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    install(monkeypatch, driver="no device")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(CudaUnavailableError) as caught:
        gpus()
    assert str(caught.value) == (
        f"no GPU is visible, and CUDA_VISIBLE_DEVICES is {visible!r}; unset it, or name a GPU of nvidia-smi -L"
    )


def test_a_driver_that_counts_no_gpu_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus=())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(CudaUnavailableError, match="the NVIDIA driver finds no GPU"):
        gpus()


def test_a_forked_process_is_told_so(fake: FakeCuda) -> None:
    fake.fail("cudaGetDeviceCount", error=Error.cudaErrorInitializationError)
    with pytest.raises(CudaUnavailableError) as caught:
        gpus()
    assert str(caught.value) == (
        "cudaGetDeviceCount failed: cudaErrorInitializationError (3): initialization error; "
        "CUDA does not work in a forked process; start it with the 'spawn' method"
    )


@pytest.mark.usefixtures("unloaded")
def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for use in (gpus, Cuda, milnce.cuda.binding):
        with pytest.raises(CudaUnavailableError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith("the CUDA bindings are not installed (import of cuda.bindings halted; ")
        assert message.endswith('pip install "milnce[tensorrt]" brings them (cuda-python)')


@pytest.mark.usefixtures("unloaded")
def test_with_bindings_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("cuda.bindings", Broken())
    monkeypatch.setitem(sys.modules, "cuda.bindings", Broken())
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime", raising=False)
    with pytest.raises(CudaUnavailableError) as caught:
        milnce.cuda.binding()
    assert str(caught.value).startswith("the CUDA bindings are installed and do not load: ")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("version", ["12.9.0", "12.8.0", "11.8.7"])
def test_with_bindings_that_are_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("cuda.bindings.__version__", version)
    with pytest.raises(CudaUnavailableError) as caught:
        milnce.cuda.binding()
    assert str(caught.value) == (
        f"the CUDA bindings are of version {version}, and 12.9.1 is the oldest that works here; "
        'pip install "cuda-python>=12.9.1"'
    )


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("version", ["12.9.1", "12.9.10", "13.0.0", "13.5.1.dev3", "14.0"])
def test_with_bindings_that_are_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("cuda.bindings.__version__", version)
    assert milnce.cuda.binding() is runtime


def test_importing_the_layer_imports_no_bindings() -> None:
    code = "import sys, milnce.cuda, milnce.device_arrays; assert 'cuda' not in sys.modules, sys.modules['cuda']"
    subprocess.run([sys.executable, "-c", code], check=True)


# Calls


def test_a_call_returns_nothing_a_value_or_several(fake: FakeCuda) -> None:
    assert call("cudaSetDevice", 0) is None
    assert call("cudaGetDevice") == 0
    assert call("cudaMemGetInfo") == (1 << 30, 1 << 30)
    assert fake.counts["cudaGetLastError"] == 0


def test_a_failed_call_is_named_in_the_words_of_the_driver(fake: FakeCuda) -> None:
    with pytest.raises(CudaError) as caught:
        call("cudaSetDevice", 5)
    assert str(caught.value) == "cudaSetDevice failed: cudaErrorInvalidDevice (101): invalid device ordinal"
    assert not isinstance(caught.value, MemoryError)
    assert fake.cudaGetLastError() == (Error.cudaSuccess,), "the error would come back from a later call"


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        ("cudaErrorInvalidResourceHandle", "with PyCUDA, use pycuda.autoprimaryctx in place of pycuda.autoinit"),
        ("cudaErrorDevicesUnavailable", "another program has the GPU for itself"),
        ("cudaErrorSystemNotReady", "systemctl status nvidia-fabricmanager"),
        ("cudaErrorSystemDriverMismatch", "the driver was updated while it ran: restart the machine"),
        ("cudaErrorStreamCaptureUnsupported", "run without CUDA graphs"),
        ("cudaErrorLaunchFailure", "the CUDA context of this process is lost: end the process and start a new one"),
        ("cudaErrorECCUncorrectable", "the CUDA context of this process is lost"),
    ],
)
def test_errors_with_a_known_cure_name_it(fake: FakeCuda, error: str, cure: str) -> None:
    cuda = Cuda()
    with cuda.stream() as stream:
        fake.fail("cudaStreamSynchronize", error=getattr(Error, error))
        with pytest.raises(CudaError) as caught:
            stream.synchronize()
    assert f"cudaStreamSynchronize failed: {error} ({int(getattr(Error, error))}): " in str(caught.value)
    assert cure in str(caught.value)


def test_every_cure_is_for_an_error_that_exists() -> None:
    assert {name for name in cuda_binding.CURES if not isinstance(getattr(Error, name, None), Error)} == set()
    assert len(cuda_binding.CURES) > 15


def test_memory_for_a_call_that_is_missing_is_a_memory_error(fake: FakeCuda) -> None:
    fake.fail("cudaStreamCreateWithFlags")
    with pytest.raises(DeviceMemoryError) as caught:
        Cuda().stream()
    assert str(caught.value) == (
        "cudaStreamCreateWithFlags failed: cudaErrorMemoryAllocation (2): out of memory; "
        "use smaller batches, or end other programs on the GPU (nvidia-smi lists them)"
    )


# Memory


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


# Pinned memory as arrays


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


# Streams, events, copies


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
    [(0, (0, 0, 1), True), (0, (0, 0, 0), False), (0, (999, None, None), False), (101, (0, 0, 1), False)],
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


# Captured graphs


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


# The layer and the real bindings


def test_the_real_bindings_have_every_function_and_constant_that_is_used() -> None:
    used = {
        node.value
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.startswith("cuda") and node.value.isidentifier() and node.value[4].isupper()
    }
    used |= {
        node.attr
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda") and node.attr[4:5].isupper()
    }
    enums = (
        Error,
        runtime.cudaMemcpyKind,
        runtime.cudaMemoryType,
        runtime.cudaStreamCaptureMode,
        runtime.cudaDeviceAttr,
    )
    members = {name for enum in enums for name in enum.__members__}
    assert {name for name in used if not hasattr(runtime, name) and name not in members} == set()
    functions = {name for name in used if callable(getattr(runtime, name, None))}
    assert {"cudaMalloc", "cudaHostAlloc", "cudaGraphInstantiate", "cudaThreadExchangeStreamCaptureMode"} <= functions


def test_the_real_bindings_take_the_arguments_that_are_given(fake: FakeCuda) -> None:
    cuda = Cuda()
    roundtrip(cuda)
    made = {(one.name, len(one.args)) for one in fake.calls}
    assert len(made) > 25
    wrong = [
        f"{name} takes {inspect.signature(getattr(runtime, name))}, {count} given"
        for name, count in sorted(made)
        if len(inspect.signature(getattr(runtime, name)).parameters) != count
    ]
    assert wrong == []


def test_the_real_bindings_take_the_types_that_are_given(fake: FakeCuda) -> None:
    if runtime.cudaDriverGetVersion()[1] != 0:
        pytest.skip("this machine has an NVIDIA driver, which would use these addresses")
    roundtrip(Cuda())
    # A wrong type raises TypeError before the driver is looked for.
    answers = {one.name: getattr(runtime, one.name)(*one.args)[0] for one in fake.calls}
    runtime.cudaGetLastError()
    driverless = {name for name, error in answers.items() if error == Error.cudaSuccess}
    assert driverless == {"cudaDriverGetVersion"}
    assert {answers[name] for name in answers if name not in driverless} == {Error.cudaErrorInsufficientDriver}


def test_handles_are_integers(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as stream, cuda.event() as event, cuda.device_buffer(8) as buffer:
        assert {type(stream.handle), type(event.handle), type(buffer.pointer)} == {int}
        fake.launch(stream.handle, lambda: None, accesses=[writes(buffer.pointer, 8)])
        stream.synchronize()
