"""The training clips: drawn, encoded to files, decoded by the runtime's own path, and kept as one array on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import OutputError
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

    Raises:
        OutputError: if the disk has no room for the clips.
    """
    array, receipt = folder / f"{name}.npy", folder / f"{name}.json"
    made_of = {"seed": seed, "sampling": SAMPLING.digest, "shown": [list(combination) for combination in shown]}
    if not _is_receipt_of(receipt, made_of):
        folder.mkdir(parents=True, exist_ok=True)
        # Gone before the first clip is: a receipt beside clips that are being replaced would pass for theirs.
        receipt.unlink(missing_ok=True)
        shape = (len(shown), SAMPLING.frames, SAMPLING.size, SAMPLING.size, 3)
        clips = np.lib.format.open_memmap(array, "w+", np.uint8, shape)
        _allocate(array)
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


def _is_receipt_of(receipt: Path, made_of: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(receipt.read_text(encoding="utf-8")) == made_of)
    except (OSError, ValueError):  # missing, or cut short
        return False


def _allocate(path: Path) -> None:
    """Take the disk space now: a map of a file with holes dies with a bus error where the disk is full."""
    size = path.stat().st_size
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink()
        raise OutputError(f"{path}: {size:,} bytes are needed ({error.strerror}); make room or take fewer") from error


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
