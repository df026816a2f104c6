"""Retrieval evaluation: captions and their clips to embeddings, ranks and metrics, and what was lost on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import numpy as np

from milnce.clip_sources import FoundClips, mean_of_windows
from milnce.errors import InputError, MilnceError, NonFiniteError, RangeError
from milnce.metrics import collaborative_experts, mil_nce, rank_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.captions import Captions, Clip
    from milnce.clip_sources import StoredFeatures
    from milnce.metrics import RetrievalMetrics, RetrievalRanks
    from milnce.model import Model
    from milnce.pipeline import WindowSpan
    from milnce.video import Preset

Metric = Literal["ce", "milnce", "both"]


@dataclass(frozen=True, slots=True, eq=False)
class ClipEmbeddings:
    """The embeddings of clips, and where they are from; everything has one entry a clip.

    Attributes:
        embedding: float32 (clips, width); zeros where there is an error.
        error: Why a clip has no embedding, or None.
        path: The clip's video file, or None. One that only stored features name need not exist any more.
        stored: Whether there is an embedding and it is from stored features.
    """

    embedding: NDArray[np.float32]
    error: tuple[MilnceError | None, ...]
    path: tuple[Path | None, ...]
    stored: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class FailedClip:
    """A clip without embedding: no candidate, and its captions are not asked.

    Attributes:
        clip: The clip.
        error: Why it has none.
        queries: How many queries that cost.
    """

    clip: Clip
    error: MilnceError
    queries: int

    def to_json(self) -> dict[str, Any]:
        """Return the clip, the error and its cost, as JSON types."""
        return {
            "video": self.clip.video,
            "start_s": self.clip.start_s,
            "end_s": self.clip.end_s,
            "error": str(self.error),
            "type": type(self.error).__name__,
            "queries": self.queries,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The result.

    Attributes:
        captions: What was asked.
        clips: The clips' embeddings.
        metrics: The tables' rows; empty if no query is left.
        ranks: Where the right candidates lie; None if no query is left.
        text: float32 (queries, width), the embeddings of the queries that were asked.
        asked: Numbers, in `captions.captions`, of the queries that were asked, ascending.
        candidates: Numbers, in `captions.clips`, of the clips that could be found, ascending.
        failed: Clips that could not be embedded.
        unknown: Numbers, in `captions.captions`, of queries that were asked without a word of the vocabulary: encoded
            as padding alone and counted like any other, as the reference does.
    """

    captions: Captions
    clips: ClipEmbeddings
    metrics: tuple[RetrievalMetrics, ...]
    ranks: RetrievalRanks | None
    text: NDArray[np.float32]
    asked: tuple[int, ...]
    candidates: tuple[int, ...]
    failed: tuple[FailedClip, ...]
    unknown: tuple[int, ...]

    @property
    def queries_lost(self) -> int:
        """Queries that were not asked since their clip failed."""
        return sum(item.queries for item in self.failed)

    def to_json(self) -> dict[str, Any]:
        """Return the metrics and every count and list beside them, as JSON types."""
        sentences = self.captions.captions
        return {
            "captions": str(self.captions.path),
            "times": list(self.captions.times),
            "clips": len(self.captions.clips),
            "candidates": len(self.candidates),
            "queries": len(self.asked),
            "queries_lost": self.queries_lost,
            "clips_from_stored_features": sum(self.clips.stored),
            "metrics": [row.to_json() for row in self.metrics],
            "excluded_rows": [{"row": item.row, "reason": item.reason} for item in self.captions.excluded],
            "failed": [item.to_json() for item in self.failed],
            "unknown_only": [{"row": sentences[n].row, "caption": sentences[n].text} for n in self.unknown],
        }


def check_metric(metric: str, captions: Captions) -> Metric:
    """Return `metric` if there is such a one and these captions can be measured by it.

    Raises:
        InputError: if not.
    """
    if metric not in get_args(Metric):
        raise InputError(f"no metric {metric!r}; there are {', '.join(get_args(Metric))}")
    without = len(captions.clips) - len({caption.clip for caption in captions.captions if caption.query})
    if metric != "ce" and without:
        raise InputError(
            f"MIL-NCE's metrics are of pairs, and {without} of {len(captions.clips)} clips have no query; leave "
            "--queries out or take --metric ce"
        )
    return cast("Metric", metric)


class Progress(Protocol):
    """Told how far the work is."""

    def on_window(self, path: Path, window: WindowSpan) -> None:
        """Take note of a window that was decoded."""

    def on_file(self) -> None:
        """Take note of a clip that is done."""


def embed_clips(  # noqa: PLR0913  # what to embed, from where, and how
    model: Model,
    captions: Captions,
    *,
    preset: Preset,
    stored: StoredFeatures | None = None,
    videos: Sequence[Path] = (),
    batch_size: int = 8,
    progress: Progress | None = None,
    workers: int | None = None,
    stall_s: float = 60.0,
    decoder: str = "auto",
) -> ClipEmbeddings:
    """Find every clip and embed it: the plain mean of its windows' embeddings, as in the reference's evaluation.

    Stored features are used where they have the clip's video; the other clips are decoded from the video files, each
    from its start to its end.

    Args:
        model: The model; its video graph is run only for clips that are not stored.
        captions: The captions whose clips are wanted.
        preset: How windows are laid and sampled.
        stored: Stored features of this model and preset, or None.
        videos: Video files to look in.
        batch_size: Clips a batch.
        progress: Told of each window that was decoded, and of each clip.
        workers: Processes that decode, as in `embed_files`.
        stall_s: Seconds after which one that makes no progress is ended.
        decoder: What decodes.

    Raises:
        InputError: if two names of the captions stand for the same video, or as `embed_files` does.
        MissingDependencyError: if a video must be decoded and PyAV is not installed.
        BackendError: if the model cannot run a batch.
    """
    found = FoundClips(captions.clips, stored, videos)
    rows: list[NDArray[np.float32] | None] = [None] * len(captions.clips)
    errors: list[MilnceError | None] = list(found.error)
    for number, clip in enumerate(captions.clips):
        name = found.stored[number]
        if stored is not None and name is not None:
            try:
                rows[number] = stored.embed(name, clip)
            except RangeError as error:
                errors[number] = error
        if progress is not None and found.file[number] is None:
            progress.on_file()
    to_decode = [(number, path) for number, path in enumerate(found.file) if path is not None]
    if to_decode:
        from milnce.pipeline import embed_spans  # noqa: PLC0415  # needs the video extra, which stored features do not

        spans = [(path, captions.clips[number].start_s, captions.clips[number].end_s) for number, path in to_decode]
        items = embed_spans(
            model,
            spans,
            preset=preset,
            batch_size=batch_size,
            on_window=progress.on_window if progress else None,
            workers=workers,
            stall_s=stall_s,
            decoder=decoder,
        )
        for (number, _), item in zip(to_decode, items, strict=True):
            if progress is not None:
                progress.on_file()
            errors[number] = item.error
            rows[number] = mean_of_windows(item.embedding) if item.error is None else None
    for number, row in enumerate(rows):
        if row is not None and not _can_be_scored(row):
            values = f"its mean embedding reaches {np.abs(row).max():.0e}, which gives no finite scores"
            errors[number] = NonFiniteError(f"{captions.clips[number].video}: {values}; embed that video again")
            rows[number] = None
    width = next((len(row) for row in rows if row is not None), 0)
    embedding = np.stack([np.zeros(width, np.float32) if row is None else row for row in rows])
    stored_ones = (name is not None and error is None for name, error in zip(found.stored, errors, strict=True))
    return ClipEmbeddings(embedding, tuple(errors), tuple(found.path), tuple(stored_ones))


def _can_be_scored(embedding: NDArray[np.float32]) -> bool:
    """Whether the squared length is finite: then so is the score with any sentence of like length."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(embedding, embedding)))


def evaluate(
    model: Model, captions: Captions, clips: ClipEmbeddings, *, metric: Metric = "ce", max_words: int | None = None
) -> Evaluation:
    """Rank the clips for every query, and the queries for every clip that has one.

    Candidates of a query are all clips that could be embedded, also those whose captions are no queries. Candidates of
    a clip are the queries, so of video to text only clips with a query take part.

    MIL-NCE's evaluation lists a clip once a row of its captions file. So here a clip with k queries is k candidates,
    which tie with each other. It has none without a caption: there must be no clip without a query.

    Args:
        model: The model, for the sentences.
        captions: The captions.
        clips: What `embed_clips` gave for them.
        metric: "ce" for collaborative-experts' definitions, "milnce" for MIL-NCE's own, or "both".
        max_words: Words of a sentence that count; None for the bundle's (the reference's loaders take 30).

    Raises:
        InputError: if MIL-NCE's metrics are asked for and a clip has no query.
    """
    numbers = [number for number, error in enumerate(clips.error) if error is None]
    place = {number: index for index, number in enumerate(numbers)}
    asked = [n for n, caption in enumerate(captions.captions) if caption.query and caption.clip in place]
    check_metric(metric, captions)
    costs = Counter(caption.clip for caption in captions.captions if caption.query)
    failed = [
        FailedClip(captions.clips[number], error, costs[number])
        for number, error in enumerate(clips.error)
        if error is not None
    ]
    text = np.empty((0, clips.embedding.shape[1]), np.float32)
    unknown: list[int] = []
    rows: list[RetrievalMetrics] = []
    ranks: RetrievalRanks | None = None
    if asked:
        text, without = _encode(model, [captions.captions[number].text for number in asked], max_words)
        unknown = [asked[index] for index in without]
        video = clips.embedding[numbers]
        truth = np.array([place[captions.captions[number].clip] for number in asked])
        ranks = rank_embeddings(text, video, truth)
        if metric != "milnce":
            rows += collaborative_experts(ranks)
        if metric != "ce":
            rows.append(mil_nce(rank_embeddings(text, video[truth], np.arange(len(asked)))))
    return Evaluation(
        captions, clips, tuple(rows), ranks, text, tuple(asked), tuple(numbers), tuple(failed), tuple(unknown)
    )


def _encode(model: Model, sentences: Sequence[str], max_words: int | None) -> tuple[NDArray[np.float32], Iterable[int]]:
    """Embed sentences; also return the numbers of those without any known word."""
    tokens = model.tokenizer(sentences, warn=False)  # they are counted and listed
    text = model.encode_text(sentences, max_words=max_words, warn=False)
    return text, np.flatnonzero(~tokens.any(axis=1)).tolist()
