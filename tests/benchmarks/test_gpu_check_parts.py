"""The parts of the GPU check on a simulated GPU: what is right passes, and what is planted is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gpucheck import bundles, latency, memory, models, parity, plans, rtx
from gpucheck.record import ABSENT, ERROR, FAILED, MEASURED, PASSED, Recorder, read_events
from gpucheck.rows import ON_GPU, RUN, STREAM
from gpucheck.settings import Subject, read_subjects, write_subjects
from helpers.tiny_bundle import write_tiny_bundle
from milnce.backends import BackendChoice
from milnce.backends.gpu import GpuBackend
from milnce.bundle import Bundle
from milnce.errors import BackendError
from milnce_convert.reference import Recipe, from_onnxruntime, read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.conftest import Tiny
    from gpucheck.record import Event
    from gpucheck.settings import Settings
    from helpers.fake_cuda import FakeCuda

    Run = Callable[[Settings, Recorder], None]

SAMPLING = {"preset": "milnce-native", "frames": 4, "size": 16}


def events_of(run: Run, settings: Settings) -> list[Event]:
    record = Recorder(settings.folder / "events.jsonl")
    run(settings, record)
    events, under_way = read_events(record.path)
    assert under_way is None
    return events


def spoil(settings: Settings, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Change the reference that the bundle under test is compared with."""
    (subject,) = read_subjects(settings)
    path = Path(subject.reference)
    found = read(path)
    copy = settings.folder / "spoilt.npz"
    write(copy, dataclasses.replace(found, outputs={**found.outputs, **change(dict(found.outputs))}))
    (settings.folder / "subjects.json").write_text(
        (settings.folder / "subjects.json").read_text("utf-8").replace(str(path), str(copy)), "utf-8"
    )


@pytest.mark.usefixtures("simulated")
def test_parity_checks_every_precision_form_and_bucket(settings: Settings) -> None:
    events = events_of(parity.run, settings)
    assert {event["outcome"] for event in events} == {PASSED}
    seen = {(event["data"]["precision"], event["data"]["form"], event["data"]["bucket"]) for event in events}
    forms = ("uint8", "float32", "tokens")
    assert seen == {(precision, form, size) for precision in ("fp16", "fp32") for form in forms for size in (1, 4)}
    for event in events:
        outputs = {"text_embedding"} if event["data"]["form"] == "tokens" else {"video_embedding", "mixed_5c"}
        assert set(event["data"]["outputs"]) == outputs
        assert all(figures["rows"] in (6, 12) for figures in event["data"]["outputs"].values())


@pytest.mark.usefixtures("simulated")
def test_every_bucket_is_run_in_batches_of_its_size(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = GpuBackend.run

    def spy(self: GpuBackend, feeds: Any, **options: Any) -> Any:  # noqa: ANN401
        sizes.append(len(next(iter(feeds.values()))))
        return run(self, feeds, **options)

    monkeypatch.setattr(GpuBackend, "run", spy)
    events_of(parity.run, settings)
    video, text = [1] * 12 + [4] * 3, [1] * 6 + [4, 2]
    assert sorted(sizes) == sorted(2 * (2 * video + text))  # two precisions, two forms of the clips


def swapped_clips(outputs: dict[str, Any]) -> Mapping[str, Any]:
    rows = outputs["video_embedding"].copy()
    rows[[0, 5]] = rows[[5, 0]]
    return {"video_embedding": rows}


def scaled(outputs: dict[str, Any]) -> Mapping[str, Any]:
    return {"mixed_5c": outputs["mixed_5c"] * np.float32(1.01)}


def one_word_off(outputs: dict[str, Any]) -> Mapping[str, Any]:
    rows = outputs["text_embedding"].copy()
    rows[2] = rows[3]
    return {"text_embedding": rows}


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize(
    ("change", "module", "words"),
    [
        (swapped_clips, "video", "video_embedding: cosine"),
        (scaled, "video", "mixed_5c: scale error"),
        (one_word_off, "text", "text_embedding: cosine"),
    ],
)
def test_parity_finds_what_is_wrong_at_every_bucket(
    settings: Settings, change: Callable[[dict[str, Any]], Mapping[str, Any]], module: str, words: str
) -> None:
    spoil(settings, change)
    for event in events_of(parity.run, settings):
        wrong = event["data"]["module"] == module
        assert event["outcome"] == (FAILED if wrong else PASSED), event["check"]
        assert (words in event["detail"]) == wrong


def test_another_winner_is_found_with_the_embeddings_of_either_tower() -> None:
    generator = np.random.default_rng(0)
    reference = {"text_embedding": generator.normal(size=(40, 8)), "video_embedding": generator.normal(size=(60, 8))}
    best = (reference["text_embedding"] @ reference["video_embedding"].T).argmax(axis=1)
    swapped = reference["video_embedding"].copy()
    swapped[[best[7], 0]] = swapped[[0, best[7]]]
    video = models.Candidate("onnxruntime", "fp16", "video", "uint8")
    assert parity.changed(video, reference, {"video_embedding": swapped}) == list(np.flatnonzero(best == best[7]))
    text = models.Candidate("onnxruntime", "fp16", "text", "tokens")
    turned = reference["text_embedding"].copy()
    turned[3] *= -1
    assert parity.changed(text, reference, {"text_embedding": turned}) == [3]
    assert parity.changed(text, reference, reference) == []


@pytest.mark.usefixtures("simulated")
def test_another_winner_fails_the_check(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "changed", lambda candidate, *_: [2] if candidate.module == "video" else [])
    for event in events_of(parity.run, settings):
        video = event["data"]["module"] == "video"
        assert event["outcome"] == (FAILED if video else PASSED)
        assert event["detail"] == ("sentences [2] have another best clip" if video else "")


@pytest.mark.usefixtures("simulated")
def test_a_candidate_that_cannot_be_opened_is_an_error_and_the_others_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = models.opened

    def refuse(settings: Settings, subject: Any, candidate: Any) -> Any:  # noqa: ANN401
        if candidate.precision == "fp16":
            raise RuntimeError("a library broke")
        return opened(settings, subject, candidate)

    monkeypatch.setattr(parity, "opened", refuse)
    events = events_of(parity.run, settings)
    for event in events:
        broken = event["data"]["precision"] == "fp16"
        assert event["outcome"] == (ERROR if broken else PASSED)
        assert event["detail"] == ("RuntimeError: a library broke" if broken else "")
        assert ("in refuse" in event["data"].get("traceback", "")) == broken
    assert len(events) == 3 + 6


@pytest.mark.usefixtures("simulated")
def test_another_backend_than_the_one_asked_for_is_not_taken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "select", lambda *_, **__: BackendChoice("onnxruntime", "cpu", "fp32", "tests"))
    for event in events_of(parity.run, settings):
        assert event["outcome"] == ERROR
        assert "was asked for and ('onnxruntime', 'cpu', 'fp32') runs" in event["detail"]


@pytest.mark.usefixtures("simulated")
def test_latency_measures_every_way_with_its_parity(settings: Settings) -> None:
    events = [event for event in events_of(latency.run, settings) if event["kind"] == "latency"]
    assert {event["outcome"] for event in events} == {MEASURED}
    seen = {(event["data"]["row"], event["data"]["path"], event["data"]["bucket"]) for event in events}
    rows = ("onnxruntime fp16", "onnxruntime fp32")
    assert seen == {(row, path, size) for row in rows for path in (RUN, STREAM, ON_GPU) for size in (1, 4)}
    for event in events:
        data = event["data"]
        assert data["parity"]["rows"] == 12
        assert data["parity"]["gate"] == data["row"].split()[1]
        assert 2 <= data["rounds"] <= 3
        assert 0 < data["least_s"] <= data["median_s"] <= data["p95_s"]
        assert data["clips"] == (
            data["bucket"] if data["path"] != STREAM else max(16, 64 // data["bucket"]) * data["bucket"]
        )
        assert data["clips_per_s"] == pytest.approx(data["clips"] / data["median_s"])
        assert data["full"] is False


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
    assert len(events) == 2 * 3 * 2
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


def test_parts_without_their_library_say_so(settings: Settings) -> None:
    bare = dataclasses.replace(settings, present=("cuda",))
    for part, words in (
        (parity, "neither TensorRT nor ONNX Runtime with CUDA is on this host"),
        (latency, "nothing on this host runs it on the GPU"),
        (memory, "neither TensorRT nor ONNX Runtime with CUDA is on this host"),
        (plans, "tensorrt builds plans, and it is not on this host"),
        (rtx, "tensorrt_rtx is not on this host"),
    ):
        (settings.folder / "events.jsonl").unlink(missing_ok=True)
        (event,) = events_of(part.run, bare)
        assert (event["outcome"], event["detail"]) == (ABSENT, words)


def test_a_bundle_is_verified_and_gets_its_reference(settings: Settings, tiny: Tiny) -> None:
    (settings.folder / "subjects.json").unlink()
    (event,) = events_of(bundles.run, settings)
    assert event["outcome"] == PASSED
    assert event["data"]["reference"].startswith("FP32 graphs, onnxruntime")
    assert event["data"]["clips"] == 12
    (subject,) = read_subjects(settings)
    assert (subject.name, subject.path) == ("tiny", str(tiny.bundle))
    assert np.array_equal(read(Path(subject.reference)).outputs["mixed_5c"], read(tiny.reference).outputs["mixed_5c"])


def test_a_reference_of_another_model_is_passed_over_and_one_is_made(settings: Settings) -> None:
    other = bundles.COMMITTED / "demo.npz"
    (event,) = events_of(bundles.run, dataclasses.replace(settings, references=(str(other),)))
    assert event["outcome"] == PASSED
    assert "demo.npz: the reference is of the model" in event["detail"]
    assert "PyTorch: " in event["detail"]  # the tiny bundle has no seed
    assert event["data"]["clips"] == settings.clips  # made here


def test_without_anything_to_compare_with_a_bundle_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BackendError("onnxruntime is not here")

    monkeypatch.setattr("milnce_convert.reference.from_onnxruntime", refuse)
    failed, error = events_of(bundles.run, dataclasses.replace(settings, references=()))
    assert failed["outcome"] == FAILED
    assert failed["detail"].startswith("nothing to compare with: PyTorch: ")
    assert "ONNX Runtime on the CPU: onnxruntime is not here" in failed["detail"]
    assert error["detail"].endswith("carry a reference: --reference FILE")
    assert read_subjects(settings) == []


def test_a_reference_made_before_is_used_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = dataclasses.replace(settings, references=())
    (first,) = events_of(bundles.run, bare)
    monkeypatch.setattr("milnce_convert.reference.from_onnxruntime", lambda *_: pytest.fail("made anew"))
    (settings.folder / "events.jsonl").unlink()
    (second,) = events_of(bundles.run, bare)
    assert (first["outcome"], second["outcome"]) == (PASSED, PASSED)
    assert first["data"] == second["data"]
    assert "PyTorch: " in first["detail"]
    assert second["detail"] == ""


def test_a_damaged_bundle_is_an_error(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (event,) = events_of(bundles.run, dataclasses.replace(settings, bundles=(str(tmp_path),)))
    assert event["outcome"] == ERROR
    assert event["detail"].startswith("BundleError: ")
    assert read_subjects(settings) == []


def test_without_pytorch_the_demo_alone_is_checked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "find_spec", lambda name: None if name == "torch" else object())
    events = events_of(bundles.run, dataclasses.replace(settings, bundles=()))
    assert [(event["check"], event["outcome"]) for event in events] == [
        ("seeded-full-width", ABSENT),
        ("demo", PASSED),
    ]
    assert "torch not installed" in events[0]["detail"]
    assert "--bundle DIR" in events[0]["detail"]
    assert events[1]["data"]["clips"] == 70  # the committed reference
