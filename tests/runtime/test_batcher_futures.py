"""Futures of a batcher: deadlines, cancelling, callbacks, asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from concurrent.futures import CancelledError, Future, wait
from typing import TYPE_CHECKING, Any

import pytest

from helpers.slow_model import TIMEOUT_S, FakeClock, SlowModel, answered, clip
from milnce.batcher import Batcher
from milnce.errors import DeadlineError, InputError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def model() -> Iterator[SlowModel]:
    model = SlowModel()
    yield model
    model.release()


@pytest.fixture
def batcher(model: SlowModel, clock: FakeClock) -> Iterator[Batcher]:
    """Return a batcher of single clips, with room for four of them."""
    with Batcher(model, max_batch=1, max_queue=4, clock=clock) as batcher:  # type: ignore[arg-type] # all that it needs
        yield batcher
        model.release()


def occupy(batcher: Batcher, model: SlowModel) -> Future[Any]:
    """Let one clip run until the test lets it end."""
    model.uint8.hold()
    future = batcher.submit_video(clip(0))
    model.uint8.wait_begun(1)
    return future


# Deadlines


def test_a_request_whose_deadline_passes_while_a_batch_runs_is_never_run(
    batcher: Batcher, model: SlowModel, clock: FakeClock
) -> None:
    running = occupy(batcher, model)
    early = batcher.submit_video(clip(1), deadline_s=2.0)
    late = batcher.submit_video(clip(2), deadline_s=3.0)
    clock.now_s += 2.0
    model.uint8.release()
    assert [answered(future.result(TIMEOUT_S)) for future in (running, late)] == [0, 2]
    text = r"video: not begun within 2 s, and so never run; allow more time, or send fewer requests"
    with pytest.raises(DeadlineError, match=text):
        early.result(TIMEOUT_S)
    assert isinstance(early.exception(), TimeoutError)
    batcher.close()
    assert model.uint8.batches == [[0], [2]]
    stats = batcher.stats().video
    assert (stats.accepted, stats.answered, stats.expired, stats.failed) == (3, 2, 1, 0)


def test_a_request_that_waits_for_company_is_told_of_its_deadline(model: SlowModel, clock: FakeClock) -> None:
    with Batcher(model, max_batch=2, max_delay_ms=1e9, clock=clock) as batcher:  # type: ignore[arg-type]
        future = batcher.submit_video(clip(1), deadline_s=0.02)
        clock.now_s += 0.02
        assert isinstance(future.exception(TIMEOUT_S), DeadlineError)
    assert model.uint8.batches == []


def test_a_shorter_deadline_that_comes_later_wakes_the_lane(model: SlowModel, clock: FakeClock) -> None:
    with Batcher(model, max_batch=3, max_delay_ms=1e9, clock=clock) as batcher:  # type: ignore[arg-type]
        batcher.submit_video(clip(1), deadline_s=1e6)
        future = batcher.submit_video(clip(2), deadline_s=0.02)
        clock.now_s += 0.02
        assert isinstance(future.exception(TIMEOUT_S), DeadlineError)


@pytest.mark.parametrize("deadline_s", [0, -1.5])
def test_a_deadline_that_has_passed_fails_at_once(batcher: Batcher, model: SlowModel, deadline_s: float) -> None:
    occupy(batcher, model)
    for future in (
        batcher.submit_video(clip(1), deadline_s=deadline_s),
        batcher.submit_text("w1", deadline_s=deadline_s),
    ):
        assert future.done()
        with pytest.raises(DeadlineError, match=f"not begun within {deadline_s:g} s"):
            future.result()
    assert batcher.stats().video.queued == 0
    assert (batcher.stats().text.accepted, batcher.stats().text.expired) == (1, 1)


def test_the_deadline_of_what_runs_does_not_matter(batcher: Batcher, model: SlowModel, clock: FakeClock) -> None:
    model.uint8.hold()
    future = batcher.submit_video(clip(1), deadline_s=1.0)
    model.uint8.wait_begun(1)
    clock.now_s += 5.0
    model.uint8.release()
    assert answered(future.result(TIMEOUT_S)) == 1


def test_expired_requests_take_no_place_in_the_queue(batcher: Batcher, model: SlowModel, clock: FakeClock) -> None:
    occupy(batcher, model)
    expired = [batcher.submit_video(clip(number), deadline_s=1.0) for number in range(1, 5)]
    with pytest.raises(QueueFullError, match="4 requests wait and 1 run"):
        batcher.submit_video(clip(9))
    clock.now_s += 1.0
    futures = [batcher.submit_video(clip(number)) for number in range(5, 9)]
    assert not any(future.cancel() for future in expired)  # too late for that too, though nobody is told yet
    model.uint8.release()
    assert [answered(future.result(TIMEOUT_S)) for future in futures] == [5, 6, 7, 8]
    assert [type(future.exception(TIMEOUT_S)) for future in expired] == [DeadlineError] * 4
    assert model.uint8.batches == [[0], [5], [6], [7], [8]]


@pytest.mark.parametrize("deadline_s", [float("nan"), "1", True])
def test_a_deadline_that_is_no_number_is_refused(batcher: Batcher, deadline_s: Any) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=r"deadline_s is .*; a number of seconds from now expected, or None"):
        batcher.submit_text("w1", deadline_s=deadline_s)


# Cancelling


def test_a_cancelled_request_is_never_run_and_gives_its_place_back(batcher: Batcher, model: SlowModel) -> None:
    running = occupy(batcher, model)
    futures = [batcher.submit_video(clip(number)) for number in range(1, 5)]
    with pytest.raises(QueueFullError):
        batcher.submit_video(clip(9))
    assert futures[1].cancel()
    assert futures[1].cancel()
    assert wait([futures[1]], 0).done == {futures[1]}
    with pytest.raises(CancelledError):
        futures[1].result()
    last = batcher.submit_video(clip(5))
    assert not running.cancel()
    model.uint8.release()
    others = [future for future in (*futures, last) if not future.cancelled()]
    assert [answered(future.result(TIMEOUT_S)) for future in others] == [1, 3, 4, 5]
    assert not others[0].cancel()
    assert model.uint8.batches == [[0], [1], [3], [4], [5]]
    stats = batcher.stats().video
    assert (stats.accepted, stats.answered, stats.cancelled, stats.refused) == (6, 5, 1, 1)


def test_a_place_is_free_when_the_callbacks_of_a_cancelled_future_run(batcher: Batcher, model: SlowModel) -> None:
    occupy(batcher, model)
    futures = [batcher.submit_video(clip(number)) for number in range(1, 5)]
    replaced: list[Future[Any]] = []
    futures[0].add_done_callback(lambda _: replaced.append(batcher.submit_video(clip(7))))
    assert futures[0].cancel()
    model.uint8.release()
    assert answered(replaced[0].result(TIMEOUT_S)) == 7


def test_two_threads_that_cancel_count_once(model: SlowModel) -> None:
    with Batcher(model, max_batch=1, max_queue=1000) as batcher:  # type: ignore[arg-type]
        occupy(batcher, model)
        futures = [batcher.submit_video(clip(number)) for number in range(1, 301)]
        barrier = threading.Barrier(4)

        def cancel() -> None:
            barrier.wait(TIMEOUT_S)
            assert all(future.cancel() for future in futures)

        threads = [threading.Thread(target=cancel) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert wait(futures, 0).not_done == set()
        assert batcher.stats().video.cancelled == 300
        model.release()
    assert model.uint8.batches == [[0]]


# Callbacks


@pytest.mark.parametrize("raised", [ValueError("mine"), KeyboardInterrupt(), SystemExit(1)])
def test_a_callback_that_raises_does_not_end_the_lane(
    batcher: Batcher, model: SlowModel, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise raised

    model.text.hold()
    futures = [batcher.submit_text(f"w{number}") for number in range(3)]
    for future in futures:
        future.add_done_callback(fail)
    with caplog.at_level(logging.ERROR):
        model.text.release()
        assert [int(future.result(TIMEOUT_S)[0]) for future in futures] == [0, 1, 2]
        assert int(batcher.encode_text("w9")[0]) == 9
    assert sum(record.exc_info is not None and record.exc_info[1] is raised for record in caplog.records) == 3


def test_callbacks_may_submit_but_not_wait(batcher: Batcher, model: SlowModel) -> None:
    found: list[object] = []
    told = threading.Event()

    def tell(future: Future[Any]) -> None:
        found.append(int(future.result()[0]))
        told.set()

    def call(_: object) -> None:
        with pytest.raises(InputError) as video:
            batcher.encode_video(clip(1))
        with pytest.raises(InputError) as text:
            batcher.encode_text("w1")
        found.extend([str(video.value), str(text.value)])
        batcher.submit_text("w5").add_done_callback(tell)

    model.text.hold()
    batcher.submit_text("w2").add_done_callback(call)
    model.text.release()
    assert told.wait(TIMEOUT_S)
    why = "was called in a callback of one of this batcher's futures, and would wait for the thread it is on"
    assert found == [f"encode_video {why}; use submit_video there", f"encode_text {why}; use submit_text there", 5]
    assert int(batcher.encode_text("w3")[0]) == 3


# Waiting


def test_who_stops_waiting_gives_the_place_back(
    batcher: Batcher, model: SlowModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupy(batcher, model)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(concurrent.futures.Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batcher.encode_video(clip(3))
    assert batcher.stats().video.queued == 0
    assert batcher.stats().video.cancelled == 1


# asyncio


def test_tasks_get_their_own_answers(model: SlowModel) -> None:
    async def main(batcher: Batcher) -> None:
        clips = [batcher.encode_video_async(clip(number)) for number in range(40)]
        texts = [batcher.encode_text_async(f"w{number}") for number in range(40)]
        assert [answered(found) for found in await asyncio.gather(*clips)] == list(range(40))
        assert [int(found[0]) for found in await asyncio.gather(*texts)] == list(range(40))

    with Batcher(model, max_batch=4) as batcher:  # type: ignore[arg-type]
        asyncio.run(main(batcher))
    assert batcher.stats().video.answered == 40


def test_a_cancelled_task_cancels_its_request(batcher: Batcher, model: SlowModel) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(batcher.encode_video_async(clip(number))) for number in range(1, 4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        await asyncio.sleep(0)
        assert batcher.stats().video.queued == 2
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(batcher.encode_video_async(clip(4)), timeout=0.001)
        assert batcher.stats().video.queued == 2
        model.release()
        assert [answered(await tasks[index]) for index in (0, 2)] == [1, 3]

    running = occupy(batcher, model)
    asyncio.run(main())
    assert answered(running.result(TIMEOUT_S)) == 0
    assert model.uint8.batches == [[0], [1], [3]]
    assert batcher.stats().video.cancelled == 2


def test_a_task_that_is_cancelled_while_its_clip_runs_harms_nobody(batcher: Batcher, model: SlowModel) -> None:
    async def main() -> None:
        model.uint8.hold()
        task = asyncio.create_task(batcher.encode_video_async(clip(1)))
        await asyncio.to_thread(model.uint8.wait_begun, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        model.release()
        assert answered(await batcher.encode_video_async(clip(2))) == 2

    asyncio.run(main())
    assert batcher.stats().video.answered == 2


def test_cancelling_the_future_cancels_who_awaits_it(batcher: Batcher, model: SlowModel) -> None:
    async def main() -> None:
        future = batcher.submit_video(clip(1))
        wrapped = asyncio.wrap_future(future)
        await asyncio.to_thread(future.cancel)
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    occupy(batcher, model)
    asyncio.run(main())


def test_refusals_and_deadlines_reach_the_task(batcher: Batcher, model: SlowModel, clock: FakeClock) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(batcher.encode_video_async(clip(n), deadline_s=1.0)) for n in range(1, 8)]
        await asyncio.sleep(0)
        clock.now_s += 1.0
        model.release()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in found] == [DeadlineError] * 4 + [QueueFullError] * 3

    occupy(batcher, model)
    asyncio.run(main())
    assert model.uint8.batches == [[0]]
