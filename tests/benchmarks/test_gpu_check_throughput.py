"""Throughput of the GPU check on a simulated GPU: the batcher and the pipeline, each checked as it is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from gpucheck import tables, throughput
from gpucheck.record import ABSENT, ERROR, FAILED, MEASURED
from gpucheck.throughput import BATCHER, BATCHES, FILES
from helpers.gpu_events import events_of, spoil, swapped_clips
from milnce.batcher import Batcher
from milnce.model import Model

if TYPE_CHECKING:
    from gpucheck.settings import Settings

WAYS = {BATCHES, BATCHER, FILES}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it as small as tells something: two videos, eight clips."""
    monkeypatch.setattr(throughput, "VIDEOS", 2)
    monkeypatch.setattr(throughput, "CALLERS", 4)
    monkeypatch.setattr(throughput, "_CLIPS_A_CALLER", 2)


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return replace(settings, least_rounds=1, most_rounds=1)


@pytest.mark.usefixtures("simulated")
def test_callers_and_files_are_measured_beside_full_batches(quick: Settings) -> None:
    events = events_of(throughput.run, quick)
    assert {event["outcome"] for event in events} == {MEASURED}
    rows = {"onnxruntime fp16", "onnxruntime fp32"}
    assert {(event["data"]["row"], event["data"]["path"]) for event in events} == {
        (row, way) for row in rows for way in WAYS
    }
    for event in events:
        data = event["data"]
        assert data["parity"]["rows"] == data["clips"]
        assert data["gate"] == data["row"].split()[1]
        assert data["clips_per_s"] == pytest.approx(data["clips"] / data["median_s"])
        assert data["clips"] == 8 or data["path"] == FILES
        assert data["bundle"] == "tiny"
    page = tables.throughput(events)
    assert page.count("| tiny | onnxruntime fp32 |") == 3
    assert page.count("100%") >= 2  # full batches, of themselves


@pytest.mark.usefixtures("simulated")
def test_wrong_embeddings_get_no_throughput(quick: Settings) -> None:
    spoil(quick, swapped_clips)
    events = events_of(throughput.run, quick)
    outcomes = {(event["data"]["path"], event["outcome"]) for event in events}
    assert outcomes == {(BATCHES, FAILED), (BATCHER, FAILED), (FILES, MEASURED)}
    for event in events:
        assert ("median_s" in event["data"]) == (event["outcome"] == MEASURED)
    page = tables.throughput(events)
    assert "- no speed: tiny onnxruntime fp32, batcher: cosine" in page


@pytest.mark.usefixtures("simulated")
def test_the_pipeline_is_held_to_the_cpu(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_files = Model.embed_files

    def broken(self: Model, paths: Any, **options: Any) -> Any:  # noqa: ANN401
        for item in embed_files(self, paths, **options):
            factor = np.float32(2 if self.backend.device.startswith("cuda") else 1)
            yield replace(item, embedding=item.embedding * factor)

    monkeypatch.setattr(Model, "embed_files", broken)
    events = events_of(throughput.run, quick)
    assert {event["outcome"] for event in events if event["data"]["path"] == FILES} == {FAILED}
    assert {event["outcome"] for event in events if event["data"]["path"] != FILES} == {MEASURED}


@pytest.mark.usefixtures("simulated")
def test_files_that_the_cpu_cannot_embed_cost_their_row_alone(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(milnce, "load", refuse)
    events = events_of(throughput.run, quick)
    assert [event["detail"] for event in events if event["outcome"] == ERROR] == ["OSError: no space"]
    assert {event["data"]["path"] for event in events if event["outcome"] == MEASURED} == {BATCHES, BATCHER}


@pytest.mark.usefixtures("simulated")
def test_every_clip_comes_from_a_caller_of_its_own(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    submit = Batcher.encode_video

    def note(self: Any, clip: Any, **options: Any) -> Any:  # noqa: ANN401
        shapes.append(clip.shape)
        return submit(self, clip, **options)

    monkeypatch.setattr(Batcher, "encode_video", note)
    events_of(throughput.run, quick)
    assert set(shapes) == {(4, 16, 16, 3)}
    assert len(shapes) == 8 * 2 * 3  # clips; precisions; checked, warmed up and timed once


@pytest.mark.usefixtures("simulated")
def test_without_pyav_the_callers_are_measured_all_the_same(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "find_spec", lambda _: None)
    events = events_of(throughput.run, quick)
    (absent,) = [event for event in events if event["outcome"] == ABSENT]
    assert "PyAV decodes videos" in absent["detail"]
    assert {event["data"]["path"] for event in events if event["outcome"] == MEASURED} == {BATCHES, BATCHER}
    assert "- no speed: files: PyAV decodes videos" in tables.throughput(events)


def test_a_host_that_runs_nothing_says_so(quick: Settings) -> None:
    events = events_of(throughput.run, replace(quick, present=("cuda",)))
    assert [(event["outcome"], event["check"]) for event in events] == [(ABSENT, "throughput")]


@pytest.mark.usefixtures("simulated")
def test_what_raises_while_it_is_timed_is_a_failure(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = Model.encode_video, iter(range(1000))

    def fail_later(self: Model, clips: Any, **options: Any) -> Any:  # noqa: ANN401
        if next(calls) > 0:
            raise MemoryError("full")
        return encode(self, clips, **options)

    monkeypatch.setattr(throughput, "find_spec", lambda _: None)  # the pipeline calls it too
    monkeypatch.setattr(Model, "encode_video", fail_later)
    events = [event for event in events_of(throughput.run, quick) if event["data"].get("path") == BATCHES]
    assert [(event["outcome"], event["detail"]) for event in events] == [
        (FAILED, "MemoryError: full"),  # in the rounds
        (ERROR, "MemoryError: full"),  # at once, in the other precision
    ]
