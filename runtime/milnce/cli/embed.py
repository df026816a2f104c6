"""`milnce embed`: videos to features on disk."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce.cli.common import (
    EXIT_FAILED,
    BackendOption,
    BatchOption,
    BundleOption,
    DecoderOption,
    DeviceOption,
    EndOption,
    JsonOption,
    OverwriteOption,
    PipelineOptions,
    PlansOption,
    PrecisionOption,
    PresetOption,
    StallOption,
    StartOption,
    StrideOption,
    ThreadsOption,
    WorkersOption,
    choose_preset,
    describe_model,
    describe_preset,
    failures_json,
    open_model,
    print_json,
    printable,
    report_failures,
    reported,
    size,
)

if TYPE_CHECKING:
    from milnce.errors import MilnceError
    from milnce.features import FeaturesMetadata
    from milnce.model import Model
    from milnce.video import Preset

PathsArgument = Annotated[list[Path], typer.Argument(metavar="PATHS", help="Videos, and folders to search for them.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Features file to write, .npz or .parquet.")]


@reported
def embed(  # noqa: PLR0913  # a command's options are its parameters
    paths: PathsArgument,
    *,
    bundle: BundleOption,
    out: OutOption,
    preset: PresetOption = None,
    stride_frames: StrideOption = None,
    start_s: StartOption = None,
    end_s: EndOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    plans: PlansOption = None,
    batch_size: BatchOption = 8,
    workers: WorkersOption = None,
    stall_s: StallOption = 60.0,
    decoder: DecoderOption = "auto",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Embed every window of the videos and write them to an NPZ or Parquet file.

    Columns: path, start_s, end_s, embedding (512) and mixed_5c (1024), with the model's and the preset's digests.
    """
    from milnce.cli.progress import FileProgress  # noqa: PLC0415  # commands import what they need when they run
    from milnce.features import FeatureWriter, check_destination  # noqa: PLC0415
    from milnce.pipeline import embed_files  # noqa: PLC0415
    from milnce.video.files import find_videos  # noqa: PLC0415

    check_destination(out, overwrite=overwrite)
    files = find_videos(paths)
    how: PipelineOptions = {
        "batch_size": batch_size,
        "workers": workers,
        "stall_s": stall_s,
        "decoder": decoder,
    }
    done: list[tuple[Path, int]] = []
    failed: list[tuple[Path | str, MilnceError]] = []
    with open_model(
        bundle,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        plans=plans,
        video=True,
        text=False,
    ) as model:
        sampling = choose_preset(model, preset, stride_frames)
        results = functools.partial(embed_files, model, files, preset=sampling, start_s=start_s, end_s=end_s, **how)
        with FeatureWriter(out, _metadata(model, sampling, start_s, end_s), overwrite=overwrite) as writer:
            with FileProgress(len(files)) as progress:
                for item in results(on_window=progress.on_window):
                    progress.on_file()
                    if item.error is not None:
                        failed.append((item.path, item.error))
                        continue
                    writer.append(item.path, item.windows, item.embedding, item.mixed_5c)
                    done.append((item.path, len(item.windows)))
            if done:
                writer.commit()
        described = describe_model(model)
    report_failures(failed, len(files))
    _print(out, done, failed, described, sampling, json_output=json_output)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _metadata(model: Model, preset: Preset, start_s: float | None, end_s: float | None) -> FeaturesMetadata:
    from milnce import __version__  # noqa: PLC0415
    from milnce.features import FeaturesMetadata  # noqa: PLC0415

    return FeaturesMetadata(
        model_digest=model.bundle.manifest.model_digest,
        preset_name=preset.name,
        preset_digest=preset.digest,
        preset=preset.to_json(),
        backend=f"{model.backend.name} {model.backend.device}",
        precision=model.backend.precision,
        milnce_version=__version__,
        start_s=start_s,
        end_s=end_s,
    )


def _print(  # what was done, what was not, and with what
    out: Path,
    done: list[tuple[Path, int]],
    failed: list[tuple[Path | str, MilnceError]],
    model: dict[str, Any],
    preset: Preset,
    *,
    json_output: bool,
) -> None:
    windows = sum(count for _, count in done)
    if json_output:
        document = {
            "output": str(out) if done else None,
            "windows": windows,
            "files": [{"path": str(path), "windows": count} for path, count in done],
            "failed": failures_json(failed),
            "model": model,
            "preset": describe_preset(preset),
        }
        print_json(document)
    elif done:
        many = f"{windows} windows of {len(done)} file{'s' if len(done) > 1 else ''}"
        typer.echo(printable(f"{out}: {many}, {size(out.stat().st_size)}, preset {preset}"))
    else:
        typer.echo(printable(f"{out}: not written, since no file could be embedded"))
