"""Opens a folder of native code, and files in it, only where nobody but their owner or root can have changed them.

New files are written beside their places and renamed, see `temporary_file`.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from milnce.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILD_AGAIN = "build it again: milnce build BUNDLE --force"

_PARTIAL = ".partial-"
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def own_folder(folder: Path) -> Iterator[int]:
    """Open the folder and check who may write to it; files are then opened through the descriptor, not by its name.

    Raises:
        PlanError: if it is missing, no folder, somebody else's, or writable for others.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PlanError(
            f"there are no plans at {folder} ({error.strerror}); build them: milnce build BUNDLE"
        ) from error
    try:
        check_owner(folder, os.fstat(descriptor), "build your own: milnce build BUNDLE --plans FOLDER")
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def own_file(path: Path, folder: int) -> Iterator[BinaryIO]:
    """Open the plain file of `path`'s name in the folder's descriptor, and check who may write to it.

    A folder that nobody else can write to may still hold files that somebody else can: they were copied into it with
    their modes, or made before the folder was closed to others.

    Raises:
        PlanError: if it is missing, no plain file, somebody else's, or writable for others, or reading it fails.
    """
    try:
        # No link is followed, and a named pipe is refused instead of waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path.name, flags, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise PlanError(f"{path} is not a plain file; {BUILD_AGAIN}")
            check_owner(path, status, BUILD_AGAIN)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error.strerror}); {BUILD_AGAIN}") from error


def check_owner(path: Path, status: os.stat_result, cure: str) -> None:
    """Refuse a file or folder that is somebody else's, or that others can write to.

    Args:
        path: Its path, for the message.
        status: What `os.fstat` says of it.
        cure: What to do where it is somebody else's.

    Raises:
        PlanError: naming it, its owner or mode, and what to do.
    """
    # Root may do as it likes anyway, and plans that root built into an image are run by others.
    if status.st_uid not in (os.geteuid(), 0):
        raise PlanError(
            f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}. A plan is native code, so "
            f"those of others are not run; {cure}"
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise PlanError(
            f"{path} is writable for others (mode {stat.S_IMODE(status.st_mode):04o}). A plan is native code, so "
            f"nobody else may change it; if you trust what it holds: chmod go-w {path}"
        )


def close_to_others(folder: int) -> bool:
    """Make an open folder 0700 if it is this user's and others can read it; return whether that was so."""
    status = os.fstat(folder)
    if status.st_uid != os.geteuid() or not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return False
    os.fchmod(folder, stat.S_IRWXU)
    return True


@contextmanager
def locked(folder: int) -> Iterator[None]:
    """Hold the folder's lock, so that writers take turns. File systems without locks do without."""
    with suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)


@contextmanager
def temporary_file(folder: Path, descriptor: int, name: str, data: bytes) -> Iterator[Path]:
    """Write `data` to a hidden file of the folder, flush it to disk, and remove it at the end if it is still there.

    It is locked meanwhile, so that `remove_abandoned` can tell it from one whose writer was killed.

    Args:
        folder: The folder.
        descriptor: The same, opened.
        name: Of what it will be.
        data: The content.
    """
    # Under the folder's lock: between its making and its own lock it looks abandoned.
    with locked(descriptor):
        new, path = tempfile.mkstemp(prefix=f".{name[:100]}{_PARTIAL}", dir=folder)
        try:
            with suppress(OSError):
                fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            Path(path).unlink(missing_ok=True)
            os.close(new)
            raise
    try:
        with os.fdopen(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(new)
            yield Path(path)
    finally:
        Path(path).unlink(missing_ok=True)


def remove_abandoned(folder: int) -> None:
    """Remove the temporary files in an open folder that nobody holds a lock on: their writers were killed."""
    with locked(folder):
        for name in os.listdir(folder):
            if not (name.startswith(".") and _PARTIAL in name):
                continue
            # Being written, another's, or on a file system without locks: it stays.
            with suppress(OSError):
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(name, flags, dir_fd=folder)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=folder)
                finally:
                    os.close(descriptor)
