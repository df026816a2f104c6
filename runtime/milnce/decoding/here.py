"""Decoding in the calling process, when the next window is asked for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from milnce.decoding.events import Batch, ClipOf, FileDecoded, FileFailed, WindowDecoded
from milnce.decoding.messages import SentError
from milnce.decoding.windows import windows_of
from milnce.errors import BackendError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from milnce.decoding.events import Event, Job
    from milnce.decoding.slots import Slots
    from milnce.video import Preset
    from milnce.video.windows import PictureWindow


class Room(Protocol):
    """Room for clips, and what decodes into it."""

    def active(self) -> AbstractContextManager[None]:
        """Prepare the calling thread for the other methods."""

    def windows(self, job: Job) -> Generator[tuple[Any, bool], None, None]:
        """Decode a file: yield its windows, and whether each is a repetition of the one before it."""

    def put(self, window: Any, slot: int) -> None:  # noqa: ANN401 - of one's own
        """Put a window's clip to its place."""

    def view(self, slots: range) -> Any:  # noqa: ANN401 - an array of the host or of a GPU
        """Return the clips of slots that lie side by side."""

    def close(self) -> None:
        """Free the room."""


class HostClips:
    """Room in this process's memory.

    Args:
        preset: How frames are sampled and resized.
        slots: Room for how many clips.

    Raises:
        MemoryError: if there is not so much memory.
        ValueError: if there are not even so many addresses.
    """

    def __init__(self, preset: Preset, slots: int) -> None:
        self._preset = preset
        # One allocation for the whole run; no page of it is touched until a clip is written.
        self._clips = np.empty((slots, preset.frames, preset.size, preset.size, 3), np.uint8)

    def active(self) -> AbstractContextManager[None]:
        """Nothing is to be prepared."""
        return nullcontext()

    def windows(self, job: Job) -> Generator[tuple[PictureWindow, bool], None, None]:
        """Decode a file. See `windows_of`."""
        return windows_of(job.path, self._preset, (job.start_s, job.end_s))

    def put(self, window: PictureWindow, slot: int) -> None:
        """Write a window's clip to its place."""
        window.write(self._clips[slot])

    def view(self, slots: range) -> NDArray[np.uint8]:
        """Return the clips of slots that lie side by side."""
        return self._clips[slots.start : slots.stop]

    def close(self) -> None:
        """Nothing is to be freed: arrays free themselves."""


class DecodingHere:
    """Decodes one file after the other, no further ahead than there is room. A `ClipSource`.

    Args:
        jobs: The files.
        room: Where clips go.
        slots: The places there.
    """

    def __init__(self, jobs: Sequence[Job], room: Room, slots: Slots) -> None:
        self._room = room
        self._slots = slots
        self._waiting = iter(jobs)
        self._job: Job | None = None
        self._windows: Generator[tuple[Any, bool], None, None] | None = None
        self._last = ClipOf(0, 0)

    def next(self, *, wait: bool) -> list[Event] | Batch | None:  # noqa: ARG002 - here there is nothing to wait for
        """Decode one more window, unless a batch is complete. See `ClipSource.next`."""
        while True:
            batch = self._batch(rest=False)
            if batch is not None:
                return batch
            if self._windows is not None and self._job is not None:
                if not self._slots.free:
                    return None  # batches are under way, and their places are not free before they are done
                with self._room.active():
                    return [self._step(self._job, self._windows)]
            self._job = next(self._waiting, None)
            if self._job is None:
                return self._batch(rest=True)
            self._windows = self._room.windows(self._job)
            self._last = ClipOf(self._job.number, -1)

    def release(self, batch: Batch) -> None:
        """Take back the memory of a batch."""
        self._slots.release(batch.slots)

    def drop(self, file: int) -> None:
        """Decode no more of a file, and forget its clips."""
        self._slots.drop(file)
        if self._job is not None and self._job.number == file:
            self._stop()

    def passed(self, file: int) -> None:
        """Nothing waits for that here."""

    def close(self) -> None:
        """Close the decoder, and free the room."""
        self._stop()
        self._room.close()

    def _stop(self) -> None:
        if self._windows is not None:
            with self._room.active():
                self._windows.close()
        self._windows = None

    def _batch(self, *, rest: bool) -> Batch | None:
        taken = self._slots.take(rest=rest)
        if taken is None:
            return None
        slots, owners = taken
        return Batch(self._room.view(slots), owners, slots)

    def _step(self, job: Job, windows: Generator[tuple[Any, bool], None, None]) -> Event:
        try:
            found = next(windows, None)
        except (MissingDependencyError, BackendError):
            raise  # no file is to blame
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
            assert slot is not None  # noqa: S101 - one is free
            self._room.put(window, slot)
            self._last = ClipOf(job.number, self._last.clip + 1)
            self._slots.fill(slot, self._last)
        return WindowDecoded(self._last, window.index, window.start_s, window.end_s, window.video_s)
