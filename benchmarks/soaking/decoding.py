"""The traffic through decoders: good and broken files, in this process and in workers, left halfway, and killed."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

import psutil

from milnce.pipeline import embed_files
from soaking.material import WrongAnswerError

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

    from milnce.pipeline import FileEmbeddings
    from soaking.traffic import Scene

_WORKERS = 2
_ANY_S = 60.0
_POLL_S = 0.01  # a decoding process takes tens of that to start
_PACKAGE = "milnce.decoding"  # in the command line of every decoding process


def embed_here(scene: Scene, chance: random.Random, _: int) -> int:
    """Embed some files, decoded in this process."""
    paths = _choose(scene, chance, chance.randint(1, 3))
    _check_all(scene, paths, scene.model.embed_files(paths, preset=scene.material.preset, workers=0))
    return len(paths)


def embed_with_workers(scene: Scene, chance: random.Random, _: int) -> int:
    """Embed some files, decoded in processes of their own."""
    paths = _choose(scene, chance, chance.randint(2, 5))
    _check_all(scene, paths, scene.model.embed_files(paths, preset=scene.material.preset, workers=_WORKERS))
    return len(paths)


def leave_halfway(scene: Scene, chance: random.Random, _: int) -> int:
    """Take some results of a stream and close it."""
    paths = _choose(scene, chance, 4)
    taken = chance.randint(0, 3)
    workers = chance.choice((0, _WORKERS))
    stream: Any = scene.model.embed_files(paths, preset=scene.material.preset, workers=workers)
    with contextlib.closing(stream):
        _check_all(scene, paths[:taken], [next(stream) for _ in range(taken)])
    return taken


def kill_decoder(scene: Scene, chance: random.Random, _: int) -> int:
    """Embed some files, and kill a decoder with SIGKILL at some moment; whose it is, is chance too."""
    paths = [*_choose(scene, chance, 3), scene.material.long]
    chance.shuffle(paths)
    # At any time, most of it while processes start; or as soon as a window came, while the next one is decoded.
    wait_s, windows = chance.choice((chance.random(), _ANY_S)), iter([None] * chance.randint(0, 3))
    if not scene.tally["killed"]:
        wait_s = 0.0  # the first surely meets a decoder: as soon as there is one
    now, over = threading.Event(), threading.Event()

    def on_window(*_: object) -> None:
        if next(windows, now) is now:
            now.set()

    def kill() -> None:
        now.wait(wait_s)
        while not (decoders := decoder_processes()) and not over.wait(_POLL_S):
            pass
        if decoders:
            # Counted before: the file may have failed by the time that the call returns.
            scene.count(killed=1)
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(decoders).send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill, name="soak-killer")
    killer.start()
    try:
        items = embed_files(
            scene.model, paths, preset=scene.material.preset, workers=_WORKERS, on_window=on_window, batch_size=2
        )
        _check_all(scene, paths, items)
    finally:
        over.set()
        now.set()
        killer.join()
    return len(paths)


def decoder_processes() -> list[psutil.Process]:
    """Return the decoding processes that run now."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has ended since
            if any(_PACKAGE in part for part in process.cmdline()):
                found.append(process)
    return found


def _choose(scene: Scene, chance: random.Random, count: int) -> list[Path]:
    """Return files in a random order, each once; about every third is broken."""
    broken = sum(chance.random() < 1 / 3 for _ in range(count))
    paths = chance.sample(sorted(scene.material.broken), broken) + chance.sample(scene.material.videos, count - broken)
    chance.shuffle(paths)
    return paths


def _check_all(scene: Scene, paths: list[Path], items: Iterable[FileEmbeddings]) -> None:
    found = list(items)
    if [item.path for item in found] != paths:
        raise WrongAnswerError(f"results of {[item.path for item in found]} came; {paths} expected, in this order")
    for item in found:
        scene.check(item)
