"""Which package owns the module onnxruntime, and whether its CUDA provider could start here."""

from __future__ import annotations

import ctypes
import sys
from importlib import invalidate_caches
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as library
import pytest

from helpers import fake_cuda, fake_onnxruntime
from milnce import backends
from milnce.backends import onnxruntime, openvino, selection
from milnce.backends.cuda_libraries import load_cuda_libraries
from milnce.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.tiny_bundle import Tiny


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return what installs a package that owns the module, in a folder that comes first on the path."""

    def made(folder: str, package: str) -> None:
        site = tmp_path / folder
        (site / "onnxruntime").mkdir(parents=True, exist_ok=True)
        (site / "onnxruntime" / "__init__.py").touch()
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"onnxruntime/__init__.py,,\n{info.name}/METADATA,,\n")
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
        invalidate_caches()

    return made


def test_a_package_that_another_folder_shadows_does_no_harm(install: Callable[[str, str], None]) -> None:
    install("first", "onnxruntime-gpu")  # onnxruntime itself is installed in the folder of this Python
    assert onnxruntime.owning_packages() == ["onnxruntime-gpu"]
    install("before", "onnxruntime")
    assert onnxruntime.owning_packages() == ["onnxruntime"]


def test_two_packages_in_one_folder_overwrite_each_other(install: Callable[[str, str], None]) -> None:
    install("one", "onnxruntime")
    install("one", "onnxruntime-gpu")
    assert onnxruntime.owning_packages() == ["onnxruntime", "onnxruntime-gpu"]
    assert "overwrite each other" in str(onnxruntime.probe().problem)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime be built for CUDA 13, on a machine with a GPU."""
    fake = fake_cuda.install(monkeypatch)
    fake_onnxruntime.install(monkeypatch, fake)
    monkeypatch.setattr(selection, "_driver_problem", lambda: None)
    monkeypatch.setattr(library, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(library, "__version__", "1.31.1")


@pytest.mark.usefixtures("with_cuda")
def test_a_provider_whose_libraries_are_missing_is_passed_over_by_name(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "load_cuda_libraries", lambda version: (f"libcublas of {version}",))
    found = onnxruntime.probe()
    assert found.devices == ("cpu",)
    problem = (
        'it was built for CUDA 13.0, and libcublas of 13.0 cannot be loaded: pip install "onnxruntime-gpu[cuda,cudnn]"'
    )
    assert found.gpu_problem == problem
    choice = backends.select()
    assert (choice.name, choice.device) == ("openvino", "cpu")
    assert f"onnxruntime on cuda: {problem}" in choice.reason
    with pytest.raises(BackendError, match=r"onnxruntime on cuda: it was built for CUDA 13.0, and libcublas"):
        backends.select("onnxruntime", "cuda")
    assert backends.select("onnxruntime").device == "cpu"
    assert tiny.path.exists()


@pytest.mark.usefixtures("with_cuda")
def test_a_provider_that_can_start_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "load_cuda_libraries", lambda _: ())
    assert onnxruntime.probe().devices == ("cpu", "cuda")
    assert onnxruntime.probe().gpu_problem is None
    choice = backends.select()
    assert (choice.name, choice.device) == ("onnxruntime", "cuda")


@pytest.mark.usefixtures("with_cuda")
def test_a_release_without_the_kernels_and_a_machine_without_a_gpu_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "load_cuda_libraries", lambda _: ())
    monkeypatch.setattr(library, "__version__", "1.26.0")
    text = (
        'version 1.26.0 lacks kernels for these graphs: pip install "onnxruntime-gpu>=1.27", '
        "which needs Python 3.11 or newer"
    )
    assert onnxruntime.probe().gpu_problem == text
    fake_cuda.install(monkeypatch, driver="absent")
    assert "no NVIDIA driver" in str(onnxruntime.probe().gpu_problem)
    assert onnxruntime.probe().usable
    assert openvino.probe().gpu_problem is None


def test_libraries_are_found_by_the_loader_or_in_nvidia_s_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    names = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
    for folder, held in (("one/nvidia/cu13/lib", names[:3]), ("two/nvidia/cudnn/lib", names[4:])):
        (tmp_path / folder).mkdir(parents=True)
        for name in held:
            (tmp_path / folder / name).touch()
        monkeypatch.syspath_prepend(tmp_path / folder.partition("/")[0])
    invalidate_caches()
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.delitem(sys.modules, "nvidia")

    def load(name: str, mode: int) -> None:
        assert mode == ctypes.RTLD_GLOBAL
        if name != "libcurand.so.10" and not (name.startswith("/") and name.endswith(names)):
            raise OSError(name)
        if name.startswith("/") and not (tmp_path / name).exists():
            raise OSError(name)
        loaded.append(name.rpartition("/")[2])

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert load_cuda_libraries("13.0") == ()
    assert tuple(loaded) == names
    (tmp_path / "two/nvidia/cudnn/lib/libcudnn.so.9").unlink()
    assert load_cuda_libraries("13.0") == ("libcudnn.so.9",)
    assert "libcufft.so.11" in load_cuda_libraries("12.8")
    for unknown in (None, "", "11.8", "next"):
        assert load_cuda_libraries(unknown) == ()


@pytest.mark.usefixtures("with_cuda")
@pytest.mark.parametrize(("capability", "taken"), [((8, 7), False), ((9, 0), True), ((11, 0), False), ((12, 1), True)])
def test_wheels_for_arm_are_taken_on_the_gpus_that_they_have_kernels_for(
    capability: tuple[int, int], taken: bool, install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("site", "onnxruntime-gpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", library)
    monkeypatch.setattr(onnxruntime, "load_cuda_libraries", lambda _: ())
    monkeypatch.setattr(onnxruntime, "is_arm", lambda: True)
    fake_cuda.install(monkeypatch, gpus=[fake_cuda.FakeGpu(compute_capability=capability)])
    assert onnxruntime.probe().gpu_problem is None  # built for this GPU by somebody, as far as its package says
    wheel = next(Path(sys.path[0]).glob("onnxruntime_gpu-*")) / "WHEEL"
    wheel.write_text("Wheel-Version: 1.0\nTag: cp312-cp312-manylinux_2_34_aarch64\n")
    problem = onnxruntime.probe().gpu_problem
    assert (problem is None) == taken
    if problem is not None:
        named = ".".join(map(str, capability))
        assert problem == (
            "its wheels for ARM have kernels for compute capability 8.9, 9.0, 12.0, 12.1, not for Fake GPU "
            f'({named}); run plans of TensorRT: pip install "milnce[tensorrt]"'
        )


@pytest.mark.usefixtures("with_cuda")
def test_an_arm_processor_that_adds_up_in_fp16_runs_fp16_graphs_on_its_gpu_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnxruntime, "load_cuda_libraries", lambda _: ())
    monkeypatch.setattr(onnxruntime, "arm_features", lambda: ("asimd", "asimdhp"))
    assert onnxruntime.probe().precisions == ("fp32", "fp16")
    assert backends.select("onnxruntime", "cuda", "fp16").precision == "fp16"
    text = "onnxruntime on cpu: it adds up in FP16 on this ARM processor.*precision='fp32'.*backend='openvino'"
    with pytest.raises(BackendError, match=text):
        backends.select("onnxruntime", "cpu", "fp16")
    assert backends.select("auto", "cpu", "fp16").name == "openvino"
    fake_cuda.install(monkeypatch, driver="absent")
    assert onnxruntime.probe().precisions == ("fp32",)
