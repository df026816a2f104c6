"""The traffic through batchers: bursts, deadlines, cancellations, overload, closing at any time."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

import milnce
from milnce.errors import ClosedError, DeadlineError, QueueFullError
from soaking.material import WrongAnswerError, check_rows

if TYPE_CHECKING:
    import random
    from concurrent.futures import Future
    from typing import Any

    from soaking.traffic import Scene

_ANSWER_S = 60.0
_CLIPS_SHARE = 0.2
_OVERLOAD, _SMALL_QUEUE = 24, 4


def submit_burst(scene: Scene, chance: random.Random, _: int) -> int:
    """Submit a burst to the batcher that all callers share; some are cancelled at once, some may not wait."""
    asked: list[tuple[Future[Any], tuple[str, int], str]] = []
    for _number in range(chance.randint(4, 24)):
        fate = chance.choices(("waits", "cancelled", "late"), (8, 1, 1))[0]
        what = _choose(scene, chance)
        deadline_s = chance.choice((0.0, 1e-4, 1e-3)) if fate == "late" else None
        try:
            future = _submit(scene, scene.batcher, what, deadline_s)
        except QueueFullError:
            scene.count(refused=1)
            continue
        if fate == "cancelled":
            future.cancel()
        asked.append((future, what, fate))
    for future, what, fate in asked:
        _settle(scene, future, what, fate)
    return len(asked)


def await_burst(scene: Scene, chance: random.Random, _: int) -> int:
    """Ask from tasks of asyncio, of which some are cancelled."""
    sentences, answers = scene.material.sentences, scene.answers.text
    rows = [chance.randrange(len(sentences)) for _ in range(chance.randint(2, 8))]
    unwanted = {number for number in range(len(rows)) if chance.random() < 0.2}  # noqa: PLR2004 - one in five

    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(scene.batcher.encode_text_async(sentences[row])) for row in rows]
        await asyncio.sleep(0)
        for number in unwanted:
            tasks[number].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for number, (row, found) in enumerate(zip(rows, asyncio.run(ask()), strict=True)):
        if isinstance(found, QueueFullError):
            scene.count(refused=1)
        elif isinstance(found, asyncio.CancelledError) and number in unwanted:
            scene.count(cancelled=1)
        elif isinstance(found, BaseException):
            raise found
        else:
            check_rows(found, answers[row], "a sentence awaited")
    return len(rows)


def overload(scene: Scene, chance: random.Random, _: int) -> int:
    """Give a batcher with a small queue many times what it holds, and close it, with what waits answered or dropped."""
    batcher = milnce.Batcher(scene.model, max_queue=_SMALL_QUEUE)
    asked: list[tuple[Future[Any], tuple[str, int], str]] = []
    refused = 0
    try:
        for _number in range(_OVERLOAD):
            what = _choose(scene, chance)
            try:
                asked.append((_submit(scene, batcher, what, None), what, "waits"))
            except QueueFullError:
                refused += 1
        drain = chance.random() < 0.5  # noqa: PLR2004 - as often as not
    finally:
        batcher.close(drain=drain)
    for future, what, fate in asked:
        _settle(scene, future, what, fate if drain else "dropped")
    for lane in (batcher.stats().video, batcher.stats().text):
        ended = lane.answered + lane.failed + lane.expired + lane.cancelled + lane.dropped
        if lane.accepted != ended or lane.failed or lane.queued or lane.running:
            raise WrongAnswerError(f"a batcher that is closed has {lane}")
    if batcher.stats().video.refused + batcher.stats().text.refused != refused:
        raise WrongAnswerError(f"{refused} requests were refused; the batcher says {batcher.stats()}")
    try:
        batcher.submit_text(scene.material.sentences[0])
    except ClosedError:
        scene.count(refused=refused)
        return _OVERLOAD
    raise WrongAnswerError("a closed batcher took a request")


def _choose(scene: Scene, chance: random.Random) -> tuple[str, int]:
    if chance.random() < _CLIPS_SHARE:
        return "clip", chance.randrange(len(scene.material.clips))
    return "sentence", chance.randrange(len(scene.material.sentences))


def _submit(scene: Scene, batcher: milnce.Batcher, what: tuple[str, int], deadline_s: float | None) -> Future[Any]:
    kind, row = what
    if kind == "clip":
        return batcher.submit_video(scene.material.clips[row], deadline_s=deadline_s, copy=False)
    return batcher.submit_text(scene.material.sentences[row], deadline_s=deadline_s)


def _settle(scene: Scene, future: Future[Any], what: tuple[str, int], fate: str) -> None:
    """Wait for a request and hold it to its answer, or to the end that its fate allows; each must come to an end."""
    kind, row = what
    try:
        found = future.result(timeout=_ANSWER_S)
    except (CancelledError, DeadlineError, ClosedError) as error:
        allowed = {"cancelled": CancelledError, "late": DeadlineError, "dropped": ClosedError}.get(fate)
        if allowed is None or not isinstance(error, allowed):
            raise WrongAnswerError(f"a {kind} that {fate} ended with {error!r}") from error
        scene.count(**{fate: 1})
        return
    if kind == "clip":
        check_rows(found.embedding, scene.answers.clips[row], f"a clip that {fate}")
    else:
        check_rows(found, scene.answers.text[row], f"a sentence that {fate}")
