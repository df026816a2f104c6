"""A bundle's ONNX graphs to TensorRT plans for this machine, for `milnce build`. Needs neither torch nor onnx.

Old TensorRT (8.5, 8.6) is the exception: its graphs are lowered with onnx.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from milnce.bundle import MODULES
from milnce.errors import BundleError, PlanError
from milnce.onnx_policy import refuse_external_data
from milnce.plan_file import PRECISIONS
from milnce.plan_folder import make_folder, read_cache, write_cache
from milnce.plans import (
    FORMAT_VERSION,
    PLANS_FOLDER,
    Plan,
    plan_name,
    read_plan,
    sidecars,
    write_plan,
)
from milnce_convert.plan_engine import build_engine
from milnce_convert.plan_module import capability_of, choose_toolkit
from milnce_convert.plan_profiles import PlanSizes, make_profiles
from milnce_convert.plan_settings import BuilderSettings, check_names, check_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from milnce.bundle import Bundle, GraphFile
    from milnce.plans import PlanProfile
    from milnce_convert.plan_engine import BuiltEngine
    from milnce_convert.plan_module import Toolkit
    from milnce_convert.plan_progress import Progress


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What to build, and how.

    Attributes:
        modules: Which of "video", "text" and "projection"; None for those that the bundle has.
        precisions: "fp16", "fp32" or both; None for FP16. The projection is FP32 always: it is one small layer.
        input_forms: Forms of the video input; None for the first that the bundle lists, and uint8 if it has that, as
            decoded clips are uint8.
        sizes: What sizes to build for.
        settings: What the builder is told.
        timing_cache: Keep what the builder measures beside the plans, where the library can.
        force: Build also what is there already.
    """

    modules: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    input_forms: tuple[str, ...] | None = None
    sizes: PlanSizes = field(default_factory=PlanSizes)
    settings: BuilderSettings = field(default_factory=BuilderSettings)
    timing_cache: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """A plan in the folder.

    Attributes:
        plan: Its sidecar.
        kept: Whether it was there already, for the same graph, library, GPU and options.
    """

    plan: Plan
    kept: bool


def build_plans(
    bundle: Bundle,
    folder: Path | None = None,
    options: PlanOptions | None = None,
    *,
    toolkit: Toolkit | None = None,
    progress: Progress | None = None,
    finished: Callable[[BuiltPlan], None] | None = None,
) -> list[BuiltPlan]:
    """Build plans of a bundle's graphs, inspect and write them. A plan that is there already is kept.

    Args:
        bundle: The bundle.
        folder: Where plans go; None for the folder "plans" in the bundle.
        options: What to build, and how.
        toolkit: What builds; None to choose, see `choose_toolkit`.
        progress: Called with what is going on, and the part of it that is done (0 to 1) or None.
        finished: Called with each plan as soon as it is in the folder, where it stays whatever comes after it.

    Returns:
        One entry a graph, in the order of the modules.

    Raises:
        InputError: for options or sizes that the library or a graph does not take; nothing was built then.
        BundleError: if the bundle lacks a graph that is asked for, or a file is damaged.
        PlanBuildError: if a graph cannot be built, or what was built is not what was asked for. Plans that were
            finished before stay.
        PlanError: if the folder is somebody else's, or writable for others.
        OutputError: if the folder cannot be written.
    """
    options = options or PlanOptions()
    folder = bundle.path / PLANS_FOLDER if folder is None else folder
    toolkit = toolkit or choose_toolkit()
    check_settings(toolkit, options.settings)
    work = [(graph, make_profiles(graph, bundle.manifest, options.sizes)) for graph in chosen_graphs(bundle, options)]
    made = make_folder(folder)
    try:
        built = []
        for graph, profiles in work:
            built.append(_build(bundle, folder, graph, profiles, options, toolkit, progress))
            if finished is not None:
                finished(built[-1])
        return built
    finally:
        if made:
            # Left empty by a build that failed or was stopped.
            with suppress(OSError):
                folder.rmdir()


def chosen_graphs(bundle: Bundle, options: PlanOptions) -> list[GraphFile]:
    """Return the graphs that the options ask for, each once, in the order of the modules.

    Raises:
        InputError: for a name that is no module, precision or input form.
        BundleError: if the bundle lacks one of them.
    """
    held = bundle.manifest.graphs
    modules = options.modules or tuple(module for module in MODULES if any(g.module == module for g in held))
    check_names("module", modules, MODULES)
    modules = tuple(module for module in MODULES if module in modules)
    precisions = _precisions(bundle, options, modules)
    check_names("precision", precisions, PRECISIONS)
    precisions = tuple(precision for precision in PRECISIONS if precision in precisions)
    forms = options.input_forms and tuple(dict.fromkeys(options.input_forms))
    if forms is None:
        listed = [graph.input_form for graph in held if graph.module == "video"]
        forms = tuple(dict.fromkeys([*listed[:1], *(form for form in listed if form == "uint8")]))
    graphs = []
    for module in modules:
        wanted = itertools.product(
            ("fp32",) if module == "projection" else precisions, forms if module == "video" else (None,)
        )
        graphs += [bundle.graph(module, precision=precision, input_form=form) for precision, form in wanted]
    return graphs


def _precisions(bundle: Bundle, options: PlanOptions, modules: Sequence[str]) -> tuple[str, ...]:
    if options.precisions is not None:
        return options.precisions
    towers = [graph for graph in bundle.manifest.graphs if graph.module in modules and graph.module != "projection"]
    if towers and not any(graph.precision == "fp16" for graph in towers):
        raise BundleError(
            f"bundle {os.fspath(bundle.path)!r} has no FP16 graphs, which plans are built from. Export it again with "
            "--precision fp16, cast its graphs (milnce_convert.half.add_half_precision), or build slower FP32 plans: "
            "--precision fp32"
        )
    return ("fp16",)


def _build(
    bundle: Bundle,
    folder: Path,
    graph: GraphFile,
    profiles: tuple[PlanProfile, ...],
    options: PlanOptions,
    toolkit: Toolkit,
    progress: Progress | None,
) -> BuiltPlan:
    planned = _planned(graph, profiles, options.settings, toolkit)
    if not options.force:
        there = _valid_plan(folder, planned)
        if there is not None:
            return BuiltPlan(there, kept=True)
    # Built from the very bytes that were hashed, and never from a path.
    model = bundle.read(graph)
    refuse_external_data(model, str(bundle.path / graph.file))
    keeps = options.timing_cache and toolkit.capabilities.timing_cache
    cache_name = _cache_name(planned)
    cache = read_cache(folder, cache_name) if keeps else None
    built = build_engine(toolkit, graph, model, profiles, options.settings, timing_cache=cache, progress=progress)
    if keeps and built.timing_cache is not None:
        write_cache(folder, cache_name, built.timing_cache)
    return BuiltPlan(write_plan(folder, built.data, _finished(planned, built)), kept=False)


def _planned(graph: GraphFile, profiles: tuple[PlanProfile, ...], settings: BuilderSettings, toolkit: Toolkit) -> Plan:
    """Return the sidecar of a plan that is yet to be built."""
    gpu = toolkit.gpu
    targets = settings.compute_capabilities or toolkit.capabilities.default_targets
    if not targets and gpu is not None:
        targets = (capability_of(gpu),)
    plan = Plan(
        format_version=FORMAT_VERSION,
        file="",
        sha256="",
        bytes=0,
        module=graph.module,
        input_form=graph.input_form,
        precision=graph.precision,
        onnx_sha256=graph.sha256,
        library=toolkit.library.name,
        library_version=toolkit.library.version,
        compute_capabilities=tuple(targets),
        gpu=None if gpu is None else gpu.name,
        driver=None if gpu is None else ".".join(map(str, gpu.driver_cuda)),
        hardware_compatibility=settings.hardware_compatibility,
        version_compatible=settings.version_compatible,
        profiles=profiles,
        build_s=0.0,
        date="",
        options={"settings": settings.to_json()},
    )
    return replace(plan, file=plan_name(plan))


def _finished(planned: Plan, built: BuiltEngine) -> Plan:
    inspected = [inspection.to_json() for inspection in built.inspections]
    now = dt.datetime.now(dt.timezone.utc)
    return replace(
        planned,
        build_s=round(built.build_s, 3),
        date=now.isoformat(timespec="seconds"),
        options={**planned.options, "inspected": inspected},
    )


def _valid_plan(folder: Path, planned: Plan) -> Plan | None:
    """Return the plan that is there for the same graph, library, GPU and options, if it is whole."""
    plans, _ = sidecars(folder)
    for plan in plans:
        if plan.file == planned.file and _key(plan) == _key(planned):
            try:
                read_plan(folder, plan)
            except PlanError:
                return None
            return plan
    return None


def _key(plan: Plan) -> dict[str, Any]:
    """Return what has to be the same for a plan to be kept."""
    values = plan.to_json()
    for name in ("sha256", "bytes", "build_s", "date", "driver", "options"):
        del values[name]
    if plan.library == "tensorrt_rtx":
        del values["gpu"]  # it is made for its targets, wherever that is
    return {**values, "settings": plan.options.get("settings")}


def _cache_name(plan: Plan) -> str:
    """Return the name of the timing cache: timings hold for one version and one GPU model."""
    parts = [plan.library, plan.library_version, f"sm{''.join(plan.compute_capabilities)}", str(plan.gpu)]
    plain = "-".join("".join(char if char.isalnum() else "_" for char in part) for part in parts)
    return f"timing-{plain[:150]}.cache"
