"""From files to embeddings: decode, batch across files, infer, and hand back one result a file, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from milnce.arguments import positive
from milnce.decoding.events import Job
from milnce.decoding.source import DecodingOptions, open_source
from milnce.embedding_stream import EmbeddingStream
from milnce.errors import BundleError, InputError
from milnce.file_embeddings import FileEmbeddings, WindowSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from milnce.model import Model
    from milnce.video import Preset

__all__ = ["FileEmbeddings", "WindowSpan", "check_range", "embed_files", "embed_spans", "resolve_preset"]


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


def embed_files(  # noqa: PLR0913  # what to embed, how, and how much of the machine it may take
    model: Model,
    paths: Iterable[Path | str],
    *,
    preset: str | Preset | None = None,
    batch_size: int = 8,
    start_s: float | None = None,
    end_s: float | None = None,
    on_window: Callable[[Path, WindowSpan], None] | None = None,
    workers: int | None = None,
    stall_s: float = 60.0,
    decoder: str = "auto",
) -> Iterator[FileEmbeddings]:
    """Embed the windows of many files, as a stream.

    Files are decoded in processes of their own while the model runs. Windows of several files share a batch, so many
    short files are as fast as one long one. Memory does not grow with the number or the length of the files: clips of
    two batches, or a few more with many workers, are held, besides what the decoders hold themselves and the embeddings
    of files not yet handed out, 6 KiB a window: behind a file that takes long, none is begun once 4096 windows wait,
    but those that were begun, one a process, are decoded to their end.
    Closing the iterator ends the processes.

    Args:
        model: A model with its video graph.
        paths: Video files, and folders to search for them.
        preset: A preset, its name, or None for the bundle's own.
        batch_size: Clips a batch, at least 1.
        start_s: Where to start in each file, in seconds; None is its beginning.
        end_s: Where to stop in each file, in seconds; None is its end.
        on_window: Called with the file and the window after each window is decoded, for progress: in the order of a
            file's windows, but those of several files come as they are decoded.
        workers: Processes that decode; 0 decodes in the calling process, None takes as many as suit the cores. The
            results are the same.
        stall_s: Seconds after which a process that reads nothing and gets no frame is ended; its file has failed then,
            and others go on in a new process. Not with 0 workers.
        decoder: "cpu"; "nvdec" for NVIDIA's decoder (extra `nvdec`, and a model on a GPU), whose clips never leave the
            GPU and differ by rounding: it decodes in the calling process and has not run on hardware yet; "auto" is
            "cpu" until it has.

    Yields:
        One result a file, in the order given. A file that cannot be decoded or does not have the times asked for
        yields its error and the others go on: a `DecoderError` if its process died or hung, or if for half a minute no
        process could be started in the place of those that did. A batch that gives NaN or infinity fails the files
        that are in it.

    Raises:
        InputError: before any work, if there is no path or a folder without videos only, the preset is unknown or
            makes clips that the bundle does not take, the batch size is below 1 or too large for the memory, the
            times are not a range, or `workers`, `stall_s` or `decoder` is no such number or name.
        BackendUnavailableError: if NVIDIA's decoder is asked for and cannot be used.
        MissingDependencyError: if PyAV is not installed.
        BackendError: if the model cannot run a batch; nothing more is yielded then.
        DecoderError: if not even one decoding process can be started, or clips cannot be shared with one.
    """
    from milnce.video.files import find_videos  # noqa: PLC0415  # video is optional at import

    check_range(start_s, end_s)
    spans = [(path, start_s, end_s) for path in find_videos(paths)]
    return embed_spans(
        model,
        spans,
        preset=preset,
        batch_size=batch_size,
        on_window=on_window,
        workers=workers,
        stall_s=stall_s,
        decoder=decoder,
    )


def embed_spans(  # noqa: PLR0913  # as `embed_files`
    model: Model,
    spans: Iterable[tuple[Path, float | None, float | None]],
    *,
    preset: str | Preset | None = None,
    batch_size: int = 8,
    on_window: Callable[[Path, WindowSpan], None] | None = None,
    workers: int | None = None,
    stall_s: float = 60.0,
    decoder: str = "auto",
) -> Iterator[FileEmbeddings]:
    """Embed the windows of stretches of files: all as in `embed_files`, but each file with its own start and end.

    Args:
        model: A model with its video graph.
        spans: (file, start in seconds or None, end in seconds or None); a file may come several times.
        preset: As in `embed_files`; so are the others.
        batch_size: Clips a batch.
        on_window: For progress.
        workers: Processes that decode.
        stall_s: Seconds after which one that makes no progress is ended.
        decoder: What decodes.

    Yields:
        One result a span, in the order given.

    Raises:
        InputError: before any work, if a span is not a range, or as in `embed_files`.
    """
    batch_size = positive("batch_size", batch_size)
    jobs = []
    for number, (path, start_s, end_s) in enumerate(spans):
        check_range(start_s, end_s)
        jobs.append(Job(number, path, _seconds(start_s), _seconds(end_s)))
    sampling = resolve_preset(model, preset)
    _check_fits(model, sampling)
    device = model.open("video", input_form="uint8").device
    options = DecodingOptions(workers, stall_s, decoder)
    source = open_source(jobs, sampling, batch_size, device=device, options=options)
    return EmbeddingStream(model, sampling, [job.path for job in jobs], source, on_window).results()


def check_range(start_s: float | None, end_s: float | None) -> None:
    """Make sure that the times, in seconds, are a range of some video; None leaves a side open.

    Raises:
        InputError: if they are negative, NaN, or not in order.
    """
    begin = 0.0 if start_s is None else start_s
    finish = np.inf if end_s is None else end_s
    if not (0 <= begin < finish):
        raise InputError(f"start {start_s} s and end {end_s} s given; 0 <= start < end expected, in seconds")


def _seconds(time_s: float | None) -> float | None:
    """Return a time as Python's own number: NumPy's, which would do here, cannot be sent to a process."""
    return None if time_s is None else float(time_s)


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
