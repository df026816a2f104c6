"""Checks milnce on a machine with an NVIDIA GPU, and writes down what was seen: `make gpu-check`.

    python benchmarks/gpu_check.py [--bundle DIR --reference FILE] [--only parity] [--budget-s 540] [--out DIR]
    python benchmarks/gpu_check.py --make-reference FILE --bundle DIR      (on a machine without a GPU)

Needs a plain checkout, Python 3.10 or newer, NumPy and cuda-python. What else is importable is used: TensorRT, ONNX
Runtime with CUDA, PyTorch, CuPy, PyCUDA, pytest. It takes nothing from the network. With a bundle and its reference
nothing is exported, and no reference computed. A TensorRT 8.5 without cuDNN and cuBLAS builds with --tactic-source
EDGE_MASK_CONVOLUTIONS --tactic-source JIT_CONVOLUTIONS. Each part runs in a process of its own under a time limit, and
the report (one JSON and one Markdown file in benchmarks/results) is written anew after each. Exit codes: 0 all passed,
1 something failed, 2 no GPU or wrong arguments, 3 nothing failed but not all ran.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In the words of milnce.backends.selection, which needs NumPy.
NO_DRIVER = "there is no NVIDIA driver here (libcuda.so.1)"
_CURE = "install it, give the container its GPUs (docker run --gpus all), or name its folder in LD_LIBRARY_PATH"
# --help and --make-reference, also abbreviated: they need no GPU.
_WITHOUT = ("-h", "--h", "--m")


def main() -> int:
    """Run the command where there is a driver, or none is needed; what else is missing is of no matter before that."""
    if not (_has_driver() or any(argument.startswith(_WITHOUT) for argument in sys.argv[1:])):
        print(f"Error: {NO_DRIVER}, so nothing can be checked: {_CURE}", file=sys.stderr)
        return 2
    sys.path[:0] = [str(ROOT / name) for name in ("benchmarks", "runtime", "convert", "tests")]
    try:
        from gpucheck import command  # noqa: PLC0415 - needs NumPy
    except ModuleNotFoundError as error:
        words = f"{sys.executable} lacks {error.name}; install it, or name another: make PYTHON=..."
        print(f"Error: {words}", file=sys.stderr)
        return 2
    return command.main(__doc__ or "")


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
