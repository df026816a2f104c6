"""`milnce search`: a sentence, a clip or a vector, and videos, to ranked moments and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    report_failures,
    reported,
    say,
)
from milnce.errors import InputError

PathsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="[SENTENCE] PATHS",
        help="What to look for, such as 'cutting a tomato', unless --query, --clip or --vector says it; then videos, "
        "folders of videos, or features files of `milnce embed`.",
        show_default=False,
    ),
]
QueryOption = Annotated[
    list[str] | None,
    typer.Option("--query", "-q", help="A sentence; give it several times for several searches at once."),
]
ClipOption = Annotated[
    Path | None, typer.Option("--clip", help="Look for the like of this video: the mean of its windows.")
]
ClipStartOption = Annotated[float | None, typer.Option("--clip-start-s", min=0, help="Start in the clip, seconds.")]
ClipEndOption = Annotated[float | None, typer.Option("--clip-end-s", min=0, help="End in the clip, seconds.")]
VectorOption = Annotated[
    Path | None, typer.Option("--vector", help="Look for this vector: a .npy file, such as --save-vector writes.")
]
SaveVectorOption = Annotated[
    Path | None, typer.Option("--save-vector", help="Also write the query's vector to this .npy file.")
]
TopOption = Annotated[int, typer.Option("--top", "-k", min=1, help="How many moments to show.")]
PerFileOption = Annotated[bool, typer.Option("--per-file", help="Only the best moment of each video.")]
NoMergeOption = Annotated[
    bool, typer.Option("--no-merge", help="Show single windows; do not merge neighbours into moments.")
]
SheetOption = Annotated[
    Path | None, typer.Option("--sheet", help="Also draw the best frames side by side in this picture (.png).")
]
IndexOption = Annotated[
    Path | None,
    typer.Option("--index", help="Keep the embeddings of videos in this file; in your cache folder when left out."),
]
NoIndexOption = Annotated[bool, typer.Option("--no-index", help="Embed all videos anew and keep nothing.")]


@reported
def search(  # noqa: PLR0913  # a command's options are its parameters
    arguments: PathsArgument,
    *,
    bundle: BundleOption,
    query: QueryOption = None,
    clip: ClipOption = None,
    clip_start_s: ClipStartOption = None,
    clip_end_s: ClipEndOption = None,
    vector: VectorOption = None,
    save_vector: SaveVectorOption = None,
    top: TopOption = 10,
    per_file: PerFileOption = False,
    no_merge: NoMergeOption = False,
    sheet: SheetOption = None,
    overwrite: OverwriteOption = False,
    index: IndexOption = None,
    no_index: NoIndexOption = False,
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
    json_output: JsonOption = False,
) -> None:
    """Rank the moments of videos by a sentence, a clip or a vector, best first.

    The score is the model's own: the dot product of the query's and a window's embeddings, without a fixed range.
    Neighbouring windows that score nearly as well as the best of them are shown as one moment, with the best's score.
    A clip that is itself among the videos is found, mostly first: dot products favour long vectors.

    Videos are embedded once and kept in an index: later searches embed only what is new or changed.
    With --start-s or --end-s they are embedded anew, as the index keeps whole videos.

    Features files spare the decoding too. They must come from the same weights as the bundle.
    Of them --start-s and --end-s keep the windows that lie between; sampling options do nothing.
    """
    from milnce.cli.search_output import Answer, answers_json, draw_answers, print_answers  # noqa: PLC0415
    from milnce.cli.search_query import make_queries, read_arguments  # noqa: PLC0415
    from milnce.cli.search_sources import IndexChoice, find_sources, gather  # noqa: PLC0415
    from milnce.vectors import save_vector as write_vector  # noqa: PLC0415

    asked = read_arguments(arguments, query or [], clip, (clip_start_s, clip_end_s), vector)
    _check_outputs(sheet, save_vector, len(asked.sentences), overwrite=overwrite)
    sources = find_sources(asked.paths, (start_s, end_s), IndexChoice(index, kept=not no_index))
    how: PipelineOptions = {
        "batch_size": batch_size,
        "workers": workers,
        "stall_s": stall_s,
        "decoder": decoder,
    }
    sampled = bool(sources.videos) or clip is not None
    if not sampled and not (preset is None and stride_frames is None):
        raise InputError(
            "--preset and --stride-frames say how videos are sampled, but only features files are given, which were "
            "sampled when they were made; leave the options out, or give the videos"
        )
    with open_model(
        # The video tower is opened when something must be embedded: with all in the index, nothing must.
        bundle,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        plans=plans,
        video=False,
        text=bool(asked.sentences),
    ) as model:
        sampling = choose_preset(model, preset, stride_frames) if sampled else None
        queries = make_queries(asked, model, sampling, how)
        if save_vector is not None:
            write_vector(save_vector, queries[0].vector, overwrite=overwrite)
        gathered = gather(sources, model, queries, sampling, how)
        described = describe_model(model)
    if len(gathered.presets | {one.preset for one in queries if one.preset}) > 1:
        say("Warning: the windows come from different presets; their scores are not fully comparable.")
    report_failures(gathered.failed, sources.total)
    answers = [
        Answer(one, *gathered.windows.find(top, query=number, merge=not no_merge, per_file=per_file))
        for number, one in enumerate(queries)
    ]
    # No window at all: every file failed, which was reported, and there is nothing to rank.
    found = len(gathered.windows) > 0
    if found and not json_output:
        print_answers(answers)
    # After the table, which must not be lost when drawing fails.
    drawn = sheet is not None and found and draw_answers(answers, sheet, gathered.failed, overwrite=overwrite)
    if json_output:
        print_json(
            {
                "queries": answers_json(answers),
                "windows": len(gathered.windows),
                "failed": failures_json(gathered.failed),
                "sheet": str(sheet) if drawn else None,
                "index": gathered.index,
                "model": described,
                "preset": None if sampling is None else describe_preset(sampling),
            }
        )
    if gathered.failed:
        raise typer.Exit(EXIT_FAILED)


def _check_outputs(sheet: Path | None, save_vector: Path | None, sentences: int, *, overwrite: bool) -> None:
    """Refuse, before any work, what could not be written at its end."""
    from milnce.sheet import check_sheet_destination, require_pillow  # noqa: PLC0415
    from milnce.vectors import check_vector_destination  # noqa: PLC0415

    if sheet is not None:
        require_pillow()
        check_sheet_destination(sheet, overwrite=overwrite)
    if save_vector is not None:
        if sentences > 1:
            raise InputError(f"--save-vector keeps one query's vector, but {sentences} are given; give one")
        check_vector_destination(save_vector, overwrite=overwrite)
