"""`milnce doctor`: what it says of this machine and of a bundle."""

from __future__ import annotations

import ctypes
import json
import shutil
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

import milnce
from helpers import fake_cuda
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import make_video
from milnce import machine, platforms
from milnce.backends import Availability
from milnce.cli import doctor
from milnce.video import iter_windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]


def test_doctor_lists_backends_packages_and_the_processor(run: Run) -> None:
    result = run("doctor")
    assert result.code == 0
    for text in ("onnxruntime", "openvino", "CPU: ", "GPU: ", "FFmpeg", "pyarrow", "torch", "Python 3."):
        assert text in result.stdout


def test_doctor_runs_a_bundle(tiny: Tiny, run: Run) -> None:
    result = run("doctor", "--bundle", tiny.path, "--json")
    assert result.code == 0
    document = json.loads(result.stdout)
    tried = document["bundle"]
    assert (tried["clip"], tried["dtype"], tried["precision"]) == ([1, 4, 16, 16, 3], "uint8", "fp32")
    assert tried["problem"] is None
    assert {item["name"] for item in document["backends"]} >= {"onnxruntime", "openvino", "numpy"}
    assert [item["modules"] for item in document["backends"] if item["name"] == "numpy"] == [["text", "projection"]]
    assert (tried["modules"]["text"]["backend"], tried["modules"]["video"]["backend"]) == ("numpy", tried["backend"])
    assert "ran a uint8 clip of [1, 4, 16, 16, 3] and a sentence" in run("doctor", "--bundle", tiny.path).stdout


@pytest.mark.parametrize(("precision", "form"), [("fp16", "uint8"), ("fp32", "float32"), ("fp16", "float32")])
def test_doctor_runs_what_the_bundle_has(precision: str, form: str, tmp_path: Path, run: Run) -> None:
    write_tiny_bundle(tmp_path / "b", precisions=[precision], input_forms=[form])
    result = run("doctor", "--bundle", tmp_path / "b", "--json")
    assert result.code == 0, result.stdout
    tried = json.loads(result.stdout)["bundle"]
    assert (tried["dtype"], tried["precision"], sorted(tried["clip"])) == (form, precision, [1, 3, 4, 16, 16])


def test_doctor_reports_the_machine_whatever_is_wrong_with_the_bundle(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    damaged = shutil.copytree(tiny.path, tmp_path / "damaged")
    (damaged / "video-uint8-fp32.onnx").write_bytes(b"no graph")
    for bundle, message in ((tmp_path, "no milnce bundle at"), (damaged, "video-uint8-fp32.onnx was changed or cut")):
        result = run("doctor", "--bundle", bundle, "--json")
        assert result.code == 1
        document = json.loads(result.stdout)
        assert document["bundle"]["path"] == str(bundle)
        assert message in document["bundle"]["problem"]
        assert len(document["backends"]) == 4
        result = run("doctor", "--bundle", bundle)
        assert result.code == 1
        assert message in result.stdout
        assert "onnxruntime" in result.stdout


def test_doctor_lists_the_gpus_and_says_why_one_cannot_be_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorRT-RTX loads its libraries by CDLL when it is first imported; with the fake, no later test could import it.
    with suppress(ImportError):
        import_module("tensorrt_rtx")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver())
    gpus = [
        fake_cuda.FakeGpu(name="NVIDIA H200", total_bytes=150 * 10**9),
        fake_cuda.FakeGpu(compute_capability=(8, 7)),
    ]
    fake_cuda.install(monkeypatch, gpus=gpus)
    found = json.loads(run("doctor", "--json").stdout)["gpu"]
    assert (found["driver"], found["cuda"], found["problem"]) == (True, "13.0", None)
    assert found["devices"][0] == {
        "index": 0,
        "name": "NVIDIA H200",
        "compute_capability": "9.0",
        "memory_bytes": 150 * 10**9,
    }
    shown = run("doctor").stdout
    assert "GPU: NVIDIA driver present, CUDA up to 13.0" in shown
    assert "GPU 0: NVIDIA H200, compute capability 9.0, 150.0 GB" in shown
    assert "GPU 1: Fake GPU, compute capability 8.7" in shown
    fake_cuda.install(monkeypatch, driver="no device")
    assert "finds no GPU" in json.loads(run("doctor", "--json").stdout)["gpu"]["problem"]
    assert "GPU: the NVIDIA driver finds no GPU" in run("doctor").stdout


@pytest.mark.parametrize(
    ("version", "problem", "shown"),
    [
        (None, None, ("missing", 'not installed: pip install "milnce[nvdec]"')),
        ("2.2.4", None, ("ok", "reading videos on an NVIDIA GPU")),
        ("2.2.4", "there is no NVIDIA driver here", ("broken", "there is no NVIDIA driver here")),
    ],
)
def test_doctor_says_whether_nvidia_s_decoder_can_be_used(
    version: str | None,
    problem: str | None,
    shown: tuple[str, str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = doctor._version  # noqa: SLF001 - what is really installed stays as it is
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "PyNvVideoCodec" else known(name))
    monkeypatch.setattr("milnce.video.nvdec.problem", lambda: problem)
    text = run("doctor").stdout
    line = next(line for line in text.splitlines() if "PyNvVideoCodec" in line)
    assert shown[0] in line
    assert shown[1] in " ".join(text.split())


class FakeDriver:
    """libcuda, as far as `doctor` asks it."""

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: ANN401, D102, N802 - a C function
        ctypes.cast(number, ctypes.POINTER(ctypes.c_int))[0] = 13000
        return 0


def test_doctor_does_not_call_packages_that_clash_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milnce.backends.onnxruntime.owning_packages", lambda: ["onnxruntime", "onnxruntime-gpu"])
    result = run("doctor")
    line = next(line for line in result.stdout.splitlines() if "installed together" in line)
    assert "unusable" in line
    assert "missing" not in line


def test_doctor_without_a_backend_exits_with_1_and_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Availability(
        name="onnxruntime", version=None, devices=(), precisions=(), problem='pip install "milnce[onnxruntime]"'
    )
    monkeypatch.setattr("milnce.backends.available", lambda: [absent])
    result = run("doctor")
    assert result.code == 1
    assert 'pip install "milnce[onnxruntime]"' in result.stdout
    assert "unusable" in result.stdout


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("8.0.2", False),
        ("8.0.3", True),
        ("8.1.1", False),
        ("8.1.2", True),
        ("8.1", False),
        ("8.2.0", False),
        ("9.0", True),
        ("9.1.3", True),
        ("n9.0.1-3-gabc", True),
        ("7.1.5", False),
    ],
)
def test_doctor_knows_which_ffmpeg_has_the_fix(version: str, fixed: bool) -> None:
    note = doctor.ffmpeg_note(version)
    assert (note is None) == fixed
    if note is not None:
        assert "CVE-2026-8461" in note
        assert "leaves that decoder out" in note


def test_doctor_does_not_guess_at_an_unreadable_ffmpeg_version() -> None:
    assert "cannot be told" in str(doctor.ffmpeg_note("N-12345-gabcdef"))


def test_the_affected_decoder_is_not_on_the_allow_list(tmp_path: Path) -> None:
    # What `doctor` says about an old FFmpeg must be true.
    video = make_video(tmp_path / "magic.avi", codec="magicyuv", pix_fmt="gbrp", frames=4)
    with pytest.raises(milnce.errors.VideoError, match="magicyuv"):
        list(iter_windows(video, milnce.get_preset("milnce-eval")))


def test_doctor_says_how_to_get_a_missing_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    versions: dict[str, Any] = {"pillow": "12.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    document = json.loads(run("doctor", "--json").stdout)
    problems = {item["name"]: item["problem"] for item in document["packages"]}
    assert problems["pillow"] is None
    assert problems["av"] == 'not installed: pip install "milnce[video]"'
    assert problems["pyarrow"] == 'not installed: pip install "milnce[parquet]"'
    assert problems["torch"] == 'not installed: pip install "milnce[convert]"'


def test_doctor_names_a_jetson_and_what_to_type_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA Jetson AGX Orin Developer Kit, Jetson Linux 36.4.3 (JetPack 6)"
    monkeypatch.setattr(platforms, "jetson", lambda: name)
    monkeypatch.setattr(platforms, "is_arm", lambda: True)
    monkeypatch.setattr(platforms, "arm_features", lambda: ("asimd", "fphp", "asimddp"))
    monkeypatch.setattr(machine, "cpu_name", lambda: "Cortex-A78AE")
    document = json.loads(run("doctor", "--json").stdout)
    assert document["cpu"] == {"name": "Cortex-A78AE", "cores": machine.cores(), "flags": ["asimd", "fphp", "asimddp"]}
    assert document["board"]["name"] == name
    packages = {item["name"]: item["problem"] for item in document["packages"]}
    for cure in (document["board"]["install"], packages["tensorrt"], packages["PyNvVideoCodec"]):
        assert cure.endswith('.venv/bin/pip install ".[jetson]"')
    assert f"Board: {name}; on a Jetson TensorRT comes with JetPack" in run("doctor").stdout
    monkeypatch.setattr(platforms, "jetson", lambda: None)
    assert json.loads(run("doctor", "--json").stdout)["board"] is None


def test_doctor_says_why_a_precision_is_not_to_be_had_on_the_cpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milnce.backends.onnxruntime.arm_features", lambda: ("asimdhp",))
    lines = " ".join(run("doctor").stdout.split())
    assert "cpu; fp32 not fp16 on the CPU: it adds up in FP16 on this ARM processor" in lines
