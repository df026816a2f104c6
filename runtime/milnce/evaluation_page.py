"""What a page shows of an evaluation: queries with their top clips and the right one, and a picture of each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from milnce.errors import MilnceError
from milnce.page import ShownQuery, ShownVideo
from milnce.search import score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from milnce.evaluation import Evaluation


def page_content(
    evaluation: Evaluation,
    draw: Callable[[Path, float | None, float | None], bytes],
    *,
    queries: int,
    top: int,
) -> tuple[list[ShownQuery], dict[str, bytes], list[MilnceError]]:
    """Choose queries, and draw a picture of every clip they show, each once.

    Args:
        evaluation: The evaluation.
        draw: Makes the picture of a file from a start to an end: `milnce.page_pictures.video_loop`.
        queries: How many queries to show at most, chosen evenly over the captions file: so the page is neither better
            nor worse than the table.
        top: How many clips to show under each, at least 1; the right one follows where it is not among them.

    Returns:
        The queries in the order of the captions file, pictures by key, and why pictures are missing.
    """
    shown = list(_queries(evaluation, queries, top))
    pictures: dict[str, bytes] = {}
    missing: list[MilnceError] = []
    for key in dict.fromkeys(video.picture for query in shown for video in query.shown if video.picture is not None):
        clip, path = evaluation.captions.clips[int(key)], evaluation.clips.path[int(key)]
        if path is None:
            continue
        try:
            pictures[key] = draw(path, clip.start_s, clip.end_s)
        except MilnceError as error:
            missing.append(error)
    return [_with_pictures(query, pictures) for query in shown], pictures, missing


def _with_pictures(query: ShownQuery, pictures: Mapping[str, bytes]) -> ShownQuery:
    shown = (video if video.picture in pictures else replace(video, picture=None) for video in query.shown)
    return replace(query, shown=tuple(shown))


def _queries(evaluation: Evaluation, most: int, top: int) -> Iterator[ShownQuery]:
    """Yield the queries; clips of equal score are in the order of the captions file, keys are clips' numbers."""
    if evaluation.ranks is None:
        return
    count = len(evaluation.asked)
    captions = evaluation.captions
    candidates = np.array(evaluation.candidates)
    embedding = evaluation.clips.embedding[candidates]
    rank = evaluation.ranks.t2v.rank
    for place in np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)):
        caption = captions.captions[evaluation.asked[place]]
        scores = score(evaluation.text[place][None], embedding)[:, 0]
        order = np.argsort(-scores, kind="stable")
        behind = int(np.flatnonzero(candidates[order] == caption.clip)[0])
        shown = []
        for number in [*range(min(top, len(order))), *([behind] if behind >= top else [])]:
            clip = int(candidates[order[number]])
            span = captions.clips[clip]
            points = float(scores[order[number]])
            right = clip == caption.clip
            shown.append(ShownVideo(number + 1, span.video, span.start_s, span.end_s, points, right, str(clip)))
        yield ShownQuery(caption.text, float(rank[place]) + 1, tuple(shown))
