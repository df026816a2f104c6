"""Execution contexts of the stand-in for TensorRT: what all its flavours have in common."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cuda.bindings import runtime

from helpers.fake_tensorrt_execution import ContextState, EngineState, Execution
from helpers.fake_tensorrt_types import Dims

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import SupportsInt

    from helpers.fake_tensorrt_engine import EngineBase
    from helpers.fake_tensorrt_plan import PlanTensor, Shape

ALIGNMENT = 256
_PROFILE_REFUSED = "Error in set optimization profile async."


class ContextBase:
    """An execution context.

    Args:
        engine: its engine's state.
        owner: the engine, which has to live as long.
        owned: activation memory that the library allocated, None where the caller sets it.
    """

    def __init__(self, engine: EngineState, owner: EngineBase, owned: int | None) -> None:
        first = engine.machine.share_profiles or not engine.made_a_context
        arena = (0, 0) if owned is None else (owned, engine.largest_memory)
        self._engine = owner
        self._machine = engine.machine
        self._state = ContextState(engine, owned, 0 if first else -1, arena)
        if first:
            engine.holders[0] = weakref.ref(self._state)
        engine.made_a_context = True
        if owned is not None:
            weakref.finalize(self._state, self._machine.fake.cudaFree, owned)

    @property
    def engine(self) -> EngineBase:
        """Return the engine."""
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        """Return the profile; -1 where none was chosen (8.5: all contexts but an engine's first)."""
        return self._state.profile

    @property
    def all_binding_shapes_specified(self) -> bool:
        """Return whether every input has a shape."""
        return not self.infer_shapes()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: SupportsInt) -> bool:
        """Choose a profile; the work of it is on the stream. Shapes have to be set after.

        Raises:
            RuntimeError: the library refuses; in every version of the bindings, which never return False here.
        """
        with self._alone() as state:
            engine, index = state.engine, int(profile_index)
            if not 0 <= index < len(engine.plan.profiles):
                self._machine.error(f"Profile index {index} is out of range [0, {len(engine.plan.profiles)})")
                raise RuntimeError(_PROFILE_REFUSED)
            other = engine.holders[index]() if index in engine.holders else None
            if not self._machine.share_profiles and other not in (None, state) and other.profile == index:
                self._machine.error(
                    f"Profile {index} has been chosen by another IExecutionContext. Use another profileIndex or "
                    "destroy the IExecutionContext that use this profile."
                )
                raise RuntimeError(_PROFILE_REFUSED)
            engine.holders[index] = weakref.ref(state)
            if index != state.profile:
                state.profile = index
                state.shapes.clear()
                self._changed()
            error = self._machine.fake.launch(stream_handle, _nothing, accesses=[state.token], label="profile switch")
            if error != runtime.cudaError_t.cudaSuccess:
                self._machine.error(f"CUDA error {error.name} in setOptimizationProfileAsync")
                raise RuntimeError(_PROFILE_REFUSED)
            return True

    def set_input_shape(self, name: str, shape: Sequence[int] | Dims) -> bool:
        """Set an input's shape; False, with an error, if the profile does not have it."""
        if not isinstance(shape, tuple | list | Dims):
            raise TypeError(f"set_input_shape(): incompatible function arguments: {type(shape).__name__}")
        with self._alone() as state:
            sizes = tuple(int(size) for size in shape)
            tensor = state.engine.tensors.get(name)
            if tensor is None or not tensor.is_input:
                return self._refuse(
                    f"{name} is not an input tensor. setInputShape can only be called for input tensors"
                )
            if state.profile < 0:
                return self._refuse("No optimization profile has been chosen")
            low, _, high = state.engine.plan.profiles[state.profile][name]
            fits = len(sizes) == len(low) and all(a <= size <= b for a, size, b in zip(low, sizes, high, strict=True))
            if not fits:
                return self._refuse(
                    f"Set dimension {list(sizes)} for tensor {name} does not satisfy any optimization profiles. "
                    f"Valid range for profile {state.profile}: {list(low)}..{list(high)}"
                )
            if state.shapes.get(name) != sizes:
                state.shapes[name] = sizes
                self._changed()
            return True

    def infer_shapes(self) -> list[str]:
        """Return the inputs whose shape is not set yet."""
        return [t.name for t in self._state.engine.plan.tensors if t.is_input and self._input_shape(t) is None]

    def get_tensor_shape(self, name: str) -> Dims:
        """Return a tensor's shape, -1 where it is still open."""
        engine = self._state.engine
        tensor = engine.tensors[name]
        if tensor.is_input or self.infer_shapes():
            return Dims((self._input_shape(tensor) if tensor.is_input else None) or tensor.shape)
        shapes = {t.name: self._input_shape(t) or () for t in engine.plan.tensors if t.is_input}
        return Dims(engine.output_shape(shapes, name))

    def set_tensor_address(self, name: str, memory: SupportsInt) -> bool:
        """Set a tensor's address; False for a name that is none. Must be aligned to 256 bytes."""
        with self._alone() as state:
            if name not in state.engine.tensors:
                return self._refuse(f"{name} is not an input or output tensor")
            if int(memory) % ALIGNMENT:
                self._machine.report(f"address {int(memory):#x} of tensor {name} is not aligned to {ALIGNMENT} bytes")
            state.addresses[name] = int(memory)
            return True

    def get_tensor_address(self, name: str) -> int:
        """Return a tensor's address; 0 if none is set."""
        return self._state.addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: SupportsInt) -> bool:
        """Enqueue an inference; False, with an error, if something is missing."""
        with self._alone() as state:
            status = self._machine.fake.cudaStreamIsCapturing(stream_handle)[1]
            captured = status == runtime.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
            problem = next(self._problems(captured=captured), None)
            if problem is not None:
                if captured:  # the library gets as far as to allocate or to wait, which ends the capture
                    self._machine.fake.cudaStreamSynchronize(stream_handle)
                return self._refuse(f"IExecutionContext::enqueueV3: {problem}")
            state.warm = True
            execution = Execution(
                weakref.ref(state),
                state.token,
                self._machine,
                state.engine.plan,
                state.revision,
                captured,
                {tensor.name: tuple(self.get_tensor_shape(tensor.name)) for tensor in state.engine.plan.tensors},
                dict(state.addresses),
                (state.arena[0], self._memory_needed()),
            )
            for function in (execution.begin, execution.end):
                label = f"inference ({function.__name__})"
                error = self._machine.fake.launch(stream_handle, function, accesses=execution.accesses, label=label)
                if error != runtime.cudaError_t.cudaSuccess:
                    return self._refuse(f"CUDA error {error.name} in enqueueV3")
            return True

    def _take_memory(self, pointer: int, nbytes: int) -> None:
        """Use activation memory of the caller."""
        with self._alone() as state:
            if state.owned is not None:
                self._refuse("setDeviceMemory: Context not created with user managed device memory, cannot set buffer")
                return
            if pointer % ALIGNMENT:
                self._machine.report(f"activation memory {pointer:#x} is not aligned to {ALIGNMENT} bytes")
            if state.arena != (pointer, nbytes):
                state.arena = (pointer, nbytes)
                state.revision += 1

    def _memory_needed(self) -> int:
        return self._state.engine.plan.memory_bytes[self._state.profile]

    def _problems(self, *, captured: bool) -> Iterator[str]:
        """Yield why an inference cannot be enqueued."""
        state = self._state
        if state.profile < 0:
            yield "no optimization profile has been chosen"
            return
        if missing := self.infer_shapes():
            yield f"shapes of inputs are not set: {', '.join(missing)}"
        for tensor in state.engine.plan.tensors:
            if not state.addresses.get(tensor.name):
                yield f"Address is not set for {'input' if tensor.is_input else 'output'} tensor {tensor.name}."
        needed, (pointer, nbytes) = self._memory_needed(), state.arena
        if needed and (not pointer or nbytes < needed):
            yield (
                f"{needed} bytes of device memory are needed and {nbytes} given. The IExecutionContext is created with "
                "ExecutionContextAllocationStrategy::kUSER_MANAGED: setDeviceMemory should be called before enqueue"
            )
        if captured and not state.engine.plan.capturable:
            yield "the stream is capturing a CUDA graph, and this plan allocates while it runs"
        if captured and not state.warm:
            yield "the stream is capturing a CUDA graph, and the context has not run since its shapes were set"

    def _input_shape(self, tensor: PlanTensor) -> Shape | None:
        return self._state.shapes.get(tensor.name) if -1 in tensor.shape else tensor.shape

    def _changed(self) -> None:
        """Note a change of profile or shapes."""
        self._state.revision += 1
        self._state.warm = False

    def _refuse(self, message: str) -> bool:
        self._machine.error(message)
        return False

    @contextmanager
    def _alone(self) -> Iterator[ContextState]:
        """Report a second thread in the context."""
        if not self._state.in_use.acquire(blocking=False):
            self._machine.report("two threads used one execution context at the same time")
            self._state.in_use.acquire()
        try:
            yield self._state
        finally:
            self._state.in_use.release()


def _nothing() -> None:
    """Do the device's part of a change of profile."""
