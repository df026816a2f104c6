"""What decoding gives: windows, ends of files, and batches of clips; and what a source of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from milnce.device_arrays import DeviceArray
    from milnce.errors import MilnceError


@dataclass(frozen=True, slots=True)
class Job:
    """A file to decode.

    Attributes:
        number: Its place among the files, from 0.
        path: The file.
        start_s: Where to start, in seconds; None is its beginning.
        end_s: Where to stop, in seconds; None is its end.
    """

    number: int
    path: Path
    start_s: float | None
    end_s: float | None


class ClipOf(NamedTuple):
    """Whose clip it is: the number of the file, and which of its clips, from 0."""

    file: int
    clip: int


@dataclass(frozen=True, slots=True)
class WindowDecoded:
    """A window was decoded.

    Attributes:
        of: Its file and its clip; equal windows of a file share a clip.
        index: Its number in the file, from 0.
        start_s: Time of its first frame, in seconds.
        end_s: Time at which it ends.
        video_s: Seconds that the whole video lasts.
    """

    of: ClipOf
    index: int
    start_s: float
    end_s: float
    video_s: float


@dataclass(frozen=True, slots=True)
class FileDecoded:
    """All windows of a file were decoded."""

    file: int


@dataclass(frozen=True, slots=True)
class FileFailed:
    """A file cannot be decoded; its clips that were not taken yet are gone."""

    file: int
    error: MilnceError


Event = WindowDecoded | FileDecoded | FileFailed


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Clips to be run.

    Attributes:
        clips: uint8 (clips, frames, size, size, 3), C-contiguous; may change once the batch is released. Of the host or
            a `milnce.device_arrays.DeviceArray`.
        owners: Whose each clip is.
        slots: Where they lie.
    """

    clips: NDArray[np.uint8] | DeviceArray
    owners: list[ClipOf]
    slots: range


class ClipSource(Protocol):
    """Decodes files, in the calling process or in others. Used from one thread at a time."""

    def next(self, *, wait: bool) -> list[Event] | Batch | None:
        """Return what happened since the last call, or a batch to be run, or None if there is neither.

        Args:
            wait: Wait until there is either.
        """

    def release(self, batch: Batch) -> None:
        """Take back the memory of a batch."""

    def drop(self, file: int) -> None:
        """Decode no more of a file, and forget its clips."""

    def passed(self, file: int) -> None:
        """Take note that all of a file is done and handed on, as were all before it."""

    def close(self) -> None:
        """Stop decoding and free everything. A second call does nothing."""
