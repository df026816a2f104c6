"""Waiting for and stopping processes of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable


def heed_interrupts() -> None:
    """Undo what a background job of a shell inherits: SIGINT ignored, in which case Python does not heed it either."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds, while the process runs.

    Raises:
        AssertionError: if the process ends first, or a minute passes.
    """
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.02)


def decoders(parent: int | None = None) -> list[int]:
    """Return the ids of the decoding processes whose parent is `parent` (this process), dead ones that nobody took too.

    Found in /proc, so that nothing of milnce has a say.
    """
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and int(_status(folder)["PPid"]) == (parent or os.getpid()):
                command = (folder / "cmdline").read_bytes()
                if b"milnce" in command or not command:  # a dead one has none
                    found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError, KeyError):  # noqa: PERF203 - it ended meanwhile
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    try:
        return _status(Path(f"/proc/{pid}"))["State"][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return False


def _status(folder: Path) -> dict[str, str]:
    lines = (folder / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds.

    Raises:
        AssertionError: if a minute passes.
    """
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.02)
