"""When a decoding process may be started again after some could not, and when to give that up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# What cannot be started at all is found out at once. What could be is kept from starting by things that pass, such as
# a limit on processes that others have used up.
_STARTS = 3
PATIENCE_S = 30.0
_SHORTEST_S = 0.1
_LONGEST_S = 3.0


class Starts:
    """The account of starts that failed since one succeeded.

    Attributes:
        ever_ready: Whether a process was ever ready.
        failed: Starts that failed since one was ready.
        why: Why the last one failed.

    Args:
        clock: Returns seconds, and only goes forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ever_ready = False
        self.failed = 0
        self.why = ""
        self._clock = clock
        self._not_before_s = clock()
        self._alone_since_s: float | None = None
        self._alone_s = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until the next may be started; 0 for now."""
        return max(0.0, self._not_before_s - self._clock())

    @property
    def hopeless(self) -> bool:
        """Whether to start no more, unless another process is still at work."""
        return self.failed >= _STARTS and (not self.ever_ready or self._alone_s >= PATIENCE_S)

    def succeeded(self) -> None:
        """Take note that a process is ready."""
        self.ever_ready = True
        self.failed = 0
        self._alone_since_s = None
        self._alone_s = 0.0

    def have_failed(self, why: str, *, others: bool) -> None:
        """Take note that a process could not be started.

        Args:
            why: The reason.
            others: Whether another is ready, so that work goes on.
        """
        now_s = self._clock()
        self.failed += 1
        self.why = why
        # No power of a large number: a run may last for weeks.
        self._not_before_s = now_s + min(_LONGEST_S, _SHORTEST_S * 2 ** min(self.failed - 1, 9))
        if others:
            self._alone_since_s = None
        elif self._alone_since_s is None:
            self._alone_since_s = now_s
        # From failure to failure: time in which this process stood still and tried nothing is no reason to give up.
        self._alone_s = 0.0 if self._alone_since_s is None else now_s - self._alone_since_s

    def describe(self) -> str:
        """Return in words that no process can be started, and what to do."""
        return (
            f"no decoding process can be started: {self.why} ({self.failed} times in a row). Look at what it "
            "printed, or decode in this process: workers=0, --workers 0"
        )
