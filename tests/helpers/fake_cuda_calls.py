"""What every call of the simulated CUDA runtime goes through: the log, injected errors, devices, faults, captures."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeAlias

from cuda.bindings import runtime

from helpers.fake_cuda_memory import AccessError, Memory
from helpers.fake_cuda_streams import Capture, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helpers.fake_cuda_streams import Policy

P = ParamSpec("P")
Driver: TypeAlias = Literal["present", "absent", "old", "no device"]
Result: TypeAlias = tuple[Any, ...]
Error = runtime.cudaError_t
CaptureMode = runtime.cudaStreamCaptureMode

_DRIVERLESS = frozenset({"cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetErrorName", "cudaGetErrorString"})


@dataclass(frozen=True)
class FakeGpu:
    """A GPU to simulate. Its memory is host memory, taken as it is allocated."""

    name: str = "Fake GPU"
    compute_capability: tuple[int, int] = (9, 0)
    total_bytes: int = 1 << 30
    multi_processors: int = 132


@dataclass(frozen=True)
class Call:
    """A call as the code under test made it."""

    name: str
    args: tuple[Any, ...]


class CudaFailureError(Exception):
    """Ends a call with an error code."""

    def __init__(self, error: runtime.cudaError_t) -> None:
        super().__init__(error.name)
        self.error = error


@dataclass
class _Failure:
    error: runtime.cudaError_t
    after: int
    times: int


class Calls:
    """State shared by all calls; see `FakeCuda` for the options."""

    def __init__(
        self, *, policy: Policy, seed: int, gpus: Sequence[FakeGpu], driver: Driver, pinned_limit_bytes: int | None
    ) -> None:
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self.gpus = tuple(gpus)
        self.driver = driver
        self.memory = Memory([gpu.total_bytes for gpu in gpus], pinned_limit_bytes, self.violations)
        self.captures: list[Capture] = []
        self._lock = threading.RLock()
        self._scheduler = Scheduler(policy, seed, self.violations, self._fault)
        self._failures: dict[str, _Failure] = {}
        self._faults: dict[int, runtime.cudaError_t] = {}
        self._thread = threading.local()

    @property
    def device(self) -> int:
        """Return the current device of the calling thread."""
        return int(getattr(self._thread, "device", 0))

    @property
    def capture_mode(self) -> runtime.cudaStreamCaptureMode:
        """Return which captures the calling thread must respect when it makes a potentially unsafe call."""
        return getattr(self._thread, "capture_mode", CaptureMode.cudaStreamCaptureModeGlobal)

    @property
    def counts(self) -> Counter[str]:
        """Return how often each function was called."""
        return Counter(call.name for call in self.calls)

    def fail(
        self, name: str, *, after: int = 0, times: int = 1, error: runtime.cudaError_t = Error.cudaErrorMemoryAllocation
    ) -> None:
        """Make `name` return `error`: after `after` more calls that are let through, `times` times."""
        if name not in dir(type(self)):
            raise AttributeError(f"{name} is not simulated, so no call of it can fail")
        self._failures[name] = _Failure(error, after, times)

    def enter(self, name: str, args: tuple[Any, ...], *, unsafe: bool) -> None:
        """Log a call and raise what it must end with before it does anything.

        Raises:
            CudaFailureError: no driver, an injected error, a call that a capture forbids.
        """
        self.calls.append(Call(name, args))
        if name not in _DRIVERLESS:
            if self.driver in ("absent", "old"):
                raise CudaFailureError(Error.cudaErrorInsufficientDriver)
            if self.driver == "no device":
                raise CudaFailureError(Error.cudaErrorNoDevice)
        failure = self._failures.get(name)
        if failure is not None:
            if failure.after > 0:
                failure.after -= 1
            elif failure.times > 0:
                failure.times -= 1
                raise CudaFailureError(failure.error)
        if unsafe:
            self._forbid_in_captures()
        self._scheduler.progress()

    def raise_fault(self, device: int) -> None:
        """Raise the error an operation left behind on `device`; it stays, as CUDA's does.

        Raises:
            CudaFailureError: an operation failed there.
        """
        if device in self._faults:
            raise CudaFailureError(self._faults[device])

    def _forbid_in_captures(self) -> None:
        """End the captures which a potentially unsafe call (allocation, event query) disturbs."""
        mine, modes = self.capture_mode, CaptureMode
        if mine == modes.cudaStreamCaptureModeRelaxed:
            return
        hit = [
            capture
            for capture in self.captures
            if (capture.thread == threading.get_ident() and capture.mode != modes.cudaStreamCaptureModeRelaxed)
            or (mine == modes.cudaStreamCaptureModeGlobal and capture.mode == modes.cudaStreamCaptureModeGlobal)
        ]
        for capture in hit:
            capture.invalid = True
        if hit:
            raise CudaFailureError(Error.cudaErrorStreamCaptureUnsupported)

    def _fault(self, device: int, illegal_address: bool) -> None:
        error = Error.cudaErrorIllegalAddress if illegal_address else Error.cudaErrorLaunchFailure
        self._faults.setdefault(device, error)


def api(
    values: int = 0, *, unsafe: bool = False, anyway: bool = False
) -> Callable[[Callable[Concatenate[Any, P], Result]], Callable[Concatenate[Any, P], Result]]:
    """Make a method, which returns its values or raises, answer as the binding: (error, *values).

    Args:
        values: how many values follow the error; all None after an error.
        unsafe: whether CUDA forbids the call while a capture runs (allocation, event query).
        anyway: whether it does its work although an earlier operation faulted (it reports that fault even so).
    """

    def wrap(method: Callable[Concatenate[Any, P], Result]) -> Callable[Concatenate[Any, P], Result]:
        @functools.wraps(method)
        def call(self: Calls, /, *args: P.args, **kwargs: P.kwargs) -> Result:
            with self._lock:
                try:
                    self.enter(method.__name__, args, unsafe=unsafe)
                    if not anyway:
                        self.raise_fault(self.device)
                    found = method(self, *args, **kwargs)
                    if anyway:
                        self.raise_fault(self.device)
                except CudaFailureError as failure:
                    error = failure.error
                except AccessError:
                    error = Error.cudaErrorInvalidValue
                else:
                    return (Error.cudaSuccess, *found)
                if error is not Error.cudaErrorNotReady:
                    self._thread.last_error = error
                return (error, *[None] * values)

        return call

    return wrap
