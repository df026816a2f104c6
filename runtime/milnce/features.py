"""Features on disk: one row a window, NPZ or Parquet by suffix, written in bounded memory and never by halves.

Columns: path (text), start_s and end_s (float64), embedding (float32, 512 wide) and mixed_5c (float32, 1024 wide).
Beside them: which model, preset, backend and precision made them, so that two files can be told apart.
An NPZ is read with `numpy.load(path, allow_pickle=False)`; its metadata is JSON text in the member `metadata`.
A Parquet file has fixed-size list columns and the same JSON in the schema's metadata under `milnce`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError, OutputError
from milnce.feature_files import NpzSink, ParquetSink, Sink, import_pyarrow, read_npz, read_parquet
from milnce.files import check_absent, check_writable
from milnce.json_fields import brief

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from milnce.pipeline import WindowSpan

SUFFIXES = (".npz", ".parquet")

_ROWS_AT_ONCE = 4096  # checked at a time, which bounds the memory

# Of the metadata's fields; the others are text.
_METADATA_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "preset": ((dict,), "an object"),
    "start_s": ((int, float, NoneType), "seconds or null"),
    "end_s": ((int, float, NoneType), "seconds or null"),
}


@dataclass(frozen=True, slots=True)
class FeaturesMetadata:
    """What made the features.

    Attributes:
        model_digest: The bundle's digest of weights and vocabulary; text must be encoded with the same.
        preset_name: Name of the preset.
        preset_digest: Digest of everything in the preset that changes pixels.
        preset: The preset's fields.
        backend: Which backend and device ran the model.
        precision: Precision it ran in, such as "fp32".
        milnce_version: Release that wrote the file.
        start_s: Where embedding began in each video, in seconds; None is the video's start. Files of before this was
            stored have neither, and are taken for whole videos.
        end_s: Where it stopped in each video, in seconds; None is the video's end.
    """

    model_digest: str
    preset_name: str
    preset_digest: str
    preset: Mapping[str, Any]
    backend: str
    precision: str
    milnce_version: str
    start_s: float | None = None
    end_s: float | None = None

    def to_json(self) -> str:
        """Return the text that is stored beside the columns."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> FeaturesMetadata:
        """Read `to_json`'s text.

        Raises:
            InputError: if it is not an object with the fields above, each of its type.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InputError(f"metadata is not JSON: {error}") from error
        names = [item.name for item in fields(cls)]
        needed = [item.name for item in fields(cls) if item.default is MISSING]
        if not isinstance(value, dict) or not set(needed) <= set(value):
            raise InputError(f"metadata must be an object with {needed}")
        # Surplus names are a newer release's additions, and harmless.
        known = {name: value[name] for name in names if name in value}
        for name, given in known.items():
            expected, words = _METADATA_TYPES.get(name, ((str,), "text"))
            if not isinstance(given, expected) or isinstance(given, bool):
                raise InputError(f"metadata: {name} is {brief(given)}; {words} expected")
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Features:
    """Features as read from a file; every column has one entry a window.

    Attributes:
        path: Video of each window, as it was given to `milnce embed`.
        start_s: float64 (rows,), seconds.
        end_s: float64 (rows,), seconds.
        embedding: float32 (rows, 512).
        mixed_5c: float32 (rows, 1024).
        metadata: What made them.
    """

    path: tuple[str, ...]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    embedding: NDArray[np.float32]
    mixed_5c: NDArray[np.float32]
    metadata: FeaturesMetadata


class FeatureWriter:
    """Writes a features file a video at a time: `append` each one inside the `with` block, then `commit`.

    Rows go to a temporary folder beside the destination, and `commit` renames the finished file into place. Leaving
    the `with` block without `commit` removes everything, so a destination that exists is complete.

    Args:
        destination: Where to write, ending in .npz or .parquet.
        metadata: What makes the features.
        overwrite: Whether a file that is there already may be replaced; it stays as it is until `commit`.

    Raises:
        OutputError: before anything is written, if the suffix is unknown, the folder is missing or not writable, or
            the destination exists.
        MissingDependencyError: if Parquet is asked for and pyarrow is not installed.
    """

    def __init__(self, destination: Path, metadata: FeaturesMetadata, *, overwrite: bool = False) -> None:
        self.destination = destination
        self.rows = 0
        self._sink: Sink | None = None
        self._metadata = metadata
        check_destination(destination, overwrite=overwrite)
        try:
            folder = tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent)
        except OSError as error:
            raise OutputError(f"{destination.parent}: cannot write here ({error.strerror}); choose another") from error
        self._folder = Path(folder)

    def __enter__(self) -> FeatureWriter:  # noqa: PYI034  # typing.Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._sink is not None:
                self._sink.close()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def append(
        self,
        path: Path | str,
        windows: Sequence[WindowSpan],
        embedding: NDArray[np.float32],
        mixed_5c: NDArray[np.float32],
    ) -> None:
        """Add the windows of one video.

        Raises:
            InputError: if the arrays do not hold one float32 row a window.
            OutputError: if the disk refuses.
        """
        for name, array in (("embedding", embedding), ("mixed_5c", mixed_5c)):
            if array.dtype != np.float32 or array.ndim != 2 or len(array) != len(windows):  # noqa: PLR2004
                expected = f"float32 ({len(windows)}, width) expected, a row a window"
                raise InputError(f"{name}: {array.dtype} {array.shape} given; {expected}")
        if not windows:
            return
        columns: dict[str, Any] = {
            "path": _storable(path),
            "start_s": np.array([window.start_s for window in windows], np.float64),
            "end_s": np.array([window.end_s for window in windows], np.float64),
            "embedding": embedding,
            "mixed_5c": mixed_5c,
        }
        try:
            if self._sink is None:
                widths = (embedding.shape[1], mixed_5c.shape[1])
                kind = NpzSink if self.destination.suffix.lower() == ".npz" else ParquetSink
                self._sink = kind(self._folder, widths, self._metadata.to_json())
            self._sink.append(columns)
        except OSError as error:
            raise OutputError(f"{self.destination}: cannot write ({error}); is the disk full?") from error
        self.rows += len(windows)

    def commit(self) -> None:
        """Finish the file and rename it into place.

        Raises:
            OutputError: if no row was added, or the disk refuses.
        """
        if self._sink is None:
            raise OutputError(f"{self.destination}: not written, since there is no window to write")
        try:
            finished = self._sink.finish()
            with finished.open("rb") as file:
                os.fsync(file.fileno())
            finished.replace(self.destination)
        except OSError as error:
            raise OutputError(f"{self.destination}: cannot write ({error}); is the disk full?") from error


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, what could not be written at its end.

    Raises:
        OutputError: if the suffix is unknown, the folder is missing or not writable, or the destination exists and may
            not be replaced.
        MissingDependencyError: if Parquet is asked for and pyarrow is not installed.
    """
    if destination.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{destination}: {_suffix_message(destination)}")
    if destination.suffix.lower() == ".parquet":
        import_pyarrow()
    check_absent(destination, overwrite=overwrite)
    check_writable(destination)


def read_features(path: Path) -> Features:
    """Read a features file.

    Raises:
        InputError: if the suffix is unknown, or the file is missing, damaged or not a features file; or if a window's
            times are no times, or its features hold NaN or infinity.
        MissingDependencyError: if it is Parquet and pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: {_suffix_message(path)}")
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where it may not look
        raise InputError(f"{path}: no such features file; `milnce embed` writes one")
    columns = read_npz(path) if path.suffix.lower() == ".npz" else read_parquet(path)
    rows = len(columns["path"])
    expected = (
        ("start_s", np.float64, 1),
        ("end_s", np.float64, 1),
        ("embedding", np.float32, 2),
        ("mixed_5c", np.float32, 2),
    )
    for name, dtype, rank in expected:
        array = columns[name]
        if array.dtype != dtype or array.ndim != rank or len(array) != rows:
            wanted = f"({rows})" if rank == 1 else f"({rows}, width)"
            raise InputError(f"{path}: {name} is {array.dtype} {array.shape}; {np.dtype(dtype)} {wanted} expected")
    try:
        metadata = FeaturesMetadata.from_json(columns.pop("metadata"))
    except InputError as error:
        raise InputError(f"{path}: {error}; embed the videos again") from error
    features = Features(**{**columns, "path": tuple(columns["path"])}, metadata=metadata)
    _check_windows(path, features)
    return features


def _check_windows(path: Path, features: Features) -> None:
    """Refuse a window that lies nowhere or is no number, and name it."""
    for first in range(0, len(features.path), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        start_s, end_s = features.start_s[rows], features.end_s[rows]
        sound = {
            "times": (start_s >= 0) & (start_s <= end_s) & (end_s < np.inf),  # also False for NaN
            "embedding": np.isfinite(features.embedding[rows]).all(axis=1),
            "mixed_5c": np.isfinite(features.mixed_5c[rows]).all(axis=1),
        }
        for name, good in sound.items():
            if not good.all():
                row = first + int(good.argmin())
                span = f"from {features.start_s[row]:g} s to {features.end_s[row]:g} s"
                wrong = "has impossible times" if name == "times" else f"holds NaN or infinity in {name}"
                raise InputError(f"{path}: the window of {features.path[row]} {span} {wrong}; embed that video again")


def _suffix_message(path: Path) -> str:
    return f"suffix {path.suffix!r} given; {' or '.join(SUFFIXES)} expected"


def _storable(path: Path | str) -> str:
    """Return the path as valid Unicode, which both formats need: bytes that are not UTF-8 become backslash escapes."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
