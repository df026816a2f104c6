"""Sizes of what is installed: the packages that an extra brings, by pip's own records, and milnce's wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
# What is installed, as the table says it: the root package and its extra.
INSTALLS = (
    ("milnce", "milnce", ()),
    ("milnce[onnxruntime]", "milnce", ("onnxruntime",)),
    ("milnce[openvino]", "milnce", ("openvino",)),
    ("milnce[openvino,video]", "milnce", ("openvino", "video")),
    ("torch", "torch", ()),
)


def installed_sizes() -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the megabytes that each extra of milnce, and PyTorch alone, take with all that they require here."""
    rows, left_out = [], {}
    for name, root, extras in INSTALLS:
        try:
            packages = closure(root, extras)
        except metadata.PackageNotFoundError as error:
            left_out[f"size of {name}"] = f"{error.name} is not installed"
            continue
        sizes = {package: distribution_bytes(package) / 1e6 for package in packages if package != "milnce"}
        rows.append({"name": name, "packages": len(sizes), "mb": sum(sizes.values()), "largest": _largest(sizes)})
    return rows, left_out


def _largest(sizes: dict[str, float]) -> dict[str, float]:
    return dict(sorted(sizes.items(), key=lambda item: -item[1])[:3])


def closure(package: str, extras: Sequence[str] = ()) -> list[str]:
    """Return a package and everything that it requires here, with extras, by canonical names.

    Raises:
        metadata.PackageNotFoundError: if one of them is not installed.
    """
    found: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(package), extra) for extra in ("", *extras)]
    while waiting:
        name, with_extra = waiting.pop()
        if (name, with_extra) in found:
            continue
        found.add((name, with_extra))
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": with_extra}):
                waiting += [(canonicalize_name(requirement.name), each) for each in ("", *requirement.extras)]
    return sorted({name for name, _ in found})


def distribution_bytes(package: str) -> int:
    """Return the bytes of the files that a package's RECORD lists, compiled Python left out."""
    paths = [Path(str(file.locate())) for file in metadata.files(package) or [] if file.suffix != ".pyc"]
    return sum(path.stat().st_size for path in paths if path.is_file())


def wheel_size() -> tuple[dict[str, float] | None, dict[str, str]]:
    """Build the wheel out of a copy of the sources; return its kB, packed and unpacked, or why it cannot be built."""
    with tempfile.TemporaryDirectory() as name:
        source, wheels = Path(name, "source"), Path(name, "wheels")
        for folder in ("runtime", "convert"):
            shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for file in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, source / file)
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(wheels),
            str(source),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            return None, {"wheel": lines[-1]}
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        return {"packed_kb": wheel.stat().st_size / 1e3, "unpacked_kb": unpacked / 1e3}, {}
