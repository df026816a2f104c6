"""The processor and the board: what is told of them, and what installs where pip's usual answer does not work."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from milnce import cuda_binding, plans, platforms
from milnce.backends import onnxruntime
from milnce.errors import CudaUnavailableError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it there
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
ORIN = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 2025"
FROM_JETPACK = "python3 -m venv --system-site-packages"


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine a Jetson AGX Orin with JetPack 6."""
    (tmp_path / "release").write_text(ORIN)
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    monkeypatch.setattr(platforms, "_RELEASE", tmp_path / "release")
    monkeypatch.setattr(platforms, "_BOARD", tmp_path / "model")


class Kernel:
    """The C library, as far as it is asked what the processor can do."""

    def __init__(self, words: dict[int, int]) -> None:
        self.getauxval = lambda word: words.get(word, 0)


@pytest.mark.parametrize(
    ("words", "features"),
    [
        ({16: 0x119FFB}, ("asimd", "fphp", "asimdhp", "asimddp")),  # seen with an emulated Cortex-A76
        ({16: 0xFF}, ("asimd",)),  # Cortex-A72
        ({16: 1 << 22 | 1 << 10, 26: 1 << 13 | 1 << 14}, ("asimdhp", "sve", "i8mm", "bf16")),
    ],
)
def test_the_kernel_says_what_an_arm_processor_can_do(
    words: dict[int, int], features: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Kernel(words))
    assert platforms.arm_features() == features


def test_another_processor_has_none_of_arm_s_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Kernel({16: 2**32 - 1}))  # whose bits mean something else there
    assert (platforms.is_arm(), platforms.arm_features()) == (False, ())


@pytest.mark.usefixtures("orin")
def test_a_jetson_is_named_with_its_release() -> None:
    assert platforms.jetson() == "NVIDIA Jetson AGX Orin Developer Kit, Jetson Linux 36.4.3 (JetPack 6)"


def test_a_container_on_a_jetson_shows_its_kernel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_RELEASE", "_BOARD"):
        monkeypatch.setattr(platforms, name, tmp_path / "none")
    monkeypatch.setattr(platform, "release", lambda: "5.15.148-tegra")
    assert platforms.jetson() == "NVIDIA Jetson, Jetson Linux (JetPack 6)"
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-45-generic")
    assert platforms.jetson() is None


@pytest.mark.usefixtures("orin")
def test_on_a_jetson_extras_that_do_not_work_there_say_why_and_what_does() -> None:
    assert platforms.install("tensorrt") == (
        "on a Jetson TensorRT comes with JetPack: sudo apt install nvidia-jetpack python3-venv; then, in the checkout: "
        f'{FROM_JETPACK} .venv && .venv/bin/pip install ".[jetson]"'
    )
    for extra in ("cuda", "rtx", "nvdec"):
        assert "Jetson" in platforms.install(extra)
        assert platforms.install(extra).endswith('.venv/bin/pip install ".[jetson]"')
    assert platforms.install("jetson").startswith("sudo apt install nvidia-jetpack")
    assert platforms.install("video") == 'pip install "milnce[video]"'


@pytest.mark.parametrize(
    ("release", "name", "number"),
    [
        ("# R35 (release), REVISION: 6.1, GCID: 1", "35.6.1 (JetPack 5)", 5),
        ("# R39 (release), REVISION: 2.1, GCID: 1", "39.2.1 (JetPack 7)", 7),
        ("# R41 (release), REVISION: 1.0, GCID: 1", "41.1.0", None),
    ],
)
@pytest.mark.usefixtures("orin")
def test_each_jetson_linux_is_of_a_jetpack(release: str, name: str, number: int | None, tmp_path: Path) -> None:
    (tmp_path / "release").write_text(release)
    assert str(platforms.jetson()).endswith(f", Jetson Linux {name}")
    assert platforms.jetpack() == number
    assert ("is too old" in platforms.install("tensorrt")) == (number == 5)


@pytest.mark.parametrize(
    ("release", "version", "parts", "refused"),
    [
        ("R36", "10.3.0", (), False),  # JetPack 6's own
        ("R36", "10.13.3.9", ("tensorrt_cu12", "tensorrt_cu12_libs"), True),
        ("R36", "11.4.1.2", ("tensorrt_cu13", "tensorrt_cu13_libs"), True),
        ("R38", "10.13.3.9", ("tensorrt_cu13", "tensorrt_cu13_libs"), False),
        ("R41", "12.0.0.1", ("tensorrt_cu14", "tensorrt_cu14_libs"), False),
    ],
)
@pytest.mark.usefixtures("orin")
def test_a_tensorrt_of_the_index_is_refused_before_jetpack_7(
    release: str, version: str, parts: tuple[str, ...], refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "release").write_text(ORIN.replace("R36", release))
    module = ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined] # as the library has it
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    for other in ("tensorrt_lean", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, other, None)
    names = ("numpy", None, "tensorrt_rtx", *parts)  # a damaged package has no name; of another library
    monkeypatch.setattr(plans, "distributions", lambda: [SimpleNamespace(name=part) for part in names])
    assert [str(library) for library in plans.installed_libraries()] == ([] if refused else [f"tensorrt {version}"])
    if refused:
        (problem,) = plans.library_problems()
        assert problem.startswith(
            f"tensorrt {version} is not JetPack's and does not run on this Jetson: "
            f"pip uninstall -y tensorrt {' '.join(parts)}; on a Jetson TensorRT comes with JetPack: "
        )


@pytest.mark.usefixtures("orin")
def test_tensorrt_rtx_is_refused_on_every_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [SimpleNamespace(name="tensorrt_rtx"), SimpleNamespace(name="tensorrt_rtx_cu13")]
    monkeypatch.setattr(plans, "distributions", lambda: found)
    library = plans.Library("tensorrt_rtx", "1.7.1.116")
    assert "pip uninstall -y tensorrt_rtx tensorrt_rtx_cu13; " in str(plans._jetson_problem(library))  # noqa: SLF001
    assert plans.install_command("tensorrt_lean").startswith("on a Jetson TensorRT comes with JetPack")


@pytest.mark.usefixtures("orin")
def test_what_cuda_lacks_on_a_jetson_is_cured_by_what_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert onnxruntime.cuda_cure() == platforms.install("cuda")
    monkeypatch.setattr(onnxruntime, "gpus", lambda: (SimpleNamespace(name="Orin", compute_capability=(8, 7)),))
    for version, cuda in (("1.23.0", "12.6"), ("1.30.0", "12.6")):
        problem = str(onnxruntime._gpu_problem(version, cuda))  # noqa: SLF001 - with no GPU its library does not ask
        assert problem.endswith('.venv/bin/pip install ".[jetson]"')
    cuda_binding.load.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(CudaUnavailableError, match=r"\(cuda-python\) are not installed .*; sudo apt install"):
        cuda_binding.load()
    monkeypatch.delitem(sys.modules, "cuda.bindings")
    monkeypatch.setattr("cuda.bindings.__version__", "12.6.0")
    with pytest.raises(CudaUnavailableError, match=r'pip install "cuda-python>=12\.9\.1,<13"'):
        cuda_binding.load()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed here")
@pytest.mark.parametrize(("machine", "backend"), [("aarch64", "onnxruntime"), ("x86_64", "openvino")])
def test_make_demo_installs_what_suits_the_processor(machine: str, backend: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "uname"
    stand_in.write_text(f"#!/bin/sh\necho {machine}\n")
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["make", "--dry-run", "--always-make", "demo", f"VENV={tmp_path}"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert f'--editable ".[{backend},video]"' in shown


def test_the_extras_leave_out_on_a_jetson_what_install_says_they_do() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    left_out = {
        extra for extra, needs in extras.items() if any("'tegra' not in platform_release" in need for need in needs)
    }
    assert left_out == set(platforms._NOT_ON_JETSON)  # noqa: SLF001 - what is said of them
    for extra in left_out:
        assert "milnce[jetson]; 'tegra' in platform_release" in extras[extra]
