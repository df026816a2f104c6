"""Says what a measurement was made on, and writes it down: machine, versions, commit, date."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("milnce", "torch", "onnxruntime", "openvino", "numpy", "av")


def describe() -> dict[str, Any]:
    """Return the machine, the versions, the commit and the date (UTC) of a measurement."""
    return {
        "date": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=RESULTS.parent)  # noqa: S603
    except OSError:  # no git: a checkout that was copied here
        return "unknown"
    return result.stdout.strip() or "unknown"


def write(name: str, report: dict[str, Any], markdown: str) -> None:
    """Write `results/<name>.json` and `.md`, the machine's description in both, and print the Markdown."""
    machine = describe()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine, **report}, indent=2) + "\n", "utf-8")
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items() if number)
    footer = (
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {versions}; "
        f"commit {machine['commit']}, {machine['date']}\n"
    )
    text = f"{markdown.rstrip()}\n\n{footer}"
    (RESULTS / f"{name}.md").write_text(text, "utf-8")
    print(text)
