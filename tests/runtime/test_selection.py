"""Which backend a bundle gets, why, and what is said when none will do."""

from __future__ import annotations

import builtins
import sys
from importlib import metadata
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest

import milnce
from helpers.tiny_bundle import write_tiny_bundle
from milnce import backends
from milnce.backends import Availability, onnxruntime, openvino, selection, tensorrt
from milnce.cuda import GpuInfo
from milnce.errors import BackendUnavailableError, InputError
from milnce.platforms import is_arm

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# What ARM chooses, and refuses in FP16, has tests of its own (test_selection.py, test_onnxruntime_packages.py).
on_x86 = pytest.mark.skipif(is_arm(), reason="says what is chosen and offered on x86-64")


WHOLE = {
    "tensorrt": Availability("tensorrt", None, problem='not installed: pip install "milnce[tensorrt]"'),
    "openvino": Availability("openvino", "2026.4", ("cpu",), ("fp32", "fp16", "bf16")),
    "onnxruntime": Availability("onnxruntime", "1.31", ("cpu",), ("fp32", "fp16")),
}


GPUS = tuple(GpuInfo(index, "NVIDIA Test", (9, 0), 2**30, (13, 0), 1) for index in range(2))
NO_DRIVER = "tensorrt on cuda, onnxruntime on cuda: there is no NVIDIA driver here (libcuda.so.1)"


def pretend(monkeypatch: pytest.MonkeyPatch, found: Iterable[Availability] = (), *, driver: bool = False) -> None:
    """Let the probes answer as on a machine where `found` differs from `WHOLE`."""
    answers = {**WHOLE, **{item.name: item for item in found}}
    monkeypatch.setattr(selection, "is_arm", lambda: False)
    monkeypatch.setattr(selection, "_driver_problem", lambda: None if driver else selection.NO_DRIVER)
    monkeypatch.setattr("milnce.cuda.gpus", lambda: GPUS)
    monkeypatch.setattr(tensorrt, "probe", lambda: answers["tensorrt"])
    monkeypatch.setattr(openvino, "probe", lambda: answers["openvino"])
    monkeypatch.setattr(onnxruntime, "probe", lambda: answers["onnxruntime"])


def test_auto_takes_openvino_in_fp32_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    choice = backends.select()
    assert (choice.name, choice.device, choice.precision) == ("openvino", "cpu", "fp32")
    assert choice.reason == (
        f"version 2026.4, the fastest exact backend in the measurements on x86-64; passed over: {NO_DRIVER}"
    )
    assert str(choice) == f"openvino on cpu in fp32: {choice.reason}"
    assert choice.passed_over == (NO_DRIVER,)
    assert backends.select(device="cpu").passed_over == ()
    assert backends.select(precision="bf16").reason.startswith("version 2026.4, the first that can do what was asked")


def test_auto_takes_onnxruntime_on_arm_and_claims_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setattr(selection, "is_arm", lambda: True)
    choice = backends.select()
    assert str(choice) == (
        f"onnxruntime on cpu in fp32: version 1.31, the exact backend with kernels for ARM; passed over: {NO_DRIVER}"
    )
    pretend(monkeypatch, [Availability("onnxruntime", None, problem="not installed: pip install it")])
    monkeypatch.setattr(selection, "is_arm", lambda: True)
    choice = backends.select(device="cpu")
    assert choice.name == "openvino"
    assert choice.reason.startswith("version 2026.4, the first that can do what was asked; passed over: onnxruntime on")


def test_auto_names_what_it_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [Availability("openvino", None, problem="not installed: pip install it")])
    choice = backends.select()
    assert choice.name == "onnxruntime"
    assert choice.passed_over == (NO_DRIVER, "openvino on cpu: not installed: pip install it")
    assert str(choice).endswith("; openvino on cpu: not installed: pip install it")


def test_asked_by_name_is_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    choice = backends.select("onnxruntime", "cpu", "fp16")
    assert str(choice) == "onnxruntime on cpu in fp16: version 1.31, asked for by name"


def test_bf16_is_taken_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    assert backends.select().precision == "fp32"
    assert backends.select(precision="bf16").name == "openvino"
    pretend(monkeypatch, [Availability("openvino", "2026.4", ("cpu",), ("fp32", "fp16"))])
    text = (
        f"backend auto, device auto, precision bf16 cannot be had here. {NO_DRIVER}; "
        "openvino on cpu, onnxruntime on cpu: it computes in fp32, fp16 here, not in bf16. "
        "Available: openvino 2026.4: cpu in fp32, fp16; onnxruntime 1.31: cpu in fp32, fp16"
    )
    with pytest.raises(BackendUnavailableError) as caught:
        backends.select(precision="bf16")
    assert str(caught.value) == text


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = Availability("onnxruntime", "1.31", ("cpu", "cuda"), ("fp32", "fp16"))
    pretend(monkeypatch, [on_gpu], driver=True)
    not_installed = 'tensorrt on cuda: not installed: pip install "milnce[tensorrt]"'
    for device, taken in (("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1")):
        choice = backends.select(device=device)
        assert (choice.name, choice.device, choice.precision, choice.plans) == ("onnxruntime", taken, "fp32", None)
        assert choice.passed_over == (not_installed,)
    assert backends.select(device="cpu").name == "openvino"
    assert backends.select("openvino").device == "cpu"
    assert backends.select("onnxruntime", "cpu").device == "cpu"


def test_cuda_that_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, driver=True)
    with pytest.raises(BackendUnavailableError, match=r"it runs on cpu here, not on cuda; install: .*milnce\[cuda\]"):
        backends.select("onnxruntime", "cuda")
    pretend(monkeypatch)
    with pytest.raises(BackendUnavailableError, match="onnxruntime on cuda: there is no NVIDIA driver here"):
        backends.select("onnxruntime", "cuda")
    with pytest.raises(BackendUnavailableError, match=r"cannot be had here. openvino does not run on cuda"):
        backends.select("openvino", "cuda")


def test_nothing_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [Availability(name, None, problem="not installed") for name in WHOLE])
    with pytest.raises(BackendUnavailableError, match=r'Available: none; pip install "milnce\[onnxruntime\]"'):
        backends.select()


def test_names_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(
        BackendUnavailableError, match="'tflite' asked for; backends are auto, tensorrt, openvino, onnx"
    ):
        backends.select("tflite")
    with pytest.raises(InputError, match="device 'gpu' given; devices are auto, cpu, cuda, cuda:1"):
        backends.select(device="gpu")
    with pytest.raises(InputError, match="precision 'int4' given; precisions are fp32, fp16, bf16, int8"):
        backends.select(precision="int4")


@on_x86
def test_a_bundle_without_the_precision_is_named(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", precisions=["fp32"])
    with pytest.raises(
        BackendUnavailableError, match=r"precision fp16 needs fp16 graphs; bundle '.*/b' has its video graphs in fp32"
    ):
        milnce.load(tmp_path / "b", precision="fp16", backend="onnxruntime")


def test_an_fp16_bundle_names_the_option_although_its_projection_is_fp32(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", precisions=["fp16"])
    text = (
        r"precision fp32 needs fp32 graphs; bundle '.*/b' has its video graphs in fp16. "
        r'Ask for that: load\(..., precision="fp16"\) or --precision fp16; or export the bundle again'
    )
    with pytest.raises(BackendUnavailableError, match=text):
        milnce.load(tmp_path / "b")
    with pytest.raises(BackendUnavailableError, match="its text graphs in fp16"):
        milnce.load(tmp_path / "b", modules="text")
    for precision in ("fp32", "fp16"):
        with milnce.load(tmp_path / "b", modules="projection", precision=precision) as model:
            assert model.project(np.zeros((1, 12), np.float32)).shape == (1, 8)
    with milnce.load(tmp_path / "b", precision="fp16") as model:
        assert model.encode_text("cut").shape == (1, 8)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_missing_package_is_a_problem_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(metadata, "distribution", refuse)
    found = {"openvino": openvino, "onnxruntime": onnxruntime}[name].probe()
    assert found.problem == f'not installed: pip install "milnce[{name}]"'
    assert (found.version, found.devices, found.usable) == (None, (), False)
    assert str(found) == f"{name}: {found.problem}"


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_package_that_does_not_load_is_told_from_a_missing_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def broken(module: str, *arguments: object, **options: object) -> object:
        if module == name:
            raise ImportError("libcore.so: cannot open shared object file")
        return original(module, *arguments, **options)  # type: ignore[arg-type] # passed on as it came

    monkeypatch.setattr(builtins, "__import__", broken)
    found = {"openvino": openvino, "onnxruntime": onnxruntime}[name].probe()
    assert found.problem is not None
    assert found.problem.startswith("installed but does not load (libcore.so: cannot open shared object file); rein")


def test_an_empty_folder_left_by_an_uninstall_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    assert onnxruntime.probe().problem == 'not installed: pip install "milnce[onnxruntime]"'


def test_two_packages_that_own_one_module_are_a_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "owning_packages", lambda: ["onnxruntime", "onnxruntime-gpu"])
    found = onnxruntime.probe()
    assert found.problem == (
        "onnxruntime and onnxruntime-gpu are installed together and overwrite each other; "
        "cure: pip uninstall -y onnxruntime onnxruntime-gpu, then install only the one you need"
    )
    with pytest.raises(BackendUnavailableError, match="are installed together and overwrite each other"):
        backends.select("onnxruntime")


def test_available_lists_each_backend_as_this_machine_has_it() -> None:
    found = backends.available()
    assert [item.name for item in found] == ["tensorrt", "openvino", "onnxruntime", "numpy"]
    assert found[0].problem is not None
    assert "NVIDIA driver" in found[0].problem
    for item in found[1:]:
        assert item.usable
        assert item.version == metadata.version(item.name)
        assert "fp32" in item.precisions
        assert "cpu" in item.devices
        assert ("video" in item.modules) == (item.name != "numpy")


def refuse(package: str) -> object:
    raise metadata.PackageNotFoundError(package)


def test_openvino_on_arm_offers_what_its_reference_code_is_known_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "is_arm", lambda: True)
    assert openvino.probe().precisions == ("fp32", "fp16")
    text = "openvino on cpu: on ARM it computes 3-D convolutions in FP32 alone: ask for precision='fp32'"
    for precision in ("bf16", "int8"):
        with pytest.raises(BackendUnavailableError, match=text):
            backends.select("openvino", "cpu", precision)
