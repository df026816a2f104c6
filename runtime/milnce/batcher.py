"""One model for many callers: single clips and sentences in, batches to the backend, a future each out."""

from __future__ import annotations

import math
import time
import weakref
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from milnce.arguments import positive
from milnce.backends.base import CpuBackend
from milnce.batcher_lane import Lane
from milnce.batcher_queue import Bucket, RequestQueue
from milnce.batcher_stats import BatcherStats
from milnce.clips import check_clips, input_form
from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from numpy.typing import NDArray
    from typing_extensions import Self

    from milnce.backends import Backend
    from milnce.batcher_rows import Outputs
    from milnce.model import Model

    Float32Array = NDArray[np.float32]

Result = TypeVar("Result")

_CLIPS_AT_ONCE = 8
_SENTENCES_AT_ONCE = 256
_CLIP_RANK = 4


@dataclass(frozen=True, slots=True, eq=False)
class ClipEmbedding:
    """What the video tower says about one clip.

    Attributes:
        embedding: float32 (512,), in the space of the sentences. Not normalised.
        mixed_5c: float32 (1024,), the mean of the last block, the feature that classifiers are trained on.
    """

    embedding: Float32Array
    mixed_5c: Float32Array


class Batcher:
    """Lets many threads and asyncio tasks share one model, each with single clips and sentences.

    with milnce.Batcher(model) as batcher:
        future = batcher.submit_video(clip)          # a concurrent.futures.Future
        sentence = batcher.encode_text("open door")  # waits
        video = future.result()                      # .embedding, .mixed_5c

    Clips and sentences have a queue and a thread each, so that a sentence never waits behind clips. Clips share a
    batch if they have the same input form and the same sizes; whatever has waited longest goes first. On a CPU clips
    run one at a time, as batches of them are slower there (`CpuBackend.items_per_run`): the batcher only queues them,
    and each is answered as soon as it is done. On a GPU one batch is assembled and uploaded while another runs. Batches
    are full on average where at least twice `max_batch` callers wait for their results, three times on a GPU.

    A request is checked when it is submitted, so a wrong clip fails alone and there. If a run fails, that fails the
    requests of its batch and no others; where a graph gives NaN or infinity for a clip, only that clip fails.

    Callbacks of the futures run on a thread of the batcher or of the backend. They may submit, cancel and close, but
    what they take holds up the answers of others.

    Leaving the `with` block answers what waits; leaving it by an error fails that instead. A batcher that is
    forgotten answers what waits and ends its threads; the end of the interpreter fails what waits, and lets what runs
    finish. It does not work in a fork of its process.

    Args:
        model: What runs the requests. It is not closed with the batcher, and must be closed after it.
        max_batch: Clips in a full batch; None for the largest that the backend runs at once or 8, and for 1 on a CPU.
        max_delay_ms: Milliseconds that a clip waits for company at most while nothing runs. None waits if a batch or
            the queue is full.
        max_queue: Clips, and sentences, that may wait; those that run do not count. One more is refused. A waiting
            clip takes its size in memory, so 256 of 32x224x224 take 1.2 GB as uint8, and 4.9 GB as float32.
        text_max_batch: Sentences in a full batch; None for the largest that the backend runs at once, or 256.
        text_max_delay_ms: As `max_delay_ms`, for sentences. They do not wait, since one alone takes less time than
            that; under load they get company while others run.
        clock: Says what time it is in seconds, for delays and deadlines; it must not go back.

    Raises:
        InputError: if a number is none, or too small.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int | None = None,
        max_delay_ms: float = 5.0,
        max_queue: int = 256,
        text_max_batch: int | None = None,
        text_max_delay_ms: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._max_batch = None if max_batch is None else positive("max_batch", max_batch)
        self._text_max_batch = None if text_max_batch is None else positive("text_max_batch", text_max_batch)
        capacity = positive("max_queue", max_queue)
        delays_s = (_milliseconds("max_delay_ms", max_delay_ms), _milliseconds("text_max_delay_ms", text_max_delay_ms))
        queues = [RequestQueue(capacity=capacity, max_delay_s=delay_s) for delay_s in delays_s]
        # What runs each input form, and the clips or sentences in a full batch of it.
        self._backends: dict[str, tuple[Backend, int]] = {}
        self._video = self._lane("video", queues[0], _clip_embedding, clock)
        self._text = self._lane("text", queues[1], _sentence_embedding, clock)
        self._lanes = (self._video, self._text)

    def __repr__(self) -> str:
        return f"Batcher({self._model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close(drain=kind is None)

    def submit_video(
        self, clip: NDArray[Any], *, deadline_s: float | None = None, copy: bool = True
    ) -> Future[ClipEmbedding]:
        """Queue one clip.

        Args:
            clip: uint8 (T, H, W, 3) RGB, or float32 (3, T, H, W) RGB in [0, 1]; a numpy.ndarray.
            deadline_s: Seconds from now within which it must be begun, or else is never run; None for no limit. It
                is told of that at the end of the batch that runs then, at the latest.
            copy: Take a copy, so that the array may be changed at once. Without one it must not be changed until the
                future is done.

        Returns:
            Its future. `cancel` gives the place in the queue back at once, and does nothing once the clip is begun.
            Fails with DeadlineError, ClosedError (`close(drain=False)`), NonFiniteError if the graph gave NaN or
            infinity for this clip, and BackendError if the batch could not be run.

        Raises:
            InputError: if the clip has another dtype, rank, order of channels, size or range.
            BundleError: if the bundle has no graph for this input form.
            QueueFullError: if `max_queue` clips wait.
            ClosedError: if the batcher is closed.
        """
        limit_s = _deadline(deadline_s)
        bucket = self._clip_bucket(clip)
        self._video.refuse()  # before a copy for nothing
        return self._video.submit(bucket, np.array(clip, order="C") if copy else clip, limit_s)

    def submit_text(self, sentence: str, *, deadline_s: float | None = None) -> Future[Float32Array]:
        """Queue one sentence.

        Args:
            sentence: The sentence. Words that the vocabulary lacks are dropped.
            deadline_s: As for `submit_video`.

        Returns:
            The future of its float32 (512,). Fails as that of `submit_video` does.

        Raises:
            InputError: if it is not text.
            QueueFullError: if `max_queue` sentences wait.
            ClosedError: if the batcher is closed.

        Warns:
            UnknownWordsWarning: if no word is known.
        """
        limit_s = _deadline(deadline_s)
        given: object = sentence
        if not isinstance(given, str):
            cure = "; submit each by itself" if isinstance(given, list | tuple) else ""
            raise InputError(f"sentence: {type(given).__name__} given; one sentence (str) expected{cure}")
        tokens = self._model.tokenizer(sentence)[0]
        backend, largest = self._opened("text", None, self._text_max_batch, _SENTENCES_AT_ONCE)
        return self._text.submit(Bucket(backend, tokens.shape, largest), tokens, limit_s)

    def encode_video(self, clip: NDArray[Any], *, deadline_s: float | None = None) -> ClipEmbedding:
        """Embed one clip and wait for it. Arguments and errors are those of `submit_video` and of its future.

        Raises:
            InputError: also in a callback of one of this batcher's futures, where nobody would be left to answer.
        """
        self._refuse_in_callback("encode_video", "submit_video")
        return _wait(self.submit_video(clip, deadline_s=deadline_s, copy=False))

    def encode_text(self, sentence: str, *, deadline_s: float | None = None) -> Float32Array:
        """Embed one sentence and wait for it. See `encode_video` and `submit_text`."""
        self._refuse_in_callback("encode_text", "submit_text")
        return _wait(self.submit_text(sentence, deadline_s=deadline_s))

    async def encode_video_async(self, clip: NDArray[Any], *, deadline_s: float | None = None) -> ClipEmbedding:
        """Embed one clip without blocking the event loop. See `submit_video`.

        The clip is checked and copied in the event loop, some milliseconds for 32x224x224; and the first float32 clip
        of a model loaded for uint8 opens a graph there, unless `model.open("video", input_form="float32")` has. A task
        that is cancelled cancels its request.
        """
        import asyncio  # noqa: PLC0415 - whoever gets here has it, and importing milnce need not pay for it

        return await asyncio.wrap_future(self.submit_video(clip, deadline_s=deadline_s))

    async def encode_text_async(self, sentence: str, *, deadline_s: float | None = None) -> Float32Array:
        """Embed one sentence without blocking the event loop. See `encode_video_async` and `submit_text`."""
        import asyncio  # noqa: PLC0415 - as above

        return await asyncio.wrap_future(self.submit_text(sentence, deadline_s=deadline_s))

    def stats(self) -> BatcherStats:
        """Return what became of the requests so far."""
        return BatcherStats(self._video.stats(), self._text.stats())

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and wait until the threads have ended.

        May be called from several threads and more than once; `drain=False` cuts short a call that drains. In a
        callback of one of the futures this does not wait. In asyncio use `await asyncio.to_thread(batcher.close)`.

        Args:
            drain: Answer what waits. Otherwise that fails with ClosedError, and only what runs is finished.
        """
        if not self._video.here:  # the threads are those of the process that this is a fork of
            return
        for lane in self._lanes:
            lane.end(drain=drain)
        if not self._in_callback():
            for lane in self._lanes:
                lane.join()

    def _lane(
        self, name: str, queue: RequestQueue, row: Callable[[Outputs], object], clock: Callable[[], float]
    ) -> Lane:
        lane = Lane(name, queue, row=row, clock=clock)
        # Not at the end of the interpreter too, where lanes end themselves.
        weakref.finalize(self, lane.end, drain=True).atexit = False
        return lane

    def _clip_bucket(self, clip: object) -> Bucket:
        """Check a clip and say with which others it may share a batch."""
        if not isinstance(clip, np.ndarray):
            hint = "; call .numpy() on it" if hasattr(clip, "numpy") else ""
            raise InputError(f"clip: {type(clip).__name__} given; a numpy.ndarray expected: {_ONE_CLIP}{hint}")
        if clip.ndim != _CLIP_RANK:
            cure = "; submit each clip of a batch by itself" if clip.ndim == _CLIP_RANK + 1 else ""
            raise InputError(f"clip: rank {clip.ndim} given, shape {clip.shape}; one clip expected: {_ONE_CLIP}{cure}")
        try:
            form = input_form(clip[None])
            backend, largest = self._opened("video", form, self._max_batch, _CLIPS_AT_ONCE)
            check_clips(clip[None], backend.inputs[0])
        except InputError as error:
            raise InputError(f"as a batch of one, clip[None]: {error}") from error
        return Bucket(backend, clip.shape, largest)

    def _opened(self, module: str, form: str | None, max_batch: int | None, otherwise: int) -> tuple[Backend, int]:
        # Kept here, since the model holds its lock while it opens another graph, which may take seconds.
        key = form or module
        if key not in self._backends:
            backend = self._model.open(module, input_form=form)
            self._backends[key] = backend, _largest_batch(backend, max_batch, otherwise)
        return self._backends[key]

    def _refuse_in_callback(self, name: str, instead: str) -> None:
        if self._in_callback():
            raise InputError(
                f"{name} was called in a callback of one of this batcher's futures, and would wait for the thread it "
                f"is on; use {instead} there"
            )

    def _in_callback(self) -> bool:
        return any(lane.in_callback for lane in self._lanes)


_ONE_CLIP = "uint8 (T, H, W, 3) RGB, or float32 (3, T, H, W) RGB in [0, 1]"


def _largest_batch(backend: Backend, max_batch: int | None, otherwise: int) -> int:
    if max_batch is None:
        by_item = backend.items_per_run if isinstance(backend, CpuBackend) else None
        max_batch = by_item or backend.largest_batch or otherwise
    # No batch may be larger than the graph takes.
    return min(max_batch, backend.inputs[0].shape[0].maximum or max_batch)


def _clip_embedding(outputs: Outputs) -> ClipEmbedding:
    return ClipEmbedding(outputs["video_embedding"], outputs["mixed_5c"])


def _sentence_embedding(outputs: Outputs) -> Float32Array:
    return outputs["text_embedding"]


def _wait(future: Future[Result]) -> Result:
    try:
        return future.result()
    finally:
        future.cancel()  # interrupted: nobody wants it any more


def _milliseconds(name: str, value: object) -> float:
    """Return `value` in seconds."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise InputError(f"{name} is {value!r}; a number of milliseconds, 0 or more, expected")
    return float(value) / 1000


def _deadline(deadline_s: object) -> float:
    if deadline_s is None:
        return math.inf
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, Real) or math.isnan(deadline_s):
        raise InputError(f"deadline_s is {deadline_s!r}; a number of seconds from now expected, or None")
    return float(deadline_s)
