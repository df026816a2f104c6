"""Says what a measurement was made on: machine, limits, versions, commit, date."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milnce.errors import BackendError
from milnce.platforms import is_arm

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGES = (
    *("milnce", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "tensorrt", "tensorrt-rtx"),
    *("cuda-bindings", "torch", "av"),
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY")
_ANSWER_S = 20


def describe(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return what a reader of a figure must know, as JSON values.

    Args:
        packages: Distributions whose versions are told; one that is not installed has None.

    Returns:
        date (UTC, ISO 8601), command, commit (None outside a checkout), cpu, cores (that this process may use),
        cpu_limit (cores' worth of time that its control group may take, None for no limit), memory_bytes (of the
        machine, or its control group's limit if that is less), system, python, versions, threads (variables of the
        environment that bound them), blas_threads (`blas_threads`), gpu (name and
        driver of each; empty without NVIDIA's driver).
    """
    return {
        "date": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": cores(),
        "cpu_limit": cpu_limit(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "threads": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "blas_threads": blas_threads(),
        "gpu": graphics(),
    }


def memory_bytes() -> int | None:
    """Return the bytes of the machine's memory, or of its control group's limit if that is less; None if unknown."""
    return min((limit for limit in (_total_memory(), memory_limit()) if limit is not None), default=None)


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_name() -> str:
    """Return the processor's name, such as "Cortex-A78AE" on ARM, whose kernel knows numbers alone; else its kind."""
    # util-linux knows ARM's numbers by name; of cores of several kinds each has a line.
    text = _answer("lscpu") or "" if is_arm() else _content(Path("/proc/cpuinfo"))
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.lower().startswith("model name")]
    known = dict.fromkeys(name for name in names if name != "-")  # which is lscpu's name of one it does not know
    return " and ".join(known) or platform.processor() or platform.machine()


def blas_threads() -> int | None:
    """Return the threads of the BLAS that NumPy has loaded, or None where threadpoolctl, which knows, is missing."""
    if find_spec("threadpoolctl") is None:
        return None
    found = import_module("threadpoolctl").threadpool_info()
    return max((int(each["num_threads"]) for each in found if each.get("user_api") == "blas"), default=None)


def commit(folder: Path | None = None) -> str | None:
    """Return the commit that the files of `folder` are of, "-dirty" at its end if some differ; None if not tracked.

    Args:
        folder: Where to look; this package's own if None. A package installed below somebody else's checkout is not of
            that checkout, so there must be a file in the folder that is tracked.
    """
    place = str(folder or Path(__file__).parent)
    if _answer("git", "-C", place, "ls-files", "--", ".") is None:
        return None
    return _answer("git", "-C", place, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def cpu_limit(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the cores' worth of CPU time that this process's control groups allow, or None for no limit."""
    found = []
    for folder in _own_groups(groups, own):
        quota, _, period = _content(folder / "cpu.max").partition(" ")  # version 2: "150000 100000" or "max 100000"
        if not quota:  # version 1, where -1 is no limit
            quota, period = _content(folder / "cpu.cfs_quota_us"), _content(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes that this process's control groups allow, or None for no limit."""
    found = [
        _content(folder / name)
        for folder in _own_groups(groups, own)
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    return min((int(value) for value in found if value.isdigit()), default=None)


def graphics() -> list[dict[str, str | None]]:
    """Return name and driver of each NVIDIA GPU. Without the driver nothing of CUDA is loaded, and there is none."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    answer = _answer("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if answer is not None:
        pairs = [line.rpartition(",") for line in answer.splitlines()]
        return [{"name": name.strip(), "driver": driver.strip()} for name, _, driver in pairs]
    from milnce.cuda import gpus  # noqa: PLC0415 - only where there is a driver

    try:
        return [{"name": gpu.name, "driver": None} for gpu in gpus()]
    except BackendError:
        return []


def _own_groups(groups: Path, own: Path) -> list[Path]:
    """Return the folders of the control groups that this process is in, and of those around them."""
    folders = []
    for line in _content(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        root = groups if not controllers else groups / controllers
        inner = root.joinpath(*Path(path.lstrip("/")).parts)
        folders += [folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
    return folders or [groups]


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _answer(program: str, *arguments: str) -> str | None:
    """Return what a program prints, or None if it is not there, fails, or says nothing."""
    path = shutil.which(program)
    if path is None:
        return None
    words = {**os.environ, "LC_ALL": "C"}  # in English, to be read here
    try:
        result = subprocess.run(  # noqa: S603
            [path, *arguments], capture_output=True, text=True, check=True, timeout=_ANSWER_S, env=words
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def _command() -> str:
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    if name == "__main__.py":
        words = ["python", "-m", ".".join(Path(program).parent.parts[-2:])]
    elif name.endswith(".py"):
        path = Path(program).resolve()
        words = ["python", str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else name]
    else:
        words = [name]
    return shlex.join([*words, *arguments])


def _total_memory() -> int | None:
    for line in _content(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
