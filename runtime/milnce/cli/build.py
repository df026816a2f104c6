"""`milnce build`: a bundle to TensorRT plans for this machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milnce.cli.common import JsonOption, debugging, print_json, print_table, printable, reported, say
from milnce.cli.common import size as bytes_text
from milnce.plan_file import profile_sizes
from milnce.plan_folder import sidecars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.bundle import Bundle
    from milnce.plans import Plan
    from milnce_convert.plan import BuiltPlan
    from milnce_convert.plan_module import Toolkit

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder, made by `milnce export`.")]
PlansOption = Annotated[Path | None, typer.Option("--plans", help="Folder for the plans; BUNDLE/plans if left out.")]
LibraryOption = Annotated[
    str | None,
    typer.Option(help="tensorrt or tensorrt_rtx; if left out, tensorrt on a machine with a GPU, else tensorrt_rtx."),
]
GpuOption = Annotated[int, typer.Option("--gpu", min=0, help="Number of the GPU to build on.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Build plans anew that are there and valid.")]

_GRAPHS, _SIZES, _BUILDER = "Graphs", "Sizes", "Builder"
ModulesOption = Annotated[
    list[str] | None,
    typer.Option("--module", help="video, text, projection; once for each; all if left out.", rich_help_panel=_GRAPHS),
]
PrecisionsOption = Annotated[
    list[str] | None,
    typer.Option("--precision", help="fp16, fp32; once for each; fp16 if left out.", rich_help_panel=_GRAPHS),
]
FormsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input-form", help="Video input, uint8 or float32; the bundle's own if left out.", rich_help_panel=_GRAPHS
    ),
]
BatchesOption = Annotated[
    str | None,
    typer.Option(
        "--batch",
        help="Clips a run: 1,8 or 1:32; 1,2,4,8,16,32 if left out. A range makes a much smaller plan of tensorrt_rtx.",
        rich_help_panel=_SIZES,
    ),
]
TextBatchesOption = Annotated[
    str | None,
    typer.Option(
        "--text-batch", help="Sentences, or stored features, a run; 1,8,32,256 if left out.", rich_help_panel=_SIZES
    ),
]
FramesOption = Annotated[
    str | None, typer.Option(help="Frames a clip: 32 or 16:32; the bundle's own if left out.", rich_help_panel=_SIZES)
]
PicturesOption = Annotated[
    str | None,
    typer.Option(
        "--size", help="Pixels: 224, 200:256 or 240x320; the bundle's own if left out.", rich_help_panel=_SIZES
    ),
]
WordsOption = Annotated[
    str | None, typer.Option(help="Words a sentence; the bundle's own if left out.", rich_help_panel=_SIZES)
]
WorkspaceOption = Annotated[
    int | None,
    typer.Option("--workspace-mb", min=1, help="Scratch memory of a layer, at most.", rich_help_panel=_BUILDER),
]
LevelOption = Annotated[
    int | None,
    typer.Option("--optimization-level", min=0, max=5, help="Effort of the builder.", rich_help_panel=_BUILDER),
]
HardwareOption = Annotated[
    str,
    typer.Option(
        "--hardware-compatibility",
        help="none: this GPU model; same-compute-capability; ampere-plus: slower, and runs on newer ones too.",
        rich_help_panel=_BUILDER,
    ),
]
VersionOption = Annotated[
    bool,
    typer.Option("--version-compatible", help="Also for newer TensorRT and tensorrt_lean.", rich_help_panel=_BUILDER),
]
CapabilitiesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--compute-capability",
        help="GPUs to build for with tensorrt_rtx, such as 8.9; once for each; all if left out.",
        rich_help_panel=_BUILDER,
    ),
]
TacticsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tactic-source", help="Kernels to choose from, as trt.TacticSource names them.", rich_help_panel=_BUILDER
    ),
]
Tf32Option = Annotated[
    bool, typer.Option("--tf32", help="Let FP32 layers round factors to 10 bits.", rich_help_panel=_BUILDER)
]
CacheOption = Annotated[
    bool,
    typer.Option("--timing-cache/--no-timing-cache", help="Keep timings beside the plans.", rich_help_panel=_BUILDER),
]


@reported
def build(  # noqa: PLR0913  # a command's options are its parameters
    bundle: BundleArgument,
    *,
    plans: PlansOption = None,
    library: LibraryOption = None,
    gpu: GpuOption = 0,
    force: ForceOption = False,
    module: ModulesOption = None,
    precision: PrecisionsOption = None,
    input_form: FormsOption = None,
    batch: BatchesOption = None,
    text_batch: TextBatchesOption = None,
    frames: FramesOption = None,
    size: PicturesOption = None,
    words: WordsOption = None,
    workspace_mb: WorkspaceOption = None,
    optimization_level: LevelOption = None,
    hardware_compatibility: HardwareOption = "none",
    version_compatible: VersionOption = False,
    compute_capability: CapabilitiesOption = None,
    tactic_source: TacticsOption = None,
    tf32: Tf32Option = False,
    timing_cache: CacheOption = True,
    json_output: JsonOption = False,
) -> None:
    """Build TensorRT plans of a bundle, which `milnce.load` and the other commands then use on this GPU.

    With tensorrt, on the GPU that runs them; with tensorrt_rtx anywhere, ahead of time.
    A plan that is there for the same graph, version, GPU and options is kept.
    Needs the extra "tensorrt" or "rtx", and no PyTorch.
    """
    from milnce.bundle import Bundle  # noqa: PLC0415  # commands import what they need when they run
    from milnce.cli.progress import BuildProgress  # noqa: PLC0415
    from milnce_convert.plan import PlanOptions, build_plans  # noqa: PLC0415
    from milnce_convert.plan_module import choose_toolkit  # noqa: PLC0415
    from milnce_convert.plan_profiles import PlanSizes, parse_pictures, parse_spans  # noqa: PLC0415
    from milnce_convert.plan_settings import BuilderSettings  # noqa: PLC0415

    if debugging():  # TensorRT says in its log what it does
        logging.basicConfig(level=logging.DEBUG)
    options = PlanOptions(
        modules=_tuple(module),
        precisions=_tuple(precision),
        input_forms=_tuple(input_form),
        sizes=PlanSizes(
            batch=None if batch is None else parse_spans(batch, "--batch"),
            text_batch=None if text_batch is None else parse_spans(text_batch, "--text-batch"),
            frames=None if frames is None else parse_spans(frames, "--frames"),
            pictures=None if size is None else parse_pictures(size, "--size"),
            words=None if words is None else parse_spans(words, "--words"),
        ),
        settings=BuilderSettings(
            workspace_bytes=None if workspace_mb is None else workspace_mb * 10**6,
            optimization_level=optimization_level,
            hardware_compatibility=hardware_compatibility,
            version_compatible=version_compatible,
            tf32=tf32,
            compute_capabilities=_tuple(compute_capability),
            tactic_sources=_tuple(tactic_source),
        ),
        timing_cache=timing_cache,
        force=force,
    )
    opened = Bundle.open(bundle)
    toolkit = choose_toolkit(library, device=gpu)
    say(printable(str(toolkit)))
    folder = plans or opened.path / "plans"
    built: list[BuiltPlan] = []
    try:
        with BuildProgress() as progress:
            build_plans(opened, folder, options, toolkit=toolkit, progress=progress, finished=built.append)
    except BaseException:  # also Ctrl-C
        if built:
            names = ", ".join(item.plan.file for item in built)
            say(printable(f"Finished, and kept in {folder}: {names}"))
        raise
    if json_output:
        plans_json = [{**item.plan.to_json(), "kept": item.kept} for item in built]
        print_json({"folder": str(folder), "library": str(toolkit.library), "plans": plans_json})
    else:
        _print(folder, built)
    _name_stale(folder, opened, toolkit)


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def _print(folder: Path, built: Sequence[BuiltPlan]) -> None:
    total = sum(item.plan.bytes for item in built)
    typer.echo(printable(f"{folder}: {len(built)} plan{'s' * (len(built) != 1)}, {bytes_text(total)}"))
    rows = [
        [
            f"{item.plan.module} {item.plan.input_form} {item.plan.precision}{' (TF32)' if item.plan.tf32 else ''}",
            ", ".join(sizes.replace("_", ",").replace("x", " x ") for sizes in profile_sizes(item.plan.profiles)),
            _layers(item.plan),
            bytes_text(item.plan.bytes),
            "kept" if item.kept else f"{item.plan.build_s:.1f} s",
        ]
        for item in built
    ]
    columns = [("plan", "left"), ("sizes", "left"), ("layers", "left"), ("size", "right"), ("built in", "right")]
    print_table(columns, rows)


def _layers(plan: Plan) -> str:
    """Say how many layers compute in which dtype, as the last inspection that saw layers found it."""
    seen: dict[str, dict[str, int]] = {}
    for inspection in plan.options.get("inspected", []):
        seen = inspection["layers"] or seen
    counts = [
        f"{count} {kind}{'s' if count != 1 else ''} in {dtype}"
        for kind, dtypes in seen.items()
        for dtype, count in dtypes.items()
    ]
    return "\n".join(counts)


def _name_stale(folder: Path, bundle: Bundle, toolkit: Toolkit) -> None:
    """Name plans of this library that nothing can run any more, so that they can be deleted."""
    hashes = {graph.sha256 for graph in bundle.manifest.graphs}
    stale = [
        plan.file
        for plan in sidecars(folder)[0]
        if plan.library == toolkit.library.name
        and (plan.onnx_sha256 not in hashes or plan.library_version != toolkit.library.version)
    ]
    if stale:
        # With their sidecars, and the kernels that TensorRT-RTX keeps.
        files = sorted(path.name for path in folder.iterdir() if path.name.startswith(tuple(stale)))
        say(printable(f"Plans of other graphs or versions are left in {folder}; delete them: {', '.join(files)}"))
