"""Waiting for and stopping processes of their own."""

from __future__ import annotations

import signal
import time
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
