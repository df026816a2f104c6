"""A query kept as a file: one float32 vector in NumPy's .npy format."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError, OutputError
from milnce.files import NUMPY_HEADERS, check_absent, check_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_vector(path: Path, width: int) -> NDArray[np.float32]:
    """Read one vector; never unpickles.

    Args:
        path: A .npy file with float32 (width,) or (1, width).
        width: Width of the model's embeddings.

    Returns:
        float32 (width,).

    Raises:
        InputError: if the file is missing, no such file, or its array is not one finite vector of that width.
    """
    expected = f"float32 ({width},) expected, as --save-vector writes it"
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where it may not look
        raise InputError(f"{path}: no such file; a .npy file with {expected}")
    try:
        # Mapped: the header of a file says whether its content is worth reading.
        with NUMPY_HEADERS:
            stored: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        # NumPy's own text is left out: of some files it proposes to unpickle them.
        raise InputError(f"{path}: not a .npy file of numbers; {expected}") from error
    if not isinstance(stored, np.ndarray):
        stored.close()
        raise InputError(f"{path}: an .npz archive, not a .npy file; {expected}")
    if stored.dtype != np.float32 or stored.shape not in {(width,), (1, width)}:
        cure = "; turn it with vector.astype(numpy.float32)" if stored.dtype != np.float32 else ""
        raise InputError(f"{path}: {stored.dtype} {stored.shape} given; {expected}{cure}")
    vector = np.array(stored, np.float32).reshape(width)
    if not np.isfinite(vector).all():
        raise InputError(f"{path}: holds NaN or infinity; make the vector again")
    return vector


def check_vector_destination(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, what could not be written at its end.

    Raises:
        OutputError: if the suffix is not .npy, the folder is missing or not writable, or the file exists and may not be
            replaced.
    """
    if path.suffix.lower() != ".npy":
        raise OutputError(f"{path}: suffix {path.suffix!r} given; .npy expected")
    check_absent(path, overwrite=overwrite)
    check_writable(path)


def save_vector(path: Path, vector: NDArray[np.float32], *, overwrite: bool = False) -> None:
    """Write one vector, float32 (width,), under a temporary name, and rename it into place.

    Raises:
        OutputError: as `check_vector_destination` does, or if the file cannot be written.
    """
    check_vector_destination(path, overwrite=overwrite)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
            finished = Path(folder, "vector.npy")
            np.save(finished, vector, allow_pickle=False)
            finished.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot write ({error}); is the disk full?") from error
