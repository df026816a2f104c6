"""File descriptors that other processes inherit."""

from __future__ import annotations

import ctypes
import fcntl
import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_STANDARD = 3
_MFD_CLOEXEC = 1  # linux/memfd.h
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the file there has no name


def anonymous_file(name: str, size: int) -> int:
    """Return the file descriptor of memory that is a file without a name, filled with zeros.

    Pages are allocated when they are first written to, except where only /dev/shm is left: there they are at once,
    since a process that writes where no room is left is killed.

    Args:
        name: What /proc calls it.
        size: Its bytes.

    Raises:
        OSError: if there is not so much memory, or the system gives none.
        OverflowError: if there are not even so many addresses.
    """
    fd, resize = _open_anonymous(name)
    try:
        fd = above_standard(fd)
        resize(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_anonymous(name: str) -> tuple[int, Callable[[int, int], None]]:
    # Pythons built for an old C library, such as uv's and conda's, lack the function where the library has it.
    create = getattr(os, "memfd_create", None)
    if create is not None:
        return create(name), os.ftruncate
    create = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)
    if create is None:
        with tempfile.TemporaryFile(dir=_SHARED_MEMORY) as file:
            return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _STANDARD), _allocate
    fd = create(name.encode(), _MFD_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd, os.ftruncate


def _allocate(fd: int, size: int) -> None:
    os.posix_fallocate(fd, 0, size)


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
