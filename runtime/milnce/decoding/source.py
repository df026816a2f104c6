"""Choosing how files are decoded: in how many processes, with how many threads each, and how far ahead."""

from __future__ import annotations

import errno
import math
import operator
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from milnce.decoding.crew import CrewSettings
from milnce.decoding.here import DecodingHere, HostClips
from milnce.decoding.pool import DecodingPool
from milnce.decoding.shared_clips import MOST_WORKERS, SharedClips
from milnce.decoding.slots import Slots
from milnce.errors import DecoderError, InputError
from milnce.machine import cpu_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.decoding.events import ClipSource, Job
    from milnce.video import Preset

# Each took 105 MB of its own with a video of 1280x720.
_MOST_BY_DEFAULT = 16
_NICENESS = 5
_GPU_REGIONS = 3
_TOO_LARGE = (errno.ENOMEM, errno.EFBIG)
DECODERS = ("auto", "cpu", "nvdec")


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """Where and how files are decoded, as the caller asked.

    Attributes:
        workers: Processes that decode; 0 decodes in the calling one, None leaves the number to the cores.
        stall_s: Seconds without a frame after which a process is taken to hang.
        decoder: "cpu"; "nvdec" for NVIDIA's decoder, in the calling process; "auto", which is "cpu" until the other has
            been measured on hardware.
    """

    workers: int | None
    stall_s: float
    decoder: str


def open_source(
    jobs: Sequence[Job], preset: Preset, batch_size: int, *, device: str, options: DecodingOptions
) -> ClipSource:
    """Return what decodes the files.

    Args:
        jobs: The files.
        preset: How frames are sampled and resized.
        batch_size: Clips a batch.
        device: Where the model runs: "cpu", "cuda" or "cuda:N". Full batches are for a GPU; on a CPU, where clips run
            one at a time, they are run as they come.
        options: What the caller asked for.

    Raises:
        InputError: if a number is out of range, there is no such decoder, or there is no memory for a batch.
        DecoderError: if the system gives no memory that processes could share.
        BackendUnavailableError: if NVIDIA's decoder is asked for and cannot be used.
        DeviceMemoryError: if it has not enough memory.
    """
    stall_s = _stall_limit_s(options.stall_s)
    if options.decoder not in DECODERS:
        raise InputError(f"no decoder {options.decoder!r}; there are {', '.join(DECODERS)}")
    if options.decoder == "nvdec":
        return _on_gpu(jobs, preset, batch_size, device, options.workers)
    count = _worker_count(options.workers, len(jobs), on_gpu=device != "cpu")
    try:
        if count == 0:
            return DecodingHere(jobs, HostClips(preset, batch_size), Slots(1, batch_size))
        # One region is run while the next is filled; every worker must find a place besides.
        regions = 1 + math.ceil(max(batch_size, count + 1) / batch_size)
        memory = SharedClips((regions * batch_size, preset.frames, preset.size, preset.size, 3))
    except (MemoryError, ValueError, OSError, OverflowError) as error:  # of the second and the last, no addresses
        if isinstance(error, OSError) and error.errno not in _TOO_LARGE:
            raise DecoderError(
                f"the system gives no memory to share with decoding processes ({error}); decode in this process: "
                "workers=0, --workers 0"
            ) from error
        raise InputError(f"batch_size is {batch_size}, too large ({error}); take a smaller one") from error
    settings = CrewSettings(count, max(1, cores() // count), _NICENESS, stall_s)
    slots = Slots(regions, batch_size, at_once=1 if device == "cpu" else None)
    return DecodingPool(jobs, preset, memory, slots, settings)


def _on_gpu(jobs: Sequence[Job], preset: Preset, batch_size: int, device: str, workers: int | None) -> ClipSource:
    if device == "cpu":
        raise InputError(
            "decoder nvdec leaves clips on the GPU, but the model runs on the CPU; load it on a GPU, or take cpu"
        )
    if workers:
        raise InputError(f"workers is {workers} with decoder nvdec, which decodes in this process; leave workers out")
    from milnce.decoding.on_gpu import GpuClips  # noqa: PLC0415 - CUDA, where it is asked for

    # Batches stay where they are until they are done.
    slots = Slots(_GPU_REGIONS, batch_size)
    return DecodingHere(jobs, GpuClips(preset, len(slots), int(device.partition(":")[2] or 0)), slots)


def cores() -> int:
    """Return on how many cores this process may run, at least 1: a container may take time of fewer than it sees."""
    seen = len(os.sched_getaffinity(0))
    limit = cpu_limit()
    return seen if limit is None else max(1, min(seen, math.ceil(limit)))


def _stall_limit_s(asked: object) -> float:
    if isinstance(asked, bool) or not isinstance(asked, (int, float, np.integer, np.floating)) or not asked > 0:
        raise InputError(f"stall_s is {asked!r}; a number of seconds above 0 expected")
    return float(asked)


def _worker_count(asked: int | None, files: int, *, on_gpu: bool) -> int:
    # A frozen program is no interpreter that could be started again.
    can_start = bool(sys.executable) and not getattr(sys, "frozen", False)
    if asked is None:
        # A GPU leaves the cores to decoders, but for the one that feeds it. On a CPU the model takes every core, and
        # decoders, which step back behind it, use what it leaves.
        by_cores = cores() - 1 if on_gpu else cores() // 2
        return min(files, max(1, min(by_cores, _MOST_BY_DEFAULT))) if can_start else 0
    try:
        count = -1 if isinstance(asked, bool) else operator.index(asked)
    except TypeError:
        count = -1
    if not 0 <= count <= MOST_WORKERS:
        raise InputError(f"workers is {asked!r}; a whole number from 0 to {MOST_WORKERS} expected, or None")
    if count and not can_start:
        raise InputError(f"workers is {asked}, but there is no Python interpreter here to start them with; take 0")
    return min(files, count)
