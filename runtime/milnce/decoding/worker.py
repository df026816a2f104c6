"""The program of a decoding process. `milnce.decoding.process` starts it; it ends when its connection does."""

from __future__ import annotations

import os
import select
import socket
import sys
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypedDict

from milnce.decoding.messages import Channel, SentError
from milnce.decoding.shared_clips import SharedClips
from milnce.decoding.windows import windows_of
from milnce.video.container import import_av
from milnce.video.presets import Preset

if TYPE_CHECKING:
    from collections.abc import Callable

# How often it is looked whether the parent is still the same. Its end closes the connection, which is seen at once,
# unless a fork of it holds the other end open.
_PARENT_S = 2.0


class Setup(TypedDict):
    """What a worker must know.

    Attributes:
        parent: Process id of the parent.
        memory: File descriptor of the shared clips.
        shape: Their shape.
        counter: Which counter is this worker's.
        preset: How frames are sampled and resized.
        threads: Threads of the decoder.
        niceness: How much to step back behind other processes.
    """

    parent: int
    memory: int
    shape: list[int]
    counter: int
    preset: dict[str, Any]
    threads: int
    niceness: int


def main() -> None:
    """Decode the files that are asked for on the connection whose file descriptor is the program's last argument."""
    channel = Channel(socket.socket(fileno=int(sys.argv[-1])))
    message = channel.receive()
    if message is None:
        return
    setup: Setup = message[1]
    Thread(target=_end_with_parent, args=(channel.connection, setup["parent"]), daemon=True).start()
    try:
        os.nice(setup["niceness"])
        worker = Worker(channel, setup)
        import_av()
    except Exception as error:  # noqa: BLE001 - the parent raises it
        channel.send("broken", *SentError.of(error))
        return
    channel.send("ready")
    while (message := channel.receive()) is not None:
        worker.decode(*message[1:])


class Worker:
    """Decodes files into shared memory.

    Args:
        channel: The connection to the parent.
        setup: What it said first.
    """

    def __init__(self, channel: Channel, setup: Setup) -> None:
        self._channel = channel
        self._preset = Preset(**setup["preset"])
        self._threads = setup["threads"]
        self._memory = SharedClips(tuple(setup["shape"]), setup["memory"])
        self._on_progress = _mover(self._memory.counters, setup["counter"])

    def decode(self, number: int, path: str, start_s: float | None, end_s: float | None) -> None:
        """Decode a file, and say how that ended."""
        try:
            self._send_windows(number, Path(path), (start_s, end_s))
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this file only
            self._channel.send("failed", number, *SentError.of(error))
        else:
            self._channel.send("done", number)

    def _send_windows(self, number: int, path: Path, span_s: tuple[float | None, float | None]) -> None:
        with closing(
            windows_of(path, self._preset, span_s, threads=self._threads, on_progress=self._on_progress)
        ) as windows:
            for window, repeats in windows:
                slot: int | None = None
                if not repeats:
                    self._channel.send("want", number)
                    answer = self._channel.receive()
                    if answer is None or answer[1] is None:
                        return
                    slot = answer[1]
                    window.write(self._memory.clips[slot])
                times_s = (window.start_s, window.end_s, window.video_s)
                self._channel.send("window", number, window.index, *times_s, slot)


def _mover(counters: memoryview, index: int) -> Callable[[], None]:
    def move_on() -> None:
        counters[index] += 1

    return move_on


def _end_with_parent(connection: socket.socket, parent: int) -> None:
    """End this process at once when the parent has ended or has closed the connection."""
    poll = select.poll()
    poll.register(connection, 0)  # hanging up is always told of
    while os.getppid() == parent and not poll.poll(_PARENT_S * 1000):
        pass
    os._exit(0)
