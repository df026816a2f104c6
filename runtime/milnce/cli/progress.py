"""Progress bars on stderr, for people only: nothing is drawn unless it is a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from milnce.cli.common import make_console, printable, say

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import TaskID
    from rich.status import Status

    from milnce.pipeline import WindowSpan


class FileProgress:
    """A bar over files on a terminal's stderr, moved on by windows; silent elsewhere."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._done = 0
        self._windows = 0
        self._fractions: dict[Path, float] = {}
        self._begun = 0.0
        columns = (
            BarColumn(),
            TextColumn("{task.fields[files]} files, {task.fields[windows]} windows"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        console = make_console(stderr=True)
        self._total = total
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total, files=f"0/{total}", windows=0)

    def __enter__(self) -> FileProgress:  # noqa: PYI034  # typing.Self is not in Python 3.10
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_window(self, path: Path, window: WindowSpan) -> None:
        """Count one decoded window."""
        self._windows += 1
        if self._progress.disable:
            return
        # Several files are decoded at once.
        fraction = min(window.end_s / window.video_s, 1.0) if window.video_s else 0.0
        self._begun += fraction - self._fractions.get(path, 0.0)
        self._fractions[path] = fraction
        self._update(description=printable(path.name))

    def on_file(self) -> None:
        """Count one finished file."""
        self._done += 1
        self._update(files=f"{self._done}/{self._total}")

    def _update(self, **fields: Any) -> None:  # noqa: ANN401 - rich's own and those of the columns
        # Files that failed are done without having been decoded to their ends.
        completed = min(max(self._done, self._begun), self._total)
        self._progress.update(self._task, completed=completed, windows=self._windows, **fields)


class Stages:
    """Shows the stages of one long job: a spinner on a terminal, and one line a finished stage everywhere.

    Call it with a stage's name when the stage begins; the one before it has ended then.
    """

    def __init__(self) -> None:
        self._console = make_console(stderr=True)
        self._status: Status | None = None
        self._stage: str | None = None
        self._began_s = 0.0

    def __enter__(self) -> Stages:  # noqa: PYI034  # typing.Self is not in Python 3.10
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A stage that failed is not reported as done: the error that follows says what happened.
        self._end(done=kind is None)

    def __call__(self, stage: str) -> None:
        """Begin a stage, or go on with it when it is the one under way."""
        if stage == self._stage:
            return
        self._end(done=True)
        self._stage, self._began_s = stage, time.monotonic()
        if self._console.is_terminal:
            self._status = self._console.status(printable(stage))
            self._status.start()

    def _end(self, *, done: bool) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if done and self._stage is not None:
            say(f"{time.monotonic() - self._began_s:6.1f} s  {printable(self._stage)}")
        self._stage = None


class BuildProgress(Stages):
    """Shows the builds of plans: a bar on a terminal, and one line a finished plan everywhere.

    Call it with what is being built and the part of it that is done, or None if that is not known. It may be called
    from another thread.
    """

    def __init__(self) -> None:
        super().__init__()
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task: TaskID | None = None

    def __enter__(self) -> BuildProgress:  # noqa: PYI034  # typing.Self is not in Python 3.10
        return self

    def __call__(self, stage: str, done: float | None = None) -> None:
        """Begin a stage, or say how far it is."""
        if stage != self._stage:
            self._end(done=True)
            self._stage, self._began_s = stage, time.monotonic()
            self._bar.start()
            self._task = self._bar.add_task(printable(stage), total=None if done is None else 1.0)
        if self._task is not None and done is not None:
            self._bar.update(self._task, completed=done)

    def _end(self, *, done: bool) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._task = None
        super()._end(done=done)
