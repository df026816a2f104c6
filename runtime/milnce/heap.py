"""Lets a measurement keep the memory that it freed, as the C library would give it back to the kernel each time."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of glibc's malloc.h, and what glibc begins with.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_THRESHOLD, _MMAP_MAX = 128 * 1024, 65536
_NEVER = -1


@contextmanager
def kept_heap() -> Iterator[bool]:
    """Keep what is freed while the block runs, and use it again; gives whether the C library does so.

    glibc gives the kernel back what lies free at the end of its heap, and maps blocks above some size (128 KiB at
    first, up to 32 MiB as it adapts) anew each time. PyTorch in eager mode asks for a block a layer, and pays for its
    pages with each clip: 1.1 s for 32x224x224 through the full-width tower, on two cores of a virtual machine, where
    it took 0.64 s with a heap that is kept (benchmarks/latency.py with and without --default-heap). Speeds over the
    former would say more of the machine than of the towers.

    Only glibc can be told. What was freed in the block is given back at its end, where glibc's first settings are put
    in the place of those that the environment (MALLOC_TRIM_THRESHOLD_, GLIBC_TUNABLES) or glibc itself may have made.
    """
    library = ctypes.CDLL(None)
    tell = getattr(library, "mallopt", None)
    kept = tell is not None and all([tell(_M_MMAP_MAX, 0), tell(_M_TRIM_THRESHOLD, _NEVER)])
    try:
        yield kept
    finally:
        if tell is not None:
            tell(_M_MMAP_MAX, _MMAP_MAX)
            tell(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)
