"""How the stand-in for TensorRT runs on the simulated GPU, and what its objects know of each other.

An execution is two operations on the stream, so that another one can come between them when nothing forbids it: the
first fills the activation memory with its mark and spoils the outputs, the second looks whether the mark is whole,
computes with ONNX Runtime from the inputs as they are then, and writes the outputs.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from cuda.bindings import runtime

from helpers.fake_cuda import exclusive, reads, writes
from helpers.fake_tensorrt_plan import compute
from helpers.fake_tensorrt_types import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from helpers.fake_cuda import Access, FakeCuda
    from helpers.fake_tensorrt_plan import FakePlan, PlanTensor, Shape
    from helpers.fake_tensorrt_types import BoundEnum, ILogger

SPOILT = 0xEE
_MARKS = itertools.count()
_CONTEXTS = itertools.count(1)


@dataclass(frozen=True)
class Machine:
    """What every object of a runtime uses.

    Attributes:
        fake: the simulated CUDA.
        logger: gets the errors.
        dtypes: the DataType enum of the flavour.
        share_profiles: whether two contexts may hold one profile (from TensorRT 10 on).
    """

    fake: FakeCuda
    logger: ILogger
    dtypes: type[BoundEnum]
    share_profiles: bool

    def error(self, message: str) -> None:
        """Log an error, as every refused call does."""
        self.logger.log(Severity.ERROR, message)

    def report(self, what: str) -> None:
        """Note what no library could refuse, and hardware would punish."""
        self.fake.violations.append(what)

    def allocate(self, nbytes: int) -> int | None:
        """Return device memory the library takes for itself; None, with an error, if there is none."""
        error, pointer = self.fake.cudaMalloc(nbytes)
        if error != runtime.cudaError_t.cudaSuccess:
            self.error(f"[allocator] CUDA error in cudaMalloc of {nbytes} bytes: {error.name}")
            return None
        return int(pointer)


class EngineState:
    """What an engine and its contexts share. Its weights are device memory until the last of them is gone.

    Attributes:
        machine: what it runs on.
        plan: what it computes.
        tensors: inputs and outputs by name.
        holders: which context chose each profile last.
        made_a_context: whether the first context, which gets profile 0 in TensorRT 8.5, was made.
    """

    def __init__(self, machine: Machine, plan: FakePlan, weights: int) -> None:
        self.machine = machine
        self.plan = plan
        self.tensors = {tensor.name: tensor for tensor in plan.tensors}
        self.holders: dict[int, weakref.ref[ContextState]] = {}
        self.made_a_context = False
        self._output_shapes: dict[tuple[tuple[str, Shape], ...], dict[str, Shape]] = {}
        weakref.finalize(self, machine.fake.cudaFree, weights)

    @property
    def largest_memory(self) -> int:
        """Return the activation memory of the largest profile in bytes."""
        return max(self.plan.memory_bytes)

    def output_shape(self, shapes: Mapping[str, Shape], name: str) -> Shape:
        """Return an output's shape for given input shapes, from computing it once with zeros."""
        key = tuple(sorted(shapes.items()))
        if key not in self._output_shapes:
            feeds = {one: np.zeros(shape) for one, shape in shapes.items()}
            self._output_shapes[key] = {one: array.shape for one, array in compute(self.plan.onnx, feeds).items()}
        return self._output_shapes[key][name]


@dataclass(eq=False)
class ContextState:
    """What an execution context knows.

    Attributes:
        engine: its engine.
        owned: activation memory that the library allocated for it, None where the caller sets it.
        profile: the profile chosen, -1 for none.
        shapes: of the inputs that were set.
        addresses: of the tensors that were set.
        arena: address and size of the activation memory.
        revision: how often it was changed in a way that ends the use of graphs captured from it.
        warm: whether it has run since its profile and shapes were set: before that it cannot be captured.
        in_use: held by the thread that is in a call.
        token: the access of using it.
    """

    engine: EngineState
    owned: int | None
    profile: int
    arena: tuple[int, int]
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    revision: int = 0
    warm: bool = False
    in_use: threading.Lock = field(default_factory=threading.Lock)
    token: Access = field(default_factory=lambda: exclusive(f"execution context {next(_CONTEXTS)}"))


@dataclass(eq=False)
class Execution:
    """One enqueued inference, with everything as it was when it was enqueued (or captured).

    Attributes:
        context: the context; it must live, and if captured not be changed, until this has run.
        token: the access of using it.
        machine: what this runs on.
        plan: what it computes.
        revision: how often the context had been changed.
        captured: whether this is in a CUDA graph.
        shapes: of every tensor.
        addresses: of every tensor.
        arena: address and size of the activation memory.
    """

    context: weakref.ref[ContextState]
    token: Access
    machine: Machine
    plan: FakePlan
    revision: int
    captured: bool
    shapes: dict[str, Shape]
    addresses: dict[str, int]
    arena: tuple[int, int]
    _mark: int = field(default_factory=lambda: next(_MARKS) % 200 + 1)
    _seen: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def accesses(self) -> list[Access]:
        """Return all memory this uses, and the context."""
        found = [self.token, writes(*self.arena)]
        for tensor in self.plan.tensors:
            access = reads if tensor.is_input else writes
            found.append(access(self.addresses[tensor.name], self._nbytes(tensor)))
        return [access for access in found if access.nbytes]

    def begin(self) -> None:
        """Take the activation memory and spoil the outputs."""
        context = self.context()
        if context is None:
            self.machine.report("an execution context was destroyed before what was enqueued with it had run")
        elif self.captured and context.revision != self.revision:
            self.machine.report("a CUDA graph was launched after the context it was captured from was changed")
        self._view(*self.arena)[:] = self._mark
        for tensor in self.plan.tensors:
            view = self._tensor_view(tensor)
            if tensor.is_input:
                self._seen[tensor.name] = view.copy()
            else:
                view[:] = SPOILT

    def end(self) -> None:
        """Compute, unless another one has used the activation memory meanwhile."""
        if (self._view(*self.arena) != self._mark).any():
            self.machine.report("activation memory was overwritten while an execution was using it")
            return
        tensors = {tensor.name: tensor for tensor in self.plan.tensors}
        feeds = {}
        for name, seen in self._seen.items():
            view = self._tensor_view(tensors[name])
            if not np.array_equal(view, seen):
                self.machine.report(f"input {name} was overwritten while an execution was reading it")
            feeds[name] = view.view(tensors[name].dtype).reshape(self.shapes[name])
        for name, array in compute(self.plan.onnx, feeds).items():
            self._tensor_view(tensors[name])[:] = array.reshape(-1).view(np.uint8)

    def _nbytes(self, tensor: PlanTensor) -> int:
        return int(np.prod(self.shapes[tensor.name], dtype=np.int64)) * np.dtype(tensor.dtype).itemsize

    def _tensor_view(self, tensor: PlanTensor) -> NDArray[np.uint8]:
        return self._view(self.addresses[tensor.name], self._nbytes(tensor), f"tensor {tensor.name}")

    def _view(self, pointer: int, nbytes: int, what: str = "activation memory") -> NDArray[np.uint8]:
        return self.machine.fake.view(pointer, nbytes, what) if nbytes else np.empty(0, np.uint8)
