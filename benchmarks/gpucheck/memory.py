"""The part that loads and closes each backend many times and reads what memory is free before and after."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.models import Candidate, candidates, opened
from gpucheck.parity import feeds_of
from gpucheck.record import ABSENT, FAILED, PASSED
from gpucheck.settings import Settings, Subject, read_subjects
from milnce.bundle import Bundle
from milnce.cuda import Cuda
from milnce_convert.reference import read

if TYPE_CHECKING:
    from gpucheck.record import Recorder

# Before the count begins: what libraries load once, on first use, stays.
_WARM_UP = 2
# The driver hands out memory in blocks of 2 MiB; one block lost every seventh cycle of 50 is found.
TOLERANCE_BYTES = 16 * 2**20
_CLIPS = 2


def run(settings: Settings, record: Recorder) -> None:
    """Check every backend and precision with the smallest bundle that it runs."""
    subjects = sorted(read_subjects(settings), key=lambda subject: _size(subject.path))
    seen: set[tuple[str, str]] = set()
    for subject in subjects:
        for candidate in candidates(Bundle.open(subject.path), settings.present, modules=("video",)):
            kind = (candidate.backend, candidate.precision)
            if kind not in seen:
                seen.add(kind)
                check = f"{settings.cycles} times load, run and close {subject.name} {candidate}"
                with record.guarded("memory", check, bundle=subject.name, **vars(candidate)):
                    _check(settings, subject, candidate, record, check)
    if not seen:
        record.add("memory", "memory", ABSENT, "neither TensorRT nor ONNX Runtime with CUDA is on this host")


def _check(settings: Settings, subject: Subject, candidate: Candidate, record: Recorder, check: str) -> None:
    reference = read(Path(subject.reference))
    feeds = {name: rows[:_CLIPS] for name, rows in feeds_of(candidate, reference.make_clips(), reference).items()}
    cuda = Cuda()
    free: list[int] = []
    resident: list[int] = []
    in_use = 0
    for _ in range(_WARM_UP + settings.cycles):
        with opened(settings, subject, candidate) as backend:
            backend.run(feeds)
            in_use = max(in_use, (free[-1] if free else 0) - cuda.memory()[0])
        gc.collect()
        free.append(cuda.memory()[0])
        resident.append(resident_bytes())
    lost = free[_WARM_UP - 1] - free[-1]
    data = {
        "bundle": subject.name,
        **vars(candidate),
        "cycles": settings.cycles,
        "in_use_bytes": in_use,
        "free_before_bytes": free[_WARM_UP - 1],
        "free_after_bytes": free[-1],
        "resident_before_bytes": resident[_WARM_UP - 1],
        "resident_after_bytes": resident[-1],
    }
    detail = ""
    if lost > TOLERANCE_BYTES:
        detail = f"{lost:,} bytes of device memory did not come back; up to {TOLERANCE_BYTES:,} may be the driver's own"
    record.add("memory", check, FAILED if detail else PASSED, detail, **data)


def resident_bytes() -> int:
    """Return this process's resident memory, after giving back what the C library holds in reserve."""
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _size(folder: str) -> int:
    return sum(graph.bytes for graph in Bundle.open(folder).manifest.graphs)
