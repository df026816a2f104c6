"""Bundles, references and parity of the GPU check on a simulated GPU: right numbers pass, planted ones are found."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gpucheck import bundles, latency, memory, models, parity, plans, rtx
from gpucheck.record import ABSENT, ERROR, FAILED, PASSED, read_events
from gpucheck.settings import read_subjects
from helpers.gpu_events import events_of, one_word_off, scaled, spoil, swapped_clips
from milnce.backends import BackendChoice
from milnce.backends.gpu import GpuBackend
from milnce.errors import BackendError
from milnce_convert.reference import read

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.conftest import Tiny
    from gpucheck.settings import Settings
    from helpers.gpu_events import Outputs


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
    settings: Settings, change: Callable[[Outputs], Outputs], module: str, words: str
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


def test_parts_without_their_library_say_so(settings: Settings) -> None:
    bare = dataclasses.replace(settings, present=("cuda",))
    for part, words in (
        (parity, "neither TensorRT nor ONNX Runtime with CUDA is on this host"),
        (latency, "nothing on this host runs it on the GPU"),
        (memory, "neither TensorRT nor ONNX Runtime with CUDA is on this host"),
        (plans, "tensorrt builds plans, and it is not on this host"),
        (rtx, "tensorrt_rtx is not on this host"),
    ):
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


@pytest.mark.parametrize("installed", [True, False])
def test_with_a_bundle_and_its_reference_nothing_is_exported_or_computed(
    settings: Settings, tiny: Tiny, tmp_path: Path, installed: bool
) -> None:
    carried = shutil.copytree(tiny.bundle, tmp_path / "seeded-full-width")
    given = dataclasses.replace(settings, bundles=(str(carried),), references=(str(tiny.reference),))
    code = f"""
        import sys
        makers = ("torch", "onnx", "onnxruntime")
        if not {installed}:
            sys.modules.update(dict.fromkeys(makers))
        from pathlib import Path
        from gpucheck import bundles
        from gpucheck.record import Recorder
        from gpucheck.settings import Settings
        bundles.run(Settings.from_json(sys.argv[1]), Recorder(Path(sys.argv[2])))
        assert not [name for name in makers if sys.modules.get(name)]
    """
    paths = os.pathsep.join(
        str(Path(bundles.__file__).parents[2] / name) for name in ("benchmarks", "runtime", "convert")
    )
    command: list[str | Path] = [sys.executable, "-c", textwrap.dedent(code), given.to_json(), tmp_path / "events"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=True)
    (event,) = read_events(tmp_path / "events")[0]
    assert (event["outcome"], event["detail"]) == (PASSED, "")
    assert event["data"]["reference"] == read(tiny.reference).source
