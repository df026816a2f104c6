"""From files to embeddings: decode, batch across files, infer, and hand back one result a file, in order."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.arguments import positive
from milnce.errors import BundleError, InputError, MilnceError, NonFiniteError, VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.model import Model
    from milnce.video import Preset


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """Where a window lies in its file.

    Attributes:
        index: Number of the window in its file, from 0.
        start_s: Time of its first frame, in seconds.
        end_s: Time at which it ends, in seconds.
    """

    index: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class FileEmbeddings:
    """What one file gave: the embeddings of its windows, or the error that stopped it.

    Attributes:
        path: The file, as it was given.
        windows: Where each window lies; empty when the file failed.
        embedding: float32 (windows, 512), to be compared with text. The width is the bundle's.
        mixed_5c: float32 (windows, 1024), the features before the projection.
        error: Why the file could not be done, or None. A failed file has no windows, not some of them.
        preset: How frames were sampled and resized.
    """

    path: Path
    windows: tuple[WindowSpan, ...]
    embedding: NDArray[np.float32]
    mixed_5c: NDArray[np.float32]
    error: MilnceError | None
    preset: Preset


@dataclass(slots=True, eq=False)
class _File:
    """One file under way; `waiting` clips are decoded and not yet inferred. Equal windows share a clip."""

    path: Path
    spans: list[WindowSpan] = field(default_factory=list)
    clip_of: list[int] = field(default_factory=list)  # for each window, which of the file's clips it is
    embedding: list[NDArray[np.float32]] = field(default_factory=list)
    mixed_5c: list[NDArray[np.float32]] = field(default_factory=list)
    waiting: int = 0
    decoded: bool = False
    error: MilnceError | None = None

    @property
    def done(self) -> bool:
        return self.decoded and self.waiting == 0

    def fail(self, error: MilnceError) -> None:
        self.error, self.decoded, self.waiting = error, True, 0
        self.spans, self.clip_of, self.embedding, self.mixed_5c = [], [], [], []


def resolve_preset(model: Model, preset: str | Preset | None) -> Preset:
    """Return the preset a name stands for; None is the sampling that the model's bundle was made for.

    Raises:
        InputError: if no preset has that name.
        BundleError: if the bundle's own sampling is not one this release knows.
    """
    from milnce.video.presets import Preset, get_preset  # noqa: PLC0415  # video is optional at import

    if isinstance(preset, Preset):
        return preset
    if preset is not None:
        return get_preset(preset)
    sampling = dict(model.bundle.manifest.sampling)
    name = sampling.pop("preset", None)
    try:
        return get_preset(str(name), **sampling)
    except (InputError, TypeError) as error:
        raise BundleError(
            f"{model.bundle.path}: the manifest's sampling is {dict(model.bundle.manifest.sampling)}, which this "
            f"release cannot follow ({error}); name a preset yourself"
        ) from error


def embed_files(
    model: Model,
    paths: Iterable[Path | str],
    *,
    preset: str | Preset | None = None,
    batch_size: int = 8,
    start_s: float | None = None,
    end_s: float | None = None,
    on_window: Callable[[Path, WindowSpan], None] | None = None,
) -> Iterator[FileEmbeddings]:
    """Embed the windows of many files, as a stream.

    Windows of several files share a batch, so many short files are as fast as one long one. At most `batch_size` clips
    are held, besides what the decoder holds itself and the embeddings of files not yet handed out (6 KiB a window).
    Closing the iterator closes the decoder.

    Args:
        model: A model with its video graph.
        paths: Video files, and folders to search for them.
        preset: A preset, its name, or None for the bundle's own.
        batch_size: Clips a batch, at least 1.
        start_s: Where to start in each file, in seconds; None is its beginning.
        end_s: Where to stop in each file, in seconds; None is its end.
        on_window: Called with the file and the window after each window is decoded, for progress.

    Yields:
        One result a file, in the order given. A file that cannot be decoded or does not have the times asked for
        yields its error and the others go on. A batch that gives NaN or infinity fails the files that are in it.

    Raises:
        InputError: before any work, if there is no path or a folder without videos only, the preset is unknown or
            makes clips that the bundle does not take, the batch size is below 1 or too large for the memory, or the
            times are not a range.
        MissingDependencyError: if PyAV is not installed.
        BackendError: if the model cannot run a batch; nothing more is yielded then.
    """
    from milnce.video.files import find_videos  # noqa: PLC0415  # video is optional at import

    check_range(start_s, end_s)
    spans = [(path, start_s, end_s) for path in find_videos(paths)]
    return embed_spans(model, spans, preset=preset, batch_size=batch_size, on_window=on_window)


def embed_spans(
    model: Model,
    spans: Iterable[tuple[Path, float | None, float | None]],
    *,
    preset: str | Preset | None = None,
    batch_size: int = 8,
    on_window: Callable[[Path, WindowSpan], None] | None = None,
) -> Iterator[FileEmbeddings]:
    """Embed the windows of stretches of files: all as in `embed_files`, but each file with its own start and end.

    Args:
        model: A model with its video graph.
        spans: (file, start in seconds or None, end in seconds or None); a file may come several times.
        preset: As in `embed_files`; so are the others.
        batch_size: Clips a batch.
        on_window: For progress.

    Yields:
        One result a span, in the order given.

    Raises:
        InputError: before any work, if a span is not a range, or as in `embed_files`.
    """
    batch_size = positive("batch_size", batch_size)
    items = [(path, (start_s, end_s)) for path, start_s, end_s in spans]
    for _, span_s in items:
        check_range(*span_s)
    sampling = resolve_preset(model, preset)
    _check_fits(model, sampling)
    return _stream(_Embedder(model, sampling, batch_size), items, on_window)


def check_range(start_s: float | None, end_s: float | None) -> None:
    """Make sure that the times, in seconds, are a range of some video; None leaves a side open.

    Raises:
        InputError: if they are negative, NaN, or not in order.
    """
    begin = 0.0 if start_s is None else start_s
    finish = np.inf if end_s is None else end_s
    if not (0 <= begin < finish):
        raise InputError(f"start {start_s} s and end {end_s} s given; 0 <= start < end expected, in seconds")


def _check_fits(model: Model, preset: Preset) -> None:
    """Hold the preset's clips against what the video graph takes, before anything is decoded."""
    spec = model.open("video", input_form="uint8").inputs[0]
    sizes = (preset.frames, preset.size, preset.size)
    if not all(axis.accepts(size) for axis, size in zip(spec.shape[1:4], sizes, strict=True)):
        raise InputError(
            f"preset {preset} makes clips of {preset.frames} frames of {preset.size} x {preset.size} pixels, but the "
            f"bundle {model.bundle.path} takes {spec}. Name no preset to sample as the bundle does, take one that "
            "fits, or export the bundle again for these clips"
        )


class _Embedder:
    """Fills one batch, whatever files its clips come from, and hands results back to their files."""

    def __init__(self, model: Model, preset: Preset, batch_size: int) -> None:
        self.model = model
        self.preset = preset
        # One allocation for the whole run; np.empty touches no page until a clip is copied in.
        shape = (batch_size, preset.frames, preset.size, preset.size, 3)
        try:
            self._clips: NDArray[np.uint8] = np.empty(shape, np.uint8)
        except (MemoryError, ValueError) as error:  # ValueError: more than there are addresses
            raise InputError(f"batch_size is {batch_size}, too large ({error}); take a smaller one") from error
        self._owners: list[_File] = []

    def add(self, file: _File, clip: NDArray[Any]) -> None:
        self._clips[len(self._owners)] = clip
        self._owners.append(file)
        file.waiting += 1
        if len(self._owners) == len(self._clips):
            self.flush()

    def drop(self, file: _File) -> None:
        """Forget the clips of the file under way, which are always the last."""
        while self._owners and self._owners[-1] is file:
            self._owners.pop()

    def flush(self) -> None:
        owners, self._owners = self._owners, []
        if not owners:
            return
        try:
            result = self.model.encode_video(self._clips[: len(owners)], batch_size=len(owners))
        except NonFiniteError as error:
            for file in owners:
                file.fail(NonFiniteError(f"{file.path}: {error}"))
            return
        for file, embedding, mixed_5c in zip(owners, result.embedding, result.mixed_5c, strict=True):
            file.embedding.append(embedding)
            file.mixed_5c.append(mixed_5c)
            file.waiting -= 1

    def result(self, file: _File) -> FileEmbeddings:
        widths = _video_widths(self.model)
        embedding = _stack(file.embedding, file.clip_of, widths[0])
        mixed_5c = _stack(file.mixed_5c, file.clip_of, widths[1])
        return FileEmbeddings(file.path, tuple(file.spans), embedding, mixed_5c, file.error, self.preset)


def _stack(rows: list[NDArray[np.float32]], order: list[int], width: int) -> NDArray[np.float32]:
    """Return a row a window and empty the list, so that a long video's features are not held twice."""
    stacked = np.stack([rows[index] for index in order]) if rows else np.empty((0, width), np.float32)
    rows.clear()
    return stacked


def _video_widths(model: Model) -> tuple[int, int]:
    """Widths of `video_embedding` and `mixed_5c`, from the manifest."""
    graph = next(graph for graph in model.bundle.manifest.graphs if graph.module == "video")
    widths = {spec.name: spec.shape[-1].minimum for spec in graph.outputs}
    return widths["video_embedding"], widths["mixed_5c"]


def _stream(
    embedder: _Embedder,
    items: Iterable[tuple[Path, tuple[float | None, float | None]]],
    on_window: Callable[[Path, WindowSpan], None] | None,
) -> Iterator[FileEmbeddings]:
    pending: deque[_File] = deque()
    for path, span_s in items:
        file = _File(path)
        pending.append(file)
        try:
            with closing(_decode(embedder, file, span_s)) as spans:
                for span in spans:
                    if on_window is not None:
                        on_window(path, span)
                    # A batch filled by this file may have finished the ones before it: they need not wait for its end.
                    while pending and pending[0].done:
                        yield embedder.result(pending.popleft())
        except (VideoError, OSError) as error:
            embedder.drop(file)
            file.fail(error if isinstance(error, VideoError) else VideoError(f"{path}: {error}"))
        while pending and pending[0].done:
            yield embedder.result(pending.popleft())
    embedder.flush()
    while pending:
        yield embedder.result(pending.popleft())


def _decode(
    embedder: _Embedder, file: _File, span_s: tuple[float | None, float | None]
) -> Generator[WindowSpan, None, None]:
    """Put the file's windows into the batch, and yield after each."""
    from milnce.video import iter_windows  # noqa: PLC0415  # needs PyAV, which is optional

    with closing(iter_windows(file.path, embedder.preset, start_s=span_s[0], end_s=span_s[1])) as windows:
        for window in windows:
            span = WindowSpan(window.index, window.start_s, window.end_s)
            # A video shorter than a window has the same one many times over: once through the model is enough.
            repeats = bool(file.spans) and (span.start_s, span.end_s) == (file.spans[-1].start_s, file.spans[-1].end_s)
            file.spans.append(span)
            file.clip_of.append(file.clip_of[-1] + (not repeats) if file.clip_of else 0)
            if not repeats:
                embedder.add(file, window.clip)
            yield span
            if file.error is not None:  # the batch with its clips failed
                return
    if not file.spans:
        raise VideoError(f"{file.path}: no window lies between the given start and end; widen them")
    file.decoded = True
