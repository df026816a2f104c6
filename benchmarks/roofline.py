"""Where the time of the video graph goes: work layer by layer, what this machine can do at most, the share reached.

    python benchmarks/roofline.py [--bundle DIR] [--rounds 9] [--frames 32] [--size 224] [--device cpu|cuda]

One clip at a time, on all cores, three of them a round. The machine's peaks (matrix products, convolutions, copies) are
measured in the same interleaved rounds, so that a share holds although the machine's speed varies; they run as long as
three clips, or longer, so that what ran before, and left its data in the caches, costs both little. A row's share is

    2 x multiply-adds of the graph / seconds / the best rate of any product or convolution of that precision

without multiplications by padding. A layer's bound is max(operations / peak, bytes / bandwidth): a byte counts once for
each input, weight and output, and the bandwidth is that of the last-level cache for layers that fit in it. Without
--bundle the weights are seeded ones at full width. Parity is measured against the PyTorch tower. On a GPU (not yet run
on hardware) the times of layers come from ONNX Runtime.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import milnce
import peaks
import profiles
from bounds import Rates, layer_rows, total_work, what_bounds
from harness import Target
from layers import count_layers
from milnce.bundle import Bundle
from milnce.errors import MilnceError
from milnce.timing import Timing, interleaved
from milnce_convert.parity import BF16_GATE, FP16_GATE, FP32_GATE, Gate, compare
from milnce_convert.sample_inputs import moving_clips

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from peaks import Peak

WANTED_SHARE = 0.85
_BUDGET_S = 150.0  # of rounds: on a busy machine there are fewer
_CLIPS = 3  # a round, one by one
_GPU_RUNS = 5
_ROWS: dict[str, tuple[tuple[str, str, Gate], ...]] = {
    "cpu": (
        ("openvino", "fp32", FP32_GATE),
        ("onnxruntime", "fp32", FP32_GATE),
        ("openvino", "bf16", BF16_GATE),
    ),
    "cuda": (
        ("tensorrt", "fp32", FP32_GATE),
        ("tensorrt", "fp16", FP16_GATE),
        ("onnxruntime", "fp32", FP32_GATE),
        ("onnxruntime", "fp16", FP16_GATE),
    ),
}


@dataclass(slots=True)
class Metered:
    """An action that keeps the CPU time, of all threads of this process, of each call."""

    call: Callable[[], object]
    cpu_s: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Do it."""
        began = time.process_time()
        self.call()
        self.cpu_s.append(time.process_time() - began)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the graph."""

    name: str
    model: milnce.Model
    precision: str
    gate: Gate


def main() -> None:
    """Measure, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    clips = moving_clips(_CLIPS, options.frames, options.size, options.size, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        bundle, reference = subject(options.bundle, Path(folder), clips)
        report = measure(bundle, clips, reference, device=options.device, rounds=options.rounds)
    report["settings"]["weights"] = str(options.bundle or "seeded, full width")
    harness.write("roofline" if options.device == "cpu" else "roofline-gpu", report)


def subject(given: Path | None, folder: Path, clips: NDArray[np.uint8]) -> tuple[Path, NDArray[np.float32]]:
    """Return the bundle to measure, and what its rows must give for the clips.

    Args:
        given: A bundle; None makes one of seeded weights in `folder`.
        folder: An empty folder.
        clips: uint8 (N, T, H, W, 3).
    """
    import torch  # noqa: PLC0415 - what reads the script's head needs no torch

    from milnce_convert.convert import ExportOptions, export_seeded_bundle  # noqa: PLC0415
    from milnce_convert.fixtures import as_video  # noqa: PLC0415
    from milnce_convert.from_bundle import rebuild_video_tower  # noqa: PLC0415

    if given is None:
        given = folder / "bundle"
        choices = ExportOptions(input_forms=("uint8",), parity_sizes=((16, 64, 64),))
        export_seeded_bundle(0, given, choices, progress=lambda stage: print(f"  {stage}"))
    tower = rebuild_video_tower(Bundle.open(given))
    with torch.no_grad():
        found: NDArray[np.float32] = tower(as_video(clips).contiguous())["video_embedding"].numpy()
    return given, found


def measure(
    bundle: Path,
    clips: NDArray[np.uint8],
    reference: NDArray[np.float32],
    *,
    device: str,
    rounds: int,
    tops: list[Peak] | None = None,
) -> dict[str, Any]:
    """Return the report on a bundle's video graph.

    Args:
        bundle: The bundle.
        clips: uint8 (N, T, H, W, 3), which a round embeds one by one.
        reference: float32 (N, 512), their embeddings.
        device: "cpu" or "cuda".
        rounds: Interleaved rounds, at most.
        tops: The peaks to measure; None for all that there are.

    Raises:
        SystemExit: if no backend can run it.
    """
    threads = peaks.cores()
    contenders, left_out = _contenders(bundle, device)
    if not contenders:
        raise SystemExit(f"nothing here runs {bundle} on {device}: {left_out}")
    held = contenders[0].model.bundle
    graph = held.read(held.graph("video", precision="fp32", input_form="uint8"))
    layers = count_layers(graph, clips.shape[1:4])
    if tops is None:
        tops = _peaks(device, threads, tuple(dict.fromkeys(item.precision for item in contenders)))
    profiled = _profiles(contenders, graph, clips[:1], threads) if device == "cpu" else {}
    actions = {peak.key: Metered(peak.call) for peak in tops}
    actions |= {item.name: Metered(partial(item.model.encode_video, clips, batch_size=1)) for item in contenders}
    actions |= {f"profile of {name}": Metered(profile) for name, profile in profiled.items()}
    waits = {peak.key: peak.wait for peak in tops if peak.wait is not None}
    timings, errors = interleaved(actions, rounds=rounds, seconds=_BUDGET_S, least=3, synchronize=waits)
    clips_in = dict.fromkeys((item.name for item in contenders), len(clips))
    rates = Rates({name: _each(timing, actions[name].cpu_s, clips_in.get(name, 1)) for name, timing in timings.items()})
    runs = _runs(profiled, graph, clips[:1], device)
    rows = []
    for item in contenders:
        row = _row(item, clips, reference)
        if not row["failures"] and item.name in timings:
            row |= rates.of_model(item.name, item.precision, layers, tops)
            roof = rates.roof(item.precision, tops, _cache_bytes(device))
            if item.name in runs and roof is not None:
                counted = profiles.seconds_of_layers(layers, runs[item.name])
                row |= layer_rows(layers, counted, rates.rounds[item.name][0].median_s, roof)
        rows.append(row)
        item.model.close()
    settings = {"clip": list(clips.shape[1:4]), "device": device, "threads": threads}
    return {
        "settings": {**settings, "blas_kernels": peaks.blas_kernels(), "cache_bytes": _cache_bytes(device)},
        "work": total_work(layers),
        "peaks": [rates.of_peak(peak) for peak in tops if peak.key in timings],
        "rows": rows,
        "left_out": {**left_out, **errors},
        "targets": [target.to_json() for target in _targets(rows)] if device == "cpu" else [],
    }


def _each(timing: Timing, cpu_s: Sequence[float], count: int) -> tuple[Timing, list[float]]:
    """Return the times of one clip, by the clock and of the CPU, where each call ran `count`."""
    timed = cpu_s[-len(timing.seconds) :]  # the calls before warmed up
    return Timing(tuple(value / count for value in timing.seconds)), [value / count for value in timed]


def _contenders(bundle: Path, device: str) -> tuple[list[Contender], dict[str, str]]:
    """Open every row of a device; return also why others cannot be had here."""
    found, left_out = [], {}
    for backend, precision, gate in _ROWS[device]:
        name = f"{backend} {precision}"
        try:
            model = milnce.load(bundle, backend=backend, device=device, precision=precision, modules=("video",))
        except MilnceError as error:
            left_out[name] = str(error)
            continue
        found.append(Contender(name, model, precision, gate))
    return found, left_out


def _peaks(device: str, threads: int, precisions: tuple[str, ...]) -> list[Peak]:
    if device == "cuda":
        return peaks.gpu_peaks()
    return peaks.cpu_peaks(threads, precisions) + peaks.copies(threads, peaks.last_level_cache_bytes())


def _cache_bytes(device: str) -> int:
    return peaks.last_level_cache_bytes() if device == "cpu" else 0


def _profiles(
    contenders: Sequence[Contender], graph: bytes, clip: NDArray[np.uint8], threads: int
) -> dict[str, profiles.OpenVinoProfile | profiles.OnnxRuntimeProfile]:
    """Return what counts the seconds of each node, for the rows that can be counted."""
    found: dict[str, profiles.OpenVinoProfile | profiles.OnnxRuntimeProfile] = {}
    for item in contenders:
        if item.model.backend.name == "openvino":
            found[item.name] = profiles.OpenVinoProfile(graph, clip, precision=item.precision, threads=threads)
        elif item.precision == "fp32":
            found[item.name] = profiles.OnnxRuntimeProfile(graph, clip, threads=threads)
    return found


def _runs(
    profiled: Mapping[str, profiles.OpenVinoProfile | profiles.OnnxRuntimeProfile],
    graph: bytes,
    clip: NDArray[np.uint8],
    device: str,
) -> dict[str, list[dict[str, float]]]:
    """Return the seconds of each node in each run, without the first, by the row's name."""
    if device == "cuda":
        try:
            return {"onnxruntime fp32": profiles.profile_cuda(graph, clip, runs=_GPU_RUNS)}
        except Exception as error:  # noqa: BLE001 - the figures of the whole graph are worth keeping
            print(f"no times of layers: {error}", file=sys.stderr)
            return {}
    for profile in profiled.values():
        profile.close()
    return {name: profile.runs[1:] for name, profile in profiled.items()}


def _row(item: Contender, clips: NDArray[np.uint8], reference: NDArray[np.float32]) -> dict[str, Any]:
    """Return a row without its speed: what it is, and how far its outputs are from the reference."""
    agreement = compare(reference, item.model.encode_video(clips).embedding)
    return {
        "name": item.name,
        "gate": item.gate.name,
        "parity": agreement.to_json(),
        "failures": item.gate.failures(agreement),
    }


def _targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Return the targets of the best exact row: its share of a large matrix product, and of the fastest peak."""
    exact = [row for row in rows if row["gate"] == FP32_GATE.name and "share_of_peak" in row]
    best = max(exact, key=lambda row: float(row["share_of_peak"]["median"]), default=None)
    peaks_of = ("large matrix product", "product or convolution")
    names = [f"best exact path, share of the fastest {name}" for name in peaks_of]
    if best is None:
        return [Target(name, WANTED_SHARE, None, bound="no exact row could be measured") for name in names]
    shares = ((best["share_of_product"] or {}).get("median"), best["share_of_peak"]["median"])
    bound = what_bounds(best["kinds"], best["peak_flops_per_s"]) if "kinds" in best else ""
    return [
        Target(f"{name} ({best['name']})", WANTED_SHARE, share, bound=bound)
        for name, share in zip(names, shares, strict=True)
    ]


if __name__ == "__main__":
    main()
