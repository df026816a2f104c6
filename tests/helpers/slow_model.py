"""A model whose backends run when the test says so, and whose answers say which clip or sentence they belong to."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.backends.base import CpuBackend
from milnce.manifest import GraphFile
from milnce.specs import Dimension, TensorSpec, check_feeds
from milnce.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future, ThreadPoolExecutor

    from numpy.typing import NDArray

    from milnce.batcher import ClipEmbedding

TIMEOUT_S = 60.0
SHAPE = (2, 4, 4)
WORDS = tuple(f"w{number}" for number in range(1000))
# A clip with this number gets NaN.
POISON = 2**31 - 1

_BATCH = Dimension("batch", 1, None)
_AXES = tuple(Dimension(name, 2, None, 2) for name in ("frames", "height", "width"))


class SlowBackend(CpuBackend):
    """Answers a clip, or a sentence, with its number, when the test lets it.

    Attributes:
        batches: The numbers in each batch that was begun.
        failure: What the next batches fail with, or None.
        thread: Runs batches as a GPU does, while `submit` returns; None for a backend that is done when it returns.
        on_run: Called in each run, with nothing held.
    """

    name = "slow"

    def __init__(
        self, module: str, form: str, *, thread: ThreadPoolExecutor | None = None, items_per_run: int | None = None
    ) -> None:
        super().__init__(_graph(module, form), precision="fp32")
        self.items_per_run = items_per_run
        self.batches: list[list[int]] = []
        self.failure: BaseException | None = None
        self.thread = thread
        self.on_run: Callable[[], object] = lambda: None
        self._changed = threading.Condition()
        self._permits: int | None = None
        self.ended = 0

    def hold(self) -> None:
        """Let no batch end until `release` says so."""
        with self._changed:
            self._permits = 0

    def release(self, batches: int | None = None) -> None:
        """Let so many more batches end; all of them if None."""
        with self._changed:
            self._permits = None if batches is None else (self._permits or 0) + batches
            self._changed.notify_all()

    def wait_begun(self, batches: int) -> None:
        """Wait until so many batches have begun since the start."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.batches) >= batches, TIMEOUT_S), self.batches

    def run(
        self, feeds: Mapping[str, Any], *, on_device: bool = False, cuda_stream: int | None = None
    ) -> dict[str, Any]:
        """Answer a batch, when the test lets it."""
        assert not on_device
        assert cuda_stream is None
        self._refuse_closed()
        return self._run(feeds)

    def submit(self, feeds: Mapping[str, Any]) -> Future[dict[str, NDArray[Any]]]:
        """Start a batch."""
        if self.thread is None:
            return super().submit(feeds)
        self._refuse_closed()
        # Read now, as into pinned memory, whatever changes later.
        return self.thread.submit(self._run, {name: np.array(array) for name, array in feeds.items()})

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        check_feeds(self.inputs, feeds)
        array = feeds[self.inputs[0].name]
        numbers = [number_of(row) for row in array]
        with self._changed:
            self.batches.append(numbers)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits is None or self._permits > 0, TIMEOUT_S)
            if self._permits is not None:
                self._permits -= 1
        self.on_run()
        self.ended += 1
        if self.failure is not None:
            raise self.failure
        answers = np.array(numbers, dtype=np.float32)[:, None]
        answers[answers == np.float32(POISON)] = np.nan
        return {
            spec.name: np.repeat(answers, width.size or 0, axis=1) + index
            for index, spec in enumerate(self.outputs)
            for width in spec.shape[1:]
        }


class SlowModel:
    """What a batcher needs of a model.

    Attributes:
        uint8: Runs uint8 clips.
        float32: Runs float32 clips.
        text: Runs sentences.
    """

    def __init__(self, *, thread: ThreadPoolExecutor | None = None, items_per_run: int | None = None) -> None:
        self.tokenizer = Tokenizer(WORDS)
        self.uint8 = SlowBackend("video", "uint8", thread=thread, items_per_run=items_per_run)
        self.float32 = SlowBackend("video", "float32", thread=thread, items_per_run=items_per_run)
        self.text = SlowBackend("text", "tokens", thread=thread)

    def open(self, module: str, *, input_form: str | None = None) -> SlowBackend:
        """Return the backend of a tower, as a model does."""
        if module == "text":
            return self.text
        return self.float32 if input_form == "float32" else self.uint8

    def release(self) -> None:
        """Let everything end."""
        for backend in (self.uint8, self.float32, self.text):
            backend.release()


def clip(number: int, shape: tuple[int, int, int] = SHAPE, form: str = "uint8") -> NDArray[Any]:
    """Return a clip that its number can be read from."""
    array = np.zeros((*shape, 3), np.uint8)
    array.reshape(-1)[:4] = np.frombuffer(np.int32(number).tobytes(), np.uint8)
    if form == "uint8":
        return array
    return np.ascontiguousarray(array.transpose(3, 0, 1, 2).astype(np.float32) / np.float32(255))


def number_of(row: NDArray[Any]) -> int:
    """Return the number of a clip, or of the sentence that is its word."""
    if row.dtype == np.int64:
        return int(row[0]) - 1
    if row.dtype == np.float32:
        row = np.rint(row.transpose(1, 2, 3, 0) * 255).astype(np.uint8)
    return int(np.frombuffer(np.ascontiguousarray(row).reshape(-1)[:4].tobytes(), np.int32)[0])


def answered(embedding: ClipEmbedding) -> int:
    """Return whose answer this is, and see that it is one."""
    assert embedding.embedding.shape == (4,)
    assert embedding.mixed_5c.shape == (6,)
    assert embedding.embedding.dtype == np.float32
    np.testing.assert_array_equal(embedding.embedding, embedding.embedding[0])
    np.testing.assert_array_equal(embedding.mixed_5c, embedding.embedding[0] + 1)
    return int(embedding.embedding[0])


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for something that nothing tells of."""
    end_s = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.001)


class FakeClock:
    """A clock that the test moves.

    Attributes:
        now_s: What it says.
    """

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Say what time it is."""
        return self.now_s


def _graph(module: str, form: str) -> GraphFile:
    if module == "text":
        spec = TensorSpec("tokens", "int64", (_BATCH, Dimension("words", 1, None)))
        outputs: tuple[tuple[str, int], ...] = (("text_embedding", 4),)
    else:
        colours = Dimension.fixed(3)
        shape = (_BATCH, *_AXES, colours) if form == "uint8" else (_BATCH, colours, *_AXES)
        spec = TensorSpec("video", form, shape)
        outputs = (("video_embedding", 4), ("mixed_5c", 6))
    return GraphFile(
        module=module,
        input_form=form,
        precision="fp32",
        file=f"{module}.onnx",
        sha256="0" * 64,
        bytes=1,
        opset=20,
        inputs=(spec,),
        outputs=tuple(TensorSpec(name, "float32", (_BATCH, Dimension.fixed(width))) for name, width in outputs),
    )
