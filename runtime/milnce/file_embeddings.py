"""What embedding a file gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from milnce.errors import MilnceError
    from milnce.video import Preset


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """Where a window lies in its file.

    Attributes:
        index: Number of the window in its file, from 0.
        start_s: Time of its first frame, in seconds.
        end_s: Time at which it ends, in seconds.
        video_s: Seconds that the whole video lasts, where that is known; says nothing about the window.
    """

    index: int
    start_s: float
    end_s: float
    video_s: float | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class FileEmbeddings:
    """What one file gave: the embeddings of its windows, or the error that stopped it.

    Attributes:
        path: The file, as it was given.
        windows: Where each window lies; empty when the file failed.
        embedding: float32 (windows, 512), to be compared with text. The width is the bundle's.
        mixed_5c: float32 (windows, 1024), the features before the projection.
        error: Why the file could not be done, or None. A failed file has no windows, not some of them.
        preset: How frames were sampled and resized.
    """

    path: Path
    windows: tuple[WindowSpan, ...]
    embedding: NDArray[np.float32]
    mixed_5c: NDArray[np.float32]
    error: MilnceError | None
    preset: Preset
