"""What is in the wheel, and what a user has who installs it without extras."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from typing import TYPE_CHECKING

import pytest

from cost import LARGEST_WHEEL_KB

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]

COMMANDS = ("export", "info", "embed", "search", "doctor")
EXTRAS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "av", "PIL", "pyarrow", "safetensors")


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def python(interpreter: Path, program: str) -> str:
    """Run a program in the bare environment, away from the checkout and its PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=interpreter.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def milnce(interpreter: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the installed `milnce` script."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [interpreter.with_name("milnce"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=interpreter.parent,
    )


def test_the_wheel_has_two_packages_and_nothing_else_at_its_top(wheel: Path) -> None:
    top = {name.split("/")[0] for name in names(wheel)}
    assert {name for name in top if not name.endswith(".dist-info")} == {"milnce", "milnce_convert"}
    assert len([name for name in top if name.endswith(".dist-info")]) == 1
    assert wheel.name.endswith("-py3-none-any.whl")


def test_no_folder_of_the_checkout_becomes_an_import_name(wheel: Path) -> None:
    parts = {part for name in names(wheel) for part in name.split("/")[:-1]}
    assert parts.isdisjoint({"runtime", "convert", "benchmarks", "engines", "tests"})


def test_the_wheel_is_small_and_typed_and_holds_code_only(wheel: Path) -> None:
    # 145 kB before evaluation, search index and demo came; 362 before decoding processes, the batcher, INT8.
    assert wheel.stat().st_size < 1000 * LARGEST_WHEEL_KB
    held = names(wheel)
    modules = {"milnce/cli/__init__.py", "milnce/video/__init__.py", "milnce_convert/demo/samples.py"}
    pages = {"milnce/page.html", "milnce/page.css", "milnce/page.js"}
    kernels = {"milnce/video/nvdec_picture.cu"}
    assert {"milnce/py.typed", "milnce_convert/py.typed", *modules, *pages, *kernels} <= set(held)
    packaged = [name for name in held if not name.split("/")[0].endswith(".dist-info")]
    assert {name.rpartition(".")[2] for name in packaged} == {"py", "typed", "html", "css", "js", "cu"}
    assert any(name.endswith("/licenses/LICENSE") for name in held)


def test_a_bare_install_has_numpy_and_typer_and_none_of_the_extras(bare_python: Path) -> None:
    asked = (*EXTRAS, "numpy", "typer", "rich")
    program = (
        "import importlib.util, json\n"
        f"print(json.dumps([name for name in {asked!r} if importlib.util.find_spec(name)]))"
    )
    assert json.loads(python(bare_python, program)) == ["numpy", "typer", "rich"]


def test_every_module_of_the_runtime_imports_without_extras(bare_python: Path) -> None:
    program = (
        "import importlib, json, pkgutil, milnce\n"
        "found = [module.name for module in pkgutil.walk_packages(milnce.__path__, 'milnce.')]\n"
        "found.remove('milnce.cli.__main__')\n"
        "for name in found: importlib.import_module(name)\n"
        "print(json.dumps(found))"
    )
    found = json.loads(python(bare_python, program))
    assert {"milnce.model", "milnce.backends.onnxruntime", "milnce.backends.openvino", "milnce.video.decode"} <= set(
        found
    )
    assert {"milnce.pipeline", "milnce.features", "milnce.sheet", "milnce.cli.export"} <= set(found)


def test_importing_milnce_loads_numpy_and_the_standard_library_alone(bare_python: Path) -> None:
    program = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        "import milnce\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(loaded - sys.stdlib_module_names)))"
    )
    assert json.loads(python(bare_python, program)) == ["milnce", "numpy"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_works_without_extras(command: str, bare_python: Path) -> None:
    done = milnce(bare_python, command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"milnce {command}" in done.stdout


def test_the_help_lists_every_command(bare_python: Path) -> None:
    done = milnce(bare_python, "--help")
    assert [command for command in COMMANDS if command not in done.stdout] == []


def test_what_is_missing_is_named_with_its_cure(bare_python: Path, tmp_path: Path) -> None:
    done = milnce(bare_python, "doctor")
    assert done.returncode == 1
    for hint in ("milnce[onnxruntime]", "milnce[openvino]", "milnce[video]", "milnce[parquet]", "milnce[convert]"):
        assert hint in done.stdout
    done = milnce(bare_python, "export", "--seeded", "0", "--out", tmp_path / "bundle")
    assert done.returncode == 1
    assert 'pip install "milnce[convert]"' in done.stderr
    done = milnce(bare_python, "embed", "--bundle", tmp_path, "--out", tmp_path / "f.parquet", "a.mp4")
    assert done.returncode == 1
    assert 'pip install "milnce[parquet]"' in done.stderr
    done = milnce(bare_python, "search", "--bundle", tmp_path, "run", "a.mp4", "--sheet", tmp_path / "s.png")
    assert done.returncode == 1
    assert 'pip install "milnce[video]"' in done.stderr


def test_without_pyav_a_video_says_what_to_install(bare_python: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    program = (
        "import milnce\nfrom milnce.errors import MissingDependencyError\nfrom milnce.video import iter_windows\n"
        f"try:\n    list(iter_windows({str(tmp_path / 'a.mp4')!r}, milnce.get_preset('milnce-eval')))\n"
        "except MissingDependencyError as error:\n    print(error)"
    )
    assert 'pip install "milnce[video]"' in python(bare_python, program)


def test_without_a_backend_a_bundle_says_what_to_install(bare_python: Path, tmp_path: Path) -> None:
    from helpers.tiny_bundle import write_tiny_bundle  # noqa: PLC0415 - needs onnx, which the other tests here do not

    write_tiny_bundle(tmp_path / "tiny")
    done = milnce(bare_python, "embed", "--bundle", tmp_path / "tiny", "--out", tmp_path / "f.npz", "a.mp4")
    assert done.returncode == 1
    assert 'pip install "milnce[onnxruntime]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert milnce(bare_python, "info", tmp_path / "tiny", "--verify").returncode == 0
