"""What every backend is: it takes one ONNX graph, says its inputs and outputs, runs batches, closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import BackendError, InputError
from milnce.specs import check_feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from milnce.manifest import GraphFile
    from milnce.specs import TensorSpec

# Rank of the video input. See `Backend.items_per_run`.
_VIDEO_RANK = 5


class UnsuitableGraphError(BackendError):
    """A backend that knows graphs of some form only was given another one, which other backends may run."""


@dataclass(frozen=True, slots=True)
class Availability:
    """What one backend can do on this machine.

    Attributes:
        name: The backend's name, as in `milnce.load(backend=...)`.
        version: Version of the library, or None if it is not installed.
        devices: Devices it can run on, such as ("cpu",); empty if none.
        precisions: Precisions it can run, such as ("fp32", "fp16", "bf16").
        problem: Why it cannot be used and how to cure that, or None if it can.
        gpu_problem: Why it cannot run on a GPU although it was built for that, and how to cure it, or None.
        cpu_problems: Why it does not run in some precision on the CPU, by that precision; a GPU may.
        modules: Modules that it runs.
    """

    name: str
    version: str | None
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    problem: str | None = None
    gpu_problem: str | None = None
    cpu_problems: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ("video", "text", "projection")

    @property
    def usable(self) -> bool:
        """Whether the backend can run anything here."""
        return self.problem is None and bool(self.devices)

    def __str__(self) -> str:
        label = self.name if self.version is None else f"{self.name} {self.version}"
        if self.problem is not None:
            return f"{label}: {self.problem}"
        part = "" if "video" in self.modules else f", {' and '.join(self.modules)} alone"
        return f"{label}: {', '.join(self.devices)} in {', '.join(self.precisions)}{part}"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Which backend runs, where, in which precision, and why. `str()` of it is a sentence.

    Attributes:
        name: The backend.
        device: "cpu", "cuda" for the first GPU, or "cuda:N".
        precision: "fp32", "fp16" (the FP16 graphs), "bf16" (the FP32 graphs, computed in bfloat16) or "int8" (the
            quantised video graph, and FP32 graphs of all else).
        reason: Why this one.
        passed_over: What would have come first and why it was not taken, a sentence a reason; `reason` ends with them.
        plans: Folder with the TensorRT plans that run, or None for a backend that takes the ONNX files.
    """

    name: str
    device: str
    precision: str
    reason: str
    passed_over: tuple[str, ...] = ()
    plans: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} on {self.device} in {self.precision}: {self.reason}"


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """How much of a GPU a model may take.

    Attributes:
        slots: Batches in flight. With three, one is uploaded while one is computed and one is downloaded.
        device_limit_bytes: Device memory of one graph for inputs, outputs, what lies between them, and results that
            stay on the device; None for no limit. Weights, and what the libraries allocate for themselves, come on
            top.
        pinned_limit_bytes: Pinned host memory of one graph; None for no limit.
        cuda_graphs: Whether batches run as captured CUDA graphs, where the backend can.
        exhaustive_search: Whether ONNX Runtime asks cuDNN 9 for its second heuristic ("EXHAUSTIVE" is mode B, else mode
            A; https://github.com/microsoft/onnxruntime/issues/22705), which takes longer to answer. Neither times the
            algorithms, and both are asked again whenever the batch size changes.
    """

    slots: int = 3
    device_limit_bytes: int | None = None
    pinned_limit_bytes: int | None = None
    cuda_graphs: bool = True
    exhaustive_search: bool = False

    def __post_init__(self) -> None:
        for name in ("slots", "device_limit_bytes", "pinned_limit_bytes"):
            value = getattr(self, name)
            optional = name != "slots" and value is None
            if not optional and (type(value) is not int or value < 1):
                raise InputError(f"{name} is {value!r}; a whole number of at least 1 expected")


class Backend(ABC):
    """One opened graph.

    `run`, `submit` and `stream` may be called from several threads at once. A backend is a context manager; leaving
    it closes it.

    Attributes:
        name: The backend's name.
        device: "cpu", "cuda" for the first GPU, or "cuda:N".
        precision: "fp32", "fp16", "bf16" or "int8".
        graph: The graph's entry in the manifest.
        largest_batch: Rows in the largest batch that runs at once, or None where only memory bounds it. Larger ones
            are split.
        splits_itself: Whether it runs a batch of any size in bounded memory, and is the faster the larger it is.
    """

    name: str
    largest_batch: int | None = None
    splits_itself: bool = False

    def __init__(self, graph: GraphFile, *, device: str, precision: str) -> None:
        self.graph = graph
        self.device = device
        self.precision = precision
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives."""
        return self.graph.outputs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.graph}, {self.device}, {self.precision})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def run(
        self, feeds: Mapping[str, Any], *, on_device: bool = False, cuda_stream: int | None = None
    ) -> dict[str, Any]:
        """Run one batch.

        Args:
            feeds: An array for each input by name, in the dtype, rank and sizes that `inputs` says. On a GPU also
                arrays that are there already, of any library with `__cuda_array_interface__` or DLPack (PyTorch, CuPy,
                PyCUDA, JAX): C-contiguous, on this GPU; nothing of them is copied to the host.
            on_device: Leave the results on the GPU.
            cuda_stream: Handle of the caller's stream, for work that the host does not wait for: inputs are read
                after what the stream holds now, and what is enqueued on it afterwards sees the results, which stay
                on the GPU.

        Returns:
            A new array for each output by name; a `milnce.device_arrays.DeviceArray` where it stays on the GPU.

        Raises:
            InputError: if the arrays do not fit the inputs, or a CPU backend is asked for what only a GPU has.
            BackendError: if the backend is closed or the library fails; its own text is in the message.
        """

    def submit(self, feeds: Mapping[str, Any]) -> Future[dict[str, NDArray[Any]]]:
        """Start one batch and return its future. On a CPU it is done when this returns.

        On a GPU this returns when the batch is in pinned memory: the caller's arrays may be changed then. It blocks
        while every slot is in use, so that memory stays bounded. Futures cannot be cancelled; arrays on the GPU must
        live until the future is done.

        Raises:
            InputError: as `run`. What the library says when it runs the batch is in the future.
        """
        future: Future[dict[str, NDArray[Any]]] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(self.run(feeds))
        except InputError:
            raise
        except BackendError as error:
            future.set_exception(error)
        return future

    def stream(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Run batches and yield their results in order. On a GPU copies of some hide behind the compute of others.

        Args:
            batches: As `run` takes them. Taken one at a time, at most as many ahead as there are slots.

        Raises:
            InputError: as `run`.
            BackendError: as `run`, in the place of the batch that failed.
        """
        for feeds in batches:
            yield self.run(feeds)

    def close(self) -> None:
        """Free the graph. A second call does nothing."""
        self._closed = True

    def _refuse_closed(self) -> None:
        if self._closed:
            raise BackendError(f"{self.name}: {self.graph} is closed; load the model again")


class CpuBackend(Backend):
    """A graph that takes arrays of the host and gives such.

    Attributes:
        items_per_run: Largest batch the library is given at once, or None for the caller's own batch. On a CPU it is
            1 for video: measured on 2 cores with an S3D-like FP32 graph at 32x224x224, batches of 4 took 1.1 (OpenVINO)
            to 1.6 (ONNX Runtime) times as long a clip as single clips, since the activations leave the cache, and
            a batch of 8 took 1.4 GB instead of 0.4 GB.
    """

    def __init__(self, graph: GraphFile, *, precision: str) -> None:
        super().__init__(graph, device="cpu", precision=precision)
        self.items_per_run = 1 if _runs_by_item(graph.inputs) else None

    def run(
        self, feeds: Mapping[str, Any], *, on_device: bool = False, cuda_stream: int | None = None
    ) -> dict[str, Any]:
        """Run one batch of host arrays; those that are not C-contiguous are copied. See `Backend.run`."""
        self._refuse_closed()
        if on_device or cuda_stream is not None:
            raise InputError(f"{self.name} runs on the CPU: on_device and cuda_stream need a model loaded on a GPU")
        for name, array in feeds.items():
            if not isinstance(array, np.ndarray):
                raise InputError(f"{name}: a numpy.ndarray expected, {type(array).__name__} given")
        check_feeds(self.inputs, feeds)
        # The dtype is given again because byte-swapped arrays pass the check by name.
        batch = {spec.name: np.ascontiguousarray(feeds[spec.name], dtype=spec.dtype) for spec in self.inputs}
        count = len(next(iter(batch.values())))
        step = self.items_per_run or count
        if step >= count:
            return self._run_wrapped(batch)
        parts = [
            self._run_wrapped({name: array[start : start + step] for name, array in batch.items()})
            for start in range(0, count, step)
        ]
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run checked, contiguous arrays; return arrays that nothing else holds."""

    def _closed_in_use(self) -> BackendError:
        """Return the error of a run whose graph another thread closed since `run` looked."""
        return BackendError(f"{self.name}: {self.graph} was closed while in use; load the model again")

    def _run_wrapped(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            return self._run(feeds)
        except (BackendError, InputError):
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise BackendError(f"{self.name} failed to run {self.graph} with {shapes}: {error}") from error


def check_signature(name: str, graph: GraphFile, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Compare the tensor names inside an opened graph with the manifest's.

    Raises:
        BackendError: if they differ, so the file is not what the manifest says.
    """
    for kind, found, specs in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        expected = sorted(spec.name for spec in specs)
        if sorted(found) != expected:
            raise BackendError(
                f"{name}: {graph} has the {kind} {sorted(found)}, the manifest says {expected}; export the bundle again"
            )


def _runs_by_item(inputs: tuple[TensorSpec, ...]) -> bool:
    return all(len(spec.shape) == _VIDEO_RANK and spec.shape[0].accepts(1) for spec in inputs)
