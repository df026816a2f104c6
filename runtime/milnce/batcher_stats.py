"""What became of the requests of a batcher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaneStats:
    """What became of the requests of one lane so far.

    `accepted` is the sum of `answered`, `failed`, `expired`, `cancelled`, `dropped`, `queued` and `running`.

    Attributes:
        accepted: Requests that got a future.
        refused: Requests that were refused because the queue was full.
        answered: Requests that got their result.
        failed: Requests that were run and got an error.
        expired: Requests that were not begun before their deadline.
        cancelled: Requests that were cancelled before they were begun.
        dropped: Requests that `close(drain=False)` failed.
        batches: Batches that were begun.
        mean_batch_size: Requests in a batch, on average; 0 before the first.
        queued: Requests that wait now.
        running: Requests that run now.
    """

    accepted: int
    refused: int
    answered: int
    failed: int
    expired: int
    cancelled: int
    dropped: int
    batches: int
    mean_batch_size: float
    queued: int
    running: int


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """What became of the requests of a batcher so far.

    Attributes:
        video: Of the clips.
        text: Of the sentences.
    """

    video: LaneStats
    text: LaneStats
