"""Which graphs of a bundle can run on which backend here, and how they are opened."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milnce.backends import select
from milnce.bundle import Bundle
from milnce.model import Model
from milnce_convert.parity import FP16_GATE, FP32_GATE, Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gpucheck.settings import Settings, Subject
    from milnce.backends import Backend, CudaOptions

GATES = {"fp32": FP32_GATE, "fp16": FP16_GATE}
# The parts of a host that run each backend on its GPU.
RUNNERS = {"tensorrt": ("tensorrt", "tensorrt_lean"), "onnxruntime": ("onnxruntime",)}


@dataclass(frozen=True)
class Candidate:
    """One graph in one backend.

    Attributes:
        backend: "tensorrt" or "onnxruntime".
        precision: "fp32" or "fp16".
        module: "video" or "text".
        form: The graph's input form.
    """

    backend: str
    precision: str
    module: str
    form: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision} {self.module} {self.form}"

    @property
    def gate(self) -> Gate:
        """What its outputs are held to."""
        return GATES[self.precision]


def candidates(bundle: Bundle, present: tuple[str, ...], *, modules: tuple[str, ...]) -> list[Candidate]:
    """Return what can be run here: FP16 first, then FP32, and TensorRT before ONNX Runtime."""
    backends = [name for name, parts in RUNNERS.items() if set(parts) & set(present)]
    graphs = sorted(bundle.manifest.graphs, key=lambda graph: (graph.precision, graph.input_form != "uint8"))
    return [
        Candidate(backend, graph.precision, graph.module, graph.input_form)
        for graph in graphs
        for backend in backends
        if graph.module in modules
    ]


def plans_of(settings: Settings, subject: Subject) -> Path:
    """Return the folder of a bundle's plans."""
    return settings.plans / subject.name


@contextmanager
def opened(
    settings: Settings, subject: Subject, candidate: Candidate, *, cuda: CudaOptions | None = None
) -> Iterator[Backend]:
    """Load the candidate on the GPU and yield what runs it; refuses another backend than the one that was asked."""
    with opened_model(settings, subject, candidate, cuda=cuda) as model:
        yield model.open(candidate.module, input_form=candidate.form)


@contextmanager
def opened_model(
    settings: Settings, subject: Subject, candidate: Candidate, *, cuda: CudaOptions | None = None
) -> Iterator[Model]:
    """As `opened`, and yield the model."""
    bundle = Bundle.open(subject.path)
    plans = plans_of(settings, subject) if candidate.backend == "tensorrt" else None
    # Not through milnce.load, which asks for plans of both towers: here each is a candidate of its own.
    choice = select(candidate.backend, "cuda", candidate.precision, bundle=bundle, plans=plans, modules=())
    with Model(bundle, choice, cuda=cuda) as model:
        backend = model.open(candidate.module, input_form=candidate.form)
        found = (model.backend.name, backend.device.partition(":")[0], backend.precision)
        if found != (candidate.backend, "cuda", candidate.precision):
            raise RuntimeError(f"{candidate} was asked for and {found} runs")
        yield model
