"""What a GPU host has of everything milnce can use on it, and why it lacks the rest.

Needs nothing but milnce and NumPy, so that a host with one library installed can say so. A part counts as present
when it could run something on the GPU: importable, and with a device under it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from milnce.backends.onnxruntime import cuda_cure, probe
from milnce.errors import CudaUnavailableError
from milnce.plans import install_command
from milnce.platforms import install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True)
class Part:
    """One part of a GPU host.

    Attributes:
        name: Its name, as tests ask for it: "cuda", "tensorrt", "torch" and so on.
        version: Its version, or None if it is not installed.
        problem: Why it cannot be used and what would cure that, or None if it can.
    """

    name: str
    version: str | None
    problem: str | None = None

    @property
    def present(self) -> bool:
        """Whether something can run with it here."""
        return self.problem is None


def find_parts(names: Iterable[str] | None = None) -> dict[str, Part]:
    """Look for the parts named, or for all. Imports what it finds; never raises."""
    return {name: _find(name) for name in (PARTS if names is None else names)}


def missing(parts: Iterable[Part]) -> list[str]:
    """Return one sentence for each part that is absent."""
    return [f"{part.name}: {part.problem}" for part in parts if not part.present]


def _find(name: str) -> Part:
    module, distribution, install, check = _PROBES[name]
    version = None
    try:
        if not _is_installed(module):
            return Part(name, None, f"not installed; {install}")
        loaded = import_module(module)
        version = _version(loaded, distribution)
        problem = check(loaded)
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything; all of it is reported
        return Part(name, version, f"installed but does not load: {type(error).__name__}: {error}")
    return Part(name, version, problem)


def _is_installed(module: str) -> bool:
    if sys.modules.get(module) is not None:
        return True
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it would be in
        return False


def _version(loaded: Any, distribution: str) -> str | None:  # noqa: ANN401 - any module
    if hasattr(loaded, "__version__"):
        return str(loaded.__version__)
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cuda(module: Any) -> str | None:  # noqa: ANN401 - milnce.cuda
    try:
        module.gpus()
    except CudaUnavailableError as error:
        return str(error)
    return None


def _runs_plans(module: Any) -> str | None:  # noqa: ANN401 - a TensorRT module
    return None if hasattr(module, "Runtime") else "installed, but has no Runtime: its libraries are missing"


def _onnxruntime(module: Any) -> str | None:  # noqa: ANN401 - onnxruntime
    providers = module.get_available_providers()
    if "CUDAExecutionProvider" in providers:
        # Built for CUDA, which is not yet able to run: its libraries may be missing.
        return probe().gpu_problem
    return f"has the providers {', '.join(providers)} and not CUDAExecutionProvider; {cuda_cure()}"


def _torch(module: Any) -> str | None:  # noqa: ANN401 - torch
    if module.cuda.is_available():
        return None
    built = module.version.cuda
    return "built without CUDA" if built is None else f"built for CUDA {built} but finds no GPU it can use"


def _cupy(module: Any) -> str | None:  # noqa: ANN401 - cupy
    return None if module.cuda.runtime.getDeviceCount() else "finds no GPU"


def _pycuda(module: Any) -> str | None:  # noqa: ANN401 - pycuda.driver
    module.init()
    return None if module.Device.count() else "finds no GPU"


def _nvdec(module: Any) -> str | None:  # noqa: ANN401 - milnce.video.nvdec
    found: str | None = module.problem()
    return found


def _always(_: Any) -> str | None:  # noqa: ANN401 - any module
    return None


_PROBES: dict[str, tuple[str, str, str, Callable[[Any], str | None]]] = {
    # Module, distribution that knows the version if the module does not, what installs it, what it lacks to be of use.
    "cuda": ("milnce.cuda", "cuda-bindings", "", _cuda),
    "tensorrt": ("tensorrt", "tensorrt", install_command("tensorrt"), _runs_plans),
    "tensorrt_lean": ("tensorrt_lean", "tensorrt_lean", install_command("tensorrt_lean"), _runs_plans),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx", install_command("tensorrt_rtx"), _runs_plans),
    "onnxruntime": ("onnxruntime", "onnxruntime", install("cuda"), _onnxruntime),
    "torch": ("torch", "torch", "pip install torch", _torch),
    "cupy": ("cupy", "cupy", "pip install cupy-cuda13x", _cupy),
    "pycuda": ("pycuda.driver", "pycuda", "pip install pycuda", _pycuda),
    "nvdec": ("milnce.video.nvdec", "PyNvVideoCodec", "", _nvdec),
    "onnx": ("onnx", "onnx", 'pip install "milnce[convert]"', _always),
}
PARTS = tuple(_PROBES)
