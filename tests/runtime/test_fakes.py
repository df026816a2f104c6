"""The simulated CUDA runtime finds what it is there to find: missing order between streams and with the host."""

from __future__ import annotations

import inspect
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime

from helpers.cuda_bench import SCHEDULES, Bench, Error, N, ok
from helpers.fake_cuda import POISON, FakeCuda, FakeGpu, exclusive, reads, writes

if TYPE_CHECKING:
    from helpers.fake_cuda_streams import Policy


def test_every_function_has_the_bindings_name_parameters_and_number_of_results() -> None:
    simulated = [name for name in dir(FakeCuda) if name.startswith("cuda") and name != "cudaLaunchKernel"]
    assert len(simulated) > 40
    for name in simulated:
        documented = getattr(runtime, name).__doc__
        parameters = re.findall(r"(\w+)(?=:|,|\)| *=)", re.sub(r": *\w+", "", documented.split("\n", 1)[0]))
        mine = [one for one in inspect.signature(getattr(FakeCuda, name)).parameters if one != "self"]
        assert mine == parameters, name
        results = re.findall(r"^\w+ *:", documented.split("Returns\n", 1)[1].split("See Also", 1)[0], re.MULTILINE)
        if not name.startswith("cudaGetError"):  # those answer with the text alone in the documentation
            refused = getattr(FakeCuda(driver="absent"), name)(*([0] * len(mine)))
            assert len(refused) == 1 + len([one for one in results if not one.startswith("cudaError_t")]), name


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES)
def test_ordered_work_gives_the_right_answer_under_every_schedule(policy: Policy, seed: int) -> None:
    bench = Bench(policy=policy, seed=seed)
    bench.upload(bench.a)
    bench.order()
    kernel = writes(bench.device, N)
    ok((bench.fake.launch(bench.b, lambda: bench.fake.view(bench.device, N).__iadd__(1), accesses=[kernel]),))
    bench.download(bench.b)
    ok(bench.fake.cudaStreamSynchronize(bench.b))
    assert bench.result == {8}
    bench.close()
    bench.fake.check()


def test_a_missing_wait_between_streams_shows_as_poison_and_as_a_race() -> None:
    bench = Bench(policy="lazy")
    bench.upload(bench.a)
    bench.download(bench.b)
    ok(bench.fake.cudaStreamSynchronize(bench.b))
    assert bench.result == {POISON}
    with pytest.raises(AssertionError, match=r"race on memory .*: nothing orders copy of 512 bytes"):
        bench.fake.check(leaks=False)


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES)
def test_a_race_is_found_whatever_order_things_ran_in(policy: Policy, seed: int) -> None:
    bench = Bench(policy=policy, seed=seed)
    bench.upload(bench.a)
    bench.download(bench.b)
    assert len(bench.fake.violations) == 1


def test_some_random_schedule_shows_a_race_in_the_data() -> None:
    seen = set()
    for seed in range(20):
        bench = Bench(policy="random", seed=seed)
        bench.upload(bench.a)
        bench.download(bench.b)
        ok(bench.fake.cudaStreamSynchronize(bench.b))
        seen |= bench.result
    assert seen == {7, POISON}


def test_waiting_for_an_event_before_it_is_recorded_orders_nothing() -> None:
    bench = Bench(policy="lazy")
    ok(bench.fake.cudaStreamWaitEvent(bench.b, bench.event, 0))
    bench.upload(bench.a)
    ok(bench.fake.cudaEventRecord(bench.event, bench.a))
    bench.download(bench.b)
    ok(bench.fake.cudaStreamSynchronize(bench.b))
    assert bench.result == {POISON}
    assert len(bench.fake.violations) == 1


def test_reading_pinned_memory_before_the_download_is_done_shows_poison() -> None:
    bench = Bench(policy="lazy")
    bench.upload(bench.a)
    bench.download(bench.a)
    assert bench.result == {POISON}
    ok(bench.fake.cudaStreamSynchronize(bench.a))
    assert bench.result == {7}


def test_filling_pinned_memory_before_its_upload_is_done_changes_what_arrives() -> None:
    bench = Bench(policy="lazy")
    bench.upload(bench.a)
    bench.fake.view(bench.source, N)[:] = 9
    bench.download(bench.a)
    ok(bench.fake.cudaStreamSynchronize(bench.a))
    assert bench.result == {9}


def test_the_host_orders_streams_by_waiting_for_one() -> None:
    bench = Bench(policy="lazy")
    bench.upload(bench.a)
    ok(bench.fake.cudaStreamSynchronize(bench.a))
    bench.download(bench.b)
    ok(bench.fake.cudaStreamSynchronize(bench.b))
    assert bench.result == {7}
    bench.fake.check(leaks=False)


def test_two_reads_at_a_time_are_no_race() -> None:
    bench = Bench(policy="lazy")
    for stream in (bench.a, bench.b):
        ok((bench.fake.launch(stream, lambda: None, accesses=[reads(bench.device, N)]),))
    bench.fake.check(leaks=False)


def test_neighbours_in_memory_and_other_things_are_no_race() -> None:
    bench = Bench(policy="lazy")
    uses = ([writes(bench.device, 256), exclusive("one")], [writes(bench.device + 256, 256), exclusive("another")])
    for stream, accesses in zip((bench.a, bench.b), uses, strict=True):
        ok((bench.fake.launch(stream, lambda: None, accesses=accesses),))
    bench.fake.check(leaks=False)
    ok((bench.fake.launch(bench.a, lambda: None, accesses=[exclusive("one")]),))
    ok((bench.fake.launch(bench.b, lambda: None, accesses=[exclusive("one")]),))
    assert "race on one" in bench.fake.violations[0]


def test_waiting_for_one_stream_orders_nothing_after_another() -> None:
    bench = Bench(policy="lazy")
    bench.upload(bench.a)
    ok(bench.fake.cudaStreamSynchronize(bench.b))
    ok(bench.fake.cudaMemsetAsync(ok(bench.fake.cudaMalloc(8)), 0, 8, bench.b))
    ok(bench.fake.cudaStreamSynchronize(bench.b))
    bench.download(bench.b)
    assert len(bench.fake.violations) == 1


@pytest.mark.parametrize("poll", [True, False])
def test_the_host_knows_what_an_event_tells_it(poll: bool) -> None:
    bench = Bench(policy="lazy")
    bench.upload(bench.a)
    ok(bench.fake.cudaEventRecord(bench.event, bench.a))
    if poll:
        while bench.fake.cudaEventQuery(bench.event)[0] == Error.cudaErrorNotReady:
            pass
    else:
        ok(bench.fake.cudaEventSynchronize(bench.event))
    ok(bench.fake.cudaFree(bench.device))
    bench.fake.check(leaks=False)


def test_one_gpu_is_waited_for_and_not_the_other() -> None:
    fake = FakeCuda(policy="lazy", gpus=[FakeGpu(), FakeGpu()])
    ran: list[int] = []
    streams = []
    for device in (0, 1):
        ok(fake.cudaSetDevice(device))
        streams.append(ok(fake.cudaStreamCreateWithFlags(1)))
        ok((fake.launch(streams[device], partial(ran.append, device)),))
    ok(fake.cudaDeviceSynchronize())
    assert ran == [1]
    ok(fake.cudaSetDevice(0))
    ok(fake.cudaStreamSynchronize(0))
    assert ran == [1]
    blocking = ok(fake.cudaStreamCreate())
    ok((fake.launch(blocking, partial(ran.append, 2)),))
    ok(fake.cudaSetDevice(1))
    ok(fake.cudaStreamSynchronize(0))
    assert ran == [1]
    event = ok(fake.cudaEventCreate())
    assert fake.cudaEventRecord(event, streams[0]) == (Error.cudaErrorInvalidResourceHandle,)


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES)
def test_polling_an_event_ends_and_then_the_work_is_done(policy: Policy, seed: int) -> None:
    bench = Bench(policy=policy, seed=seed)
    bench.upload(bench.a)
    bench.download(bench.a)
    ok(bench.fake.cudaEventRecord(bench.event, bench.a))
    polls = 0
    while bench.fake.cudaEventQuery(bench.event)[0] == Error.cudaErrorNotReady:
        polls += 1
    assert bench.result == {7}
    assert polls < 50
    assert (polls > 0) == (policy == "lazy") or policy == "random"
    bench.upload(bench.a)
    ok(bench.fake.cudaEventRecord(bench.event, bench.a))
    assert policy != "lazy" or bench.fake.cudaEventQuery(bench.event)[0] == Error.cudaErrorNotReady
    for _ in range(50):
        bench.fake.cudaStreamQuery(bench.a)
    assert bench.fake.cudaStreamQuery(bench.a) == (Error.cudaSuccess,)


def test_the_default_stream_orders_blocking_streams_and_no_others() -> None:
    bench = Bench(policy="lazy")
    blocking = ok(bench.fake.cudaStreamCreate())
    bench.upload(blocking)
    bench.download(0)
    ok(bench.fake.cudaStreamSynchronize(0))
    assert bench.result == {7}
    assert not bench.fake.violations
    bench.upload(bench.a)
    bench.download(0)
    assert len(bench.fake.violations) == 1
    bench.upload(bench.b)
    assert len(bench.fake.violations) == 3  # with the upload on the other stream, and with the download


def test_each_thread_has_a_default_stream_of_its_own() -> None:
    bench = Bench(policy="lazy")
    per_thread = runtime.cudaStreamPerThread
    bench.upload(per_thread)
    bench.upload(per_thread)
    assert not bench.fake.violations
    with ThreadPoolExecutor(1) as pool:
        pool.submit(bench.upload, per_thread).result()
    assert len(bench.fake.violations) == 2


def test_what_is_on_the_default_stream_waits_for_blocking_streams_itself() -> None:
    bench = Bench(policy="lazy")
    bench.upload(ok(bench.fake.cudaStreamCreate()))
    bench.download(0)
    ok(bench.fake.cudaEventRecord(bench.event, 0))
    ok(bench.fake.cudaEventSynchronize(bench.event))
    assert bench.result == {7}


def test_a_destroyed_stream_or_event_is_refused_and_noted() -> None:
    bench = Bench()
    ok(bench.fake.cudaStreamDestroy(bench.a))
    assert bench.fake.cudaStreamSynchronize(bench.a) == (Error.cudaErrorInvalidResourceHandle,)
    assert "cudaStreamSynchronize was given" in bench.fake.violations[0]
    assert "which is no live stream" in bench.fake.violations[0]


def test_events_tell_a_time_only_where_cuda_does() -> None:
    fake = FakeCuda(policy="lazy")
    stream = ok(fake.cudaStreamCreateWithFlags(1))
    first, second = ok(fake.cudaEventCreate()), ok(fake.cudaEventCreate())
    assert fake.cudaEventElapsedTime(first, second) == (Error.cudaErrorInvalidResourceHandle, None)
    ok(fake.cudaEventRecord(first, stream))
    ok((fake.launch(stream, lambda: None),))
    ok(fake.cudaEventRecord(second, stream))
    assert fake.cudaEventElapsedTime(first, second) == (Error.cudaErrorNotReady, None)
    ok(fake.cudaEventSynchronize(second))
    assert ok(fake.cudaEventElapsedTime(first, second)) > 0
    untimed = ok(fake.cudaEventCreateWithFlags(runtime.cudaEventDisableTiming))
    ok(fake.cudaEventRecord(untimed, stream))
    ok(fake.cudaStreamSynchronize(stream))
    assert fake.cudaEventElapsedTime(first, untimed) == (Error.cudaErrorInvalidResourceHandle, None)


@pytest.mark.parametrize("policy", ["eager", "lazy", "random"])
def test_many_threads_at_once_each_get_their_own_data(policy: Policy) -> None:
    fake = FakeCuda(policy=policy)

    def round_trips(start: int) -> bool:
        bench = Bench(fake=fake)
        right = True
        for value in range(start, start + 20):
            fake.view(bench.source, N)[:] = value
            bench.upload(bench.a)
            bench.download(bench.a)
            ok(fake.cudaStreamSynchronize(bench.a))
            right &= bench.result == {value}
        bench.close()
        return right

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(round_trips, range(0, 200, 20)))
    finally:
        sys.setswitchinterval(before)
    fake.check()
    assert fake.memory.allocations == fake.memory.frees
