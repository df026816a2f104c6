"""The parts of decoding in processes, one by one: slots, the account of files, hanging, errors, numbers."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milnce.decoding import ledger as ledger_module
from milnce.decoding import source
from milnce.decoding.crew import Worker
from milnce.decoding.events import ClipOf, FileDecoded, FileFailed, Job, WindowDecoded
from milnce.decoding.ledger import Ledger
from milnce.decoding.messages import SentError
from milnce.decoding.shared_clips import SharedClips
from milnce.decoding.slots import Slots
from milnce.decoding.stall import StallWatch
from milnce.errors import InputError, RangeError, VideoError
from milnce.video import get_preset

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMES_S = (0.0, 1.0, 9.0)


@given(
    regions=st.integers(1, 3),
    size=st.integers(1, 4),
    at_once=st.sampled_from([None, 1, 3]),
    steps=st.lists(st.tuples(st.sampled_from("gGfvdtTr"), st.integers(0, 99)), max_size=80),
)
def test_slots_are_never_lent_twice_and_batches_lie_side_by_side(
    regions: int, size: int, at_once: int | None, steps: Sequence[tuple[str, int]]
) -> None:
    """Play with slots at random, against a plain account of who has which."""
    slots = Slots(regions, size, at_once=at_once)
    granted: list[int] = []
    filled: dict[int, ClipOf] = {}
    taken: list[range] = []
    for number, (step, choice) in enumerate(steps):
        if step in "gG":
            slot = slots.grant()
            in_use = {*granted, *filled, *(each for batch in taken for each in batch)}
            assert (slot is None) == (len(in_use) == len(slots))
            if slot is not None:
                assert slot not in in_use
                granted.append(slot)
        elif step == "f" and granted:
            slot = granted.pop(choice % len(granted))
            filled[slot] = ClipOf(choice % 3, number)
            slots.fill(slot, filled[slot])
        elif step == "v" and granted:
            slots.give_back(granted.pop(choice % len(granted)))
        elif step == "d":
            slots.drop(choice % 3)
            filled = {slot: owner for slot, owner in filled.items() if owner.file != choice % 3}
        elif step in "tT":
            batch = slots.take(rest=step == "T")
            full = any(all(r * size + n in filled for n in range(size)) for r in range(regions))
            assert (batch is not None) == (full if at_once is None and step == "t" else bool(filled))
            if batch is not None:
                where, owners = batch
                assert where.start // size == (where.stop - 1) // size, "of one region"
                assert len(where) <= (at_once or size)
                assert len(where) == size or at_once is not None or step == "T"
                assert owners == [filled.pop(slot) for slot in where]
                taken.append(where)
        elif step == "r" and taken:
            slots.release(taken.pop(choice % len(taken)))
        assert slots.filled == len(filled)


def test_clips_are_taken_oldest_first_and_regions_completed_in_turn() -> None:
    slots = Slots(2, 2, at_once=1)
    for number in range(3):
        slot = slots.grant()
        assert slot is not None
        slots.fill(slot, ClipOf(0, number))
    first = slots.take(rest=False)
    assert first == (range(1), [ClipOf(0, 0)])
    slots.release(first[0])
    slot = slots.grant()
    assert slot is not None
    slots.fill(slot, ClipOf(0, 3))
    order = []
    while (batch := slots.take(rest=False)) is not None:
        order += batch[1]
    assert order == [ClipOf(0, 1), ClipOf(0, 2), ClipOf(0, 3)]
    whole = Slots(3, 2)
    assert [whole.grant() for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    whole.give_back(5)
    whole.give_back(2)
    whole.give_back(3)
    assert whole.grant() == 5, "the region that lacks fewest"


def jobs(count: int) -> list[Job]:
    return [Job(number, Path(f"{number}.mp4"), None, None) for number in range(count)]


def add(account: Ledger, slots: Slots, file: int) -> None:
    slot = slots.grant()
    assert slot is not None
    account.add(file, slot, 0, TIMES_S)


def test_the_account_bounds_how_far_ahead_files_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "WINDOWS_AHEAD", 4)
    slots = Slots(1, 100)
    account = Ledger(jobs(9), slots)
    account.begin()
    for _ in range(10):
        add(account, slots, 0)
    assert account.may_begin(), "the windows of the first file hold nobody up"
    account.begin()
    add(account, slots, 1)
    account.end(1)
    assert account.may_begin(), "a file and its window"
    account.begin()
    account.end(2, VideoError("bad"))
    account.begin()
    assert not account.may_begin(), "three files and a window"
    account.end(0)
    account.passed(0)
    assert account.may_begin(), "the second is the first of the others now"
    assert account.left == 5


def test_a_dropped_file_gives_back_what_comes_late() -> None:
    slots = Slots(1, 3)
    account = Ledger(jobs(2), slots)
    account.begin()
    add(account, slots, 0)
    late = slots.grant()
    account.drop(0)
    account.events.clear()
    assert slots.filled == 0
    assert not account.wants(0)
    account.passed(0)
    account.add(0, late, 1, TIMES_S)
    account.end(0)
    assert account.events == []
    assert [slots.grant() for _ in range(4)] == [0, 1, 2, None]
    account.begin()
    account.drop(0)  # told twice, long after
    assert account.wants(1)


def test_equal_windows_share_a_clip_and_events_keep_their_order() -> None:
    slots = Slots(1, 4)
    account = Ledger(jobs(1), slots)
    account.begin()
    add(account, slots, 0)
    account.add(0, None, 1, TIMES_S)
    add(account, slots, 0)
    account.end(0)
    clips = [event.of.clip if isinstance(event, WindowDecoded) else event for event in account.events]
    assert clips == [0, 0, 1, FileDecoded(0)]
    failing = Ledger(jobs(1), slots)
    failing.begin()
    error = VideoError("bad")
    failing.end(0, error)
    assert failing.events == [FileFailed(0, error)]
    assert slots.filled == 0


def test_a_process_hangs_only_while_it_is_seen_standing_still() -> None:
    watch = StallWatch(10.0)
    assert watch.interval_s == 1.0
    assert not watch.hangs(1, busy=True, now_s=0.0)
    assert [watch.hangs(1, busy=True, now_s=float(second)) for second in range(1, 11)] == [False] * 9 + [True]
    assert not watch.hangs(2, busy=True, now_s=11.0), "it went on"
    assert not watch.hangs(2, busy=True, now_s=3600.0), "this process or the machine slept, and two seconds count"
    assert [watch.hangs(2, busy=True, now_s=3600.0 + second) for second in range(1, 9)] == [False] * 7 + [True]
    assert not watch.hangs(2, busy=False, now_s=3609.0), "it waits for a slot"
    assert not watch.hangs(2, busy=True, now_s=3610.0)
    assert StallWatch(0.4).interval_s == pytest.approx(0.1)


def test_a_process_that_waits_for_a_slot_or_for_a_file_need_not_make_progress() -> None:
    process: Any = None
    worker = Worker(process, 0, StallWatch(1.0))
    busy = [worker.busy]  # it starts
    for name, value in (("ready", True), ("job", jobs(1)[0]), ("wants", True)):
        setattr(worker, name, value)
        busy.append(worker.busy)
    assert busy == [True, False, True, False]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RangeError("a.mp4: start_s=9"), RangeError("a.mp4: start_s=9")),
        (OSError(5, "Input/output error"), VideoError("a.mp4: [Errno 5] Input/output error")),
        (FileNotFoundError(2, "gone"), VideoError("a.mp4: [Errno 2] gone")),
        (KeyError("x"), VideoError("a.mp4: decoding failed with KeyError: 'x'. No such failure was foreseen: please")),
    ],
)
def test_errors_travel(error: Exception, expected: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "milnce.decoding"):
        with pytest.raises(type(error)) as caught:
            raise error
        assert isinstance(caught.value, Exception)
        found = SentError.of(caught.value).restore("a.mp4")
    assert type(found) is type(expected)
    assert str(found).startswith(str(expected))
    assert ("test_errors_travel" in caplog.text) == isinstance(error, KeyError)


def test_a_very_long_text_is_cut_to_what_a_message_holds() -> None:
    sent = SentError.of(VideoError("\udcff" * 100_000))
    assert len(sent.text) == 8000


def test_shared_clips_are_the_same_memory_and_have_no_name() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only counted
    ours = SharedClips((2, 3, 4))
    theirs = SharedClips((2, 3, 4), os.dup(ours.fd))
    theirs.clips[1] = 7
    theirs.counters[511] += 3
    assert ours.clips.tolist() == [[[0] * 4] * 3, [[7] * 4] * 3]
    assert (ours.counters[511], ours.counters[0]) == (3, 0)
    # A name in /dev/shm would outlive a process that is killed.
    assert Path(os.readlink(f"/proc/self/fd/{ours.fd}")).name == "memfd:milnce-clips (deleted)"  # noqa: PTH115 - no path
    ours.close()
    ours.close()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def opened(files: int = 4, **options: Any) -> Any:  # noqa: ANN401 - what the source is made of is looked at
    device = options.pop("device", "cpu")
    given = source.DecodingOptions(**{"workers": None, "stall_s": 60.0, "decoder": "auto", **options})
    return source.open_source(jobs(files), get_preset("sliding", frames=2, size=16), 4, device=device, options=given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": -1}, "workers is -1; a whole number from 0 to 512 expected, or None"),
        ({"workers": 513}, "workers is 513; a whole number"),
        ({"workers": True}, "workers is True; a whole number"),
        ({"workers": 1.5}, "workers is 1.5; a whole number"),
        ({"decoder": "gpu"}, "no decoder 'gpu'; there are auto, cpu, nvdec"),
        ({"decoder": "nvdec"}, "decoder nvdec leaves clips on the GPU, but the model runs on the CPU; load it on a"),
        (
            {"decoder": "nvdec", "device": "cuda", "workers": 2},
            "workers is 2 with decoder nvdec, which decodes in this",
        ),
        ({"stall_s": 0}, "stall_s is 0; a number of seconds above 0 expected"),
        ({"stall_s": float("nan")}, "stall_s is nan; a number of seconds"),
        ({"stall_s": -1.5}, "stall_s is -1.5; a number of seconds"),
        ({"stall_s": "60"}, "stall_s is '60'; a number of seconds"),
        ({"stall_s": None}, "stall_s is None; a number of seconds"),
        ({"stall_s": True}, "stall_s is True; a number of seconds"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        opened(**options)


@pytest.mark.parametrize("stall_s", [1, 0.5, np.float32(2), np.int64(3), float("inf")])
def test_numbers_of_every_kind_are_seconds(stall_s: float) -> None:
    made = opened(stall_s=stall_s)
    found = made._crew._settings.stall_s  # noqa: SLF001
    assert (type(found), found) == (float, stall_s)
    made.close()


@pytest.mark.parametrize(
    ("cores", "files", "options", "workers", "threads"),
    [
        (2, 9, {}, 1, 2),
        (8, 9, {}, 4, 2),
        (8, 3, {}, 3, 2),
        (64, 99, {}, 16, 4),
        (1, 9, {}, 1, 1),
        (8, 9, {"device": "cuda"}, 7, 1),
        (8, 1, {"device": "cuda:1"}, 1, 8),
        (2, 9, {"workers": 5}, 5, 1),
    ],
)
def test_processes_and_their_threads_follow_the_cores(
    cores: int, files: int, options: dict[str, Any], workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "cores", lambda: cores)
    made = opened(files, **options)
    settings = made._crew._settings  # noqa: SLF001
    assert (settings.workers, settings.threads) == (workers, threads)
    assert len(made._slots) >= workers + 1  # noqa: SLF001
    made.close()


@pytest.mark.parametrize(("limit", "expected"), [(None, 8), (2.5, 3), (0.001, 1), (0.0, 1), (64.0, 8)])
def test_cores_are_no_more_than_a_container_may_take(
    limit: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(source, "cpu_limit", lambda: limit)
    assert source.cores() == expected


@pytest.mark.parametrize(("name", "value"), [("executable", ""), ("frozen", True)])
def test_without_an_interpreter_files_are_decoded_in_this_process(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, value, raising=False)
    assert type(opened()).__name__ == "DecodingHere"
    with pytest.raises(InputError, match="workers is 2, but there is no Python interpreter here to start them with"):
        opened(workers=2)
