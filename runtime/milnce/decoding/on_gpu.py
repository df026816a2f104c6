"""Clips that NVIDIA's decoder makes: they are gathered into batches on the GPU and never leave it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from milnce.cuda import Cuda
from milnce.decoding.windows import marked
from milnce.device_arrays import DeviceArray
from milnce.errors import BackendUnavailableError
from milnce.video import nvdec

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

    from milnce.decoding.events import Job
    from milnce.video import Preset
    from milnce.video.nvdec import DeviceWindow


class GpuClips:
    """Room for clips on a GPU, and what decodes into it. It has not run on hardware yet.

    Args:
        preset: How frames are sampled and resized.
        slots: Room for how many clips.
        device: Index of the GPU.

    Raises:
        BackendUnavailableError: if NVIDIA's decoder cannot be used here; the message says what to install.
        DeviceMemoryError: if there is not so much device memory.
    """

    def __init__(self, preset: Preset, slots: int, device: int) -> None:
        problem = nvdec.problem()
        if problem is not None:
            raise BackendUnavailableError(f"decoder nvdec was asked for: {problem}; or decode on the CPU: decoder cpu")
        self._preset = preset
        self._shape = (preset.frames, preset.size, preset.size, 3)
        self._clip_bytes = preset.frames * preset.size * preset.size * 3
        with ThreadPoolExecutor(1) as opener:  # since every thread has a current GPU of its own
            self._cuda = opener.submit(Cuda, device).result()
        with self._cuda.active():
            self._buffer = self._cuda.device_buffer(slots * self._clip_bytes)
            self._stream = self._cuda.stream()

    def active(self) -> AbstractContextManager[None]:
        """Make the GPU the thread's current one."""
        return self._cuda.active()

    def windows(self, job: Job) -> Generator[tuple[DeviceWindow, bool], None, None]:
        """Decode a file. See `milnce.decoding.windows.marked`."""
        windows = nvdec.iter_device_windows(
            job.path, self._preset, cuda=self._cuda, start_s=job.start_s, end_s=job.end_s
        )
        return marked(job.path, windows)

    def put(self, window: DeviceWindow, slot: int) -> None:
        """Copy a window's clip to its place, and wait for that: its own memory is freed."""
        place = self._buffer.pointer + slot * self._clip_bytes
        self._cuda.copy(place, window.clip.pointer, self._clip_bytes, self._stream)
        self._stream.synchronize()

    def view(self, slots: range) -> DeviceArray:
        """Return the clips of slots that lie side by side: uint8 (clips, frames, size, size, 3)."""
        return DeviceArray(
            self._buffer.pointer + slots.start * self._clip_bytes,
            (len(slots), *self._shape),
            np.dtype(np.uint8),
            device=self._cuda.info.index,
            owner=self._buffer,
        )

    def close(self) -> None:
        """Free the memory, which nothing may use any more."""
        with self._cuda.active():
            self._stream.close()
            self._buffer.close()
