"""One lane of a batcher: a bounded queue, and the thread that makes batches of it and hands them to a backend."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import weakref
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from milnce.batcher_queue import Request
from milnce.batcher_rows import assemble, failures, rows
from milnce.batcher_stats import LaneStats
from milnce.errors import BackendError, ClosedError, DeadlineError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from milnce.batcher_queue import Bucket, RequestQueue
    from milnce.batcher_rows import Outputs

# Batches handed to a backend and not done. A GPU gets the next one uploaded while it computes; what comes after that
# is better off in the queue, where it gets company, and can still be cancelled or expire. A CPU is done with each
# before it takes the next.
_IN_FLIGHT = 2
# The interpreter's waits take no infinite times, and none of more than some 292 years.
_LONGEST_SLEEP_S = 3600.0
# How long the end of the interpreter waits for a batch that runs.
_EXIT_S = 30.0

_LOG = logging.getLogger("milnce.batcher")


class RequestFuture(Future[Any]):
    """A future that gives its place in the queue back when it is cancelled."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self._lane = lane

    def cancel(self) -> bool:
        """Cancel the request unless it has been begun; return whether it is cancelled."""
        if not self._lane.discard(self):
            return super().cancel()  # begun, done, or cancelled before
        try:
            return super().cancel()
        finally:
            self.set_running_or_notify_cancel()  # `concurrent.futures.wait` waits for this


class Lane:
    """Takes requests from any thread and answers their futures from its own, or from one of the backend's.

    The thread knows the lane and not the batcher, so that a batcher that is forgotten is not kept by it.

    Args:
        name: "video" or "text", for messages.
        queue: Where requests wait.
        row: Makes a request's result of its row of each output.
        clock: Says what time it is, in seconds, and never goes back.
    """

    def __init__(
        self,
        name: str,
        queue: RequestQueue,
        *,
        row: Callable[[Outputs], object],
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._queue = queue
        self._row = row
        self._clock = clock
        self._process = os.getpid()
        self._lock = Lock()
        # Not a condition, since `end` is called by the garbage collector too, which may come in the middle of
        # anything: this queue is made to be put to from there.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._asleep_until_s = -math.inf
        self._closing = self._dropping = False
        self._batches_in_flight = self._running = 0
        self._expired: list[Request] = []
        self._counts: Counter[str] = Counter()
        self._telling = threading.local()
        self._thread = Thread(target=_serve, args=(self,), name=f"milnce-batcher-{name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise BackendError(f"batcher: {error}; this process has no more threads to give") from error
        _LIVE.add(self)

    @property
    def in_callback(self) -> bool:
        """Whether the calling thread is in a callback of one of this lane's futures."""
        return getattr(self._telling, "now", False)

    @property
    def here(self) -> bool:
        """Whether this is the process that made the lane, and not a fork of it."""
        return os.getpid() == self._process

    def refuse(self) -> None:
        """Raise what `submit` would raise, if it would.

        Raises:
            ClosedError: if the lane is closed, or this is a fork of the process that made it.
            QueueFullError: if the queue is full.
        """
        self._refuse_fork()
        with self._lock:
            self._refuse()

    def submit(self, bucket: Bucket, item: NDArray[Any], deadline_s: float = math.inf) -> Future[Any]:
        """Queue one request, to be begun within `deadline_s` seconds from now. Raises what `refuse` does."""
        self._refuse_fork()
        future = RequestFuture(self)
        with self._lock:
            self._refuse()
            now_s = self._clock()
            self._counts["accepted"] += 1
            request = Request(bucket, item, future, now_s, now_s + deadline_s)
            if deadline_s > 0:
                self._queue.put(request)
                if self._due_s() < self._asleep_until_s:
                    self._wake()
                return future
            self._counts["expired"] += 1
        future.set_exception(self._too_late(request))
        return future

    def discard(self, future: Future[Any]) -> bool:
        """Take a request out of the queue, and return whether it was there."""
        with self._lock:
            found = self._queue.discard(future)
            self._counts["cancelled"] += found
            return found

    def stats(self) -> LaneStats:
        """Return what became of the requests so far."""
        with self._lock:
            counts, batches = self._counts, self._counts["batches"]
            return LaneStats(
                accepted=counts["accepted"],
                refused=counts["refused"],
                answered=counts["answered"],
                failed=counts["failed"],
                expired=counts["expired"],
                cancelled=counts["cancelled"],
                dropped=counts["dropped"],
                batches=batches,
                mean_batch_size=counts["begun"] / batches if batches else 0.0,
                queued=len(self._queue),
                running=self._running,
            )

    def end(self, *, drain: bool) -> None:
        """Take no more requests; answer those that wait, or fail them. Returns at once, and takes no lock."""
        self._dropping = self._dropping or not drain
        self._closing = True
        self._wakes.put(None)

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout_s)

    def step(self) -> bool:
        """Do what is to be done, or else wait until something is; return whether there may be more."""
        with self._lock:
            now_s = self._clock()
            self._expire(now_s)
            expired, self._expired = self._expired, []
            dropped = self._queue.clear() if self._dropping else []
            batch = [] if self._batches_in_flight >= _IN_FLIGHT else self._queue.take(now_s, hurry=self._closing)
            for request in (*dropped, *batch):
                request.future.set_running_or_notify_cancel()
            self._counts["dropped"] += len(dropped)
            self._begin(batch)
            busy = bool(expired or dropped or batch)
            ended = self._closing and not busy and not self._queue and not self._batches_in_flight
            self._asleep_until_s = -math.inf if busy or ended else self._due_s()
            sleep_s = min(self._asleep_until_s - now_s, _LONGEST_SLEEP_S)
        for request in expired:
            self._tell(request, self._too_late(request))
        for request in dropped:
            self._tell(request, ClosedError(f"{self.name}: not run, as the batcher was closed with drain=False"))
        if batch:
            self._run(batch)
        elif not busy and not ended:
            with suppress(Empty):
                self._wakes.get(timeout=max(sleep_s, 0.0))
        return not ended

    def fail(self, error: BaseException) -> None:
        """End after an error of the lane's own, which is a defect: fail what waits, and take no more requests."""
        with self._lock:
            self._closing = True
            waiting, expired = self._queue.clear(), self._expired
            self._expired = []
            for request in waiting:
                request.future.set_running_or_notify_cancel()
            self._counts["dropped"] += len(waiting)
        for request in (*waiting, *expired):
            problem = BackendError(f"{self.name}: not run, as the batcher failed ({type(error).__name__}: {error})")
            problem.__cause__ = error
            self._tell(request, problem)

    def _refuse_fork(self) -> None:
        if not self.here:  # and the lock may be held by a thread that is not there any more
            raise ClosedError(
                f"the batcher was made in process {self._process}, and this is a fork of it, which has none of its "
                "threads; make a Batcher here"
            )

    def _refuse(self) -> None:
        if self._closing:
            raise ClosedError("the batcher is closed; make another: milnce.Batcher(model)")
        if self._queue.full:
            self._expire(self._clock())
        if self._queue.full:
            self._counts["refused"] += 1
            raise QueueFullError(
                f"{self.name}: the queue is full: {len(self._queue)} requests wait and {self._running} run; try again "
                "later, send fewer at a time, or make the queue longer: Batcher(model, max_queue=...)"
            )

    def _expire(self, now_s: float) -> None:
        """Take those that have waited too long out of the queue; the lane's thread, which sleeps no longer, tells."""
        expired = self._queue.expire(now_s)
        for request in expired:
            request.future.set_running_or_notify_cancel()
        self._counts["expired"] += len(expired)
        self._expired += expired

    def _begin(self, batch: Sequence[Request]) -> None:
        if batch:
            self._batches_in_flight += 1
            self._running += len(batch)
            self._counts["batches"] += 1
            self._counts["begun"] += len(batch)

    def _due_s(self) -> float:
        """Return when there is something to do if nothing else comes."""
        due_s = math.inf if self._batches_in_flight >= _IN_FLIGHT else self._queue.batch_due_s()
        return min(due_s, self._queue.first_deadline_s())

    def _wake(self) -> None:
        self._asleep_until_s = -math.inf
        self._wakes.put(None)

    def _run(self, batch: Sequence[Request]) -> None:
        bucket = batch[0].bucket
        try:
            started = bucket.backend.submit({bucket.backend.inputs[0].name: assemble(batch)})
        except BaseException as error:  # noqa: BLE001 - the futures carry it to their readers
            self._finish(batch, failures(batch, error))
        else:
            # On a CPU it is done, so this is called here and now.
            started.add_done_callback(partial(self._answer, batch))

    def _answer(self, batch: Sequence[Request], started: Future[dict[str, NDArray[Any]]]) -> None:
        try:
            answers: Sequence[object] = rows(batch, started.result(), self._row)
        except BaseException as error:  # noqa: BLE001 - the futures carry it to their readers
            answers = failures(batch, error)
        self._finish(batch, answers)

    def _finish(self, batch: Sequence[Request], answers: Sequence[object]) -> None:
        failed = sum(isinstance(answer, BaseException) for answer in answers)
        with self._lock:
            self._batches_in_flight -= 1
            self._running -= len(batch)
            self._counts["failed"] += failed
            self._counts["answered"] += len(batch) - failed
            if self._asleep_until_s > -math.inf:
                self._wake()
        for request, answer in zip(batch, answers, strict=True):
            self._tell(request, answer)

    def _tell(self, request: Request, answer: object) -> None:
        nested = self.in_callback
        self._telling.now = True
        try:
            if isinstance(answer, BaseException):
                request.future.set_exception(answer)
            else:
                request.future.set_result(answer)
        except BaseException:  # noqa: BLE001 - a callback that would end its thread must not end the others' futures
            _LOG.exception("%s: a callback of a future failed", self.name)
        finally:
            self._telling.now = nested

    def _too_late(self, request: Request) -> DeadlineError:
        return DeadlineError(
            f"{self.name}: not begun within {request.deadline_s - request.arrived_s:g} s, and so never run; "
            "allow more time, or send fewer requests"
        )


def _serve(lane: Lane) -> None:
    try:
        while lane.step():
            pass
    except BaseException as error:  # noqa: BLE001 - whoever waits for an answer must get one
        _LOG.exception("%s: the batcher's thread failed", lane.name)
        lane.fail(error)


def _end_all() -> None:
    """End every lane before the interpreter does, so that none of their threads is in a library then."""
    lanes = [lane for lane in _LIVE if lane.here]
    for lane in lanes:
        lane.end(drain=False)
    for lane in lanes:
        lane.join(_EXIT_S)


_LIVE: weakref.WeakSet[Lane] = weakref.WeakSet()
atexit.register(_end_all)
