"""The part that builds TensorRT plans of every graph, those that tell most first."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gpucheck.models import Candidate, candidates, plans_of
from gpucheck.record import ABSENT, PASSED
from gpucheck.settings import Settings, Subject, read_subjects
from milnce.bundle import Bundle
from milnce_convert import plan as builder
from milnce_convert.plan_profiles import PlanSizes, Span

if TYPE_CHECKING:
    from gpucheck.record import Recorder


def run(settings: Settings, record: Recorder) -> None:
    """Build what is not there yet. Plans stay in the work folder, so that a second run goes on where this one ends."""
    logging.basicConfig(level=logging.WARNING)  # TensorRT's words go into the log of this part
    if "tensorrt" not in settings.present:
        record.add("plan", "plans", ABSENT, "tensorrt builds plans, and it is not on this host")
        return
    work = [
        (subject, candidate)
        for subject in read_subjects(settings)
        for candidate in candidates(Bundle.open(subject.path), ("tensorrt",), modules=("video", "text"))
    ]
    for subject, candidate in sorted(work, key=lambda item: (item[1].form == "float32", item[1].precision)):
        _build(settings, subject, candidate, record)


def _build(settings: Settings, subject: Subject, candidate: Candidate, record: Recorder) -> None:
    options = builder.PlanOptions(
        modules=(candidate.module,),
        precisions=(candidate.precision,),
        input_forms=(candidate.form,) if candidate.module == "video" else None,
        sizes=PlanSizes(batch=tuple(map(Span.fixed, settings.buckets))),
        settings=settings.builder,
    )
    check = f"{subject.name} {candidate}"
    data = {"bundle": subject.name, **vars(candidate), "tactic_sources": options.settings.tactic_sources}
    with record.guarded("plan", check, **data):
        for built in builder.build_plans(Bundle.open(subject.path), plans_of(settings, subject), options):
            found = built.plan
            record.add(
                "plan",
                check,
                PASSED,
                **data,
                file=found.file,
                library=f"{found.library} {found.library_version}",
                build_s=found.build_s,
                bytes=found.bytes,
                inspected=found.options.get("inspected"),
                note="kept from an earlier run" if built.kept else "",
            )
