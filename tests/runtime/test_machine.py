"""What a figure's machine is described by, with and without git, a driver, limits."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milnce import machine
from milnce.cuda import GpuInfo
from milnce.errors import CudaUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return what puts a program of the test's own before all others on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        (folder / name).chmod(0o755)

    return make


def test_the_description_says_what_a_reader_must_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = machine.describe(("numpy", "no-such-package"))
    assert json.loads(json.dumps(found)) == found
    assert datetime.now(timezone.utc) - datetime.fromisoformat(found["date"]) < timedelta(minutes=5)
    assert found["date"].endswith("+00:00")
    assert found["versions"] == {"numpy": np.__version__, "no-such-package": None}
    assert found["threads"]["OMP_NUM_THREADS"] == "3"
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["cpu"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 2**26 < found["memory_bytes"] < 2**50
    assert "milnce" in machine.describe()["versions"]


def test_the_threads_of_blas_are_those_that_threadpoolctl_tells_and_none_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools = [{"user_api": "openmp", "num_threads": 9}, {"user_api": "blas", "num_threads": 3}]
    monkeypatch.setattr(machine, "find_spec", lambda _: True)
    monkeypatch.setattr(machine, "import_module", lambda _: SimpleNamespace(threadpool_info=lambda: pools))
    assert machine.blas_threads() == machine.describe(())["blas_threads"] == 3
    pools.pop()
    assert machine.blas_threads() is None
    monkeypatch.setattr(machine, "find_spec", lambda _: None)
    assert machine.blas_threads() is None


def test_cores_are_those_that_the_process_may_use() -> None:
    code = "import os, milnce.machine as m; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    found = subprocess.run(
        [sys.executable, "-c", code + "print(m.describe(())['cores'])"], capture_output=True, text=True, check=True
    )
    assert found.stdout == "1\n"


def git(folder: Path, *arguments: str) -> None:
    settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    subprocess.run([shutil.which("git") or "git", "-C", folder, *settings, *arguments], check=True, capture_output=True)


def test_the_commit_is_of_the_checkout_that_tracks_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit(tmp_path) is None
    package, installed = tmp_path / "package", tmp_path / "env" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "module.py").write_text("x = 1\n", "utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    found = machine.commit(package)
    assert found is not None
    assert len(found) == 12
    assert int(found, 16) >= 0  # the commit itself, whatever the tags
    assert machine.commit(installed) is None  # below a checkout that knows nothing of it
    (package / "module.py").write_text("x = 2\n", "utf-8")
    assert machine.commit(package) == f"{found}-dirty"
    assert machine.commit(tmp_path / "none") is None


def test_without_git_or_with_one_that_fails_there_is_no_commit(
    program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("git", "echo 'fatal: detected dubious ownership' >&2; exit 128")
    assert machine.commit() is None
    program("git", "echo abcdef")
    assert machine.commit() == "abcdef"
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(content + "\n", "utf-8")


def test_limits_of_control_groups_are_the_least_of_those_around_the_process(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/system/job\n", "utf-8")
    assert (machine.cpu_limit(root, own), machine.memory_limit(root, own)) == (None, None)
    group(root / "system" / "job", cpu_max="max 100000", memory_max="max")
    assert (machine.cpu_limit(root, own), machine.memory_limit(root, own)) == (None, None)
    group(root / "system", cpu_max="150000 100000", memory_max="4096")
    group(root / "elsewhere", cpu_max="1 100000", memory_max="1")
    assert (machine.cpu_limit(root, own), machine.memory_limit(root, own)) == (1.5, 4096)
    group(root / "system" / "job", cpu_max="50000 100000", memory_max="1024")
    assert (machine.cpu_limit(root, own), machine.memory_limit(root, own)) == (0.5, 1024)
    # Nothing above the file system's root counts.
    group(tmp_path, cpu_max="1 100000", memory_max="1")
    assert (machine.cpu_limit(root, own), machine.memory_limit(root, own)) == (0.5, 1024)


def test_limits_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/\n", "utf-8")
    group(root / "cpu,cpuacct" / "job", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    assert machine.cpu_limit(root, own) is None
    group(root / "cpu,cpuacct" / "job", cpu_cfs_quota_us="250000", cpu_cfs_period_us="100000")
    group(root / "memory" / "job", memory_limit_in_bytes="2048")
    assert machine.cpu_limit(root, own) == 2.5
    assert machine.memory_limit(root, own) == 2048


def test_limits_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    group(root, cpu_max="nonsense", memory_max="")
    assert machine.cpu_limit(root, tmp_path / "missing") is None
    assert machine.memory_limit(root, tmp_path / "missing") is None
    group(root, cpu_max="100000 0")
    assert machine.cpu_limit(root, tmp_path / "missing") is None


def test_the_memory_is_the_limit_where_that_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_limit", lambda: 12345)
    assert machine.describe(())["memory_bytes"] == 12345
    monkeypatch.setattr(machine, "memory_limit", lambda: 2**63)
    assert machine.describe(())["memory_bytes"] < 2**50


def test_without_a_driver_nothing_of_cuda_is_loaded() -> None:
    code = (
        "import ctypes, sys\n"
        "def none(name, *_):\n    raise OSError(name)\n"
        "ctypes.CDLL = none\n"
        "import milnce.machine as m\nprint(m.graphics(), 'milnce.cuda' in sys.modules, 'cuda' in sys.modules)"
    )
    # milnce itself imports milnce.cuda nowhere on import of this module alone.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("[] ")
    assert found.stdout.split()[-1] == "False"


def test_gpus_are_named_by_the_driver_s_program_or_else_by_cuda(
    program: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    program("nvidia-smi", "echo 'NVIDIA H200, 580.65.06'; echo 'NVIDIA A, B, 580.65.06'")
    assert machine.graphics() == [
        {"name": "NVIDIA H200", "driver": "580.65.06"},
        {"name": "NVIDIA A, B", "driver": "580.65.06"},
    ]
    program("nvidia-smi", "exit 9")
    monkeypatch.setattr("milnce.cuda.gpus", lambda: (GpuInfo(0, "Seen", (9, 0), 1, (13, 0), 1),))
    assert machine.graphics() == [{"name": "Seen", "driver": None}]

    def refuse() -> None:
        raise CudaUnavailableError("no binding")

    monkeypatch.setattr("milnce.cuda.gpus", refuse)
    assert machine.graphics() == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/somewhere/bin/milnce", "bench", "a bundle"], "milnce bench 'a bundle'"),
        (["/x/milnce/cli/__main__.py", "bench"], "python -m milnce.cli bench"),
        (["/elsewhere/latency.py", "--full"], "python latency.py --full"),
    ],
)
def test_the_command_is_one_that_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert machine.describe(())["command"] == expected


def test_scripts_below_the_working_folder_keep_their_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "benchmarks" / "cost.py"), "--rounds", "3"])
    assert machine.describe(())["command"] == "python benchmarks/cost.py --rounds 3"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("Architecture: aarch64\nModel name:  Cortex-A78AE\nCPU max MHz: 2201", "Cortex-A78AE"),
        ("Model name: Cortex-A55\nModel: 0\nModel name: Cortex-A76\n", "Cortex-A55 and Cortex-A76"),
        (None, "aarch64"),  # no lscpu here
        ("Model name: -\nModel: 0", "aarch64"),  # one that it does not know
    ],
)
def test_an_arm_processor_has_its_name_from_lscpu(
    answer: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "is_arm", lambda: True)
    monkeypatch.setattr(machine, "_answer", lambda *_: answer)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine.cpu_name() == name
