"""Decoding in the calling process, when the next window is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from milnce.decoding.events import Batch, ClipOf, FileDecoded, FileFailed, WindowDecoded
from milnce.decoding.messages import SentError
from milnce.decoding.slots import Slots
from milnce.decoding.windows import windows_of
from milnce.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from milnce.decoding.events import Event, Job
    from milnce.video import Preset
    from milnce.video.windows import PictureWindow


class DecodingHere:
    """Decodes one file after the other, no further ahead than a batch. A `ClipSource`.

    Args:
        jobs: The files.
        preset: How frames are sampled and resized.
        batch_size: Clips a batch.

    Raises:
        MemoryError: if there is no memory for a batch.
        ValueError: if there are not even so many addresses.
    """

    def __init__(self, jobs: Sequence[Job], preset: Preset, batch_size: int) -> None:
        # One allocation for the whole run; no page of it is touched until a clip is written.
        self._clips = np.empty((batch_size, preset.frames, preset.size, preset.size, 3), np.uint8)
        self._slots = Slots(1, batch_size)
        self._preset = preset
        self._waiting = iter(jobs)
        self._job: Job | None = None
        self._windows: Generator[tuple[PictureWindow, bool], None, None] | None = None
        self._last = ClipOf(0, 0)

    def next(self, *, wait: bool) -> list[Event] | Batch | None:  # noqa: ARG002 - here there is nothing to wait for
        """Decode one more window, unless a batch is complete. See `ClipSource.next`."""
        while True:
            batch = self._batch(rest=False)
            if batch is not None:
                return batch
            if self._windows is not None and self._job is not None:
                return [self._step(self._job, self._windows)]
            self._job = next(self._waiting, None)
            if self._job is None:
                return self._batch(rest=True)
            span_s = (self._job.start_s, self._job.end_s)
            self._windows = windows_of(self._job.path, self._preset, span_s)
            self._last = ClipOf(self._job.number, -1)

    def release(self, batch: Batch) -> None:
        """Take back the memory of a batch."""
        self._slots.release(batch.slots)

    def drop(self, file: int) -> None:
        """Decode no more of a file, and forget its clips."""
        self._slots.drop(file)
        if self._job is not None and self._job.number == file:
            self.close()

    def passed(self, file: int) -> None:
        """Nothing waits for that here."""

    def close(self) -> None:
        """Close the decoder."""
        if self._windows is not None:
            self._windows.close()
        self._windows = None

    def _batch(self, *, rest: bool) -> Batch | None:
        taken = self._slots.take(rest=rest)
        if taken is None:
            return None
        slots, owners = taken
        return Batch(self._clips[slots.start : slots.stop], owners, slots)

    def _step(self, job: Job, windows: Generator[tuple[PictureWindow, bool], None, None]) -> Event:
        try:
            found = next(windows, None)
        except MissingDependencyError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this file only
            self._windows = None
            self._slots.drop(job.number)
            return FileFailed(job.number, SentError.of(error).restore(job.path))
        if found is None:
            self._windows = None
            return FileDecoded(job.number)
        window, repeats = found
        if not repeats:
            slot = self._slots.grant()
            assert slot is not None  # noqa: S101 - a full region is taken first
            window.write(self._clips[slot])
            self._last = ClipOf(job.number, self._last.clip + 1)
            self._slots.fill(slot, self._last)
        return WindowDecoded(self._last, window.index, window.start_s, window.end_s, window.video_s)
