"""Which backend a bundle with TensorRT plans gets on a machine with GPUs, and what is said of those passed over."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers import fake_onnxruntime, fake_tensorrt
from helpers.fake_plans import fixed
from helpers.plan_machine import PlanMachine
from helpers.tiny_bundle import Tiny, tiny_clips, write_tiny_bundle
from milnce import backends
from milnce.backends import Availability, onnxruntime, openvino, tensorrt
from milnce.bundle import Bundle
from milnce.errors import BackendUnavailableError, CudaUnavailableError, InputError, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helpers.fake_cuda_calls import Driver


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tiny: Tiny, tmp_path: Path) -> Iterator[PlanMachine]:
    """Return a machine with two GPUs, TensorRT, ONNX Runtime with CUDA, and a bundle without plans."""
    shutil.copytree(tiny.path, tmp_path / "bundle")
    made = PlanMachine(monkeypatch, tiny, tmp_path / "bundle" / "plans")
    made.bundle = Bundle.open(tmp_path / "bundle")
    fake_onnxruntime.install(monkeypatch, made.fake)
    monkeypatch.setattr(onnxruntime, "owning_packages", lambda: ["onnxruntime-gpu"])
    yield made
    made.close()


def loaded(machine: PlanMachine, **options: Any) -> tuple[str, str, str, str]:  # noqa: ANN401 - milnce.load's own
    """Load the bundle, run it, and return what its backend is and why."""
    with milnce.load(machine.bundle.path, **options) as model:
        clips = tiny_clips(3)
        found = model.encode_video(clips).mixed_5c
        tolerance = 2e-5 if model.backend.precision == "fp32" else 2e-2
        np.testing.assert_allclose(found, machine.tiny.weights.video(clips)[1], rtol=0, atol=tolerance)
        choice = model.backend
        return choice.name, choice.device, choice.precision, choice.reason


def write_towers(machine: PlanMachine, precision: str = "fp32", **plan: Any) -> None:  # noqa: ANN401
    for module in ("video", "text"):
        machine.write(module, precision=precision, **plan)


# Plans that fit


def test_of_several_plans_the_one_for_the_bundle_s_own_sizes_runs(machine: PlanMachine) -> None:
    sampling = machine.bundle.manifest.sampling
    own = (sampling["frames"], sampling["size"], sampling["size"], 3)
    graph = machine.bundle.graph("video")
    machine.write("text")
    machine.write("video", profiles=fixed(graph, [1], own))
    machine.write("video", profiles=fixed(graph, [1, 8], (4, 16, 16, 3)))
    with milnce.load(machine.bundle.path) as model:
        assert model.backend.name == "tensorrt"
        assert tuple(axis.size for axis in model.open("video").inputs[0].shape[1:]) == own


def test_ids_that_the_vocabulary_lacks_are_refused_before_the_gpu_sees_them(machine: PlanMachine) -> None:
    write_towers(machine)
    with milnce.load(machine.bundle.path) as model:
        last = machine.bundle.manifest.vocabulary.words
        tokens = np.full((1, 16), last)
        model.open("text").run({"tokens": tokens})
        with pytest.raises(InputError, match=f"id {last + 1} given; ids are 0 .padding. to {last}"):
            model.open("text").run({"tokens": tokens + 1})


def test_auto_takes_plans_in_fp16_before_fp32(machine: PlanMachine) -> None:
    why = "version 11.1.0.1, its plans fit this GPU"
    write_towers(machine, "fp32")
    assert loaded(machine) == ("tensorrt", "cuda", "fp32", why)
    write_towers(machine, "fp16")
    assert loaded(machine) == ("tensorrt", "cuda", "fp16", why)
    assert loaded(machine, precision="fp32") == ("tensorrt", "cuda", "fp32", why)
    assert loaded(machine, precision="fp16", device="cuda") == ("tensorrt", "cuda", "fp16", why)
    named = loaded(machine, backend="tensorrt")
    assert named == ("tensorrt", "cuda", "fp16", "version 11.1.0.1, asked for by name")
    with milnce.load(machine.bundle.path) as model:
        assert str(model.backend) == f"tensorrt on cuda in fp16: {why}"
        assert model.backend.passed_over == ()


def test_plans_may_be_in_another_folder(machine: PlanMachine, tmp_path: Path) -> None:
    machine.plans = tmp_path / "elsewhere"
    write_towers(machine)
    assert loaded(machine)[0] == "onnxruntime"
    assert loaded(machine, plans=tmp_path / "elsewhere")[:3] == ("tensorrt", "cuda", "fp32")
    assert loaded(machine, plans=str(tmp_path / "elsewhere"), backend="tensorrt")[0] == "tensorrt"


def test_bf16_has_no_plans_and_a_cpu_is_taken_when_asked_for(machine: PlanMachine) -> None:
    write_towers(machine)
    assert loaded(machine, device="cpu")[:3] == ("openvino", "cpu", "fp32")
    choice = backends.select(precision="bf16", bundle=machine.bundle)
    assert (choice.name, choice.device) == ("openvino", "cpu")
    assert choice.passed_over[0] == ("tensorrt on cuda: it computes in fp16, fp32 here, not in bf16")


def test_the_second_gpu_gets_its_own_plans(machine: PlanMachine) -> None:
    write_towers(machine)
    assert loaded(machine, device="cuda:0")[:2] == ("tensorrt", "cuda:0")
    name, device, _, reason = loaded(machine, device="cuda:1")
    assert (name, device) == ("onnxruntime", "cuda:1")
    assert "it is for First GPU; this is Second GPU" in reason
    machine.plans = machine.bundle.path / "plans1"
    write_towers(machine, sidecar={"gpu": "Second GPU"})
    assert loaded(machine, device="cuda:1", plans=machine.plans)[:2] == ("tensorrt", "cuda:1")


# Plans that do not


STALE = {
    "version": (
        {"version": "10.13.3.9"},
        "tensorrt 10.13.3.9 built it, and tensorrt 11.1.0.1 is installed; a plan runs on its exact version",
    ),
    "gpu": ({"sidecar": {"gpu": "NVIDIA A2"}}, "it is for NVIDIA A2; this is First GPU (compute capability 9.0)"),
    "capability": (
        {"sidecar": {"compute_capabilities": ("8.6",)}},
        "it is for compute capability 8.6; this is First GPU (compute capability 9.0)",
    ),
    "onnx": ({"sidecar": {"onnx_sha256": "0" * 64}}, "it was built from another video-uint8-fp32.onnx (sha256 000000"),
    "library": (
        {"flavour": "rtx"},
        "tensorrt_rtx 1.7.1.116 built it, and tensorrt 11.1.0.1 cannot run it",
    ),
}


@pytest.mark.parametrize("kind", sorted(STALE))
def test_a_stale_plan_is_passed_over_with_what_differs_and_the_command(machine: PlanMachine, kind: str) -> None:
    options, text = STALE[kind]
    write_towers(machine, **options)  # type: ignore[arg-type] # of a table
    name, device, precision, reason = loaded(machine)
    assert (name, device, precision) == ("onnxruntime", "cuda", "fp32")
    assert text in reason
    assert f"Build one: milnce build {machine.bundle.path} --precision fp32" in reason
    assert "\n" not in reason
    with pytest.raises(BackendUnavailableError, match=re.escape(text)):
        milnce.load(machine.bundle.path, backend="tensorrt")


def test_a_damaged_plan_is_passed_over_and_by_name_an_error(machine: PlanMachine) -> None:
    write_towers(machine)
    path = next(machine.plans.glob("*text*.plan"))
    path.write_bytes(path.read_bytes()[:-1])
    name, _, _, reason = loaded(machine)
    assert name == "onnxruntime"
    assert f"tensorrt on cuda: {path} was cut or changed" in reason
    assert "build it again: milnce build" in reason
    with pytest.raises(PlanError, match="was cut or changed"):
        milnce.load(machine.bundle.path, backend="tensorrt")


def test_what_is_missing_is_named(machine: PlanMachine) -> None:
    reason = loaded(machine)[3]
    assert reason == (
        "version 1.31.1, the first that can do what was asked; passed over: tensorrt on cuda: there are no plans "
        f"at {machine.plans}; build them: milnce build {machine.bundle.path}"
    )
    machine.write("video", precision="fp16")
    assert (
        "runs text tokens fp16 (text-fp16.onnx) on First GPU (compute capability 9.0) with tensorrt 11.1.0.1; it holds "
        "plans of: video uint8 fp16"
    ) in loaded(machine)[3]
    assert loaded(machine, modules=["video"])[0] == "tensorrt"
    # Both are there in part, so both are told.
    machine.write("video", precision="fp32")
    reason = loaded(machine)[3]
    assert "runs text tokens fp16" in reason
    assert "runs text tokens fp32" in reason
    # The precision that is asked for, alone.
    reason = loaded(machine, precision="fp32")[3]
    assert "fp16 (text" not in reason
    assert "--precision fp32" in reason


def test_a_bundle_without_fp16_graphs_is_told_of_its_fp32_plans(machine: PlanMachine, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "single", precisions=["fp32"])
    machine.bundle, machine.plans = Bundle.open(tmp_path / "single"), tmp_path / "single" / "plans"
    assert f"build them: milnce build {machine.bundle.path} --precision fp32" in loaded(machine)[3]
    with pytest.raises(BackendUnavailableError, match="fp16"):
        milnce.load(machine.bundle.path, precision="fp16", backend="tensorrt")
    write_towers(machine)
    assert loaded(machine)[0] == "tensorrt"


def test_a_module_without_a_plan_is_said_when_it_is_opened(machine: PlanMachine) -> None:
    write_towers(machine)
    with milnce.load(machine.bundle.path, backend="tensorrt") as model:
        with pytest.raises(PlanError, match=r"runs projection mixed_5c fp32 .* Build one: milnce build \S+ *$"):
            model.project(np.ones((1, 12), np.float32))
        assert model.encode_text("cut").shape == (1, 8)


def test_without_a_plan_numpy_runs_the_small_modules_and_says_so(machine: PlanMachine) -> None:
    write_towers(machine)
    with milnce.load(machine.bundle.path) as model:
        assert model.choice_of("text") is model.backend
        found = model.project(np.ones((1, 12), np.float32))
        np.testing.assert_allclose(found, machine.tiny.weights.project(np.ones((1, 12), np.float32)), atol=2e-5)
        choice = model.choice_of("projection")
        assert (choice.name, choice.device, choice.precision) == ("numpy", "cpu", "fp32")
        assert re.search(r"; passed over: tensorrt on cuda: .* runs projection .* Build one: milnce build", str(choice))
        assert model.backend.name == "tensorrt"


def test_tensorrt_by_name_says_everything_that_is_in_the_way(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "probe", lambda: Availability("openvino", None, problem="not installed"))
    with pytest.raises(BackendUnavailableError) as caught:
        milnce.load(machine.bundle.path, backend="tensorrt", precision="fp16")
    assert str(caught.value) == (
        "backend tensorrt, device auto, precision fp16 cannot be had here. tensorrt on cuda: there are no plans at "
        f"{machine.plans}; build them: milnce build {machine.bundle.path}. Available: tensorrt 11.1.0.1: cuda "
        "in fp16, fp32; onnxruntime 1.31.1: cpu, cuda in fp32, fp16"
    )
    with pytest.raises(BackendUnavailableError, match=r"backend tensorrt, device cpu, .* tensorrt does not run on cpu"):
        milnce.load(machine.bundle.path, backend="tensorrt", device="cpu")
    with pytest.raises(BackendUnavailableError, match="plans belong to a bundle, and none was given"):
        backends.select("tensorrt")


# The machine


def test_without_cuda_in_onnxruntime_the_cpu_is_next(machine: PlanMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    other = PlanMachine(monkeypatch, machine.tiny, machine.plans)
    name, device, _, reason = loaded(machine)
    assert (name, device) == ("openvino", "cpu")
    assert f"tensorrt on cuda: there are no plans at {machine.plans}" in reason
    assert "onnxruntime on cuda: it runs on cpu here, not on cuda; install: pip uninstall -y onnxruntime" in reason
    other.close()


@pytest.mark.parametrize(
    ("device", "text"), [("cuda:7", "there is no GPU 7 here, only cuda:0 .First GPU., cuda:1 .Se")]
)
def test_a_gpu_that_is_not_there_is_said_with_those_that_are(machine: PlanMachine, device: str, text: str) -> None:
    write_towers(machine)
    for backend in ("auto", "tensorrt", "onnxruntime"):
        with pytest.raises(BackendUnavailableError, match=rf"on cuda: {text}"):
            milnce.load(machine.bundle.path, device=device, backend=backend)


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("absent", "there is no NVIDIA driver here; install it"),
        ("old", "the NVIDIA driver runs CUDA 11.4 at most, and the installed CUDA bindings are for CUDA 13.0; update"),
        ("no device", "the NVIDIA driver finds no GPU|no GPU is visible"),
    ],
)
def test_a_machine_without_a_gpu_to_use_says_why_and_runs_on_the_cpu(
    machine: PlanMachine,
    driver: Driver,
    text: str,
) -> None:
    write_towers(machine)
    machine.fake.driver = driver
    name, device, _, reason = loaded(machine)
    assert (name, device) == ("openvino", "cpu")
    assert re.search(rf"passed over: tensorrt on cuda, onnxruntime on cuda: ({text})", reason)
    for backend in ("tensorrt", "onnxruntime"):
        with pytest.raises(BackendUnavailableError, match=text):
            milnce.load(machine.bundle.path, backend=backend, device="cuda")
    assert re.search(text, str(tensorrt.probe().problem))
    machine.fake.driver = "present"


def test_the_bindings_that_are_missing_are_said(machine: PlanMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    write_towers(machine)

    def missing() -> object:
        raise CudaUnavailableError('the CUDA bindings are not installed; pip install "milnce[tensorrt]" brings them')

    with monkeypatch.context() as patched:
        patched.setattr("milnce.cuda.binding", missing)
        name, _, _, reason = loaded(machine)
    assert name == "openvino"
    assert "tensorrt on cuda, onnxruntime on cuda: the CUDA bindings are not installed" in reason


def test_a_library_that_does_not_load_is_said_and_a_missing_one_too(
    machine: PlanMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_towers(machine)
    assert str(tensorrt.probe()) == "tensorrt 11.1.0.1: cuda in fp16, fp32"
    monkeypatch.delitem(sys.modules, "tensorrt")
    assert 'tensorrt on cuda: not installed: pip install "milnce[tensorrt]"' in loaded(machine)[3]

    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ImportError("libnvinfer.so.11: cannot open shared object file")

    broken = Broken("tensorrt")
    broken.__spec__ = ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", broken)
    reason = loaded(machine)[3]
    assert (
        "tensorrt is installed but does not load (libnvinfer.so.11: cannot open shared object file); reinst" in reason
    )


def test_of_two_libraries_each_runs_its_own_plans(machine: PlanMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch, machine.fake, "tensorrt_rtx")
    machine.write("video", flavour="rtx")
    machine.write("text")
    with milnce.load(machine.bundle.path) as model:
        opened: list[Any] = [model.open("video"), model.open("text")]
        assert [backend.plan.library for backend in opened] == ["tensorrt_rtx", "tensorrt"]
        assert model.backend.reason.startswith("version 11.1.0.1, tensorrt_rtx 1.7.1.116, its plans fit")
        model.encode_text("open door")


def test_doctor_s_list_has_every_library(machine: PlanMachine) -> None:
    found = {item.name: item for item in backends.available()}
    assert found["tensorrt"] == Availability("tensorrt", "11.1.0.1", ("cuda",), ("fp16", "fp32"))
    machine.fake.fail("cudaGetDeviceProperties")
    assert "cudaGetDeviceProperties failed" in str(tensorrt.probe().problem)
    assert replace(found["tensorrt"], problem="x").usable is False
