"""How backends on a GPU end: closed at any time and by anyone, forgotten, forked; and what they keep until then."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cuda.bindings.runtime import cudaError_t

from helpers import fake_cuda
from helpers.doubling import Doubling, Foreign, doubled, floats, run
from milnce.backends.base import CudaOptions
from milnce.cuda import Cuda
from milnce.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.fake_cuda import FakeCuda
    from helpers.fake_cuda_streams import Policy

    Opened = Callable[..., Doubling]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return fake_cuda.install(monkeypatch, policy="lazy", gpus=[fake_cuda.FakeGpu(), fake_cuda.FakeGpu("B")])


def said_by(work: Callable[[], object]) -> str:
    """Return the text of the typed error that `work` ends with."""
    try:
        work()
    except BackendError as error:
        return str(error)
    return ""


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does soon; asserts nothing."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


def test_close_waits_for_what_is_under_way_and_frees_everything_once(opened: Opened, fake: FakeCuda) -> None:
    backend = opened()
    futures = [backend.submit({"mixed_5c": floats(5)}) for _ in range(7)]
    with ThreadPoolExecutor(4) as threads:
        for closed in [threads.submit(backend.close) for _ in range(4)]:
            closed.result(timeout=60)
    for future in futures:
        np.testing.assert_array_equal(future.result(timeout=5)["video_embedding"], doubled(floats(5)))
    assert fake.leaks() == {}
    assert backend.freed == 1
    for call in (backend.run, backend.submit, lambda feeds: next(backend.stream([feeds]))):
        with pytest.raises(BackendError, match=r"doubling: projection .* is closed; load the model again"):
            call({"mixed_5c": floats(1)})


@pytest.fixture
def hasty() -> Iterator[None]:
    """Let threads take turns far more often, so that what can come between two steps does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("policy", ["lazy", "random"])
def test_anything_at_once_ends_with_right_numbers_or_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, policy: Policy
) -> None:
    for seed in range(25):
        with monkeypatch.context() as patched:
            fake = fake_cuda.install(patched, policy=policy, seed=seed)
            backend = Doubling(fake, CudaOptions(slots=1 + seed % 3, device_limit_bytes=40_000))
            if seed % 5 == 4:
                fake.fail("cudaMemcpyAsync", after=10 + seed, times=2, error=cudaError_t.cudaErrorUnknown)
            with ThreadPoolExecutor(5) as threads:
                ends = [threads.submit(use, backend, turn + 7 * seed) for turn in range(5)]
                time.sleep(0.002 * (seed % 4))
                backend.close()
                assert all(end.result(timeout=60) for end in ends)
            gc.collect()
            fake.check()


def use(backend: Doubling, seed: int) -> str:
    """Use a backend until it is closed or something fails, and return the error."""
    random = np.random.default_rng(seed)
    try:
        with Cuda().stream() as stream:
            while True:
                use_once(backend, random, stream.handle)
    except BackendError as error:
        return str(error)


def use_once(backend: Doubling, random: np.random.Generator, stream: int) -> None:
    array = floats(int(random.integers(1, 20)), seed=int(random.integers(100)))
    expected, feeds = doubled(array), {"mixed_5c": array}
    way = random.integers(5)
    if way == 0:
        found = run(backend, array)
    elif way == 1:
        future = backend.submit(feeds)
        future.add_done_callback(lambda _: None)
        found = future.result(timeout=60)["video_embedding"]
    elif way == 2:
        found = next(backend.stream([feeds, feeds]))["video_embedding"]  # and the rest is left
    elif way == 3:
        found = backend.run(feeds, on_device=True)["video_embedding"].copy_to_host()
    else:
        found = backend.run(feeds, cuda_stream=stream)["video_embedding"].copy_to_host()
    np.testing.assert_array_equal(found, expected)


def test_a_backend_that_is_forgotten_frees_everything(fake: FakeCuda) -> None:
    backend = Doubling(fake, CudaOptions())
    backend.submit({"mixed_5c": floats(3)}).result(timeout=60)
    before = threading.active_count()
    del backend
    gc.collect()
    wait_until(lambda: not fake.leaks())
    fake.check()
    wait_until(lambda: threading.active_count() < before)
    assert threading.active_count() < before


def test_what_a_batch_held_is_not_kept_until_the_next_one(opened: Opened, fake: FakeCuda) -> None:
    backend = opened()
    with backend._cuda.stream() as stream:  # noqa: SLF001
        given = Foreign(fake, floats(5), stream=stream.handle)
        found = backend.run({"mixed_5c": given}, cuda_stream=stream.handle)
        stream.synchronize()
        with_results = backend.device_bytes
        del given, found
        wait_until(lambda: backend.device_bytes == with_results - 5 * 20)
        assert backend.device_bytes == with_results - 5 * 20


@pytest.mark.parametrize("device", [0, 1])
def test_the_caller_s_current_gpu_stays_current(opened: Opened, fake: FakeCuda, device: int) -> None:
    other = 1 - device
    fake.cudaSetDevice(other)
    backend = opened(device=device)
    np.testing.assert_array_equal(run(backend, floats(3)), doubled(floats(3)))
    backend.submit({"mixed_5c": floats(3)}).result(timeout=60)
    list(backend.stream({"mixed_5c": floats(9)} for _ in range(3)))
    backend.close()
    assert fake.device == other
    assert backend.device == ("cuda", "cuda:1")[device]
    fake.cudaSetDevice(0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_is_told_to_load_the_model_itself(opened: Opened, fake: FakeCuda) -> None:
    backend = opened()
    run(backend, floats(2))
    backend.submit({"mixed_5c": floats(2)}).result(timeout=60)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        feeds = {"mixed_5c": np.zeros((2**18, 5), np.float32)}
        said = [said_by(lambda: backend.run(feeds)), said_by(lambda: backend.submit(feeds))]
        before = len(fake.calls)
        backend.close()
        said.append(str(len(fake.calls) - before))
        os.write(writing, "|".join(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        first, second, calls = pipe.read().split("|")
    os.waitpid(child, 0)
    assert first == second
    assert f"was opened in process {os.getpid()}, and this is a fork of it, where CUDA does not work" in first
    assert calls == "0"
    np.testing.assert_array_equal(run(backend, floats(2)), doubled(floats(2)))
