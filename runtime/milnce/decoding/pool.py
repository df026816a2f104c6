"""Decoding in several processes: who decodes what, where clips go, and what happens when a process dies or hangs."""

from __future__ import annotations

import atexit
import os
import selectors
from contextlib import ExitStack
from threading import Condition, Thread, current_thread
from typing import TYPE_CHECKING, Any

from milnce.decoding.crew import Crew
from milnce.decoding.events import Batch
from milnce.decoding.ledger import Ledger
from milnce.decoding.messages import SentError
from milnce.decoding.stall import StallWatch
from milnce.errors import ClosedError, DecoderError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.decoding.crew import CrewSettings, Worker
    from milnce.decoding.events import Event, Job
    from milnce.decoding.shared_clips import SharedClips
    from milnce.decoding.slots import Slots
    from milnce.video import Preset

_JOIN_S = 10.0


class DecodingPool:
    """Decodes files in processes of its own. A `ClipSource`; processes start with the first call of `next`.

    A thread of the pool talks to the processes. What it does, and what the caller does, is under one lock. A process
    asks for a slot when it has a window, so that no slot is kept by one that is slow to get there.

    Args:
        jobs: The files.
        preset: How frames are sampled and resized.
        memory: Where clips go.
        slots: Which places in it are free.
        settings: How to decode.
    """

    def __init__(
        self, jobs: Sequence[Job], preset: Preset, memory: SharedClips, slots: Slots, settings: CrewSettings
    ) -> None:
        self._memory = memory
        self._slots = slots
        self._stall_s = settings.stall_s
        self._ledger = Ledger(jobs, slots)
        self._crew = Crew(preset, memory, slots, settings)
        self._changed = Condition()
        self._failure: BaseException | None = None
        self._closing = False
        self._thread: Thread | None = None
        self._wake = -1
        self._process = os.getpid()

    # The caller's side.

    def next(self, *, wait: bool) -> list[Event] | Batch | None:
        """Return events, or a batch, or None. See `ClipSource.next`.

        Raises:
            ClosedError: if it was closed, by another thread or at the end of the program.
            DecoderError: if no process can be started.
            MissingDependencyError: if PyAV is not installed.
        """
        with self._changed:
            while True:
                if self._closing:
                    raise ClosedError("decoding was stopped while its results were waited for; ask for them anew")
                if self._thread is None:
                    self._start()
                if self._failure is not None:
                    raise self._failure
                if self._ledger.events:
                    events, self._ledger.events = self._ledger.events, []
                    return events
                rest = self._crew.idle and not self._ledger.may_begin()
                taken = self._slots.take(rest=rest)
                if taken is not None:
                    slots, owners = taken
                    return Batch(self._memory.clips[slots.start : slots.stop], owners, slots)
                if not wait:
                    return None
                self._changed.wait()

    def release(self, batch: Batch) -> None:
        """Take back the memory of a batch."""
        with self._changed:
            self._slots.release(batch.slots)
            self._tell()

    def drop(self, file: int) -> None:
        """Decode no more of a file, and forget its clips."""
        with self._changed:
            self._ledger.drop(file)
            self._tell()

    def passed(self, file: int) -> None:
        """Take note that a file is handed on: more may be decoded ahead."""
        with self._changed:
            self._ledger.passed(file)
            self._tell()

    def close(self) -> None:
        """End the processes and free the memory. A second call does nothing, nor does one in a fork of this process."""
        if os.getpid() != self._process:
            return  # the thread is not there, the lock may be held for good, and the processes are the parent's
        with self._changed:
            self._closing = True
            thread = self._thread
            self._tell()
        # Closing may be the garbage collector's doing, on whatever thread it runs.
        if thread is not None and thread is not current_thread():
            thread.join(_JOIN_S)
        atexit.unregister(self.close)
        self._memory.close()
        self._failure = None  # its traceback holds this pool

    def _start(self) -> None:
        with ExitStack() as opened:
            try:
                wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                opened.callback(os.close, wake)
                selector = opened.enter_context(selectors.DefaultSelector())
                selector.register(wake, selectors.EVENT_READ)
                thread = Thread(target=self._run, args=(selector,), name="milnce-decoding", daemon=True)
                self._wake = wake
                thread.start()
            except (OSError, RuntimeError) as error:  # no more file descriptors, or threads
                self._wake = -1
                raise DecoderError(
                    f"no decoding process can be started: the system gives too little ({error}). Close files, or "
                    "decode in this process: workers=0, --workers 0"
                ) from error
            self._thread = thread
            opened.pop_all()  # the thread's now
        atexit.register(self.close)  # later than that the thread does not run any more

    def _tell(self) -> None:
        """Let the thread look at what has changed."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # The thread's side.

    def _run(self, selector: selectors.BaseSelector) -> None:
        with selector:
            try:
                interval_s = StallWatch(self._stall_s).interval_s
                while self._direct(selector):
                    ready = selector.select(min(interval_s, self._crew.retry_s))
                    with self._changed:
                        for key, _ in ready:
                            if key.data is None:
                                os.eventfd_read(self._wake)
                            elif key.data in self._crew.workers:
                                self._read(key.data, selector)
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                self._failure = error
            with self._changed:
                self._crew.end()
                wake, self._wake = self._wake, -1
                os.close(wake)
                self._changed.notify_all()

    def _direct(self, selector: selectors.BaseSelector) -> bool:
        """Give everyone something to do; return whether to go on."""
        with self._changed:
            if self._closing:
                return False
            crew, ledger = self._crew, self._ledger
            crew.reap()
            for worker in crew.hanging():
                why = crew.describe_hang(worker)
                self._lose(worker, selector, why, why)
            for worker in crew.fill_up(ledger.left):
                selector.register(worker.process.channel.connection, selectors.EVENT_READ, worker)
            given_up = crew.given_up
            if given_up is not None:
                ledger.fail_rest(given_up)
            self._grant()
            for worker in crew.workers:
                if worker.ready and worker.job is None and ledger.may_begin():
                    worker.give(ledger.begin(), self._stall_s)
            self._changed.notify_all()
            return True

    def _grant(self) -> None:
        """Give free slots to those who wait for one, the earliest file first."""
        waiting = [(worker.job.number, worker) for worker in self._crew.workers if worker.wants and worker.job]
        for file, worker in sorted(waiting, key=lambda each: each[0]):
            wanted = self._ledger.wants(file)
            worker.slot = self._slots.grant() if wanted else None
            if worker.slot is not None or not wanted:
                worker.wants = False
                worker.say("slot", worker.slot)

    def _read(self, worker: Worker, selector: selectors.BaseSelector) -> None:
        """Take a message of a process, or note that it is gone."""
        try:
            message = worker.process.channel.receive()
        except BlockingIOError:
            return
        if message is None:
            how = worker.process.describe_end(within_s=1.0)
            damage = f"its decoding process {how}; the file may be damaged, or the memory short"
            self._lose(worker, selector, f"it {how} at once", damage)
        elif message[0] == "broken":
            error = SentError(*message[1:])
            if error.name == MissingDependencyError.__name__:
                raise error.restore("")
            why = f"{error.name}: {error.text}"
            if not self._crew.ever_ready:
                raise DecoderError(f"a decoding process cannot start: {why}")
            self._lose(worker, selector, why, why)
        else:
            self._heed(worker, *message)

    def _heed(self, worker: Worker, kind: str, *content: Any) -> None:  # noqa: ANN401 - JSON
        if kind == "ready":
            self._crew.started(worker)
        elif kind == "want":
            worker.wants = True
        elif kind == "window":
            file, index, start_s, end_s, video_s, slot = content
            worker.slot = None  # the ledger's now
            self._ledger.add(file, slot, index, (start_s, end_s, video_s))
        elif worker.job is not None:
            job, worker.job = worker.job, None
            error = SentError(*content[1:]).restore(job.path) if kind == "failed" else None
            self._ledger.end(job.number, error)

    def _lose(self, worker: Worker, selector: selectors.BaseSelector, early: str, late: str) -> None:
        """End a process, and fail the file that it was at; say why, for one that was not ready yet or that was."""
        selector.unregister(worker.process.channel.connection)
        self._crew.lose(worker)
        if not worker.ready:
            self._crew.not_started(early)
        elif worker.job is not None:
            self._ledger.end(worker.job.number, DecoderError(f"{worker.job.path}: {late}"))
            worker.job = None
