"""The simulated CUDA runtime captures graphs, replays them, and refuses in a capture what CUDA refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime

from helpers.cuda_bench import SCHEDULES, UP, Bench, Error, N, ok
from helpers.fake_cuda import reads, writes

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from helpers.fake_cuda_streams import Policy

MODES = runtime.cudaStreamCaptureMode
GLOBAL, LOCAL, RELAXED = (
    MODES.cudaStreamCaptureModeGlobal,
    MODES.cudaStreamCaptureModeThreadLocal,
    MODES.cudaStreamCaptureModeRelaxed,
)


def captured(bench: Bench) -> runtime.cudaGraphExec_t:
    """Return a graph that uploads, adds 1 and downloads."""
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    bench.upload(bench.a)
    add = bench.fake.launch(
        bench.a, lambda: bench.fake.view(bench.device, N).__iadd__(1), accesses=[writes(bench.device, N)]
    )
    assert add == Error.cudaSuccess
    bench.download(bench.a)
    graph = ok(bench.fake.cudaStreamEndCapture(bench.a))
    executable = ok(bench.fake.cudaGraphInstantiate(graph, 0))
    ok(bench.fake.cudaGraphDestroy(graph))
    return executable


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES)
def test_a_graph_runs_when_launched_with_what_is_in_its_memory_then(policy: Policy, seed: int) -> None:
    bench = Bench(policy=policy, seed=seed)
    executable = captured(bench)
    assert bench.result == {0xCD}
    for value in (1, 5):
        bench.fake.view(bench.source, N)[:] = value
        ok(bench.fake.cudaGraphLaunch(executable, bench.b))
        ok(bench.fake.cudaStreamSynchronize(bench.b))
        assert bench.result == {value + 1}
    ok(bench.fake.cudaGraphExecDestroy(executable))
    bench.close()
    bench.fake.check()


def test_launches_of_one_graph_on_two_streams_run_one_after_the_other() -> None:
    for seed in range(10):
        bench = Bench(policy="random", seed=seed)
        ran: list[int] = []
        ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
        for part in range(3):
            ok((bench.fake.launch(bench.a, partial(ran.append, part), accesses=[writes(bench.device, N)]),))
        executable = ok(bench.fake.cudaGraphInstantiate(ok(bench.fake.cudaStreamEndCapture(bench.a)), 0))
        ok(bench.fake.cudaGraphLaunch(executable, bench.a))
        ok(bench.fake.cudaGraphLaunch(executable, bench.b))
        bench.fake.check(leaks=False)
        assert ran == [0, 1, 2, 0, 1, 2]


def test_two_graphs_on_the_same_memory_race() -> None:
    bench = Bench(policy="random")
    for stream in (bench.a, bench.b):
        ok(bench.fake.cudaGraphLaunch(captured(bench), stream))
    assert "race on memory" in bench.fake.violations[0]


def test_a_graph_that_outlives_its_memory_is_found() -> None:
    bench = Bench(policy="lazy")
    executable = captured(bench)
    ok(bench.fake.cudaFree(bench.device))
    ok(bench.fake.cudaGraphLaunch(executable, bench.a))
    assert bench.fake.cudaStreamSynchronize(bench.a) == (Error.cudaErrorIllegalAddress,)
    assert "device memory that was freed" in bench.fake.violations[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.fake.cudaMalloc(16),
        lambda b: b.fake.cudaHostAlloc(16, 0),
        lambda b: b.fake.cudaFree(b.device),
        lambda b: b.fake.cudaStreamSynchronize(b.a),
        lambda b: b.fake.cudaStreamQuery(b.a),
        lambda b: b.fake.cudaDeviceSynchronize(),
        lambda b: b.fake.cudaEventQuery(b.event),
        lambda b: b.fake.cudaEventSynchronize(b.event),
        lambda b: b.fake.cudaMemcpyAsync(b.device, np.zeros(N, np.uint8).ctypes.data, N, UP, b.a),
    ],
)
def test_what_a_capture_forbids_is_an_error_and_ends_it(call: Callable[[Bench], tuple[Any, ...]]) -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    assert call(bench)[0] == Error.cudaErrorStreamCaptureUnsupported
    status = ok(bench.fake.cudaStreamIsCapturing(bench.a))
    assert status == runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated
    assert bench.fake.launch(bench.a, lambda: None) == Error.cudaErrorStreamCaptureInvalidated
    assert bench.fake.cudaStreamEndCapture(bench.a) == (Error.cudaErrorStreamCaptureInvalidated, None)
    captured(bench)
    assert "graphs" not in bench.fake.leaks()


@pytest.mark.parametrize(
    ("capture", "thread", "error"),
    [
        (GLOBAL, GLOBAL, Error.cudaErrorStreamCaptureUnsupported),
        (GLOBAL, LOCAL, Error.cudaSuccess),
        (LOCAL, GLOBAL, Error.cudaSuccess),
        (RELAXED, GLOBAL, Error.cudaSuccess),
        (GLOBAL, RELAXED, Error.cudaSuccess),
    ],
)
def test_other_threads_are_bound_by_a_global_capture_unless_they_say_otherwise(
    capture: runtime.cudaStreamCaptureMode, thread: runtime.cudaStreamCaptureMode, error: runtime.cudaError_t
) -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamBeginCapture(bench.a, capture))

    def allocate() -> tuple[Any, ...]:
        assert ok(bench.fake.cudaThreadExchangeStreamCaptureMode(thread)) == GLOBAL
        return bench.fake.cudaMalloc(16)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(allocate).result()[0] == error
    assert (bench.fake.cudaStreamEndCapture(bench.a)[0] == Error.cudaSuccess) == (error == Error.cudaSuccess)


@pytest.mark.parametrize(("mode", "forbidden"), [(LOCAL, True), (RELAXED, False)])
def test_a_thread_may_allocate_in_its_own_capture_only_if_that_is_relaxed(
    mode: runtime.cudaStreamCaptureMode, forbidden: bool
) -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamBeginCapture(bench.a, mode))
    assert (bench.fake.cudaMalloc(16)[0] == Error.cudaErrorStreamCaptureUnsupported) == forbidden


def test_a_thread_that_says_so_may_allocate_in_its_own_capture() -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    ok(bench.fake.cudaThreadExchangeStreamCaptureMode(RELAXED))
    ok(bench.fake.cudaMalloc(16))
    ok(bench.fake.cudaThreadExchangeStreamCaptureMode(LOCAL))
    assert bench.fake.cudaMalloc(16)[0] == Error.cudaErrorStreamCaptureUnsupported


def test_only_the_thread_that_began_a_capture_ends_it() -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(bench.fake.cudaStreamEndCapture, bench.a).result()
    assert refused == (Error.cudaErrorStreamCaptureWrongThread, None)
    ok(bench.fake.cudaStreamEndCapture(bench.a))
    assert bench.fake.cudaStreamEndCapture(bench.a) == (Error.cudaErrorIllegalState, None)


def test_a_capture_takes_in_a_stream_that_waits_for_it_and_must_be_joined_again() -> None:
    bench = Bench(policy="lazy")
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    bench.upload(bench.a)
    bench.order()
    bench.download(bench.b)
    assert bench.fake.cudaStreamEndCapture(bench.b) == (Error.cudaErrorStreamCaptureUnmatched, None)
    assert bench.fake.cudaStreamEndCapture(bench.a) == (Error.cudaErrorStreamCaptureUnjoined, None)

    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    bench.upload(bench.a)
    bench.order()
    bench.download(bench.b)
    joining = ok(bench.fake.cudaEventCreateWithFlags(2))
    ok(bench.fake.cudaEventRecord(joining, bench.b))
    ok(bench.fake.cudaStreamWaitEvent(bench.a, joining, 0))
    graph = ok(bench.fake.cudaStreamEndCapture(bench.a))
    assert bench.fake.cudaEventSynchronize(joining) == (Error.cudaErrorCapturedEvent,)
    assert bench.fake.cudaStreamWaitEvent(bench.b, joining, 0) == (Error.cudaErrorCapturedEvent,)
    ok(bench.fake.cudaGraphLaunch(ok(bench.fake.cudaGraphInstantiate(graph, 0)), bench.a))
    ok(bench.fake.cudaStreamSynchronize(bench.a))
    assert bench.result == {7}
    bench.fake.check(leaks=False)


def test_a_stream_destroyed_in_a_capture_ends_it() -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    bench.order()
    ok(bench.fake.cudaStreamDestroy(bench.b))
    assert bench.fake.cudaStreamEndCapture(bench.a) == (Error.cudaErrorStreamCaptureInvalidated, None)


def test_a_capture_does_not_wait_for_work_outside_it() -> None:
    bench = Bench()
    ok(bench.fake.cudaEventRecord(bench.event, bench.b))
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    assert bench.fake.cudaStreamWaitEvent(bench.a, bench.event, 0) == (Error.cudaErrorStreamCaptureIsolation,)
    assert bench.fake.cudaStreamEndCapture(bench.a)[0] == Error.cudaErrorStreamCaptureInvalidated


def test_two_captures_do_not_merge() -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamBeginCapture(bench.a, LOCAL))
    ok(bench.fake.cudaStreamBeginCapture(bench.b, LOCAL))
    ok(bench.fake.cudaEventRecord(bench.event, bench.a))
    assert bench.fake.cudaStreamWaitEvent(bench.b, bench.event, 0) == (Error.cudaErrorStreamCaptureMerge,)


def test_the_default_stream_cannot_be_captured_nor_used_beside_a_blocking_capture() -> None:
    bench = Bench()
    assert bench.fake.cudaStreamBeginCapture(0, LOCAL) == (Error.cudaErrorStreamCaptureUnsupported,)
    blocking = ok(bench.fake.cudaStreamCreate())
    ok(bench.fake.cudaStreamBeginCapture(blocking, LOCAL))
    assert bench.fake.launch(0, lambda: None) == Error.cudaErrorStreamCaptureImplicit


def test_a_graph_counts_as_one_use_of_memory_for_races() -> None:
    bench = Bench(policy="lazy")
    executable = captured(bench)
    ok(bench.fake.cudaGraphLaunch(executable, bench.a))
    ok((bench.fake.launch(bench.b, lambda: None, accesses=[reads(bench.device, N)]),))
    assert "race on memory" in bench.fake.violations[0]


def test_graphs_never_destroyed_are_leaks() -> None:
    bench = Bench()
    captured(bench)
    bench.close()
    with pytest.raises(AssertionError, match="1 executables never freed"):
        bench.fake.check()
