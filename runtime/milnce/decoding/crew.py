"""The processes of a pool: started, watched, ended, and replaced."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milnce.decoding.process import WorkerProcess
from milnce.decoding.shared_clips import MOST_WORKERS
from milnce.decoding.stall import StallWatch
from milnce.decoding.starts import Starts
from milnce.errors import DecoderError

if TYPE_CHECKING:
    from milnce.decoding.events import Job
    from milnce.decoding.shared_clips import SharedClips
    from milnce.decoding.slots import Slots
    from milnce.video import Preset

_LOG = logging.getLogger("milnce.decoding")

# Importing is slow on a cold disk, and says nothing about how fast frames come.
_START_S = 120.0
# To die takes a killed process milliseconds, unless it waits for a disk that is gone.
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class CrewSettings:
    """How processes decode.

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
class Worker:
    """A process and what it is at.

    Attributes:
        process: The process.
        counter: Which counter it moves on.
        watch: Tells whether it hangs.
        ready: Whether it takes files.
        job: The file it decodes.
        wants: Whether it waits for a slot.
        slot: The slot that it has and did not fill yet.
    """

    process: WorkerProcess
    counter: int
    watch: StallWatch
    ready: bool = False
    job: Job | None = None
    wants: bool = False
    slot: int | None = None

    @property
    def busy(self) -> bool:
        """Whether it should make progress."""
        return not self.ready or (self.job is not None and not self.wants)

    def give(self, job: Job, stall_s: float) -> None:
        """Give it a file."""
        self.job = job
        self.watch = StallWatch(stall_s)
        self.say("file", job.number, str(job.path), job.start_s, job.end_s)

    def say(self, *message: Any) -> None:  # noqa: ANN401 - JSON
        """Send a message. One that is gone is found out when its messages are read to their end."""
        try:
            self.process.channel.send(*message)
        except OSError as error:
            _LOG.debug("decoding process %d was not told %s: %s", self.process.pid, message[0], error)
            self.process.stop()


class Crew:
    """Keeps as many processes as there is work for, up to a limit.

    Attributes:
        workers: Those that live, as far as is known.

    Args:
        preset: How frames are sampled and resized.
        memory: Where clips go.
        slots: The places in it.
        settings: How to decode.
    """

    def __init__(self, preset: Preset, memory: SharedClips, slots: Slots, settings: CrewSettings) -> None:
        self.workers: list[Worker] = []
        self._preset = preset
        self._memory = memory
        self._slots = slots
        self._settings = settings
        self._counters = list(range(MOST_WORKERS))
        self._ending: list[Worker] = []
        self._starts = Starts()

    @property
    def idle(self) -> bool:
        """Whether no process is at a file."""
        return all(worker.job is None for worker in self.workers)

    def fill_up(self, files: int) -> list[Worker]:
        """Start processes for `files` more files, and return them.

        Raises:
            DecoderError: if none was ever ready and starting them failed several times in a row.
        """
        at_work = sum(worker.job is not None for worker in self.workers)
        wanted = min(self._settings.workers, at_work + files)
        started: list[Worker] = []
        while len(self.workers) < wanted and self._counters:
            # While others work, whatever keeps one from starting may pass.
            if self._starts.wait_s or (self._starts.hopeless and not self.workers):
                break
            worker = self._start()
            if worker is not None:
                started.append(worker)
        if self._starts.hopeless and not self.workers and not self._starts.ever_ready:
            raise DecoderError(self._starts.describe())
        return started

    @property
    def given_up(self) -> str | None:
        """Why no process is started any more though some were ready before; None while they are."""
        return self._starts.describe() if self._starts.hopeless and not self.workers else None

    @property
    def retry_s(self) -> float:
        """Seconds until a process that could not be started is tried again; infinite if none waits for that."""
        return self._starts.wait_s or math.inf

    @property
    def ever_ready(self) -> bool:
        """Whether a process was ever ready."""
        return self._starts.ever_ready

    def started(self, worker: Worker) -> None:
        """Take note that a process takes files now."""
        worker.ready = True
        self._starts.succeeded()

    def not_started(self, why: str) -> None:
        """Take note that a process could not be started."""
        self._starts.have_failed(why, others=any(worker.ready for worker in self.workers))
        _LOG.warning("a decoding process could not be started: %s", why)

    def hanging(self) -> list[Worker]:
        """Return the processes that make no progress though they should."""
        now_s = time.monotonic()
        counters = self._memory.counters
        return [
            worker
            for worker in self.workers
            if worker.watch.hangs(counters[worker.counter], busy=worker.busy, now_s=now_s)
        ]

    def describe_hang(self, worker: Worker) -> str:
        """Return in words for how long a process made no progress."""
        if not worker.ready:
            return f"it was not ready after {_START_S:g} s"
        return (
            f"decoding made no progress for {self._settings.stall_s:g} s, so its process was ended; look at the file "
            "and its disk, or give it more time (--stall-s, stall_s)"
        )

    def lose(self, worker: Worker) -> None:
        """End a process. What it has is free only when it can write no more."""
        self.workers.remove(worker)
        worker.process.kill()
        self._ending.append(worker)

    def reap(self) -> None:
        """Free what processes had that have ended."""
        for worker in self._ending[:]:
            if worker.process.has_ended():
                self._ending.remove(worker)
                self._counters.append(worker.counter)
                if worker.slot is not None:
                    self._slots.give_back(worker.slot)

    def end(self) -> None:
        """End all processes, and wait until they are gone."""
        for worker in self.workers[:]:
            self.lose(worker)
        until_s = time.monotonic() + _END_S
        for worker in self._ending:
            if not worker.process.has_ended(within_s=max(0.01, until_s - time.monotonic())):
                _LOG.warning("decoding process %d was killed and is still there", worker.process.pid)

    def _start(self) -> Worker | None:
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
            self.not_started(f"the system starts none, {error}")
            return None
        worker = Worker(process, counter, StallWatch(_START_S))
        self.workers.append(worker)
        return worker
