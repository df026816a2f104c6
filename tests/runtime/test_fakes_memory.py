"""The simulated CUDA runtime finds misuse of memory, runs out of it, and fails where it is told to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime

from helpers.cuda_bench import DOWN, SCHEDULES, UP, Bench, Error, N, ok
from helpers.fake_cuda import POISON, FakeCuda, FakeGpu

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from helpers.fake_cuda_calls import Driver
    from helpers.fake_cuda_streams import Policy


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda b: b.fake.cudaMemcpyAsync(b.device + 1, b.source, N, UP, b.a), "end 1 bytes after a device allocation"),
        (lambda b: b.fake.cudaMemcpyAsync(b.device, b.source + 8, N, UP, b.a), "end 8 bytes after a pinned allocation"),
        (lambda b: b.fake.cudaMemcpyAsync(b.source, b.device, N, UP, b.a), "is pinned memory, the copy says device"),
        (lambda b: b.fake.cudaMemcpyAsync(12345, b.source, N, UP, b.a), "is no address of device or pinned memory"),
        (lambda b: b.fake.cudaMemsetAsync(b.device, 0, N + 3, b.a), "end 3 bytes after a device allocation"),
        (lambda b: b.fake.cudaFree(b.source), "is no device allocation"),
        (lambda b: b.fake.cudaFree(b.device + 256), "is no device allocation"),
        (lambda b: (b.fake.cudaFree(b.device), b.fake.cudaFree(b.device))[1], "was freed before"),
        (
            lambda b: (b.fake.cudaFree(b.device), b.fake.cudaMemsetAsync(b.device, 0, 1, b.a))[1],
            "device memory that was freed",
        ),
    ],
)
def test_misuse_of_memory_is_an_error_and_noted(misuse: Callable[[Bench], tuple[Any, ...]], message: str) -> None:
    bench = Bench()
    assert misuse(bench)[0] == Error.cudaErrorInvalidValue
    assert len(bench.fake.violations) == 1
    assert message in bench.fake.violations[0]


def test_an_unknown_direction_of_a_copy_is_refused() -> None:
    bench = Bench()
    refused = bench.fake.cudaMemcpyAsync(bench.device, bench.source, N, 9, bench.a)
    assert refused == (Error.cudaErrorInvalidMemcpyDirection,)


def test_a_kernel_that_leaves_its_memory_makes_every_later_call_fail() -> None:
    bench = Bench(policy="lazy")
    ok((bench.fake.launch(bench.a, lambda: bench.fake.view(bench.device, N + 1).sum()),))
    assert bench.fake.cudaStreamSynchronize(bench.a) == (Error.cudaErrorIllegalAddress,)
    assert bench.fake.cudaMalloc(1) == (Error.cudaErrorIllegalAddress, None)
    assert bench.fake.cudaGetLastError() == (Error.cudaErrorIllegalAddress,)
    assert bench.fake.cudaGetLastError() == (Error.cudaSuccess,)
    assert "kernel: 513 bytes" in bench.fake.violations[0]
    assert bench.fake.cudaFree(bench.device) == (Error.cudaErrorIllegalAddress,)
    assert "device" not in bench.fake.leaks()


def test_an_event_after_a_fault_tells_it_at_once_and_the_check_finds_it_unasked() -> None:
    bench = Bench(policy="lazy")
    ok((bench.fake.launch(bench.a, lambda: bench.fake.view(1, 1)),))
    ok(bench.fake.cudaEventRecord(bench.event, bench.a))
    with pytest.raises(AssertionError, match="kernel: 0x1 is no address of device or pinned memory"):
        bench.fake.check(leaks=False)
    again = Bench(policy="lazy")
    ok((again.fake.launch(again.a, lambda: again.fake.view(1, 1)),))
    ok(again.fake.cudaEventRecord(again.event, again.a))
    assert again.fake.cudaEventSynchronize(again.event) == (Error.cudaErrorIllegalAddress,)


def test_the_first_fault_is_the_one_that_stays() -> None:
    bench = Bench(policy="lazy")
    ok((bench.fake.launch(bench.a, lambda: bench.fake.view(1, 1)),))
    ok((bench.fake.launch(bench.a, lambda: {"here": 1}["missing"]),))
    assert bench.fake.cudaStreamSynchronize(bench.a) == (Error.cudaErrorIllegalAddress,)
    assert len(bench.fake.violations) == 2


def test_a_kernel_that_raises_is_a_launch_failure_with_its_reason() -> None:
    bench = Bench()
    ok((bench.fake.launch(bench.a, lambda: {"here": 1}["missing"], label="lookup"),))
    assert bench.fake.cudaStreamSynchronize(bench.a) == (Error.cudaErrorLaunchFailure,)
    assert bench.fake.violations == ["lookup failed on the device: KeyError('missing')"]


def test_a_write_past_the_end_by_address_is_found_when_the_memory_is_freed() -> None:
    bench = Bench()
    block = bench.fake.memory.find(bench.target)
    assert block is not None
    block.span(bench.target + N, 1)[:] = 0
    ok(bench.fake.cudaFreeHost(bench.target))
    assert "something wrote past the end of the pinned allocation" in bench.fake.violations[0]


def test_fresh_and_freed_memory_is_poison_until_it_is_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helpers.fake_cuda_memory._QUARANTINE_BYTES", 2 * N)
    bench = Bench()
    assert bench.result == {POISON}
    block = bench.fake.memory.find(bench.source)
    assert block is not None
    assert set(block.span(bench.source, N)) == {7}
    ok(bench.fake.cudaFree(ok(bench.fake.cudaMalloc(1))))
    ok(bench.fake.cudaFreeHost(bench.source))
    assert set(block.span(bench.source, N)) == {POISON}
    assert bench.fake.memory.find(bench.source) is None  # with its alignment it is larger than what is kept
    ok(bench.fake.cudaFree(bench.device))
    assert bench.fake.memory.find(bench.device) is not None


def test_nothing_is_allocated_and_freed_as_in_cuda_and_memory_is_set() -> None:
    bench = Bench()
    assert bench.fake.cudaMalloc(0) == (Error.cudaSuccess, 0)
    ok(bench.fake.cudaFree(0))
    ok(bench.fake.cudaFreeHost(0))
    ok(bench.fake.cudaMemsetAsync(bench.device, 0x1FE, N, bench.a))
    bench.download(bench.a)
    assert bench.result == {0xFE}
    ok(bench.fake.cudaMemcpyAsync(bench.device, bench.source, N, runtime.cudaMemcpyKind.cudaMemcpyDefault, bench.b))
    assert "race on memory" in bench.fake.violations[0]


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES)
def test_memory_freed_under_queued_work_is_found_even_if_the_work_has_run(policy: Policy, seed: int) -> None:
    bench = Bench(policy=policy, seed=seed)
    bench.upload(bench.a)
    bench.fake.cudaFree(bench.device)
    assert "nothing has waited for copy of 512 bytes" in bench.fake.violations[0]


def test_memory_runs_out_and_says_how_much_is_left() -> None:
    fake = FakeCuda(gpus=[FakeGpu(total_bytes=1000)], pinned_limit_bytes=300)
    first = ok(fake.cudaMalloc(600))
    assert fake.cudaMemGetInfo() == (Error.cudaSuccess, 400, 1000)
    assert fake.cudaMalloc(401) == (Error.cudaErrorMemoryAllocation, None)
    ok(fake.cudaFree(first))
    ok(fake.cudaMalloc(1000))
    ok(fake.cudaFreeHost(ok(fake.cudaHostAlloc(300, 0))))
    ok(fake.cudaHostAlloc(300, 0))
    assert fake.cudaMallocHost(1) == (Error.cudaErrorMemoryAllocation, None)
    assert fake.leaks() == {"device": 1, "pinned": 1}
    assert fake.memory.allocations == {"device": 2, "pinned": 2}
    assert fake.memory.frees == {"device": 1, "pinned": 1}
    with pytest.raises(AssertionError, match="1 device never freed\n1 pinned never freed"):
        fake.check()


def test_pageable_memory_is_staged_as_in_cuda_or_reported() -> None:
    bench = Bench(policy="lazy")
    array = np.full(N, 5, np.uint8)
    ok(bench.fake.cudaMemcpyAsync(bench.device, array.ctypes.data, N, UP, bench.a))
    array[:] = 6  # read at the call
    out = np.empty(N, np.uint8)
    ok(bench.fake.cudaMemcpyAsync(out.ctypes.data, bench.device, N, DOWN, bench.a))
    assert set(out) == {5}
    assert bench.fake.pageable_copies == 2
    assert not bench.fake.violations
    strict = Bench(pageable="forbidden")
    ok(strict.fake.cudaMemcpyAsync(strict.device, array.ctypes.data, N, UP, strict.a))
    assert "has a host side that is not pinned" in strict.fake.violations[0]


def test_errors_are_injected_where_and_as_often_as_asked() -> None:
    fake = FakeCuda()
    fake.fail("cudaMalloc", after=1, times=2, error=Error.cudaErrorUnknown)
    assert [fake.cudaMalloc(1)[0] for _ in range(4)] == [
        Error.cudaSuccess,
        Error.cudaErrorUnknown,
        Error.cudaErrorUnknown,
        Error.cudaSuccess,
    ]
    with pytest.raises(AttributeError, match="cudaMallocManaged is not simulated"):
        fake.fail("cudaMallocManaged")
    with pytest.raises(AttributeError, match="the simulated CUDA runtime has no cudaMallocManaged"):
        fake.cudaMallocManaged  # noqa: B018  the look-up is what fails
    assert fake.cudaMemcpyKind is runtime.cudaMemcpyKind


@pytest.mark.parametrize(
    ("driver", "error", "version"),
    [
        ("absent", Error.cudaErrorInsufficientDriver, 0),
        ("old", Error.cudaErrorInsufficientDriver, 11040),
        ("no device", Error.cudaErrorNoDevice, 13000),
    ],
)
def test_machines_without_a_usable_gpu(driver: Driver, error: runtime.cudaError_t, version: int) -> None:
    fake = FakeCuda(driver=driver)
    assert fake.cudaGetDeviceCount() == (error, None)
    assert fake.cudaMemGetInfo() == (error, None, None)
    assert fake.cudaDriverGetVersion() == (Error.cudaSuccess, version)
    assert fake.cudaGetErrorName(error) == (Error.cudaSuccess, error.name.encode())


def test_each_thread_has_a_current_gpu_and_addresses_tell_theirs() -> None:
    fake = FakeCuda(gpus=[FakeGpu("Big", (9, 0)), FakeGpu("Small", (8, 6), multi_processors=82)])
    ok(fake.cudaSetDevice(1))
    here = ok(fake.cudaMalloc(64))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(fake.cudaGetDevice).result() == (Error.cudaSuccess, 0)
    found = ok(fake.cudaGetDeviceProperties(1))
    assert (found.name, found.major, found.minor, found.multiProcessorCount) == (b"Small", 8, 6, 82)
    assert fake.cudaSetDevice(2) == (Error.cudaErrorInvalidDevice,)
    attributes = ok(fake.cudaPointerGetAttributes(here + 63))
    assert (attributes.type, attributes.device) == (runtime.cudaMemoryType.cudaMemoryTypeDevice, 1)
    pinned = ok(fake.cudaPointerGetAttributes(ok(fake.cudaHostAlloc(8, 0))))
    assert pinned.type == runtime.cudaMemoryType.cudaMemoryTypeHost
    assert ok(fake.cudaPointerGetAttributes(4096)).type == runtime.cudaMemoryType.cudaMemoryTypeUnregistered
    stream = ok(fake.cudaStreamCreateWithFlags(1))
    ok(fake.cudaSetDevice(0))
    assert fake.launch(stream, lambda: None) == Error.cudaErrorInvalidResourceHandle
