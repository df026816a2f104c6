"""What every backend is: it takes one ONNX graph, says its inputs and outputs, runs batches, closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import BackendError, InputError
from milnce.specs import check_feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from milnce.manifest import GraphFile
    from milnce.specs import TensorSpec

# Rank of the video input. See `Backend.items_per_run`.
_VIDEO_RANK = 5


@dataclass(frozen=True, slots=True)
class Availability:
    """What one backend can do on this machine.

    Attributes:
        name: The backend's name, as in `milnce.load(backend=...)`.
        version: Version of the library, or None if it is not installed.
        devices: Devices it can run on, such as ("cpu",); empty if none.
        precisions: Precisions it can run, such as ("fp32", "fp16", "bf16").
        problem: Why it cannot be used and how to cure that, or None if it can.
    """

    name: str
    version: str | None
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def usable(self) -> bool:
        """Whether the backend can run anything here."""
        return self.problem is None and bool(self.devices)

    def __str__(self) -> str:
        label = self.name if self.version is None else f"{self.name} {self.version}"
        if self.problem is not None:
            return f"{label}: {self.problem}"
        return f"{label}: {', '.join(self.devices)} in {', '.join(self.precisions)}"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """Which backend runs, where, in which precision, and why. `str()` of it is a sentence.

    Attributes:
        name: The backend.
        device: "cpu" or "cuda".
        precision: "fp32", "fp16" (the FP16 graphs) or "bf16" (the FP32 graphs, computed in bfloat16).
        reason: Why this one.
        passed_over: What would have come first and why it was not taken, one sentence each.
    """

    name: str
    device: str
    precision: str
    reason: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        sentence = f"{self.name} on {self.device} in {self.precision}: {self.reason}"
        if self.passed_over:
            sentence += f"; passed over: {'; '.join(self.passed_over)}"
        return sentence


class Backend(ABC):
    """One opened graph.

    `run` may be called from several threads at once. A backend is a context manager; leaving it closes it.

    Attributes:
        name: The backend's name.
        device: "cpu" or "cuda".
        precision: "fp32", "fp16" or "bf16".
        graph: The graph's entry in the manifest.
        items_per_run: Largest batch the library is given at once, or None for the caller's own batch. On a CPU it is
            1 for video: measured on 2 cores with an S3D-like FP32 graph at 32x224x224, batches of 4 took 1.1 (OpenVINO)
            to 1.6 (ONNX Runtime) times as long a clip as single clips, since the activations leave the cache, and
            a batch of 8 took 1.4 GB instead of 0.4 GB.
    """

    name: str

    def __init__(self, graph: GraphFile, *, device: str, precision: str) -> None:
        self.graph = graph
        self.device = device
        self.precision = precision
        self.items_per_run = 1 if device == "cpu" and _runs_by_item(graph.inputs) else None
        self._closed = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the graph takes."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the graph gives."""
        return self.graph.outputs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.graph}, {self.device}, {self.precision})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch.

        Args:
            feeds: An array for each input by name, in the dtype, rank and sizes that `inputs` says. Arrays that
                are not C-contiguous are copied.

        Returns:
            A new array for each output by name.

        Raises:
            InputError: if the arrays do not fit the inputs.
            BackendError: if the backend is closed or the library fails; its own text is in the message.
        """
        if self._closed:
            raise BackendError(f"{self.name}: {self.graph} is closed; load the model again")
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

    def close(self) -> None:
        """Free the graph. A second call does nothing."""
        self._closed = True

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run checked, contiguous arrays; return arrays that nothing else holds."""

    def _run_wrapped(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            return self._run(feeds)
        except BackendError:
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
