"""Loads the CUDA and cuDNN libraries that ONNX Runtime needs, wherever pip has put them.

The provider names them without saying where they are, and the wheels of NVIDIA lie in folders that no loader looks in:
`nvidia/cu13/lib` and `nvidia/cudnn/lib`, or `nvidia/cublas/lib` and its like for CUDA 12, possibly beside another
package of the same Python path than ONNX Runtime. Once they are loaded by name the provider finds them. (Its own
`preload_dlls` looks beside itself alone, and prints what it does not find to stdout.)
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# By major version of CUDA, in an order in which each finds the ones before it: what the provider of onnxruntime-gpu
# 1.31 (13) and 1.23 (12) cannot be loaded without.
_LIBRARIES = {
    12: (
        "libcudart.so.12",
        "libcublasLt.so.12",
        "libcublas.so.12",
        "libcurand.so.10",
        "libcufft.so.11",
        "libcudnn.so.9",
    ),
    13: ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"),
}
# cuDNN compiles kernels with it, and does without where it is not.
_OPTIONAL = {12: ("libnvrtc.so.12",), 13: ("libnvrtc.so.13",)}


def load_cuda_libraries(cuda_version: str | None) -> tuple[str, ...]:
    """Load what ONNX Runtime's CUDA provider needs.

    Args:
        cuda_version: The version of CUDA it was built with, such as "13.0" (`onnxruntime.cuda_version`); None or a
            version that is not known here loads nothing, and the provider looks for itself.

    Returns:
        The libraries that are nowhere to be found, by name; none if all are loaded.
    """
    major = (cuda_version or "").partition(".")[0]
    number = int(major) if major.isdigit() else 0
    folders = list(_folders())
    for name in _OPTIONAL.get(number, ()):
        _load(name, folders)
    return tuple(name for name in _LIBRARIES.get(number, ()) if not _load(name, folders))


def _load(name: str, folders: Iterable[Path]) -> bool:
    for path in (name, *(folder / name for folder in folders)):
        try:
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def _folders() -> Iterator[Path]:
    """Yield the folders with libraries in NVIDIA's wheels, over every folder of Python's path."""
    try:
        found = find_spec("nvidia")
    except (ImportError, ValueError):
        return
    for place in [] if found is None else found.submodule_search_locations or []:
        yield from sorted(Path(place).glob("*/lib"))
