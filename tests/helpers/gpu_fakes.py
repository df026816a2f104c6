"""A whole process with a simulated GPU and libraries over it, so that what needs a GPU can be tried without one.

A process whose PYTHONPATH begins with `SITE`, and then has `tests`, starts with everything in place: a driver that can
be loaded and has no functions, the CUDA binding, and what MILNCE_FAKES names of tensorrt (or tensorrt=8.5),
tensorrt_lean and onnxruntime. Of tensorrt_rtx the real one is taken, or hidden if it is not named. Nothing in milnce or
in benchmarks knows of it. What the simulation finds wrong, and what was never freed, goes into the file that
MILNCE_FAKES_VIOLATIONS names.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from helpers import fake_builder, fake_cuda, fake_onnxruntime, fake_tensorrt

if TYPE_CHECKING:
    from helpers.fake_cuda import FakeCuda

SITE = Path(__file__).parent / "gpu_fakes_site"
FAKES, VIOLATIONS = "MILNCE_FAKES", "MILNCE_FAKES_VIOLATIONS"
GPU = fake_cuda.FakeGpu(name="NVIDIA Simulated", total_bytes=512 << 20)


class _Library(ctypes.CDLL):
    """A library as ctypes loads it; instead of the driver this process itself."""

    def __init__(self, name: str | None, *options: Any, **named: Any) -> None:  # noqa: ANN401 - those of CDLL
        super().__init__(None if name == "libcuda.so.1" else name, *options, **named)


def environment(*libraries: str, violations: Path | None = None) -> dict[str, str]:
    """Return what the environment of such a process needs beside what it has."""
    root = Path(__file__).parents[2]
    paths = [SITE, *(root / name for name in ("tests", "runtime", "convert"))]
    found = {FAKES: ",".join(libraries), "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return found if violations is None else {**found, VIOLATIONS: str(violations)}


def install() -> FakeCuda | None:
    """Put the simulation in place for the life of this process, if the environment asks for it."""
    if FAKES not in os.environ:
        return None
    patch = pytest.MonkeyPatch()
    fake = fake_cuda.install(patch, policy="lazy", gpus=[GPU])
    patch.setattr(ctypes, "CDLL", _Library)
    patch.setattr("milnce.plans.find_spec", lambda _: None)  # what is really installed here
    libraries = dict(item.partition("=")[::2] for item in os.environ[FAKES].split(","))
    for name in ("tensorrt", "tensorrt_lean", "tensorrt_rtx"):
        if name in libraries and name == "tensorrt_rtx":
            import_module(name)  # the real one: it builds without a GPU, and its plans are not for this one
        elif name in libraries:
            _install_tensorrt(patch, fake, name, libraries[name] or "10")
        else:
            patch.setitem(sys.modules, name, None)  # as if it were not installed
    if "onnxruntime" in libraries:
        install_onnxruntime(patch, fake)
    if VIOLATIONS in os.environ:
        atexit.register(_report, fake, Path(os.environ[VIOLATIONS]))
    return fake


def install_onnxruntime(patch: pytest.MonkeyPatch, fake: FakeCuda) -> None:
    """Give ONNX Runtime a CUDA provider, and leave its CPU provider as it is."""
    real = onnxruntime.InferenceSession
    simulated = fake_onnxruntime.install(patch, fake)

    def session(model: bytes, options: Any = None, *, providers: list[Any], **others: Any) -> Any:  # noqa: ANN401
        kind = real if providers == [fake_onnxruntime.CPU] else simulated
        return kind(model, options, providers=providers, **others)

    patch.setattr(onnxruntime, "InferenceSession", session)


def _install_tensorrt(patch: pytest.MonkeyPatch, fake: FakeCuda, name: Any, generation: Any) -> None:  # noqa: ANN401
    """Put a TensorRT module in place; that named tensorrt can build, too."""
    module = fake_tensorrt.install(patch, fake, name, flavour=generation)
    if name == "tensorrt":
        fake_builder.add(module, generation)


def _report(fake: FakeCuda, path: Path) -> None:
    fake.finish()
    lines = [*fake.violations, *(f"{count} {name} never freed" for name, count in fake.leaks().items())]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
