"""`milnce search`: a sentence and videos to ranked moments and a contact sheet."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce.cli.common import (
    EXIT_FAILED,
    BackendOption,
    BatchOption,
    BundleOption,
    DeviceOption,
    EndOption,
    JsonOption,
    OverwriteOption,
    PrecisionOption,
    PresetOption,
    StartOption,
    StrideOption,
    ThreadsOption,
    choose_preset,
    clock,
    describe_model,
    describe_preset,
    failures_json,
    make_console,
    open_model,
    print_json,
    print_table,
    printable,
    report_failures,
    reported,
    say,
)
from milnce.errors import InputError, MilnceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.model import Model
    from milnce.search import Moment, WindowPool
    from milnce.video import Preset

QueryArgument = Annotated[str, typer.Argument(metavar="SENTENCE", help="What to look for, such as 'cutting a tomato'.")]
PathsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="PATHS", help="Videos, folders of videos, or features files of `milnce embed`."),
]
TopOption = Annotated[int, typer.Option("--top", "-k", min=1, help="How many moments to show.")]
PerFileOption = Annotated[bool, typer.Option("--per-file", help="Only the best moment of each video.")]
SheetOption = Annotated[
    Path | None, typer.Option("--sheet", help="Also draw the best frames side by side in this picture (.png).")
]

_BAR_CELLS = 12


@reported
def search(  # noqa: PLR0913  # a command's options are its parameters
    query: QueryArgument,
    paths: PathsArgument,
    *,
    bundle: BundleOption,
    top: TopOption = 10,
    per_file: PerFileOption = False,
    sheet: SheetOption = None,
    overwrite: OverwriteOption = False,
    preset: PresetOption = None,
    stride_frames: StrideOption = None,
    start_s: StartOption = None,
    end_s: EndOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch_size: BatchOption = 8,
    json_output: JsonOption = False,
) -> None:
    """Rank the moments of videos by a sentence, best first.

    The score is the model's own: the dot product of the sentence's and the window's embeddings, without a fixed range.
    Features files spare the decoding; they must come from the same weights as the bundle. Of them --start-s and --end-s
    keep the windows that lie between, and sampling options do nothing, as they were sampled when they were made.
    """
    from milnce.pipeline import check_range  # noqa: PLC0415
    from milnce.sheet import check_sheet_destination, require_pillow  # noqa: PLC0415

    if not query.strip():
        raise InputError("the sentence is empty; say what to look for")
    if sheet is not None:
        require_pillow()
        check_sheet_destination(sheet, overwrite=overwrite)
    check_range(start_s, end_s)
    stored, videos = _split(paths)
    if not videos and not (preset is None and stride_frames is None):
        raise InputError(
            "--preset and --stride-frames say how videos are sampled, but only features files are given, which were "
            "sampled when they were made; leave the options out, or give the videos"
        )
    with open_model(
        bundle, backend=backend, device=device, precision=precision, threads=threads, video=bool(videos), text=True
    ) as model:
        unknown = model.tokenizer.unknown(query)
        if unknown:
            say(printable(f"Not in the vocabulary, ignored: {', '.join(unknown)}"))
        text = model.encode_text(query)[0]
        pool, presets, failed = _read_stored(stored, model, (start_s, end_s))
        sampling = choose_preset(model, preset, stride_frames) if videos else None
        if sampling is not None:
            presets.add(sampling.digest)
            failed += _embed(model, videos, pool, sampling, batch_size, (start_s, end_s))
        described = describe_model(model)
    if len(presets) > 1:
        say("Warning: the windows come from different presets; their scores are not fully comparable.")
    report_failures(failed, len(stored) + len(videos))
    # No window at all: every file failed, which was reported, and there is nothing to rank.
    moments, lowest = pool.search(text, top, per_file=per_file) if len(pool) else ([], 0.0)
    if moments and not json_output:
        _print(moments, lowest)
    # After the table, which must not be lost when drawing fails.
    drawn = sheet is not None and bool(moments) and _draw(moments, query, sheet, failed, overwrite=overwrite)
    if json_output:
        document: dict[str, Any] = {
            "query": query,
            "unknown_words": unknown,
            "windows": len(pool),
            "results": [asdict(moment) for moment in moments],
            "failed": failures_json(failed),
            "sheet": str(sheet) if drawn else None,
            "model": described,
            "preset": None if sampling is None else describe_preset(sampling),
        }
        print_json(document)
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _split(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Tell features files from videos by suffix, and find the videos in folders."""
    from milnce.features import SUFFIXES  # noqa: PLC0415
    from milnce.video.files import find_videos  # noqa: PLC0415

    stored = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    others = [path for path in paths if path not in stored]
    return stored, find_videos(others) if others else []


def _read_stored(
    stored: Sequence[Path], model: Model, span_s: tuple[float | None, float | None]
) -> tuple[WindowPool, set[str], list[tuple[Path | str, MilnceError]]]:
    """Read the features files; return their windows, the digests of their presets, and the files that failed."""
    from milnce.search import WindowPool  # noqa: PLC0415

    pool = WindowPool()
    presets: set[str] = set()
    failed: list[tuple[Path | str, MilnceError]] = []
    for path in stored:
        try:
            presets.add(_add_stored(path, model, span_s, pool))
        except InputError as error:  # noqa: PERF203  # each file fails alone
            failed.append((path, error))
    return pool, presets, failed


def _add_stored(path: Path, model: Model, span_s: tuple[float | None, float | None], pool: WindowPool) -> str:
    """Put the file's windows that lie in the span into the pool; return the digest of their preset."""
    import numpy as np  # noqa: PLC0415

    from milnce.features import read_features  # noqa: PLC0415

    features = read_features(path)
    digest = model.bundle.manifest.model_digest
    if features.metadata.model_digest != digest:
        raise InputError(
            f"{path}: made with the model {features.metadata.model_digest[:12]}..., but {model.bundle.path} is "
            f"{digest[:12]}...; their embeddings cannot be compared. Embed the videos again with this bundle"
        )
    columns = (features.path, features.start_s, features.end_s, features.embedding)
    if span_s != (None, None):
        begin, finish = span_s[0] or 0.0, np.inf if span_s[1] is None else span_s[1]
        inside = np.flatnonzero((features.start_s >= begin) & (features.end_s <= finish))
        if not len(inside):
            raise InputError(f"{path}: none of its windows lies between the given start and end; widen them")
        paths = tuple(features.path[row] for row in inside)
        columns = (paths, features.start_s[inside], features.end_s[inside], features.embedding[inside])
    pool.add(*columns)
    return features.metadata.preset_digest


def _embed(  # the sampling options and where to put the result
    model: Model,
    videos: Sequence[Path],
    pool: WindowPool,
    preset: Preset,
    batch_size: int,
    span_s: tuple[float | None, float | None],
) -> list[tuple[Path | str, MilnceError]]:
    """Embed the videos into the pool; return those that could not be."""
    from milnce.cli.progress import FileProgress  # noqa: PLC0415
    from milnce.pipeline import embed_files  # noqa: PLC0415

    failed: list[tuple[Path | str, MilnceError]] = []
    with FileProgress(len(videos)) as progress:
        for item in embed_files(
            model,
            videos,
            preset=preset,
            batch_size=batch_size,
            start_s=span_s[0],
            end_s=span_s[1],
            on_window=progress.on_window,
        ):
            progress.on_file()
            if item.error is not None:
                failed.append((item.path, item.error))
                continue
            starts, ends = [window.start_s for window in item.windows], [window.end_s for window in item.windows]
            pool.add([str(item.path)] * len(item.windows), starts, ends, item.embedding)
    return failed


def _draw(
    moments: Sequence[Moment],
    query: str,
    destination: Path,
    failed: list[tuple[Path | str, MilnceError]],
    *,
    overwrite: bool,
) -> bool:
    """Draw the contact sheet from the middle frame of each window; add what failed, and return whether it is there."""
    from milnce.sheet import FRAME_HEIGHT, Tile, contact_sheet, save_sheet  # noqa: PLC0415
    from milnce.video import read_frame  # noqa: PLC0415

    tiles = []
    for moment in moments:
        path = Path(moment.path)
        try:
            frame = read_frame(path, (moment.start_s + moment.end_s) / 2, height=FRAME_HEIGHT)
        except MilnceError as error:
            say(printable(f"No picture for rank {moment.rank}: {error}"))
            failed.append((path, error))
            frame = None
        tiles.append(Tile(frame, moment.rank, moment.score, printable(path.name), _when(moment)))
    try:
        save_sheet(contact_sheet(tiles, printable(query)), destination, overwrite=overwrite)
    except MilnceError as error:
        say(printable(f"Failed: {error}"))
        failed.append((destination, error))
        return False
    return True


def _print(moments: Sequence[Moment], lowest: float) -> None:
    """Print the table; bars run from the lowest score of all windows (empty) to the best (full)."""
    span = max(moments[0].score - lowest, 1e-12)
    rows = [
        [
            str(moment.rank),
            f"{moment.score:.3f}",
            _bar((moment.score - lowest) / span),
            _when(moment),
            moment.path,
        ]
        for moment in moments
    ]
    print_table([("rank", "right"), ("score", "right"), ("", "left"), ("time", "left"), ("file", "left")], rows)


def _bar(fraction: float) -> str:
    block = "█" if make_console().encoding.startswith("utf") else "#"
    return block * round(fraction * _BAR_CELLS)


def _when(moment: Moment) -> str:
    return f"{clock(moment.start_s)} - {clock(moment.end_s)}"
