"""A batcher over backends that run while others are submitted: a simulated GPU, and a thread that plays one."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

import milnce
from helpers.plan_machine import PlanMachine
from helpers.slow_model import TIMEOUT_S, FakeClock, SlowModel, answered, clip, wait_until
from helpers.tiny_bundle import tiny_clips
from milnce.backends.gpu import GpuBackend
from milnce.batcher import Batcher
from milnce.errors import BackendError, DeadlineError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.tiny_bundle import Tiny


@pytest.fixture
def model() -> Iterator[SlowModel]:
    """Return a model whose batches run one after the other on a thread of their own."""
    with ThreadPoolExecutor(1) as gpu:
        model = SlowModel(thread=gpu)
        yield model
        model.release()


def make(model: object, **options: Any) -> Batcher:  # noqa: ANN401 - a batcher's own
    return Batcher(cast("milnce.Model", model), **options)


def test_the_next_batch_is_handed_over_while_one_runs_and_what_comes_after_waits(model: SlowModel) -> None:
    with make(model, max_batch=2, max_queue=3, max_delay_ms=0.0) as batcher:
        model.uint8.hold()
        futures = [batcher.submit_video(clip(0))]
        model.uint8.wait_begun(1)
        futures.append(batcher.submit_video(clip(1)))
        wait_until_running(batcher, 2)
        futures += [batcher.submit_video(clip(number)) for number in (2, 3, 4)]
        wait_until_asleep(batcher)
        # One runs, one is handed over, and three wait: these can still be cancelled, and a sixth is refused.
        assert batcher.stats().video.queued == 3
        with pytest.raises(QueueFullError, match="3 requests wait and 2 run"):
            batcher.submit_video(clip(9))
        assert [future.cancel() for future in futures] == [False, False, True, True, True]
        model.release()
        assert [answered(future.result(TIMEOUT_S)) for future in futures[:2]] == [0, 1]
    assert model.uint8.batches == [[0], [1]]
    assert batcher.stats().video.cancelled == 3


def wait_until_running(batcher: Batcher, requests: int) -> None:
    wait_until(lambda: batcher.stats().video.running == requests)


def wait_until_asleep(batcher: Batcher) -> None:
    """Wait until the lane has looked at everything and found nothing to do."""
    lane = batcher._video  # noqa: SLF001 - nothing else says it
    wait_until(lambda: lane._asleep_until_s > -math.inf and lane._wakes.empty())  # noqa: SLF001


def test_deadlines_are_told_while_a_batch_runs(model: SlowModel) -> None:
    clock = FakeClock()
    with make(model, max_batch=1, max_delay_ms=0.0, clock=clock) as batcher:
        model.uint8.hold()
        running = [batcher.submit_video(clip(number)) for number in (0, 1)]
        wait_until_running(batcher, 2)
        late = batcher.submit_video(clip(2), deadline_s=0.02)
        clock.now_s += 0.02
        assert isinstance(late.exception(TIMEOUT_S), DeadlineError)
        assert not any(future.done() for future in running)
        model.release()
    assert model.uint8.batches == [[0], [1]]


def test_a_batch_that_fails_on_the_gpu_fails_alone(model: SlowModel) -> None:
    with make(model, max_batch=2, max_delay_ms=1e9) as batcher:
        model.uint8.failure = BackendError("an illegal address")
        failed = [batcher.submit_video(clip(number)) for number in (1, 2)]
        assert [str(future.exception(TIMEOUT_S)) for future in failed] == ["an illegal address"] * 2
        model.uint8.failure = None
        futures = [batcher.submit_video(clip(number)) for number in (3, 4)]
        assert [answered(future.result(TIMEOUT_S)) for future in futures] == [3, 4]


@pytest.mark.parametrize("drain", [True, False])
def test_closing_waits_for_what_is_on_the_gpu(model: SlowModel, drain: bool) -> None:
    batcher = make(model, max_batch=1, max_delay_ms=0.0)
    model.uint8.hold()
    futures = [batcher.submit_video(clip(number)) for number in (0, 1)]
    wait_until_running(batcher, 2)
    releaser = threading.Timer(0.05, model.release)
    releaser.start()
    batcher.close(drain=drain)
    assert [answered(future.result(0)) for future in futures] == [0, 1]
    releaser.join()


def test_a_pool_that_takes_no_batch_fails_that_batch(model: SlowModel) -> None:
    with make(model, max_batch=1) as batcher:
        assert model.uint8.thread is not None
        model.uint8.thread.shutdown()
        with pytest.raises(RuntimeError, match="cannot schedule new futures"):
            batcher.encode_video(clip(1))
        assert batcher.stats().video.running == 0


@pytest.mark.parametrize("seed", range(6))
def test_no_request_is_lost_doubled_or_answered_with_another_s(seed: int) -> None:
    """32 threads submit, cancel and set deadlines at random, over two sizes and two forms, against a full queue."""
    rng = np.random.default_rng(seed)
    plans = [rng.random((30, 4)) for _ in range(32)]
    with ThreadPoolExecutor(1) as gpu:
        model = SlowModel(thread=gpu if seed % 2 else None)
        batcher = make(model, max_batch=int(rng.integers(1, 6)), max_delay_ms=0.3, max_queue=12)
        outcomes: list[list[tuple[int, str]]] = []

        def call(caller: int) -> list[tuple[int, str]]:
            found, futures = [], []
            for turn, (size, form, cancel, deadline) in enumerate(plans[caller]):
                number = caller * 100 + turn
                given = clip(number, (2, 4, 4) if size < 0.7 else (4, 4, 4), "uint8" if form < 0.7 else "float32")
                try:
                    future = batcher.submit_video(given, deadline_s=0.0005 if deadline < 0.2 else None)
                except QueueFullError:
                    found.append((number, "refused"))
                    continue
                if cancel < 0.2 and future.cancel():
                    found.append((number, "cancelled"))
                    continue
                futures.append((number, future))
                if turn % 3 == 0:
                    wait([future], TIMEOUT_S)
            for number, future in futures:
                error = future.exception(TIMEOUT_S)
                if error is None:
                    assert answered(future.result()) == number
                found.append((number, "answered" if error is None else type(error).__name__))
            return found

        with ThreadPoolExecutor(32) as callers:
            outcomes = list(callers.map(call, range(32)))
        batcher.close()
    by_number = dict(pair for outcome in outcomes for pair in outcome)
    assert sorted(by_number) == sorted(caller * 100 + turn for caller in range(32) for turn in range(30))
    assert set(by_number.values()) <= {"answered", "refused", "cancelled", "DeadlineError"}
    ran = [number for backend in (model.uint8, model.float32) for batch in backend.batches for number in batch]
    assert sorted(ran) == sorted(number for number, outcome in by_number.items() if outcome == "answered")
    stats, kinds = batcher.stats().video, list(by_number.values())
    assert stats.answered == kinds.count("answered")
    assert stats.refused == kinds.count("refused")
    assert stats.cancelled == kinds.count("cancelled")
    assert stats.expired == kinds.count("DeadlineError")
    assert stats.accepted == stats.answered + stats.cancelled + stats.expired
    assert stats.failed == stats.dropped == stats.queued == stats.running == 0
    assert stats.batches == len(model.uint8.batches) + len(model.float32.batches)
    assert stats.mean_batch_size == pytest.approx(len(ran) / stats.batches)


@pytest.mark.parametrize("policy", [("lazy", 0), ("random", 1), ("random", 2)], ids=str)
def test_many_callers_share_a_model_on_a_simulated_gpu(
    policy: Any,  # noqa: ANN401 - the simulation's own
    monkeypatch: pytest.MonkeyPatch,
    tiny: Tiny,
    tmp_path: Path,
) -> None:
    machine = PlanMachine(monkeypatch, tiny, tmp_path / "plans", "10", policy=policy)
    clips, sentences = tiny_clips(48), ["cut the tomato", "open door", "someone run", "pour the water"]
    embedding, mixed_5c = tiny.weights.video(clips)
    try:
        machine.write("video")
        machine.write("text")
        with milnce.load(tiny.path, backend="tensorrt", plans=machine.plans) as model:
            assert isinstance(model.open("video"), GpuBackend)
            texts = model.encode_text(sentences)
            with milnce.Batcher(model, max_delay_ms=1.0) as batcher, ThreadPoolExecutor(12) as callers:
                text_futures = [callers.submit(batcher.encode_text, sentence) for sentence in sentences]
                video_futures = [callers.submit(batcher.encode_video, one) for one in clips]
                for index, future in enumerate(video_futures):
                    found = future.result(TIMEOUT_S)
                    np.testing.assert_allclose(found.embedding, embedding[index], rtol=0, atol=2e-5)
                    np.testing.assert_allclose(found.mixed_5c, mixed_5c[index], rtol=0, atol=2e-5)
                for expected, text in zip(texts, text_futures, strict=True):
                    np.testing.assert_allclose(text.result(TIMEOUT_S), expected, rtol=0, atol=2e-5)
                assert batcher.stats().video.answered == 48
    finally:
        machine.close()
