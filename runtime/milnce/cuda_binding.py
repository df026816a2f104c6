"""Loads the CUDA bindings, and says in words what they answer when CUDA refuses, with what to do about it."""

from __future__ import annotations

import functools
import os
from typing import Any

from milnce.errors import CudaUnavailableError
from milnce.platforms import bindings_extra, install, jetson

# Older ones hold Python's global lock while they wait for the GPU, and raise errors of their own without a driver.
_OLDEST = (12, 9, 1)
_LOST = "the CUDA context of this process is lost: end the process and start a new one"
_CAPTURE = "a call was made that a CUDA graph cannot record: run without CUDA graphs"
# What to do, where that is known, by the name of the error.
CURES = {
    "cudaErrorMemoryAllocation": "use smaller batches, or end other programs on the GPU (nvidia-smi lists them)",
    "cudaErrorInitializationError": "CUDA does not work in a forked process; start it with the 'spawn' method",
    "cudaErrorDevicesUnavailable": "another program has the GPU for itself (nvidia-smi shows it and the compute mode)",
    "cudaErrorSystemNotReady": "this machine's fabric manager does not run (systemctl status nvidia-fabricmanager)",
    "cudaErrorSystemDriverMismatch": "the driver was updated while it ran: restart the machine",
    "cudaErrorInvalidResourceHandle": "a stream or event of another GPU or context was used; with PyCUDA, use "
    "pycuda.autoprimaryctx in place of pycuda.autoinit",
    "cudaErrorStreamCaptureUnsupported": _CAPTURE,
    "cudaErrorStreamCaptureInvalidated": _CAPTURE,
    "cudaErrorStreamCaptureImplicit": _CAPTURE,
    "cudaErrorIllegalAddress": _LOST,
    "cudaErrorLaunchTimeout": _LOST,
    "cudaErrorContextIsDestroyed": _LOST,
    "cudaErrorAssert": _LOST,
    "cudaErrorHardwareStackError": _LOST,
    "cudaErrorIllegalInstruction": _LOST,
    "cudaErrorMisalignedAddress": _LOST,
    "cudaErrorInvalidAddressSpace": _LOST,
    "cudaErrorInvalidPc": _LOST,
    "cudaErrorLaunchFailure": _LOST,
    "cudaErrorECCUncorrectable": _LOST,
}


@functools.cache  # every call asks for it
def load() -> Any:  # noqa: ANN401 - the bindings have no types
    """Return the module `cuda.bindings.runtime`.

    Raises:
        CudaUnavailableError: if it is not installed, cannot be loaded, or is too old.
    """
    try:
        from cuda import bindings  # noqa: PLC0415 - the bindings are optional
        from cuda.bindings import runtime  # noqa: PLC0415 - the bindings are optional
    except ModuleNotFoundError as error:
        raise CudaUnavailableError(
            f"the CUDA bindings (cuda-python) are not installed ({error}); {install(bindings_extra())}"
        ) from error
    except ImportError as error:
        raise CudaUnavailableError(f"the CUDA bindings are installed and do not load: {error}") from error
    if tuple(int(part) for part in bindings.__version__.split(".")[:3] if part.isdigit()) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise CudaUnavailableError(
            f"the CUDA bindings are of version {bindings.__version__}, and {oldest} is the oldest that works here; "
            f'pip install "cuda-python>={oldest}{",<13" if jetson() else ""}"'
        )
    return runtime


def load_driver() -> Any:  # noqa: ANN401 - the bindings have no types
    """Return the module `cuda.bindings.driver`, for the calls that the runtime's bindings lack.

    Raises:
        CudaUnavailableError: as `load`.
    """
    load()
    from cuda.bindings import driver  # noqa: PLC0415 - the bindings are optional

    return driver


def load_compiler() -> Any:  # noqa: ANN401 - the bindings have no types
    """Return the module `cuda.bindings.nvrtc`, its library loaded.

    Raises:
        CudaUnavailableError: if the bindings or the library are missing.
    """
    load()
    from cuda.bindings import nvrtc  # noqa: PLC0415 - the bindings are optional

    try:
        error, *_ = nvrtc.nvrtcVersion()
    except Exception as missing:  # what the bindings raise depends on their version
        text = str(missing).strip().partition("\n")[0]
        raise CudaUnavailableError(
            f"NVIDIA's run-time compiler (NVRTC) does not load: {text}; {install('nvdec')}"
        ) from missing
    if int(error) != 0:
        raise CudaUnavailableError(f"NVIDIA's run-time compiler (NVRTC) does not answer: {error.name}")
    return nvrtc


def has_context(index: int) -> bool:
    """Whether anything in this process uses a GPU, that is, whether it has its primary context. Asking makes none."""
    from cuda.bindings import driver  # noqa: PLC0415 - the runtime's own functions cannot tell

    error, device = driver.cuDeviceGet(index)
    if int(error) != 0:
        return False
    error, _, active = driver.cuDevicePrimaryCtxGetState(device)
    return int(error) == 0 and bool(active)


def failure(runtime: Any, name: str, error: Any) -> str:  # noqa: ANN401 - the bindings have no types
    """Say that the call `name` failed with `error` (cudaError_t), in the words of CUDA, and what to do.

    Args:
        runtime: The module `cuda.bindings.runtime`.
        name: Name of the function that was called.
        error: What it returned.
    """
    _, words = runtime.cudaGetErrorString(error)
    text = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
    cure = CURES.get(error.name)
    return f"{name} failed: {error.name} ({int(error)}): {text}" + (f"; {cure}" if cure else "")


def version(number: int) -> tuple[int, int]:
    """Return a version of CUDA as it writes them, 13050, as (13, 5)."""
    return number // 1000, number % 1000 // 10


def no_gpu(runtime: Any, error: Any) -> CudaUnavailableError:  # noqa: ANN401 - the bindings have no types
    """Say why there is no GPU to use, and the cure, when cudaGetDeviceCount returned `error` or no device."""
    if int(error) == 0 or error.name == "cudaErrorNoDevice":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return CudaUnavailableError("the NVIDIA driver finds no GPU; nvidia-smi -L lists those it finds")
        return CudaUnavailableError(
            f"no GPU is visible, and CUDA_VISIBLE_DEVICES is {visible!r}; unset it, or name a GPU of nvidia-smi -L"
        )
    # Both answer without a driver; a driver's version of 0 means that there is none.
    driver = version(int(runtime.cudaDriverGetVersion()[1] or 0))
    bindings = version(int(runtime.cudaRuntimeGetVersion()[1] or 0))
    if driver == (0, 0):
        return CudaUnavailableError(
            "there is no NVIDIA driver here; install it, or give the container its GPUs (docker run --gpus all)"
        )
    if error.name == "cudaErrorInsufficientDriver":
        cures = ["update the driver"] if jetson() is None else []  # a Jetson's comes with JetPack
        cures += [f'pip install "cuda-python=={driver[0]}.*"'] if driver[0] >= _OLDEST[0] else []
        return CudaUnavailableError(
            f"the NVIDIA driver runs CUDA {driver[0]}.{driver[1]} at most, and the installed CUDA bindings are for "
            f"CUDA {bindings[0]}.{bindings[1]}; {', or '.join(cures) or install('jetson')}"
        )
    return CudaUnavailableError(failure(runtime, "cudaGetDeviceCount", error))
