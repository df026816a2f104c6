"""TensorRT: plans that `milnce build` made, run by tensorrt, tensorrt_lean or tensorrt_rtx."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from milnce.backends.base import Availability, Backend, CudaOptions
from milnce.backends.gpu import GpuBackend, open_gpu
from milnce.backends.layouts import Bucket, Layout
from milnce.backends.runtime_cache import RuntimeCacheFile
from milnce.backends.tensorrt_engine import Engine
from milnce.backends.tensorrt_match import check_engine
from milnce.cuda import gpus
from milnce.errors import BackendError, InputError, PlanError
from milnce.plans import find_plan, installed_libraries, library_problems, own_item_shapes, read_plan, sidecars
from milnce.platforms import install

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from milnce.backends.slots import Slot
    from milnce.bundle import Bundle
    from milnce.cuda import Cuda, GpuInfo, Graph
    from milnce.manifest import GraphFile
    from milnce.plans import Library, Plan, PlanProfile
    from milnce.specs import TensorSpec

_LOG = logging.getLogger("milnce.backends")

NAME = "tensorrt"

# It is bound again to each slot's addresses, and nothing says what a graph that was captured from it keeps.
_SHARED = "slots of this TensorRT share a context; with CudaOptions(slots=1) batches run as CUDA graphs"


def probe() -> Availability:
    """Say what TensorRT can do here, apart from which plans there are. Never raises."""
    try:
        gpus()
    except BackendError as error:
        return Availability(NAME, None, problem=str(error))
    libraries = installed_libraries()
    if not libraries:
        problem = "; ".join(library_problems()) or f"not installed: {install(NAME)}"
        return Availability(NAME, None, problem=problem)
    versions = (found.version if found.name == NAME else str(found) for found in libraries)
    return Availability(NAME, ", ".join(versions), ("cuda",), ("fp16", "fp32"))


def plans_problem(
    folder: Path, graphs: Sequence[GraphFile], device: int, *, whole: bool, bundle: Bundle | None = None
) -> str | None:
    """Return why the plans in `folder` cannot run `graphs` on a GPU, with the command that builds them, or None.

    Args:
        folder: A bundle's folder of plans.
        graphs: The graphs to run.
        device: Index of the GPU.
        whole: Whether to hold every plan's bytes against its sidecar too, so that a damaged one is passed over as a
            stale one is.
        bundle: The bundle, whose own sizes are preferred; None for any sizes.
    """
    try:
        for graph in graphs:
            plan, _ = _find(folder, graph, gpus()[device], bundle)
            if whole:
                read_plan(folder, plan)
    except PlanError as error:
        return str(error)
    return None


def precisions_of(folder: Path, modules: Sequence[str]) -> set[str]:
    """Return the precisions of the plans in `folder`, whatever their state, of any of `modules`. Never raises."""
    try:
        plans, _ = sidecars(folder)
    except PlanError:
        return set()
    return {plan.precision for plan in plans if plan.module in modules}


def open_graph(
    graph: GraphFile,
    *,
    plans: Path,
    device: int = 0,
    options: CudaOptions | None = None,
    index_limit: int | None = None,
    bundle: Bundle | None = None,
) -> Backend:
    """Open the plan of a graph.

    Args:
        graph: The graph's entry in the manifest.
        plans: The folder of plans.
        device: Index of the GPU.
        options: How much of the GPU it may take.
        index_limit: Rows of the table that ids point into; None if unknown.
        bundle: The bundle, whose own sizes are preferred; None for any sizes.

    Raises:
        CudaUnavailableError: if there is no such GPU.
        PlanError: if there is no plan for this graph, GPU and version, or it is damaged.
        DeviceMemoryError: if its weights do not fit into the GPU's memory.
    """
    options = options or CudaOptions()
    cuda = open_gpu(
        device, device_limit_bytes=options.device_limit_bytes, pinned_limit_bytes=options.pinned_limit_bytes
    )
    plan, library = _find(plans, graph, cuda.info, bundle)
    cache = RuntimeCacheFile(plans / f"{plan.file}.cache", plan.sha256)
    with cuda.active():
        # Checked and deserialised as the same bytes.
        engine = Engine(plan, library, read_plan(plans, plan), cuda_graphs=options.cuda_graphs, cache=cache)
        try:
            return TensorRtBackend(graph, plan, engine, cuda=cuda, options=options, index_limit=index_limit)
        except BaseException:
            engine.close()
            raise


def _find(folder: Path, graph: GraphFile, gpu: GpuInfo, bundle: Bundle | None) -> tuple[Plan, Library]:
    shapes = None if bundle is None else own_item_shapes(graph, bundle.manifest)
    path = None if bundle is None else bundle.path
    return find_plan(folder, graph, gpu, installed_libraries(), bundle=path, item_shapes=shapes)


@dataclass(slots=True)
class _Kept:
    """What a slot keeps for a bucket: its CUDA graph."""

    graph: Graph | None = None

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()


class TensorRtBackend(GpuBackend):
    """One plan. Its buckets are the plan's profiles.

    Attributes:
        plan: The plan's sidecar.
        largest_batch: Rows of the largest profile.
        graphs_problem: Why batches do not run as captured CUDA graphs though they were to, or None. It is logged too,
            where it is found on the way.
    """

    name = NAME

    def __init__(
        self,
        graph: GraphFile,
        plan: Plan,
        engine: Engine,
        *,
        cuda: Cuda,
        options: CudaOptions,
        index_limit: int | None = None,
    ) -> None:
        check_engine(plan, graph, engine)
        self.plan = plan
        shared = engine.captures_graphs and not engine.shares_profiles and options.slots > 1
        self.graphs_problem: str | None = _SHARED if shared else None
        self._engine = engine
        self._specs = tuple(_narrowed(spec, plan.profiles) for spec in graph.inputs)
        self.largest_batch = max(profile.shapes[graph.inputs[0].name][2][0] for profile in plan.profiles)
        self._scratch_bytes = [engine.scratch_bytes(index) for index in range(len(plan.profiles))]
        self._buckets: dict[tuple[object, ...], Bucket] = {}
        self._contexts: dict[tuple[int, int], tuple[Any, tuple[int, ...]]] = {}
        super().__init__(graph, precision=plan.precision, cuda=cuda, options=options, index_limit=index_limit)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the plan takes: the graph's inputs, narrowed to the profiles, with batches of any size."""
        return self._specs

    def _free_library(self) -> None:
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
        scratch_bytes = self._scratch_bytes[profile]
        return Bucket(rows, profile, Layout.of(inputs, dtypes), Layout.of(outputs, dtypes), scratch_bytes)

    def _enqueue(self, slot: Slot, bucket: Bucket) -> None:
        kept = slot.kept.setdefault(bucket.key, _Kept())
        if kept.graph is not None:
            kept.graph.launch(self._ring.compute)
            return
        context = self._bound(slot, bucket)
        self._engine.enqueue(context, self._ring.compute.handle)
        # Right after a run as it is bound now: that settled what a capture may not contain, and what binding it anew
        # could make the next run settle.
        if self._is_captured(bucket):
            kept.graph = self._captured(context)

    def _is_captured(self, bucket: Bucket) -> bool:
        fixed = all(low == high for low, _, high in self.plan.profiles[bucket.profile].shapes.values())
        return self._engine.captures_graphs and fixed and self.graphs_problem is None

    def _captured(self, context: Any) -> Graph | None:  # noqa: ANN401 - the library is not typed
        """Return a bound context's run as a CUDA graph, or None, and the reason kept, if it cannot be captured."""
        try:
            # In a stream of its own: a capture takes in all that is enqueued there, and one that fails may spoil it.
            with self._cuda.stream() as stream, stream.capture() as capture:
                self._engine.enqueue(context, stream.handle)
        except BackendError as error:
            self.graphs_problem = str(error)
            _LOG.warning("%s: batches run without CUDA graphs from now on: %s", str(self), self.graphs_problem)
            return None
        return capture.graph

    def _bound(self, slot: Slot, bucket: Bucket) -> Any:  # noqa: ANN401 - the library is not typed
        """Return the slot's context in the bucket's profile, with its shapes, tensors and scratch memory set."""
        buffers = (slot.device_inputs.pointer, slot.device_outputs.pointer, self._ring.scratch)
        # TensorRT 8.5 refuses a second context in a profile, so there the slots share one.
        key = (slot.index if self._engine.shares_profiles else 0, bucket.profile)
        context, bound = self._contexts.get(key, (None, buffers))
        if context is None or (self._engine.captures_itself and bound != buffers):
            # What TensorRT-RTX captured holds the addresses of then, and nothing says that it looks at them again.
            self._contexts.pop(key, None)
            context = self._engine.context(bucket.profile, self._ring.compute.handle)
            self._ring.compute.synchronize()
        self._contexts[key] = (context, buffers)
        addresses = {
            name: pointer + layout.offsets[name]
            for pointer, layout in zip(buffers, (bucket.inputs, bucket.outputs), strict=False)
            for name in layout.shapes
        }
        self._engine.bind(context, bucket.inputs.shapes, addresses, (self._ring.scratch, bucket.scratch_bytes))
        return context


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
