# ruff: noqa: N802, N815  (functions and arguments have the names and the meaning of the bindings')
"""Stand-ins for NVRTC and for the driver's calls that load and launch kernels: the picture kernel runs on the host.

What NVRTC makes of a source is the source, so what is launched is what was handed in: `helpers.host_kernel` compiles
and runs it, in its stream's turn, on the memory of a simulated GPU.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from helpers.fake_cuda import reads, writes
from helpers.host_kernel import launcher
from milnce import cuda_kernels
from milnce.video.nvdec_picture import KERNEL, Picture

if TYPE_CHECKING:
    import pytest

    from helpers.fake_cuda import FakeCuda


class Status(IntEnum):
    """Errors of either, by the names that the bindings give them."""

    SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    NVRTC_ERROR_COMPILATION = 6
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_NOT_FOUND = 500


Answer = tuple[Any, ...]


class FakeCompiler:
    """NVRTC: hands the source through as the image, so that what is loaded is what was written."""

    def __init__(self, archs: tuple[int, ...] = (75, 80, 90), refuse: str | None = None) -> None:
        self.archs, self.refuse = archs, refuse
        self.options: list[bytes] = []
        self.alive: set[int] = set()
        self._sources: dict[int, bytes] = {}

    def nvrtcGetSupportedArchs(self) -> Answer:
        """Return the architectures."""
        return Status.SUCCESS, list(self.archs)

    def nvrtcCreateProgram(
        self, src: bytes, name: bytes, count: int, headers: list[bytes], names: list[bytes]
    ) -> Answer:
        """Take a source."""
        assert (count, headers, names) == (0, [], [])
        assert name.endswith(b".cu")
        program = len(self._sources)
        self._sources[program] = src
        self.alive.add(program)
        return Status.SUCCESS, program

    def nvrtcCompileProgram(self, program: int, count: int, options: list[bytes]) -> Answer:
        """Note the options."""
        assert count == len(options)
        assert program in self.alive
        self.options = options
        return (Status.SUCCESS if self.refuse is None else Status.NVRTC_ERROR_COMPILATION,)

    def nvrtcGetProgramLogSize(self, program: int) -> Answer:
        """Return the length of the compiler's words."""
        assert program in self.alive
        return Status.SUCCESS, len(self.refuse or "") + 1

    def nvrtcGetProgramLog(self, program: int, log: bytes) -> Answer:
        """Write the compiler's words."""
        assert program in self.alive
        return self._write(log, (self.refuse or "").encode() + b"\0")

    def nvrtcGetCUBINSize(self, program: int) -> Answer:
        """Return the image's length."""
        return Status.SUCCESS, len(self._sources[program])

    def nvrtcGetCUBIN(self, program: int, cubin: bytes) -> Answer:
        """Write the image."""
        return self._write(cubin, self._sources[program])

    nvrtcGetPTXSize, nvrtcGetPTX = nvrtcGetCUBINSize, nvrtcGetCUBIN

    def nvrtcDestroyProgram(self, program: int) -> Answer:
        """Forget a source."""
        self.alive.remove(program)
        return (Status.SUCCESS,)

    @staticmethod
    def _write(into: bytes, data: bytes) -> Answer:
        assert len(into) == len(data)
        # Into an object that may not change, as the bindings do it: past its header of 32 bytes.
        ctypes.memmove(id(into) + bytes.__basicsize__ - 1, data, len(data))
        return (Status.SUCCESS,)


class FakeDriver:
    """The calls of `cuda.bindings.driver` that load and launch kernels; they run on the host, when their turn comes."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.launches: list[tuple[Any, ...]] = []
        self.modules: list[str] = []
        self.failure: Status | None = None

    def cuModuleLoadData(self, image: int) -> Answer:
        """Load the image at an address: a source, up to its end mark."""
        self.modules.append(ctypes.string_at(image).decode())
        return Status.SUCCESS, len(self.modules) - 1

    def cuModuleGetFunction(self, module: int, name: bytes) -> Answer:
        """Return a function by its name."""
        if f"void {name.decode()}(" not in self.modules[module]:
            return Status.CUDA_ERROR_NOT_FOUND, None
        return Status.SUCCESS, (module, name.decode())

    def cuGetErrorString(self, status: Status) -> Answer:
        """Return an error's words."""
        return Status.SUCCESS, f"the words for {status.name}".encode()

    def cuLaunchKernel(self, function: tuple[int, str], *sizes_and_rest: int) -> Answer:
        """Queue a kernel: a grid and a block, shared memory, the stream, the arguments' addresses, nothing extra."""
        *sizes, shared, stream, parameters, extra = sizes_and_rest
        assert len(sizes) == 6
        assert sizes[2] == sizes[5] == 1
        assert shared == extra == 0
        if self.failure is not None:
            return (self.failure,)
        module, name = function
        assert name == KERNEL
        address = ctypes.c_void_p.from_address(parameters).value
        assert address is not None
        picture = Picture.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Picture)))
        self.launches.append((tuple(sizes), int(stream)))
        run = launcher(self.modules[module])

        def work() -> None:
            run(picture, (sizes[0], sizes[1]), (sizes[3], sizes[4]))

        self.cuda.launch(stream, work, accesses=self._accesses(picture), label=name)
        return (Status.SUCCESS,)

    def _accesses(self, picture: Picture) -> list[Any]:
        tables = [getattr(picture, axis) for axis in ("luma_y", "luma_x", "chroma_y", "chroma_x")]
        found = []
        parts = [part for axis in tables for part in (axis.first, axis.weights)]
        for pointer in (picture.luma, picture.chroma, *parts):
            block = self.cuda.memory.find(pointer)
            assert block is not None, f"the kernel reads at {pointer:#x}, which is no device memory"
            found.append(reads(block.pointer, block.nbytes))
        return [*found, writes(picture.out, 3 * picture.size**2)]


def install(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> tuple[FakeCompiler, FakeDriver]:
    """Put them in place of NVRTC and the driver."""
    compiler, driver = FakeCompiler(), FakeDriver(cuda)
    monkeypatch.setattr(cuda_kernels, "compiler", lambda: compiler)
    monkeypatch.setattr(cuda_kernels, "driver", lambda: driver)
    monkeypatch.setattr(cuda_kernels, "_LOADED", {})
    return compiler, driver
