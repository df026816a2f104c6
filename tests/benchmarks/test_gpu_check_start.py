"""The GPU check where it cannot begin: no driver, no GPU, no package; and the least that it begins with."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milnce.backends.selection import NO_DRIVER

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
without_driver = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver"
)


def run_bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a Python that has nothing installed, not even NumPy."""
    command: list[str | Path] = [sys.executable, "-S", "-I", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={})


def assert_there_is_no_driver(found: subprocess.CompletedProcess[str]) -> None:
    cure = "install it, give the container its GPUs (docker run --gpus all), or name its folder in LD_LIBRARY_PATH"
    assert found.stderr == f"Error: {NO_DRIVER}, so nothing can be checked: {cure}\n"
    assert (found.returncode, found.stdout) == (2, "")


@without_driver
def test_without_a_driver_it_says_so_in_one_line_and_ends_with_2(gpu_check: Command, tmp_path: Path) -> None:
    assert_there_is_no_driver(gpu_check())
    assert not (tmp_path / "results").exists()


@without_driver
def test_a_missing_driver_is_named_before_a_missing_package() -> None:
    assert_there_is_no_driver(run_bare())
    assert_there_is_no_driver(run_bare("--only", "parity"))


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--make-reference", "x"), ("--make-reference=x",)])
def test_where_no_driver_is_needed_the_package_is_named(arguments: tuple[str, ...]) -> None:
    found = run_bare(*arguments)
    assert found.stderr == f"Error: {sys.executable} lacks numpy; install it, or name another: make PYTHON=...\n"
    assert (found.returncode, found.stdout) == (2, "")


def test_help_is_given_without_a_driver(gpu_check: Command) -> None:
    found = gpu_check("--help")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("usage: gpu_check.py")


def test_every_part_begins_on_a_host_that_has_numpy_and_little_else() -> None:
    code = """
        import sys
        for name in "pytest typer rich torch onnx onnx_ir onnxscript onnxruntime openvino av cuda tensorrt".split():
            sys.modules[name] = None
        sys.path[:0] = ["benchmarks", "runtime", "convert", "tests"]
        from importlib import import_module
        from gpucheck.part import MODULES
        for module in MODULES.values():
            assert callable(import_module(f"gpucheck.{module}").run)
        import gpucheck.command
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(code)]
    site = str(Path(np.__file__).parents[1])
    found = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": site}, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
