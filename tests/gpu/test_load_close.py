"""Fifty times load, run and close: the GPU's memory comes back, and so do the host's threads and files."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from milnce.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from helpers.gpu_models import Opener
    from milnce.cuda import Cuda

CYCLES, WARM_UP = 50, 2
# The driver hands out memory in blocks of 2 MiB; one block lost every seventh cycle is found.
TOLERANCE_BYTES = 16 * 2**20


def test_fifty_cycles_give_all_memory_back(opened: Opener, cuda: Cuda, clips: NDArray[np.uint8]) -> None:
    free, threads, files = [], [], []
    for cycle in range(WARM_UP + CYCLES):
        with opened() as backend:
            backend.run({"video": clips[:3]})
            list(backend.stream({"video": clips[:4]} for _ in range(2)))
        if cycle in (WARM_UP - 1, WARM_UP + CYCLES - 1):
            gc.collect()
        free.append(cuda.memory()[0])
        threads.append(threading.active_count())
        files.append(len(list(Path("/proc/self/fd").iterdir())))
    lost = free[WARM_UP - 1] - free[-1]
    assert lost <= TOLERANCE_BYTES, f"{lost:,} bytes of device memory lost over {CYCLES} cycles: {free}"
    assert threads[-1] == threads[WARM_UP - 1]
    assert files[-1] < files[WARM_UP - 1] + CYCLES


def test_a_backend_forgotten_open_gives_its_buffers_back(opened: Opener, cuda: Cuda, clips: NDArray[np.uint8]) -> None:
    with opened() as backend:
        backend.run({"video": clips[:8]})
        held = backend.device_bytes
        assert held > 0
        backend.close()
        assert (backend.device_bytes, backend.pinned_bytes) == (0, 0)
        backend.close()
        with pytest.raises(BackendError, match="closed"):
            backend.run({"video": clips[:1]})
    assert cuda.memory()[0] > 0


def test_two_models_live_side_by_side(opened: Opener, clips: NDArray[np.uint8]) -> None:
    feeds = {"video": clips[:4]}
    with opened() as first:
        expected = first.run(feeds)["video_embedding"]
        close = 1e-3 * abs(expected).max()
        with opened() as second:
            assert abs(second.run(feeds)["video_embedding"] - expected).max() < close
        assert abs(first.run(feeds)["video_embedding"] - expected).max() < close
