# ruff: noqa: N802, N803, D102  (functions and arguments have the names and the meaning of the binding's)
"""Allocations and copies of the simulated CUDA runtime."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from cuda.bindings import runtime

from helpers.fake_cuda_calls import CudaFailureError, Error, Result, api
from helpers.fake_cuda_graphs import GraphCalls
from helpers.fake_cuda_memory import AccessError, Block, Kind
from helpers.fake_cuda_streams import Node, reads, writes

if TYPE_CHECKING:
    from helpers.fake_cuda_queues import Handle

CopyKind = runtime.cudaMemcpyKind
Side = Literal["device", "host", "either"]
_SIDES: dict[int, tuple[Side, Side]] = {  # destination, source
    CopyKind.cudaMemcpyHostToHost: ("host", "host"),
    CopyKind.cudaMemcpyHostToDevice: ("device", "host"),
    CopyKind.cudaMemcpyDeviceToHost: ("host", "device"),
    CopyKind.cudaMemcpyDeviceToDevice: ("device", "device"),
    CopyKind.cudaMemcpyDefault: ("either", "either"),
}


class CopyCalls(GraphCalls):
    """Allocations and copies."""

    def __init__(self, *, pageable: Literal["staged", "forbidden"], **options: Any) -> None:  # noqa: ANN401  handed on
        super().__init__(**options)
        self.pageable = pageable
        self.pageable_copies = 0

    @api(2)
    def cudaMemGetInfo(self) -> Result:
        total = self.memory.total_bytes[self.device]
        return (total - self.memory.used_bytes[self.device], total)

    @api(1, unsafe=True)
    def cudaMalloc(self, size: int) -> Result:
        return (self._allocate(Kind.DEVICE, int(size)),)

    @api(1, unsafe=True)
    def cudaHostAlloc(self, size: int, flags: int) -> Result:
        del flags
        return (self._allocate(Kind.PINNED, int(size)),)

    @api(1, unsafe=True)
    def cudaMallocHost(self, size: int) -> Result:
        return (self._allocate(Kind.PINNED, int(size)),)

    @api(unsafe=True, anyway=True)
    def cudaFree(self, devPtr: int) -> Result:
        self._free(Kind.DEVICE, int(devPtr))
        return ()

    @api(unsafe=True, anyway=True)
    def cudaFreeHost(self, ptr: int) -> Result:
        self._free(Kind.PINNED, int(ptr))
        return ()

    def _allocate(self, kind: Kind, nbytes: int) -> int:
        if nbytes == 0:
            return 0
        pointer = self.memory.allocate(kind, self.device, nbytes)
        if pointer is None:
            raise CudaFailureError(Error.cudaErrorMemoryAllocation)
        return pointer

    def _free(self, kind: Kind, pointer: int) -> None:
        if pointer == 0:
            return
        block = self.memory.free(kind, pointer)
        if block is None:
            raise CudaFailureError(Error.cudaErrorInvalidValue)
        self.violations.extend(
            f"{kind.value} memory {pointer:#x} was freed, and nothing has waited for {label}, which uses it"
            for label in self._scheduler.unfinished(pointer, block.nbytes)
        )

    @api(1)
    def cudaPointerGetAttributes(self, ptr: int) -> Result:
        found = runtime.cudaPointerAttributes()
        block = self.memory.find(int(ptr))
        if block is None or not block.live:
            found.type, found.device, found.hostPointer = (
                runtime.cudaMemoryType.cudaMemoryTypeUnregistered,
                -2,
                int(ptr),
            )
        elif block.kind is Kind.PINNED:
            found.type, found.device, found.hostPointer = (
                runtime.cudaMemoryType.cudaMemoryTypeHost,
                block.device,
                int(ptr),
            )
        else:
            found.type, found.device, found.devicePointer = (
                runtime.cudaMemoryType.cudaMemoryTypeDevice,
                block.device,
                int(ptr),
            )
        return (found,)

    # Copies

    @api()
    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: Handle) -> Result:
        self._copy(int(dst), int(src), int(count), int(kind), stream)
        return ()

    @api()
    def cudaMemcpy(self, dst: int, src: int, count: int, kind: int) -> Result:
        self._copy(int(dst), int(src), int(count), int(kind), 0)
        self.wait_for_stream(self.stream_of(0))
        return ()

    @api()
    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Handle) -> Result:
        pointer, nbytes, label = int(devPtr), int(count), "cudaMemsetAsync"
        self._side(pointer, nbytes, "device", f"{label} destination")

        def fill() -> None:
            self.memory.view(pointer, nbytes, label)[:] = int(value) & 0xFF

        self.enqueue(self.stream_of(stream), Node(label, fill, (writes(pointer, nbytes),)))
        return ()

    def _copy(self, dst: int, src: int, count: int, kind: int, handle: Handle) -> None:
        stream, sides, label = self.stream_of(handle), _SIDES.get(kind), f"copy of {count} bytes {src:#x} -> {dst:#x}"
        if sides is None:
            raise CudaFailureError(Error.cudaErrorInvalidMemcpyDirection)
        to = self._side(dst, count, sides[0], f"{label}, destination")
        source = self._side(src, count, sides[1], f"{label}, source")
        if to is None or source is None:
            self.pageable_copies += 1
            if stream.capture is not None:
                stream.capture.invalid = True
                raise CudaFailureError(Error.cudaErrorStreamCaptureUnsupported)
            if self.pageable == "forbidden":
                self.violations.append(f"{label} has a host side that is not pinned")
        staged = np.frombuffer(ctypes.string_at(src, count), np.uint8) if source is None else None

        def copy() -> None:
            data = self.memory.view(src, count, f"{label}, source") if staged is None else staged
            if to is None:
                ctypes.memmove(dst, data.tobytes(), count)
            else:
                self.memory.view(dst, count, f"{label}, destination")[:] = data

        accesses = [reads(src, count)] if source is not None else []
        accesses += [writes(dst, count)] if to is not None else []
        self.enqueue(stream, Node(label, copy, tuple(accesses)))
        if to is None:
            self.wait_for_stream(stream)

    def _side(self, pointer: int, nbytes: int, side: Side, what: str) -> Block | None:
        """Return the allocation of one side of a copy; None for pageable host memory."""
        block = self.memory.find(pointer)
        if block is None and side != "device":
            return None
        block = self.memory.check(pointer, nbytes, what)
        if side != "either" and (block.kind is Kind.DEVICE) != (side == "device"):
            self.violations.append(f"{what}: {pointer:#x} is {block.kind.value} memory, the copy says {side}")
            raise AccessError(what)
        return block
