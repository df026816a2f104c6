"""One suite over every backend: the numbers of NumPy, and clear refusals."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.tiny_bundle import tiny_clips
from milnce import backends
from milnce.backends import Backend, BackendChoice
from milnce.bundle import Bundle
from milnce.errors import BackendError, BackendUnavailableError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.tiny_bundle import Tiny

# Absolute, on outputs of the order of 10. FP32: both sides round each of some hundred sums. FP16: stem, table and
# first text layer are rounded to 11 bits. bf16: operands are rounded to 8 bits.
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 0.3}


@pytest.fixture(params=["openvino", "onnxruntime"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_graph(tiny: Tiny, name: str) -> Callable[..., Backend]:
    bundle = Bundle.open(tiny.path)

    def opened(
        module: str = "video", form: str | None = None, precision: str = "fp32", threads: int | None = None
    ) -> Backend:
        graph_precision = "fp16" if precision == "fp16" else "fp32"
        graph = bundle.graph(module, precision=graph_precision, input_form=form)
        choice = BackendChoice(name, "cpu", precision, "tests")
        return backends.open_graph(choice, bundle.read(graph), graph, threads=threads)

    return opened


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_video_gives_the_numbers_of_numpy(
    open_graph: Callable[..., Backend], tiny: Tiny, name: str, form: str, precision: str
) -> None:
    if precision not in available(name).precisions:
        pytest.skip(f"{name} has no {precision} on this machine")
    clips = tiny_clips(3, frames=6, size=18)
    feed = clips if form == "uint8" else clips.transpose(0, 4, 1, 2, 3).astype(np.float32) / np.float32(255)
    results = open_graph(form=form, precision=precision).run({"video": feed})
    embedding, mixed_5c = tiny.weights.video(clips)
    assert sorted(results) == ["mixed_5c", "video_embedding"]
    assert {array.dtype.name for array in results.values()} == {"float32"}
    np.testing.assert_allclose(results["video_embedding"], embedding, rtol=0, atol=TOLERANCE[precision])
    np.testing.assert_allclose(results["mixed_5c"], mixed_5c, rtol=0, atol=TOLERANCE[precision])
    if precision != "fp32":  # equal numbers would mean that the precision was not used
        assert np.abs(results["video_embedding"] - embedding).max() > TOLERANCE["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_text_gives_the_numbers_of_numpy(open_graph: Callable[..., Backend], tiny: Tiny, precision: str) -> None:
    tokens = np.array([[2, 4, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]], dtype=np.int64)
    result = open_graph("text", precision=precision).run({"tokens": tokens})["text_embedding"]
    np.testing.assert_allclose(result, tiny.weights.text(tokens), rtol=0, atol=TOLERANCE[precision])


def test_projection_gives_the_numbers_of_numpy(open_graph: Callable[..., Backend], tiny: Tiny) -> None:
    mixed_5c = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    result = open_graph("projection").run({"mixed_5c": mixed_5c})["video_embedding"]
    np.testing.assert_allclose(result, tiny.weights.project(mixed_5c), rtol=0, atol=TOLERANCE["fp32"])


def test_a_row_of_a_batch_equals_the_row_alone(open_graph: Callable[..., Backend]) -> None:
    clips = tiny_clips(5)
    backend = open_graph()
    batch = backend.run({"video": clips})["video_embedding"]
    singles = [backend.run({"video": clips[i : i + 1]})["video_embedding"][0] for i in range(5)]
    np.testing.assert_array_equal(batch, singles)  # exactly: clips run one at a time on a CPU


def test_sizes_may_change_from_call_to_call_and_back(open_graph: Callable[..., Backend], tiny: Tiny) -> None:
    backend = open_graph()
    for frames, size in [(4, 16), (8, 20), (6, 32), (4, 24), (4, 16), (8, 20)]:
        clips = tiny_clips(2, frames=frames, size=size, seed=size)
        result = backend.run({"video": clips})["mixed_5c"]
        np.testing.assert_allclose(result, tiny.weights.video(clips)[1], rtol=0, atol=TOLERANCE["fp32"])


def test_no_backend_keeps_the_callers_clips(open_graph: Callable[..., Backend]) -> None:
    backend = open_graph()
    clips = tiny_clips(1)
    kept = weakref.ref(clips)
    backend.run({"video": clips})
    del clips
    gc.collect()
    assert kept() is None


def test_any_memory_layout_gives_the_same_numbers(open_graph: Callable[..., Backend]) -> None:
    clips = tiny_clips(2)
    backend = open_graph()
    expected = backend.run({"video": clips})["video_embedding"]
    strided = np.repeat(clips, 2, axis=3)[:, :, :, ::2]
    read_only = clips.copy()
    read_only.flags.writeable = False
    for array in (strided, np.asfortranarray(clips), read_only):
        np.testing.assert_array_equal(backend.run({"video": array})["video_embedding"], expected)
    floats = np.random.default_rng(0).random((2, 12), dtype=np.float32)
    projection = open_graph("projection")
    np.testing.assert_array_equal(
        projection.run({"mixed_5c": floats.astype(">f4")})["video_embedding"],
        projection.run({"mixed_5c": floats})["video_embedding"],
    )


def test_results_are_the_callers_own(open_graph: Callable[..., Backend]) -> None:
    backend = open_graph("projection")
    first = backend.run({"mixed_5c": np.ones((1, 12), np.float32)})["video_embedding"]
    kept = first.copy()
    backend.run({"mixed_5c": np.zeros((1, 12), np.float32)})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # and writable


@pytest.mark.parametrize("module", ["video", "text"])
def test_eight_threads_get_the_answers_of_one(open_graph: Callable[..., Backend], module: str) -> None:
    backend = open_graph(module)
    if module == "video":
        feeds = [{"video": tiny_clips(1, size=16 + 2 * (i % 3), seed=i)} for i in range(24)]
    else:
        feeds = [{"tokens": np.full((1 + i % 3, 4), i % 10, dtype=np.int64)} for i in range(24)]
    expected = [backend.run(feed) for feed in feeds]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(backend.run, feeds))
    for result, right in zip(results, expected, strict=True):
        for key, value in right.items():
            np.testing.assert_array_equal(result[key], value)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_number(open_graph: Callable[..., Backend], tiny: Tiny, threads: int) -> None:
    clips = tiny_clips(2)
    result = open_graph(threads=threads).run({"video": clips})["mixed_5c"]
    np.testing.assert_allclose(result, tiny.weights.video(clips)[1], rtol=0, atol=TOLERANCE["fp32"])


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((1, 4, 16, 16, 3), np.float32), "video: dtype float32 given, uint8 expected"),
        (np.zeros((4, 16, 16, 3), np.uint8), r"video: rank 4 given, shape \(4, 16, 16, 3\)"),
        (np.zeros((1, 4, 17, 16, 3), np.uint8), "video: height is 17, .* expected height=16.. step 2"),
        (np.zeros((1, 2, 16, 16, 3), np.uint8), "video: frames is 2, .* expected frames=4.. step 2"),
        (np.zeros((0, 4, 16, 16, 3), np.uint8), "video: batch is 0"),
        (np.zeros((1, 4, 16, 16, 4), np.uint8), "video: axis 4 is 4, .* expected 3 in"),
        ([[1]], "video: a numpy.ndarray expected, list given"),
    ],
    ids=["dtype", "rank", "odd", "small", "empty", "channels", "list"],
)
def test_a_batch_that_does_not_fit_is_refused(open_graph: Callable[..., Backend], array: object, text: str) -> None:
    with pytest.raises(InputError, match=text):
        open_graph().run({"video": array})


def test_wrong_names_are_refused(open_graph: Callable[..., Backend]) -> None:
    with pytest.raises(InputError, match=r"inputs \['clip'\] given; the graph takes \['video'\]"):
        open_graph().run({"clip": tiny_clips(1)})


def test_a_closed_backend_says_so(open_graph: Callable[..., Backend], name: str) -> None:
    with open_graph("text") as backend:
        tokens = np.ones((1, 4), np.int64)
        assert backend.run({"tokens": tokens})["text_embedding"].shape == (1, 8)
    backend.close()
    with pytest.raises(BackendError, match=rf"{name}: text tokens fp32 \(text-fp32.onnx\) is closed; load the model"):
        backend.run({"tokens": tokens})


@pytest.mark.parametrize("model", [b"", b"not a model", "cut"], ids=["empty", "text", "cut"])
def test_what_is_no_model_is_a_backend_error_with_the_librarys_text(tiny: Tiny, name: str, model: bytes | str) -> None:
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("text")
    data = bundle.read(graph)[:-40] if isinstance(model, str) else model
    with pytest.raises(BackendError, match=rf"{name} cannot open text tokens fp32 \(text-fp32.onnx\).*: .+"):
        backends.open_graph(BackendChoice(name, "cpu", "fp32", "tests"), data, graph)


def test_a_failure_inside_onnxruntime_is_a_backend_error_with_its_text(tiny: Tiny) -> None:
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("text")
    backend = backends.open_graph(BackendChoice("onnxruntime", "cpu", "fp32", "tests"), bundle.read(graph), graph)
    text = r"onnxruntime failed to run text tokens fp32 .* with tokens \(1, 4\): .*indices element out of data bounds"
    with pytest.raises(BackendError, match=text):
        backend.run({"tokens": np.full((1, 4), 10_000, np.int64)})


def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tiny: Tiny, name: str) -> None:
    bundle = Bundle.open(tiny.path)
    graph, other = bundle.graph("text"), bundle.graph("projection")
    choice = BackendChoice(name, "cpu", "fp32", "tests")
    with pytest.raises(BackendError, match=r"has the inputs \['mixed_5c'\], the manifest says \['tokens'\]"):
        backends.open_graph(choice, bundle.read(other), graph)
    renamed = dataclasses.replace(graph, outputs=other.outputs)
    with pytest.raises(BackendError, match=r"has the outputs \['text_embedding'\], the manifest says"):
        backends.open_graph(choice, bundle.read(graph), renamed)


def test_cuda_is_refused_where_it_is_not(tiny: Tiny, name: str) -> None:
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("text")
    text = {
        "openvino": "openvino runs on cpu here, not on cuda; use device='cpu'",
        "onnxruntime": "there is no NVIDIA driver here; install it",
    }
    with pytest.raises(BackendUnavailableError, match=text[name]):
        backends.open_graph(BackendChoice(name, "cuda", "fp32", "tests"), bundle.read(graph), graph)


def test_a_cpu_refuses_what_only_a_gpu_has(open_graph: Callable[..., Backend], name: str) -> None:
    backend = open_graph()
    for options in ({"on_device": True}, {"cuda_stream": 7}):
        with pytest.raises(InputError, match=f"{name} runs on the CPU: on_device and cuda_stream need a model loaded"):
            backend.run({"video": tiny_clips(1)}, **options)


def test_submit_and_stream_give_what_run_gives(open_graph: Callable[..., Backend]) -> None:
    backend = open_graph()
    batches = [{"video": tiny_clips(count, seed=count)} for count in (2, 1, 3)]
    expected = [backend.run(feeds)["mixed_5c"] for feeds in batches]
    futures = [backend.submit(feeds) for feeds in batches]
    for found, future, streamed in zip(expected, futures, backend.stream(iter(batches)), strict=True):
        np.testing.assert_array_equal(future.result(timeout=0)["mixed_5c"], found)
        np.testing.assert_array_equal(streamed["mixed_5c"], found)
    with pytest.raises(InputError, match="dtype float64 given"):
        backend.submit({"video": np.zeros((1, 4, 16, 16, 3))})
    backend.close()
    assert isinstance(backend.submit(batches[0]).exception(), BackendError)


def test_openvino_that_would_compute_in_another_precision_is_refused(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino  # noqa: PLC0415 - patched here alone

    monkeypatch.setattr(openvino.CompiledModel, "get_property", lambda *_: openvino.Type.bf16)
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("text")
    with pytest.raises(
        BackendUnavailableError, match=r"openvino was asked to compute in f32 but would use bf16; .* precision='fp32'"
    ):
        backends.open_graph(BackendChoice("openvino", "cpu", "fp32", "tests"), bundle.read(graph), graph)


def test_openvino_keeps_the_last_two_sizes_compiled(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino  # noqa: PLC0415 - patched here alone

    compiled: list[list[int]] = []
    original = openvino.Core.compile_model

    def counted(self: object, model: openvino.Model, *arguments: object) -> object:
        compiled.append([int(axis) for axis in model.inputs[0].shape])
        return original(self, model, *arguments)

    monkeypatch.setattr(openvino.Core, "compile_model", counted)
    bundle = Bundle.open(tiny.path)
    graph = bundle.graph("video")
    backend = backends.open_graph(BackendChoice("openvino", "cpu", "fp32", "tests"), bundle.read(graph), graph)
    for size in (16, 18, 16, 18, 20, 18, 16):
        backend.run({"video": tiny_clips(2, size=size)})
    assert [shape[2] for shape in compiled] == [16, 18, 20, 16]
    assert {shape[0] for shape in compiled} == {1}


def test_openvino_sends_and_writes_no_usage_report(tmp_path: Path) -> None:
    script = (
        "import sys; from milnce import backends; backends.available(); "
        "print('openvino' in sys.modules, [m for m in sys.modules if m.startswith('openvino_telemetry')])"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "True []"
    assert list(tmp_path.rglob("*ga_cid*")) == []


def available(name: str) -> backends.Availability:
    return next(found for found in backends.available() if found.name == name)
