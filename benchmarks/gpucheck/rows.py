"""What the latency part times: a backend or the PyTorch towers, by each way that data can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gpucheck.parity import run_in_batches
from milnce.cuda import Cuda
from milnce.device_arrays import DeviceArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gpucheck.models import Candidate
    from milnce.backends import Backend
    from milnce_convert.parity import Gate
    from milnce_convert.torch_modes import TorchVideo

    Rows = NDArray[Any]

RUN, STREAM, ON_GPU = "run", "stream", "on GPU"
_OUTPUT = "video_embedding"
# Batches in one timed stream: enough that filling and emptying the pipeline is little of it.
_STREAM_CLIPS, _STREAM_BATCHES = 64, 16


@dataclass(frozen=True, eq=False)
class Row:
    """One thing to time at one batch size.

    Attributes:
        name: What runs, as the table says it: "tensorrt fp16".
        path: `RUN` from host uint8 to host embeddings, `STREAM` the same for many batches that overlap, or `ON_GPU`
            with inputs and outputs that are there.
        clips: Clips that one call of `action` embeds.
        gate: What its embeddings are held to.
        expected: What the embeddings of all clips should be.
        embed: Returns them, by the path that is timed.
        action: What is timed; ends when the GPU has done its work.
        ours: Whether wrong numbers are a failure of milnce; if not, it is only left out.
    """

    name: str
    path: str
    clips: int
    gate: Gate
    expected: Rows
    embed: Callable[[], Rows]
    action: Callable[[], object]
    ours: bool = True

    @property
    def key(self) -> str:
        """Its name among the rows of a batch size."""
        return f"{self.name}, {self.path}"


class Source(Protocol):
    """Something that gives rows."""

    name: str

    def rows(self, bucket: int) -> list[Row]:
        """Return what to time in batches of `bucket` clips."""


class BackendSource:
    """An opened backend over the uint8 video graph."""

    def __init__(
        self, candidate: Candidate, backend: Backend, clips: NDArray[np.uint8], expected: Rows, *, note: str = ""
    ) -> None:
        self.name = " ".join(filter(None, (candidate.backend, candidate.precision, note)))
        self._gate = candidate.gate
        self._backend = backend
        self._clips = clips
        self._expected = expected
        self._cuda = Cuda()
        self._stream = self._cuda.stream()

    @property
    def stream_handle(self) -> int:
        """The stream on which batches that are on the GPU run."""
        return self._stream.handle

    def rows(self, bucket: int) -> list[Row]:
        """Return the three ways: a batch from the host, a stream of them, a batch that is on the GPU."""
        backend, clips = self._backend, self._clips
        batches = [clips[start : start + bucket] for start in range(0, len(clips), bucket)]
        first = np.resize(clips, (bucket, *clips.shape[1:]))  # repeats clips where there are fewer
        there = on_gpu(self._cuda, first)
        count = max(_STREAM_BATCHES, _STREAM_CLIPS // bucket)

        def stream() -> None:
            for _ in backend.stream({"video": first} for _ in range(count)):
                pass

        def stay() -> None:
            backend.run({"video": there}, cuda_stream=self.stream_handle)
            self._stream.synchronize()

        def embed_streamed() -> Rows:
            found = backend.stream({"video": batch} for batch in batches)
            return np.concatenate([outputs[_OUTPUT] for outputs in found])

        def embed_there() -> Rows:
            found = [backend.run({"video": on_gpu(self._cuda, batch)}, on_device=True) for batch in batches]
            return np.concatenate([outputs[_OUTPUT].copy_to_host() for outputs in found])

        def row(path: str, number: int, embed: Callable[[], Rows], action: Callable[[], object]) -> Row:
            return Row(self.name, path, number, self._gate, self._expected, embed, action)

        return [
            row(
                RUN,
                bucket,
                lambda: run_in_batches(backend, {"video": clips}, bucket)[_OUTPUT],
                lambda: backend.run({"video": first}),
            ),
            row(STREAM, count * bucket, embed_streamed, stream),
            row(ON_GPU, bucket, embed_there, stay),
        ]


class TorchSource:
    """The PyTorch towers in one precision."""

    def __init__(self, towers: TorchVideo, mode: str, clips: NDArray[np.uint8], expected: Rows) -> None:
        self.name = f"PyTorch {mode}"
        self._towers, self._mode = towers, mode
        self._clips, self._expected = clips, expected

    def rows(self, bucket: int) -> list[Row]:
        """Return two ways: a batch from the host, and one that is on the GPU."""
        towers, mode, clips = self._towers, self._mode, self._clips
        first = np.resize(clips, (bucket, *clips.shape[1:]))
        there = towers.upload(first)

        def embed() -> Rows:
            batches = [clips[start : start + bucket] for start in range(0, len(clips), bucket)]
            return np.concatenate([towers.to_host(towers.embed(mode, towers.upload(batch))) for batch in batches])

        def run() -> None:
            towers.to_host(towers.embed(mode, towers.upload(first)))

        def stay() -> None:
            towers.embed(mode, there)
            towers.synchronize()

        gate = towers.gate(mode)
        return [
            Row(self.name, RUN, bucket, gate, self._expected, embed, run, ours=False),
            Row(self.name, ON_GPU, bucket, gate, self._expected, embed, stay, ours=False),
        ]


def on_gpu(cuda: Cuda, array: NDArray[Any]) -> DeviceArray:
    """Return a copy of a host array in device memory."""
    buffer = cuda.device_buffer(array.nbytes)
    with cuda.stream() as stream, cuda.pinned_buffer(array.nbytes) as staged:
        staged.array(array.dtype.name, array.shape)[:] = array
        cuda.upload(buffer.pointer, staged.pointer, array.nbytes, stream)
        stream.synchronize()
    return DeviceArray(buffer.pointer, array.shape, array.dtype, device=cuda.info.index, owner=buffer)
