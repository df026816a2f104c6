"""The CUDA layer: which GPUs there are, what a call says when it fails, and the real bindings it is written for."""

from __future__ import annotations

import ast
import gc
import inspect
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cuda.bindings import runtime

import milnce.cuda
from helpers.cuda_use import roundtrip
from helpers.fake_cuda import FakeCuda, FakeGpu, install, writes
from milnce import cuda_binding
from milnce.cuda import Cuda, GpuInfo, call, gpus
from milnce.errors import (
    BackendUnavailableError,
    CudaError,
    CudaUnavailableError,
    DeviceMemoryError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


Error = runtime.cudaError_t
SOURCES = [Path(milnce.cuda.__file__).with_name(name) for name in ("cuda.py", "cuda_resources.py", "cuda_binding.py")]


@pytest.fixture
def unloaded() -> Iterator[None]:
    """Forget the bindings that were loaded, before and after."""
    cuda_binding.load.cache_clear()
    yield
    cuda_binding.load.cache_clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Simulate one GPU whose work waits until somebody waits for it; nothing may be wrong or left at the end."""
    fake = install(monkeypatch, policy="lazy")
    yield fake
    gc.collect()
    fake.check()


def test_a_gpu_is_described(fake: FakeCuda) -> None:
    assert gpus() == (
        GpuInfo(
            index=0,
            name="Fake GPU",
            compute_capability=(9, 0),
            total_bytes=1 << 30,
            driver_cuda=(13, 0),
            multi_processors=132,
        ),
    )
    assert Cuda().info == gpus()[0]
    assert fake.counts["cudaMalloc"] == 0


def test_several_gpus_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus=(FakeGpu("A", (8, 6), 1 << 20, 84), FakeGpu("B", (12, 0), 1 << 21, 170)))
    assert [(gpu.index, gpu.name, gpu.compute_capability, gpu.multi_processors) for gpu in gpus()] == [
        (0, "A", (8, 6), 84),
        (1, "B", (12, 0), 170),
    ]
    assert Cuda(1).info.total_bytes == 1 << 21
    assert Cuda(1).memory() == (1 << 21, 1 << 21)


@pytest.mark.parametrize("device", [-1, 1, 7])
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(fake: FakeCuda, device: int) -> None:
    with pytest.raises(CudaUnavailableError) as caught:
        Cuda(device)
    assert str(caught.value) == f"there is no GPU {device}; this process sees 1 (0: Fake GPU)"
    assert fake.counts["cudaSetDevice"] == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            Error.cudaErrorDevicesUnavailable,
            (
                "cudaErrorDevicesUnavailable (46): CUDA-capable device(s) is/are busy or unavailable; "
                "another program has the GPU for itself (nvidia-smi shows it and the compute mode)"
            ),
        ),
        (
            Error.cudaErrorMemoryAllocation,
            (
                "cudaErrorMemoryAllocation (2): out of memory; use smaller batches, or end other programs on the GPU "
                "(nvidia-smi lists them)"
            ),
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_unavailable(fake: FakeCuda, error: Any, words: str) -> None:  # noqa: ANN401
    fake.fail("cudaSetDevice", error=error)
    with pytest.raises(CudaUnavailableError) as caught:
        Cuda()
    assert str(caught.value) == f"GPU 0, Fake GPU, cannot be used: cudaSetDevice failed: {words}"


def test_without_a_driver_the_real_bindings_give_the_words_for_it() -> None:
    if runtime.cudaDriverGetVersion()[1] != 0:
        pytest.skip("this machine has an NVIDIA driver")
    for use in (gpus, Cuda):
        with pytest.raises(CudaUnavailableError) as caught:
            use()
        assert str(caught.value) == (
            "there is no NVIDIA driver here; install it, or give the container its GPUs (docker run --gpus all)"
        )


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, driver="absent")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # not the reason here
    with pytest.raises(CudaUnavailableError, match=r"^there is no NVIDIA driver here; install it, or give the"):
        gpus()


@pytest.mark.parametrize(
    ("driver", "name", "cure"),
    [
        (11040, "11.4", "update the driver"),
        (12040, "12.4", 'update the driver, or pip install "cuda-python==12.*"'),
    ],
)
def test_with_a_driver_older_than_the_bindings(
    monkeypatch: pytest.MonkeyPatch, driver: int, name: str, cure: str
) -> None:
    fake = install(monkeypatch, driver="old")
    monkeypatch.setattr(fake, "cudaDriverGetVersion", lambda: (Error.cudaSuccess, driver))
    with pytest.raises(BackendUnavailableError) as caught:
        gpus()
    assert str(caught.value) == (
        f"the NVIDIA driver runs CUDA {name} at most, and the installed CUDA bindings are for CUDA 13.0; {cure}"
    )


def test_with_a_driver_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, driver="no device")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(CudaUnavailableError) as caught:
        gpus()
    assert str(caught.value) == "the NVIDIA driver finds no GPU; nvidia-smi -L lists those it finds"


@pytest.mark.parametrize("visible", ["", "-1", "9"])
def test_with_every_gpu_hidden(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    install(monkeypatch, driver="no device")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(CudaUnavailableError) as caught:
        gpus()
    assert str(caught.value) == (
        f"no GPU is visible, and CUDA_VISIBLE_DEVICES is {visible!r}; unset it, or name a GPU of nvidia-smi -L"
    )


def test_a_driver_that_counts_no_gpu_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpus=())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(CudaUnavailableError, match="the NVIDIA driver finds no GPU"):
        gpus()


def test_a_forked_process_is_told_so(fake: FakeCuda) -> None:
    fake.fail("cudaGetDeviceCount", error=Error.cudaErrorInitializationError)
    with pytest.raises(CudaUnavailableError) as caught:
        gpus()
    assert str(caught.value) == (
        "cudaGetDeviceCount failed: cudaErrorInitializationError (3): initialization error; "
        "CUDA does not work in a forked process; start it with the 'spawn' method"
    )


@pytest.mark.usefixtures("unloaded")
def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    for use in (gpus, Cuda, milnce.cuda.binding):
        with pytest.raises(CudaUnavailableError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith("the CUDA bindings (cuda-python) are not installed (import of cuda.bindings halted; ")
        assert message.endswith('pip install "milnce[tensorrt]"')


@pytest.mark.usefixtures("unloaded")
def test_with_bindings_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr("cuda.bindings", Broken())
    monkeypatch.setitem(sys.modules, "cuda.bindings", Broken())
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime", raising=False)
    with pytest.raises(CudaUnavailableError) as caught:
        milnce.cuda.binding()
    assert str(caught.value).startswith("the CUDA bindings are installed and do not load: ")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("version", ["12.9.0", "12.8.0", "11.8.7"])
def test_with_bindings_that_are_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("cuda.bindings.__version__", version)
    with pytest.raises(CudaUnavailableError) as caught:
        milnce.cuda.binding()
    assert str(caught.value) == (
        f"the CUDA bindings are of version {version}, and 12.9.1 is the oldest that works here; "
        'pip install "cuda-python>=12.9.1"'
    )


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("version", ["12.9.1", "12.9.10", "13.0.0", "13.5.1.dev3", "14.0"])
def test_with_bindings_that_are_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("cuda.bindings.__version__", version)
    assert milnce.cuda.binding() is runtime


def test_importing_the_layer_imports_no_bindings() -> None:
    code = "import sys, milnce.cuda, milnce.device_arrays; assert 'cuda' not in sys.modules, sys.modules['cuda']"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_call_returns_nothing_a_value_or_several(fake: FakeCuda) -> None:
    assert call("cudaSetDevice", 0) is None
    assert call("cudaGetDevice") == 0
    assert call("cudaMemGetInfo") == (1 << 30, 1 << 30)
    assert fake.counts["cudaGetLastError"] == 0


def test_a_failed_call_is_named_in_the_words_of_the_driver(fake: FakeCuda) -> None:
    with pytest.raises(CudaError) as caught:
        call("cudaSetDevice", 5)
    assert str(caught.value) == "cudaSetDevice failed: cudaErrorInvalidDevice (101): invalid device ordinal"
    assert not isinstance(caught.value, MemoryError)
    assert fake.cudaGetLastError() == (Error.cudaSuccess,), "the error would come back from a later call"


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        ("cudaErrorInvalidResourceHandle", "with PyCUDA, use pycuda.autoprimaryctx in place of pycuda.autoinit"),
        ("cudaErrorDevicesUnavailable", "another program has the GPU for itself"),
        ("cudaErrorSystemNotReady", "systemctl status nvidia-fabricmanager"),
        ("cudaErrorSystemDriverMismatch", "the driver was updated while it ran: restart the machine"),
        ("cudaErrorStreamCaptureUnsupported", "run without CUDA graphs"),
        ("cudaErrorLaunchFailure", "the CUDA context of this process is lost: end the process and start a new one"),
        ("cudaErrorECCUncorrectable", "the CUDA context of this process is lost"),
    ],
)
def test_errors_with_a_known_cure_name_it(fake: FakeCuda, error: str, cure: str) -> None:
    cuda = Cuda()
    with cuda.stream() as stream:
        fake.fail("cudaStreamSynchronize", error=getattr(Error, error))
        with pytest.raises(CudaError) as caught:
            stream.synchronize()
    assert f"cudaStreamSynchronize failed: {error} ({int(getattr(Error, error))}): " in str(caught.value)
    assert cure in str(caught.value)


def test_every_cure_is_for_an_error_that_exists() -> None:
    assert {name for name in cuda_binding.CURES if not isinstance(getattr(Error, name, None), Error)} == set()
    assert len(cuda_binding.CURES) > 15


def test_memory_for_a_call_that_is_missing_is_a_memory_error(fake: FakeCuda) -> None:
    fake.fail("cudaStreamCreateWithFlags")
    with pytest.raises(DeviceMemoryError) as caught:
        Cuda().stream()
    assert str(caught.value) == (
        "cudaStreamCreateWithFlags failed: cudaErrorMemoryAllocation (2): out of memory; "
        "use smaller batches, or end other programs on the GPU (nvidia-smi lists them)"
    )


def test_the_real_bindings_have_every_function_and_constant_that_is_used() -> None:
    used = {
        node.value
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value.startswith("cuda") and node.value.isidentifier() and node.value[4].isupper()
    }
    used |= {
        node.attr
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda") and node.attr[4:5].isupper()
    }
    enums = (
        Error,
        runtime.cudaMemcpyKind,
        runtime.cudaMemoryType,
        runtime.cudaStreamCaptureMode,
        runtime.cudaDeviceAttr,
    )
    members = {name for enum in enums for name in enum.__members__}
    assert {name for name in used if not hasattr(runtime, name) and name not in members} == set()
    functions = {name for name in used if callable(getattr(runtime, name, None))}
    assert {"cudaMalloc", "cudaHostAlloc", "cudaGraphInstantiate", "cudaThreadExchangeStreamCaptureMode"} <= functions


def test_the_real_bindings_take_the_arguments_that_are_given(fake: FakeCuda) -> None:
    cuda = Cuda()
    roundtrip(cuda)
    made = {(one.name, len(one.args)) for one in fake.calls}
    assert len(made) > 25
    wrong = [
        f"{name} takes {inspect.signature(getattr(runtime, name))}, {count} given"
        for name, count in sorted(made)
        if len(inspect.signature(getattr(runtime, name)).parameters) != count
    ]
    assert wrong == []


def test_the_real_bindings_take_the_types_that_are_given(fake: FakeCuda) -> None:
    if runtime.cudaDriverGetVersion()[1] != 0:
        pytest.skip("this machine has an NVIDIA driver, which would use these addresses")
    roundtrip(Cuda())
    # A wrong type raises TypeError before the driver is looked for.
    answers = {one.name: getattr(runtime, one.name)(*one.args)[0] for one in fake.calls}
    runtime.cudaGetLastError()
    driverless = {name for name, error in answers.items() if error == Error.cudaSuccess}
    assert driverless == {"cudaDriverGetVersion"}
    assert {answers[name] for name in answers if name not in driverless} == {Error.cudaErrorInsufficientDriver}


def test_handles_are_integers(fake: FakeCuda) -> None:
    cuda = Cuda()
    with cuda.stream() as stream, cuda.event() as event, cuda.device_buffer(8) as buffer:
        assert {type(stream.handle), type(event.handle), type(buffer.pointer)} == {int}
        fake.launch(stream.handle, lambda: None, accesses=[writes(buffer.pointer, 8)])
        stream.synchronize()
