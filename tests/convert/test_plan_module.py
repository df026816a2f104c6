"""What each generation of TensorRT can do, asked of stand-ins and of the installed module, and which one builds."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from helpers import fake_builder, fake_cuda, fake_tensorrt
from helpers.fake_cuda import FakeGpu
from helpers.rtx import require_rtx
from milnce.errors import BackendUnavailableError, CudaUnavailableError, InputError, MissingDependencyError
from milnce_convert.plan_module import Capabilities, choose_toolkit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

H200 = FakeGpu(name="NVIDIA H200")
L4 = FakeGpu(name="NVIDIA L4", compute_capability=(8, 9))
TARGETS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def fake_module(monkeypatch: pytest.MonkeyPatch, generation: Any, **options: Any) -> ModuleType:  # noqa: ANN401 - a literal, and options of FakeCuda
    cuda = fake_cuda.install(monkeypatch, **options)
    flavour: Any = "8.5" if generation == "8.5" else "10"
    version = {"8.5": "8.5.3.1", "10": "10.13.3.9", "11": "11.1.0.106"}[generation]
    module = fake_tensorrt.install(monkeypatch, cuda, "tensorrt", flavour=flavour, version=version)
    fake_builder.add(module, generation)
    return module


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that hides modules."""

    def hide(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


def test_8_5_has_flags_where_later_ones_have_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Capabilities.of(fake_module(monkeypatch, "8.5")) == Capabilities(
        strongly_typed=False,
        typing_flag=False,
        explicit_batch_flag=True,
        reads_opset_18=False,
        int64=False,
        progress=False,
        optimization_level=False,
        hardware_compatibilities=("none",),
        version_compatible=False,
        timing_cache=True,
        compute_capabilities=(),
        default_targets=(),
        tactic_sources=("CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"),
        user_allocation=False,
    )


@pytest.mark.parametrize("generation", ["10", "11"])
def test_10_and_11_are_typed_by_the_graph(generation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    able = Capabilities.of(fake_module(monkeypatch, generation))
    assert able.strongly_typed
    assert able.typing_flag
    assert able.explicit_batch_flag is (generation == "10")
    assert (able.reads_opset_18, able.int64, able.progress, able.optimization_level) == (True,) * 4
    assert able.hardware_compatibilities == ("none", "same-compute-capability", "ampere-plus")
    assert (able.version_compatible, able.timing_cache, able.compute_capabilities) == (True, True, ())
    assert ("CUDNN" in able.tactic_sources) is (generation == "10")


def test_a_module_with_nothing_but_strong_typing_needs_no_flag_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_module(monkeypatch, "11")
    monkeypatch.setattr(module, "NetworkDefinitionCreationFlag", type("NetworkDefinitionCreationFlag", (), {}))
    able = Capabilities.of(module)
    assert (able.strongly_typed, able.typing_flag) == (True, False)


def test_the_installed_tensorrt_rtx_builds_ahead_of_time() -> None:
    able = Capabilities.of(require_rtx())
    assert (able.strongly_typed, able.int64, able.progress, able.user_allocation) == (True,) * 4
    assert able.compute_capabilities == TARGETS
    assert able.default_targets == TARGETS[1:]
    # It has names for these, and they do nothing, or not what they say.
    assert (able.timing_cache, able.version_compatible, able.hardware_compatibilities) == (False, False, ("none",))


def test_without_a_gpu_tensorrt_rtx_builds_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    require_rtx()
    fake_module(monkeypatch, "11", driver="absent")
    toolkit = choose_toolkit()
    assert (toolkit.library.name, toolkit.gpu) == ("tensorrt_rtx", None)
    assert str(toolkit).startswith(
        f"{toolkit.library}: it builds ahead of time, and no GPU is used here: there is no NVIDIA driver here"
    )


@pytest.mark.parametrize("name", [None, "tensorrt_rtx", "tensorrt"])
def test_a_gpu_that_is_asked_for_by_number_has_to_be_there(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, "11", driver="absent")
    with pytest.raises(CudaUnavailableError, match="GPU 1 asked for: there is no NVIDIA driver here"):
        choose_toolkit(name, device=1)


def test_on_a_gpu_tensorrt_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, "11", gpus=[L4, H200])
    toolkit = choose_toolkit(device=1)
    assert str(toolkit) == "tensorrt 11.1.0.106: it builds for NVIDIA H200, on it"
    assert (toolkit.gpu and toolkit.gpu.index, toolkit.trt.__name__) == (1, "tensorrt")
    assert str(choose_toolkit("tensorrt")) == "tensorrt 11.1.0.106: asked for by name"


def test_on_a_gpu_without_tensorrt_tensorrt_rtx_builds_for_those_it_knows(
    monkeypatch: pytest.MonkeyPatch, without: Callable[..., None]
) -> None:
    require_rtx()
    without("tensorrt")
    fake_cuda.install(monkeypatch, gpus=[L4, H200])
    assert "it builds for NVIDIA L4 and others, and tensorrt is not installed" in str(choose_toolkit())
    with pytest.raises(BackendUnavailableError) as caught:
        choose_toolkit(device=1)
    text = str(caught.value)
    assert "does not run on NVIDIA H200 (compute capability 9.0); it takes 7.5, 8.0, 8.6, 8.9, 12.0, 12.1. " in text
    assert 'tensorrt is not installed: pip install "milnce[tensorrt]"; to build for other machines ask for it' in text
    assert choose_toolkit("tensorrt_rtx", device=1).library.name == "tensorrt_rtx"


def test_what_is_missing_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, without: Callable[..., None]) -> None:
    without("tensorrt", "tensorrt_rtx", "tensorrt_lean")
    fake_cuda.install(monkeypatch, gpus=[H200])
    with pytest.raises(MissingDependencyError) as caught:
        choose_toolkit()
    assert str(caught.value) == (
        'tensorrt is not installed: pip install "milnce[tensorrt]" (this machine has NVIDIA H200)'
    )
    with pytest.raises(MissingDependencyError, match=r'^tensorrt_rtx is not installed: pip install "milnce\[rtx\]"$'):
        choose_toolkit("tensorrt_rtx")
    fake_cuda.install(monkeypatch, driver="absent")
    with pytest.raises(CudaUnavailableError) as refused:
        choose_toolkit()
    assert str(refused.value).startswith("plans of tensorrt are built on their GPU: there is no NVIDIA driver here")
    assert str(refused.value).endswith('To build without one: tensorrt_rtx is not installed: pip install "milnce[rtx]"')


def test_tensorrt_asked_for_by_name_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, "11", driver="absent")
    with pytest.raises(CudaUnavailableError, match=r"^plans of tensorrt are built on their GPU: there is no NVIDIA"):
        choose_toolkit("tensorrt")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, "11", gpus=[H200])
    with pytest.raises(CudaUnavailableError, match=r"^there is no GPU 3; this process sees 0: NVIDIA H200$"):
        choose_toolkit(device=3)


def test_libraries_that_cannot_build_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_module(monkeypatch, "11")
    with pytest.raises(InputError) as caught:
        choose_toolkit("tensorrt_lean")
    assert str(caught.value) == (
        "library 'tensorrt_lean' given; those that build plans are tensorrt, tensorrt_rtx; "
        "for that one build with tensorrt --version-compatible"
    )
    with pytest.raises(InputError, match=r"^library 'openvino' given; those .* are tensorrt, tensorrt_rtx$"):
        choose_toolkit("openvino")


def test_a_module_that_does_not_load_says_so(
    monkeypatch: pytest.MonkeyPatch,
    without: Callable[..., None],
    tmp_path: Any,  # noqa: ANN401 - a Path
) -> None:
    without("tensorrt_rtx", "tensorrt_lean")
    fake_cuda.install(monkeypatch, gpus=[H200])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"^tensorrt is installed but does not load \(libcudart\.so\.13"):
        choose_toolkit("tensorrt")


def test_plans_are_built_without_torch_and_onnx() -> None:
    for name in ("plan", "plan_engine", "plan_module", "plan_profiles", "plan_inspect", "plan_progress", "plan_weak"):
        import_module(f"milnce_convert.{name}")
    import subprocess  # noqa: PLC0415 - for this one test

    program = "import sys, milnce_convert.plan; print([n for n in ('torch', 'onnx', 'onnxscript') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
