"""What a batcher costs and keeps: throughput against full batches, latency, refusals, text beside video.

    python benchmarks/batcher.py [--bundle BUNDLE] [--callers 1 2 4 8 16 32 64] [--seconds 300]

Two subjects: a bundle on this machine (one of seeded weights at full width if none is given), and a simulated
accelerator, a thread that sleeps as long as a batch takes, which shows what the batcher does where batches pay. Full
batches (`encode_video`) and each number of callers take turns, so that ratios survive a machine whose speed changes.
Writes results/batcher.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

import callers
import harness
import milnce
from milnce.timing import interleaved, percentile, ratios
from milnce_convert.parity import FP32_GATE, compare
from milnce_convert.sample_inputs import moving_clips
from simulated import Accelerator, SimulatedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from callers import Run

    Clips = NDArray[np.uint8]

CALLERS = (1, 2, 4, 8, 16, 32, 64)
_FROM_CALLERS = 16  # on which the target holds
_WANTED = 0.95
_CLIPS = 8
_ROUNDS = 5
# A GPU with a launch cost: 8 clips at once take 1.5 ms each, one alone 5 ms.
_BATCH_S, _CLIP_S, _LARGEST = 4e-3, 1e-3, 8
_OVERLOAD = 4


@dataclass(frozen=True, slots=True)
class Load:
    """How much is run.

    Attributes:
        least: Clips in a turn of few callers, at least.
        each: Clips that each caller sends in a turn, at least.
        seconds: Time after which no further round begins; there is one at least.
    """

    least: int
    each: int
    seconds: float


_SIMULATED_LOAD = Load(least=160, each=6, seconds=30.0)


def main() -> None:
    """Measure, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--backend", default="auto", help="as in milnce.load")
    parser.add_argument("--callers", type=int, nargs="+", default=CALLERS)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="after which no further round on the bundle begins"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or _seeded(Path(folder) / "bundle")
        with milnce.load(bundle, backend=options.backend) as model:
            clips = moving_clips(_CLIPS, options.frames, options.size, options.size, seed=3)
            report = measure(model, clips, options.callers, seconds=options.seconds)
    report["settings"]["weights"] = str(options.bundle or "seeded, full width")
    harness.write("batcher", report)


def measure(model: milnce.Model, clips: Clips, numbers: Sequence[int], *, seconds: float) -> dict[str, Any]:
    """Return the report on a model, and on the simulated accelerator.

    Args:
        model: The model, with its text tower.
        clips: uint8 (N, T, H, W, 3), what the callers send, in turn.
        numbers: Numbers of callers.
        seconds: Time after which no further round on the model begins.
    """
    accelerator = Accelerator(batch_s=_BATCH_S, clip_s=_CLIP_S, largest_batch=_LARGEST)
    small = moving_clips(_CLIPS, 16, 64, 64, seed=3)
    with accelerator:
        simulated = cast("milnce.Model", SimulatedModel(accelerator))
        rows = _rows("simulated", simulated, small, numbers, _SIMULATED_LOAD)
        rows.append(_held(simulated, accelerator, small))
    found = _rows("model", model, clips, numbers, Load(least=12, each=2, seconds=seconds))
    full_per_s = median([row["full_per_s"] for row in found if "full_per_s" in row] or [1.0])
    rows += [*found, _overload(model, clips, full_per_s)]
    settings = {
        "clip": clips.shape[1:],
        "backend": str(model.backend),
        "simulated": {"batch_s": _BATCH_S, "clip_s": _CLIP_S, "largest_batch": _LARGEST, "clip": small.shape[1:]},
    }
    return {"settings": settings, "rows": rows, "text": _text(model, clips), "targets": _targets(rows)}


def _rows(subject: str, model: milnce.Model, clips: Clips, numbers: Sequence[int], load: Load) -> list[dict[str, Any]]:
    """Return a row for each number of callers: its throughput over that of full batches, and latencies."""
    direct = _embedding(model.encode_video(clips))
    sent = {number: number * max(load.each, load.least // number) for number in numbers}
    batchers = {number: milnce.Batcher(model) for number in numbers}
    runs: dict[int, list[Run]] = {number: [] for number in numbers}
    many = np.resize(clips, (max(sent.values()), *clips.shape[1:]))

    def call(number: int) -> None:
        found = callers.closed_loop(batchers[number], list(clips), callers=number, each=sent[number] // number)
        runs[number].append(found)
        print(f"  {subject}: {number} callers, {sent[number]} clips in {found.seconds:.2f} s", flush=True)

    # As many clips in full batches before each, since the machine's speed may change within a round.
    actions: dict[str, Any] = {}
    for number in numbers:
        actions[f"full {number}"] = partial(model.encode_video, many[: sent[number]])
        actions[f"{number}"] = partial(call, number)
    timings, errors = interleaved(actions, rounds=_ROUNDS, warmup=0, seconds=load.seconds)
    rows = []
    for number in numbers:
        row: dict[str, Any] = {"name": f"{subject}, {number} callers", "subject": subject, "callers": number}
        row |= _checked([answer for run in runs[number] for answer in run.answers], direct)
        if f"{number}" in errors:
            row["failures"].append(errors[f"{number}"])
        if not row["failures"]:
            share = ratios(timings[f"full {number}"], timings[f"{number}"])
            row |= {
                "clips": sent[number],
                "rounds": len(share.values),
                "share": share.to_json(),
                "full_per_s": sent[number] / timings[f"full {number}"].median_s,
                "clips_per_s": sent[number] / timings[f"{number}"].median_s,
                "latency": _percentiles([value for run in runs[number] for value in run.latencies_s]),
                "mean_batch_size": batchers[number].stats().video.mean_batch_size,
            }
        rows.append(row)
        batchers[number].close()
    return rows


def _held(model: milnce.Model, accelerator: Accelerator, clips: Clips) -> dict[str, Any]:
    """Return how many of a burst are refused while nothing ends: those beyond what may wait."""
    queue = 64
    sent = _OVERLOAD * queue
    direct = _embedding(model.encode_video(clips))
    with milnce.Batcher(model, max_queue=queue, max_delay_ms=0.0) as batcher:
        accelerator.go_on.clear()
        for _ in range(2):  # one runs and one is handed over, so that the lane takes no more
            batcher.submit_video(clips[0])
            while batcher.stats().video.queued:
                time.sleep(0.001)
        futures, refused = callers.burst(
            lambda number: batcher.submit_video(clips[number % len(clips)]), callers=16, requests=sent
        )
        accelerator.go_on.set()
        answers = [(number % len(clips), future.result().embedding) for number, future in futures]
    row = {"name": "burst on a held accelerator", "subject": "burst", "sent": sent, "queue": queue}
    return {**row, "refused": refused, "expected": sent - queue, "answered": len(answers), **_checked(answers, direct)}


def _overload(model: milnce.Model, clips: Clips, full_per_s: float) -> dict[str, Any]:
    """Return what becomes of clips that come four times as fast as they can be run."""
    direct = _embedding(model.encode_video(clips))
    queue = 16
    rate_per_s = _OVERLOAD * full_per_s
    requests = _OVERLOAD * 3 * queue
    with milnce.Batcher(model, max_queue=queue) as batcher:
        run = callers.open_loop(batcher, list(clips), rate_per_s=rate_per_s, requests=requests)
        stats = batcher.stats().video
    row: dict[str, Any] = {"name": f"model, {_OVERLOAD}x overload", "subject": "overload", "sent": requests}
    row |= {"refused": run.refused, "answered": stats.answered, "queue": queue, **_checked(run.answers, direct)}
    if stats.answered + run.refused != requests:
        row["failures"].append(f"{requests - stats.answered - run.refused} of {requests} requests are lost")
    if not row["failures"]:
        row |= {"clips_per_s": stats.answered / run.seconds, "full_per_s": full_per_s}
        row["latency"] = _percentiles(run.latencies_s)
    return row


def _text(model: milnce.Model, clips: Clips) -> dict[str, Any]:
    """Return how long a sentence takes alone, and while callers keep the video lane busy."""
    sentence, count = "open the door", 100
    rows = []
    with milnce.Batcher(model) as batcher:
        encode = {"batcher": partial(batcher.encode_text, sentence), "direct": partial(model.encode_text, sentence)}
        difference = float(np.abs(encode["batcher"]() - encode["direct"]()[0]).max())
        for name, action in encode.items():
            rows.append({"name": f"{name}, alone", "latency": _percentiles(callers.latencies_s(action, count))})
        with callers.Saturation(batcher, list(clips), _FROM_CALLERS):
            for name, action in encode.items():
                found = _percentiles(callers.latencies_s(action, count))
                rows.append({"name": f"{name}, {_FROM_CALLERS} callers of video", "latency": found})
    return {"sentence": sentence, "count": count, "difference": difference, "rows": rows}


def _targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for subject in ("model", "simulated"):
        shares = [
            row["share"]["median"]
            for row in rows
            if row["subject"] == subject and "share" in row and row["callers"] >= _FROM_CALLERS
        ]
        name = f"batcher: share of full-batch throughput, {_FROM_CALLERS} callers and more, {subject}"
        bound = "threads and locks between callers and backend, and callers that are slow to come back"
        found.append(harness.Target(name, _WANTED, min(shares, default=None), bound=bound))
    burst = next(row for row in rows if row["subject"] == "burst")
    wrong = abs(burst["refused"] - burst["expected"])
    found.append(harness.Target("batcher: refusals that differ from what has no room", 0, wrong, "lower"))
    return [target.to_json() for target in found]


def _checked(answers: Sequence[tuple[int, NDArray[np.float32]]], direct: NDArray[np.float32]) -> dict[str, Any]:
    """Return how far answers lie from those of direct calls, under the gate of FP32."""
    if not answers:
        return {"gate": FP32_GATE.name, "failures": ["nothing was answered"]}
    agreement = compare(direct[[index for index, _ in answers]], np.stack([row for _, row in answers]))
    return {"gate": FP32_GATE.name, "parity": agreement.to_json(), "failures": FP32_GATE.failures(agreement)}


def _embedding(found: Any) -> NDArray[np.float32]:  # noqa: ANN401 - a model's, or the simulated one's
    return np.asarray(getattr(found, "embedding", found))


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{percent}_s": percentile(values, percent) for percent in (50, 95, 99)}


def _seeded(bundle: Path) -> Path:
    from milnce_convert.convert import ExportOptions, export_seeded_bundle  # noqa: PLC0415 - which needs torch

    choices = ExportOptions(precisions=("fp32",), input_forms=("uint8",), parity_sizes=((16, 64, 64),))
    export_seeded_bundle(0, bundle, choices, progress=lambda stage: print(f"  {stage}"))
    return bundle


if __name__ == "__main__":
    main()
