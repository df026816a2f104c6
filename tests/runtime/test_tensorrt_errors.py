"""The TensorRT backend when something goes wrong, and at its end, over simulated TensorRT 8.5, 10 and RTX."""

from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cuda.bindings.runtime import cudaError_t

import milnce
from helpers.plan_machine import PlanMachine
from helpers.tiny_bundle import tiny_clips
from milnce.backends import CudaOptions
from milnce.cuda import Cuda
from milnce.errors import BackendError, CudaError, DeviceMemoryError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from helpers.fake_tensorrt import Flavour
    from helpers.tiny_bundle import Tiny

FLAVOURS: tuple[Flavour, ...] = ("8.5", "10", "rtx")
on_any_library = pytest.mark.parametrize("machine", FLAVOURS, indirect=True)


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path
) -> Iterator[PlanMachine]:
    made = PlanMachine(monkeypatch, tiny, tmp_path / "plans", getattr(request, "param", "10"))
    yield made
    made.close()


def assert_same(found: Any, expected: NDArray[np.float32]) -> None:  # noqa: ANN401 - an array of some library
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@on_any_library
def test_memory_that_is_exhausted_is_said_and_smaller_batches_run(machine: PlanMachine) -> None:
    clips = tiny_clips(8)
    expected = machine.tiny.weights.video(clips)[1]
    declared = machine.made(options=CudaOptions(slots=1, device_limit_bytes=20_000))
    small_gpu = machine.made()
    small_gpu.run({"video": clips[:2]})
    # The simulated GPU is filled up, but for what a batch of two needs.
    free, _ = Cuda().memory()
    with Cuda().device_buffer(free - 16_384):
        for backend, text in ((declared, "would pass the declared limit of 20,000"), (small_gpu, "free on GPU 0")):
            for _ in range(2):
                assert_same(backend.run({"video": clips[:2]})["mixed_5c"], expected[:2])
                with pytest.raises(DeviceMemoryError, match=text):
                    backend.run({"video": clips})
    assert_same(small_gpu.run({"video": clips})["mixed_5c"], expected)


@on_any_library
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("set_optimization_profile_async", "cannot take profile 0 of the plan .*: Error in set optim"),
        ("set_input_shape", r"cannot take video \(1, 4, 16, 16, 3\) with the plan"),
        ("set_tensor_address", "cannot take the address of video of the plan"),
        ("execute_async_v3", "cannot enqueue the plan"),
    ],
)
def test_what_the_library_refuses_is_said_with_its_own_words(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    backend = machine.made()

    def refuse(*_: object) -> bool:
        backend._engine._logger.log(machine.trt.ILogger.ERROR, "  the library says why ")  # noqa: SLF001
        if name.startswith("set_optimization"):
            raise RuntimeError("Error in set optimization profile async.")
        return False

    with monkeypatch.context() as patched:
        patched.setattr(machine.trt.IExecutionContext, name, refuse)
        for _ in range(2):  # and not with those of the time before
            with pytest.raises(BackendError, match=f"^{machine.trt.__name__} .* {text}.*: the library says why$"):
                backend.run({"video": tiny_clips(1)})
    assert_same(backend.run({"video": tiny_clips(1)})["mixed_5c"], machine.tiny.weights.video(tiny_clips(1))[1])


def test_a_library_without_memory_is_a_memory_error(machine: PlanMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = machine.made()

    def refuse(*_: object) -> bool:
        said = "Requested amount of GPU memory (1024 bytes) could not be allocated."
        backend._engine._logger.log(machine.trt.ILogger.ERROR, said)  # noqa: SLF001
        return False

    monkeypatch.setattr(machine.trt.IExecutionContext, "execute_async_v3", refuse)
    with pytest.raises(DeviceMemoryError, match=r"cannot enqueue .* could not be allocated"):
        backend.run({"video": tiny_clips(1)})


def test_numbers_that_are_none_are_an_error_of_the_model(machine: PlanMachine) -> None:
    machine.write("projection")
    with milnce.load(machine.bundle.path, plans=machine.plans, modules="projection") as model:
        with pytest.raises(NonFiniteError, match="projection in fp32 on tensorrt gave NaN or infinity"):
            model.project(np.full((2, 12), 3e38, np.float32))
        assert model.project(np.ones((2, 12), np.float32)).shape == (2, 8)


@on_any_library
def test_close_waits_for_what_is_under_way_and_frees_everything(machine: PlanMachine) -> None:
    backend = machine.made()
    clips = tiny_clips(5)
    futures = [backend.submit({"video": clips}) for _ in range(7)]
    backend.close()
    expected = machine.tiny.weights.video(clips)[1]
    for future in futures:
        assert_same(future.result(timeout=0)["mixed_5c"], expected)
    assert machine.fake.leaks() == {}
    backend.close()
    for call in (backend.run, backend.submit):
        with pytest.raises(BackendError, match=r"tensorrt: video uint8 fp32 .* is closed; load the model again"):
            call({"video": clips})


@on_any_library
def test_fifty_models_leave_nothing_behind(machine: PlanMachine) -> None:
    machine.write()
    machine.write("text")
    for _ in range(50):
        with milnce.load(machine.bundle.path, plans=machine.plans) as model:
            assert model.backend.name == "tensorrt"
            model.encode_video(tiny_clips(2))
            model.encode_text("cut the tomato")
        assert machine.fake.leaks() == {}


@on_any_library
def test_a_second_gpu_is_used_for_everything(machine: PlanMachine) -> None:
    machine.write(sidecar={} if machine.flavour == "rtx" else {"gpu": "Second GPU"})
    used = machine.fake.memory.used_bytes
    machine.fake.cudaSetDevice(0)  # the caller uses that one
    for turn in range(2):
        backend = machine.open(device="cuda:1", options=CudaOptions(slots=2))
        assert (backend.device, machine.fake.device, used[0]) == ("cuda:1", 0, 0)
        clips = tiny_clips(21, seed=turn)
        for _ in range(3):
            assert_same(backend.run({"video": clips})["mixed_5c"], machine.tiny.weights.video(clips)[1])
        for found in backend.stream({"video": clips} for _ in range(3)):
            assert_same(found["mixed_5c"], machine.tiny.weights.video(clips)[1])
        assert used[0] == 0 < used[1]
        backend.close()
        assert (machine.fake.device, used) == (0, [0, 0])


def test_an_error_that_loses_the_context_hangs_nothing(machine: PlanMachine) -> None:
    backend = machine.made()
    backend.run({"video": tiny_clips(1)})
    machine.fake.launch(backend._ring.compute.handle, lambda: machine.fake.view(8, 8))  # noqa: SLF001
    for _ in range(2):
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
            backend.run({"video": tiny_clips(1)})
    backend.close()
    machine.fake.finish()
    machine.fake.violations.clear()


# Any call may fail


def use_everything(machine: PlanMachine) -> None:
    """Open a plan, run it until it runs as a graph, in every way, and close it."""
    with machine.open(options=CudaOptions(slots=2)) as backend:
        for size in (2, 2, 2, 11):
            backend.run({"video": tiny_clips(size)})
        backend.submit({"video": tiny_clips(2)}).result(timeout=60)
        backend.run({"video": tiny_clips(2)}, on_device=True)


def said_by(work: Callable[[PlanMachine], None], machine: PlanMachine) -> str:
    """Return the text of the typed error that `work` ends with, "" for none."""
    try:
        work(machine)
    except BackendError as error:
        return str(error)
    return ""


# Where these fail something cannot be given back; nothing else may suffer from it.
FREES = {
    "cudaFree",
    "cudaFreeHost",
    "cudaEventDestroy",
    "cudaStreamDestroy",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_any_call_may_fail_and_what_comes_is_a_typed_error_and_no_leak(
    monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path, flavour: Flavour
) -> None:
    with monkeypatch.context() as patched:
        machine = PlanMachine(patched, tiny, tmp_path / "plans", flavour)
        machine.write()
        first = len(machine.fake.calls)
        use_everything(machine)
        every = Counter(call.name for call in machine.fake.calls[first:])
    del every["cudaStreamEndCapture"]  # the simulation would go on capturing, which CUDA never does
    raised = set()
    for name, count in every.items():
        # The first few, some in the middle, the last.
        for after in sorted({*range(min(count, 4)), *range(4, count, 9), count - 1}):
            with monkeypatch.context() as patched:
                machine = PlanMachine(patched, tiny, tmp_path / "plans", flavour)
                machine.fake.fail(name, after=after, error=cudaError_t.cudaErrorUnknown)
                if said_by(use_everything, machine):
                    raised.add(name)
                if name == "cudaSetDevice" and machine.fake.captures:  # which that leaves open, unless the GPU is lost
                    continue
                if machine.fake.leaks():
                    gc.collect()  # what the frames of the error held
                machine.fake.check(leaks=name not in FREES)
    # A batch whose graph cannot be captured runs without it.
    captures = {"cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaStreamIsCapturing"}
    assert set(every) - raised <= FREES | captures | {"cudaDriverGetVersion"}
