"""Events of parts of the GPU check that run in this process, and references that are wrong on purpose."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucheck.record import Recorder, read_events
from gpucheck.settings import Subject, read_subjects, write_subjects
from milnce_convert.reference import read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpucheck.record import Event
    from gpucheck.settings import Settings

    Outputs = Mapping[str, Any]

# Clips of a tiny bundle that are quick to make.
SAMPLING = {"preset": "milnce-native", "frames": 4, "size": 16}


def events_of(run: Callable[[Settings, Recorder], None], settings: Settings) -> list[Event]:
    """Run a part and return the checks that it wrote down."""
    record = Recorder(settings.folder / "events.jsonl")
    record.path.unlink(missing_ok=True)
    run(settings, record)
    events, under_way = read_events(record.path)
    assert under_way is None
    return events


def spoil(settings: Settings, change: Callable[[Outputs], Outputs]) -> None:
    """Change the reference that the bundle under test is compared with."""
    (subject,) = read_subjects(settings)
    found = read(Path(subject.reference))
    path = settings.folder / "spoilt.npz"
    write(path, dataclasses.replace(found, outputs={**found.outputs, **change(found.outputs)}))
    write_subjects(settings, [Subject(subject.name, subject.path, str(path))])


def swapped_clips(outputs: Outputs) -> Outputs:
    """Swap the embeddings of two clips."""
    rows = outputs["video_embedding"].copy()
    rows[[0, 5]] = rows[[5, 0]]
    return {"video_embedding": rows}


def scaled(outputs: Outputs) -> Outputs:
    """Scale the features by 1%."""
    return {"mixed_5c": outputs["mixed_5c"] * np.float32(1.01)}


def one_word_off(outputs: Outputs) -> Outputs:
    """Give one sentence the embedding of another."""
    rows = outputs["text_embedding"].copy()
    rows[2] = rows[3]
    return {"text_embedding": rows}
