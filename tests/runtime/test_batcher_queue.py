"""The queue of a batcher's lane against a list that does the same slowly, over random schedules."""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helpers.slow_model import SlowBackend
from milnce.batcher_queue import Bucket, Request, RequestQueue

CAPACITY, DELAY_S = 7, 3.0
BACKENDS = (SlowBackend("video", "uint8"), SlowBackend("video", "float32"))
BUCKETS = [Bucket(BACKENDS[0], (2, 4, 4, 3), 3), Bucket(BACKENDS[0], (4, 4, 4, 3), 2), Bucket(BACKENDS[1], (2, 4), 3)]


class QueueMachine(RuleBasedStateMachine):
    """Holds the queue against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = RequestQueue(capacity=CAPACITY, max_delay_s=DELAY_S)
        self.expected: list[Request] = []
        self.now_s = 0.0

    @precondition(lambda self: len(self.expected) < CAPACITY)
    @rule(bucket=st.integers(0, 2), deadline_s=st.sampled_from([math.inf, math.inf, 1.0, 5.0]))
    def put(self, bucket: int, deadline_s: float) -> None:
        """Add a request of a bucket that is equal but not the same, as callers make them."""
        like = BUCKETS[bucket]
        made = Bucket(like.backend, tuple(like.shape), like.largest)
        future: Future[Any] = Future()
        request = Request(made, np.zeros(1), future, self.now_s, self.now_s + deadline_s)
        self.queue.put(request)
        self.expected.append(request)

    @rule(passed_s=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def time_passes(self, passed_s: float) -> None:
        """Move the clock."""
        self.now_s += passed_s

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """Cancel one, which is there once."""
        request = data.draw(st.sampled_from(self.expected))
        assert self.queue.discard(request.future)
        assert not self.queue.discard(request.future)
        self.expected.remove(request)

    @rule()
    def expire(self) -> None:
        """Take out what has waited too long."""
        due = self.queue.first_deadline_s() <= self.now_s
        expired = self.queue.expire(self.now_s)
        assert expired == [request for request in self.expected if request.deadline_s <= self.now_s]
        assert due or not expired
        assert self.queue.first_deadline_s() > self.now_s  # or the lane would not sleep
        self.expected = [request for request in self.expected if request not in expired]

    @rule(hurry=st.booleans())
    def take(self, *, hurry: bool) -> None:
        """Take the batch that is due."""
        due = self.queue.batch_due_s() <= self.now_s
        batch = self.queue.take(self.now_s, hurry=hurry)
        assert bool(batch) == ((hurry and bool(self.expected)) or due)
        assert batch == self._expected_batch(hurry=hurry)
        self.expected = [request for request in self.expected if request not in batch]

    @rule()
    def clear(self) -> None:
        """Take everything."""
        assert self.queue.clear() == self.expected
        self.expected = []

    def _expected_batch(self, *, hurry: bool) -> list[Request]:
        of_bucket = [[r for r in self.expected if r.bucket == bucket] for bucket in BUCKETS]
        full = [requests for requests in of_bucket if requests and len(requests) >= requests[0].bucket.largest]
        if not self.expected:
            return []
        oldest = self.expected[0]
        if hurry or len(self.expected) == CAPACITY or self.now_s - oldest.arrived_s >= DELAY_S:
            chosen = next(requests for requests in of_bucket if oldest in requests)
        elif full:
            chosen = min(full, key=lambda requests: self.expected.index(requests[0]))
        else:
            return []
        return chosen[: chosen[0].bucket.largest]

    @invariant()
    def agrees(self) -> None:
        """Compare what can be asked at any time."""
        assert len(self.queue) == len(self.expected)
        assert self.queue.full == (len(self.expected) == CAPACITY)
        first = min((request.deadline_s for request in self.expected), default=math.inf)
        assert self.queue.first_deadline_s() <= first
        if not self.expected:
            assert self.queue.first_deadline_s() == math.inf
            assert self.queue.batch_due_s() == math.inf


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
