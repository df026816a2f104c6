# ruff: noqa: N802, D102  (functions and arguments have the names and the meaning of the binding's)
"""A stand-in for `cuda.bindings.runtime` that simulates GPUs, to find out what code does to memory and streams.

Put it in place with `install(monkeypatch, policy="lazy")`. It answers as the binding does: a tuple of an error and the
values, with None for the values after an error. What it finds wrong stands in `violations`: use after free, ranges
outside an allocation, double frees, races, memory freed under queued work, dead handles. `leaks()` tells what is still
allocated. A test ends with `fake.check()`, which asserts that there is nothing of either.

Stricter than hardware on purpose: cudaFree does not wait for the device (the documentation says it "may"), and a
pageable host address in a capture is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cuda.bindings import runtime

from helpers.fake_cuda_calls import Call, CudaFailureError, Error, FakeGpu, Result, api
from helpers.fake_cuda_copies import CopyCalls
from helpers.fake_cuda_memory import POISON, Kind
from helpers.fake_cuda_streams import Access, Node, exclusive, reads, writes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import SupportsInt

    import pytest

    from helpers.fake_cuda_calls import Driver
    from helpers.fake_cuda_memory import Bytes
    from helpers.fake_cuda_streams import Policy

    Handle = SupportsInt

__all__ = ["POISON", "Access", "Call", "FakeCuda", "FakeGpu", "exclusive", "install", "reads", "writes"]

_OLD_DRIVER, _NEW_DRIVER, _RUNTIME = 11040, 13000, 13000


class FakeCuda(CopyCalls):
    """Simulated GPUs.

    Args:
        policy: when queued work runs: "eager", "lazy" (only what a synchronisation needs) or "random".
        seed: of the "random" policy.
        gpus: the GPUs of the machine.
        driver: "absent", "old" and "no device" make every call fail as on such a machine.
        pinned_limit_bytes: how much host memory can be pinned.
        pageable: what a copy from or to host memory that is not pinned does: "staged" copies as CUDA does (the host
            waits for a download; an upload is read at the call), "forbidden" reports it.

    Attributes:
        calls: every call, in order; `counts` by name.
        violations: what was done wrong, in words.
        memory: its `allocations` and `frees` count by kind ("device", "pinned").
        pageable_copies: how many copies had a host side that was not pinned.
        contexts: the GPUs that have a primary context; cudaSetDevice makes it.
    """

    def __init__(
        self,
        *,
        policy: Policy = "eager",
        seed: int = 0,
        gpus: Sequence[FakeGpu] = (FakeGpu(),),
        driver: Driver = "present",
        pinned_limit_bytes: int | None = None,
        pageable: Literal["staged", "forbidden"] = "staged",
    ) -> None:
        super().__init__(
            policy=policy,
            seed=seed,
            gpus=gpus,
            driver=driver,
            pinned_limit_bytes=pinned_limit_bytes,
            pageable=pageable,
        )
        self.contexts: set[int] = set()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  enums, structs and constants of the real binding
        value = getattr(runtime, name, None)
        if isinstance(value, type | int):
            return value
        raise AttributeError(f"the simulated CUDA runtime has no {name}: add it to helpers/fake_cuda.py")

    # For tests

    def view(self, pointer: int, nbytes: int, what: str = "kernel") -> Bytes:
        """Return live device or pinned memory as uint8 (nbytes,), for kernels; a bad range raises and is noted."""
        return self.memory.view(pointer, nbytes, what)

    def launch(
        self, stream: Handle, function: Callable[[], object], *, accesses: Iterable[Access] = (), label: str = "kernel"
    ) -> runtime.cudaError_t:
        """Queue `function` on a stream, or record it in the stream's capture; it reads and writes through `view`.

        Args:
            stream: handle of the stream; its GPU must be the current one.
            function: the work.
            accesses: the memory (`reads`, `writes`) and tokens (`exclusive`) it uses, for finding races.
            label: its name in messages.

        Returns:
            The error a kernel launch would give.
        """
        return self.cudaLaunchKernel(stream, function, tuple(accesses), label)[0]

    @api()
    def cudaLaunchKernel(
        self, stream: Handle, function: Callable[[], object], accesses: tuple[Access, ...], label: str
    ) -> Result:
        found = self.stream_of(stream)
        if found.device != self.device:
            raise CudaFailureError(Error.cudaErrorInvalidResourceHandle)
        self.enqueue(found, Node(label, function, accesses))
        return ()

    def leaks(self) -> dict[str, int]:
        """Return how many of each thing are alive: device, pinned, streams, events, graphs, executables."""
        alive = {kind.value: len(self.memory.live(kind)) for kind in Kind}
        alive |= {name: len(getattr(self, name)) for name in ("streams", "events", "graphs", "executables")}
        return {name: count for name, count in alive.items() if count}

    def finish(self) -> None:
        """Run everything that is queued anywhere."""
        with self._lock:
            for index in range(len(self.gpus)):
                self._scheduler.drain(index)

    def check(self, *, leaks: bool = True) -> None:
        """Run what is queued, then assert that nothing was done wrong and (with `leaks`) nothing is left allocated.

        Raises:
            AssertionError: with every violation and leak.
        """
        self.finish()
        problems = list(self.violations)
        problems += [f"{count} {name} never freed" for name, count in self.leaks().items() if leaks]
        if problems:
            raise AssertionError("\n".join(problems))

    # Devices

    @api(1)
    def cudaGetDeviceCount(self) -> Result:
        return (len(self.gpus),)

    @api()
    def cudaSetDevice(self, device: int) -> Result:
        self._gpu(device)
        self._thread.device = int(device)
        self.contexts.add(int(device))
        return ()

    @api(1)
    def cudaGetDevice(self) -> Result:
        return (self.device,)

    @api(1)
    def cudaThreadExchangeStreamCaptureMode(self, mode: runtime.cudaStreamCaptureMode) -> Result:
        before, self._thread.capture_mode = self.capture_mode, mode
        return (before,)

    @api(1)
    def cudaGetDeviceProperties(self, device: int) -> Result:
        gpu = self._gpu(device)
        found = runtime.cudaDeviceProp()
        found.name = gpu.name.encode().ljust(256, b"\0")
        found.major, found.minor = gpu.compute_capability
        found.totalGlobalMem = gpu.total_bytes
        found.multiProcessorCount = gpu.multi_processors
        return (found,)

    @api(1)
    def cudaDeviceGetAttribute(self, attr: runtime.cudaDeviceAttr, device: int) -> Result:
        gpu, names = self._gpu(device), runtime.cudaDeviceAttr
        known = {
            names.cudaDevAttrComputeCapabilityMajor: gpu.compute_capability[0],
            names.cudaDevAttrComputeCapabilityMinor: gpu.compute_capability[1],
            names.cudaDevAttrMultiProcessorCount: gpu.multi_processors,
        }
        if attr not in known:
            raise AttributeError(f"the simulated CUDA runtime does not know {attr}: add it to helpers/fake_cuda.py")
        return (known[attr],)

    @api(1)
    def cudaDriverGetVersion(self) -> Result:
        return ({"absent": 0, "old": _OLD_DRIVER}.get(self.driver, _NEW_DRIVER),)

    @api(1)
    def cudaRuntimeGetVersion(self) -> Result:
        return (_RUNTIME,)

    @api(unsafe=True)
    def cudaDeviceSynchronize(self) -> Result:
        self._scheduler.drain(self.device)
        self.raise_fault(self.device)
        return ()

    @api(1)
    def cudaGetErrorName(self, error: runtime.cudaError_t) -> Result:
        return (runtime.cudaGetErrorName(error)[1],)

    @api(1)
    def cudaGetErrorString(self, error: runtime.cudaError_t) -> Result:
        return (runtime.cudaGetErrorString(error)[1],)

    def cudaGetLastError(self) -> Result:
        """Return the last error of this thread, and forget it."""
        error = getattr(self._thread, "last_error", Error.cudaSuccess)
        self._thread.last_error = Error.cudaSuccess
        return (error,)

    def _gpu(self, device: int) -> FakeGpu:
        if not 0 <= int(device) < len(self.gpus):
            raise CudaFailureError(Error.cudaErrorInvalidDevice)
        return self.gpus[int(device)]


def install(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakeCuda:  # noqa: ANN401  the options of FakeCuda
    """Put simulated GPUs in the place of the CUDA runtime binding of milnce, with the options of `FakeCuda`."""
    fake = FakeCuda(**options)
    monkeypatch.setattr("milnce.cuda.binding", lambda: fake)
    monkeypatch.setattr("milnce.cuda.has_context", lambda index: index in fake.contexts)
    return fake
