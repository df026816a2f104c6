"""How fast clips run through PyTorch and every backend and precision of this machine, each with its parity beside it.

    python benchmarks/latency.py [--full] [--bundle DIR] [--rounds 7] [--no-compile] [--default-heap]

Without --bundle it is a full-width one of seeded weights, made once in --work: FP32, FP16, and INT8 where NNCF is
installed, calibrated on moving clips. PyTorch's tower is rebuilt from the bundle's weights. All rows of a case take
turns; one whose outputs fail their gate has no speed. --full takes every batch, length and size, for an hour.

Memory that is freed is kept, which favours PyTorch: as glibc is by default, eager mode maps what it needs anew for each
clip, and takes up to twice as long (`milnce.heap`). --default-heap leaves that as it is, in a report of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from bundles import full_width_bundle
from harness import RESULTS, Target
from milnce import CudaOptions
from milnce.bench import open_all, video_source
from milnce.bundle import Bundle
from milnce.heap import kept_heap
from milnce.machine import blas_threads, cores
from milnce.timing import Timing, ratios
from milnce_convert.bench_bundle import pytorch_rows, video_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.bench import Opened

Case = tuple[int, int, int]

MAIN: Case = (1, 32, 224)  # batch, frames, size: what the targets are of
USUAL: tuple[Case, ...] = (MAIN, (1, 16, 224), (1, 32, 200), (1, 32, 256), (4, 32, 224), (8, 32, 224), (32, 32, 224))
FULL: tuple[Case, ...] = tuple(
    (batch, frames, size) for frames in (32, 16) for size in (224, 200, 256) for batch in (1, 2, 4, 8, 16, 32)
)
REFERENCE = "PyTorch eager FP32"
WANTED = {"onnxruntime fp32": 2.4, "openvino fp32": 3.0, "openvino bf16": 5.5, "openvino int8": 9.0}
# 32x224x224 through the published tower, as `torch.utils.flop_counter` counts. The exported graph has 72.6: its stem
# does not compute the rows that the tower crops.
FLOP_PER_CLIP = 74.2e9
_FULL_FEATURES = 1024  # mixed_5c of the published width
_COMPILE_S = 300.0
_WORK = Path(__file__).resolve().parents[1] / "build" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every case and write the report."""
    options = _parser().parse_args(arguments)
    if options.compile_only is not None:
        _compile(options.compile_only)
        return
    path = options.bundle or full_width_bundle(options.work)
    bundle, threads = Bundle.open(path), cores()
    heap = nullcontext(False) if options.default_heap else kept_heap()
    with open_all(path, threads=threads, cuda=CudaOptions(exhaustive_search=True)) as opened, heap as heap_kept:
        if not options.compile:
            opened.left_out["PyTorch compiled"] = "--no-compile was given"
        compiled = options.compile and _can_compile(path, opened)
        towers = pytorch_rows(bundle, opened, compiled=compiled, threads=threads)
        sources = [*towers.video, *map(video_source, opened.models)]
        rows: list[dict[str, Any]] = []
        for case in FULL if options.full else USUAL:
            print("{0} x {1}x{2}x{2}".format(*case), file=sys.stderr)
            # Compiling takes a minute a shape, so compiled rows are of the main case alone.
            taking_part = [source for source in sources if case == MAIN or "compiled" not in source.name]
            reference = towers.reference or sources[0].run
            rows += video_rows(taking_part, reference, case, rounds=options.rounds, seconds=options.seconds)
        left_out = dict(opened.left_out)
    if not any(row.get("device") == "cuda" for row in rows):
        left_out["PyTorch eager TF32, FP16"] = "they are measured on a GPU, and there is none"
    widths = {spec.name: spec.shape[1].size for spec in bundle.graph("video").outputs}
    full = widths["mixed_5c"] == _FULL_FEATURES
    settings = {"bundle": bundle.manifest.name, "rounds": options.rounds, "seconds": options.seconds}
    settings |= {"threads": threads, "blas_threads": blas_threads(), "heap_kept": heap_kept}
    settings |= {"full": options.full, "reference": sources[0].name, "main": list(MAIN)}
    # Speeds over a PyTorch that maps its memory anew say too much.
    held = [] if options.default_heap else targets(rows, left_out, full=full)
    report = {"settings": settings, "rows": rows, "left_out": left_out, "targets": held}
    harness.write("latency-default-heap" if options.default_heap else "latency", report, results=options.results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None, help="a bundle to measure instead of the seeded one")
    parser.add_argument(
        "--full", action="store_true", help="batches 1 to 32, 16 and 32 frames, 200, 224 and 256 pixels"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="after which a case begins no further round")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument(
        "--default-heap", action="store_true", help="leave the C library's memory as it is; writes latency-default-heap"
    )
    parser.add_argument("--work", type=Path, default=_WORK, help="where the seeded bundle is kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--compile-only", type=Path, default=None, help=argparse.SUPPRESS)
    return parser


def targets(rows: Sequence[dict[str, Any]], left_out: dict[str, str], *, full: bool) -> list[dict[str, Any]]:
    """Return what was to be reached on the main case, beside what was measured.

    Args:
        rows: The report's.
        left_out: The report's.
        full: Whether the bundle has the published width, of which the targets are.
    """
    main = {row["name"]: row for row in rows if (row["batch"], row["frames"], row["size"]) == MAIN}
    reference = _timing(main.get(REFERENCE))
    found = []
    for name, wanted in WANTED.items():
        row = main.get(name)
        own = _timing(row)
        # Not the row's own "speed": on a machine with a GPU that is against PyTorch there.
        speed = None if own is None or reference is None else ratios(reference, own).median
        bound = _bound(name, row, left_out, full=full, compared=reference is not None)
        found.append(Target(f"{name} against {REFERENCE}", wanted, speed, bound=bound).to_json())
    return found


def _timing(row: dict[str, Any] | None) -> Timing | None:
    return Timing(tuple(row["seconds"])) if row is not None and row.get("seconds") else None


def _bound(name: str, row: dict[str, Any] | None, left_out: dict[str, str], *, full: bool, compared: bool) -> str:
    if row is None:
        precision = name.partition(" ")[2]
        reasons = [reason for what, reason in left_out.items() if what == precision or _is_of(what, name)]
        return "; ".join(reasons) or "it was not measured"
    if row["failures"] or row["error"]:
        return row["error"] or f"its outputs fail the {row['gate']} gate: {'; '.join(row['failures'])}"
    if not compared:
        return f"{REFERENCE} was not measured"
    if not full:
        return "the bundle is not of the published width, which the target is of"
    rate = FLOP_PER_CLIP / row["median_s"] / 1e9
    return f"{rate:.0f} GFLOP/s here; roofline.md has the machine's peak, and which layers memory bounds"


def _is_of(what: str, name: str) -> bool:
    """Whether what was left out, such as "openvino bf16, int8", "openvino int8 on cpu" or "openvino", has a row."""
    backend, _, precision = name.partition(" ")
    library, _, rest = what.partition(" ")
    precisions = rest.partition(" on ")[0]
    return library == backend and (not rest or precision in precisions.split(", "))


def _can_compile(path: Path, opened: Opened) -> bool:
    """Let a process of its own compile the tower, so that one that takes for ever costs a row and not the report.

    What it compiled is in PyTorch's cache on disk, from where this process takes it.
    """
    command = [sys.executable, __file__, "--compile-only", str(path)]
    environment = harness.environment()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, env=environment)  # noqa: S603
    try:
        _, words = process.communicate(timeout=_COMPILE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it started
        process.communicate()
        opened.left_out["PyTorch compiled"] = f"torch.compile did not end within {_COMPILE_S:.0f} s"
        return False
    if process.returncode != 0:
        lines = words.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        opened.left_out["PyTorch compiled"] = lines[-1]
        return False
    return True


def _compile(path: Path) -> None:
    from milnce_convert import torch_modes  # noqa: PLC0415 - where PyTorch is installed
    from milnce_convert.from_bundle import rebuild_video_tower  # noqa: PLC0415
    from milnce_convert.sample_inputs import moving_clips  # noqa: PLC0415

    tower, (batch, frames, size) = rebuild_video_tower(Bundle.open(path)), MAIN
    for place in torch_modes.usable_devices(("cpu", "cuda")):
        video = torch_modes.TorchVideo(tower, place, torch_modes.COMPILED[place])
        for mode in video.modes:
            video.run(mode, moving_clips(batch, frames, size, size))


if __name__ == "__main__":
    main()
