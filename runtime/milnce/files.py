"""Whether a file can be written, asked before the work and not after it; what reads of NumPy's files share; digests."""

from __future__ import annotations

import hashlib
import os
import tempfile
from threading import Lock
from typing import TYPE_CHECKING

from milnce.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

# Held over np.load. NumPy parses the header of an array with ast.literal_eval, and CPython 3.11 counts the depth of the
# tree that it builds for all threads together: in two at once, garbage collection between them, it raises "SystemError:
# AST constructor recursion depth mismatch" for a file that is sound (python/cpython#106905).
NUMPY_HEADERS = Lock()

_READ_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex; a block is held at a time.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_absent(destination: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file unasked.

    Raises:
        OutputError: if `destination` is there and `overwrite` is false. A folder is left to `check_writable`.
    """
    # os.path and not Path's methods, here and below: these raise where they may not look, or a name is too long.
    if os.path.exists(destination) and not os.path.isdir(destination) and not overwrite:  # noqa: PTH110, PTH112
        raise OutputError(f"{destination}: exists already; pass --overwrite (overwrite=True) or choose another name")


def check_writable(destination: Path) -> None:
    """Make sure that a file can be made at `destination`; leaves nothing behind.

    Raises:
        OutputError: if its folder is missing or not writable, or it is itself a folder.
    """
    if not os.path.isdir(destination.parent):  # noqa: PTH112
        raise OutputError(f"{destination.parent}: no such folder; make it first")
    if os.path.isdir(destination):  # noqa: PTH112
        raise OutputError(f"{destination}: is a folder; name a file in it")
    try:
        # Tried and not asked: permission bits say nothing about read-only file systems, nor to the superuser.
        with tempfile.TemporaryFile(dir=destination.parent):
            pass
    except OSError as error:
        raise OutputError(f"{destination.parent}: cannot write here ({error.strerror}); choose another") from error
    try:
        os.lstat(destination)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OutputError(f"{destination}: no such name can be made ({error.strerror}); choose another") from error
