"""The part that measures what many callers and many files get of a GPU, by the batcher and the pipeline."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import milnce
from gpucheck.models import Candidate, candidates, opened_model
from gpucheck.record import ABSENT, FAILED, MEASURED
from gpucheck.settings import Settings, Subject, read_subjects
from milnce.batcher import Batcher
from milnce.bundle import Bundle
from milnce.timing import interleaved
from milnce_convert.parity import compare
from milnce_convert.reference import read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpucheck.record import Recorder
    from milnce.model import Model

CALLERS = 16
VIDEOS = 8
BATCHES, BATCHER, FILES = "full batches", "batcher", "files"
_CLIPS_A_CALLER = 4
_BATCH = 8


def run(settings: Settings, record: Recorder) -> None:
    """Measure every backend and precision of every bundle."""
    work = {
        subject: [
            candidate
            for candidate in candidates(Bundle.open(subject.path), settings.present, modules=("video",))
            if candidate.form == "uint8"
        ]
        for subject in read_subjects(settings)
    }
    if not any(work.values()):
        record.add("throughput", "throughput", ABSENT, "neither TensorRT nor ONNX Runtime with CUDA is on this host")
        return
    with tempfile.TemporaryDirectory() as name:
        videos = make_videos(Path(name), record)
        for subject, found in work.items():
            expected = _embed_on_cpu(subject, videos, record)
            for candidate in found:
                check = f"{subject.name} {candidate}"
                with (
                    record.guarded("throughput", check, bundle=subject.name, row=_row(candidate)),
                    opened_model(settings, subject, candidate) as model,
                ):
                    _measure(settings, subject, candidate, model, record, videos, expected)


def make_videos(folder: Path, record: Recorder) -> list[Path]:
    """Write short videos of moving shapes, where PyAV is installed."""
    if find_spec("av") is None:
        record.add("throughput", FILES, ABSENT, "PyAV decodes videos, and it is not on this host; pip install av")
        return []
    from milnce_convert.demo.clips import CAPTIONS_FILE, write_set  # noqa: PLC0415 - needs PyAV
    from milnce_convert.demo.concepts import combinations  # noqa: PLC0415

    every = combinations()
    write_set(folder, every[:: max(1, len(every) // VIDEOS)][:VIDEOS], seed=0)
    return sorted(path for path in folder.iterdir() if path.name != CAPTIONS_FILE)


def _embed_on_cpu(subject: Subject, videos: Sequence[Path], record: Recorder) -> NDArray[np.float32] | None:
    """Return the embeddings of the videos' windows by ONNX Runtime in FP32 on the CPU, or None without them."""
    found = None
    if videos:
        with (
            record.guarded("throughput", f"{subject.name} {FILES}, on the CPU", bundle=subject.name, path=FILES),
            milnce.load(subject.path, backend="onnxruntime", device="cpu", precision="fp32") as model,
        ):
            found = embed_files(model, videos)
    return found


def embed_files(model: Model, videos: Sequence[Path]) -> NDArray[np.float32]:
    """Return the embeddings of all windows of the videos, in order.

    Raises:
        MilnceError: if a video fails.
    """
    rows = []
    for item in model.embed_files(videos, batch_size=_BATCH):
        if item.error is not None:
            raise item.error
        rows.append(item.embedding)
    return np.concatenate(rows)


def embed_from_callers(model: Model, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the embeddings of the clips, each submitted by itself by one of 16 callers that waits for its answer."""
    with Batcher(model, max_batch=_BATCH) as batcher, ThreadPoolExecutor(CALLERS) as callers:
        return np.stack(list(callers.map(lambda clip: batcher.encode_video(clip).embedding, clips)))


def _measure(
    settings: Settings,
    subject: Subject,
    candidate: Candidate,
    model: Model,
    record: Recorder,
    videos: Sequence[Path],
    from_cpu: NDArray[np.float32] | None,
) -> None:
    """Hold each way's embeddings to the gate, then time those that pass, in interleaved rounds."""
    reference = read(Path(subject.reference))
    distinct = reference.make_clips()
    count = CALLERS * _CLIPS_A_CALLER
    clips = np.resize(distinct, (count, *distinct.shape[1:]))
    wanted = np.resize(reference.outputs["video_embedding"], (count, reference.outputs["video_embedding"].shape[1]))
    ways: dict[str, tuple[Callable[[], NDArray[np.float32]], NDArray[np.float32]]] = {
        BATCHES: (lambda: model.encode_video(clips, batch_size=_BATCH).embedding, wanted),
        BATCHER: (lambda: embed_from_callers(model, clips), wanted),
    }
    if from_cpu is not None:
        ways[FILES] = (lambda: embed_files(model, videos), from_cpu)
    sound: dict[str, dict[str, Any]] = {}
    for way, (embed, expected) in ways.items():
        data: dict[str, Any] = {"bundle": subject.name, "row": _row(candidate), "path": way}
        data["gate"] = candidate.gate.name
        check = f"{subject.name} {_row(candidate)}, {way}"
        with record.guarded("throughput", check, **data):
            agreement = compare(expected, embed())
            failures = candidate.gate.failures(agreement)
            data |= {"parity": agreement.to_json(), "clips": len(expected)}
            if failures:
                record.add("throughput", check, FAILED, "; ".join(failures), **data)
            else:
                sound[way] = data
    times, errors = interleaved(
        {way: ways[way][0] for way in sound},
        rounds=settings.most_rounds,
        seconds=settings.bucket_s,
        least=min(settings.least_rounds, 3),
    )
    for way, data in sound.items():
        check = f"{subject.name} {_row(candidate)}, {way}"
        if way in errors:
            record.add("throughput", check, FAILED, errors[way], **data)
            continue
        figures = {key: value for key, value in times[way].to_json().items() if key != "seconds"}
        figures["clips_per_s"] = data["clips"] / figures["median_s"]
        record.add("throughput", check, MEASURED, **data, **figures)


def _row(candidate: Candidate) -> str:
    return f"{candidate.backend} {candidate.precision}"
