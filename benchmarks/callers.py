"""Callers of a batcher: some who wait for each answer, and some who do not wait for anybody."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from milnce.errors import QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from milnce import Batcher
    from milnce.batcher import ClipEmbedding

    Answer = tuple[int, NDArray[np.float32]]


@dataclass(slots=True)
class Run:
    """What callers saw.

    Attributes:
        seconds: From the first request to the last answer.
        latencies_s: From each request to its answer.
        answers: Which clip it was, and its embedding.
        refused: Requests that the queue had no room for.
    """

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    refused: int = 0


def closed_loop(batcher: Batcher, clips: Sequence[NDArray[np.uint8]], *, callers: int, each: int) -> Run:
    """Let `callers` threads send `each` clips, each thread the next one when it has its answer."""
    runs = [Run() for _ in range(callers)]
    start = threading.Barrier(callers + 1)

    def call(caller: int) -> None:
        start.wait()
        for turn in range(each):
            index = (caller * each + turn) % len(clips)
            began = time.perf_counter()
            found = batcher.encode_video(clips[index])
            runs[caller].latencies_s.append(time.perf_counter() - began)
            runs[caller].answers.append((index, found.embedding))

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    whole = Run(time.perf_counter() - began)
    for run in runs:
        whole.latencies_s += run.latencies_s
        whole.answers += run.answers
    return whole


def open_loop(batcher: Batcher, clips: Sequence[NDArray[np.uint8]], *, rate_per_s: float, requests: int) -> Run:
    """Send clips at a steady rate whatever becomes of them, and wait for the answers at the end."""
    run, futures = Run(), []
    began = time.perf_counter()
    for number in range(requests):
        time.sleep(max(0.0, began + number / rate_per_s - time.perf_counter()))
        index, sent = number % len(clips), time.perf_counter()
        try:
            future = batcher.submit_video(clips[index])
        except QueueFullError:
            run.refused += 1
            continue
        future.add_done_callback(_keeper(run, sent))
        futures.append((index, future))
    run.answers = [(index, future.result().embedding) for index, future in futures]
    run.seconds = time.perf_counter() - began
    return run


def burst(
    submit: Callable[[int], Future[Any]], *, callers: int, requests: int
) -> tuple[list[tuple[int, Future[Any]]], int]:
    """Send requests from many threads at once; returns them with futures, and how many were refused."""
    futures: list[tuple[int, Future[Any]]] = []
    refused: list[int] = []
    start = threading.Barrier(callers)

    def send_one(number: int) -> None:
        try:
            futures.append((number, submit(number)))
        except QueueFullError:
            refused.append(number)

    def send(caller: int) -> None:
        start.wait()
        for number in range(caller, requests, callers):
            send_one(number)

    threads = [threading.Thread(target=send, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return futures, len(refused)


def latencies_s(action: Callable[[], object], count: int) -> list[float]:
    """Return how long each of `count` calls took, one after the other."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return found


class Saturation:
    """Callers who keep a batcher's video lane busy while the block runs."""

    def __init__(self, batcher: Batcher, clips: Sequence[NDArray[np.uint8]], callers: int) -> None:
        self._stop = threading.Event()
        self._first = threading.Semaphore(0)
        self._batcher, self._clips = batcher, clips
        self._threads = [threading.Thread(target=self._call, args=(caller,)) for caller in range(callers)]

    def _call(self, caller: int) -> None:
        while not self._stop.is_set():
            self._first.release()
            self._batcher.encode_video(self._clips[caller % len(self._clips)])

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._first.acquire()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _keeper(run: Run, sent: float) -> Callable[[Future[ClipEmbedding]], None]:
    return lambda _: run.latencies_s.append(time.perf_counter() - sent)
