"""Speed and memory of the GPU check on a simulated GPU: measured by the way that is checked, or not at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gpucheck import latency, memory, models
from gpucheck.record import FAILED, MEASURED, PASSED
from gpucheck.rows import ON_GPU, RUN, STREAM, BackendSource
from gpucheck.settings import Subject, read_subjects, write_subjects
from helpers.gpu_events import SAMPLING, events_of, spoil, swapped_clips
from helpers.tiny_bundle import write_tiny_bundle
from milnce.backends.gpu import GpuBackend
from milnce.bundle import Bundle
from milnce_convert.reference import Recipe, from_onnxruntime, read, write

if TYPE_CHECKING:
    from gpucheck.settings import Settings
    from helpers.fake_cuda import FakeCuda

pytestmark = pytest.mark.alone


@pytest.mark.usefixtures("simulated")
def test_latency_measures_every_way_with_its_parity(settings: Settings) -> None:
    events = [event for event in events_of(latency.run, settings) if event["kind"] == "latency"]
    assert {event["outcome"] for event in events} == {MEASURED}
    seen = {(event["data"]["row"], event["data"]["path"], event["data"]["bucket"]) for event in events}
    rows = [f"onnxruntime {precision}{note}" for precision in ("fp16", "fp32") for note in ("", " exhaustive")]
    assert seen == {(row, path, size) for row in rows for path in (RUN, STREAM, ON_GPU) for size in (1, 4)}
    for event in events:
        data = event["data"]
        assert data["parity"]["rows"] == 12
        assert data["parity"]["gate"] == data["row"].split()[1]
        assert 2 <= data["rounds"] <= 3
        assert 0 < data["minimum_s"] <= data["median_s"] <= data["p95_s"]
        assert data["clips"] == (
            data["bucket"] if data["path"] != STREAM else max(16, 64 // data["bucket"]) * data["bucket"]
        )
        assert data["clips_per_s"] == pytest.approx(data["clips"] / data["median_s"])
        assert data["full"] is False


def test_inputs_on_the_gpu_are_timed_until_the_gpu_has_done(settings: Settings, simulated: FakeCuda) -> None:
    (subject,) = read_subjects(settings)
    reference = read(Path(subject.reference))
    candidate = models.Candidate("onnxruntime", "fp32", "video", "uint8")
    with models.opened(settings, subject, candidate) as backend:
        clips, expected = reference.make_clips(), reference.outputs["video_embedding"]
        source = BackendSource(candidate, backend, clips, expected)
        (row,) = [row for row in source.rows(4) if row.path == ON_GPU]
        for _ in range(3):
            before = len(simulated.calls)
            row.action()
            waits = [call.args[0] for call in simulated.calls[before:] if call.name == "cudaStreamSynchronize"]
            assert source.stream_handle in map(int, waits)


@pytest.mark.usefixtures("simulated")
def test_the_published_bound_is_for_the_published_width_and_clip_alone(settings: Settings, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "wide", sampling=SAMPLING, features=1024)
    wide, narrow = Bundle.open(tmp_path / "wide"), Bundle.open(settings.bundles[0])
    assert latency.is_full(wide)
    assert not latency.is_full(narrow)
    write(tmp_path / "wide.npz", from_onnxruntime(wide, Recipe.of(wide, clips=4)))
    write_subjects(settings, [Subject("wide", str(wide.path), str(tmp_path / "wide.npz"))])
    events = [event for event in events_of(latency.run, settings) if event["kind"] == "latency"]
    assert {(event["outcome"], event["data"]["full"]) for event in events} == {(MEASURED, False)}


@pytest.mark.usefixtures("simulated")
def test_latency_gives_no_speed_for_wrong_numbers(settings: Settings) -> None:
    spoil(settings, swapped_clips)
    events = [event for event in events_of(latency.run, settings) if event["kind"] == "latency"]
    assert len(events) == 2 * 2 * 3 * 2  # precisions, searches, ways, batch sizes
    for event in events:
        assert event["outcome"] == FAILED
        assert "centred cosine" in event["detail"]
        assert "median_s" not in event["data"]


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize("path", [RUN, STREAM, ON_GPU])
def test_each_way_is_checked_by_the_way_it_is_timed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    run, stream = GpuBackend.run, GpuBackend.stream

    def broken_run(self: GpuBackend, feeds: Any, **options: Any) -> Any:  # noqa: ANN401
        found = run(self, feeds, **options)
        on_gpu = not isinstance(feeds["video"], np.ndarray)
        if not on_gpu and path == RUN:
            return {name: values[::-1] * np.float32(2) for name, values in found.items()}
        if on_gpu and path == ON_GPU:
            return run(self, {"video": np.zeros(feeds["video"].shape, np.uint8)}, **options)
        return found

    def broken_stream(self: GpuBackend, batches: Any) -> Any:  # noqa: ANN401
        for outputs in stream(self, batches):
            yield {name: values * np.float32(2 if path == STREAM else 1) for name, values in outputs.items()}

    monkeypatch.setattr(GpuBackend, "run", broken_run)
    monkeypatch.setattr(GpuBackend, "stream", broken_stream)
    for event in events_of(latency.run, settings):
        if event["kind"] == "latency":
            assert (event["outcome"] == FAILED) == (event["data"]["path"] == path), event["check"]


@pytest.mark.usefixtures("simulated")
def test_memory_that_comes_back_passes(settings: Settings) -> None:
    events = events_of(memory.run, settings)
    assert [(event["data"]["backend"], event["data"]["precision"]) for event in events] == [
        ("onnxruntime", "fp16"),
        ("onnxruntime", "fp32"),
    ]
    for event in events:
        data = event["data"]
        assert event["outcome"] == PASSED
        assert data["free_before_bytes"] == data["free_after_bytes"]
        assert data["in_use_bytes"] > 0
        assert data["resident_after_bytes"] > 10 * 2**20
        assert data["cycles"] == 4


def test_memory_that_is_lost_is_found(settings: Settings, simulated: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    close = GpuBackend.close
    lost_a_cycle = memory.TOLERANCE_BYTES // 4 + 1

    def leak(self: GpuBackend) -> None:
        if not self._closed:
            simulated.cudaMalloc(lost_a_cycle)
        close(self)

    monkeypatch.setattr(GpuBackend, "close", leak)
    for event in events_of(memory.run, settings):
        assert event["outcome"] == FAILED
        assert event["detail"].startswith(f"{4 * lost_a_cycle:,} bytes of device memory did not come back")


def test_compiled_towers_are_measured_last_and_in_the_largest_batches_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[int, ...], bool]] = []

    def sources(_: object, *, compiled: bool = False) -> list[Any]:
        return ["compiled" if compiled else "eager"]

    def measure(used: Settings, name: str, found: list[Any], _: object, *, full: bool) -> None:
        asked.append((f"{name} {found[0]}", used.buckets, full))

    monkeypatch.setattr(latency, "torch_sources", sources)
    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr(latency, "moving_clips", lambda *_: np.zeros((8, 2, 2, 2, 3), np.uint8))
    write_subjects(settings, [])
    events_of(latency.run, dataclasses.replace(settings, present=("cuda", "torch")))
    assert asked == [("PyTorch alone eager", (1, 4), True), ("PyTorch alone compiled", (4,), True)]


def test_a_compiler_that_fails_loses_no_other_row(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def sources(_: object, *, compiled: bool = False) -> list[Any]:
        if compiled:
            raise RuntimeError("no Triton")
        return []

    monkeypatch.setattr(latency, "torch_sources", sources)
    monkeypatch.setattr(latency, "moving_clips", lambda *_: np.zeros((8, 2, 2, 2, 3), np.uint8))
    write_subjects(settings, [])
    events = events_of(latency.run, dataclasses.replace(settings, present=("cuda", "torch")))
    assert [event["detail"] for event in events if event["kind"] == "latency"] == ["RuntimeError: no Triton"]
