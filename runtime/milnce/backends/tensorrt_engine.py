"""One deserialised plan. What TensorRT 8.5, 10, 11 and TensorRT-RTX call the same things differently is here alone."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from milnce.errors import BackendError, DeviceMemoryError, PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from milnce.plans import Library, Plan

_LOG = logging.getLogger("milnce.tensorrt")
_DIGEST_BYTES = hashlib.sha256().digest_size
# Largest runtime cache that is read: those of over 100 MB take long to read (release notes of TensorRT-RTX 1.0).
_CACHE_LIMIT_BYTES = 512 * 2**20
_ERRORS_KEPT = 5

_loggers: dict[str, Any] = {}
_loggers_lock = Lock()


class Engine:
    """A plan in TensorRT's memory.

    Attributes:
        tensors: dtype of each input and output as NumPy names it, inputs first.
        inputs: Names of the inputs.
        captures_graphs: Whether the caller may capture what `enqueue` enqueues. TensorRT-RTX captures by itself.
        shares_profiles: Whether two contexts may use one profile at a time, as from TensorRT 10 on.
    """

    def __init__(self, plan: Plan, library: Library, data: bytes, *, cuda_graphs: bool, cache: Path | None) -> None:
        self._plan = plan
        self._trt: Any = import_module(library.name)
        self._logger = _logger(library.name, self._trt)
        self._logger.errors.clear()
        self._runtime = self._trt.Runtime(self._logger)
        self._refuse_invalid(data)
        if plan.version_compatible and hasattr(self._runtime, "engine_host_code_allowed"):
            # Such a plan brings the lean runtime it was built with. Its bytes were checked: they are ours.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            said = self._said(f"{library} cannot load the plan {plan.file}")
            if "out of memory" in said.lower() or "outofmemory" in said.lower():
                raise DeviceMemoryError(f"{said}; end other programs on the GPU (nvidia-smi lists them)")
            raise PlanError(f"{said}; build it again: milnce build")
        self._rtx = hasattr(self._trt, "IRuntimeConfig") and hasattr(self._trt, "CudaGraphStrategy")
        self.captures_graphs = cuda_graphs and not self._rtx
        self.shares_profiles = hasattr(self._engine, "device_memory_size_v2")
        self._config = self._runtime_config(cuda_graphs=cuda_graphs, cache=cache) if self._rtx else None
        self._cache_file = cache if self._rtx else None
        self.inputs, self.tensors = self._read_tensors()

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
            context = self._engine.create_execution_context(self._config)
        elif hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            raise BackendError(self._said(f"TensorRT cannot make a context for the plan {self._plan.file}"))
        self._require(context.set_optimization_profile_async(profile, stream), f"take profile {profile}")
        return context

    def bind(
        self,
        context: Any,  # noqa: ANN401 - the library is not typed
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
        scratch: tuple[int, int],
    ) -> None:
        """Tell a context its input shapes, the addresses of its tensors, and its scratch memory (address, bytes)."""
        for name, shape in shapes.items():
            self._require(context.set_input_shape(name, shape), f"take {name} {shape}")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(*scratch)
        else:
            context.device_memory = scratch[0]
        for name, address in addresses.items():
            self._require(context.set_tensor_address(name, address), f"take the address of {name}")

    def enqueue(self, context: Any, stream: int) -> None:  # noqa: ANN401 - the library is not typed
        """Enqueue a bound context."""
        self._require(context.execute_async_v3(stream), "enqueue")

    def close(self) -> None:
        """Free the engine; every context must be gone. TensorRT-RTX's compiled kernels are kept for the next time."""
        if self._cache_file is not None and self._config is not None:
            _write_cache(self._cache_file, bytes(self._config.get_runtime_cache().serialize()))
        # In this order: the engine uses the runtime.
        self._config = None
        self._engine = None
        self._runtime = None

    def _refuse_invalid(self, data: bytes) -> None:
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        validity, diagnostics = self._runtime.get_engine_validity(data[: self._runtime.engine_header_size])
        if validity != self._trt.EngineValidity.INVALID:
            return
        kinds = self._trt.EngineInvalidityDiagnostics.__members__
        # Nothing may be said although the plan is invalid: seen without a driver.
        said = ", ".join(name for name, kind in kinds.items() if diagnostics & int(kind)) or "no reason given"
        raise PlanError(self._said(f"TensorRT-RTX refuses the plan {self._plan.file} on this GPU ({said})"))

    def _runtime_config(self, *, cuda_graphs: bool, cache: Path | None) -> Any:  # noqa: ANN401 - the library is not typed
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies = trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if cuda_graphs else strategies.DISABLED
        kept = config.create_runtime_cache()
        data = None if cache is None else _read_cache(cache)
        if data is not None and not kept.deserialize(data):
            _LOG.info("%s is of another GPU, driver or version; kernels are compiled anew", cache)
        config.set_runtime_cache(kept)
        return config

    def _read_tensors(self) -> tuple[tuple[str, ...], dict[str, str]]:
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = tuple(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
        order = [*inputs, *(name for name in names if name not in inputs)]
        return inputs, {name: _dtype(engine.get_tensor_dtype(name)) for name in order}

    def _require(self, succeeded: object, what: str) -> None:
        # Some of these calls return None in some releases; only an explicit False is a refusal.
        if succeeded is False:
            raise BackendError(self._said(f"TensorRT could not {what} with the plan {self._plan.file}"))

    def _said(self, message: str) -> str:
        errors = "; ".join(self._logger.errors)
        self._logger.errors.clear()
        return f"{message}: {errors}" if errors else message


def _dtype(dtype: Any) -> str:  # noqa: ANN401 - the library is not typed
    """Return NumPy's name of a TensorRT dtype; `trt.nptype` needs a numpy.bool that newer NumPy lacks, in 8.5."""
    name = str(dtype.name).lower()
    return {"float": "float32", "half": "float16"}.get(name, name)


def _logger(name: str, trt: Any) -> Any:  # noqa: ANN401 - the library is not typed
    """Return the process' one logger for a TensorRT module: TensorRT keeps the first it is given."""
    with _loggers_lock:
        if name not in _loggers or _loggers[name].trt is not trt:
            _loggers[name] = _make_logger(trt)
        return _loggers[name]


def _make_logger(trt: Any) -> Any:  # noqa: ANN401 - the library is not typed
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc] # the library is not typed
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.trt = trt
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR and len(self.errors) < _ERRORS_KEPT:
                self.errors.append(message.strip())
            _LOG.log(level, "%s", message.strip())

    return Logger()


def _read_cache(path: Path) -> bytes | None:
    """Return a runtime cache, or None if there is none or it is damaged. Its folder was checked with the plan."""
    try:
        if path.is_symlink() or path.stat().st_size > _CACHE_LIMIT_BYTES:
            return None
        data = path.read_bytes()
    except OSError:
        return None
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        _LOG.warning("%s is damaged and not used; kernels are compiled anew", path)
        return None
    return content


def _write_cache(path: Path, content: bytes) -> None:
    """Keep a runtime cache; a cache that cannot be written costs only time at the next start."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".cache-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, path)  # noqa: PTH105 - beside mkstemp's plain names
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        _LOG.info("%s was not written (%s); kernels are compiled anew next time", path, error)
