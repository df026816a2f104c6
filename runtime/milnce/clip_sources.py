"""Where the embeddings of a clip come from: stored features or a video file, found by the clip's name."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from milnce.errors import InputError, RangeError, VideoError
from milnce.features import SUFFIXES, read_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from milnce.captions import Clip
    from milnce.errors import MilnceError
    from milnce.features import FeaturesMetadata
    from milnce.video import Preset

# Windows and captions state times to microseconds; sums of floats are off by less.
_TOLERANCE_S = 1e-6
# How much later than a video's last window a clip may end: the reference's windows end 0.4 s before the video does, and
# a container may last a little longer than its pictures.
_PAST_LAST_WINDOW_S = 1.5


class NameIndex:
    """Finds files by the end of their path, with or without suffix.

    "x", "x.mp4", "226/x" and "validation/226/x.mp4" all name the file "data/validation/226/x.mp4", unless two files
    have that end; so does its absolute path. A match with suffix goes before one without.

    Args:
        names: The paths, as text. One that is there in two spellings is one file, found as it is spelt first.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_last: dict[str, dict[str, PurePosixPath]] = {}
        whole = {os.path.abspath(name): name for name in reversed(list(names))}  # noqa: PTH100 - two links are two
        self._count = len(whole)
        for absolute, name in reversed(whole.items()):
            path = PurePosixPath(absolute)
            for last in (path.name, path.stem):
                self._by_last.setdefault(last, {})[name] = path

    def find(self, name: str) -> str | None:
        """Return the path that `name` stands for, or None if there is none.

        Raises:
            InputError: if there are several.
        """
        wanted = PurePosixPath(name)
        parents = wanted.parts[:-1]
        found = [
            (given, path)
            for given, path in self._by_last.get(wanted.name, {}).items()
            if not parents or path.parts[:-1][-len(parents) :] == parents
        ]
        exact = [given for given, path in found if path.name == wanted.name]
        best = exact or [given for given, _ in found]
        if len(best) > 1:
            shown = ", ".join(sorted(best)[:4]) + (", ..." if len(best) > 4 else "")  # noqa: PLR2004  # enough to see
            raise InputError(f"{name} is {len(best)} files: {shown}; name it with its folder or suffix in the captions")
        return best[0] if best else None

    def __len__(self) -> int:
        """Return the number of files."""
        return self._count


@dataclass(slots=True)
class StoredFeatures:
    """The windows of features files, all made with one model and one preset.

    Attributes:
        metadata: What made each file, by its path.
        names: Finds a video among the windows.
    """

    metadata: dict[Path, FeaturesMetadata] = field(default_factory=dict)
    names: NameIndex = field(default_factory=lambda: NameIndex(()))
    _windows: dict[str, _Windows] = field(default_factory=dict)
    _frames: int = 1
    _many_windows: bool = False

    @classmethod
    def read(cls, paths: Sequence[Path], *, model_digest: str, preset: Preset) -> StoredFeatures:
        """Read features files, and the features files right inside folders.

        Args:
            paths: .npz and .parquet files of `milnce embed`, and folders with such files.
            model_digest: Digest of the model that the sentences are embedded with.
            preset: How videos are to be sampled.

        Raises:
            InputError: if a file cannot be read, is of another model or preset, or two of them hold the same video; or
                a folder has none.
            MissingDependencyError: if one is Parquet and pyarrow is not installed.
        """
        many = preset.stride_frames is not None or (preset.windows or 1) > 1
        stored = cls(_frames=preset.frames, _many_windows=many)
        places: dict[str, str] = {}
        for path in _features_files(paths):
            features = read_features(path)
            _check_made_alike(path, features.metadata, model_digest, preset)
            stored.metadata[path] = features.metadata
            made = features.metadata
            range_s = (made.start_s or 0.0, np.inf if made.end_s is None else made.end_s)
            names = np.array(features.path)
            order = np.argsort(names, kind="stable")  # one video's windows may lie apart, and stay in order
            unique, first = np.unique(names[order], return_index=True)
            for name, rows in zip(unique.tolist(), np.split(order, first[1:]), strict=True):
                place = os.path.abspath(name)  # noqa: PTH100 - without following links
                if places.setdefault(place, name) != name or name in stored._windows:
                    raise InputError(
                        f"{path}: holds the windows of {name}, as does another features file; leave out one"
                    )
                spans_s = features.start_s[rows], features.end_s[rows]
                stored._windows[name] = _Windows(*spans_s, features.embedding[rows], range_s)
        stored.names = NameIndex(stored._windows)
        return stored

    def embed(self, name: str, clip: Clip) -> NDArray[np.float32]:
        """Return the embedding of a clip of the stored video `name`: the mean of its windows inside the clip.

        Returns:
            float32 (width,).

        Raises:
            RangeError: if only a stretch of the video is stored and the clip is not inside it, the clip ends well
                after the last window, or no window lies inside the clip.
        """
        windows = self._windows[name]
        start_s = 0.0 if clip.start_s is None else clip.start_s
        end_s = np.inf if clip.end_s is None else clip.end_s
        from_s, to_s = windows.range_s
        if start_s < from_s - _TOLERANCE_S or end_s > to_s + _TOLERANCE_S:
            until = "its end" if to_s == np.inf else f"{to_s:g} s"
            raise RangeError(
                f"{name}: stored from {from_s:g} s to {until}, which the clip is not inside of; embed the video again "
                "without --start-s and --end-s, or leave this features file out"
            )
        last_s = windows.end_s.max()
        # One window says nothing about where its video ends.
        if self._many_windows and clip.end_s is not None and end_s > last_s + _PAST_LAST_WINDOW_S:
            raise RangeError(f"{name}: the clip ends at {end_s:g} s, but the last stored window ends at {last_s:g} s")
        # A stretch that is decoded is rounded to whole sampled frames, so its last window may end half of one after it.
        half_frame_s = (windows.end_s - windows.start_s) / (2 * self._frames)
        inside = (windows.start_s >= start_s - _TOLERANCE_S) & (windows.end_s <= end_s + half_frame_s + _TOLERANCE_S)
        if not inside.any():
            raise RangeError(
                f"{name}: none of its {len(inside)} stored windows lies from {start_s:g} s to {end_s:g} s; embed its "
                "clips from the videos, or store windows that are shorter or closer together"
            )
        return mean_of_windows(windows.embedding[inside])


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """The windows of one stored video: float64 (windows,), float64 (windows,), float32 (windows, width).

    `range_s` is the stretch of the video that they were laid over.
    """

    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    embedding: NDArray[np.float32]
    range_s: tuple[float, float]


class FoundClips:
    """Where each clip's video is: among the stored ones, a file, or nowhere. Every list has one entry a clip.

    Attributes:
        stored: Its name among the stored videos, or None.
        file: The video file to decode, or None.
        error: Why it is nowhere, or None.
        path: The video file to show; one that only stored features name need not exist.

    Args:
        clips: The clips.
        stored: Stored features, which go before files, or None.
        videos: Video files.

    Raises:
        InputError: if two names of the clips stand for the same video.
    """

    def __init__(self, clips: Sequence[Clip], stored: StoredFeatures | None, videos: Sequence[Path]) -> None:
        in_files = NameIndex(str(path) for path in videos)
        self.stored: list[str | None] = []
        self.file: list[Path | None] = []
        self.error: list[MilnceError | None] = []
        self.path: list[Path | None] = []
        names: dict[str, str] = {}
        for clip in clips:
            name = path = error = None
            try:
                name = None if stored is None else stored.names.find(clip.video)
                path = in_files.find(clip.video) if name is None else None
                if name is None and path is None:
                    error = VideoError(_missing(clip.video, stored, len(in_files)))
            except InputError as ambiguous:
                error = VideoError(str(ambiguous))
            self.stored.append(name)
            self.file.append(None if path is None else Path(path))
            self.error.append(error)
            where = name if name is not None else path
            shown = where
            if name is not None:
                with suppress(InputError):  # only a picture is wanted of it
                    shown = in_files.find(clip.video) or name
            self.path.append(None if shown is None else Path(shown))
            # Also by the file: one name may be found among the stored videos and another only among the files.
            for place in () if where is None or shown is None else (where, os.path.realpath(shown)):
                if names.setdefault(place, clip.video) != clip.video:
                    raise InputError(
                        f"the captions call {where} both {names[place]!r} and {clip.video!r}, so its clips would be "
                        "candidates twice; write the same name in every row"
                    )


def _missing(name: str, stored: StoredFeatures | None, files: int) -> str:
    places = ([f"the {len(stored.names)} videos with stored features"] if stored is not None else []) + (
        [f"the {files} video files"] if files or stored is None else []
    )
    return f"{name}: no such video among {' and '.join(places)}"


def mean_of_windows(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the plain mean of a clip's windows, float32 (width,): not normalised, as the reference's evaluation does.

    Args:
        embedding: float32 (windows, width).
    """
    return np.asarray(embedding.mean(axis=0, dtype=np.float32))


def _features_files(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where it may not look
            found[path] = None
            continue
        try:
            inside = sorted(item for item in path.iterdir() if item.suffix.lower() in SUFFIXES and item.is_file())
        except OSError as error:
            raise InputError(f"{path}: the folder cannot be read ({error.strerror}); make it readable") from error
        if not inside:
            raise InputError(f"{path}: no features file in this folder; looked for {' and '.join(SUFFIXES)}")
        found.update(dict.fromkeys(inside))
    return list(found)


def _check_made_alike(path: Path, made: FeaturesMetadata, model_digest: str, preset: Preset) -> None:
    if made.model_digest != model_digest:
        raise InputError(
            f"{path}: made with the model {made.model_digest[:12]}..., but the bundle is {model_digest[:12]}...; their "
            "embeddings cannot be compared. Embed the videos again with this bundle"
        )
    if made.preset_digest != preset.digest:
        raise InputError(
            f"{path}: sampled with preset {_describe(made.preset)}, but {_describe(preset.to_json())} is asked for. "
            "Give --preset and --stride-frames as they were for `milnce embed`, or embed the videos again"
        )


def _describe(preset: Mapping[str, object]) -> str:
    fields = ("fps", "frames", "windows", "stride_frames", "size")
    given = [f"{name} {preset[name]}" for name in fields if preset.get(name) is not None]
    return f"{preset.get('name')} ({', '.join(given)})"
