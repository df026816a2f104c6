"""The least backend there can be on the simulated GPU, and arrays of another library there."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers import fake_cuda
from milnce.backends import batches
from milnce.backends.gpu import GpuBackend, open_gpu
from milnce.backends.layouts import Bucket, Layout
from milnce.cuda import Cuda
from milnce.manifest import GraphFile
from milnce.specs import Dimension, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest
    from numpy.typing import NDArray

    from helpers.fake_cuda import FakeCuda
    from milnce.backends import CudaOptions
    from milnce.backends.slots import Slot

    Floats = NDArray[np.float32]

WIDTH = 5
SIZES = (1, 2, 4, 8)
ROW_BYTES = WIDTH * 4
_BATCH = Dimension("N", 1, None)
GRAPH = GraphFile(
    module="projection",
    input_form="mixed_5c",
    precision="fp32",
    file="projection-fp32.onnx",
    sha256="0" * 64,
    bytes=1,
    opset=20,
    inputs=(TensorSpec("mixed_5c", "float32", (_BATCH, Dimension.fixed(WIDTH))),),
    outputs=(TensorSpec("video_embedding", "float32", (_BATCH, Dimension.fixed(WIDTH))),),
)


class Doubling(GpuBackend):
    """A graph that doubles its input and adds 1, on the simulated GPU.

    Attributes:
        enqueued: Rows of each batch that was enqueued.
        on_enqueue: Called before each.
    """

    name = "doubling"
    largest_batch = SIZES[-1]

    def __init__(self, fake: FakeCuda, options: CudaOptions, *, device: int = 0, scratch_row_bytes: int = 64) -> None:
        self.fake = fake
        self.scratch_row_bytes = scratch_row_bytes
        self.enqueued: list[int] = []
        self.on_enqueue: Any = lambda: None
        self.freed = 0
        cuda = open_gpu(
            device, device_limit_bytes=options.device_limit_bytes, pinned_limit_bytes=options.pinned_limit_bytes
        )
        super().__init__(GRAPH, precision="fp32", cuda=cuda, options=options)

    def _free_library(self) -> None:
        self.freed += 1

    def _bucket(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> Bucket:
        size = next((size for size in SIZES if size >= rows), SIZES[-1])
        inputs = {name: (size, *shape) for name, shape in shapes.items()}
        outputs = {"video_embedding": (size, WIDTH)}
        dtypes = {"mixed_5c": "float32", "video_embedding": "float32"}
        return Bucket(size, 0, Layout.of(inputs, dtypes), Layout.of(outputs, dtypes), size * self.scratch_row_bytes)

    def _enqueue(self, slot: Slot, bucket: Bucket) -> None:
        self.on_enqueue()
        self.enqueued.append(bucket.rows)
        source, destination = slot.device_inputs.pointer, slot.device_outputs.pointer
        nbytes, scratch, fake = bucket.rows * ROW_BYTES, self._ring.scratch, self.fake

        def kernel() -> None:  # which does not know the backend: the simulation keeps it
            fake.view(scratch, bucket.scratch_bytes)[:] = 1
            values = fake.view(source, nbytes).view(np.float32)
            assert np.isfinite(values).all(), "rows that pad a batch are numbers"
            fake.view(destination, nbytes).view(np.float32)[:] = values * 2 + 1

        accesses = [
            fake_cuda.reads(source, nbytes),
            fake_cuda.writes(destination, nbytes),
            fake_cuda.writes(scratch, bucket.scratch_bytes),
        ]
        fake.launch(self._ring.compute.handle, kernel, accesses=accesses)


def run(backend: Doubling, array: Floats) -> Floats:
    """Run one batch and return its result."""
    result: Floats = backend.run({"mixed_5c": array})["video_embedding"]
    return result


def floats(count: int, seed: int = 0) -> Floats:
    """Return random rows."""
    return np.random.default_rng(seed + count).random((count, WIDTH), dtype=np.float32)


def doubled(array: Floats) -> Floats:
    """Return what the backend gives for `array`."""
    return array * 2 + 1


class Foreign:
    """An array of another library on the GPU, whose content a kernel in its own stream writes when that gets to run.

    Attributes:
        stream: Handle of that stream; None for the default one.
    """

    def __init__(
        self, fake: FakeCuda, values: NDArray[Any], *, stream: int | None = None, device: int = 0, late: bool = True
    ) -> None:
        self.fake, self.values, self.stream = fake, np.ascontiguousarray(values), stream
        self.cuda = Cuda(device)
        self.buffer = self.cuda.device_buffer(self.values.nbytes)
        self.strides: tuple[int, ...] | None = None
        if late:
            self.write(self.values)
        elif self.values.nbytes:
            fake.view(self.buffer.pointer, self.values.nbytes)[:] = self.values.reshape(-1).view(np.uint8)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What other libraries have."""
        return self.values.dtype

    def write(self, values: NDArray[Any]) -> None:
        """Queue a kernel that writes `values`."""
        fake, pointer = self.fake, self.buffer.pointer
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).copy()

        def kernel() -> None:
            fake.view(pointer, data.nbytes)[:] = data

        with self.cuda.active():
            fake.launch(self.stream or 0, kernel, accesses=[fake_cuda.writes(pointer, data.nbytes)])

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.values.shape,
            "typestr": self.values.dtype.str,
            "data": (self.buffer.pointer, False),
            "strides": self.strides,
            "stream": self.stream,
        }


def read_later(fake: FakeCuda, array: Any, stream: int) -> NDArray[Any]:  # noqa: ANN401 - a DeviceArray
    """Queue a kernel on `stream` that reads an array on the device; return where it will be."""
    found = np.zeros(array.shape, array.dtype)
    pointer, nbytes = array.pointer, array.nbytes

    def kernel() -> None:
        found.reshape(-1).view(np.uint8)[:] = fake.view(pointer, nbytes)

    assert int(fake.launch(stream, kernel, accesses=[fake_cuda.reads(pointer, nbytes)])) == 0
    return found


def hold_completions(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Let completers wait until the event that is returned is set.

    What they wait for counts as known to the host, and would hide that something else did not wait.
    """
    gate, finish = Event(), batches.finish

    def held(*arguments: Any) -> Any:  # noqa: ANN401 - finish's own
        assert gate.wait(10)
        return finish(*arguments)

    monkeypatch.setattr("milnce.backends.completion.finish", held)
    return gate
