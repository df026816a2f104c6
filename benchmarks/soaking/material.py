"""What the soak asks, and what the right answers are: videos, files that cannot be decoded, sentences, clips."""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from milnce.captions import read_captions
from milnce.errors import VideoError
from milnce.evaluation import embed_clips, evaluate
from milnce.features import FeaturesMetadata, FeatureWriter
from milnce.pipeline import resolve_preset
from milnce.search import ScoredWindows, score
from milnce.video.presets import get_preset
from milnce_convert.demo.clips import CAPTIONS_FILE, encode, write_set
from milnce_convert.demo.drawing import draw
from milnce_convert.demo.samples import CLIPS, SCENES
from milnce_convert.parity import FP32_GATE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.captions import Captions
    from milnce.model import Model
    from milnce.pipeline import FileEmbeddings
    from milnce.search import Moment
    from milnce.video import Preset

    Floats = NDArray[np.float32]

_VIDEOS = 6
_WINDOWS = 2
_SENTENCES, _QUERIES = 48, 4
_MOST_WORDS = 40
_CLIPS = 6
# Some hundred frames behind one keyframe, of which a decoder has no choice but to decode all.
_LONG_SIZE, _LONG_RATE, _LONG_TIMES = (320, 240), 25, 3
_STRANGERS = ("zebra", "Quarterhorse", "naïve", "日本語", "x" * 200, "?!")
TOP = 5


class WrongAnswerError(Exception):
    """An answer is not the one that was computed at the start."""


@dataclass(frozen=True)
class Material:
    """What is asked.

    Attributes:
        folder: Where the files are.
        preset: How videos are sampled: two windows each.
        videos: Files that can be decoded.
        long: One more such file, which takes a decoder so long that it can be killed at it.
        broken: Files that cannot, with words that the error must have.
        features: A features file with the windows of all videos.
        captions: Three sentences a video.
        sentences: From one word to far too many, some of them unknown; each has a known one.
        clips: uint8 (clips, frames, size, size, 3).
    """

    folder: Path
    preset: Preset
    videos: tuple[Path, ...]
    long: Path
    broken: dict[Path, str]
    features: Path
    captions: Captions
    sentences: tuple[str, ...]
    clips: NDArray[np.uint8]


@dataclass(frozen=True)
class Answers:
    """What the answers must be: computed once, by the plain calls, before anything runs at the same time.

    Attributes:
        files: What each video gives.
        text: float32 (sentences, width).
        padding: float32 (1, width), that of a sentence without a known word.
        clips: float32 (clips, width).
        moments: What each of the first sentences finds in the features file.
        metrics: The rows of the evaluation's tables.
    """

    files: dict[Path, FileEmbeddings]
    text: Floats
    padding: Floats
    clips: Floats
    moments: tuple[list[Moment], ...]
    metrics: list[dict[str, Any]]

    @property
    def queries(self) -> int:
        """How many of the sentences, from the first, are searched for."""
        return len(self.moments)


def make_material(folder: Path, model: Model, seed: int) -> Material:
    """Write the files into a new folder."""
    sampling = resolve_preset(model, None)
    preset = get_preset("milnce-eval", frames=sampling.frames, size=sampling.size, windows=_WINDOWS)
    write_set(folder / "videos", CLIPS[:_VIDEOS], seed=seed)
    captions = read_captions(folder / "videos" / CAPTIONS_FILE)
    videos = tuple(sorted(path for path in (folder / "videos").iterdir() if path.name != CAPTIONS_FILE))
    generator = np.random.default_rng(seed)
    shape = (_CLIPS, preset.frames, preset.size, preset.size, 3)
    return Material(
        folder=folder,
        preset=preset,
        videos=videos,
        long=_write_long(folder / "long.mp4"),
        broken=_write_broken(folder / "broken", videos),
        features=folder / "features.npz",
        captions=captions,
        sentences=_make_sentences(_words(model), random.Random(seed)),  # noqa: S311 - no secrets
        clips=generator.integers(0, 256, shape, np.uint8),
    )


def compute_answers(model: Model, material: Material) -> Answers:
    """Ask everything once, decoding in this process, and write the features file."""
    videos = [*material.videos, material.long]
    files = {item.path: item for item in model.embed_files(videos, preset=material.preset, workers=0)}
    for item in files.values():
        if item.error is not None:
            raise item.error
    searched = [files[path] for path in material.videos]
    with FeatureWriter(material.features, _metadata(model, material.preset)) as writer:
        for item in searched:
            writer.append(item.path, item.windows, item.embedding, item.mixed_5c)
        writer.commit()
    text = np.concatenate([model.encode_text(sentence) for sentence in material.sentences])
    clips = np.concatenate([model.encode_video(clip[None]).embedding for clip in material.clips])
    moments = tuple(search(searched, text[query : query + 1]) for query in range(_QUERIES))
    embedded = embed_clips(model, material.captions, preset=material.preset, videos=material.videos)
    metrics = [row.to_json() for row in evaluate(model, material.captions, embedded).metrics]
    return Answers(files, text, model.encode_text("?"), clips, moments, metrics)


def search(items: Sequence[FileEmbeddings], query: Floats) -> list[Moment]:
    """Find the best moments of embedded files."""
    windows = ScoredWindows()
    for item in items:
        windows.add_file(str(item.path))
        spans_s = np.array([(window.start_s, window.end_s) for window in item.windows])
        windows.add(spans_s, score(query, item.embedding))
    return windows.find(TOP)[0]


def check_rows(found: Floats, expected: Floats, what: str) -> None:
    """Hold rows to those computed at the start: bit for bit, or within the gate of FP32.

    Raises:
        WrongAnswerError: if they are not the same.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise WrongAnswerError(f"{what}: {found.dtype} {found.shape} came, {expected.dtype} {expected.shape} expected")
    if np.array_equal(found, expected):
        return
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= FP32_GATE.relative_error:  # not for NaN either
        raise WrongAnswerError(f"{what}: off by {error:.1e} of the largest value, {FP32_GATE.relative_error:g} allowed")


def check_file(found: FileEmbeddings, material: Material, answers: Answers) -> None:
    """Hold what a file gave to what it must give: its embeddings, or the error that names what is wrong with it.

    Raises:
        WrongAnswerError: if it is something else.
    """
    words = material.broken.get(found.path)
    if words is not None:
        if not isinstance(found.error, VideoError) or words not in str(found.error):
            raise WrongAnswerError(f"{found.path.name}: an error with {words!r} expected, {found.error!r} came")
        return
    expected = answers.files[found.path]
    if found.error is not None:
        raise WrongAnswerError(f"{found.path.name}: failed with {found.error!r}")
    if found.windows != expected.windows:
        raise WrongAnswerError(f"{found.path.name}: windows {found.windows} came, {expected.windows} expected")
    check_rows(found.embedding, expected.embedding, found.path.name)
    check_rows(found.mixed_5c, expected.mixed_5c, f"{found.path.name}, mixed_5c")


def _words(model: Model) -> list[str]:
    vocabulary = model.bundle.manifest.vocabulary
    lines = (model.bundle.path / vocabulary.file).read_text("utf-8").splitlines()
    return [word for word in lines if not model.tokenizer.unknown(word)]


def _make_sentences(words: Sequence[str], chance: random.Random) -> tuple[str, ...]:
    sentences = []
    for number in range(_SENTENCES):
        length = 1 + number * _MOST_WORDS // _SENTENCES
        chosen = [chance.choice(words) for _ in range(length)]
        if number % 3 == 1:
            chosen.insert(chance.randrange(length + 1), chance.choice(_STRANGERS))
        sentences.append(" ".join(chosen))
    return tuple(sentences)


def _write_broken(folder: Path, videos: Sequence[Path]) -> dict[Path, str]:
    folder.mkdir()
    whole = next(path for path in videos if path.suffix == ".mp4")
    empty, text, cut, audio = (folder / f"{name}.mp4" for name in ("empty", "text", "truncated", "audio"))
    empty.touch()
    text.write_text("this is no video\n" * 100, "utf-8")
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])  # what players need is at an MP4's end
    _write_tone(audio)
    return {
        empty: "empty (0 bytes)",
        text: "damaged or not a video",
        cut: "truncated",
        audio: "no video stream",
        folder / "missing.mp4": "no such file",
    }


def _write_long(path: Path) -> Path:
    pictures, rate = draw(SCENES[0], np.random.default_rng(0), size=_LONG_SIZE, rate=_LONG_RATE)
    encode(path, np.concatenate([pictures] * _LONG_TIMES), rate)
    return path


def _write_tone(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame: Any = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _metadata(model: Model, preset: Preset) -> FeaturesMetadata:
    return FeaturesMetadata(
        model_digest=model.bundle.manifest.model_digest,
        preset_name=preset.name,
        preset_digest=preset.digest,
        preset=preset.to_json(),
        backend=model.backend.name,
        precision=model.backend.precision,
        milnce_version="soak",
    )
