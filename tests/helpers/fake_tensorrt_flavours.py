"""The flavours of the stand-in for TensorRT: what each generation calls its own; see `fake_tensorrt`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, SupportsInt, TypeAlias

from helpers import fake_tensorrt_types as types
from helpers.fake_tensorrt_context import ContextBase
from helpers.fake_tensorrt_engine import EngineBase
from helpers.fake_tensorrt_execution import Machine
from helpers.fake_tensorrt_plan import HEADER_BYTES, PlanDamagedError, read_header, read_plan
from helpers.fake_tensorrt_types import (
    BoundEnum,
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    EngineInvalidityDiagnostics,
    EngineValidity,
    ExecutionContextAllocationStrategy,
    IHostMemory,
    ILogger,
)

if TYPE_CHECKING:
    from helpers.fake_cuda import FakeCuda
    from helpers.fake_tensorrt_plan import FakePlan

Flavour: TypeAlias = Literal["8.5", "10", "rtx"]
VERSIONS: dict[Flavour, str] = {"8.5": "8.5.3.1", "10": "11.1.0.1", "rtx": "1.7.1.116"}
_CACHE_MAGIC = b"FAKERTXCACHE"
_Strategy = ExecutionContextAllocationStrategy


class Context85(ContextBase):
    """IExecutionContext of TensorRT 8.5."""

    def _set_device_memory(self, memory: SupportsInt) -> None:
        self._take_memory(int(memory), self._state.engine.largest_memory)

    device_memory = property(
        None, _set_device_memory, doc="Activation memory: of device_memory_size bytes. Write only."
    )

    def _memory_needed(self) -> int:
        return self._state.engine.largest_memory


class Context10(Context85):
    """IExecutionContext of TensorRT 10 and 11."""

    def set_device_memory(self, memory: SupportsInt, size: SupportsInt) -> None:
        """Take activation memory of the caller."""
        self._take_memory(int(memory), int(size))

    def update_device_memory_size_for_shapes(self) -> int:
        """Return the activation memory the shapes need."""
        return self._memory_needed()

    def _memory_needed(self) -> int:
        return self._state.engine.plan.memory_bytes[self._state.profile]


class ContextRtx(Context10):
    """IExecutionContext of TensorRT-RTX."""

    def is_stream_capturable(self, stream: SupportsInt) -> bool:
        """Return whether a caller may capture this context on a stream."""
        return self._state.engine.plan.capturable and int(stream) > 1


class Engine85(EngineBase):
    """ICudaEngine of TensorRT 8.5."""

    @property
    def device_memory_size(self) -> int:
        """Return the activation memory of a context in bytes, whatever its profile."""
        return self._state.largest_memory

    def create_execution_context(self) -> Context85 | None:
        """Return a context with activation memory of its own; None if there is no memory."""
        owned = self._state.machine.allocate(self._state.largest_memory)
        return None if owned is None else Context85(self._state, self, owned)

    def create_execution_context_without_device_memory(self) -> Context85:
        """Return a context whose activation memory the caller sets."""
        return Context85(self._state, self, None)


class Engine10(EngineBase):
    """ICudaEngine of TensorRT 10 and 11."""

    _context_class: type[Context10] = Context10

    @property
    def device_memory_size_v2(self) -> int:
        """Return the activation memory of a context in bytes, for its largest profile."""
        return self._state.largest_memory

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        """Return the activation memory of a context in a profile."""
        return self._state.plan.memory_bytes[profile_index]

    def create_runtime_config(self) -> RuntimeConfig:
        """Return how a context is to be made."""
        return RuntimeConfig()

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy | RuntimeConfig = _Strategy.STATIC
    ) -> Context10 | None:
        """Return a context; None if there is no memory for it."""
        if isinstance(strategy, RuntimeConfig):
            strategy = strategy.get_execution_context_allocation_strategy()
        if strategy is _Strategy.USER_MANAGED:
            return self._context_class(self._state, self, None)
        owned = self._state.machine.allocate(self._state.largest_memory)
        return None if owned is None else self._context_class(self._state, self, owned)


class RuntimeConfig:
    """IRuntimeConfig of TensorRT 10 and 11."""

    def __init__(self) -> None:
        self._strategy = _Strategy.STATIC

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        """Return who allocates."""
        return self._strategy

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy = _Strategy.STATIC
    ) -> None:
        """Say who allocates."""
        self._strategy = strategy


class RuntimeCache:
    """IRuntimeCache of TensorRT-RTX: the kernels compiled so far. It is taken back only on the same GPU and version."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._kernels: set[bytes] = set()

    def serialize(self) -> IHostMemory:
        """Return the cache as bytes."""
        return IHostMemory(b"\n".join([_CACHE_MAGIC, self._key, *sorted(self._kernels)]))

    def deserialize(self, blob: bytes) -> bool:
        """Take kernels back; False, and nothing changed, if they are of another GPU or version, or damaged."""
        magic, *rest = bytes(blob).split(b"\n")
        if magic != _CACHE_MAGIC or rest[:1] != [self._key]:
            return False
        self._kernels |= set(rest[1:])
        return True

    def reset(self) -> bool:
        """Forget all kernels."""
        self._kernels.clear()
        return True


class RuntimeConfigRtx(RuntimeConfig):
    """IRuntimeConfig of TensorRT-RTX."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._key = key
        self._cache: RuntimeCache | None = None
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def create_runtime_cache(self) -> RuntimeCache:
        """Return an empty cache."""
        return RuntimeCache(self._key)

    def get_runtime_cache(self) -> RuntimeCache | None:
        """Return the cache in use."""
        return self._cache

    def set_runtime_cache(self, cache: RuntimeCache | None = None) -> bool:
        """Use a cache."""
        self._cache = cache
        return True


class EngineRtx(Engine10):
    """ICudaEngine of TensorRT-RTX: compiles its kernels when a context is made, unless the cache has them."""

    _context_class = ContextRtx

    def create_runtime_config(self) -> RuntimeConfigRtx:
        """Return how a context is to be made."""
        gpu = self._state.machine.fake.gpus[self._state.machine.fake.device]
        return RuntimeConfigRtx(f"{gpu.name} {gpu.compute_capability} {self._state.plan.version}".encode())

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy | RuntimeConfig = _Strategy.STATIC
    ) -> Context10 | None:
        """Return a context; None if there is no memory for it."""
        cache = strategy.get_runtime_cache() if isinstance(strategy, RuntimeConfigRtx) else None
        if cache is not None:
            kernels = hashlib.sha256(self._state.plan.onnx).hexdigest().encode()
            cache._kernels.add(kernels)  # noqa: SLF001  the cache is the library's own
        return super().create_execution_context(strategy)


class Runtime85:
    """IRuntime of TensorRT 8.5. The subclasses and `install` say which library it is."""

    _module = "tensorrt"
    _version = VERSIONS["8.5"]
    _fake: FakeCuda
    _engine_class: type[EngineBase] = Engine85
    _dtypes: type[BoundEnum] = types.DataType85

    def __init__(self, logger: ILogger) -> None:
        if not hasattr(logger, "_made"):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        self._logger = logger
        self._machine = Machine(self._fake, logger, self._dtypes, self._engine_class is not Engine85)

    @property
    def logger(self) -> ILogger:
        """Return the logger."""
        return self._logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> EngineBase | None:
        """Return an engine; None, with an error logged, for anything that cannot be loaded."""
        try:
            plan = read_plan(bytes(memoryview(serialized_engine)))
        except PlanDamagedError as error:
            self._machine.error(f"IRuntime::deserializeCudaEngine: {error}")
            return None
        problem = self._problem(plan)
        if problem is not None:
            self._machine.error(f"IRuntime::deserializeCudaEngine: {problem}")
            return None
        weights = self._machine.allocate(len(plan.onnx))
        return None if weights is None else self._engine_class(self._machine, plan, weights)

    def _problem(self, plan: FakePlan) -> str | None:
        gpu = self._fake.gpus[self._fake.device]
        capability = ".".join(map(str, gpu.compute_capability))
        if plan.compute_capabilities and capability not in plan.compute_capabilities:
            return (
                "The engine plan file is generated on an incompatible device, expecting compute "
                f"{capability} got compute {', '.join(plan.compute_capabilities)}, please rebuild."
            )
        if self._module == "tensorrt_lean" and not plan.version_compatible:
            return "Unexpected call to stub loadRunner for ReformatRunner."
        if plan.version_compatible:
            if not getattr(self, "engine_host_code_allowed", False):
                return "the plan holds host code (the lean runtime), and engine_host_code_allowed is False"
            return None
        if plan.version != self._version:
            return (
                "The engine plan file is not compatible with this version of TensorRT, "
                f"expecting library version {self._version} got {plan.version}, please rebuild."
            )
        return None


class Runtime10(Runtime85):
    """IRuntime of TensorRT 10 and 11."""

    _engine_class = Engine10
    _dtypes = types.DataType

    def __init__(self, logger: ILogger) -> None:
        super().__init__(logger)
        self.engine_host_code_allowed = False


class RuntimeRtx(Runtime10):
    """IRuntime of TensorRT-RTX."""

    _engine_class = EngineRtx

    @property
    def engine_header_size(self) -> int:
        """Return how many bytes `get_engine_validity` reads."""
        return HEADER_BYTES

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        """Return whether a plan that starts so could run here, and why not as bits of EngineInvalidityDiagnostics."""
        why = EngineInvalidityDiagnostics
        if self._fake.driver != "present":
            return EngineValidity.INVALID, 0  # as seen without a driver
        try:
            version, capabilities = read_header(bytes(buffer))
        except PlanDamagedError:
            return EngineValidity.INVALID, int(why.MALFORMED_ENGINE)
        bits = 0 if version == self._version else int(why.VERSION_MISMATCH)
        gpu = self._fake.gpus[self._fake.device]
        if capabilities and ".".join(map(str, gpu.compute_capability)) not in capabilities:
            bits |= int(why.UNSUPPORTED_CC)
        return (EngineValidity.INVALID if bits else EngineValidity.VALID), bits
