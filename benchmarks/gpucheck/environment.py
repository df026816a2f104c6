"""The part that says what the host is: GPU, driver, libraries and their versions, and why each other one is absent."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.record import ABSENT, PASSED
from helpers.gpu_parts import PARTS, find_parts
from milnce.cuda import gpus

if TYPE_CHECKING:
    from gpucheck.record import Recorder
    from gpucheck.settings import Settings

_PACKAGES = (
    *("numpy", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-lean", "tensorrt-rtx", "cuda-python", "cuda-bindings"),
    *("cuda-core", "cupy-cuda12x", "cupy-cuda13x", "pycuda", "pytest", "pytest-timeout"),
    *("nvidia-cudnn-cu11", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas"),
)
_SMI_FIELDS = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
_CUDNN_LIBRARIES = ("libcudnn.so.9", "libcudnn.so.8")
_SMI_S = 20


def run(_: Settings, record: Recorder) -> None:
    """Write down the GPU, then part by part what can be used; a library that ends the process is the last one named."""
    for name in PARTS:
        record.start(name)
        (part,) = find_parts([name]).values()
        record.add("part", name, PASSED if part.present else ABSENT, part.problem or "", version=part.version)
        if name == "cuda":
            if not part.present:
                return
            _describe(record)
    with record.guarded("cudnn", "cudnn"):
        record.add("cudnn", "cudnn", PASSED, version=_cudnn())


def _describe(record: Recorder) -> None:
    with record.guarded("gpu", "gpu"):
        found = gpus()
        record.add("gpu", "gpu", PASSED, count=len(found), driver=_driver(), smi=smi(), **asdict(found[0]))
    with record.guarded("versions", "versions"):
        record.add("versions", "versions", PASSED, packages=_versions())


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # noqa: PERF203 - absent ones are the rule
            continue
    return found


def _driver() -> str | None:
    """Return the kernel driver's version, as nvidia-smi or /proc says it."""
    answer = smi()
    if answer:
        return answer["driver_version"]
    version = Path("/proc/driver/nvidia/version")
    return version.read_text("utf-8").splitlines()[0] if version.exists() else None


def smi() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU; empty if it is not there or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader", "--id=0"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in result.stdout.strip().split(",")]
    return dict(zip(_SMI_FIELDS, values, strict=True)) if len(values) == len(_SMI_FIELDS) else {}


def _cudnn() -> str | None:
    """Return the version of cuDNN that PyTorch brings, or else the one on the loader's path."""
    try:
        import torch  # noqa: PLC0415 - where it is installed

        cudnn: Any = torch.backends.cudnn
        number = cudnn.version()
    except (ImportError, AttributeError):
        number = None
    for library in _CUDNN_LIBRARIES:
        if number is None:
            try:
                number = ctypes.CDLL(library).cudnnGetVersion()
            except (OSError, AttributeError):
                continue
    if number is None:
        return None
    scale = 10_000 if number >= 90_000 else 1_000  # noqa: PLR2004 - cuDNN 9 has one digit more
    return f"{number // scale}.{number % scale // 100}.{number % 100}"
