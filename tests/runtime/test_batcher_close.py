"""The end of a batcher: closed, twice, from anywhere, forgotten, at the interpreter's end, in a fork."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from helpers.slow_model import TIMEOUT_S, SlowModel, answered, clip, wait_until
from milnce import batcher_lane
from milnce.batcher import Batcher
from milnce.batcher_queue import RequestQueue
from milnce.errors import BackendError, ClosedError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def model() -> Iterator[SlowModel]:
    model = SlowModel()
    yield model
    model.release()


def make(model: SlowModel, **options: Any) -> Batcher:  # noqa: ANN401 - a batcher's own
    return Batcher(model, **{"max_batch": 1, **options})  # type: ignore[arg-type] # all of a model that it needs


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("milnce-batcher")]


def occupy(batcher: Batcher, model: SlowModel) -> Future[Any]:
    model.uint8.hold()
    future = batcher.submit_video(clip(0))
    model.uint8.wait_begun(1)
    return future


def test_closing_answers_what_waits_and_ends_the_threads(model: SlowModel) -> None:
    before = threads()
    with make(model, max_batch=4, max_delay_ms=1e9) as batcher:
        futures = [batcher.submit_video(clip(number)) for number in range(6)]
        text = batcher.submit_text("w3")
    assert [answered(future.result(0)) for future in futures] == list(range(6))
    assert int(text.result(0)[0]) == 3
    assert model.uint8.batches == [[0, 1, 2, 3], [4, 5]]
    assert threads() == before
    for submit in (lambda: batcher.submit_video(clip(1)), lambda: batcher.submit_text("w1")):
        with pytest.raises(ClosedError, match=r"the batcher is closed; make another: milnce\.Batcher\(model\)"):
            submit()
    assert not model.uint8._closed  # noqa: SLF001 - the model is its owner's
    batcher.close()
    batcher.close(drain=False)


def test_closing_without_draining_finishes_what_runs_and_fails_the_rest(model: SlowModel) -> None:
    batcher = make(model)
    running = occupy(batcher, model)
    futures = [batcher.submit_video(clip(number)) for number in range(1, 5)]
    with ThreadPoolExecutor(1) as closer:
        closing = closer.submit(batcher.close, drain=False)
        wait_until(lambda: batcher._video._closing)  # noqa: SLF001
        with pytest.raises(ClosedError):
            batcher.submit_video(clip(9))
        assert not closing.done()
        model.release()
        closing.result(TIMEOUT_S)
    assert answered(running.result(0)) == 0
    for future in futures:
        with pytest.raises(ClosedError, match="video: not run, as the batcher was closed with drain=False"):
            future.result(0)
    assert model.uint8.batches == [[0]]
    assert batcher.stats().video.dropped == 4


def test_an_error_in_the_block_does_not_wait_for_what_is_queued(model: SlowModel) -> None:
    def work() -> None:
        with make(model) as batcher:
            occupy(batcher, model)
            futures.extend(batcher.submit_video(clip(number)) for number in (1, 2))
            model.uint8.on_run = lambda: wait_until(lambda: batcher._video._closing)  # noqa: SLF001
            model.release()
            raise OSError("the disk is gone")

    futures: list[Future[Any]] = []
    with pytest.raises(OSError, match="the disk is gone"):
        work()
    assert [type(future.exception(0)) for future in futures] == [ClosedError] * 2


@pytest.mark.parametrize("drains", [(True, True, False), (False, True, True)])
def test_whoever_closes_without_draining_has_it(model: SlowModel, drains: tuple[bool, ...]) -> None:
    batcher = make(model)
    occupy(batcher, model)
    futures = [batcher.submit_video(clip(number)) for number in (1, 2)]
    ended: list[bool] = []
    end = batcher._text.end  # noqa: SLF001 - called by each close, after that of the video lane

    def count(*, drain: bool) -> None:
        end(drain=drain)
        ended.append(drain)

    batcher._text.end = count  # type: ignore[method-assign] # noqa: SLF001
    with ThreadPoolExecutor(3) as closers:
        closes = []
        for number, drain in enumerate(drains, start=1):
            closes.append(closers.submit(batcher.close, drain=drain))
            wait_until(lambda number=number: len(ended) == number)  # type: ignore[misc]
        model.release()
        for closing in closes:
            closing.result(TIMEOUT_S)
    assert [type(future.exception(0)) for future in futures] == [ClosedError] * 2


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_callback_may_close(on_gpu: bool, drain: bool) -> None:
    with ThreadPoolExecutor(1) as gpu:
        model = SlowModel(thread=gpu if on_gpu else None)
        batcher = make(model)
        closed = threading.Event()
        model.uint8.hold()
        first = batcher.submit_video(clip(0))

        def close(_: object) -> None:
            batcher.close(drain=drain)
            closed.set()

        first.add_done_callback(close)
        model.release()
        assert closed.wait(TIMEOUT_S)
        batcher.close()
        assert answered(first.result(0)) == 0


def test_200_closes_with_submits_in_flight_lose_nothing() -> None:
    stop = threading.Event()
    current: list[Batcher] = []
    results: list[tuple[int, Future[Any]]] = []

    def submit(caller: int) -> None:
        number = caller
        while not stop.is_set():
            try:
                results.append((number, current[-1].submit_video(clip(number))))
            except (ClosedError, QueueFullError):
                stop.wait(0.0005)
            number += 4

    model = SlowModel()
    current.append(make(model, max_batch=3, max_delay_ms=0.2, max_queue=32))
    with ThreadPoolExecutor(4) as callers:
        done = [callers.submit(submit, caller) for caller in range(4)]
        for turn in range(200):
            old = current[-1]
            wait_until(lambda old=old: old.stats().video.accepted > 0)  # type: ignore[misc]
            closes = [threading.Thread(target=old.close, kwargs={"drain": turn % 2 == 0}) for _ in range(2)]
            for thread in closes:
                thread.start()
            for thread in closes:
                thread.join(TIMEOUT_S)
            stats = old.stats().video
            assert stats.accepted == stats.answered + stats.dropped
            assert stats.dropped == 0 or turn % 2
            current.append(make(model, max_batch=3, max_delay_ms=0.2, max_queue=32))
        stop.set()
        for future in done:
            future.result(TIMEOUT_S)
    current[-1].close()
    ran = [number for batch in model.uint8.batches for number in batch]
    assert len(ran) == len(set(ran))
    answers = [number for number, future in results if future.exception(0) is None]
    assert all(answered(future.result(0)) == number for number, future in results if future.exception(0) is None)
    assert sorted(answers) == sorted(ran)
    assert {type(future.exception(0)) for _, future in results} <= {type(None), ClosedError}


def test_a_forgotten_batcher_answers_what_waits_and_ends(model: SlowModel) -> None:
    before = threads()
    batcher = make(model)
    occupy(batcher, model)
    last = batcher.submit_video(clip(1))
    gone = weakref.ref(batcher)
    del batcher
    gc.collect()
    assert gone() is None
    model.release()
    assert answered(last.result(TIMEOUT_S)) == 1
    wait_until(lambda: threads() == before)


def test_a_batcher_may_be_forgotten_by_a_callback_of_its_own(model: SlowModel) -> None:
    before = threads()
    box = [make(model)]
    model.uint8.hold()
    future = box[0].submit_video(clip(1))

    def forget(_: object) -> None:
        box.clear()
        gc.collect()

    future.add_done_callback(forget)
    model.release()
    assert answered(future.result(TIMEOUT_S)) == 1
    wait_until(lambda: threads() == before)


def test_no_thread_to_be_had_is_said_and_leaves_none(model: SlowModel, monkeypatch: pytest.MonkeyPatch) -> None:
    before = threads()
    start, started = threading.Thread.start, []

    def second_fails(self: threading.Thread) -> None:
        started.append(self)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", second_fails)
        with pytest.raises(BackendError, match="batcher: can't start new thread; this process has no more threads to"):
            make(model)
    gc.collect()
    wait_until(lambda: threads() == before)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_is_told_to_make_its_own(model: SlowModel) -> None:
    with make(model) as batcher:
        assert answered(batcher.encode_video(clip(1))) == 1
        read, write = os.pipe()
        child = os.fork()
        if not child:  # pragma: no cover - another process
            words = ""
            with suppress(ClosedError):
                batcher.submit_text("w1")
                words += "queued"
            try:
                batcher.submit_video(clip(1))
            except ClosedError as error:
                words += str(error)
            batcher.close()
            batcher_lane._end_all()  # noqa: SLF001 - as the end of the interpreter does
            os.write(write, words.encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            words = pipe.read().decode()
        assert os.waitpid(child, 0)[1] == 0
        assert words == (
            f"the batcher was made in process {os.getpid()}, and this is a fork of it, which has none of its threads; "
            "make a Batcher here"
        )
        assert answered(batcher.encode_video(clip(2))) == 2


@pytest.mark.parametrize("ending", ["falls off the end", "sys.exit(0)", "raise KeyboardInterrupt"])
def test_the_interpreter_ends_with_requests_under_way(ending: str, tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text(
        "import sys, threading\n"
        f"sys.path.insert(0, {str(os.path.dirname(os.path.dirname(__file__)))!r})\n"  # noqa: PTH120
        "from helpers.slow_model import SlowModel, clip\n"
        "from milnce.batcher import Batcher\n"
        "model = SlowModel()\n"
        "batcher = Batcher(model, max_batch=1)\n"
        "model.uint8.hold()\n"
        "told = []\n"
        "for number in range(5):\n"
        "    future = batcher.submit_video(clip(number))\n"
        "    future.add_done_callback(lambda f: print(type(f.exception()).__name__, flush=True))\n"
        "model.uint8.wait_begun(1)\n"
        "batcher._video.end, end = (lambda **k: (end(**k), model.release())), batcher._video.end\n"
        + (ending if ending != "falls off the end" else "")
        + "\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.stdout.split() == ["NoneType"] + ["ClosedError"] * 4, done.stderr
    assert done.returncode == (0 if "Keyboard" not in ending else -2)
    assert "Fatal" not in done.stderr


def test_a_lane_that_fails_leaves_no_future_unanswered(model: SlowModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(*_: object, **__: object) -> None:
        raise MemoryError("planted")

    with make(model, max_batch=1) as batcher:
        first = occupy(batcher, model)
        waiting = [batcher.submit_video(clip(number)) for number in range(3)]
        monkeypatch.setattr(RequestQueue, "take", planted)
        model.release()
        first.result(TIMEOUT_S)
        for future in waiting:
            with pytest.raises(BackendError, match=r"video: not run, as the batcher failed \(MemoryError: planted\)"):
                future.result(TIMEOUT_S)
        with pytest.raises(ClosedError):
            batcher.submit_video(clip(4))
