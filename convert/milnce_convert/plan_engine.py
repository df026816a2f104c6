"""Builds one graph into one plan: parse, configure, build, inspect."""

from __future__ import annotations

import functools
import operator
import time
import warnings
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from milnce.cuda import Cuda
from milnce.errors import MilnceWarning, MissingDependencyError, PlanBuildError
from milnce_convert.plan_inspect import Inspection, check, check_size, read_engine, read_network
from milnce_convert.plan_module import capability_of
from milnce_convert.plan_progress import monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from milnce.manifest import GraphFile
    from milnce.plans import PlanProfile
    from milnce_convert.plan_module import Toolkit
    from milnce_convert.plan_progress import Progress
    from milnce_convert.plan_settings import BuilderSettings

    T = TypeVar("T")

# What TensorRT-RTX and TensorRT say of a missing driver, once for each call on a machine without one.
_NO_DRIVER = "cudaError 35"
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A plan as it comes from the builder.

    Attributes:
        data: The plan.
        inspections: What its network and, where there is a GPU to load it, its engine are made of.
        timing_cache: What the library measured, to be kept for the next build, or None.
        build_s: Seconds from the first byte parsed to the last one inspected.
    """

    data: bytes
    inspections: tuple[Inspection, ...]
    timing_cache: bytes | None
    build_s: float


def build_engine(
    toolkit: Toolkit,
    graph: GraphFile,
    model: bytes,
    profiles: Sequence[PlanProfile],
    settings: BuilderSettings,
    *,
    timing_cache: bytes | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Build one graph. Ctrl-C stops the build at its next step, and comes out of here as KeyboardInterrupt.

    Args:
        toolkit: What builds.
        graph: The graph's entry in the bundle's manifest.
        model: Its ONNX file, checked against the manifest.
        profiles: What sizes to build for.
        settings: What the builder is told.
        timing_cache: What an earlier build measured.
        progress: Called with what is going on and how far it is.

    Raises:
        PlanBuildError: if the graph cannot be parsed or built, or the result is not what was asked for; the message has
            TensorRT's own error lines.
        ExportError: if the graph cannot be lowered for an old TensorRT.
    """
    stop = Event()
    build = _Build(toolkit, graph, profiles, settings, stop)
    # In a thread of its own: the builder lets Python run meanwhile, but a signal is only ever seen by the main thread,
    # and an exception must not be raised through TensorRT's callbacks.
    return _run_apart(lambda: build.run(model, timing_cache, progress), stop, waits=toolkit.capabilities.progress)


def _run_apart(work: Callable[[], T], stop: Event, *, waits: bool) -> T:
    """Run `work` in a thread; if waiting for it is interrupted, tell it to stop, and wait for that if it can."""
    outcome: Future[T] = Future()

    def target() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            outcome.set_exception(error)

    # A daemon, so that a build that cannot be stopped does not keep the process from ending.
    thread = Thread(target=target, name="milnce-build", daemon=True)
    try:
        # Inside, since Ctrl-C may come while it starts. Work that finds itself stopped from the first does nothing.
        thread.start()
        # Looked at again and again: a signal that comes just before a wait begins does not end that wait.
        while not outcome.done():
            wait([outcome], timeout=_LOOK_S)
        return outcome.result()
    finally:
        stop.set()
        while waits and thread.is_alive():
            thread.join(_LOOK_S)


class _Build:
    """One build. Everything here happens in one thread, with the GPU as its current device."""

    def __init__(
        self,
        toolkit: Toolkit,
        graph: GraphFile,
        profiles: Sequence[PlanProfile],
        settings: BuilderSettings,
        stop: Event,
    ) -> None:
        self.toolkit, self.graph, self.profiles, self.settings, self.stop = toolkit, graph, profiles, settings, stop
        self.trt: Any = toolkit.trt
        self.able = toolkit.capabilities

    def run(self, model: bytes, timing_cache: bytes | None, progress: Progress | None) -> BuiltEngine:
        began_s = time.monotonic()
        self._require_going()
        if self.toolkit.gpu is not None:
            Cuda(self.toolkit.gpu.index).activate()
        self.toolkit.logger.errors.clear()
        builder = self.trt.Builder(self.toolkit.logger)
        config = builder.create_builder_config()
        network = self._parse(builder, config, model)
        inspections = []
        if self.able.strongly_typed:
            inspections.append(read_network(self.trt, network))
            check(inspections[0], self.graph, int64=self.able.int64, proves=True)
        cache = self._configure(builder, config, timing_cache)
        reporter = monitor(self.trt, self.graph, progress, self.stop) if self.able.progress else None
        if reporter is not None:
            config.progress_monitor = reporter
        elif progress is not None:
            progress(str(self.graph), None)
        self._require_going()
        serialized = builder.build_serialized_network(network, config)
        if reporter is not None:
            reporter.raise_failure()
        if serialized is None:
            raise self._failure("cannot build", cure="More is in its log: milnce --debug build, logger milnce.tensorrt")
        data = bytes(serialized)
        check_size(len(data), self.graph)
        if self._runs_here():
            inspections.append(self._inspect_engine(data))
        kept = bytes(cache.serialize()) if cache is not None else None
        return BuiltEngine(data, tuple(inspections), kept, time.monotonic() - began_s)

    def _parse(self, builder: Any, config: Any, model: bytes) -> Any:  # noqa: ANN401 - the library is not typed
        flags = 0
        for name, wanted in (
            ("EXPLICIT_BATCH", self.able.explicit_batch_flag),
            ("STRONGLY_TYPED", self.able.typing_flag),
        ):
            if wanted:
                flags |= 1 << int(getattr(self.trt.NetworkDefinitionCreationFlag, name))
        if not self.able.reads_opset_18:
            model = self._lowered(model)
        network = builder.create_network(flags)
        parser = self.trt.OnnxParser(network, self.toolkit.logger)
        if not parser.parse(model):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            cure = "TensorRT takes what `milnce export` writes: export the bundle again with this release"
            raise self._failure("cannot parse", [_parser_error(error) for error in errors], cure=cure)
        # The weights of a network are not copied: they belong to the parser, which has to live as long.
        self._parser = parser
        if not self.able.strongly_typed and self.graph.precision == "fp16":
            from milnce_convert.plan_weak import constrain, float_dtypes  # noqa: PLC0415 - only old releases need it

            constrain(self.trt, network, config, float_dtypes(model))
        return network

    def _lowered(self, model: bytes) -> bytes:
        try:
            from milnce_convert.lowering import lower_to_opset_17  # noqa: PLC0415 - only old releases need onnx
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{self.toolkit.library} reads graphs of opset 17 at most, and lowering them needs the package "
                f"{error.name}: pip install onnx"
            ) from error
        return lower_to_opset_17(model)

    def _configure(self, builder: Any, config: Any, timing_cache: bytes | None) -> Any:  # noqa: ANN401
        """Tell the builder what the settings say; return the timing cache that it uses, or None."""
        trt, settings = self.trt, self.settings
        # With this an engine describes its layers; it costs some bytes and no speed.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
        if settings.optimization_level is not None:
            config.builder_optimization_level = settings.optimization_level
        if settings.hardware_compatibility != "none":
            name = settings.hardware_compatibility.upper().replace("-", "_")
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
        if settings.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if not settings.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.able.user_allocation:
            # The runtime gives a plan its scratch memory and counts it. This makes the builder refuse a graph that
            # would take more by itself while it runs; the scratch memory it reports is the same with and without.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if settings.compute_capabilities is not None:
            config.num_compute_capabilities = len(settings.compute_capabilities)
            for index, capability in enumerate(settings.compute_capabilities):
                member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
                config.set_compute_capability(member, index)
        if settings.tactic_sources is not None:
            bits = (1 << int(getattr(trt.TacticSource, source)) for source in settings.tactic_sources)
            config.set_tactic_sources(functools.reduce(operator.or_, bits, 0))
        self._add_profiles(builder, config)
        return self._use_timing_cache(config, timing_cache)

    def _add_profiles(self, builder: Any, config: Any) -> None:  # noqa: ANN401 - the library is not typed
        for profile in self.profiles:
            added = builder.create_optimization_profile()
            for name, shapes in profile.shapes.items():
                added.set_shape(name, *shapes)
            if config.add_optimization_profile(added) < 0:
                raise self._failure(f"does not take the profile {profile.to_json()} of")

    def _use_timing_cache(self, config: Any, data: bytes | None) -> Any:  # noqa: ANN401 - the library is not typed
        if not self.able.timing_cache:
            return None
        for content in (data, b""):
            if content is None:
                continue
            cache = config.create_timing_cache(content)
            # A cache of another GPU or version is not taken: its timings would choose the wrong kernels.
            if cache is not None and config.set_timing_cache(cache, False) is not False:
                return cache
            if content:
                self.toolkit.logger.errors.clear()
                message = f"{self.toolkit.library} does not take the timing cache of earlier builds; a new one is begun"
                warnings.warn(message, MilnceWarning, stacklevel=2)
        return None

    def _runs_here(self) -> bool:
        gpu = self.toolkit.gpu
        targets = self.settings.compute_capabilities or self.able.default_targets
        return gpu is not None and (not targets or capability_of(gpu) in targets)

    def _inspect_engine(self, data: bytes) -> Inspection:
        runtime = self.trt.Runtime(self.toolkit.logger)
        if self.settings.version_compatible:
            # Such a plan brings code, its lean runtime; this one was made a moment ago.
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._failure("built, and then cannot load,")
        if engine.num_optimization_profiles != len(self.profiles):
            raise self._failure(f"built {engine.num_optimization_profiles} of {len(self.profiles)} profiles for")
        inspection = read_engine(self.trt, engine)
        check(inspection, self.graph, int64=self.able.int64, proves=not self.able.strongly_typed)
        return inspection

    def _require_going(self) -> None:
        if self.stop.is_set():
            raise PlanBuildError(f"the build of {self.graph} was stopped")

    def _failure(self, what: str, errors: Sequence[str] = (), *, cure: str = "") -> PlanBuildError:
        """Return the error for a step that failed, with what the parser and the log say, each once."""
        said = [*errors]
        for line in self.toolkit.logger.errors:
            repeated = any(line in earlier for earlier in said)
            # The parser logs its own errors again, with markers around them.
            if not (repeated or _NO_DRIVER in line or line.startswith("ModelImporter.cpp")):
                said.append(line)
        self.toolkit.logger.errors.clear()
        listed = "".join(f"\n  - {line}" for line in said) or " it gives no reason"
        return PlanBuildError(f"{self.toolkit.library} {what} {self.graph}:{listed}" + (cure and f"\n{cure}"))


def _parser_error(error: Any) -> str:  # noqa: ANN401 - the library is not typed
    """Return a parser's error as one line: node, operator, and what is wrong with it."""
    lines = [line.strip() for line in str(error.desc()).splitlines() if _NO_DRIVER not in line]
    text = " ".join(line for line in lines if line and not line.startswith("Invalid Node"))
    # Both are there from TensorRT 10 on; before, the number of the node is all there is.
    if hasattr(error, "node_name"):
        return f"node {error.node_name() or error.node()} ({error.node_operator()}): {text or error.desc()}"
    return f"node {error.node()}: {text or error.desc()}"
