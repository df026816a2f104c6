"""File descriptors that other processes inherit."""

from __future__ import annotations

import fcntl
import os

_STANDARD = 3


def above_standard(fd: int) -> int:
    """Return `fd`, or a new file descriptor in its place if it is that of standard input, output or error.

    A caller without standard input has its number free for whatever is opened next; a process that is started gets its
    own standard input there, and what it should inherit would be lost.

    Raises:
        OSError: if there is no file descriptor left; `fd` stays open then.
    """
    if fd >= _STANDARD:
        return fd
    lifted = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD)
    os.close(fd)
    return lifted
