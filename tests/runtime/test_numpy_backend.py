"""NumPy as a backend: what it runs, when it is taken, what is said, and what is opened and loaded for it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

import milnce
from helpers.tiny_bundle import write_tiny_bundle
from milnce import backends
from milnce.backends import BackendChoice, numpy_text, onnxruntime, openvino, selection
from milnce.bundle import Bundle
from milnce.errors import BackendError, BackendUnavailableError, BundleError, InputError, NonFiniteError
from milnce.model import Model
from milnce.platforms import is_arm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.tiny_bundle import Tiny

# What ARM chooses, and refuses in FP16, has tests of its own (test_selection.py, test_onnxruntime_packages.py).
on_x86 = pytest.mark.skipif(is_arm(), reason="says what is chosen and offered on x86-64")

SENTENCES = ["cut the tomato", "Someone DON'T run!", "open door"]
CHOICE = BackendChoice("numpy", "cpu", "fp32", "tests")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look for a backend fail the test, and every library be missing."""

    def asked() -> object:
        pytest.fail("a backend was looked for")

    for module in (openvino, onnxruntime, backends.selection._module("tensorrt")):  # noqa: SLF001 - lazily imported
        monkeypatch.setattr(module, "probe", asked)
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)


def rewritten(bundle: Path, file: str, edit: Callable[[onnx.GraphProto], object]) -> None:
    """Change a graph of a bundle, and the manifest with it."""
    model = onnx.load_model_from_string((bundle / file).read_bytes())
    edit(model.graph)
    data = model.SerializeToString()
    (bundle / file).write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for graph in manifest["graphs"]:
        if graph["file"] == file:
            graph.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def doubled(graph: onnx.GraphProto) -> None:
    """Let the text graph give twice its numbers, by an operator more."""
    graph.node[-1].output[0] = "half"
    graph.node.append(helper.make_node("Add", ["half", "half"], ["text_embedding"]))


# What it runs


def test_probe_says_what_it_runs() -> None:
    found = numpy_text.probe()
    assert (found.name, found.version, found.devices) == ("numpy", np.__version__, ("cpu",))
    assert str(found) == f"numpy {np.__version__}: cpu in fp32, text and projection alone"


@pytest.mark.parametrize("view", [False, True])
def test_text_and_projection_give_the_towers_numbers(tiny: Tiny, view: bool) -> None:
    bundle = Bundle.open(tiny.path)
    read = bundle.view if view else bundle.read
    graphs = {module: bundle.graph(module) for module in ("text", "projection")}
    opened = {module: backends.open_graph(CHOICE, read(graph), graph) for module, graph in graphs.items()}
    tokens = np.array([[2, 4, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]])
    found = opened["text"].run({"tokens": tokens})
    np.testing.assert_allclose(found["text_embedding"], tiny.weights.text(tokens), rtol=0, atol=2e-5)
    mixed_5c = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    found = opened["projection"].run({"mixed_5c": mixed_5c})
    np.testing.assert_allclose(found["video_embedding"], tiny.weights.project(mixed_5c), rtol=0, atol=2e-5)
    assert all(backend.splits_itself for backend in opened.values())


def test_wrong_batches_and_closed_graphs_are_refused_as_by_any_backend(tiny: Tiny) -> None:
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("text")
    backend = backends.open_graph(CHOICE, bundle.read(graph), graph)
    last = bundle.manifest.vocabulary.words
    for wrong in (-1, last + 1):
        text = rf"tokens: id {wrong} given; ids are 0 \(padding\) to {last}, as the tokenizer gives them"
        with pytest.raises(InputError, match=text):
            backend.run({"tokens": np.array([[wrong]])})
        with pytest.raises(InputError, match=text):
            backend.submit({"tokens": np.array([[wrong]])})
    with pytest.raises(InputError, match="dtype float64 given, int64 expected"):
        backend.run({"tokens": np.zeros((1, 4))})
    with pytest.raises(InputError, match="words is 0"):
        backend.run({"tokens": np.zeros((1, 0), np.int64)})
    with pytest.raises(InputError, match="numpy runs on the CPU: on_device"):
        backend.run({"tokens": np.zeros((1, 4), np.int64)}, on_device=True)
    backend._tower = None  # type: ignore[attr-defined] # noqa: SLF001 - closed by another thread in the middle
    with pytest.raises(BackendError, match="was closed while in use; load the model again"):
        backend.run({"tokens": np.zeros((1, 4), np.int64)})
    backend.close()
    with pytest.raises(BackendError, match=r"numpy: text tokens fp32 .* is closed; load the model again"):
        backend.run({"tokens": np.zeros((1, 4), np.int64)})


@pytest.mark.parametrize("model", [b"", b"not a model", "cut"], ids=["empty", "text", "cut"])
def test_what_is_no_model_is_a_backend_error(tiny: Tiny, model: bytes | str) -> None:
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("text")
    data = bundle.read(graph)[:-40] if isinstance(model, str) else model
    with pytest.raises(BackendError, match=r"numpy cannot open text tokens fp32 \(text-fp32.onnx\): .+ not an ONNX"):
        backends.open_graph(CHOICE, data, graph)


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tiny: Tiny) -> None:
    bundle = Bundle.open(tiny.path)
    with pytest.raises(BackendError, match=r"has the inputs \['mixed_5c'\], the manifest says \['tokens'\]"):
        backends.open_graph(CHOICE, bundle.read(bundle.graph("projection")), bundle.graph("text"))


def test_numbers_that_are_not_finite_are_an_error(tiny: Tiny) -> None:
    with milnce.load(tiny.path, modules="projection") as model:
        text = "projection in fp32 on numpy gave NaN or infinity in video_embedding; the input, or the bundle's weights"
        with pytest.raises(NonFiniteError, match=text):
            model.project(np.full((1, 12), 3e38, np.float32))


# When it is taken


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("driver", [False, True])
@pytest.mark.parametrize("options", [{}, {"precision": "fp32"}, {"precision": "bf16"}, {"device": "cpu"}])
def test_sentences_alone_need_nothing_installed_and_no_look_at_the_gpu(
    tiny: Tiny, options: dict[str, Any], driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_driver_problem", lambda: None if driver else selection.NO_DRIVER)
    with milnce.load(tiny.path, modules=("text",), **options) as model:
        text = model.encode_text(SENTENCES)
        np.testing.assert_allclose(text, tiny.weights.text(model.tokenizer(SENTENCES)), rtol=0, atol=2e-5)
        assert str(model.choice_of("text")) == (
            f"numpy on cpu in fp32: version {np.__version__}, the text tower needs no other library on a CPU, and is "
            "exact in it"
        )
        assert model.backend is model.choice_of("text")
        assert repr(model) == f"Model('tiny', {model.backend})"
        assert set(model.running) == {"text"}


@pytest.mark.usefixtures("nothing_installed")
def test_a_model_for_nothing_yet_looks_for_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_driver_problem", lambda: selection.NO_DRIVER)
    with milnce.load(tiny.path, modules=()) as model:
        assert (model.chosen, model.running, model.precision) == (None, {}, "fp32")
        assert repr(model) == "Model('tiny', nothing opened)"
        assert model.project(np.ones((1, 12), np.float32)).shape == (1, 8)
        assert "the projection needs no other library" in str(model.chosen)
    with milnce.load(tiny.path, modules=(), precision="bf16") as model:
        assert model.precision == "bf16"


@on_x86
def test_beside_the_video_tower_on_a_cpu_it_runs_text_and_projection(tiny: Tiny) -> None:
    with milnce.load(tiny.path) as model:
        assert {module: choice.name for module, choice in model.running.items()} == {
            "video": "openvino",
            "text": "numpy",
        }
        assert model.choice_of("video") is model.backend
        assert model.choice_of("projection").name == "numpy"
        assert model.open("text").name == "numpy"
        assert model.precision == "fp32"


@on_x86
def test_a_model_for_sentences_gets_its_video_tower_when_it_is_used(tiny: Tiny) -> None:
    with milnce.load(tiny.path, modules="text") as model:
        assert model.backend.name == "numpy"
        model.encode_video(np.zeros((1, 4, 16, 16, 3), np.uint8))
        assert (model.backend.name, model.choice_of("text").name) == ("openvino", "numpy")
        assert repr(model).startswith("Model('tiny', openvino on cpu")


def test_bf16_is_the_video_towers_alone(tiny: Tiny) -> None:
    if "bf16" not in openvino.probe().precisions:
        pytest.skip("this CPU has no bf16")
    with milnce.load(tiny.path, precision="bf16") as model:
        assert (model.backend.precision, model.choice_of("text").precision) == ("bf16", "fp32")
        text = model.encode_text(SENTENCES)
        np.testing.assert_allclose(text, tiny.weights.text(model.tokenizer(SENTENCES)), rtol=0, atol=2e-5)


def test_fp16_is_what_is_asked_for(tiny: Tiny) -> None:
    for modules in ("text", ("video", "text")):
        with milnce.load(tiny.path, precision="fp16", modules=modules) as model:
            choice = model.choice_of("text")
            assert (choice.name, choice.precision) == ("openvino", "fp16")
            assert model.open("text").graph.precision == "fp16"
            assert model.choice_of("projection").name == "numpy"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_backend_asked_for_by_name_runs_all_modules(tiny: Tiny, backend: str) -> None:
    with milnce.load(tiny.path, backend=backend, modules="text") as model:
        assert model.choice_of("text") is model.backend
        assert model.choice_of("projection").name == backend
        assert model.open("text").name == backend


def test_a_chosen_backend_runs_all_modules(tiny: Tiny) -> None:
    choice = BackendChoice("onnxruntime", "cpu", "fp32", "tests")
    with Model(Bundle.open(tiny.path), choice) as model:
        assert (model.backend, model.choice_of("text")) == (choice, choice)


@pytest.mark.usefixtures("nothing_installed")
def test_by_name_it_runs_sentences_and_features(tiny: Tiny) -> None:
    with milnce.load(tiny.path, backend="numpy", modules=("text", "projection")) as model:
        assert str(model.backend) == f"numpy on cpu in fp32: version {np.__version__}, asked for by name"
        assert model.choice_of("text") is model.backend
        assert model.encode_text("cut").shape == (1, 8)
        with pytest.raises(
            BackendUnavailableError,
            match=r"backend numpy asked for; it runs text and projection, not video. .* backend=\"auto\" for video",
        ):
            model.encode_video(np.zeros((1, 4, 16, 16, 3), np.uint8))
        assert model.encode_text("cut").shape == (1, 8)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {},
            "backend numpy, .* cannot be had here. numpy on cpu: it runs text and projection alone; ask for modules=",
        ),
        ({"modules": "text", "precision": "fp16"}, "it computes in fp32 here, not in fp16"),
        ({"modules": "text", "device": "cuda"}, "numpy does not run on cuda"),
    ],
)
def test_by_name_what_it_cannot_is_refused(tiny: Tiny, options: dict[str, Any], text: str) -> None:
    with pytest.raises(BackendUnavailableError, match=text) as caught:
        milnce.load(tiny.path, backend="numpy", **options)
    if not options:  # of no use to who wants videos
        assert "numpy" not in str(caught.value).partition("Available: ")[2]


# Graphs that it does not know


@on_x86
def test_a_graph_of_another_form_is_run_by_another_backend_which_is_said(copied: Path, tiny: Tiny) -> None:
    rewritten(copied, "text-fp32.onnx", doubled)
    with milnce.load(copied, modules="text") as model:
        text = model.encode_text(SENTENCES)
        np.testing.assert_allclose(text, 2 * tiny.weights.text(model.tokenizer(SENTENCES)), rtol=0, atol=4e-5)
        choice = model.choice_of("text")
        assert choice.name == "openvino"
        sentence = (
            "numpy on cpu: it runs the text tower and the projection in fp32 alone, and text tokens fp32 "
            "(text-fp32.onnx) is neither, in fp32: Gather, MatMul, Relu, ReduceMax, Gemm, Add"
        )
        assert choice.passed_over[-1] == sentence
        assert choice.reason.endswith(sentence)
        assert "; passed over: " in choice.reason
        assert model.choice_of("text") is choice
        assert model.choice_of("projection").name == "numpy"
    with pytest.raises(BackendUnavailableError, match=r"backend numpy asked for; numpy on cpu: it runs the text"):
        milnce.load(copied, backend="numpy", modules="text")


@on_x86
def test_a_graph_of_another_form_without_another_backend_is_an_error(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(copied, "text-fp32.onnx", doubled)
    for module in (openvino, onnxruntime):
        missing = backends.Availability(module.NAME, None, problem="not installed")
        monkeypatch.setattr(module, "probe", lambda missing=missing: missing)
    with pytest.raises(BackendUnavailableError, match="openvino on cpu, onnxruntime on cpu: not installed"):
        milnce.load(copied, modules="text")


def test_a_bundle_with_fp16_text_alone_says_so(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", precisions=["fp16"])
    with pytest.raises(BackendUnavailableError, match="its text graphs in fp16"):
        milnce.load(tmp_path / "b", modules="text")
    with milnce.load(tmp_path / "b", modules="text", precision="fp16") as model:
        assert model.choice_of("text").name == "openvino"


def test_a_damaged_graph_is_an_error_and_no_reason_for_another_backend(copied: Path) -> None:
    data = (copied / "text-fp32.onnx").read_bytes()
    for damaged, text in ((data[:-1] + b"\0", "its sha256 is"), (data + b"\0", f"has {len(data) + 1} bytes")):
        (copied / "text-fp32.onnx").write_bytes(damaged)
        with pytest.raises(BundleError, match=rf"text-fp32\.onnx was changed or (damaged|cut): .*{text}"):
            milnce.load(copied, modules="text")
    (copied / "text-fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"text-fp32\.onnx cannot be read \(No such file"):
        milnce.load(copied, modules="text")


def test_a_file_that_changes_after_load_changes_no_number(copied: Path) -> None:
    with milnce.load(copied, modules="text") as model:
        before = model.encode_text(SENTENCES)
        with (copied / "text-fp32.onnx").open("r+b") as file:
            file.write(b"\0" * 50)
            file.truncate(100)
        np.testing.assert_array_equal(model.encode_text(SENTENCES), before)


# What is loaded


def test_sentences_alone_load_no_library_and_read_one_graph(tiny: Tiny) -> None:
    script = (
        "import sys, milnce; from milnce.bundle import Bundle; read = []\n"
        "for name in ('read', 'view'):\n"
        "    def noted(self, graph, original=getattr(Bundle, name)):\n"
        "        read.append(graph.file); return original(self, graph)\n"
        "    setattr(Bundle, name, noted)\n"
        f"model = milnce.load({str(tiny.path)!r}, modules='text'); model.encode_text('cut')\n"
        "print(model.backend.name)\n"
        "print(sorted({'openvino', 'onnxruntime', 'tensorrt', 'cuda', 'onnx', 'torch'} & set(sys.modules)), read)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["numpy", "[] ['text-fp32.onnx']"]


def test_sentences_are_handed_over_whole_and_in_batches_where_asked(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = SENTENCES * 200
    for backend, batch_size, sizes in (
        ("auto", None, [600]),
        ("auto", 256, [256, 256, 88]),
        ("onnxruntime", None, [256, 256, 88]),
    ):
        with milnce.load(tiny.path, backend=backend, modules="text") as model:
            seen: list[int] = []
            opened = model.open("text")
            run = opened._run  # type: ignore[attr-defined] # noqa: SLF001 - what the library is given

            def noted(feeds: dict[str, Any], run: Any = run, seen: list[int] = seen) -> Any:  # noqa: ANN401
                seen.append(len(feeds["tokens"]))
                return run(feeds)

            monkeypatch.setattr(opened, "_run", noted)
            found = model.encode_text(sentences, batch_size=batch_size)
            assert seen == sizes
        right = tiny.weights.text(model.tokenizer(sentences))
        np.testing.assert_allclose(found, right, rtol=0, atol=2e-5)
