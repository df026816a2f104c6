"""A stand-in for a GPU: batches take a time of their own whatever the CPU does, and one is taken while another runs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.backends import Backend
from milnce.manifest import GraphFile
from milnce.specs import Dimension, TensorSpec, check_feeds
from milnce.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_BATCH = Dimension("batch", 1, None)
_WIDTHS = {"video_embedding": 512, "mixed_5c": 1024}
_GRAPH = GraphFile(
    module="video",
    input_form="uint8",
    precision="fp32",
    file="none.onnx",
    sha256="0" * 64,
    bytes=1,
    opset=20,
    inputs=(
        TensorSpec(
            "video",
            "uint8",
            (_BATCH, *(Dimension(n, 2, None, 2) for n in ("frames", "height", "width")), Dimension.fixed(3)),
        ),
    ),
    outputs=tuple(TensorSpec(name, "float32", (_BATCH, Dimension.fixed(size))) for name, size in _WIDTHS.items()),
)


class Accelerator(Backend):
    """Answers a clip with its own first pixels, after a batch's time.

    Args:
        batch_s: Seconds of a batch, whatever its size.
        clip_s: Seconds of each clip on top.
        largest_batch: Clips in the largest batch.
    """

    name = "simulated"

    def __init__(self, *, batch_s: float, clip_s: float, largest_batch: int) -> None:
        super().__init__(_GRAPH, device="cuda", precision="fp32")
        self.batch_s, self.clip_s, self.largest_batch = batch_s, clip_s, largest_batch
        self.go_on = threading.Event()
        self.go_on.set()
        self._thread = ThreadPoolExecutor(1)

    def run(
        self, feeds: Mapping[str, Any], *, on_device: bool = False, cuda_stream: int | None = None
    ) -> dict[str, Any]:
        """Run one batch and wait for it."""
        del on_device, cuda_stream
        return self.submit(feeds).result()

    def submit(self, feeds: Mapping[str, Any]) -> Future[dict[str, NDArray[Any]]]:
        """Take a batch; it runs when those before it are done."""
        check_feeds(self.inputs, feeds)
        return self._thread.submit(self._run, np.array(feeds["video"]))

    def close(self) -> None:
        """End the thread."""
        super().close()
        self.go_on.set()
        self._thread.shutdown()

    def _run(self, clips: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        time.sleep(self.batch_s + self.clip_s * len(clips))
        self.go_on.wait()
        pixels = clips.reshape(len(clips), -1).astype(np.float32)
        return {name: pixels[:, :size] for name, size in _WIDTHS.items()}


class SimulatedModel:
    """What a batcher needs of a model.

    Attributes:
        backend: The accelerator.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.backend = accelerator
        self.tokenizer = Tokenizer(["none"])

    def open(self, module: str, *, input_form: str | None = None) -> Backend:
        """Return the accelerator."""
        del module, input_form
        return self.backend

    def encode_video(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings, of full batches that are all handed over at once."""
        step = self.backend.largest_batch or len(clips)
        batches = [clips[start : start + step] for start in range(0, len(clips), step)]
        futures = [self.backend.submit({"video": batch}) for batch in batches]
        return np.concatenate([future.result()["video_embedding"] for future in futures])
