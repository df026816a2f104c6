"""The account of a pool: which files were begun, what was decoded of them, and how far ahead of the caller that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from milnce.decoding.events import ClipOf, FileDecoded, FileFailed, WindowDecoded
from milnce.errors import DecoderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.decoding.events import Event, Job
    from milnce.decoding.slots import Slots
    from milnce.errors import MilnceError

# Once so many windows are decoded behind a file which is not done, where a file counts as one more, no file is begun:
# their embeddings wait for it, 6 KiB each. So the others go on while the first file is an hour long, and memory stays
# bounded by this and the lengths of the files that were begun, one a process.
WINDOWS_AHEAD = 4096


@dataclass(slots=True)
class _Begun:
    """A file that was begun.

    Attributes:
        held: Its windows that wait for the caller, and 1.
        clips: Clips so far.
        dropped: Whether nobody wants more of it.
        ended: Whether nothing more of it comes.
    """

    held: int = 1
    clips: int = 0
    dropped: bool = False
    ended: bool = False


class Ledger:
    """Keeps the account, and the slots in line with it.

    Attributes:
        events: What the caller was not told yet.

    Args:
        jobs: The files.
        slots: The places for clips.
    """

    def __init__(self, jobs: Sequence[Job], slots: Slots) -> None:
        self.events: list[Event] = []
        self._jobs = jobs
        self._slots = slots
        self._next = 0
        self._head = 0
        self._begun: dict[int, _Begun] = {}
        self._held = 0

    @property
    def left(self) -> int:
        """How many files were not begun."""
        return len(self._jobs) - self._next

    def may_begin(self) -> bool:
        """Whether there is a file to begin, and what is decoded is not too far ahead."""
        head = self._begun.get(self._head)
        return self.left > 0 and self._held - (0 if head is None else head.held) < WINDOWS_AHEAD

    def begin(self) -> Job:
        """Return the next file."""
        job = self._jobs[self._next]
        self._next += 1
        self._begun[job.number] = _Begun()
        self._held += 1
        return job

    def wants(self, file: int) -> bool:
        """Whether more of a file is wanted."""
        return not self._begun[file].dropped

    def add(self, file: int, slot: int | None, index: int, times_s: tuple[float, float, float]) -> None:
        """Take note of a window.

        Args:
            file: Its file.
            slot: Where its clip is; None if it is that of the window before.
            index: Its number in the file.
            times_s: Its start and its end, and how long the video is, in seconds.
        """
        begun = self._begun[file]
        if begun.dropped:
            if slot is not None:
                self._slots.give_back(slot)
            return
        begun.clips += slot is not None
        clip = ClipOf(file, begun.clips - 1)
        if slot is not None:
            self._slots.fill(slot, clip)
        begun.held += 1
        self._held += 1
        self.events.append(WindowDecoded(clip, index, *times_s))

    def end(self, file: int, error: MilnceError | None = None) -> None:
        """Take note that a file ended, or failed: its clips that were not taken are dropped then."""
        begun = self._begun[file]
        begun.ended = True
        if error is not None:
            self._slots.drop(file)
        if not begun.dropped:
            self.events.append(FileDecoded(file) if error is None else FileFailed(file, error))
        self._forget(file)

    def fail_rest(self, why: str) -> None:
        """Take note that the files which were not begun cannot be decoded, and why."""
        while self.left:
            job = self.begin()
            self.end(job.number, DecoderError(f"{job.path}: {why}"))

    def drop(self, file: int) -> None:
        """Take note that nobody wants more of a file."""
        self._slots.drop(file)
        begun = self._begun.get(file)
        if begun is not None:
            begun.dropped = True

    def passed(self, file: int) -> None:
        """Take note that the caller is through with a file, and all before it."""
        begun = self._begun[file]
        self._held -= begun.held
        begun.held = 0
        begun.dropped = True
        self._head = file + 1
        self._forget(file)

    def _forget(self, file: int) -> None:
        if self._begun[file].ended and file < self._head:
            del self._begun[file]
