"""Seconds and peak memory of searching an index of many windows for one sentence's vector and for eight.

    python benchmarks/search.py [--windows 1000000] [--width 512] [--folder FOLDER]

The index holds seeded random vectors, 500 windows a video, and takes 2 GB a million windows of 512 in FOLDER, removed
afterwards. Each search runs in a process of its own, which reads the whole index; the file is in the page cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import harness
from milnce.index_file import FileRecord, IndexFile, IndexMakers

WINDOWS_A_VIDEO = 500
QUERIES = (1, 8)


def main() -> None:
    """Make the index, search it, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=None, help="where the index is made; the usual for temporaries")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        index = Path(name, "index.sqlite")
        began = time.perf_counter()
        make_index(index, options.windows, options.width)
        made_s, size_mb = time.perf_counter() - began, index.stat().st_size / 1e6
        print(f"  made: {size_mb:.0f} MB, {made_s:.0f} s")
        rows = [_search(index, options.width, queries) for queries in QUERIES]
    report = {"windows": options.windows, "width": options.width, "index_mb": size_mb, "made_s": made_s, "rows": rows}
    harness.write("search-cpu", report)


def make_index(path: Path, windows: int, width: int) -> None:
    """Fill an index as `milnce search` does, a transaction a video."""
    rng = np.random.default_rng(0)
    with IndexFile(path, _makers(width)) as index:
        for number, start in enumerate(range(0, windows, WINDOWS_A_VIDEO)):
            count = min(WINDOWS_A_VIDEO, windows - start)
            starts_s = 1.6 * np.arange(count)
            sha256 = f"{number:064x}"
            with index.transaction():
                embedding = rng.standard_normal((count, width), np.float32)
                index.put_windows(sha256, np.stack([starts_s, starts_s + 3.2], axis=1), embedding)
                index.put(f"/videos/{number}.mp4".encode(), FileRecord(0, 0, sha256))


def _makers(width: int) -> IndexMakers:
    return IndexMakers("0" * 64, "0" * 64, "sliding", "fp32", width)


# The child reads its own high-water mark: what the kernel reports to a parent (ru_maxrss) starts at the parent's own.
_SEARCH = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from milnce.index_file import IndexFile, IndexMakers
from milnce.search import ScoredWindows, score

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024

path, width, queries = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
vectors = np.random.default_rng(1).standard_normal((queries, width), np.float32)
before = peak_mib()
windows = ScoredWindows(queries)
began = time.perf_counter()
with IndexFile(path, IndexMakers("0" * 64, "0" * 64, "sliding", "fp32", width)) as index:
    for name, sha256 in index.paths():
        windows.add_file(name.decode())
        for spans_s, embedding in index.windows(sha256):
            windows.add(spans_s, score(vectors, embedding))
scored = time.perf_counter()
for query in range(queries):
    assert len(windows.find(10, query=query)[0]) == 10
ranked = time.perf_counter()
print(json.dumps({"queries": queries, "windows": len(windows), "score_s": scored - began, "rank_s": ranked - scored,
                  "peak_mib": peak_mib(), "before_mib": before}))
"""


def _search(index: Path, width: int, queries: int) -> dict[str, Any]:
    command = [sys.executable, "-c", _SEARCH, str(index), str(width), str(queries)]
    row: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603
    print(f"  {queries}: {row}")
    return row


if __name__ == "__main__":
    main()
