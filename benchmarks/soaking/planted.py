"""What goes wrong on purpose: the negative controls, each of which must make the soak fail and say why."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soaking.watch import SHARED_MEMORY

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

KINDS = ("fds", "threads", "children", "shared_memory", "temporary_files", "answers")
# Few enough that their own memory is no leak beside them.
_EVERY = 4
SHARED_PREFIX = "milnce-soak-"


@dataclass(frozen=True)
class Plan:
    """What to plant.

    Attributes:
        request_bytes: Bytes that each request leaves behind.
        kinds: Of which of `KINDS` every fourth round leaves one behind; "answers" makes an expected one wrong.
    """

    request_bytes: int = 0
    kinds: Collection[str] = ()


class Planted:
    """Leaves things behind as planned; `close` takes away what outlives the process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._rounds = 0
        self._kept: list[bytes] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._shared: list[Path] = []
        self._fds: list[int] = []
        self._end = threading.Event()

    def after_requests(self, count: int) -> None:
        """Leave memory behind for requests that were answered."""
        if self.plan.request_bytes:
            # Bytes that are written: the kernel gives no page to memory that is only reserved.
            self._kept.append(b"\xa5" * (self.plan.request_bytes * count))

    def after_round(self) -> None:
        """Leave one of each planned kind behind, in every fourth round."""
        self._rounds += 1
        for kind in self.plan.kinds if self._rounds % _EVERY == 0 else ():
            if kind == "fds":
                self._fds.append(os.open(os.devnull, os.O_RDONLY))
            elif kind == "threads":
                threading.Thread(target=self._end.wait, daemon=True, name="planted").start()
            elif kind == "children":
                self._processes.append(subprocess.Popen(["/bin/sleep", "3600"]))
            elif kind == "shared_memory":
                self._shared.append(SHARED_MEMORY / f"{SHARED_PREFIX}{os.getpid()}-{len(self._shared)}")
                self._shared[-1].touch()
            elif kind == "temporary_files":
                tempfile.mkstemp(prefix="planted-")

    def close(self) -> None:
        """End and remove everything."""
        self._end.set()
        for process in self._processes:
            process.kill()
            process.wait()
        for shared in self._shared:
            shared.unlink()
        for descriptor in self._fds:
            os.close(descriptor)
