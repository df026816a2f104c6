"""Kernels of milnce's own: compiled for the GPU in use by NVIDIA's run-time compiler (NVRTC), and launched.

A kernel is compiled once a process and GPU and stays loaded, as the primary context does.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

from milnce.cuda_binding import load_compiler, load_driver
from milnce.errors import CudaError

if TYPE_CHECKING:
    from milnce.cuda import Cuda, Stream

_LOCK = threading.Lock()
_LOADED: dict[tuple[int, str, str], Kernel] = {}


def driver() -> Any:  # noqa: ANN401 - the module has no types
    """Return the module `cuda.bindings.driver`.

    Raises:
        CudaUnavailableError: if the bindings are missing.
    """
    return load_driver()


def compiler() -> Any:  # noqa: ANN401 - the module has no types
    """Return the module `cuda.bindings.nvrtc`.

    Raises:
        CudaUnavailableError: if the bindings or the library are missing.
    """
    return load_compiler()


class Kernel:
    """A kernel that is loaded on a GPU and takes one structure."""

    def __init__(self, cuda: Cuda, module: Any, function: Any) -> None:  # noqa: ANN401 - the bindings have no types
        self._cuda = cuda
        self._module = module
        self._function = function

    def launch(self, stream: Stream, argument: ctypes.Structure, grid: tuple[int, int], block: tuple[int, int]) -> None:
        """Enqueue it in a stream.

        Args:
            stream: The stream.
            argument: What the kernel takes; copied before this returns.
            grid: Blocks along x and y.
            block: Threads of a block along x and y.

        Raises:
            CudaError: if the launch is refused, or work before it failed.
        """
        self._cuda.activate()
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        sizes = (*grid, 1, *block, 1)
        _call("cuLaunchKernel", self._function, *sizes, 0, stream.handle, ctypes.addressof(arguments), 0)


def kernel(cuda: Cuda, source: str, name: str) -> Kernel:
    """Compile a kernel and load it, or return it if it is loaded on this GPU.

    Args:
        cuda: The GPU.
        source: CUDA C++ without includes.
        name: The name of a function that is `extern "C" __global__`.

    Raises:
        CudaUnavailableError: if NVRTC is missing.
        CudaError: if it does not compile, or the driver does not load it.
    """
    key = (cuda.info.index, name, source)
    with _LOCK:
        if key not in _LOADED:
            image = ctypes.create_string_buffer(compiled(source, cuda.info.compute_capability))
            cuda.activate()  # its primary context is what the module is loaded into
            module = _call("cuModuleLoadData", ctypes.addressof(image))
            _LOADED[key] = Kernel(cuda, module, _call("cuModuleGetFunction", module, name.encode()))
        return _LOADED[key]


def compiled(source: str, capability: tuple[int, int]) -> bytes:
    """Compile CUDA C++ for a GPU: to its own instructions, or for one newer than NVRTC, to what its driver compiles.

    Raises:
        CudaUnavailableError: if NVRTC is missing.
        CudaError: if it does not compile; with the compiler's words.
    """
    nvrtc = compiler()
    wanted = capability[0] * 10 + capability[1]
    known = sorted(int(number) for number in _compile("nvrtcGetSupportedArchs")[-1])
    own = wanted in known
    at_most = max((number for number in known if number <= wanted), default=wanted)
    (program,) = _compile("nvrtcCreateProgram", source.encode(), b"milnce.cu", 0, [], [])
    try:
        options = [f"--gpu-architecture={'sm' if own else 'compute'}_{at_most}".encode(), b"--std=c++17"]
        error, *_ = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(error) != 0:
            raise CudaError(f"nvrtcCompileProgram failed: {error.name}: {_text(program, 'ProgramLog')}")
        return _bytes(program, "CUBIN" if own else "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(program: Any, what: str) -> str:  # noqa: ANN401 - the bindings have no types
    return _bytes(program, what).rstrip(b"\0 ").decode(errors="replace")


def _bytes(program: Any, what: str) -> bytes:  # noqa: ANN401 - the bindings have no types
    (size,) = _compile(f"nvrtcGet{what}Size", program)
    filled: bytes = b" " * int(size)  # written in place: this is how the bindings take it
    _compile(f"nvrtcGet{what}", program, filled)
    return filled


def _compile(name: str, *args: Any) -> tuple[Any, ...]:  # noqa: ANN401 - each call has types of its own
    error, *values = getattr(compiler(), name)(*args)
    if int(error) != 0:
        raise CudaError(f"{name} failed: {error.name}")
    return tuple(values)


def _call(name: str, *args: Any) -> Any:  # noqa: ANN401 - each call has types of its own
    """Call a function of the driver; return its value, if it has one."""
    error, *values = getattr(driver(), name)(*args)
    if int(error) != 0:
        _, words = driver().cuGetErrorString(error)
        text = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
        raise CudaError(f"{name} failed: {error.name} ({int(error)}): {text}")
    return values[0] if values else None
