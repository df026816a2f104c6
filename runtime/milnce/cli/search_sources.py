"""Where `milnce search` looks: videos through the index or without, and features files."""

from __future__ import annotations

import functools
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.cli.common import open_video, printable, say
from milnce.errors import InputError, MilnceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.cli.common import PipelineOptions
    from milnce.cli.search_query import Query
    from milnce.cli.search_repeats import Repeats
    from milnce.index import IndexUpdate
    from milnce.model import Model
    from milnce.pipeline import FileEmbeddings
    from milnce.search import ScoredWindows
    from milnce.video import Preset

    SpanS = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class IndexChoice:
    """Where to keep the embeddings of videos, if at all.

    Attributes:
        path: The file, or None for the one in the cache folder.
        kept: Whether they are kept.
    """

    path: Path | None
    kept: bool


@dataclass(frozen=True, slots=True)
class Sources:
    """What to search.

    Attributes:
        stored: Features files.
        videos: Video files, those of the folders too.
        folders: The folders.
        span_s: Start and end in each file, in seconds.
        index: Where videos' embeddings are kept.
    """

    stored: list[Path]
    videos: list[Path]
    folders: list[Path]
    span_s: SpanS
    index: IndexChoice

    @property
    def total(self) -> int:
        """How many files there are."""
        return len(self.stored) + len(self.videos)


@dataclass(slots=True)
class Gathered:
    """The scores of all windows, and how they were come by.

    Attributes:
        windows: The scores.
        presets: Digests of the presets that the windows were sampled with.
        failed: Files that failed, and why.
        repeats: What features files gave, which other sources may give again.
        index: What JSON output says about the index; None without one.
    """

    windows: ScoredWindows
    presets: set[str]
    failed: list[tuple[Path | str, MilnceError]]
    repeats: Repeats
    index: dict[str, Any] | None = None

    def add(self, video: str, parts: Iterable[tuple[NDArray[np.float64], NDArray[np.float32]]]) -> None:
        """Add a video's windows, times and scores some at a time, less those that were there before."""
        self.windows.add_file(video)
        for spans_s, scores in parts:
            rows = self.repeats.new(video, spans_s, scores)
            self.windows.add(spans_s[rows], scores[rows])


def find_sources(paths: Sequence[Path], span_s: SpanS, index: IndexChoice) -> Sources:
    """Tell features files from videos by suffix, and find the videos in folders.

    Raises:
        InputError: if there is nothing to search, or options contradict each other.
    """
    from milnce.features import SUFFIXES  # noqa: PLC0415  # commands import what they need when they run
    from milnce.pipeline import check_range  # noqa: PLC0415
    from milnce.video.files import find_videos  # noqa: PLC0415

    check_range(*span_s)
    if index.path is not None and not index.kept:
        raise InputError("--index and --no-index given; leave one out")
    if index.path is not None and span_s != (None, None):
        raise InputError("--index keeps whole videos, so it does not go with --start-s and --end-s; leave one out")
    # Path.is_dir raises where it may not look; a file that cannot be reached fails alone, when it is opened.
    folders = [path for path in paths if os.path.isdir(path)]  # noqa: PTH112
    features = [path for path in paths if path.suffix.lower() in SUFFIXES and path not in folders]
    others = [path for path in paths if path not in features]
    stored = list({os.path.realpath(path): path for path in reversed(features)}.values())[::-1]  # each once
    if span_s != (None, None):
        index = IndexChoice(None, kept=False)
    return Sources(stored, find_videos(others) if others else [], folders, span_s, index)


def gather(
    sources: Sources, model: Model, queries: Sequence[Query], preset: Preset | None, how: PipelineOptions
) -> Gathered:
    """Score every window of the sources against every query.

    Args:
        sources: Where to look.
        model: The model; its video tower is opened if something must be embedded.
        queries: What to look for.
        preset: How videos are sampled; needed if there are any.
        how: How videos are embedded.
    """
    from milnce.cli.search_repeats import Repeats  # noqa: PLC0415
    from milnce.search import ScoredWindows  # noqa: PLC0415

    vectors = np.stack([query.vector for query in queries])
    gathered = Gathered(ScoredWindows(len(queries)), set(), [], Repeats(remember=sources.total > 1))
    for path in sources.stored:
        try:
            gathered.presets.add(_add_stored(path, model, sources.span_s, vectors, gathered))
        except InputError as error:  # noqa: PERF203  # each file fails alone
            gathered.failed.append((path, error))
    if sources.videos and preset is not None:
        gathered.presets.add(preset.digest)
        search_videos = _through_index if sources.index.kept else _without_index
        search_videos(sources, model, preset, how, vectors, gathered)
    if gathered.repeats.count:
        say(f"{gathered.repeats.count} windows lie in several of the sources; each is found once.")
    return gathered


def _add_stored(path: Path, model: Model, span_s: SpanS, queries: NDArray[np.float32], gathered: Gathered) -> str:
    """Score the file's windows that lie in the span; return the digest of their preset."""
    from milnce.features import read_features  # noqa: PLC0415
    from milnce.search import score  # noqa: PLC0415

    features = read_features(path)
    digest = model.bundle.manifest.model_digest
    if features.metadata.model_digest != digest:
        raise InputError(
            f"{path}: made with the model {features.metadata.model_digest[:12]}..., but {model.bundle.path} is "
            f"{digest[:12]}...; their embeddings cannot be compared. Embed the videos again with this bundle"
        )
    begin_s, finish_s = span_s[0] or 0.0, np.inf if span_s[1] is None else span_s[1]
    inside = (features.start_s >= begin_s) & (features.end_s <= finish_s) if span_s != (None, None) else None
    if inside is not None and not inside.any():
        raise InputError(f"{path}: none of its windows lies between the given start and end; widen them")
    try:
        scores = score(queries, features.embedding)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    spans_s = np.stack([features.start_s, features.end_s], axis=1)
    rows_of: dict[str, list[int]] = {}
    for row, video in enumerate(features.path):
        if inside is None or inside[row]:
            rows_of.setdefault(video, []).append(row)
    for video, rows in rows_of.items():
        gathered.add(video, [(spans_s[rows], scores[rows])])
        gathered.repeats.remember(video, spans_s[rows], scores[rows])
    return features.metadata.preset_digest


def _through_index(
    sources: Sources,
    model: Model,
    preset: Preset,
    how: PipelineOptions,
    queries: NDArray[np.float32],
    gathered: Gathered,
) -> None:
    """Bring the index up to date with the videos, and score what it holds of them."""
    from milnce.cli.progress import FileProgress  # noqa: PLC0415
    from milnce.index import default_index_path, update_index  # noqa: PLC0415
    from milnce.index_file import IndexFile, IndexMakers  # noqa: PLC0415
    from milnce.search import score  # noqa: PLC0415

    makers = IndexMakers(
        model.bundle.manifest.model_digest, preset.digest, str(preset), model.precision, queries.shape[1]
    )
    path = sources.index.path or default_index_path(makers)
    with IndexFile(path, makers) as index:
        with FileProgress(len(sources.videos)) as progress:
            embed = functools.partial(_embed, model, preset, how, (None, None), progress.on_window)
            try:
                update = update_index(index, sources.videos, sources.folders, embed, on_file=progress.on_file)
            except KeyboardInterrupt:
                say(printable(f"Index {path}: it keeps the files that were done."))
                raise
        say(printable(f"Index {path}: {_counts(update)}"))
        gathered.failed += update.failed
        for video, sha256 in update.current.items():
            parts = index.windows(sha256)
            gathered.add(str(video), ((spans_s, score(queries, embedding)) for spans_s, embedding in parts))
    counts = asdict(update)
    gathered.index = {"path": str(path), "precision": makers.precision, **{name: counts[name] for name in _COUNTS}}


_COUNTS = ("new", "changed", "unchanged", "removed", "embedded")


def _counts(update: IndexUpdate) -> str:
    """Return what was found in words, less what was not."""
    counts = {name: getattr(update, name) for name in _COUNTS}
    embedded = counts.pop("embedded")
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no file"
    return f"{told}; {embedded} embedded"


def _without_index(
    sources: Sources,
    model: Model,
    preset: Preset,
    how: PipelineOptions,
    queries: NDArray[np.float32],
    gathered: Gathered,
) -> None:
    """Embed the videos, score their windows and keep nothing."""
    from milnce.cli.progress import FileProgress  # noqa: PLC0415
    from milnce.search import score  # noqa: PLC0415

    with FileProgress(len(sources.videos)) as progress:
        for item in _embed(model, preset, how, sources.span_s, progress.on_window, sources.videos):
            progress.on_file()
            if item.error is not None:
                gathered.failed.append((item.path, item.error))
                continue
            spans_s = np.array([(window.start_s, window.end_s) for window in item.windows], np.float64)
            gathered.add(str(item.path), [(spans_s, score(queries, item.embedding))])


def _embed(
    model: Model,
    preset: Preset,
    how: PipelineOptions,
    span_s: SpanS,
    on_window: Callable[..., None],
    paths: Sequence[Path],
) -> Iterator[FileEmbeddings]:
    from milnce.pipeline import embed_files  # noqa: PLC0415

    open_video(model)
    return embed_files(model, paths, preset=preset, start_s=span_s[0], end_s=span_s[1], on_window=on_window, **how)
