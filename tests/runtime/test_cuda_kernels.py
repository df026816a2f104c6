"""Compiling and launching kernels: over stand-ins, and with the real NVRTC where it is installed (it needs no GPU)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cuda.bindings import driver as real_driver
from cuda.bindings import nvrtc as real_nvrtc

from helpers import fake_cuda, fake_kernels
from helpers.fake_kernels import FakeCompiler, FakeDriver, Status
from milnce import cuda_binding, cuda_kernels
from milnce.cuda import Cuda
from milnce.errors import CudaError, CudaUnavailableError
from milnce.video.nvdec_picture import KERNEL, Picture, source

if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY = 'extern "C" __global__ void nothing(int) {}'


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeCompiler, FakeDriver]]:
    gpu = fake_cuda.install(monkeypatch, gpus=[fake_cuda.FakeGpu(), fake_cuda.FakeGpu(compute_capability=(8, 0))])
    compiler, driver = fake_kernels.install(monkeypatch, gpu)
    yield compiler, driver
    assert compiler.alive == set(), "a program was not destroyed"
    gpu.check()


def test_a_kernel_is_compiled_once_for_each_gpu(fakes: tuple[FakeCompiler, FakeDriver]) -> None:
    compiler, driver = fakes
    first = cuda_kernels.kernel(Cuda(), source(), KERNEL)
    assert compiler.options == [b"--gpu-architecture=sm_90", b"--std=c++17"]
    assert cuda_kernels.kernel(Cuda(), source(), KERNEL) is first
    assert driver.modules == [source()]
    other = cuda_kernels.kernel(Cuda(1), source(), KERNEL)
    assert other is not first
    assert compiler.options[0] == b"--gpu-architecture=sm_80"
    assert len(driver.modules) == 2


def test_a_gpu_that_the_compiler_does_not_know_gets_what_its_driver_compiles(
    fakes: tuple[FakeCompiler, FakeDriver],
) -> None:
    compiler, _ = fakes
    cuda_kernels.compiled(source(), (12, 0))
    assert compiler.options[0] == b"--gpu-architecture=compute_90"


def test_a_source_that_does_not_compile_says_so_in_the_compiler_s_words(
    fakes: tuple[FakeCompiler, FakeDriver],
) -> None:
    compiler, driver = fakes
    compiler.refuse = 'milnce.cu(1): error: identifier "nope" is undefined'
    with pytest.raises(CudaError) as error:
        cuda_kernels.kernel(Cuda(), source(), KERNEL)
    assert str(error.value) == f"nvrtcCompileProgram failed: NVRTC_ERROR_COMPILATION: {compiler.refuse}"
    assert driver.modules == []
    compiler.refuse = None
    assert cuda_kernels.kernel(Cuda(), source(), KERNEL) is not None


def test_what_the_driver_refuses_is_named_with_its_words(fakes: tuple[FakeCompiler, FakeDriver]) -> None:
    _, driver = fakes
    with pytest.raises(
        CudaError, match=r"cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND \(500\): the words for CUDA_ERROR_NOT_FOUND"
    ):
        cuda_kernels.kernel(Cuda(), source(), "milnce_nothing")
    loaded = cuda_kernels.kernel(Cuda(), source(), KERNEL)
    driver.failure = Status.CUDA_ERROR_INVALID_VALUE
    cuda = Cuda()
    with cuda.stream() as stream, pytest.raises(CudaError, match=r"cuLaunchKernel failed: CUDA_ERROR_INVALID_VALUE"):
        loaded.launch(stream, Picture(), (1, 1), (32, 8))


def test_a_launch_makes_its_gpu_current(fakes: tuple[FakeCompiler, FakeDriver]) -> None:
    _, driver = fakes
    cuda = Cuda(1)
    loaded = cuda_kernels.kernel(cuda, source(), KERNEL)
    Cuda(0).activate()
    driver.failure = Status.CUDA_ERROR_INVALID_VALUE
    with cuda.stream() as stream:
        Cuda(0).activate()
        with pytest.raises(CudaError):
            loaded.launch(stream, Picture(), (1, 1), (32, 8))
        assert driver.cuda.device == 1


@pytest.mark.parametrize(("stand_in", "real"), [(FakeDriver, real_driver), (FakeCompiler, real_nvrtc)])
def test_the_stand_ins_take_what_the_bindings_take(stand_in: Any, real: Any) -> None:  # noqa: ANN401 - modules
    calls = [name for name in vars(stand_in) if name.startswith(("cu", "nvrtc")) and name != "cuda"]
    assert len(calls) >= 4
    counts = {
        "cuModuleLoadData": 1,
        "cuModuleGetFunction": 2,
        "cuGetErrorString": 1,
        "cuLaunchKernel": 11,
        "nvrtcCreateProgram": 5,
        "nvrtcCompileProgram": 3,
        "nvrtcGetSupportedArchs": 0,
    }
    for name in calls:
        signature = getattr(real, name).__doc__.splitlines()[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        depth, taken = 0, int(bool(inside))
        for character in inside:
            depth += {"[": 1, "]": -1}.get(character, 0)
            taken += character == "," and depth == 0
        if name in counts:
            assert taken == counts[name], signature
        else:
            assert taken in {1, 2}, signature


def test_without_the_library_the_compiler_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:  # noqa: ANN401 - what the binding returns
        raise RuntimeError('Failure finding "libnvrtc.so.13"\nNo such file')

    monkeypatch.setattr(real_nvrtc, "nvrtcVersion", missing)
    with pytest.raises(CudaUnavailableError) as error:
        cuda_binding.load_compiler()
    assert str(error.value) == (
        'NVIDIA\'s run-time compiler (NVRTC) does not load: Failure finding "libnvrtc.so.13"; '
        'pip install "milnce[nvdec]"'
    )


@pytest.fixture
def real_compiler() -> None:
    try:
        cuda_binding.load_compiler()
    except CudaUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("real_compiler")
def test_the_real_compiler_makes_the_picture_kernel_for_every_gpu_it_knows() -> None:
    for capability in ((7, 5), (8, 0), (9, 0)):
        assert cuda_kernels.compiled(source(), capability).startswith(b"\x7fELF")
    assert b".visible .entry milnce_picture" in cuda_kernels.compiled(source(), (99, 0))
    with pytest.raises(CudaError, match='identifier "nope" is undefined'):
        cuda_kernels.compiled(EMPTY.replace("{}", "{ nope; }"), (8, 0))
