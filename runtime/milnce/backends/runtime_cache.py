"""The file in which TensorRT-RTX's compiled kernels of one plan are kept for the next start."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from milnce.errors import PlanError
from milnce.own_files import check_owner

_LOG = logging.getLogger("milnce.backends")
_DIGEST_BYTES = hashlib.sha256().digest_size
# Largest cache that is read: those of over 100 MB take long to read (release notes of TensorRT-RTX 1.0).
_LIMIT_BYTES = 512 * 2**20


class RuntimeCacheFile:
    """A runtime cache beside its plan, in the folder whose owner and mode were checked with the plan.

    It begins with a SHA-256 over the plan's and the content, so that a damaged one, and one of another plan, is not
    used. A cache that cannot be read or written costs time at the next start and nothing else.
    """

    def __init__(self, path: Path, plan_sha256: str) -> None:
        self._path = path
        self._plan = plan_sha256.encode()
        self._on_disk: bytes | None = None

    def __str__(self) -> str:
        return str(self._path)

    def read(self) -> bytes | None:
        """Return the content, or None if there is none, or none that can be used."""
        try:
            # No link is followed, and a named pipe is not waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(self._path, flags), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size > _LIMIT_BYTES:
                    _LOG.warning("%s is no plain file, or too large, and not used; kernels are compiled anew", self)
                    return None
                check_owner(self._path, status, "delete it")
                data = file.read(_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, PlanError) as error:
            _LOG.warning("%s cannot be read (%s); kernels are compiled anew", self, error)
            return None
        digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if digest != self._digest(content):
            _LOG.warning("%s is damaged or of another plan, and not used; kernels are compiled anew", self)
            return None
        self._on_disk = digest
        return content

    def write(self, content: bytes) -> None:
        """Keep `content`, for the owner alone, unless it is what is there. Never a part of it."""
        digest = self._digest(content)
        if digest == self._on_disk:
            return
        try:
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".cache-")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(digest + content)
                Path(temporary).replace(self._path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            _LOG.warning("%s was not written (%s); kernels are compiled anew next time", self, error)
        else:
            self._on_disk = digest

    def _digest(self, content: bytes) -> bytes:
        return hashlib.sha256(self._plan + content).digest()
