"""examples/pycuda_interop.py over a simulated GPU: the right scores, in the right order of streams, without a copy."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers import fake_pycuda
from helpers.fake_plans import fixed
from helpers.plan_machine import PlanMachine
from helpers.tiny_bundle import Tiny
from milnce.device_arrays import DeviceArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from helpers.fake_cuda import FakeCuda

EXAMPLE = Path(__file__).parents[2] / "examples" / "pycuda_interop.py"
SENTENCES = ["cut the tomato", "open a door", "nothing known"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pycuda_interop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[("lazy", 0), ("random", 1), ("random", 2)], ids=lambda policy: f"{policy[0]}{policy[1]}")
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, copied: Path
) -> Iterator[PlanMachine]:
    """Return a machine with PyCUDA and with plans of a tiny bundle, for the clips that it samples."""
    made = PlanMachine(monkeypatch, Tiny(copied, tiny.weights), copied / "plans", policy=request.param)
    sampling = made.bundle.manifest.sampling
    graph = made.bundle.graph("video", precision="fp32", input_form="uint8")
    item = (sampling["frames"], sampling["size"], sampling["size"], 3)
    made.write("video", "uint8", fixed(graph, item=item))
    made.write("text")
    fake_pycuda.install(monkeypatch, made.fake)
    yield made
    gc.collect()  # GPUArrays free their memory when nobody holds them
    made.close()


def test_the_program_prints_the_models_scores(
    example: ModuleType, machine: PlanMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main([str(machine.bundle.path), *SENTENCES[:2], "--clips", "3", "--backend", "tensorrt"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tensorrt on cuda in fp32")
    clips = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)
    tokens = machine.bundle.tokenizer()(SENTENCES[:2])
    weights = machine.tiny.weights
    expected = weights.text(tokens) @ weights.video(clips)[0].T
    for line, sentence, row in zip(lines[1:3], SENTENCES, expected, strict=False):
        name, _, scores = line.partition(": ")
        assert name == sentence
        np.testing.assert_allclose([float(score) for score in scores.split(", ")], row, atol=2e-3)
    assert float(lines[3].rpartition(" ")[2]) < 1e-4


def watch_waits(monkeypatch: pytest.MonkeyPatch, fake: FakeCuda) -> list[int]:
    """Return a list to which each wait for the GPU adds its thread from now on."""
    threads: list[int] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*args: object) -> Any:  # noqa: ANN401 - what the binding gives
            threads.append(threading.get_ident())
            return call(*args)

        return wait

    for name in ("cudaEventSynchronize", "cudaStreamSynchronize", "cudaDeviceSynchronize"):
        monkeypatch.setattr(fake, name, watched(getattr(fake, name)))
    return threads


def test_arrays_stay_on_the_gpu_and_in_the_callers_stream(
    example: ModuleType, machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, gpuarray = (importlib.import_module(f"pycuda.{name}") for name in ("driver", "gpuarray"))

    fake = machine.fake
    clips = np.random.default_rng(1).integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)
    with milnce.load(machine.bundle.path, backend="tensorrt", device="cuda", cuda=milnce.CudaOptions(slots=1)) as model:
        tokens = model.tokenizer(SENTENCES[:2])
        stream = driver.Stream()
        clips_there = gpuarray.to_gpu_async(clips, stream=stream)
        tokens_there = gpuarray.to_gpu_async(tokens, stream=stream)
        for _ in range(2):  # the first run of the only slot makes its context, the second captures a graph
            warm = example.embed_on_gpu(model, clips_there, tokens_there, stream)
            stream.synchronize()
        del warm
        crossings = transfers(fake)
        waits = watch_waits(monkeypatch, fake)
        video, text = example.embed_on_gpu(model, clips_there, tokens_there, stream)
        assert transfers(fake) == crossings  # nothing went to the host or came from it
        assert threading.get_ident() not in waits  # and this thread waited for nothing; one of milnce's may
        stream.synchronize()
        assert threading.get_ident() in waits  # as it is seen to do here
        np.testing.assert_allclose(video.get(), machine.tiny.weights.video(clips)[0], atol=1e-4)
        np.testing.assert_allclose(text.get(), machine.tiny.weights.text(tokens), atol=1e-4)


def test_a_gpuarray_over_a_result_is_the_result_and_keeps_it(example: ModuleType, machine: PlanMachine) -> None:
    with milnce.load(machine.bundle.path, backend="tensorrt", device="cuda", modules=()) as model:
        tokens = model.tokenizer(SENTENCES[:2])
        result = model.open("text").run({"tokens": tokens}, on_device=True)["text_embedding"]
        assert isinstance(result, DeviceArray)
        array = example.as_gpuarray(result)
        assert (array.ptr, array.shape, array.dtype) == (result.pointer, result.shape, result.dtype)
        del result
        gc.collect()
        np.testing.assert_allclose(array.get(), machine.tiny.weights.text(tokens), atol=1e-4)
        del array


def test_no_context_of_its_own_is_made(example: ModuleType) -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    code = source.replace(str(example.__doc__), "")
    assert "autoinit" not in code
    assert "make_context" not in code
    assert "pycuda.autoprimaryctx" in code


def transfers(fake: FakeCuda) -> int:
    """Return how many copies had one side on the host."""
    copies = [call.args for call in fake.calls if call.name in {"cudaMemcpyAsync", "cudaMemcpy"}]
    return sum(1 for args in copies if int(args[3]) in {1, 2})
