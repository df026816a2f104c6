"""The processor and the board: what is told of them, and what installs where pip's usual answer does not work."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from milnce import plans, platforms

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
    assert platforms.jetson() == "NVIDIA Jetson"
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-45-generic")
    assert platforms.jetson() is None


@pytest.mark.usefixtures("orin")
def test_on_a_jetson_extras_that_do_not_work_there_say_why_and_what_does() -> None:
    assert platforms.install("tensorrt") == (
        "TensorRT comes with JetPack here, and pip has none for it: sudo apt install nvidia-jetpack, then "
        f'{FROM_JETPACK} .venv && .venv/bin/pip install "milnce[jetson]"'
    )
    for extra in ("cuda", "rtx", "nvdec"):
        assert "Jetson" in platforms.install(extra)
        assert platforms.install(extra).endswith('pip install "milnce[jetson]"')
    assert platforms.install("video") == 'pip install "milnce[video]"'


@pytest.mark.parametrize(
    ("version", "parts", "refused"),
    [
        ("10.3.0", (), False),  # JetPack 6's own
        ("10.13.3.9", ("tensorrt_cu12", "tensorrt_cu12_libs"), True),
        ("11.4.0.106", ("tensorrt_cu13", "tensorrt_cu13_libs"), True),
        ("11.4.1.2", ("tensorrt_cu13", "tensorrt_cu13_libs"), False),
    ],
)
@pytest.mark.usefixtures("orin")
def test_a_tensorrt_of_the_index_is_refused_on_a_jetson_it_does_not_run_on(
    version: str, parts: tuple[str, ...], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined] # as the library has it
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    for other in ("tensorrt_lean", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, other, None)
    monkeypatch.setattr(plans, "distributions", lambda: [SimpleNamespace(name=part) for part in ("numpy", *parts)])
    assert [str(library) for library in plans.installed_libraries()] == ([] if refused else [f"tensorrt {version}"])
    if refused:
        (problem,) = plans.library_problems()
        assert problem.startswith(
            f"tensorrt {version} is not JetPack's and does not run on a Jetson: "
            f"pip uninstall -y tensorrt {' '.join(parts)}; TensorRT comes with JetPack here"
        )
        assert FROM_JETPACK in problem


def test_the_extras_leave_out_on_a_jetson_what_install_says_they_do() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    left_out = {
        extra for extra, needs in extras.items() if any("'tegra' not in platform_release" in need for need in needs)
    }
    assert left_out == set(platforms._NOT_ON_JETSON)  # noqa: SLF001 - what is said of them
    for extra in left_out:
        assert "milnce[jetson]; 'tegra' in platform_release" in extras[extra]
