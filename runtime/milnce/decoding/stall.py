"""Telling a process that hangs from one that is slow, or that was not looked at."""

from __future__ import annotations


class StallWatch:
    """Adds up how long a process was seen to make no progress.

    Time in which nobody looked, since this process or the whole machine stood still, does not count: nor may the other
    have been able to run then.

    Args:
        limit_s: Seconds without progress that are one too many.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.interval_s = min(1.0, limit_s / 4)
        self._progress: int | None = None
        self._still_s = 0.0
        self._looked_s = 0.0

    def hangs(self, progress: int, *, busy: bool, now_s: float) -> bool:
        """Take note of how far the process is, and return whether it hangs. To be called every `interval_s`.

        Args:
            progress: Changes when the process makes progress.
            busy: Whether it should make any now.
            now_s: Time of a clock that only goes forward, in seconds.
        """
        if not busy or progress != self._progress:
            self._still_s = 0.0
        else:
            self._still_s += min(now_s - self._looked_s, 2 * self.interval_s)
        self._progress, self._looked_s = progress, now_s
        return self._still_s >= self._limit_s
