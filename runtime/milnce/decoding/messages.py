"""What the pool and its workers say to each other, and how errors travel.

A message is a JSON list that begins with its kind.

To a worker: setup (once), file (number, path, start_s, end_s), slot (number, or null: the rest of the file is not
wanted).
From a worker: ready; broken (error), which ends it; want (a slot for a clip); window (index, start_s, end_s, video_s,
slot or null where the clip is that of the window before); done; failed (error).
"""

from __future__ import annotations

import json
import logging
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from milnce import errors
from milnce.errors import MilnceError, VideoError

if TYPE_CHECKING:
    import socket

_LOG = logging.getLogger("milnce.decoding")

# Below what a socket holds by default (net.core.wmem_default, 208 KiB).
_LARGEST_BYTES = 1 << 17
_LONGEST_TEXT = 8000


class Channel:
    """One end of a connection; a message is one datagram, so it is received whole or not at all."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, *message: Any) -> None:  # noqa: ANN401 - JSON
        """Send a message.

        Raises:
            OSError: if the other side is gone, or does not read, or the message is too long.
        """
        self.connection.send(json.dumps(message).encode())

    def receive(self) -> list[Any] | None:
        """Return the next message, or None when there will be no more."""
        while True:
            try:
                data = self.connection.recv(_LARGEST_BYTES)
            except ConnectionResetError:
                continue  # it left without reading all, which is told once; what it sent before is still there
            return json.loads(data) if data else None

    def close(self) -> None:
        """Close this end."""
        self.connection.close()


class SentError(NamedTuple):
    """What of an error travels: the name of its class, its text and its traceback."""

    name: str
    text: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> SentError:
        """Describe an error; long texts are cut."""
        system = isinstance(error, OSError) and not isinstance(error, MilnceError)
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        name = OSError.__name__ if system else type(error).__name__
        return cls(name, str(error)[:_LONGEST_TEXT], trace[-_LONGEST_TEXT:])

    def restore(self, path: object) -> MilnceError:
        """Return it as the error of a file: milnce's own are themselves again, all others are a `VideoError`."""
        kind = getattr(errors, self.name, None)
        if isinstance(kind, type) and issubclass(kind, MilnceError):
            return kind(self.text)
        if self.name == OSError.__name__:
            return VideoError(f"{path}: {self.text}")
        _LOG.warning("%s: decoding failed unexpectedly\n%s", path, self.trace)
        return VideoError(
            f"{path}: decoding failed with {self.name}: {self.text}. No such failure was foreseen: please report it, "
            "with the traceback that the logger milnce.decoding has"
        )
