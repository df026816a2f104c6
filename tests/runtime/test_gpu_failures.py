"""Backends on a GPU when something goes wrong: failing calls, Ctrl-C, memory, closing at any time, forks."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings.runtime import cudaError_t

from helpers import fake_cuda
from helpers.doubling import Doubling, Foreign, doubled, floats, hold_completions, run
from milnce.backends.base import CudaOptions
from milnce.backends.batches import Copier
from milnce.cuda_resources import Event
from milnce.errors import BackendError, DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.fake_cuda import FakeCuda

    Opened = Callable[..., Doubling]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch, policy="lazy", gpus=[fake_cuda.FakeGpu(), fake_cuda.FakeGpu("B")])


def raise_at(backend: Doubling, turn: int, error: BaseException) -> None:
    """Let the enqueueing of the batch's part `turn`, from 0, fail with `error`, once."""
    turns = iter([None] * turn + [error])

    def on_enqueue() -> None:
        found = next(turns, None)
        if found is not None:
            raise found

    backend.on_enqueue = on_enqueue


# Failing calls


def use_everything(fake: FakeCuda) -> None:
    """Open, run in every way, and close."""
    with Doubling(fake, CudaOptions(slots=2)) as backend:
        run(backend, floats(2))
        run(backend, floats(20))
        backend.submit({"mixed_5c": floats(11)}).result(timeout=60)
        list(backend.stream({"mixed_5c": floats(3)} for _ in range(4)))
        given = Foreign(fake, floats(5), late=False)
        backend.run({"mixed_5c": given}, on_device=True)
        with backend._cuda.stream() as stream:  # noqa: SLF001
            backend.run({"mixed_5c": given}, cuda_stream=stream.handle)


def calls_of(work: Callable[[FakeCuda], None], fake: FakeCuda) -> list[tuple[str, int]]:
    """Return the name of every call that `work` makes, and how many of the same name came before it."""
    work(fake)
    seen: dict[str, int] = {}
    found = []
    for call in fake.calls:
        found.append((call.name, seen.get(call.name, 0)))
        seen[call.name] = seen.get(call.name, 0) + 1
    return found


# Where these fail something cannot be given back; nothing else may suffer from it.
FREES = {"cudaFree", "cudaFreeHost", "cudaEventDestroy", "cudaStreamDestroy"}


def said_by(work: Callable[[FakeCuda], None], fake: FakeCuda) -> str:
    """Return the text of the typed error that `work` ends with, "" for none."""
    try:
        work(fake)
    except BackendError as error:
        return str(error)
    return ""


def test_any_call_may_fail_and_what_comes_is_a_typed_error_and_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        every = calls_of(use_everything, fake_cuda.install(patched, policy="lazy"))
    raised = set()
    for name, after in every:
        if after >= 12 and after % 7:  # later calls of one name repeat what earlier ones did
            continue
        with monkeypatch.context() as patched:
            fake = fake_cuda.install(patched, policy="lazy")
            fake.fail(name, after=after, error=cudaError_t.cudaErrorUnknown)
            said = said_by(use_everything, fake)
            assert said == "" or name in said or name == "cudaGetDeviceCount", (name, after)
            if said:
                raised.add(name)
            if fake.leaks():
                gc.collect()  # what the frames of the error held
            fake.check(leaks=name not in FREES)
    assert {name for name, _ in every} - raised <= FREES | {"cudaLaunchKernel", "cudaDriverGetVersion"}


@pytest.mark.parametrize("name", ["cudaMemcpyAsync", "cudaEventRecord", "cudaStreamWaitEvent", "cudaEventSynchronize"])
def test_the_next_batch_works_after_one_that_failed(opened: Opened, fake: FakeCuda, name: str) -> None:
    backend = opened(slots=2)
    run(backend, floats(8))
    for after in range(12):
        for count in (5, 27):
            fake.fail(name, after=after, error=cudaError_t.cudaErrorUnknown)
            with contextlib.suppress(BackendError):
                run(backend, floats(count))
            fake.fail(name, after=after, error=cudaError_t.cudaErrorUnknown)
            with contextlib.suppress(BackendError):
                backend.submit({"mixed_5c": floats(count)}).result(timeout=60)
            fake.fail(name, times=0)
            np.testing.assert_array_equal(run(backend, floats(count)), doubled(floats(count)))


def test_an_error_that_loses_the_context_hangs_nothing(
    opened: Opened, fake: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    backend = opened(slots=2)
    run(backend, floats(2))

    def break_it() -> None:
        fake.launch(backend._ring.compute.handle, lambda: fake.view(8, 8))  # noqa: SLF001

    backend.on_enqueue = break_it
    with pytest.raises(BackendError, match=r"cudaErrorIllegalAddress .*the CUDA context of this process is lost"):
        run(backend, floats(20))
    backend.on_enqueue = lambda: None
    for call in (lambda: run(backend, floats(1)), lambda: backend.submit({"mixed_5c": floats(1)}).result(timeout=60)):
        with pytest.raises(BackendError, match="cudaErrorIllegalAddress"):
            call()
    with caplog.at_level(logging.WARNING):
        backend.close()
    assert "not everything could be freed: cuda" in caplog.text
    assert backend.freed == 1
    fake.finish()  # what the lost context never ran
    fake.violations.clear()


def test_what_is_no_error_of_cuda_names_the_graph_and_the_rows(opened: Opened) -> None:
    backend = opened()
    raise_at(backend, 0, IndexError("out of range"))
    with pytest.raises(BackendError, match=r"doubling failed to run projection .* with 3 rows: out of range"):
        run(backend, floats(3))
    raise_at(backend, 0, IndexError("out of range"))
    assert isinstance(backend.submit({"mixed_5c": floats(3)}).exception(timeout=60), BackendError)
    run(backend, floats(3))


def test_a_later_part_that_fails_fails_the_batch_once(opened: Opened) -> None:
    backend = opened(slots=2)
    run(backend, floats(8))
    for turn in range(4):
        raise_at(backend, turn, IndexError("out of range"))
        future = backend.submit({"mixed_5c": floats(30)})
        assert "out of range" in str(future.exception(timeout=60))
        np.testing.assert_array_equal(run(backend, floats(30)), doubled(floats(30)))


# Ctrl-C


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("where", ["wait", "enqueue", "copy"])
def test_an_interrupted_run_leaves_a_backend_that_works(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, where: str, count: int
) -> None:
    backend = opened(slots=2)
    run(backend, floats(1))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for call in (lambda: run(backend, floats(count)), lambda: backend.submit({"mixed_5c": floats(count)})):
        with monkeypatch.context() as patched:
            if where == "wait":
                patched.setattr(Event, "synchronize", interrupt)
            elif where == "enqueue":
                raise_at(backend, (count - 1) // 8, KeyboardInterrupt())
            else:
                patched.setattr(Copier, "copy", interrupt)
            with pytest.raises(KeyboardInterrupt):
                call()
        # The next one grows the ring, and so frees what the interrupted one used.
        backend._ring._grow(backend._bucket(8, {"mixed_5c": (5,)}))  # noqa: SLF001
        np.testing.assert_array_equal(run(backend, floats(7)), doubled(floats(7)))
        if where == "wait":  # a future's waiting is done elsewhere
            break


# Memory


def test_memory_is_allocated_once_and_anew_only_for_a_larger_batch(opened: Opened, fake: FakeCuda) -> None:
    backend = opened(slots=3)
    run(backend, floats(2))
    small = (backend.device_bytes, backend.pinned_bytes)
    before = fake.counts["cudaMalloc"]
    for _ in range(5):
        run(backend, floats(2))
        run(backend, floats(1))
    assert fake.counts["cudaMalloc"] == before
    run(backend, floats(8))
    large = (backend.device_bytes, backend.pinned_bytes)
    assert large[0] > small[0]
    allocated = fake.counts["cudaMalloc"]
    run(backend, floats(70))
    assert fake.counts["cudaMalloc"] == allocated
    assert (backend.device_bytes, backend.pinned_bytes) == large == (3 * (256 + 256) + 8 * 64, 3 * (256 + 256))


def test_a_batch_past_the_declared_memory_is_refused_and_smaller_ones_still_run(opened: Opened) -> None:
    backend = opened(slots=2, device_limit_bytes=2 * 512 + 2 * 64)
    small = floats(2)
    np.testing.assert_array_equal(run(backend, small), doubled(small))
    try:
        run(backend, floats(8))
    except DeviceMemoryError as error:
        # While the error is at hand too, which keeps everything that its frames hold.
        np.testing.assert_array_equal(run(backend, small), doubled(small))
        assert "would pass the declared limit of 1,152" in str(error)  # noqa: PT017
    else:
        pytest.fail("a batch past the limit ran")
    assert isinstance(backend.submit({"mixed_5c": floats(8)}).exception(timeout=60), DeviceMemoryError)
    np.testing.assert_array_equal(run(backend, small), doubled(small))


def test_room_for_results_is_not_freed_under_the_parts_that_write_there(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(slots=3)
    run(backend, floats(8))
    gate = hold_completions(monkeypatch)
    raise_at(backend, 2, IndexError("out of range"))
    threading.Timer(0.05, gate.set).start()
    with backend._cuda.stream() as stream:  # noqa: SLF001
        with pytest.raises(BackendError, match="out of range"):
            backend.run({"mixed_5c": floats(23)}, cuda_stream=stream.handle)
        assert gate.is_set()
        stream.synchronize()


@pytest.mark.parametrize("where", ["growth", "first part", "third part"])
@pytest.mark.parametrize("behind", [False, True])
def test_room_for_results_that_were_never_given_is_free_at_once(opened: Opened, *, behind: bool, where: str) -> None:
    backend = opened(slots=2, device_limit_bytes=2 * 512 + 2 * 64 + 800)
    run(backend, floats(2))
    if where != "growth":
        backend._cuda._limits["device"] = None  # noqa: SLF001
        run(backend, floats(8))
        raise_at(backend, 0 if where == "first part" else 2, IndexError("out of range"))
    used = backend.device_bytes
    with backend._cuda.stream() as stream:  # noqa: SLF001
        options: dict[str, Any] = {"cuda_stream": stream.handle} if behind else {"on_device": True}
        try:
            backend.run({"mixed_5c": floats(23)}, **options)
        except BackendError as error:
            # While the error is at hand, which keeps everything that its frames hold.
            assert backend.device_bytes == used
            assert ("declared limit" if where == "growth" else "out of range") in str(error)  # noqa: PT017
        else:
            pytest.fail("the batch ran")
        stream.synchronize()
