"""One clip through PyTorch and each backend, in interleaved rounds; every row carries its parity beside its speed.

    python benchmarks/latency.py [--rounds 7] [--frames 32] [--size 224]

The weights are the seeded fixture at full width. A row whose outputs fail the parity gate has no speed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import machine
import milnce
from milnce.errors import BackendError
from milnce_convert.convert import ExportOptions, export_seeded_bundle
from milnce_convert.fixtures import as_video, moving_clips, seeded_towers
from milnce_convert.parity import BF16_GATE, FP32_GATE, Gate, compare

Run = Callable[[np.ndarray[Any, np.dtype[np.uint8]]], np.ndarray[Any, np.dtype[np.float32]]]

_BACKENDS = (("onnxruntime", "fp32", FP32_GATE), ("openvino", "fp32", FP32_GATE), ("openvino", "bf16", BF16_GATE))


def main() -> None:
    """Measure, check, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    towers = seeded_towers(0)
    clips = moving_clips(3, options.frames, options.size, options.size, seed=3)

    def eager(batch: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.no_grad():
            result: np.ndarray[Any, np.dtype[np.float32]] = towers.video(as_video(batch).contiguous())[
                "video_embedding"
            ].numpy()
            return result

    rows: dict[str, tuple[Run, Gate]] = {"PyTorch eager FP32": (eager, FP32_GATE)}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        choices = ExportOptions(precisions=("fp32",), input_forms=("uint8",), parity_sizes=((16, 64, 64),))
        export_seeded_bundle(0, bundle, choices, progress=lambda stage: print(f"  {stage}"))
        for name, precision, gate in _BACKENDS:
            try:
                model = milnce.load(bundle, backend=name, precision=precision, modules=("video",))
            except BackendError as error:
                print(f"{name} {precision} left out: {error}")
                continue
            rows[f"{name} {precision}"] = (functools.partial(_encode, model), gate)
        _report(rows, clips, rounds=options.rounds)


def _encode(model: milnce.Model, batch: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return model.encode_video(batch).embedding


def _report(rows: dict[str, tuple[Run, Gate]], clips: np.ndarray[Any, np.dtype[np.uint8]], *, rounds: int) -> None:
    """Time every row on one clip, in turn, `rounds` times after a warm-up, and hold its outputs to its gate."""
    reference = next(iter(rows.values()))[0](clips)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(rounds + 1):
        for name, (run, _) in rows.items():
            began = time.perf_counter_ns()
            run(clips[:1])
            if round_number:  # the first round warms up
                seconds[name].append((time.perf_counter_ns() - began) / 1e9)
    results = []
    for name, (run, gate) in rows.items():
        agreement = compare(reference, run(clips))
        failures = gate.failures(agreement)
        row: dict[str, Any] = {"name": name, "gate": gate.name, "parity": agreement.to_json(), "failures": failures}
        if not failures:
            pairs = zip(next(iter(seconds.values())), seconds[name], strict=True)
            ratios = [first / own for first, own in pairs]
            row |= {
                "seconds": seconds[name],
                "median_s": statistics.median(seconds[name]),
                "speed": statistics.median(ratios),
                "speed_min": min(ratios),
                "speed_max": max(ratios),
            }
        results.append(row)
    shape = "x".join(map(str, clips.shape[1:4]))
    lines = [f"One clip {shape}, full width, seeded weights; medians of {rounds} interleaved rounds.", ""]
    lines += ["| | s a clip | speed | 1 - centred cosine | spread error |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [_line(row) for row in results]
    report = {"clip": list(clips.shape[1:]), "rounds": rounds, "threads": torch.get_num_threads(), "rows": results}
    machine.write("latency-cpu", report, "\n".join(lines))


def _line(row: dict[str, Any]) -> str:
    parity = row["parity"]
    errors = f"{1 - parity['centred_cosine']:.1e} | {parity['spread_error']:.1e}"
    if row["failures"]:
        return f"| {row['name']} | fails the {row['gate']} gate | | {errors} |"
    speed = f"{row['speed']:.2f}x ({row['speed_min']:.2f} to {row['speed_max']:.2f})"
    return f"| {row['name']} | {row['median_s']:.3f} | {speed} | {errors} |"


if __name__ == "__main__":
    main()
