"""TensorRT: plans that `milnce build` made, run by tensorrt, tensorrt_lean or tensorrt_rtx."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from milnce.backends.base import Availability, Backend, CudaOptions, check_signature
from milnce.backends.gpu import GpuBackend
from milnce.backends.slots import Bucket, Layout
from milnce.backends.tensorrt_engine import Engine
from milnce.cuda import Cuda, gpus
from milnce.errors import BackendError, CudaUnavailableError, InputError, PlanError
from milnce.plans import find_plan, installed_libraries, library_problems, read_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from milnce.backends.slots import Slot
    from milnce.cuda import Graph
    from milnce.manifest import GraphFile
    from milnce.plans import Library, Plan, PlanProfile
    from milnce.specs import TensorSpec

NAME = "tensorrt"

_INSTALL = 'pip install "milnce[tensorrt]"'


def probe() -> Availability:
    """Say what TensorRT can do here, apart from which plans there are. Never raises."""
    try:
        gpus()
    except CudaUnavailableError as error:
        return Availability(NAME, None, problem=str(error))
    libraries = installed_libraries()
    if not libraries:
        problem = "; ".join(library_problems()) or f"not installed: {_INSTALL}"
        return Availability(NAME, None, problem=problem)
    return Availability(NAME, ", ".join(map(str, libraries)), ("cuda",), ("fp16", "fp32"))


def plans_problem(folder: Path, graphs: Sequence[GraphFile], device: int) -> str | None:
    """Return why the plans in `folder` cannot run `graphs` on a GPU, with the command that builds them, or None.

    Args:
        folder: A bundle's folder of plans.
        graphs: The graphs to run.
        device: Index of the GPU.
    """
    try:
        for graph in graphs:
            find_plan(folder, graph, _gpu(device), installed_libraries())
    except PlanError as error:
        return str(error)
    return None


def open_graph(graph: GraphFile, *, plans: Path, device: int = 0, options: CudaOptions | None = None) -> Backend:
    """Open the plan of a graph.

    Args:
        graph: The graph's entry in the manifest.
        plans: The folder of plans.
        device: Index of the GPU.
        options: How much of the GPU it may take.

    Raises:
        CudaUnavailableError: if there is no GPU.
        PlanError: if there is no plan for this graph, GPU and version, or it is damaged.
        DeviceMemoryError: if its weights do not fit into the GPU's memory.
    """
    plan, library = find_plan(plans, graph, _gpu(device), installed_libraries())
    options = options or CudaOptions()
    cuda = Cuda(device, device_limit_bytes=options.device_limit_bytes, pinned_limit_bytes=options.pinned_limit_bytes)
    cuda.activate()
    # Checked and deserialised as the same bytes. The cache is beside its plan, in a folder that is the user's alone.
    engine = Engine(
        plan,
        library,
        read_plan(plans, plan),
        cuda_graphs=options.cuda_graphs,
        cache=plans / f"{plan.file}.cache",
    )
    try:
        return TensorRtBackend(graph, plan, library, engine, cuda=cuda, options=options)
    except BaseException:
        engine.close()
        raise


@dataclass(slots=True)
class _Prepared:
    """What a slot keeps for a bucket: that it ran once, and then its CUDA graph."""

    graph: Graph | None = None

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()


class TensorRtBackend(GpuBackend):
    """One plan. Its buckets are the plan's profiles.

    Attributes:
        plan: The plan's sidecar.
        library: What runs it.
        largest_batch: Rows of the largest profile.
    """

    name = NAME

    def __init__(
        self, graph: GraphFile, plan: Plan, library: Library, engine: Engine, *, cuda: Cuda, options: CudaOptions
    ) -> None:
        self.plan = plan
        self.library = library
        self._engine = engine
        outputs = [name for name in engine.tensors if name not in engine.inputs]
        check_signature(f"the plan {plan.file}", graph, engine.inputs, outputs)
        _check_dtypes(plan, graph, engine)
        self._specs = tuple(_narrowed(spec, plan.profiles) for spec in graph.inputs)
        self.largest_batch = max(profile.shapes[graph.inputs[0].name][2][0] for profile in plan.profiles)
        self._buckets: dict[tuple[object, ...], Bucket] = {}
        self._contexts: dict[tuple[int, int], Any] = {}
        super().__init__(graph, precision=plan.precision, cuda=cuda, options=options)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the plan takes: the graph's inputs, narrowed to the profiles, with batches of any size."""
        return self._specs

    def close(self) -> None:
        """Wait for the batches in flight, then free the contexts and the engine."""
        if self._closed:
            return
        super().close()
        self._contexts.clear()
        self._engine.close()

    def _bucket(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> Bucket:
        fitting = [
            (max(low, min(rows, high)), high, index)
            for index, profile in enumerate(self.plan.profiles)
            if (span := _rows(profile, shapes)) is not None
            for low, high in (span,)
        ]
        if not fitting:
            given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            held = "; ".join(_items(profile) for profile in self.plan.profiles)
            raise InputError(f"the plan {self.plan.file} has no profile for {given}; its profiles take {held}")
        enough = [found for found in fitting if found[0] >= rows]
        size, _, index = min(enough) if enough else max(fitting)
        key = (size, index, *shapes.items())
        if key not in self._buckets:
            self._buckets[key] = self._make_bucket(size, index, shapes)
        return self._buckets[key]

    def _make_bucket(self, rows: int, profile: int, shapes: Mapping[str, tuple[int, ...]]) -> Bucket:
        dtypes = self._engine.tensors
        inputs = {spec.name: (rows, *shapes[spec.name]) for spec in self.graph.inputs}
        outputs = {spec.name: (rows, *(axis.minimum for axis in spec.shape[1:])) for spec in self.graph.outputs}
        return Bucket(
            rows, profile, Layout.of(inputs, dtypes), Layout.of(outputs, dtypes), self._engine.scratch_bytes(profile)
        )

    def _enqueue(self, slot: Slot, bucket: Bucket) -> None:
        prepared = slot.kept.get(bucket.key)
        if prepared is None:
            # The first run of a context settles what a capture may not contain; its results count all the same.
            self._enqueue_directly(slot, bucket, self._ring.compute.handle)
            slot.kept[bucket.key] = _Prepared()
            return
        fixed = all(low == high for low, _, high in self.plan.profiles[bucket.profile].shapes.values())
        if not (self._engine.captures_graphs and fixed):
            self._enqueue_directly(slot, bucket, self._ring.compute.handle)
            return
        if prepared.graph is None:
            # On the slot's own stream: nobody else enqueues there now, and a capture would take that in too.
            with slot.stream.capture() as capture:
                self._enqueue_directly(slot, bucket, slot.stream.handle)
            prepared.graph = capture.graph
        prepared.graph.launch(self._ring.compute)

    def _enqueue_directly(self, slot: Slot, bucket: Bucket, stream: int) -> None:
        context = self._context(slot, bucket.profile)
        addresses = {
            name: buffer.pointer + layout.offsets[name]
            for buffer, layout in ((slot.device_inputs, bucket.inputs), (slot.device_outputs, bucket.outputs))
            for name in layout.shapes
        }
        self._engine.bind(context, bucket.inputs.shapes, addresses, (self._ring.scratch, bucket.scratch_bytes))
        self._engine.enqueue(context, stream)

    def _context(self, slot: Slot, profile: int) -> Any:  # noqa: ANN401 - the library is not typed
        # TensorRT 8.5 refuses a second context in a profile, so there the slots share one.
        key = (slot.index if self._engine.shares_profiles else 0, profile)
        if key not in self._contexts:
            self._contexts[key] = self._engine.context(profile, self._ring.compute.handle)
            self._ring.compute.synchronize()
        return self._contexts[key]


def _gpu(device: int) -> Any:  # noqa: ANN401 - a GpuInfo
    found = gpus()
    if device >= len(found):
        held = ", ".join(f"cuda:{gpu.index} {gpu.name}" for gpu in found)
        raise CudaUnavailableError(f"device cuda:{device} asked for; there are: {held}")
    return found[device]


def _check_dtypes(plan: Plan, graph: GraphFile, engine: Engine) -> None:
    for spec in (*graph.inputs, *graph.outputs):
        found = engine.tensors[spec.name]
        # TensorRT 8.5 has no int64: ids are int32 there.
        if found != spec.dtype and (spec.dtype, found) != ("int64", "int32"):
            raise BackendError(
                f"the plan {plan.file} has {spec.name} in {found}, the graph in {spec.dtype}; build it: milnce build"
            )


def _narrowed(spec: TensorSpec, profiles: Sequence[PlanProfile]) -> TensorSpec:
    """Return `spec` with the sizes that some profile takes; batches of any size, as they are split and padded."""
    bounds = [profile.shapes[spec.name] for profile in profiles]
    axes = [replace(spec.shape[0], minimum=1, maximum=None)]
    for index, axis in enumerate(spec.shape[1:], start=1):
        low, high = min(low[index] for low, _, _ in bounds), max(high[index] for _, _, high in bounds)
        axes.append(replace(axis, minimum=low, maximum=high))
    return replace(spec, shape=tuple(axes))


def _rows(profile: PlanProfile, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Return the smallest and the largest batch of a profile, or None if it does not take such items."""
    for name, shape in shapes.items():
        low, _, high = profile.shapes[name]
        if any(not least <= size <= most for least, size, most in zip(low[1:], shape, high[1:], strict=True)):
            return None
    low, _, high = next(iter(profile.shapes.values()))
    return low[0], high[0]


def _items(profile: PlanProfile) -> str:
    spans = []
    for name, (low, _, high) in profile.shapes.items():
        axes = (str(least) if least == most else f"{least}..{most}" for least, most in zip(low, high, strict=True))
        spans.append(f"{name} ({', '.join(axes)})")
    return " and ".join(spans)
