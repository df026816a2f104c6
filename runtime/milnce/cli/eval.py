"""`milnce eval`: captions and videos to a retrieval table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milnce.cli.common import (
    EXIT_FAILED,
    BackendOption,
    BatchOption,
    BundleOption,
    DecoderOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    PipelineOptions,
    PlansOption,
    PrecisionOption,
    PresetOption,
    StallOption,
    StrideOption,
    ThreadsOption,
    WorkersOption,
    choose_preset,
    describe_model,
    open_model,
    print_json,
    reported,
    say,
)
from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.captions import Captions
    from milnce.clip_sources import StoredFeatures
    from milnce.evaluation import ClipEmbeddings
    from milnce.model import Model
    from milnce.video import Preset

_COLUMNS, _PAGE = "Columns and rows", "Page"

CaptionsOption = Annotated[Path, typer.Option("--captions", "-c", help="Captions file: .csv, .tsv or .parquet.")]
VideosOption = Annotated[
    list[Path] | None, typer.Option("--videos", help="Folder with the videos, or a video. Can be given again.")
]
FeaturesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--features",
        help="Features file of `milnce embed`, or a folder of them: used instead of decoding. Can be given again.",
    ),
]
VideoColumnOption = Annotated[
    str,
    typer.Option(
        help="Column with the video's name; or a pattern such as 'validation/{task}/{video_id}'.",
        rich_help_panel=_COLUMNS,
    ),
]
CaptionColumnOption = Annotated[str, typer.Option(help="Column with the sentence.", rich_help_panel=_COLUMNS)]
StartColumnOption = Annotated[
    str | None,
    typer.Option(help="Column with the clip's start in seconds; 'start' if there.", rich_help_panel=_COLUMNS),
]
EndColumnOption = Annotated[
    str | None, typer.Option(help="Column with the clip's end in seconds; 'end' if there.", rich_help_panel=_COLUMNS)
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="COLUMN=VALUE", help="Read only these rows.", rich_help_panel=_COLUMNS),
]
QueriesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--queries",
        metavar="COLUMN=VALUE",
        help="Ask only the captions of these rows; the clips of all rows stay candidates.",
        rich_help_panel=_COLUMNS,
    ),
]
SkipOption = Annotated[
    bool,
    typer.Option("--skip-bad-rows", help="List rows that cannot be used and go on.", rich_help_panel=_COLUMNS),
]
DuplicatesOption = Annotated[
    bool,
    typer.Option("--keep-duplicates", help="Count a repeated row as a caption of its own.", rich_help_panel=_COLUMNS),
]
MetricOption = Annotated[
    str, typer.Option("--metric", help="ce (collaborative-experts), milnce (MIL-NCE's own evaluation) or both.")
]
MaxWordsOption = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="Words of a caption that count; the bundle's own when left out.")
]
PublishedOption = Annotated[bool, typer.Option("--published", help="Print the model's published results beside it.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", help="Also write a page with queries and their top clips.", rich_help_panel=_PAGE),
]
HtmlQueriesOption = Annotated[
    int,
    typer.Option(min=1, help="Queries on the page, chosen evenly over the captions file.", rich_help_panel=_PAGE),
]
HtmlTopOption = Annotated[int, typer.Option(min=1, help="Clips shown under a query.", rich_help_panel=_PAGE)]


@reported
def evaluate(  # noqa: PLR0913  # a command's options are its parameters
    *,
    bundle: BundleOption,
    captions: CaptionsOption,
    videos: VideosOption = None,
    features: FeaturesOption = None,
    metric: MetricOption = "ce",
    published: PublishedOption = False,
    markdown: MarkdownOption = False,
    json_output: JsonOption = False,
    max_words: MaxWordsOption = None,
    video_column: VideoColumnOption = "video",
    caption_column: CaptionColumnOption = "caption",
    start_column: StartColumnOption = None,
    end_column: EndColumnOption = None,
    where: WhereOption = None,
    queries: QueriesOption = None,
    skip_bad_rows: SkipOption = False,
    keep_duplicates: DuplicatesOption = False,
    html: HtmlOption = None,
    html_queries: HtmlQueriesOption = 200,
    html_top: HtmlTopOption = 5,
    overwrite: OverwriteOption = False,
    preset: PresetOption = None,
    stride_frames: StrideOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    plans: PlansOption = None,
    batch_size: BatchOption = 8,
    workers: WorkersOption = None,
    stall_s: StallOption = 60.0,
    decoder: DecoderOption = "auto",
) -> None:
    """Measure retrieval: each caption looks for its clip among all clips, and each clip for its caption.

    The captions file has a row a caption: video, caption and, for a stretch of the video, start and end in seconds.
    Rows with the same video, start and end are captions of one clip. A video is named by the end of its path, with or
    without suffix. A clip's embedding is the mean of its windows', the score is the dot product. Of stored features a
    clip takes the windows that lie inside it.

    With --queries, video to text is measured for the clips that have a query, among the queries.

    YouCook2's list loads with --video-column 'validation/{task}/{video_id}' --caption-column text, MSR-VTT's with
    --video-column video_id --caption-column sentence, MSVD's with --video-column '{VideoID}_{Start}_{End}'
    --caption-column Description --where Language=English.
    """
    from milnce.captions import CaptionColumns, read_captions  # noqa: PLC0415  # commands import what they need
    from milnce.cli.eval_output import Run, document, print_evaluation, report_losses, write_html  # noqa: PLC0415
    from milnce.evaluation import check_metric  # noqa: PLC0415
    from milnce.evaluation import evaluate as measure  # noqa: PLC0415
    from milnce.page import check_page_destination  # noqa: PLC0415
    from milnce.page_pictures import require_pillow  # noqa: PLC0415

    if not videos and not features:
        raise InputError("no videos: give --videos FOLDER, --features FILE, or both")
    for path in videos or []:
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises where it may not look
            raise InputError(f"{path}: no such folder or video")
    if markdown and json_output:
        raise InputError("--json and --markdown are given, and there is one output; choose one")
    if html is not None:
        require_pillow()
        check_page_destination(html, overwrite=overwrite)
    columns = CaptionColumns(
        video_column, caption_column, start_column, end_column, _pairs("--where", where), _pairs("--queries", queries)
    )
    asked = read_captions(captions, columns, skip_bad_rows=skip_bad_rows, keep_duplicates=keep_duplicates)
    chosen = check_metric(metric, asked)
    how: PipelineOptions = {
        "batch_size": batch_size,
        "workers": workers,
        "stall_s": stall_s,
        "decoder": decoder,
    }
    if not asked.times:
        say(
            "No column start or end: every clip is a whole video. If the captions have times, name their columns with "
            "--start-column and --end-column."
        )
    with open_model(
        bundle,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        plans=plans,
        video=not features,
        text=True,
    ) as model:
        sampling = choose_preset(model, preset, stride_frames)
        stored = _read_stored(features or [], model, sampling)
        clips = _embed(model, asked, sampling, stored, videos or [], how)
        result = measure(model, asked, clips, metric=chosen, max_words=max_words)
        run = Run(result, describe_model(model), sampling, stored)
    report_losses(result)
    if not json_output:
        print_evaluation(run, published=published, markdown=markdown)
    # After the table, which must not be lost when the page fails.
    page = html if result.metrics else None
    failure = None if page is None else write_html(run, page, (html_queries, html_top), overwrite=overwrite)
    if json_output:
        print_json(document(run, published=published, html=page, html_failure=failure))
    if result.failed or failure is not None:
        raise typer.Exit(EXIT_FAILED)


def _pairs(option: str, given: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in given or ():
        column, sign, value = text.partition("=")
        if not column or not sign:
            raise InputError(f"{option} {text!r} given; COLUMN=VALUE expected, such as split=test")
        pairs.append((column, value))
    return tuple(pairs)


def _read_stored(paths: Sequence[Path], model: Model, preset: Preset) -> StoredFeatures | None:
    from milnce.clip_sources import StoredFeatures  # noqa: PLC0415

    digest = model.bundle.manifest.model_digest
    return StoredFeatures.read(paths, model_digest=digest, preset=preset) if paths else None


def _embed(  # the sources and how they are sampled
    model: Model,
    captions: Captions,
    preset: Preset,
    stored: StoredFeatures | None,
    videos: Sequence[Path],
    how: PipelineOptions,
) -> ClipEmbeddings:
    from milnce.cli.progress import FileProgress  # noqa: PLC0415
    from milnce.evaluation import embed_clips  # noqa: PLC0415
    from milnce.video.files import find_videos  # noqa: PLC0415

    files = find_videos(videos) if videos else []
    with FileProgress(len(captions.clips)) as progress:
        return embed_clips(model, captions, preset=preset, stored=stored, videos=files, progress=progress, **how)
