"""What a process and its children hold, read from /proc while nothing is at work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to

# What is judged. The proportional share depends on which other processes of the machine map the same libraries; so does
# the unique share (USS), which went up and down by 90 MiB as programs beside a soak opened and closed OpenVINO.
MEMORY = ("rss_bytes", "private_bytes", "children_bytes")
COUNTS = ("fds", "threads", "children", "shared_memory", "temporary_files")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held at one moment.

    Attributes:
        seconds: Time since the soak began.
        requests: Requests answered until then.
        rss_bytes: Resident memory of the process.
        private_bytes: What of it no file stands behind (RssAnon), and what of that is swapped out: heaps and stacks.
        pss_bytes: Proportional share: pages that are shared with others count in part.
        children_bytes: Private memory of all its descendants together.
        peak_bytes: The largest resident memory since the sample before.
        fds: Open file descriptors.
        threads: Threads, those of libraries too.
        children: Descendant processes, those that have ended and were not waited for too.
        shared_memory: Entries of /dev/shm that were not there at the beginning and that nobody else made.
        temporary_files: Files and folders in the process's own folder for temporary files.
    """

    seconds: float
    requests: int
    rss_bytes: int
    private_bytes: int
    pss_bytes: int
    children_bytes: int
    peak_bytes: int
    fds: int
    threads: int
    children: int
    shared_memory: int
    temporary_files: int

    def to_json(self) -> dict[str, Any]:
        """Return the values by name."""
        return asdict(self)


class Watch:
    """Takes samples of this process.

    Before each one Python's garbage is collected and glibc gives free pages back to the kernel (malloc_trim, of every
    arena). What a program has lost is not free, so that hides no leak; it takes away the noise of how many pages glibc
    happens to keep for later, tens of MiB with many threads. Neither is done anywhere but here.

    Args:
        temporary: The folder for temporary files; `tempfile` and children use it when TMPDIR says so.
        ours: Tells the names in /dev/shm that this process or a child of it made.
    """

    def __init__(self, temporary: Path, ours: Callable[[str], bool]) -> None:
        self._process = psutil.Process()
        self._temporary = temporary
        self._ours = ours
        self._libc = ctypes.CDLL(None)
        self._there = frozenset(_names(SHARED_MEMORY))
        if Path(tempfile.gettempdir()) != temporary:
            raise ValueError(f"temporary files go to {tempfile.gettempdir()}, and {temporary} is watched; set TMPDIR")

    def sample(self, seconds: float, requests: int) -> Sample:
        """Return what is held now."""
        gc.collect()
        peak = _status_bytes("VmHWM")
        self._libc.malloc_trim(0)
        children = self._process.children(recursive=True)
        memory = self._process.memory_full_info()
        sample = Sample(
            seconds=seconds,
            requests=requests,
            rss_bytes=memory.rss,
            private_bytes=_status_bytes("RssAnon") + _status_bytes("VmSwap"),
            pss_bytes=memory.pss,
            children_bytes=sum(map(_private_bytes, children)),
            peak_bytes=peak,
            fds=self._process.num_fds(),
            threads=self._process.num_threads(),
            children=len(children),
            shared_memory=len([name for name in _names(SHARED_MEMORY) if name not in self._there and self._ours(name)]),
            temporary_files=sum(1 for _ in self._temporary.rglob("*")),
        )
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # begins VmHWM anew, see proc(5)
        return sample


def _private_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):  # it has ended since
        return int(process.memory_full_info().uss)
    return 0


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {name}")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


assert set(MEMORY + COUNTS) < {field.name for field in fields(Sample)}  # noqa: S101 - they are looked up by name
