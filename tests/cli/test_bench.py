"""`milnce bench`: one table of what runs here, with parity beside every speed, and no speed for wrong outputs."""

from __future__ import annotations

import ctypes
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from milnce import bench
from milnce.bundle import Bundle
from milnce.machine import blas_threads, cores
from milnce_convert import bench_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]

DEMO = Path(__file__).parents[2] / "engines" / "demo"
DOCUMENT = [
    *("format_version", "bundle", "name", "digest", "machine", "settings", "reference", "video", "text", "left_out"),
]
FEW = ("--rounds", 1, "--frames", 4, "--size", 16)
ROW = {
    *("name", "backend", "device", "precision", "batch", "frames", "size", "gate", "parity", "failures", "error"),
    *("median_s", "p95_s", "p99_s", "minimum_s", "spread", "rounds", "seconds", "ms_an_item", "items_per_s", "speed"),
}


@pytest.fixture
def no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide PyTorch from the command."""
    monkeypatch.setattr(bench_bundle, "find_spec", lambda name: None if name == "torch" else find_spec(name))


@pytest.mark.usefixtures("no_pytorch")
def test_the_document_says_everything_once(run: Run, tiny: Tiny) -> None:
    ran = run("bench", tiny.path, "--json", "--batch", "1,2", *FEW)
    assert ran.code == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert list(document) == DOCUMENT
    assert document["format_version"] == 1
    assert document["settings"].pop("heap_kept") == hasattr(ctypes.CDLL(None), "mallopt")
    assert document["settings"] == {"rounds": 1, "threads": cores(), "blas_threads": blas_threads()}
    assert document["machine"]["cores"] >= 1
    assert document["reference"] == document["video"][0]["name"]
    assert not document["reference"].startswith("PyTorch")
    assert {(row["batch"], row["frames"], row["size"]) for row in document["video"]} == {(1, 4, 16), (2, 4, 16)}
    names = {row["name"] for row in document["video"]}
    assert {"onnxruntime fp32", "openvino fp32", "onnxruntime fp16"} <= names
    for row in document["video"]:
        assert row["failures"] or set(row) == ROW
        assert row["speed"] is None or row["speed"]["median"] > 0
    assert {row["batch"] for row in document["text"]} == {1, 256}
    assert document["text"][0]["name"] == "numpy fp32"
    assert "torch is not: pip install" in document["left_out"]["PyTorch"]
    assert "sentences" in ran.stderr


@pytest.mark.usefixtures("no_pytorch")
def test_the_table_has_a_row_each_and_says_what_is_not_here(run: Run, tiny: Tiny) -> None:
    ran = run("bench", tiny.path, "--backend", "onnxruntime", "--precision", "fp32", "--threads", 1, *FEW)
    assert ran.code == 0, ran.stderr
    assert "onnxruntime fp32 is 1; without PyTorch" in ran.stdout
    (row,) = [line for line in ran.stdout.splitlines() if line.strip().startswith("4x16x16")]
    assert "onnxruntime fp32" in row
    assert "1.00x" in row
    assert row.rstrip().endswith("reference")
    assert "openvino" not in ran.stdout
    assert "ms a sentence" in ran.stdout
    assert "not here: PyTorch: PyTorch is compared with where torch, onnx, onnxruntime are installed" in ran.stderr


@pytest.mark.usefixtures("no_pytorch")
def test_wrong_outputs_get_no_speed_and_a_failing_exit_code(
    run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = milnce.Model.encode_video

    def swap(self: milnce.Model, clips: Any, **options: Any) -> Any:  # noqa: ANN401
        found = encode(self, clips, **options)
        wrong = self.backend.name == "onnxruntime" and self.backend.precision == "fp32"
        return milnce.VideoEmbeddings(found.embedding[:, ::-1], found.mixed_5c) if wrong else found

    monkeypatch.setattr(milnce.Model, "encode_video", swap)
    ran = run("bench", tiny.path, "--precision", "fp32", *FEW)
    assert ran.code == 1
    (row,) = [line for line in ran.stdout.splitlines() if "onnxruntime fp32" in line and "4x16x16" in line]
    assert "fails the fp32 gate" in row
    assert "x " not in row.split("gate")[1]
    assert "onnxruntime fp32: cosine" in ran.stderr
    (sound,) = [line for line in ran.stdout.splitlines() if "openvino fp32" in line and "4x16x16" in line]
    assert "1.00x" in sound


def test_pytorch_comes_first_with_the_bundle_s_own_weights(run: Run) -> None:
    ran = run("bench", DEMO, "--json", "--backend", "onnxruntime", *FEW)
    assert ran.code == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert [row["name"] for row in document["video"]] == [
        *("PyTorch eager FP32", "PyTorch eager bf16", "onnxruntime fp32"),
    ]
    assert document["reference"] == "PyTorch eager FP32"
    first, rounded, exact = document["video"]
    assert first["speed"] == {"median": 1, "minimum": 1, "maximum": 1}
    errors = [1 - row["parity"]["centred_cosine"] for row in (exact, rounded)]
    assert errors[0] < 1e-6 < errors[1]
    assert exact["parity"]["identical"] is False
    assert document["text"][0]["name"] == "PyTorch eager FP32"
    assert all(row["failures"] == [] for row in document["text"])


def test_a_bundle_that_pytorch_cannot_be_made_of_is_measured_without(run: Run, tiny: Tiny) -> None:
    ran = run("bench", tiny.path, "--backend", "onnxruntime", "--precision", "fp32", *FEW)
    assert ran.code == 0, ran.stderr
    assert "not here: PyTorch: " in ran.stderr
    assert "no PyTorch tower can be made of video" in ran.stderr
    ran = run("bench", tiny.path, "--backend", "onnxruntime", "--precision", "fp32", "--no-pytorch", *FEW)
    assert ran.code == 0, ran.stderr
    assert "PyTorch" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--batch", "1,x"), "--batch 1,x given; whole numbers of at least 1 with commas between expected"),
        (("--frames", "0"), "--frames 0 given"),
        (("--size", ""), "--size  given"),
        (("--precision", "fp32,fp8"), "precision fp8 given; known are fp32, fp16"),
        (("--backend", "gpu"), "backend gpu given; known are"),
    ],
)
def test_wrong_options_are_refused_in_words(run: Run, tiny: Tiny, arguments: tuple[str, str], text: str) -> None:
    ran = run("bench", tiny.path, *arguments)
    assert ran.code == 2
    assert text in ran.stderr


def test_sizes_that_the_graph_does_not_take_are_an_error_of_every_row(run: Run, tiny: Tiny) -> None:
    ran = run("bench", tiny.path, "--backend", "onnxruntime", "--no-pytorch", "--size", "15", "--rounds", 1)
    assert ran.code == 2
    assert "height is 15" in ran.stderr


@pytest.mark.usefixtures("no_pytorch")
def test_without_fp32_asked_for_it_is_still_what_the_others_are_held_to(run: Run) -> None:
    ran = run("bench", DEMO, "--json", "--backend", "openvino", "--precision", "bf16", *FEW)
    document = json.loads(ran.stdout)
    assert [row["name"] for row in document["video"]] == ["openvino bf16"]
    (row,) = document["video"]
    assert row["parity"]["identical"] is False
    assert 1e-7 < 1 - row["parity"]["centred_cosine"] < 1e-2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--frames", 3), "clips of 3x64x64 given: frames is 3; expected"),
        (("--frames", "16,3"), "clips of 3x64x64 given: frames is 3; expected"),
        (("--size", 15), "height is 15; expected"),
        (("--size", 1_000_000), "clips of 16x1000000x1000000 given, which need"),
        (("--batch", 10**9), "batches of 1000000000 clips of 16x64x64 given, which need"),
    ],
)
def test_clips_that_cannot_be_are_refused_before_anything_is_measured(
    run: Run, options: tuple[object, ...], text: str
) -> None:
    ran = run("bench", DEMO, "--no-pytorch", "--backend", "onnxruntime", *options)
    assert ran.code == 2
    assert text in ran.stderr
    assert "in batches of" not in ran.stderr


@pytest.mark.usefixtures("no_pytorch")
def test_memory_that_is_not_there_is_said_in_words(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(bench_bundle, "moving_clips", refuse)
    ran = run("bench", tiny.path, "--backend", "onnxruntime", *FEW)
    assert ran.code == 2
    assert "batches of 1 clips of 4x16x16 given, for which there is no memory: Unable to allocate 9 GiB" in ran.stderr


@pytest.mark.usefixtures("no_pytorch")
def test_a_row_that_does_not_run_fails_the_command(run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = bench.measure

    def break_one(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        rows = measure(*arguments, **options)
        rows[-1]["error"] = "RuntimeError: no kernel"
        return rows

    monkeypatch.setattr(bench_bundle, "measure", break_one)
    ran = run("bench", tiny.path, "--backend", "onnxruntime", "--precision", "fp32", *FEW)
    assert ran.code == 1
    assert "does not run" in ran.stdout
    assert "RuntimeError: no kernel" in ran.stderr


def test_sentences_are_all_different_and_few_words_make_up_most_of_them() -> None:
    sentences = bench_bundle.sample_sentences(Bundle.open(DEMO))
    assert len(set(sentences)) == len(sentences) == max(bench_bundle.SENTENCE_BATCHES)
    words, counts = np.unique(" ".join(sentences).split(), return_counts=True)
    assert counts.max() > 5 * np.median(counts)
    assert not any(Bundle.open(DEMO).tokenizer().unknown(word) for word in words)
    assert sentences == bench_bundle.sample_sentences(Bundle.open(DEMO))


@pytest.mark.usefixtures("no_pytorch")
@pytest.mark.parametrize(
    ("own", "words"), [(3, "its BLAS has 3 threads, not 1"), (None, "as many threads as"), (1, "")]
)
def test_every_row_has_the_threads_asked_for_and_numpy_says_that_it_has_not(
    run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, own: int | None, words: str
) -> None:
    given: list[int | None] = []
    load = milnce.model.load

    def note(*arguments: Any, **options: Any) -> milnce.Model:  # noqa: ANN401
        given.append(options["threads"])
        return load(*arguments, **options)

    monkeypatch.setattr(bench_bundle, "load", note)
    monkeypatch.setattr("milnce.bench.load", note)
    monkeypatch.setattr(bench_bundle, "blas_threads", lambda: own)
    ran = run("bench", tiny.path, "--backend", "onnxruntime", "--precision", "fp32", "--threads", 1, *FEW)
    assert ran.code == 0, ran.stderr
    assert set(given) == {1}
    assert len(given) > 1
    assert words in ran.stderr
    assert ("its BLAS has" in ran.stderr) is bool(words)


def test_pytorch_has_the_threads_of_the_others(run: Run) -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert run("bench", DEMO, "--backend", "onnxruntime", "--precision", "fp32", *FEW).code == 0
        assert torch.get_num_threads() == cores()
    finally:
        torch.set_num_threads(before)


def test_a_backend_without_video_says_so_first_and_not_what_nobody_named(run: Run, tiny: Tiny) -> None:
    ran = run("bench", tiny.path, "--backend", "numpy", "--no-pytorch")
    assert ran.code == 1
    assert "as asked. numpy: it runs text" in ran.stderr
    assert "and no video, which is measured here" in ran.stderr
    assert "int8" not in ran.stderr


def test_the_help_names_the_gate(run: Run) -> None:
    assert "parity gate" in run("bench", "--help").stdout
