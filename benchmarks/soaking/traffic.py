"""The mixed traffic: what one caller may do, each with its answers checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

import milnce
from milnce.clip_sources import StoredFeatures
from milnce.errors import BackendError, DecoderError, InputError
from milnce.evaluation import embed_clips, evaluate
from milnce.features import read_features
from milnce.index import update_index
from milnce.index_file import IndexFile, IndexMakers
from milnce.search import ScoredWindows, score
from soaking.material import TOP, WrongAnswerError, check_file, check_rows, search

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from milnce.model import Model
    from milnce.pipeline import FileEmbeddings
    from milnce.search import Moment
    from soaking.material import Answers, Material

    Action = Callable[["Scene", random.Random, int], int]

_INDEX_ANEW = 0.2  # share of the searches that begin with an index that is not there
_FROM_VIDEOS = 0.1  # share of the evaluations that decode the clips


@dataclass
class Scene:
    """What all callers share.

    Attributes:
        model: The long-lived model.
        batcher: The long-lived batcher over it.
        material: What is asked.
        answers: What the answers must be.
        backend: The backend's name, for models that are loaded on the way.
        loading: Held while another model is open.
        tally: How often what may happen or not has happened: decoders that were killed, files that cost, refusals.
    """

    model: Model
    batcher: milnce.Batcher
    material: Material
    answers: Answers
    backend: str
    tally: Counter[str] = field(default_factory=Counter)
    loading: Lock = field(default_factory=Lock)
    _lock: Lock = field(default_factory=Lock)

    def count(self, **happened: int) -> None:
        """Add to the tally."""
        with self._lock:
            self.tally.update(happened)

    def check(self, item: FileEmbeddings) -> None:
        """Hold what a file gave to what it must give, or to the death of its decoder, which is counted.

        Raises:
            WrongAnswerError: if it is something else.
        """
        if isinstance(item.error, DecoderError):
            self.count(decoder_errors=1)
        else:
            check_file(item, self.material, self.answers)


def ask_text(scene: Scene, chance: random.Random, _: int) -> int:
    """Embed some sentences."""
    rows = chance.sample(range(len(scene.material.sentences)), chance.randint(1, 6))
    found = scene.model.encode_text([scene.material.sentences[row] for row in rows])
    check_rows(found, scene.answers.text[rows], "sentences")
    return len(rows)


def ask_unknown(scene: Scene, chance: random.Random, _: int) -> int:
    """Embed a sentence without a known word: the embedding of padding, and a warning, which `run` sends to the log."""
    sentence = "".join(chance.choice("qxzjkw") for _ in range(chance.randint(3, 300)))
    check_rows(scene.model.encode_text(sentence), scene.answers.padding, "a sentence of unknown words")
    return 1


def ask_clips(scene: Scene, chance: random.Random, _: int) -> int:
    """Embed one or two clips."""
    rows = chance.sample(range(len(scene.material.clips)), chance.randint(1, 2))
    found = scene.model.encode_video(scene.material.clips[rows])
    check_rows(found.embedding, scene.answers.clips[rows], "clips")
    return len(rows)


def search_stored(scene: Scene, chance: random.Random, _: int) -> int:
    """Search a features file, as `milnce search` does."""
    query = chance.randrange(scene.answers.queries)
    features = read_features(scene.material.features)
    scores = score(scene.model.encode_text(scene.material.sentences[query]), features.embedding)
    windows = ScoredWindows()
    spans_s = np.stack([features.start_s, features.end_s], axis=1)
    videos = np.array(features.path)
    for video in dict.fromkeys(features.path):
        windows.add_file(video)
        windows.add(spans_s[videos == video], scores[videos == video])
    _check_moments(windows.find(TOP)[0], list(scene.answers.moments[query]), "stored features")
    return 1


def search_index(scene: Scene, chance: random.Random, caller: int) -> int:
    """Bring an index up to date with some videos and broken files, and search it."""
    material, query = scene.material, chance.randrange(scene.answers.queries)
    path = material.folder / f"index-{caller}.sqlite"
    if chance.random() < _INDEX_ANEW:
        for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            name.unlink(missing_ok=True)
    videos = sorted(chance.sample(material.videos, chance.randint(1, 3)))
    broken = chance.choice(sorted(material.broken))
    vector = scene.model.encode_text(material.sentences[query])
    manifest = scene.model.bundle.manifest
    makers = IndexMakers(
        manifest.model_digest,
        material.preset.digest,
        str(material.preset),
        scene.model.backend.precision,
        vector.shape[1],
    )

    def embed(paths: list[Path]) -> Iterator[FileEmbeddings]:
        return scene.model.embed_files(paths, preset=material.preset, workers=0)

    windows = ScoredWindows()
    with IndexFile(path, makers) as index:
        update = update_index(index, [*videos, broken], [], embed)
        for video, sha256 in update.current.items():
            windows.add_file(str(video))
            for spans_s, embedding in index.windows(sha256):
                windows.add(spans_s, score(vector, embedding))
    if list(update.current) != videos or [failed for failed, _ in update.failed] != [broken]:
        raise WrongAnswerError(f"index: {list(update.current)} found and {update.failed} failed; {broken} is broken")
    _check_moments(
        windows.find(TOP)[0],
        search([scene.answers.files[video] for video in videos], scene.answers.text[[query]]),
        "index",
    )
    return len(videos) + 2


def evaluate_captions(scene: Scene, chance: random.Random, _: int) -> int:
    """Evaluate the captions, mostly from stored features."""
    material = scene.material
    stored, videos = None, material.videos
    if chance.random() >= _FROM_VIDEOS:
        digest = scene.model.bundle.manifest.model_digest
        stored, videos = StoredFeatures.read([material.features], model_digest=digest, preset=material.preset), ()
    clips = embed_clips(scene.model, material.captions, preset=material.preset, stored=stored, videos=videos)
    lost = sum(isinstance(error, DecoderError) for error in clips.error)
    if lost:  # a decoder of this one's was killed, and without a clip the figures are others
        scene.count(decoder_errors=lost)
        return len(material.captions.captions)
    found = [row.to_json() for row in evaluate(scene.model, material.captions, clips).metrics]
    if found != scene.answers.metrics:
        raise WrongAnswerError(f"evaluation: {found} came, {scene.answers.metrics} expected")
    return len(material.captions.captions)


def load_and_close(scene: Scene, chance: random.Random, _: int) -> int:
    """Load the bundle once more, use it, close it, and see that it is closed."""
    row, clip = chance.randrange(len(scene.answers.text)), chance.randrange(len(scene.answers.clips))
    # One at a time, as a service changes its model: libraries keep what as many models as were open at once needed.
    with scene.loading, milnce.load(scene.model.bundle.path, backend=scene.backend, threads=1) as model:
        check_rows(
            model.encode_text(scene.material.sentences[row]), scene.answers.text[[row]], "a new model's sentence"
        )
        found = model.encode_video(scene.material.clips[[clip]]).embedding
        check_rows(found, scene.answers.clips[[clip]], "a new model's clip")
    try:
        model.encode_text(scene.material.sentences[row])
    except BackendError:
        return 2
    raise WrongAnswerError("a closed model answered")


def ask_wrongly(scene: Scene, chance: random.Random, _: int) -> int:
    """Give what must be refused."""
    clip, model = scene.material.clips[0], scene.model
    width = scene.answers.files[scene.material.videos[0]].mixed_5c.shape[1]
    calls: tuple[Callable[[], object], ...] = (
        lambda: model.encode_video(clip),
        lambda: model.encode_video(clip[None].astype(np.float64)),
        lambda: model.encode_video(clip[None, :, :, : clip.shape[2] // 2 - 1]),
        lambda: model.encode_text([]),
        lambda: model.encode_text("a", batch_size=0),
        lambda: model.project(np.full((1, width), np.nan, np.float32)),
        lambda: model.embed_files([scene.material.folder / "nowhere"], preset="no such preset"),
        lambda: scene.batcher.submit_video(clip[..., :2]),
    )
    try:
        chance.choice(calls)()
    except InputError:
        return 1
    raise WrongAnswerError("a wrong argument was taken")


def _check_moments(found: list[Moment], expected: list[Moment], what: str) -> None:
    places = [[(item.path, item.start_s, item.end_s) for item in moments] for moments in (found, expected)]
    if places[0] != places[1]:
        raise WrongAnswerError(f"{what}: {found} found, {expected} expected")
    scores = [np.array([[item.score for item in moments]], np.float32) for moments in (found, expected)]
    check_rows(scores[0], scores[1], f"scores of {what}")
