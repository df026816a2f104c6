"""A decoding process in which some files end badly at their third window: those whose names say how.

Of "torn" files the process is killed while it writes that window into shared memory.

Tests put its name in the place of the real one, `milnce.decoding.process.WORKER`.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, NoReturn

from milnce.decoding import worker
from milnce.decoding.windows import windows_of as real

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def _hang() -> None:
    time.sleep(3600)


def _exit() -> None:
    os._exit(3)


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def _memory() -> NoReturn:
    raise MemoryError("no memory for a picture")


def _bug() -> NoReturn:
    raise ZeroDivisionError("division by zero")


ENDS: dict[str, Callable[[], None]] = {
    "hang": _hang,
    "exit": _exit,
    "killed": _killed,
    "segfault": _segfault,
    "memory": _memory,
    "bug": _bug,
}


class Torn:
    """A window whose writing kills the process, which has its slot then."""

    def write(self, _: object) -> None:
        """End."""
        _killed()


def main() -> None:
    """Decode as the real one does, until a file's name says otherwise."""

    def windows_of(path: Path, *arguments: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401 - passed on
        for number, window in enumerate(real(path, *arguments, **options)):
            if number == 2 and path.stem in ENDS:
                ENDS[path.stem]()
            yield (Torn(), False) if number == 2 and path.stem.startswith("torn") else window

    vars(worker)["windows_of"] = windows_of
    worker.main()
