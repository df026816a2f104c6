"""Compiles the picture kernel's own source for the host, so that a CPU can run every one of its threads.

The source is included as it is: CUDA's words are given a meaning in front of it (`PRELUDE`), and behind it a loop
plays the grid. What differs from the GPU is the compiler's rounding of float sums, by less than a level.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from milnce.video import nvdec_picture

PRELUDE = """
#include <math.h>
#define __device__
#define __global__
struct Index { int x, y, z; };
static Index blockIdx, blockDim, threadIdx;
"""
LAUNCHER = """
extern "C" void launch(const Picture* picture, int grid_x, int grid_y, int block_x, int block_y) {
    blockDim = Index{block_x, block_y, 1};
    for (blockIdx.y = 0; blockIdx.y < grid_y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid_x; ++blockIdx.x)
            for (threadIdx.y = 0; threadIdx.y < block_y; ++threadIdx.y)
                for (threadIdx.x = 0; threadIdx.x < block_x; ++threadIdx.x) milnce_picture(*picture);
}
extern "C" unsigned long picture_size() { return sizeof(Picture); }
"""


@functools.cache
def compiled(source: str) -> ctypes.CDLL:
    """Compile a kernel's source for the host.

    Raises:
        RuntimeError: if there is no C++ compiler, or it refuses: the tests of the kernel must not vanish in silence.
    """
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("the kernel's tests need a C++ compiler, g++ or c++")
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        code.write_text(PRELUDE + source + LAUNCHER, encoding="utf-8")
        command = [compiler, "-std=c++17", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{compiler} refuses the kernel:\n{done.stderr}")
        return ctypes.CDLL(str(library))


def launcher(source: str) -> Callable[[nvdec_picture.Picture, tuple[int, int], tuple[int, int]], None]:
    """Return what runs the kernel of a source over a grid of blocks, on the host's memory."""
    library = compiled(source)

    def launch(picture: nvdec_picture.Picture, grid: tuple[int, int], block: tuple[int, int]) -> None:
        library.launch(ctypes.byref(picture), *grid, *block)

    return launch


def structure_bytes(source: str) -> int:
    """Return the size of the source's `Picture`, as the compiler lays it out."""
    library = compiled(source)
    library.picture_size.restype = ctypes.c_ulong
    return int(library.picture_size())
