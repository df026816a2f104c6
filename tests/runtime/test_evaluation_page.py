"""What the page shows of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from helpers.evaluations import SENTENCES, captions_of, whole
from milnce import evaluation_page
from milnce.errors import VideoError
from milnce.evaluation import ClipEmbeddings, Evaluation, evaluate

if TYPE_CHECKING:
    from milnce.model import Model


def measured(count: int, embedding: Any, of: list[int], model: Model) -> Evaluation:  # noqa: ANN401  # an array
    """Evaluate drawn embeddings, without any video."""
    captions = captions_of(*[(whole(f"v{of[n]}"), SENTENCES[n % 6]) for n in range(count)])
    paths = tuple(Path(clip.video) for clip in captions.clips)
    total = len(captions.clips)
    return evaluate(model, captions, ClipEmbeddings(embedding, (None,) * total, paths, (False,) * total))


def test_the_page_shows_the_top_and_the_right_one(model: Model) -> None:
    embedding = np.random.default_rng(0).standard_normal((30, 8), np.float32)
    result = measured(30, embedding, list(range(30)), model)
    drawn: list[str] = []

    def draw(path: Path, start_s: float | None, end_s: float | None) -> bytes:
        assert (start_s, end_s) == (None, None)
        drawn.append(path.name)
        if path.name == "v3":
            raise VideoError("v3: gone")
        return path.name.encode()

    queries, pictures, missing = evaluation_page.page_content(result, draw, queries=30, top=4)
    scores = result.text @ embedding.T
    assert result.ranks is not None
    assert [query.caption for query in queries] == [SENTENCES[n % 6] for n in range(30)]
    for number, query in enumerate(queries):
        order = np.argsort(-scores[number])
        rank = int(np.flatnonzero(order == number)[0])
        expected = [*order[:4].tolist(), *([number] if rank >= 4 else [])]
        assert [video.video for video in query.shown] == [f"v{clip}" for clip in expected]
        assert [video.rank for video in query.shown] == [1, 2, 3, 4, *([rank + 1] if rank >= 4 else [])]
        assert [video.correct for video in query.shown] == [clip == number for clip in expected]
        assert [video.score for video in query.shown] == pytest.approx(scores[number][expected].tolist(), rel=1e-5)
        assert query.rank == rank + 1 == result.ranks.t2v.rank[number] + 1
        for video in query.shown:
            assert video.picture is None or pictures[video.picture].decode() == video.video
            assert (video.picture is None) == (video.video == "v3")
    assert sorted(drawn) == sorted(set(drawn))
    assert [str(error) for error in missing] == ["v3: gone"]


def test_the_queries_of_the_page_are_evenly_chosen(model: Model) -> None:
    embedding = np.ones((1, 8), np.float32)
    result = measured(100, embedding, [0] * 100, model)
    chosen, _, _ = evaluation_page.page_content(result, lambda *_: b"", queries=4, top=1)
    assert [query.caption for query in chosen] == [SENTENCES[n % 6] for n in (0, 33, 66, 99)]
    everything, _, _ = evaluation_page.page_content(result, lambda *_: b"", queries=1000, top=1)
    assert len(everything) == 100


def test_a_shared_rank_is_shown_as_such(model: Model) -> None:
    result = measured(2, np.ones((2, 8), np.float32), [0, 1], model)
    queries, _, _ = evaluation_page.page_content(result, lambda *_: b"", queries=9, top=2)
    assert [query.rank for query in queries] == [1.5, 1.5]
