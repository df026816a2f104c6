"""Decoding in several processes: who decodes what, where clips go, and what happens when a process dies or hangs."""

from __future__ import annotations

import atexit
import logging
import os
import selectors
import time
from dataclasses import dataclass, field
from threading import Condition, Thread, current_thread
from typing import TYPE_CHECKING, Any

from milnce.decoding.events import Batch, ClipOf, FileDecoded, FileFailed, WindowDecoded
from milnce.decoding.messages import SentError
from milnce.decoding.process import WorkerProcess
from milnce.decoding.shared_clips import MOST_WORKERS
from milnce.decoding.stall import StallWatch
from milnce.errors import DecoderError, MissingDependencyError, VideoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.decoding.events import Event, Job
    from milnce.decoding.shared_clips import SharedClips
    from milnce.decoding.slots import Slots
    from milnce.errors import MilnceError
    from milnce.video import Preset

_LOG = logging.getLogger("milnce.decoding")

# Windows (and files, which count as one more each) that may be decoded behind a file which is not done: their
# embeddings wait for it, 6 KiB each.
_WINDOWS_AHEAD = 4096
# Importing is slow on a cold disk, and says nothing about how fast frames come.
_START_S = 120.0
_STARTS = 3
# To die takes a killed process milliseconds, unless it waits for a disk that is gone.
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool decodes.

    Attributes:
        workers: Number of processes, at least 1.
        threads: Threads of the decoder in each.
        niceness: How much they step back behind other processes.
        stall_s: Seconds without progress after which a process is taken to hang.
    """

    workers: int
    threads: int
    niceness: int
    stall_s: float


@dataclass(slots=True, eq=False)
class _Worker:
    """A process and what it is at."""

    process: WorkerProcess
    counter: int
    watch: StallWatch
    ready: bool = False
    job: Job | None = None
    wants: bool = False
    slot: int | None = None
    last: ClipOf = field(default=ClipOf(0, -1))

    @property
    def busy(self) -> bool:
        return not self.ready or (self.job is not None and not self.wants)


class DecodingPool:
    """Decodes files in processes of its own. A `ClipSource`; processes start with the first call of `next`.

    A thread of the pool talks to the processes; what it does and what the caller does is under one lock.

    Args:
        jobs: The files.
        preset: How frames are sampled and resized.
        memory: Where clips go.
        slots: Which places in it are free.
        settings: How to decode.
    """

    def __init__(
        self, jobs: Sequence[Job], preset: Preset, memory: SharedClips, slots: Slots, settings: PoolSettings
    ) -> None:
        self._jobs = jobs
        self._preset = preset
        self._memory = memory
        self._slots = slots
        self._settings = settings
        self._changed = Condition()
        self._next_job = 0
        self._head = 0
        # Of each file that was begun and is not handed on: 1 more than it has, and the sum of that.
        self._windows: dict[int, int] = {}
        self._held = 0
        self._dropped: set[int] = set()
        self._events: list[Event] = []
        self._failure: BaseException | None = None
        self._closing = False
        self._thread: Thread | None = None
        self._workers: list[_Worker] = []
        self._ending: list[tuple[WorkerProcess, int, int | None]] = []  # with its counter and its slot
        self._counters = list(range(MOST_WORKERS))
        self._failed_starts = 0
        self._selector: selectors.BaseSelector | None = None
        self._wake = -1

    # The caller's side.

    def next(self, *, wait: bool) -> list[Event] | Batch | None:
        """Return events, or a batch, or None. See `ClipSource.next`.

        Raises:
            DecoderError: if no process can be started.
            MissingDependencyError: if PyAV is not installed.
        """
        with self._changed:
            if self._thread is None and not self._closing:
                self._start()
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._events:
                    events, self._events = self._events, []
                    return events
                taken = self._slots.take(rest=self._rests())
                if taken is not None:
                    slots, owners = taken
                    return Batch(self._memory.clips[slots.start : slots.stop], owners, slots)
                if not wait or self._closing:
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
            self._slots.drop(file)
            if any(worker.job is not None and worker.job.number == file for worker in self._workers):
                self._dropped.add(file)
            self._tell()

    def passed(self, file: int) -> None:
        """Take note that a file is handed on: more may be decoded ahead."""
        with self._changed:
            self._held -= self._windows.pop(file, 0)
            self._head = file + 1
            self._tell()

    def close(self) -> None:
        """End the processes and free the memory. A second call does nothing."""
        with self._changed:
            self._closing = True
            thread = self._thread
            self._tell()
        # Closing may be the garbage collector's doing, on whatever thread it runs.
        if thread is not None and thread is not current_thread():
            thread.join(_END_S * 2)
        atexit.unregister(self.close)
        self._memory.close()

    def _tell(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _start(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = Thread(target=self._run, name="milnce-decoding", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # later the thread does not run any more

    # The thread's side; everything below runs with the lock held, unless it says otherwise.

    def _run(self) -> None:
        """Talk to the processes until the pool is closed. Runs without the lock."""
        assert self._selector is not None  # noqa: S101
        watch_s = StallWatch(self._settings.stall_s).interval_s
        try:
            while True:
                with self._changed:
                    if self._closing:
                        return
                    self._reap()
                    self._watch()
                    self._fill_up()
                    self._grant()
                    self._assign()
                    self._changed.notify_all()
                ready = self._selector.select(watch_s)
                with self._changed:
                    for key, _ in ready:
                        if key.data is None:
                            os.eventfd_read(self._wake)
                        elif key.data in self._workers:
                            self._read(key.data)
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            self._failure = error
        finally:
            self._end()

    def _end(self) -> None:
        with self._changed:
            for worker in self._workers[:]:
                self._lose(worker)
            until_s = time.monotonic() + _END_S
            for process, _, _ in self._ending:
                if not process.has_ended(within_s=max(0.01, until_s - time.monotonic())):
                    _LOG.warning("decoding process %d was killed and is still there", process.pid)
            if self._selector is not None:
                self._selector.close()
            wake, self._wake = self._wake, -1
            os.close(wake)
            self._changed.notify_all()

    def _rests(self) -> bool:
        """Whether no more clips come until the caller goes on."""
        return not self._may_assign() and all(worker.job is None for worker in self._workers)

    def _may_assign(self) -> bool:
        ahead = self._held - self._windows.get(self._head, 0)
        return self._next_job < len(self._jobs) and ahead < _WINDOWS_AHEAD

    def _fill_up(self) -> None:
        """Start processes until there are as many as there is work for."""
        wanted = min(self._settings.workers, self._busy() + len(self._jobs) - self._next_job)
        while len(self._workers) < wanted and self._counters:
            if self._failed_starts >= _STARTS:
                if not self._workers:
                    raise DecoderError(self._why_no_start)
                return
            self._spawn()

    def _busy(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    _why_no_start = ""

    def _spawn(self) -> None:
        counter = self._counters.pop()
        try:
            process = WorkerProcess(
                {
                    "parent": os.getpid(),
                    "memory": self._memory.fd,
                    "shape": list(self._memory.clips.shape),
                    "counter": counter,
                    "preset": self._preset.to_json(),
                    "threads": self._settings.threads,
                    "niceness": self._settings.niceness,
                }
            )
        except OSError as error:
            self._counters.append(counter)
            self._not_started(f"the system starts none ({error})")
            return
        worker = _Worker(process, counter, StallWatch(_START_S))
        self._workers.append(worker)
        assert self._selector is not None  # noqa: S101
        self._selector.register(process.channel.connection, selectors.EVENT_READ, worker)

    def _not_started(self, why: str) -> None:
        self._failed_starts += 1
        self._why_no_start = (
            f"no decoding process can be started: {why}, {self._failed_starts} times in a row. Decode in this process "
            "instead (workers=0 or --workers 0), or look at what it printed"
        )
        _LOG.warning("a decoding process could not be started: %s", why)

    def _reap(self) -> None:
        """Take back what processes that were killed had, once they can write no more."""
        for ending in self._ending[:]:
            process, counter, slot = ending
            if process.has_ended():
                self._ending.remove(ending)
                self._counters.append(counter)
                if slot is not None:
                    self._slots.give_back(slot)

    def _watch(self) -> None:
        now_s = time.monotonic()
        for worker in self._workers[:]:
            if worker.watch.hangs(self._memory.counters[worker.counter], busy=worker.busy, now_s=now_s):
                job = worker.job
                self._lose(worker)
                if job is None:
                    self._not_started(f"it was not ready after {_START_S:g} s")
                    continue
                limit_s = self._settings.stall_s
                self._fail(
                    job,
                    DecoderError(
                        f"{job.path}: decoding made no progress for {limit_s:g} s, so its process was ended; look at "
                        "the file and its disk, or give it more time (--stall-s, stall_s)"
                    ),
                )

    def _grant(self) -> None:
        """Give free slots to those who wait for one, the earliest file first."""
        waiting = [worker for worker in self._workers if worker.wants]
        for worker in sorted(waiting, key=lambda each: each.last.file):
            if worker.last.file not in self._dropped:
                worker.slot = self._slots.grant()
                if worker.slot is None:
                    continue
            worker.wants = False
            self._send(worker, "slot", worker.slot)

    def _assign(self) -> None:
        for worker in self._workers[:]:
            if worker.ready and worker.job is None and self._may_assign():
                job = self._jobs[self._next_job]
                self._next_job += 1
                self._windows[job.number] = 1
                self._held += 1
                worker.job, worker.last = job, ClipOf(job.number, -1)
                worker.watch = StallWatch(self._settings.stall_s)
                self._send(worker, "file", job.number, str(job.path), job.start_s, job.end_s)

    def _send(self, worker: _Worker, *message: Any) -> None:  # noqa: ANN401 - JSON
        try:
            worker.process.channel.send(*message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # reading will find that it is gone, after what it said before
        except OSError as error:
            if worker.job is not None:
                self._fail(worker.job, VideoError(f"{worker.job.path}: {error}"))
            self._lose(worker)

    def _read(self, worker: _Worker) -> None:
        """Take a message of a worker, or note that it is gone."""
        try:
            message = worker.process.channel.receive()
        except BlockingIOError:
            return
        if message is None:
            self._mourn(worker)
            return
        kind, *content = message
        getattr(self, f"_on_{kind}")(worker, *content)

    def _mourn(self, worker: _Worker) -> None:
        worker.process.has_ended(within_s=1.0)
        how, job = worker.process.describe_end(), worker.job
        self._lose(worker)
        if not worker.ready:
            self._not_started(f"it {how} at once")
        elif job is not None:
            self._fail(
                job,
                DecoderError(
                    f"{job.path}: its decoding process {how}; the file may be damaged, or the memory short. Other "
                    "files go on"
                ),
            )

    def _lose(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        assert self._selector is not None  # noqa: S101
        self._selector.unregister(worker.process.channel.connection)
        worker.process.kill()
        self._ending.append((worker.process, worker.counter, worker.slot))

    def _fail(self, job: Job, error: MilnceError) -> None:
        self._slots.drop(job.number)
        self._events.append(FileFailed(job.number, error))

    # What workers say.

    def _on_ready(self, worker: _Worker) -> None:
        worker.ready = True
        self._failed_starts = 0

    def _on_broken(self, worker: _Worker, name: str, text: str, trace: str) -> None:
        self._lose(worker)
        error = SentError(name, text, trace).restore("decoding")
        raise (
            error
            if isinstance(error, MissingDependencyError)
            else DecoderError(f"a decoding process cannot start ({name}: {text})")
        )

    def _on_want(self, worker: _Worker, _: int) -> None:
        worker.wants = True

    def _on_window(  # the message's fields
        self, worker: _Worker, file: int, index: int, start_s: float, end_s: float, video_s: float, slot: int | None
    ) -> None:
        if slot is not None:
            worker.slot, worker.last = None, ClipOf(file, worker.last.clip + 1)
            if file in self._dropped:
                self._slots.give_back(slot)
            else:
                self._slots.fill(slot, worker.last)
        if file in self._dropped:
            return
        self._windows[file] += 1
        self._held += 1
        self._events.append(WindowDecoded(worker.last, index, start_s, end_s, video_s))

    def _on_done(self, worker: _Worker, file: int) -> None:
        worker.job = None
        self._dropped.discard(file)
        self._events.append(FileDecoded(file))

    def _on_failed(self, worker: _Worker, _: int, name: str, text: str, trace: str) -> None:
        job, worker.job = worker.job, None
        if job is not None:
            self._dropped.discard(job.number)
            self._fail(job, SentError(name, text, trace).restore(job.path))
