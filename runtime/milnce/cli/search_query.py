"""What `milnce search` looks for: sentences, a clip, or a saved vector."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from milnce.cli.common import open_video, printable, say
from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from milnce.cli.common import PipelineOptions
    from milnce.model import Model
    from milnce.video import Preset


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked on the command line: one kind of query and where to search.

    Attributes:
        sentences: Sentences; empty for the other kinds.
        clip: A video to find the like of.
        clip_span_s: Start and end in the clip, in seconds; None leaves a side open.
        vector: A .npy file.
        paths: Videos, folders and features files.
    """

    sentences: tuple[str, ...]
    clip: Path | None
    clip_span_s: tuple[float | None, float | None]
    vector: Path | None
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """One query, ready to be compared.

    Attributes:
        kind: "text", "clip" or "vector".
        text: The sentence, or the file's path.
        unknown: Words of the sentence that the vocabulary lacks.
        vector: float32 (width,).
        preset: Digest of how the clip was sampled; None for the other kinds.
    """

    kind: str
    text: str
    unknown: tuple[str, ...]
    vector: NDArray[np.float32]
    preset: str | None = None


def read_arguments(
    given: Sequence[str],
    sentences: Sequence[str],
    clip: Path | None,
    clip_span_s: tuple[float | None, float | None],
    vector: Path | None,
) -> Asked:
    """Tell the sentence from the paths among the arguments.

    Raises:
        InputError: if there is not exactly one kind of query, or nothing to search.
    """
    named = {"--query": bool(sentences), "--clip": clip is not None, "--vector": vector is not None}
    kinds = [name for name, there in named.items() if there]
    if len(kinds) > 1:
        raise InputError(f"{' and '.join(kinds)} given; one kind of query at a time")
    if clip is None and clip_span_s != (None, None):
        raise InputError("--clip-start-s and --clip-end-s are times of the clip that --clip names; name it")
    paths = [*given]
    if not kinds:
        sentences = [paths.pop(0)]
        if not paths:
            raise InputError(
                f"only {sentences[0]!r} given, which is taken for the sentence; name videos, folders or features files "
                "after it (with --query, --clip or --vector all arguments are such paths)"
            )
        if os.path.exists(sentences[0]):  # noqa: PTH110 - Path.exists raises when a sentence is too long for a name
            say(printable(f"Warning: the sentence {sentences[0]!r} is also a file or folder; was a sentence left out?"))
    for sentence in sentences:
        if not sentence.strip():
            raise InputError("the sentence is empty; say what to look for")
    if clip is not None and os.path.isdir(clip):  # noqa: PTH112 - Path.is_dir raises where it may not look
        raise InputError(f"--clip {clip}: is a folder; one video file expected")
    return Asked(tuple(sentences), clip, clip_span_s, vector, tuple(map(Path, paths)))


def make_queries(asked: Asked, model: Model, preset: Preset | None, how: PipelineOptions) -> list[Query]:
    """Turn what was asked into vectors.

    Args:
        asked: What was asked.
        model: A model with the towers that it takes.
        preset: How to sample the clip; needed with one.
        how: How the clip is embedded.

    Raises:
        MilnceError: if the clip cannot be embedded, or the vector not be read.
    """
    if asked.vector is not None:
        from milnce.vectors import read_vector  # noqa: PLC0415  # commands import what they need when they run

        digest = model.bundle.manifest.model_digest
        vector = read_vector(asked.vector, embedding_width(model))
        say(printable(f"{asked.vector} does not say what made it; it must be this model, {digest[:12]}..."))
        return [Query("vector", str(asked.vector), (), vector)]
    if asked.clip is not None and preset is not None:
        vector = _clip_vector(asked.clip, asked.clip_span_s, model, preset, how)
        return [Query("clip", str(asked.clip), (), vector, preset.digest)]
    queries = []
    for sentence, embedding in zip(asked.sentences, model.encode_text(asked.sentences), strict=True):
        unknown = tuple(model.tokenizer.unknown(sentence))
        if unknown:
            where = f" in {sentence!r}" if len(asked.sentences) > 1 else ""
            say(printable(f"Not in the vocabulary, ignored{where}: {', '.join(unknown)}"))
        queries.append(Query("text", sentence, unknown, embedding))
    return queries


def embedding_width(model: Model) -> int:
    """Return the width of the bundle's embeddings, from its manifest."""
    return next(
        spec.shape[-1].minimum
        for graph in model.bundle.manifest.graphs
        for spec in graph.outputs
        if spec.name in {"video_embedding", "text_embedding"}
    )


def _clip_vector(
    clip: Path, span_s: tuple[float | None, float | None], model: Model, preset: Preset, how: PipelineOptions
) -> NDArray[np.float32]:
    """Return the mean of the embeddings of the clip's windows."""
    from milnce.pipeline import embed_files  # noqa: PLC0415

    open_video(model)
    (item,) = embed_files(model, [clip], preset=preset, start_s=span_s[0], end_s=span_s[1], **how)
    if item.error is not None:
        raise item.error
    mean: NDArray[np.float32] = item.embedding.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
