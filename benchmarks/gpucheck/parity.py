"""The part that holds every backend, precision, input form and bucket to the parity gates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucheck.models import Candidate, candidates, opened
from gpucheck.record import ABSENT, FAILED, PASSED
from gpucheck.settings import Settings, Subject, read_subjects
from milnce.bundle import Bundle
from milnce_convert.parity import changed_winners, compare
from milnce_convert.reference import Reference, as_input, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gpucheck.record import Recorder
    from milnce.backends import Backend
    from milnce_convert.parity import Gate

    Arrays = Mapping[str, NDArray[Any]]


def run(settings: Settings, record: Recorder) -> None:
    """Check every candidate of every bundle at every bucket."""
    for subject in read_subjects(settings):
        bundle, reference = Bundle.open(subject.path), read(Path(subject.reference))
        found = candidates(bundle, settings.present, modules=("video", "text"))
        if not found:
            record.add("parity", subject.name, ABSENT, "neither TensorRT nor ONNX Runtime with CUDA is on this host")
            continue
        check_subject(settings, subject, reference, found, record)


def check_subject(
    settings: Settings, subject: Subject, reference: Reference, found: list[Candidate], record: Recorder
) -> None:
    """Check the candidates of one bundle, each opened once and run at every bucket."""
    clips = reference.make_clips()
    for candidate in found:
        name = f"{subject.name} {candidate}"
        with (
            record.guarded("parity", name, bundle=subject.name, **vars(candidate)),
            opened(settings, subject, candidate) as backend,
        ):
            feeds = feeds_of(candidate, clips, reference)
            for bucket in settings.buckets:
                _check_bucket(record, subject, candidate, backend, feeds, reference, bucket)


def feeds_of(candidate: Candidate, clips: NDArray[np.uint8], reference: Reference) -> Arrays:
    """Return the whole input of a candidate, by name."""
    if candidate.module == "text":
        return {"tokens": reference.recipe.make_tokens()}
    return {"video": as_input(clips, candidate.form)}


def run_in_batches(backend: Backend, feeds: Arrays, size: int) -> Arrays:
    """Run all rows in batches of `size` and join the outputs."""
    count = len(next(iter(feeds.values())))
    parts = [
        backend.run({name: array[start : start + size] for name, array in feeds.items()})
        for start in range(0, count, size)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def judge(reference: Arrays, found: Arrays, gate: Gate) -> tuple[dict[str, Any], list[str]]:
    """Return each output's agreement with the reference, and what of it the gate refuses."""
    figures, failures = {}, []
    for name, rows in found.items():
        agreement = compare(reference[name], rows)
        figures[name] = agreement.to_json()
        failures += [f"{name}: {failure}" for failure in gate.failures(agreement)]
    return figures, failures


def changed(candidate: Candidate, reference: Arrays, found: Arrays) -> list[int]:
    """Return the sentences whose best clip is another one, ties left out, with the candidate's own embeddings."""
    name = f"{candidate.module}_embedding"
    tables = [
        rows["text_embedding"] @ rows["video_embedding"].T for rows in (reference, {**reference, name: found[name]})
    ]
    return changed_winners(tables[0], tables[1])


def _check_bucket(
    record: Recorder,
    subject: Subject,
    candidate: Candidate,
    backend: Backend,
    feeds: Arrays,
    reference: Reference,
    bucket: int,
) -> None:
    check = f"{subject.name} {candidate} in batches of {bucket}"
    data = {"bundle": subject.name, **vars(candidate), "bucket": bucket, "gate": candidate.gate.name}
    with record.guarded("parity", check, **data):
        found = run_in_batches(backend, feeds, bucket)
        figures, failures = judge(reference.outputs, found, candidate.gate)
        winners = changed(candidate, reference.outputs, found)
        if winners:
            failures.append(f"sentences {winners} have another best clip")
        outcome = FAILED if failures else PASSED
        record.add("parity", check, outcome, "; ".join(failures), **data, outputs=figures, changed_winners=winners)
