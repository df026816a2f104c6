"""A batcher's batches: who shares one, when it closes, whom it answers, and what it says to wrong input."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers.slow_model import POISON, SHAPE, TIMEOUT_S, FakeClock, SlowModel, answered, clip
from helpers.tiny_bundle import tiny_clips, write_tiny_bundle
from milnce.batcher import Batcher
from milnce.errors import BackendError, ClosedError, InputError, NonFiniteError, QueueFullError, UnknownWordsWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers.tiny_bundle import Tiny

    Made = Callable[..., tuple[Batcher, SlowModel]]


@pytest.fixture
def made() -> Iterator[Made]:
    """Make batchers over models that are let go at the end."""
    pairs: list[tuple[Batcher, SlowModel]] = []

    def make(model: SlowModel | None = None, **options: Any) -> tuple[Batcher, SlowModel]:  # noqa: ANN401
        model = model or SlowModel()
        pairs.append((Batcher(model, **options), model))  # type: ignore[arg-type] # all of a model that it needs
        return pairs[-1]

    yield make
    for batcher, model in pairs:
        model.release()
        batcher.close(drain=False)


# Batches


def test_a_batch_closes_when_it_is_full_and_answers_everyone_with_their_own(made: Made) -> None:
    batcher, model = made(max_batch=4, max_delay_ms=1e9)
    futures = [batcher.submit_video(clip(number)) for number in range(12)]
    assert [answered(future.result(TIMEOUT_S)) for future in futures] == list(range(12))
    lone = batcher.submit_video(clip(12))  # what was there before does not count any more
    assert wait([lone], timeout=0.05).not_done == {lone}
    assert model.uint8.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_batch_closes_when_its_oldest_has_waited_for_the_delay(made: Made) -> None:
    clock = FakeClock()
    batcher, model = made(max_batch=4, max_delay_ms=20.0, clock=clock)
    first = batcher.submit_video(clip(1))
    clock.now_s += 0.019
    second = batcher.submit_video(clip(2))
    wait([first], timeout=0.06)  # the lane looks at the clock all 20 ms
    assert model.uint8.batches == []
    clock.now_s += 0.002  # 21 ms after the first, 2 ms after the second
    assert [answered(future.result(TIMEOUT_S)) for future in (first, second)] == [1, 2]
    assert model.uint8.batches == [[1, 2]]


def test_what_has_waited_while_a_batch_ran_is_not_delayed_again(made: Made) -> None:
    clock = FakeClock()
    batcher, model = made(max_batch=4, max_delay_ms=20.0, clock=clock)
    model.uint8.hold()
    futures = [batcher.submit_video(clip(number)) for number in range(4)]
    model.uint8.wait_begun(1)
    futures += [batcher.submit_video(clip(number)) for number in (4, 5)]
    clock.now_s += 0.03
    model.uint8.release()
    assert [answered(future.result(TIMEOUT_S)) for future in futures] == list(range(6))
    assert model.uint8.batches == [[0, 1, 2, 3], [4, 5]]


def test_a_full_queue_does_not_wait_for_more(made: Made) -> None:
    batcher, model = made(max_batch=8, max_delay_ms=1e9, max_queue=3)
    futures = [batcher.submit_video(clip(number)) for number in range(3)]
    assert [answered(future.result(TIMEOUT_S)) for future in futures] == [0, 1, 2]
    assert model.uint8.batches == [[0, 1, 2]]


def test_sizes_and_forms_are_never_mixed_and_the_oldest_goes_first(made: Made) -> None:
    batcher, model = made(max_batch=8, max_delay_ms=0.0)
    model.uint8.hold()
    model.float32.hold()
    head = batcher.submit_video(clip(0))
    model.uint8.wait_begun(1)
    sizes = [(2, 4, 4), (4, 4, 4), (2, 4, 6), (2, 6, 4)]
    futures = {}
    for number in range(1, 21):
        form = "float32" if number % 5 == 0 else "uint8"
        futures[number] = batcher.submit_video(clip(number, sizes[number % 4], form))
    model.release()
    assert answered(head.result(TIMEOUT_S)) == 0
    assert {number: answered(future.result(TIMEOUT_S)) for number, future in futures.items()} == {
        number: number for number in futures
    }
    of_bucket = [[n for n in range(1, 21) if n % 4 == size and n % 5] for size in (1, 2, 3, 0)]
    assert model.uint8.batches == [[0], *of_bucket]
    assert model.float32.batches == [[5], [10], [15], [20]]


def test_a_size_that_few_send_is_not_starved_by_full_batches_of_another(made: Made) -> None:
    batcher, model = made(max_batch=2, max_delay_ms=0.0)
    model.uint8.hold()
    batcher.submit_video(clip(0))
    model.uint8.wait_begun(1)
    for number in (1, 2, 3):
        batcher.submit_video(clip(number))
    lone = batcher.submit_video(clip(99, (4, 4, 4)))
    for number in range(4, 10):
        batcher.submit_video(clip(number))
    model.uint8.release(2)
    model.uint8.wait_begun(3)
    model.release()
    assert answered(lone.result(TIMEOUT_S)) == 99
    batcher.close()
    assert model.uint8.batches[:4] == [[0], [1, 2], [3, 4], [99]]


def test_a_full_batch_of_another_size_does_not_wait_for_an_older_clip(made: Made) -> None:
    batcher, _ = made(max_batch=2, max_delay_ms=1e9)
    lone = batcher.submit_video(clip(9, (4, 4, 4)))
    pair = [batcher.submit_video(clip(number)) for number in (1, 2)]
    assert [answered(future.result(TIMEOUT_S)) for future in pair] == [1, 2]
    assert not lone.done()


def test_clips_run_one_by_one_where_the_backend_does_and_each_is_answered_when_it_is_done(made: Made) -> None:
    batcher, model = made(SlowModel(items_per_run=1), max_delay_ms=1e9)
    model.uint8.hold()
    futures = [batcher.submit_video(clip(number)) for number in range(3)]
    for number, future in enumerate(futures):
        model.uint8.release(1)
        assert answered(future.result(TIMEOUT_S)) == number
        assert not any(later.done() for later in futures[number + 1 :])
    assert model.uint8.batches == [[0], [1], [2]]


@pytest.mark.parametrize(("largest", "given", "expected"), [(3, None, 3), (None, None, 8), (3, 5, 5)])
def test_a_full_batch_is_the_backend_s_largest_unless_told(
    made: Made, largest: int | None, given: int | None, expected: int
) -> None:
    model = SlowModel()
    model.uint8.largest_batch = largest
    batcher, _ = made(model, max_batch=given, max_delay_ms=1e9)
    wait([batcher.submit_video(clip(number)) for number in range(expected)], TIMEOUT_S)
    assert model.uint8.batches == [list(range(expected))]


def test_no_batch_is_larger_than_the_graph_takes(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", largest_batch=2)
    with milnce.load(tmp_path / "b", backend="onnxruntime") as model, Batcher(model, max_batch=100) as batcher:
        wanted = model.encode_video(tiny_clips(5))
        futures = [batcher.submit_video(one) for one in tiny_clips(5)]
        for future, embedding in zip(futures, wanted.embedding, strict=True):
            np.testing.assert_allclose(future.result(TIMEOUT_S).embedding, embedding, atol=1e-5)
        assert batcher.stats().video.batches == 3


# Two lanes


def test_text_never_waits_behind_video(made: Made) -> None:
    batcher, model = made(max_batch=1)
    model.uint8.hold()
    videos = [batcher.submit_video(clip(number)) for number in range(20)]
    model.uint8.wait_begun(1)
    assert [int(batcher.encode_text(f"w{number}")[0]) for number in range(10)] == list(range(10))
    assert not any(video.done() for video in videos)


def test_sentences_that_come_while_others_run_share_a_batch(made: Made) -> None:
    batcher, model = made()
    model.text.hold()
    first = batcher.submit_text("w7")
    model.text.wait_begun(1)
    others = [batcher.submit_text(f"w{number}") for number in range(5)]
    model.text.release()
    assert [int(future.result(TIMEOUT_S)[0]) for future in (first, *others)] == [7, 0, 1, 2, 3, 4]
    assert model.text.batches == [[7], [0, 1, 2, 3, 4]]
    assert first.result().shape == (4,)
    assert first.result().dtype == np.float32


# The caller's array


def test_the_array_may_be_changed_after_submit(made: Made) -> None:
    batcher, model = made(max_batch=2)
    model.uint8.hold()
    array, futures = clip(5), []
    for number in (5, 6, 7):
        array[:] = clip(number)
        futures.append(batcher.submit_video(array))
    array[:] = 0
    model.release()
    assert [answered(future.result(TIMEOUT_S)) for future in futures] == [5, 6, 7]


def test_without_a_copy_the_array_is_read_when_it_is_run(made: Made) -> None:
    batcher, model = made(max_batch=1)
    model.uint8.hold()
    batcher.submit_video(clip(1))
    model.uint8.wait_begun(1)
    array = clip(2)
    future = batcher.submit_video(array, copy=False)
    array[:] = clip(3)
    model.release()
    assert answered(future.result(TIMEOUT_S)) == 3


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_arrays_of_any_layout_are_taken(made: Made, form: str, copy: bool) -> None:
    batcher, _ = made(max_batch=2, max_delay_ms=1e9)
    strided = np.repeat(clip(4, form=form), 2, axis=1)[:, ::2]
    swapped = clip(5, form=form)
    if form == "float32":
        swapped = swapped.astype(">f4")
    swapped.flags.writeable = False
    futures = [batcher.submit_video(array, copy=copy) for array in (strided, swapped)]
    assert [answered(future.result(TIMEOUT_S)) for future in futures] == [4, 5]


def test_nothing_of_a_clip_is_kept_once_its_batch_is_assembled(made: Made) -> None:
    batcher, model = made(max_batch=2, max_delay_ms=1e9)
    array = clip(1)
    gone = weakref.ref(array)
    while_it_ran: list[bool] = []
    model.uint8.on_run = lambda: while_it_ran.append(gone() is None)
    model.uint8.hold()
    futures = [batcher.submit_video(array, copy=False), batcher.submit_video(clip(2))]
    del array
    model.release()
    wait(futures, TIMEOUT_S)
    batcher.encode_text("w1")
    batcher.close()
    gc.collect()
    assert gone() is None
    assert while_it_ran == [True]
    assert futures[0].result().embedding.base is None


# What is refused


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            clip(1)[None],
            r"rank 5 given, shape \(1, 2, 4, 4, 3\); one clip expected: .*submit each clip of a batch by",
        ),
        (clip(1)[0], r"rank 3 given, .*one clip expected: uint8 \(T, H, W, 3\) RGB, or float32"),
        (clip(1).tolist(), "clip: list given; a numpy.ndarray expected"),
        (clip(1).astype(float), r"as a batch of one, clip\[None\]: clips: dtype float64 given"),
        (clip(1).transpose(3, 0, 1, 2), r"clip\[None\]: clips: channels first .*transpose\(0, 2, 3, 4, 1\)"),
        (clip(1, (3, 4, 4)), r"frames is 3, shape \(1, 3, 4, 4, 3\); it must be a multiple of 2"),
        (np.full((3, 2, 4, 4), np.nan, np.float32), "NaN at"),
        (np.full((3, 2, 4, 4), 255, np.float32), "divide by 255"),
    ],
)
def test_wrong_clips_are_refused_in_the_caller_s_thread(made: Made, given: Any, text: str) -> None:  # noqa: ANN401
    batcher, model = made(max_batch=1)
    for call in (batcher.submit_video, batcher.encode_video):
        with pytest.raises(InputError, match=text):
            call(given)
    assert answered(batcher.encode_video(clip(3))) == 3
    assert model.uint8.batches == [[3]]
    assert batcher.stats().video.accepted == 1


def test_wrong_sentences_are_refused_in_the_caller_s_thread(made: Made) -> None:
    batcher, _ = made()
    for given, text in (
        (["w1"], r"sentence: list given; one sentence \(str\) expected; submit each"),
        (None, "NoneType"),
    ):
        with pytest.raises(InputError, match=text):
            batcher.submit_text(given)  # type: ignore[arg-type] # the point
    with pytest.warns(UnknownWordsWarning, match="no word of 'unheard of'"):
        assert int(batcher.encode_text("unheard of")[0]) == -1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_batch": 0}, "max_batch is 0; a whole number of at least 1"),
        ({"text_max_batch": 1.5}, "text_max_batch is 1.5"),
        ({"max_queue": True}, "max_queue is True"),
        ({"max_delay_ms": -1}, "max_delay_ms is -1; a number of milliseconds, 0 or more"),
        ({"max_delay_ms": float("inf")}, "max_delay_ms is inf"),
        ({"text_max_delay_ms": "5"}, "text_max_delay_ms is '5'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Batcher(SlowModel(), **options)  # type: ignore[arg-type] # all of a model that it needs


def test_a_full_queue_refuses_exactly_what_does_not_fit(made: Made) -> None:
    batcher, model = made(max_batch=4, max_queue=10, max_delay_ms=1e9)
    model.uint8.hold()
    running = [batcher.submit_video(clip(number)) for number in range(4)]
    model.uint8.wait_begun(1)
    barrier = threading.Barrier(32)

    def submit(number: int) -> object:
        barrier.wait(TIMEOUT_S)
        try:
            return batcher.submit_video(clip(number))
        except QueueFullError as error:
            return error

    with ThreadPoolExecutor(32) as callers:
        results = list(callers.map(submit, range(4, 36)))
    refused = [result for result in results if isinstance(result, QueueFullError)]
    assert len(refused) == 22
    assert str(refused[0]) == (
        "video: the queue is full: 10 requests wait and 4 run; try again later, send fewer at a time, or make the "
        "queue longer: Batcher(model, max_queue=...)"
    )
    stats = batcher.stats().video
    assert (stats.accepted, stats.refused, stats.queued, stats.running) == (14, 22, 10, 4)
    model.release()
    batcher.close()
    numbers = [number for number, result in zip(range(4, 36), results, strict=True) if result not in refused]
    accepted: Any = [result for result in results if result not in refused]
    assert [answered(future.result(TIMEOUT_S)) for future in running] == [0, 1, 2, 3]
    assert [answered(future.result(TIMEOUT_S)) for future in accepted] == numbers


# What fails


def test_only_the_clip_whose_row_is_not_finite_fails(made: Made) -> None:
    batcher, model = made(max_batch=4, max_delay_ms=1e9)
    futures = [batcher.submit_video(clip(number)) for number in (1, POISON, 2, 3)]
    assert [answered(futures[index].result(TIMEOUT_S)) for index in (0, 2, 3)] == [1, 2, 3]
    with pytest.raises(NonFiniteError, match="video in fp32 on slow gave NaN or infinity in video_embedding"):
        futures[1].result(TIMEOUT_S)
    assert model.uint8.batches == [[1, POISON, 2, 3]]
    stats = batcher.stats().video
    assert (stats.answered, stats.failed) == (3, 1)


@pytest.mark.parametrize("failure", [BackendError("the device is lost"), MemoryError("no room"), SystemExit(3)])
def test_a_batch_that_cannot_be_run_fails_alone(made: Made, failure: BaseException) -> None:
    batcher, model = made(max_batch=2, max_delay_ms=1e9)
    model.uint8.failure = failure
    failed = [batcher.submit_video(clip(number)) for number in (1, 2)]
    errors = [future.exception(TIMEOUT_S) for future in failed]
    assert [type(error) for error in errors] == [type(failure)] * 2
    assert [str(error) for error in errors] == [str(failure)] * 2
    assert errors[0] is not errors[1]
    model.uint8.failure = None
    futures = [batcher.submit_video(clip(number)) for number in (3, 4)]
    assert [answered(future.result(TIMEOUT_S)) for future in futures] == [3, 4]
    assert batcher.stats().video.failed == 2


def test_an_error_that_cannot_be_copied_is_given_as_it_is(made: Made) -> None:
    class LibraryError(Exception):
        def __init__(self, code: int, words: str) -> None:
            super().__init__(f"{code}: {words}")

    batcher, model = made(max_batch=2, max_delay_ms=1e9)
    model.uint8.failure = LibraryError(7, "no")
    futures = [batcher.submit_video(clip(number)) for number in (1, 2)]
    assert [str(future.exception(TIMEOUT_S)) for future in futures] == ["7: no"] * 2


# The whole, over real graphs


def test_rows_are_those_of_the_model_itself(tiny: Tiny) -> None:
    clips, sentences = tiny_clips(7), ["cut the tomato", "open door", "someone run"]
    with milnce.load(tiny.path) as model, milnce.Batcher(model) as batcher:
        wanted, texts = model.encode_video(clips), model.encode_text(sentences)
        futures = [batcher.submit_video(one) for one in clips]
        for index, future in enumerate(futures):
            found = future.result(TIMEOUT_S)
            np.testing.assert_array_equal(found.embedding, wanted.embedding[index])
            np.testing.assert_array_equal(found.mixed_5c, wanted.mixed_5c[index])
        for sentence, text in zip(sentences, texts, strict=True):
            np.testing.assert_allclose(batcher.encode_text(sentence), text, rtol=0, atol=1e-5)
        assert repr(batcher) == f"Batcher({model!r})"
        model.close()
        with pytest.raises(BackendError, match="is closed; load the model again"):
            batcher.encode_video(clips[0])


def test_stats_add_up(made: Made) -> None:
    batcher, _ = made(max_batch=2, max_delay_ms=0.0)
    for number in range(5):
        batcher.encode_video(clip(number, SHAPE))
    batcher.encode_text("w1")
    batcher.close()
    with pytest.raises(ClosedError, match=r"the batcher is closed; make another: milnce\.Batcher\(model\)"):
        batcher.submit_text("w1")
    stats = batcher.stats()
    assert (stats.video.accepted, stats.video.answered, stats.video.batches) == (5, 5, 5)
    assert stats.video.mean_batch_size == 1.0
    assert (stats.text.accepted, stats.text.answered, stats.text.queued, stats.text.running) == (1, 1, 0, 0)
