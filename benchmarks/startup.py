"""Wall time of fresh interpreters that import milnce, and of what it must not need.

python benchmarks/startup.py [--runs 21]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import machine

_IMPORTS = {"nothing": "pass", "numpy": "import numpy", "milnce": "import milnce", "torch": "import torch"}


def main() -> None:
    """Measure the imports in turn, `--runs` times, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in _IMPORTS}
    for run in range(runs + 1):
        for name, code in _IMPORTS.items():
            began = time.perf_counter_ns()
            subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
            if run:  # the first round fills the caches
                seconds[name].append((time.perf_counter_ns() - began) / 1e9)
    lines = [f"Start of Python and import; medians of {runs} interleaved runs.", "", "| | ms | of which import |"]
    lines.append("| --- | ---: | ---: |")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lines += [
        f"| {name} | {1000 * value:.0f} | {1000 * (value - medians['nothing']):.0f} |"
        for name, value in medians.items()
    ]
    machine.write("startup", {"runs": runs, "seconds": seconds, "median_s": medians}, "\n".join(lines))


if __name__ == "__main__":
    main()
