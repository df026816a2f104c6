"""What every backend on a GPU does with batches, over a simulated one: sizes, order, threads, futures, streams."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers import fake_cuda
from helpers.doubling import SIZES, Doubling, doubled, floats, hold_completions, run
from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from helpers.doubling import Floats
    from helpers.fake_cuda import FakeCuda

    Opened = Callable[..., Doubling]

POLICIES = [("lazy", 0), ("random", 1), ("random", 2)]
every_policy = pytest.mark.parametrize("fake", POLICIES, indirect=True, ids=lambda p: f"{p[0]}{p[1]}")


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    policy, seed = getattr(request, "param", POLICIES[0])
    return fake_cuda.install(monkeypatch, policy=policy, seed=seed, gpus=[fake_cuda.FakeGpu(), fake_cuda.FakeGpu("B")])


def result(future: Future[dict[str, Any]]) -> Floats:
    found: Floats = future.result(timeout=60)["video_embedding"]
    return found


# Batches


@every_policy
def test_batches_of_any_size_are_split_and_padded_in_order(opened: Opened) -> None:
    for count in [1, 2, 3, 5, 8, 9, 30, 70]:
        backend = opened()
        array = floats(count)
        np.testing.assert_array_equal(run(backend, array), doubled(array))
        whole, rest = divmod(count, SIZES[-1])
        padded = [next(size for size in SIZES if size >= rest)] if rest else []
        assert backend.enqueued == [SIZES[-1]] * whole + padded


@every_policy
def test_many_threads_share_one_backend(opened: Opened) -> None:
    backend = opened(slots=2)

    def work(seed: int) -> None:
        for count in (1, 3, 8, 17, 2):
            array = floats(count, seed)
            if (seed + count) % 2:
                np.testing.assert_array_equal(run(backend, array), doubled(array))
            else:
                np.testing.assert_array_equal(result(backend.submit({"mixed_5c": array})), doubled(array))

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(work, seed) for seed in range(16)]:
            done.result(timeout=120)


@pytest.mark.parametrize("kind", ["strides", "byte order", "read-only", "Fortran order"])
def test_host_arrays_of_any_layout_are_taken(opened: Opened, kind: str) -> None:
    array = floats(6)
    expected = doubled(array)
    if kind == "strides":
        wide = np.zeros((12, 10), np.float32)
        wide[::2, ::-2] = array
        array = wide[::2, ::-2]
    elif kind == "byte order":
        array = array.astype(">f4")
        assert array.dtype.name == "float32"
    elif kind == "read-only":
        array.flags.writeable = False
    else:
        array = np.asfortranarray(array)
    np.testing.assert_array_equal(run(opened(), array), expected)


def test_wrong_batches_are_refused_before_anything_is_enqueued(opened: Opened, fake: FakeCuda) -> None:
    backend = opened()
    before = fake.counts["cudaMemcpyAsync"]
    for feeds, text in (
        ({"mixed_5c": floats(0)}, r"N is 0, .*expected N=1.."),
        ({"mixed_5c": floats(1)[:, :4]}, "axis 1 is 4"),
        ({"mixed_5c": floats(1)[0]}, "rank 1 given"),
        ({"mixed_5c": floats(1).astype(float)}, "dtype float64 given, float32 expected"),
        ({"clip": floats(1)}, r"inputs \['clip'\] given"),
        ({}, r"inputs \[\] given"),
        ({"mixed_5c": [1.0]}, "a numpy.ndarray or an array on the GPU expected, list given"),
    ):
        for call in (backend.run, backend.submit):
            with pytest.raises(InputError, match=text):
                call(feeds)
    assert fake.counts["cudaMemcpyAsync"] == before


def test_results_are_the_caller_s_own(opened: Opened) -> None:
    backend = opened(slots=1)
    first = run(backend, floats(4))
    kept = first.copy()
    run(backend, floats(4, seed=9))
    np.testing.assert_array_equal(first, kept)


# Futures and streams


@every_policy
def test_submitted_batches_may_be_changed_by_the_caller_at_once(opened: Opened) -> None:
    backend = opened()
    for count in (6, 19):
        array = floats(count)
        expected = doubled(array)
        future = backend.submit({"mixed_5c": array})
        array[:] = 0
        np.testing.assert_array_equal(result(future), expected)
        assert not future.cancel()


@every_policy
def test_stream_yields_in_order_and_takes_no_more_than_the_slots_ahead(opened: Opened) -> None:
    backend = opened(slots=2)
    taken = 0

    def coming() -> Iterator[dict[str, Floats]]:
        nonlocal taken
        for index in range(20):
            taken += 1
            yield {"mixed_5c": floats(index % 11 + 1, seed=index)}

    for index, found in enumerate(backend.stream(coming())):
        np.testing.assert_array_equal(found["video_embedding"], doubled(floats(index % 11 + 1, seed=index)))
        assert taken - index <= 3
    assert taken == 20


def test_copies_do_not_wait_for_the_compute_of_other_batches(
    opened: Opened, fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened(slots=3)
    run(backend, floats(8))
    gate, ran = hold_completions(monkeypatch), []
    compute = backend._ring.compute.handle  # noqa: SLF001
    backend.on_enqueue = lambda: fake.launch(compute, lambda: ran.append(1))
    first = len(fake.calls)
    futures = [backend.submit({"mixed_5c": floats(8)}) for _ in range(3)]
    # All three are in the GPU's queues, and nothing has run: the copies of each are in a stream of their own.
    assert ran == []
    streams = [call.args[4] for call in fake.calls[first:] if call.name == "cudaMemcpyAsync"]
    assert [streams.count(stream) for stream in dict.fromkeys(streams)] == [2, 2, 2]
    assert compute not in streams
    gate.set()
    for future in futures:
        np.testing.assert_array_equal(result(future), doubled(floats(8)))


def test_stream_raises_in_the_place_of_the_batch_that_is_wrong(opened: Opened) -> None:
    backend = opened(slots=2)

    def coming(*, fails: bool) -> Iterator[dict[str, Any]]:
        yield {"mixed_5c": floats(1)}
        yield {"mixed_5c": floats(2)}
        if fails:
            raise OSError("the disk is gone")
        yield {"mixed_5c": floats(2).astype(int)}
        yield {"mixed_5c": floats(3)}

    for fails, error in ((True, OSError), (False, InputError)):
        stream = backend.stream(coming(fails=fails))
        for count in (1, 2):
            np.testing.assert_array_equal(next(stream)["video_embedding"], doubled(floats(count)))
        with pytest.raises(error):
            next(stream)
    # One that is left half way holds nothing that others wait for.
    left = backend.stream({"mixed_5c": floats(8)} for _ in range(10))
    next(left)
    for _ in range(5):
        run(backend, floats(20))
    left.close()  # type: ignore[attr-defined] # of a generator


@pytest.mark.parametrize("what", ["run", "submit", "close"])
def test_a_callback_may_wait_for_slots_that_other_futures_hold(opened: Opened, what: str) -> None:
    backend = opened(slots=1)
    slot_is_taken, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def called(_: object) -> None:
        assert slot_is_taken.wait(60)
        if what == "close":
            backend.close()
        else:
            found.append(getattr(backend, what)({"mixed_5c": floats(11)}))
        done.set()

    backend.submit({"mixed_5c": floats(1)}).add_done_callback(called)
    second = backend.submit({"mixed_5c": floats(2)})
    slot_is_taken.set()
    assert done.wait(60)
    np.testing.assert_array_equal(result(second), doubled(floats(2)))
    if what == "run":
        np.testing.assert_array_equal(found[0]["video_embedding"], doubled(floats(11)))
    elif what == "submit":
        np.testing.assert_array_equal(result(found[0]), doubled(floats(11)))


def test_a_callback_that_ends_its_thread_does_not_end_the_others(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    backend = opened()

    def leave(_: object) -> None:
        raise SystemExit

    backend.submit({"mixed_5c": floats(1)}).add_done_callback(leave)
    for _ in range(3):
        np.testing.assert_array_equal(result(backend.submit({"mixed_5c": floats(2)})), doubled(floats(2)))
    assert "a future's callback failed" in caplog.text
