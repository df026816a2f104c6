"""The bounded queue of one lane of a batcher: what may come in, what is run next, and what has waited too long.

No threads and no clock in here: the lane holds its lock around every call, and says what time it is.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from milnce.backends import Backend


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests that may share a batch.

    Attributes:
        backend: What runs them.
        shape: Shape of each, without the batch axis.
        largest: Requests in a full batch.
    """

    backend: Backend
    shape: tuple[int, ...]
    largest: int


@dataclass(slots=True, eq=False)
class Request:
    """One clip or one sentence, and whom to tell.

    Attributes:
        bucket: With whom it may run.
        item: The clip, or the word ids; None once it is in a batch.
        future: Who waits for it. It is pending for as long as the request is in the queue, and running afterwards,
            so that what has left the queue cannot be cancelled any more.
        arrived_s: When it came, by the lane's clock.
        deadline_s: When it may no longer be begun, by the same clock; infinity for never.
    """

    bucket: Bucket
    item: NDArray[Any] | None
    future: Future[Any]
    arrived_s: float
    deadline_s: float


class RequestQueue:
    """Requests in the order in which they came.

    Args:
        capacity: Requests that may wait.
        max_delay_s: How long the oldest of a bucket waits for company.
    """

    def __init__(self, *, capacity: int, max_delay_s: float) -> None:
        self.capacity = capacity
        self.max_delay_s = max_delay_s
        # By their futures, since those are what is cancelled. Ordered, and the oldest leaves at a constant cost, which
        # a plain dict would not give.
        self._waiting: OrderedDict[Future[Any], Request] = OrderedDict()
        self._counts: Counter[Bucket] = Counter()
        self._first_deadline_s = math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more must be refused."""
        return len(self._waiting) >= self.capacity

    def put(self, request: Request) -> None:
        """Add a request at the end. The queue must not be full."""
        self._waiting[request.future] = request
        self._counts[request.bucket] += 1
        self._first_deadline_s = min(self._first_deadline_s, request.deadline_s)

    def discard(self, future: Future[Any]) -> bool:
        """Take the request of `future` out, and return whether it was there."""
        request = self._waiting.get(future)
        if request is None:
            return False
        self._remove([request])
        return True

    def expire(self, now_s: float) -> list[Request]:
        """Take out and return those whose deadline has passed."""
        if now_s < self._first_deadline_s:
            return []
        expired = self._remove([request for request in self._waiting.values() if request.deadline_s <= now_s])
        self._first_deadline_s = min((request.deadline_s for request in self._waiting.values()), default=math.inf)
        return expired

    def clear(self) -> list[Request]:
        """Take everything out and return it."""
        return self._remove(list(self._waiting.values()))

    def take(self, now_s: float, *, hurry: bool = False) -> list[Request]:
        """Take out and return the next batch, in the order in which its requests came; nothing if it is not time.

        The oldest request goes first, with those behind it that fit it, once it has waited for `max_delay_s`, or
        nothing else may come in (`hurry`, or a full queue). Before that a bucket that makes a full batch goes.
        """
        if not self._waiting:
            return []
        oldest = next(iter(self._waiting.values()))
        if hurry or self.full or now_s >= oldest.arrived_s + self.max_delay_s:
            return self._take(oldest.bucket)
        if not self._holds_full_batch():
            return []
        return self._take(next(r.bucket for r in self._waiting.values() if self._counts[r.bucket] >= r.bucket.largest))

    def batch_due_s(self) -> float:
        """Return when `take` has a batch if nothing else comes: infinity for never, minus infinity for now."""
        if not self._waiting:
            return math.inf
        if self.full or self._holds_full_batch():
            return -math.inf
        return next(iter(self._waiting.values())).arrived_s + self.max_delay_s

    def first_deadline_s(self) -> float:
        """Return when `expire` may have something if nothing else comes."""
        return self._first_deadline_s

    def _holds_full_batch(self) -> bool:
        return any(count >= bucket.largest for bucket, count in self._counts.items())

    def _take(self, bucket: Bucket) -> list[Request]:
        fitting = (request for request in self._waiting.values() if request.bucket == bucket)
        return self._remove(list(islice(fitting, bucket.largest)))

    def _remove(self, requests: list[Request]) -> list[Request]:
        for request in requests:
            del self._waiting[request.future]
            self._counts[request.bucket] -= 1
            if not self._counts[request.bucket]:
                del self._counts[request.bucket]
        if not self._waiting:
            self._first_deadline_s = math.inf
        return requests
