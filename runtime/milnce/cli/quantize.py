"""`milnce quantize`: a bundle's video graph to INT8, calibrated on videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce.cli.common import (
    EXIT_FAILED,
    JsonOption,
    failures_json,
    print_json,
    printable,
    report_failures,
    reported,
    size,
)
from milnce.cli.info import print_parity, print_retrieval
from milnce.errors import InputError

if TYPE_CHECKING:
    from milnce_convert.quantize import Quantized

_CAPTIONS = "Captions"

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder, made by `milnce export`.")]
VideosOption = Annotated[
    list[Path],
    typer.Option("--videos", help="Folder with videos like those that will be searched, or one. Can be given again."),
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Bundle folder to make.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace --out if it is there; without --out, replace BUNDLE itself.")
]
ClipsOption = Annotated[int, typer.Option("--clips", min=8, help="Clips to calibrate on, at most.")]
HeldOutOption = Annotated[int, typer.Option("--held-out", min=8, help="Other clips to measure on, at most.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Decides which clips.")]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="How clips are sampled; as the bundle does when left out.")
]
FallOption = Annotated[
    float,
    typer.Option("--largest-fall", min=0, max=100, help="Points that R@1 and R@5 may fall; beyond, nothing is made."),
]
CaptionsOption = Annotated[
    Path | None,
    typer.Option(
        "--captions",
        "-c",
        help="Captions file of the videos (two or more): also measure retrieval by them, on those held out.",
        rich_help_panel=_CAPTIONS,
    ),
]
VideoColumnOption = Annotated[
    str, typer.Option(help="Column with the video's name, or a pattern.", rich_help_panel=_CAPTIONS)
]
CaptionColumnOption = Annotated[str, typer.Option(help="Column with the sentence.", rich_help_panel=_CAPTIONS)]


@reported
def quantize(  # noqa: PLR0913  # a command's options are its parameters
    bundle: BundleArgument,
    *,
    videos: VideosOption,
    out: OutOption = None,
    overwrite: OverwriteOption = False,
    clips: ClipsOption = 128,
    held_out: HeldOutOption = 128,
    seed: SeedOption = 0,
    preset: PresetOption = None,
    largest_fall: FallOption = 1.0,
    captions: CaptionsOption = None,
    video_column: VideoColumnOption = "video",
    caption_column: CaptionColumnOption = "caption",
    json_output: JsonOption = False,
) -> None:
    """Add an INT8 video graph to a bundle, for --precision int8 on a CPU: faster than FP32, see the benchmarks.

    Some of the videos calibrate it; on others it is compared with FP32, and it is not written if it retrieves worse
    by more than a point. Exits with 1 if a video could not be read, though the bundle is made of the others.
    Needs the extras "int8" and "video", and no PyTorch.
    """
    from milnce.bundle import Bundle  # noqa: PLC0415  # commands import what they need when they run
    from milnce.captions import CaptionColumns, read_captions  # noqa: PLC0415
    from milnce.cli.progress import Stages  # noqa: PLC0415
    from milnce_convert.quantize import QuantizeOptions, quantize_bundle  # noqa: PLC0415

    if out is None and not overwrite:
        raise InputError("--out is missing; name the bundle folder to make, or give --overwrite to replace BUNDLE")
    opened = Bundle.open(bundle)
    columns = CaptionColumns(video=video_column, caption=caption_column)
    options = QuantizeOptions(
        clips=clips,
        held_out=held_out,
        seed=seed,
        preset=preset,
        captions=None if captions is None else read_captions(captions, columns),
        largest_fall_points=largest_fall,
        overwrite=overwrite,
    )
    with Stages() as stages:
        made = quantize_bundle(opened, out or bundle, videos, options, stages)
    if json_output:
        print_json(_document(made))
    else:
        graph = made.graph
        typer.echo(printable(f"{made.bundle.path}: {graph.file}, {size(graph.bytes)}"))
        print_parity(made.bundle, precision="int8")
        print_retrieval(made.bundle)
    report_failures(made.failed, len(made.failed) + _used(made))
    if made.failed:
        raise typer.Exit(EXIT_FAILED)


def _used(made: Quantized) -> int:
    about = made.bundle.manifest.made["quantized"]
    return len(about["calibration"]["videos"]) + int(about["held_out"]["videos"])


def _document(made: Quantized) -> dict[str, Any]:
    return {
        "path": str(made.bundle.path),
        "graph": made.graph.to_json(),
        "quantized": made.bundle.manifest.made["quantized"],
        "failed": failures_json(made.failed),
    }
