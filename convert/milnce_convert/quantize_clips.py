"""Clips of the user's videos to calibrate a quantised graph on, and others to judge it by."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from milnce.errors import InputError, OutputError, VideoError
from milnce.files import file_sha256
from milnce.video import find_videos, get_preset, iter_windows, probe_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from milnce.errors import MilnceError
    from milnce.video import Preset

# A stretch of a file: (path, start in seconds or None, end in seconds or None).
Stretch = tuple["Path", "float | None", "float | None"]


# With fewer the ranges of activations, and the figures, say too little.
LEAST_CLIPS = 8


@dataclass(frozen=True)
class Clips:
    """Clips of one part of the videos.

    Attributes:
        clips: uint8 (N, T, H, W, 3), in a file: read from disk when they are looked at.
        videos: The videos that gave one or more of them.
    """

    clips: NDArray[np.uint8]
    videos: tuple[Path, ...]

    def __len__(self) -> int:
        """Return N."""
        return len(self.clips)


@dataclass(frozen=True)
class Drawn:
    """What was drawn from the videos; no clip of one part is of a video, or of half of the only one, of the other.

    Attributes:
        calibration: Clips that ranges are measured on.
        held_out: Clips that figures are measured on.
        held_out_files: Every video of that part, also those that gave no clip.
        failed: Videos that could not be decoded.
    """

    calibration: Clips
    held_out: Clips
    held_out_files: tuple[Path, ...]
    failed: tuple[tuple[Path, MilnceError], ...]


def draw_clips(
    paths: Sequence[Path],
    preset: Preset,
    *,
    calibration: int,
    held_out: int,
    seed: int,
    folder: Path,
    on_clip: Callable[[str, int, int], None] = lambda _part, _done, _wanted: None,
) -> Drawn:
    """Decode a seeded sample of windows, spread over the videos and over each of them.

    The videos are split by a seeded shuffle, copies of a file together; of a single one the first half calibrates and
    the second is held out. Windows with the same pixels count once in both parts together, and those held out do not
    overlap, so that each can be told from the others.

    Args:
        paths: Video files, and folders to search for them.
        preset: How clips are sampled. How many windows a video gives, and where, is chosen here.
        calibration: Clips to calibrate on, at most.
        held_out: Clips to hold out, at most.
        seed: Decides the split and which videos are taken where there are more than clips.
        folder: Where the clips are kept meanwhile: about 4.8 MB a clip of 32 x 224 x 224.
        on_clip: Called with "calibration" or "held out", the clips of that part so far and those wanted.

    Raises:
        InputError: if there is no video, or fewer than 8 different clips in a part; the message says how many, and
            which videos failed.
        OutputError: if `folder` cannot hold the clips.
        MissingDependencyError: if PyAV is not installed.
    """
    files = find_videos(list(paths))
    parts = _split(files, calibration / (calibration + held_out), np.random.default_rng(seed))
    failed: list[tuple[Path, MilnceError]] = []
    found: list[_Collector] = []
    seen: set[bytes] = set()
    for name, stretches, wanted in zip(("calibration", "held out"), parts, (calibration, held_out), strict=True):
        collector = _Collector(folder / f"{name}.clips", preset, seen, apart=name == "held out")
        with collector:
            for stretch, share in _shares(stretches, wanted, collector):
                try:
                    collector.take(stretch, share)
                except OutputError:
                    raise
                except (VideoError, OSError) as error:
                    failed.append((stretch[0], error if isinstance(error, VideoError) else VideoError(str(error))))
                on_clip(name, len(collector.videos), wanted)
        found.append(collector)
    for name, collector in zip(("calibration", "held-out"), found, strict=True):
        if len(collector.videos) < LEAST_CLIPS:
            raise InputError(_too_few(name, len(collector.videos), files, failed))
    calibrated, held = (collector.clips() for collector in found)
    return Drawn(calibrated, held, tuple(dict.fromkeys(path for path, _, _ in parts[1])), tuple(failed))


def _split(files: Sequence[Path], share: float, generator: np.random.Generator) -> tuple[list[Stretch], list[Stretch]]:
    groups = _copies(files)
    if len(groups) == 1:
        middle_s = _middle_s(files[0])
        return [(files[0], None, middle_s)], [(files[0], middle_s, None)]
    order = [groups[index] for index in generator.permutation(len(groups))]
    first = min(max(round(len(order) * share), 1), len(order) - 1)
    return _whole(order[:first]), _whole(order[first:])


def _whole(groups: Sequence[list[Path]]) -> list[Stretch]:
    return [(path, None, None) for group in groups for path in group]


def _copies(files: Sequence[Path]) -> list[list[Path]]:
    """Group files of the same bytes; only files of the same size are read for it."""
    sizes = [_size(path) for path in files]
    counts = Counter(sizes)
    groups: dict[object, list[Path]] = {}
    for path, size in zip(files, sizes, strict=True):
        alone = counts[size] == 1
        groups.setdefault(path if alone else _digest(path), []).append(path)
    return list(groups.values())


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _digest(path: Path) -> object:
    """Return the digest of a file's bytes, or its path if it cannot be read: decoding it says what is wrong."""
    try:
        return file_sha256(path)
    except OSError:
        return path


def _middle_s(path: Path) -> float | None:
    try:
        duration_s = probe_video(path).duration_s
    except VideoError:
        return None  # decoding it says what is wrong
    return duration_s / 2


def _shares(stretches: list[Stretch], wanted: int, collector: _Collector) -> Iterator[tuple[Stretch, int]]:
    """Yield stretches and the clips to take of each; what one did not give is asked of those that are left."""
    for index, stretch in enumerate(stretches):
        missing = wanted - len(collector.videos)
        if missing <= 0:
            return
        yield stretch, math.ceil(missing / (len(stretches) - index))


@dataclass
class _Collector:
    """Writes different clips to a file. Not through a memory map: on a full disk that ends the process."""

    path: Path
    preset: Preset
    seen: set[bytes]  # digests of the clips that were taken, also by another collector
    apart: bool
    videos: list[Path] = field(default_factory=list)  # one entry a clip
    _file: BinaryIO | None = None

    def __enter__(self) -> _Collector:  # noqa: PYI034  # typing.Self is not in Python 3.10
        with self._as_output_error():
            self._file = self.path.open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with self._as_output_error():
                self._file.close()

    def take(self, stretch: Stretch, count: int) -> None:
        """Add up to `count` windows, evenly spread over the stretch; none if one of them cannot be decoded."""
        path, start_s, end_s = stretch
        layout = self.preset if self.preset.fps is None else get_preset(self.preset, windows=count, stride_frames=None)
        free_s, before, seen = -math.inf, len(self.videos), self.seen.copy()
        try:
            with closing(iter_windows(path, layout, start_s=start_s, end_s=end_s)) as windows:
                for window in windows:
                    if not self.apart or window.start_s >= free_s:
                        free_s = window.end_s
                        self._add(path, window.clip)
        except VideoError:
            del self.videos[before:]  # what is written stands after the end, and the next clip goes over it
            self.seen.intersection_update(seen)
            raise

    def _add(self, path: Path, clip: NDArray[np.uint8]) -> None:
        digest = hashlib.sha256(clip.data).digest()
        if digest in self.seen or self._file is None:
            return
        with self._as_output_error():
            self._file.seek(len(self.videos) * clip.nbytes)
            self._file.write(clip.data)
        self.seen.add(digest)
        self.videos.append(path)

    @contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.path.parent} cannot hold the clips ({error.strerror or error}); make room there, or set TMPDIR "
                "to a folder with more of it"
            ) from error

    def clips(self) -> Clips:
        """Return what was taken."""
        shape = (len(self.videos), self.preset.frames, self.preset.size, self.preset.size, 3)
        clips = np.memmap(self.path, np.uint8, mode="r", shape=shape)
        return Clips(clips, tuple(dict.fromkeys(self.videos)))


def _too_few(part: str, count: int, files: Sequence[Path], failed: Sequence[tuple[Path, MilnceError]]) -> str:
    """Say how many clips there are, and why there are no more."""
    lost = "".join(f"\n  - {path}: {error}" for path, error in failed[:10])
    more = f"\n  - and {len(failed) - 10} more" if len(failed) > 10 else ""  # noqa: PLR2004 - enough to see why
    why = f". {len(failed)} of them could not be decoded:{lost}{more}" if failed else ""
    return (
        f"{len(files)} video{'s' * (len(files) != 1)} gave {count} different {part} clips; at least {LEAST_CLIPS} "
        f"needed. Give more videos, longer ones, or ones that are not the same{why}"
    )
