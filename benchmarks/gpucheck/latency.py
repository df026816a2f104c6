"""The part that measures speed: every row in interleaved rounds, its parity beside it, no speed for wrong numbers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucheck.environment import smi
from gpucheck.models import candidates, opened
from gpucheck.record import ABSENT, ERROR, FAILED, LEFT_OUT, MEASURED
from gpucheck.rows import BackendSource, Row, Source, TorchSource
from gpucheck.settings import Settings, Subject, read_subjects
from gpucheck.torch_towers import torch_towers
from milnce.backends import CudaOptions
from milnce.bundle import Bundle
from milnce.timing import interleaved
from milnce_convert.parity import compare
from milnce_convert.reference import read
from milnce_convert.sample_inputs import moving_clips

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gpucheck.record import Recorder

_FIRST = (32, 1, 8)  # what tells most, in case time runs out
_TORCH_CLIPS = 8  # that the towers are compared with the CPU on
# ONNX Runtime's usual search for cuDNN algorithms, by rules, and the one that tries each.
_VARIANTS: dict[str, dict[str, CudaOptions | None]] = {
    "tensorrt": {"": None},
    "onnxruntime": {"": None, "exhaustive": CudaOptions(exhaustive_search=True)},
}
_FULL_FEATURES = 1024
_FULL_CLIP = (32, 224, 224)


def run(settings: Settings, record: Recorder) -> None:
    """Measure every bundle, those of the published width with the PyTorch towers beside them."""
    torch = "torch" in settings.present
    seen_full = False
    for subject in read_subjects(settings):
        full = is_full(Bundle.open(subject.path))
        seen_full |= full
        _measure_subject(settings, subject, record, torch=torch and full)
    if torch and not seen_full:
        with record.guarded("latency", "PyTorch alone", bundle="PyTorch alone"):
            clips = moving_clips(_TORCH_CLIPS, *_FULL_CLIP)
            measure(settings, "PyTorch alone", torch_sources(clips), record, full=True)
        measure_compiled(settings, "PyTorch alone", clips, record, full=True)


def is_full(bundle: Bundle) -> bool:
    """Whether the bundle's video tower has the published width."""
    widths = [
        spec.shape[1].size
        for graph in bundle.manifest.graphs
        if graph.module == "video"
        for spec in graph.outputs
        if spec.name == "mixed_5c"
    ]
    return _FULL_FEATURES in widths


def torch_sources(
    clips: NDArray[np.uint8], *, width: float = 1.0, device: str = "cuda", compiled: bool = False
) -> list[Source]:
    """Return the PyTorch towers' rows, over a few of the clips."""
    few = clips[:_TORCH_CLIPS]
    towers = torch_towers(width, device, compiled=compiled)
    expected = towers.reference(few)
    return [TorchSource(towers, mode, few, expected) for mode in towers.modes]


def measure_compiled(settings: Settings, name: str, clips: NDArray[np.uint8], record: Recorder, *, full: bool) -> None:
    """Measure what torch.compile makes of the tower, in the largest batches alone, as it compiles once for each.

    After all else, since compiling takes a minute, and the rows before it must not be lost to a part's time limit.
    """
    with record.guarded("latency", f"{name} torch.compile", bundle=name):
        sources = torch_sources(clips, compiled=True)
        measure(replace(settings, buckets=(max(settings.buckets),)), name, sources, record, full=full)


def _measure_subject(settings: Settings, subject: Subject, record: Recorder, *, torch: bool) -> None:
    bundle, reference = Bundle.open(subject.path), read(Path(subject.reference))
    clips, expected = reference.make_clips(), reference.outputs["video_embedding"]
    found = [
        candidate for candidate in candidates(bundle, settings.present, modules=("video",)) if candidate.form == "uint8"
    ]
    if not found and not torch:
        record.add("latency", subject.name, ABSENT, "nothing on this host runs it on the GPU")
        return
    with ExitStack() as stack:
        sources: list[Source] = []
        for candidate in found:
            for note, cuda in _VARIANTS[candidate.backend].items():
                with record.guarded("latency", f"{subject.name} {candidate} {note}".strip(), bundle=subject.name):
                    backend = stack.enter_context(opened(settings, subject, candidate, cuda=cuda))
                    sources.append(BackendSource(candidate, backend, clips, expected, note=note))
        if torch:
            with record.guarded("latency", f"{subject.name} PyTorch", bundle=subject.name):
                sources += torch_sources(clips)
        full = is_full(bundle) and clips.shape[1:4] == _FULL_CLIP
        measure(settings, subject.name, sources, record, full=full)
        if torch:
            measure_compiled(settings, subject.name, clips, record, full=full)


def measure(settings: Settings, name: str, sources: Sequence[Source], record: Recorder, *, full: bool) -> None:
    """Check and time every row of `sources` at every batch size; `full` says that the published bound applies."""
    ordered = sorted(settings.buckets, key=lambda bucket: (_FIRST.index(bucket) if bucket in _FIRST else 9, -bucket))
    record.add("clocks", f"{name} before", MEASURED, smi=smi())
    for bucket in ordered:
        rows = []
        for source in sources:
            label = f"{name} {source.name} in batches of {bucket}"
            with record.guarded("latency", label, bundle=name, row=source.name, bucket=bucket):
                rows += source.rows(bucket)
        verdicts = {row.key: _verdict(record, name, bucket, row) for row in rows}
        sound = {row.key: row.action for row in rows if verdicts[row.key] is not None}
        rounds = f"{name} in batches of {bucket}, rounds"
        record.start(rounds)
        times, errors = interleaved(
            sound, seconds=settings.bucket_s, least=settings.least_rounds, rounds=settings.most_rounds
        )
        record.leave(rounds)
        for row in rows:
            data: dict[str, Any] = {"bundle": name, "row": row.name, "path": row.path, "bucket": bucket, "full": full}
            check = f"{name} {row.key} in batches of {bucket}"
            if row.key in errors:
                record.add("latency", check, ERROR, errors[row.key], **data)
            elif row.key in times:
                data |= {key: value for key, value in times[row.key].to_json().items() if key != "seconds"}
                data |= {"clips": row.clips, "clips_per_s": row.clips / data["median_s"]}
                record.add("latency", check, MEASURED, **data, parity=verdicts[row.key])
    record.add("clocks", f"{name} after", MEASURED, smi=smi())


def _verdict(record: Recorder, name: str, bucket: int, row: Row) -> dict[str, Any] | None:
    """Return the agreement of a row's embeddings, or None if they fail the gate or cannot be had: then it is no row."""
    check = f"{name} {row.key} in batches of {bucket}: parity"
    data = {"bundle": name, "row": row.name, "path": row.path, "bucket": bucket, "gate": row.gate.name}
    with record.guarded("latency", check, **data):
        agreement = compare(row.expected, row.embed())
        failures = row.gate.failures(agreement)
        if not failures:
            return {"gate": row.gate.name, **agreement.to_json()}
        outcome = FAILED if row.ours else LEFT_OUT
        record.add("latency", check, outcome, "; ".join(failures), **data, parity=agreement.to_json())
    return None
