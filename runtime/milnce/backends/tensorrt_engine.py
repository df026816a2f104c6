"""One deserialised plan. What TensorRT 8.5, 10, 11 and TensorRT-RTX call the same things differently is here alone."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from milnce.errors import BackendError, DeviceMemoryError, PlanError
from milnce.tensorrt_log import logger_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from milnce.backends.runtime_cache import RuntimeCacheFile
    from milnce.plans import Library, Plan, Shape

_LOG = logging.getLogger("milnce.backends")
_AGAIN = "build it again: milnce build BUNDLE --force"
# How TensorRT says that the GPU's memory is exhausted; it has no type of error for it.
_NO_MEMORY = ("out of memory", "outofmemory", "memoryallocation", "could not be allocated")


class Engine:
    """A plan in TensorRT's memory. No two threads may use it, or its contexts, at once.

    Attributes:
        inputs: Names of the inputs.
        tensors: dtype of each input and output as NumPy names it, inputs first.
        shapes: Shape of each, -1 where it is open.
        profiles: For each profile, input -> (minimum, optimum, maximum) shape.
        captures_graphs: Whether the caller is to capture what `enqueue` enqueues.
        captures_itself: Whether the library captures, as TensorRT-RTX does, a context with its addresses.
        shares_profiles: Whether two contexts may use one profile at a time, as from TensorRT 10 on.
    """

    def __init__(
        self, plan: Plan, library: Library, data: bytes, *, cuda_graphs: bool, cache: RuntimeCacheFile | None
    ) -> None:
        self._plan = plan
        self._library = library
        self._trt: Any = import_module(library.name)
        self._logger = logger_of(self._trt)
        self._runtime = self._made("start for", self._trt.Runtime, self._logger)
        self._refuse_invalid(data)
        if plan.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            # Such a plan brings the lean runtime it was built with, which is code. Its bytes were checked: they are
            # the user's own. NVIDIA's trtexec allows it for such plans too, with any of the three libraries.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._deserialise(data)
        rtx = hasattr(self._trt, "IRuntimeConfig") and hasattr(self._trt, "CudaGraphStrategy")
        self.captures_graphs = cuda_graphs and not rtx
        self.captures_itself = cuda_graphs and rtx
        self.shares_profiles = hasattr(self._engine, "device_memory_size_v2")
        self._cache = cache if rtx else None
        self._config = self._call("be configured for", self._runtime_config, cuda_graphs, cache) if rtx else None
        self._call("describe", self._read_tensors)

    def scratch_bytes(self, profile: int) -> int:
        """Return the device memory that a context needs while it runs in `profile`."""
        engine = self._engine
        if hasattr(engine, "get_device_memory_size_for_profile_v2"):
            return int(engine.get_device_memory_size_for_profile_v2(profile))
        if hasattr(engine, "get_device_memory_size_for_profile"):
            return int(engine.get_device_memory_size_for_profile(profile))
        return int(engine.device_memory_size)

    def context(self, profile: int, stream: int) -> Any:  # noqa: ANN401 - the library is not typed
        """Return a new context in `profile`, without memory of its own. The stream must be synchronised after."""
        if self._config is not None:
            made = self._made("make a context for", self._engine.create_execution_context, self._config)
        elif hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            own = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            made = self._made("make a context for", self._engine.create_execution_context, own)
        else:
            made = self._made("make a context for", self._engine.create_execution_context_without_device_memory)
        self._call(f"take profile {profile} of", made.set_optimization_profile_async, profile, stream)
        return made

    def bind(
        self,
        context: Any,  # noqa: ANN401 - the library is not typed
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        scratch: tuple[int, int],
    ) -> None:
        """Tell a context its input shapes, the addresses of its tensors, and its scratch memory (address, bytes)."""
        for name, shape in shapes.items():
            self._call(f"take {name} {shape} with", context.set_input_shape, name, shape)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(*scratch)
        else:
            context.device_memory = scratch[0]
        for name, address in addresses.items():
            self._call(f"take the address of {name} of", context.set_tensor_address, name, address)

    def enqueue(self, context: Any, stream: int) -> None:  # noqa: ANN401 - the library is not typed
        """Enqueue a bound context."""
        self._call("enqueue", context.execute_async_v3, stream)

    def close(self) -> None:
        """Free the engine; every context must be gone. TensorRT-RTX's compiled kernels are kept for the next time."""
        if self._cache is not None and self._config is not None:
            try:
                self._cache.write(bytes(self._config.get_runtime_cache().serialize()))
            except Exception as error:  # noqa: BLE001 - it would only have saved time
                _LOG.warning("%s was not written (%s); kernels are compiled anew next time", self._cache, error)
        # In this order: the engine uses the runtime.
        self._config = None
        self._engine = None
        self._runtime = None

    def _refuse_invalid(self, data: bytes) -> None:
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        header = data[: self._runtime.engine_header_size]
        validity, diagnostics = self._call("look at", self._runtime.get_engine_validity, header)
        if validity != self._trt.EngineValidity.INVALID:
            return
        kinds = self._trt.EngineInvalidityDiagnostics.__members__
        # Nothing may be said although the plan is invalid: seen without a driver.
        said = ", ".join(name for name, kind in kinds.items() if diagnostics & int(kind)) or "no reason given"
        raise PlanError(self._said(f"{self._library} refuses the plan {self._plan.file} on this GPU ({said})"))

    def _deserialise(self, data: bytes) -> Any:  # noqa: ANN401 - the library is not typed
        try:
            return self._made("load", self._runtime.deserialize_cuda_engine, data)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(f"{error}; end other programs on the GPU (nvidia-smi lists them)") from error
        except BackendError as error:
            raise PlanError(f"{error}; {_AGAIN}") from error

    def _runtime_config(self, cuda_graphs: bool, cache: RuntimeCacheFile | None) -> Any:  # noqa: ANN401
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if cuda_graphs else strategies.DISABLED
        kept = config.create_runtime_cache()
        data = None if cache is None else cache.read()
        if data is not None and not kept.deserialize(data):
            _LOG.info("%s is of another GPU, driver or version; kernels are compiled anew", cache)
        config.set_runtime_cache(kept)  # before any context is made: that is when kernels are compiled
        return config

    def _read_tensors(self) -> None:
        engine, modes = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(name for name in names if engine.get_tensor_mode(name) == modes.INPUT)
        ordered = [*self.inputs, *(name for name in names if name not in self.inputs)]
        self.tensors = {name: _dtype(engine.get_tensor_dtype(name)) for name in ordered}
        self.shapes: dict[str, Shape] = {name: tuple(engine.get_tensor_shape(name)) for name in ordered}
        self.profiles: list[dict[str, tuple[Shape, ...]]] = [
            {name: tuple(map(tuple, engine.get_tensor_profile_shape(name, index))) for name in self.inputs}
            for index in range(engine.num_optimization_profiles)
        ]

    def _call(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Call the library.

        Raises:
            DeviceMemoryError: if it fails for want of memory.
            BackendError: if it raises or refuses; with what it logged.
        """
        self._logger.errors.clear()
        try:
            result = function(*arguments)
        except Exception as error:
            raise self._failure(f"{self._library} cannot {what} the plan {self._plan.file}: {error}") from error
        if result is False:  # some of these calls return nothing in some releases
            raise self._failure(f"{self._library} cannot {what} the plan {self._plan.file}")
        return result

    def _made(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Return what the library makes. Raises as `_call`, also if it makes nothing."""
        made = self._call(what, function, *arguments)
        if made is None:
            raise self._failure(f"{self._library} cannot {what} the plan {self._plan.file}")
        return made

    def _failure(self, message: str) -> BackendError:
        text = self._said(message)
        no_memory = any(words in text.lower() for words in _NO_MEMORY)
        return DeviceMemoryError(text) if no_memory else BackendError(text)

    def _said(self, message: str) -> str:
        errors = "; ".join(self._logger.errors)
        return f"{message}: {errors}" if errors else message


def _dtype(dtype: Any) -> str:  # noqa: ANN401 - the library is not typed
    """Return NumPy's name of a TensorRT dtype; `trt.nptype` needs a numpy.bool that newer NumPy lacks, in 8.5."""
    name = str(dtype.name).lower()
    return {"float": "float32", "half": "float16"}.get(name, name)
