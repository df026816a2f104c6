"""The training clips: drawn, encoded to files, decoded by the runtime's own path, and kept as one array on disk."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from milnce.video import iter_windows
from milnce_convert.demo.clips import GIF_SHARE, SAMPLING, write_clip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from milnce_convert.demo.concepts import Combination

_CHUNK = 64


@dataclass(frozen=True)
class ClipPool:
    """Clips and what each shows.

    Attributes:
        clips: uint8 (clips, frames, size, size, 3) RGB, mapped from disk.
        shown: The combination of each clip.
    """

    clips: NDArray[np.uint8]
    shown: tuple[Combination, ...]


def make_pool(
    folder: Path,
    name: str,
    shown: Sequence[Combination],
    *,
    seed: int,
    workers: int,
    on_clips: Callable[[int], None] = lambda _: None,
) -> ClipPool:
    """Make the clips, or map those that an earlier run with the same arguments left in `folder`.

    Args:
        folder: Where `<name>.npy` and `<name>.json` are kept: 196 kB a clip.
        name: Of the pool.
        shown: The combination of each clip; clip i is drawn from the seeds (seed, i).
        seed: Decides everything else.
        workers: Processes that draw, encode and decode.
        on_clips: Called with how many clips are new, for progress.
    """
    array, receipt = folder / f"{name}.npy", folder / f"{name}.json"
    made_of = {"seed": seed, "sampling": SAMPLING.digest, "shown": [list(combination) for combination in shown]}
    if not (receipt.is_file() and json.loads(receipt.read_text(encoding="utf-8")) == made_of):
        folder.mkdir(parents=True, exist_ok=True)
        shape = (len(shown), SAMPLING.frames, SAMPLING.size, SAMPLING.size, 3)
        clips = np.lib.format.open_memmap(array, "w+", np.uint8, shape)
        # "spawn": a forked copy of a process that has used PyTorch's threads may hang.
        context = multiprocessing.get_context("spawn")
        starts = range(0, len(shown), _CHUNK)
        with ProcessPoolExecutor(workers, mp_context=context) as executor:
            parts = [list(shown[start : start + _CHUNK]) for start in starts]
            made = executor.map(partial(_make_clips, seed), starts, parts)
            for start, part in zip(starts, made, strict=True):
                clips[start : start + len(part)] = part
                on_clips(len(part))
        clips.flush()
        receipt.write_text(json.dumps(made_of), encoding="utf-8")
    else:
        on_clips(len(shown))
    return ClipPool(np.load(array, mmap_mode="r"), tuple(shown))


def _make_clips(seed: int, start: int, shown: list[Combination]) -> NDArray[np.uint8]:
    """Return the decoded clips of consecutive numbers."""
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        for number, combination in enumerate(shown, start):
            generator = np.random.default_rng([seed, number])
            path = Path(folder, "clip.gif" if generator.random() < GIF_SHARE else "clip.mp4")
            write_clip(path, combination, generator)
            clips.append(next(iter_windows(path, SAMPLING)).clip)
    return np.stack(clips)
