"""Checks milnce on a machine with an NVIDIA GPU, and writes down what was seen: `make gpu-check`.

    python benchmarks/gpu_check.py [--bundle DIR] [--only parity] [--budget-s 540] [--out DIR]
    python benchmarks/gpu_check.py --make-reference FILE --bundle DIR      (on a machine without a GPU)

Needs a plain checkout, Python 3.10 or newer, NumPy and cuda-python. What else is importable is used: TensorRT, ONNX
Runtime with CUDA, PyTorch, CuPy, PyCUDA, pytest. It takes nothing from the network. Each part runs in a process of its
own under a time limit, and the report (one JSON and one Markdown file in benchmarks/results) is written anew after
each. Exit codes: 0 all passed, 1 something failed, 2 no GPU or wrong arguments, 3 nothing failed but not all ran.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("benchmarks", "runtime", "convert", "tests")]

try:
    from gpucheck.command import main
except ModuleNotFoundError as error:
    print(f"Error: {sys.executable} lacks {error.name}; install it, or name another: make PYTHON=...", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main(__doc__ or ""))
