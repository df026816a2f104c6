"""Batches that were started without waiting for them: who waits, and who tells their futures."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any

from milnce.backends.batches import finish, join
from milnce.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from milnce.backends.batches import Part
    from milnce.backends.slots import Ring

    Outputs = dict[str, NDArray[Any]]
    Started = tuple[Part, "Joined | None"]
    Telling = Callable[[], None]

_LOG = logging.getLogger("milnce.backends")


class Joined:
    """Puts the parts of one batch together, and then resolves its future. May be used from two threads."""

    def __init__(self, count: int) -> None:
        self.future: Future[Outputs] = Future()
        # What is on its way to the GPU cannot be called back.
        self.future.set_running_or_notify_cancel()
        self._lock = Lock()
        self._count = count
        self._parts: list[Outputs] = []
        self._failed = False

    def add(self, outputs: Outputs) -> None:
        """Take the results of the next part."""
        with self._lock:
            self._parts.append(outputs)
            if self._failed or len(self._parts) < self._count:
                return
        try:
            whole = join(self._parts)
        except MemoryError as error:
            self.fail(error)
        else:
            self.future.set_result(whole)

    def fail(self, error: BaseException) -> None:
        """Fail the batch; results of its other parts are dropped."""
        with self._lock:
            failed_before, self._failed = self._failed, True
        if not failed_before:
            self.future.set_exception(error)


class Completer:
    """Completes parts in the order in which they were started, on two threads of its own.

    The first waits for the GPU and gives slots back. The second tells the futures, and so runs the callbacks of
    others, which may wait for a slot or close the model: the first goes on meanwhile. Neither knows the backend, so
    one that is forgotten is not kept by them.
    """

    def __init__(self, name: str, ring: Ring) -> None:
        self._started: SimpleQueue[Started | None] = SimpleQueue()
        tellings: SimpleQueue[Telling | None] = SimpleQueue()
        self._waiter = Thread(
            target=_wait, args=(ring, self._started, tellings), name=f"milnce-{name}-waits", daemon=True
        )
        self._teller = Thread(target=_tell, args=(tellings,), name=f"milnce-{name}-tells", daemon=True)
        try:
            self._waiter.start()
            self._teller.start()
        except RuntimeError as error:
            self.end()
            raise BackendError(f"{name}: {error}; this process has no more threads to give") from error

    def add(self, part: Part, joined: Joined | None) -> None:
        """Complete a part that was started; without `joined` nobody is told, and an error is logged."""
        part.completed = Event()
        self._started.put((part, joined))

    def end(self) -> None:
        """Let the threads end after what was added before, without waiting for them."""
        self._started.put(None)

    def close(self) -> None:
        """Wait until everything that was added is complete and told."""
        self.end()
        for thread in (self._waiter, self._teller):
            if thread is not current_thread():  # closed in a future's callback
                thread.join()


def _wait(ring: Ring, started: SimpleQueue[Started | None], tellings: SimpleQueue[Telling | None]) -> None:
    while (item := started.get()) is not None:
        tellings.put(_completed(ring, *item))
        item = None  # what the batch holds is freed now and not with the next one
    tellings.put(None)


def _completed(ring: Ring, part: Part, joined: Joined | None) -> Telling:
    """Complete a part, and return what tells its batch."""
    try:
        outputs = finish(ring, part)
    except BaseException as error:  # noqa: BLE001 - the future carries it to its reader
        ring.abandon([part])
        if joined is None:
            return partial(_LOG.warning, "a batch failed on the GPU: %s", str(error))
        return partial(joined.fail, error)
    finally:
        if part.completed is not None:
            part.completed.set()
    return _nothing if joined is None else partial(joined.add, outputs)


def _tell(tellings: SimpleQueue[Telling | None]) -> None:
    while (tell := tellings.get()) is not None:
        try:
            tell()
        except BaseException:  # noqa: BLE001 - a callback that ends its thread must not end the others' futures
            _LOG.exception("a future's callback failed")
        tell = None


def _nothing() -> None:
    """Tell nobody."""
