"""Backends: which there are, what this machine can run, and which one a bundle gets and why."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from milnce.backends.base import Availability, Backend, BackendChoice
from milnce.errors import BackendUnavailableError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.manifest import GraphFile

__all__ = [
    "BACKENDS",
    "DEVICES",
    "PRECISIONS",
    "Availability",
    "Backend",
    "BackendChoice",
    "available",
    "open_graph",
    "select",
]

# Fastest first, of those that compute exactly: measured on CPUs, see benchmarks/.
BACKENDS = ("openvino", "onnxruntime")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "fp16", "bf16")


def available() -> list[Availability]:
    """Say what each backend can do on this machine, in the order in which "auto" tries them."""
    return [_module(name).probe() for name in BACKENDS]


def select(backend: str = "auto", device: str = "auto", precision: str | None = None) -> BackendChoice:
    """Choose the backend.

    Args:
        backend: A name of `BACKENDS`, or "auto" for the first that can do what is asked.
        device: "cpu", "cuda", or "auto", which is the CPU: a GPU is used when asked for.
        precision: "fp32" (also if None), "fp16" for the bundle's FP16 graphs, or "bf16" for its FP32 graphs computed
            in bfloat16 where the CPU can. Nothing but "fp32" is taken unasked.

    Raises:
        InputError: if `device` or `precision` is no such name.
        BackendUnavailableError: if nothing here can do it; the message says what was asked, what is available and
            what to install.
    """
    if device not in ("auto", *DEVICES):
        raise InputError(f"device {device!r} given; devices are auto, {', '.join(DEVICES)}")
    if precision not in (None, *PRECISIONS):
        raise InputError(f"precision {precision!r} given; precisions are {', '.join(PRECISIONS)}")
    if backend not in ("auto", *BACKENDS):
        raise BackendUnavailableError(f"backend {backend!r} asked for; backends are auto, {', '.join(BACKENDS)}")
    wanted_device = "cpu" if device == "auto" else device
    wanted_precision = precision or "fp32"
    passed_over: list[str] = []
    for name in BACKENDS if backend == "auto" else (backend,):
        found: Availability = _module(name).probe()
        obstacle = _obstacle(found, wanted_device, wanted_precision)
        if obstacle is None:
            reason = _reason(found, backend, device, precision)
            return BackendChoice(name, wanted_device, wanted_precision, reason, tuple(passed_over))
        passed_over.append(f"{name}: {obstacle}")
    asked = f"backend {backend}, device {wanted_device}, precision {wanted_precision}"
    others = "; ".join(str(found) for found in available() if found.usable) or 'none; pip install "milnce[onnxruntime]"'
    raise BackendUnavailableError(f"{asked} cannot be had here. {'; '.join(passed_over)}. Available: {others}")


def open_graph(choice: BackendChoice, model: bytes, graph: GraphFile, *, threads: int | None = None) -> Backend:
    """Open a graph in the chosen backend.

    Args:
        choice: What `select` gave.
        model: The ONNX file's content, checked against the manifest.
        graph: Its entry in the manifest.
        threads: Threads for one run; None for every core.

    Raises:
        BackendError: if the backend refuses the graph.
    """
    opened: Backend = _module(choice.name).open_graph(
        model, graph, device=choice.device, precision=choice.precision, threads=threads
    )
    return opened


def _module(name: str) -> Any:  # noqa: ANN401 - a module with `probe` and `open_graph`
    return import_module(f"milnce.backends.{name}")


def _obstacle(found: Availability, device: str, precision: str) -> str | None:
    """Return why `found` cannot do what is asked, with the cure, or None if it can."""
    if found.problem is not None:
        return found.problem
    if device not in found.devices:
        cure = ""
        if device == "cuda" and found.name == "onnxruntime":
            cure = "; install: pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        return f"it runs on {_listed(found.devices)} here, not on {device}{cure}"
    if precision not in found.precisions:
        return f"it computes in {_listed(found.precisions)} here, not in {precision}"
    return None


def _reason(found: Availability, backend: str, device: str, precision: str | None) -> str:
    label = f"version {found.version}, "
    if backend != "auto":
        return f"{label}asked for by name"
    if precision is None and device == "auto":
        return f"{label}the fastest exact backend on this machine"
    return f"{label}the fastest on this machine for what was asked"


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items) or "nothing"
