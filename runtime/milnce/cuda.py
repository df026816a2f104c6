"""The CUDA layer: one GPU, its memory, streams, events and captured graphs, through cuda-python's runtime bindings.

Nothing else in this package calls CUDA. The primary context of the device is used (the one that PyTorch, CuPy and the
TensorRT of the same process use too), and no context is ever created. Every call is checked: what fails raises an
error with the name of the call and the words of the driver. What is allocated here is freed by close(), at the end of
its with block, or when it is forgotten.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milnce.cuda_binding import failure, has_context, load, no_gpu, version
from milnce.cuda_resources import Capture, DeviceBuffer, Event, Graph, PinnedBuffer, Stream
from milnce.errors import CudaError, CudaUnavailableError, DeviceMemoryError, InputError, MilnceError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Capture",
    "Cuda",
    "DeviceBuffer",
    "Event",
    "GpuInfo",
    "Graph",
    "PinnedBuffer",
    "Stream",
    "binding",
    "call",
    "gpus",
]


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """A GPU, as its driver describes it.

    Attributes:
        index: Its number among the GPUs that this process sees (CUDA_VISIBLE_DEVICES may hide some).
        name: Its name, for example "NVIDIA H200".
        compute_capability: Its compute capability, for example (9, 0).
        total_bytes: Its memory.
        driver_cuda: The newest version of CUDA that the installed driver runs, for example (13, 0).
        multi_processors: Its number of streaming multiprocessors.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    driver_cuda: tuple[int, int]
    multi_processors: int


def binding() -> Any:  # noqa: ANN401 - the module has no types
    """Return the module `cuda.bindings.runtime`.

    Raises:
        CudaUnavailableError: if it is not installed, cannot be loaded, or is too old.
    """
    return load()


def call(name: str, *args: Any) -> Any:  # noqa: ANN401 - each call has types of its own
    """Call a function of the CUDA runtime on the calling thread's device.

    Args:
        name: Name of the function, for example "cudaMemGetInfo".
        *args: Its arguments, less those through which C returns values.

    Returns:
        What it returns: None, a value, or a tuple of values.

    Raises:
        CudaUnavailableError: if the bindings are missing.
        DeviceMemoryError: if it fails for want of memory.
        CudaError: if it fails otherwise.
    """
    error, values = _attempt(name, *args)
    if int(error) != 0:
        kind = DeviceMemoryError if error.name == "cudaErrorMemoryAllocation" else CudaError
        raise kind(failure(binding(), name, error))
    return values[0] if len(values) == 1 else values or None


def gpus() -> tuple[GpuInfo, ...]:
    """Return the GPUs that this process sees, at least one.

    Raises:
        CudaUnavailableError: if there is none to use: the bindings or the driver are missing, the driver is too old,
            or no GPU is visible. The message says which, and the cure.
    """
    return tuple(_describe(index) for index in range(_device_count()))


class Cuda:
    """One GPU: allocates its memory, makes its streams, events and graphs, and copies.

    Safe to use from many threads. Every method makes the GPU the calling thread's current device (cudaSetDevice) and
    leaves it so; `active` puts the former one back.

    Attributes:
        info: The GPU.
    """

    def __init__(
        self, device: int = 0, *, device_limit_bytes: int | None = None, pinned_limit_bytes: int | None = None
    ) -> None:
        """Open a GPU.

        Args:
            device: Its index, from 0.
            device_limit_bytes: Most device memory that may be allocated through this object; None for no limit.
            pinned_limit_bytes: The same for pinned host memory.

        Raises:
            CudaUnavailableError: if there is no GPU with that index, or it cannot be used, for example because another
                program has it for itself.
        """
        count = _device_count()
        if not 0 <= device < count:
            present = "; ".join(f"{info.index}: {info.name}" for info in gpus())
            raise CudaUnavailableError(f"there is no GPU {device}; this process sees {count} ({present})")
        self.info = _describe(device)
        self._limits = {"device": device_limit_bytes, "pinned": pinned_limit_bytes}
        self._used = {"device": 0, "pinned": 0}
        self._lock = threading.RLock()  # a forgotten buffer may be freed in the middle of an allocation
        try:
            self.activate()  # makes the primary context, if nobody has
        except (CudaError, DeviceMemoryError) as error:
            raise CudaUnavailableError(f"GPU {device}, {self.info.name}, cannot be used: {error}") from error

    @property
    def device_bytes(self) -> int:
        """Device memory allocated through this object now."""
        return self._used["device"]

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory allocated through this object now."""
        return self._used["pinned"]

    def activate(self) -> None:
        """Make this GPU the current device of the calling thread. Each thread has its own."""
        call("cudaSetDevice", self.info.index)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this GPU the calling thread's current device, and put the former one back at the end.

        A former one that nothing in this process uses is not put back: since CUDA 12, cudaSetDevice would make a
        context there, which takes hundreds of MB. PyTorch does the same (pytorch/pytorch#94864).
        """
        before = call("cudaGetDevice")
        if before == self.info.index:
            yield
            return
        self.activate()
        try:
            yield
        finally:
            if has_context(before):
                call("cudaSetDevice", before)

    def call(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - each call has types of its own
        """Call a function of the CUDA runtime on this GPU. See `milnce.cuda.call`."""
        self.activate()
        return call(name, *args)

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes of device memory, whoever uses it."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def device_buffer(self, nbytes: int) -> DeviceBuffer:
        """Allocate device memory, aligned to at least 256 bytes and not cleared.

        Raises:
            DeviceMemoryError: if there is not enough, or the limit would be passed; nothing is allocated then.
        """
        with self._allocating():
            return DeviceBuffer(self, self._allocate("device", nbytes), nbytes)

    def pinned_buffer(self, nbytes: int) -> PinnedBuffer:
        """Allocate page-locked host memory, which copies to and from the GPU need to run beside the CPU.

        Raises:
            DeviceMemoryError: if there is not enough, or the limit would be passed; nothing is allocated then.
        """
        with self._allocating():
            return PinnedBuffer(self, self._allocate("pinned", nbytes), nbytes)

    def stream(self) -> Stream:
        """Make a stream that does not wait for the legacy default stream."""
        handle = int(self.call("cudaStreamCreateWithFlags", binding().cudaStreamNonBlocking))
        return Stream(self, handle, owned=True)

    def borrowed_stream(self, handle: int) -> Stream:
        """Return the caller's stream with this handle (0 is the default stream); closing it does nothing.

        Raises:
            InputError: if the handle is not an address.
        """
        if type(handle) is not int or handle < 0:  # `type`, since True is an int to isinstance
            raise InputError(f"a CUDA stream is given by its handle, an integer from 0; {handle!r} given")
        return Stream(self, handle, owned=False)

    def event(self, *, timing: bool = False) -> Event:
        """Make an event; one that takes times costs more."""
        flags = 0 if timing else binding().cudaEventDisableTiming
        return Event(self, int(self.call("cudaEventCreateWithFlags", flags)))

    def upload(self, destination: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy from host memory at `source` to device memory at `destination` (addresses).

        Beside the CPU only from pinned memory, which must stay as it is until the copy has been made.
        """
        self._copy(destination, source, nbytes, "cudaMemcpyHostToDevice", stream)

    def download(self, destination: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy from device memory at `source` to host memory at `destination` (addresses)."""
        self._copy(destination, source, nbytes, "cudaMemcpyDeviceToHost", stream)

    def copy(self, destination: int, source: int, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy from device memory at `source` to device memory at `destination` (addresses)."""
        self._copy(destination, source, nbytes, "cudaMemcpyDeviceToDevice", stream)

    def fill(self, pointer: int, value: int, nbytes: int, stream: Stream) -> None:
        """Enqueue setting each of `nbytes` bytes of device memory to `value`, 0 to 255."""
        self.call("cudaMemsetAsync", pointer, value, nbytes, stream.handle)

    def device_of(self, pointer: int) -> int | None:
        """Return the index of the GPU on which device or managed memory lies, None for host memory."""
        self.activate()
        error, values = _attempt("cudaPointerGetAttributes", pointer)
        if error.name == "cudaErrorInvalidValue":  # an address that CUDA does not know
            return None
        if int(error) != 0:
            raise CudaError(failure(binding(), "cudaPointerGetAttributes", error))
        kinds = binding().cudaMemoryType
        on_gpu = values[0].type in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
        return int(values[0].device) if on_gpu else None

    def begin_capture(self, stream: int) -> None:
        """Begin capturing what the calling thread enqueues in a stream (its handle). See `Stream.capture`."""
        self.call("cudaStreamBeginCapture", stream, binding().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def event_done(self, event: int) -> bool:
        """Return whether the work before an event (its handle) has been done."""
        self.activate()
        error, _ = _attempt("cudaEventQuery", event)
        if error.name == "cudaErrorNotReady":
            return False
        if int(error) != 0:
            raise CudaError(failure(binding(), "cudaEventQuery", error))
        return True

    def release(self, name: str, handle: int, *, device_bytes: int = 0, pinned_bytes: int = 0) -> None:
        """Give something back: call `name` with its handle or address, and count the memory as free.

        Works on any thread, whatever its current device, and in the middle of its captures. The memory counts as free
        also if the call fails: nobody could free it later.

        Raises:
            CudaError: if the call fails, unless that is because the process is ending.
        """
        try:
            with ExitStack() as prepared:
                # After an error that lost the context every call fails: free all the same.
                for step in (self.active(), _relaxed()):
                    with suppress(MilnceError):
                        prepared.enter_context(step)
                error, _ = _attempt(name, handle)
        finally:
            with self._lock:  # only now: another thread may take at once what counts as free
                self._used["device"] -= device_bytes
                self._used["pinned"] -= pinned_bytes
        if int(error) != 0 and error.name != "cudaErrorCudartUnloading":
            raise CudaError(failure(binding(), name, error))

    def _copy(self, destination: int, source: int, nbytes: int, kind: str, stream: Stream) -> None:
        direction = getattr(binding().cudaMemcpyKind, kind)
        self.call("cudaMemcpyAsync", destination, source, nbytes, direction, stream.handle)

    @contextmanager
    def _allocating(self) -> Iterator[None]:
        # The buffer is made within, so that it is freed if putting the capture mode back fails.
        self.activate()
        with _relaxed():
            yield

    def _allocate(self, kind: str, nbytes: int) -> int:
        if nbytes < 0:
            raise InputError(f"a buffer has 0 bytes or more; {nbytes} asked for")
        if nbytes == 0:
            return 0
        with self._lock:
            limit, used = self._limits[kind], self._used[kind]
            if limit is not None and used + nbytes > limit:
                raise DeviceMemoryError(
                    f"{nbytes:,} bytes of {kind} memory would pass the declared limit of {limit:,} for "
                    f"GPU {self.info.index}, of which {used:,} are in use; use smaller batches or raise the limit"
                )
            self._used[kind] += nbytes
        try:
            return int(call("cudaMalloc", nbytes) if kind == "device" else call("cudaHostAlloc", nbytes, 0))
        except BaseException as error:
            with self._lock:
                self._used[kind] -= nbytes
            if isinstance(error, DeviceMemoryError):
                raise DeviceMemoryError(f"{error} ({self._shortage(kind, nbytes)})") from error
            raise

    def _shortage(self, kind: str, nbytes: int) -> str:
        asked = f"{nbytes:,} bytes of {kind} memory asked for; {self._used[kind]:,} are in use by this model"
        try:
            free, total = self.memory()
        except CudaError:
            return asked
        return f"{asked}, {free:,} of {total:,} free on GPU {self.info.index}, {self.info.name}"


def _attempt(name: str, *args: Any) -> tuple[Any, tuple[Any, ...]]:  # noqa: ANN401 - each call has types of its own
    """Call a function of the CUDA runtime; return its error and its values, and leave no error behind."""
    runtime = binding()
    error, *values = getattr(runtime, name)(*args)
    if int(error) != 0:
        runtime.cudaGetLastError()  # it would come back from the next kernel launch of whoever looks
    return error, tuple(values)


@contextmanager
def _relaxed() -> Iterator[None]:
    """Let the calling thread allocate and free while a graph is captured, by it or by any other library's thread.

    Otherwise the allocation fails, and breaks that capture.
    """
    modes = binding().cudaStreamCaptureMode
    before = call("cudaThreadExchangeStreamCaptureMode", modes.cudaStreamCaptureModeRelaxed)
    try:
        yield
    finally:
        call("cudaThreadExchangeStreamCaptureMode", before)


def _device_count() -> int:
    error, values = _attempt("cudaGetDeviceCount")
    if int(error) != 0 or values[0] < 1:
        raise no_gpu(binding(), error)
    return int(values[0])


def _describe(index: int) -> GpuInfo:
    attributes = binding().cudaDeviceAttr
    properties = call("cudaGetDeviceProperties", index)

    def attribute(name: str) -> int:
        return int(call("cudaDeviceGetAttribute", getattr(attributes, name), index))

    return GpuInfo(
        index=index,
        name=properties.name.rstrip(b"\0").decode(errors="replace"),
        compute_capability=(
            attribute("cudaDevAttrComputeCapabilityMajor"),
            attribute("cudaDevAttrComputeCapabilityMinor"),
        ),
        total_bytes=int(properties.totalGlobalMem),
        driver_cuda=version(int(call("cudaDriverGetVersion"))),
        multi_processors=attribute("cudaDevAttrMultiProcessorCount"),
    )
