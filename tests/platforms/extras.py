"""What pip would install for every extra, on each platform and Python: dry runs that download no wheel.

    python tests/platforms/extras.py [--python PATH ...] [--jobs 4]

Not a test of CI: it asks the package index, half an hour long, and says what that has today. Every Python of
pyproject.toml's classifiers has to be on PATH, or be given. Its own pip, the newest, resolves a wheel of this checkout,
told by a sitecustomize that it is on the platform: markers and wheel tags both come from os.uname and os.confstr. Of a
source distribution it takes the requirements that its PKG-INFO publishes, and runs nothing: TensorRT's would fetch
gigabytes. pip's configuration, and places that the environment adds to the index, are left out.

Exits with 1 if an expectation does not hold (`expected`). The report is benchmarks/results/extras.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomllib

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("benchmarks", "runtime")]

import harness  # noqa: E402 - after the line above

if TYPE_CHECKING:
    from collections.abc import Sequence

# What pip is told by: the platform first, then the requirements of source distributions.
_SITECUSTOMIZE = """
import email, json, os, pathlib, shutil
from pip._vendor.pyproject_hooks import BuildBackendHookCaller
platform, real, confstr = json.loads(os.environ["EXTRAS_PLATFORM"]), os.uname(), os.confstr
told = (real.sysname, real.nodename, platform["release"], real.version, platform["machine"])
os.uname = lambda: os.uname_result(told)
os.confstr = lambda name: f"glibc {platform['glibc']}" if name == "CS_GNU_LIBC_VERSION" else confstr(name)
def published(self, metadata_directory, config_settings=None, _allow_fallback=True):
    path = pathlib.Path(self.source_dir, "PKG-INFO")
    info = email.message_from_string(path.read_text("utf-8"))
    if info["Metadata-Version"].startswith("1."):
        raise RuntimeError(f"{info['Name']} {info['Version']} publishes no requirements")
    folder = pathlib.Path(metadata_directory, f"{info['Name'].replace('-', '_')}-{info['Version']}.dist-info")
    folder.mkdir()
    shutil.copy(path, folder / "METADATA")
    return folder.name
BuildBackendHookCaller.prepare_metadata_for_build_wheel = published
"""
_REFUSALS = ("No matching distribution found", "conflicting dependencies", "ResolutionImpossible")
_LIMIT_S = 900


@dataclass(frozen=True)
class Platform:
    """What pip is told of a machine: `uname -m`, `uname -r`, and the version of glibc."""

    name: str
    machine: str
    release: str
    glibc: str


JETSON = Platform("Jetson, JetPack 6", "aarch64", "5.15.148-tegra", "2.35")
PLATFORMS = (
    Platform("x86-64 server", "x86_64", "6.8.0-60-generic", "2.39"),
    Platform("aarch64 server (SBSA)", "aarch64", "6.8.0-1030-nvidia-64k", "2.39"),
    JETSON,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Resolve everything, write the report, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="an interpreter, instead of those on PATH; repeat it")
    parser.add_argument("--jobs", type=int, default=4, help="pips that run at a time")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    options = parser.parse_args(arguments)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: words for name, words in project["optional-dependencies"].items() if name != "dev"}
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="extras-") as work:
        index = Index(Path(work), options.python or [f"python{version}" for version in versions], extras)
        cells = list(product(PLATFORMS, index.pips, extras))
        with ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(index.resolve, *zip(*cells, strict=True)))
    broken: dict[str, list[str]] = {}
    for row in rows:
        for name, wrong in expected(row).items():
            where = f"{row['name']}, {row['platform']}, Python {row['python']}: {', '.join(wrong)}"
            broken.setdefault(name, []).extend([where] if wrong else [])
        # In the report a line, which can be read.
        row["packages"] = ", ".join(f"{name} {version}" for name, version in sorted(row["packages"].items()))
    settings = {"platforms": [asdict(each) for each in PLATFORMS], "minutes": round((time.monotonic() - began) / 60, 1)}
    harness.write("extras", {"settings": settings, "expectations": broken, "rows": rows}, results=options.results)
    return 1 if any(broken.values()) else 0


class Index:
    """The package index, asked by the pip of each Python; makes the environments and the wheel below `work`."""

    def __init__(self, work: Path, pythons: Sequence[str], extras: dict[str, list[str]]) -> None:
        self._work = work
        self._extras = extras
        self.pips: dict[str, tuple[str, str]] = {}
        (work / "sitecustomize.py").write_text(_SITECUSTOMIZE, "utf-8")
        for number, python in enumerate(pythons):
            path = str(work / str(number) / "bin" / "python")
            self._run([python, "-m", "venv", str(work / str(number))])
            self._run([path, "-m", "pip", "install", "--upgrade", "pip"])
            # Such as: pip 26.3 from a folder (python 3.11).
            said = self._run([path, "-m", "pip", "--version"]).stdout.split()
            self.pips[said[-1].rstrip(")")] = path, said[1]
        for name in ("runtime", "convert"):
            shutil.copytree(ROOT / name, work / "source" / name, ignore=shutil.ignore_patterns("*.egg-info", "__py*"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, work / "source")
        self._run([path, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(work), str(work / "source")])
        (self._wheel,) = work.glob("*.whl")

    def resolve(self, platform: Platform, version: str, extra: str) -> dict[str, Any]:
        """Return a row: what pip would install, or why it refuses."""
        path, pip = self.pips[version]
        answer = self._work / f"{platform.release}-{version}-{extra}.json"
        command = [path, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(answer)]
        # fast-deps reads the metadata inside wheels, a few kB, where the index does not offer them by themselves.
        command += ["--no-build-isolation", "--use-feature=fast-deps", f"--cache-dir={self._work / 'cache'}"]
        told = {"PYTHONPATH": str(self._work), "EXTRAS_PLATFORM": json.dumps(asdict(platform))}
        done = self._run([*command, f"{self._wheel}[{extra}]"], told, check=False)
        row = {"name": extra, "platform": platform.name, "python": version, "pip": pip}
        if done.returncode:
            return {**row, "refused": refusal(done.stderr), "packages": {}}
        found = json.loads(answer.read_text("utf-8"))
        files = [each["download_info"]["url"].rpartition("/")[2] for each in found["install"]]
        hold_to(platform, found["environment"], files)
        packages = {canonical(each["metadata"]["name"]): each["metadata"]["version"] for each in found["install"]}
        sources = {canonical(file.rpartition("-")[0]) for file in files if not file.endswith(".whl")}
        chosen = sorted(packages.keys() & (named(extra, self._extras) | sources))
        words = ", ".join(f"{name} {packages[name]}{' (sdist)' if name in sources else ''}" for name in chosen)
        return {**row, "decides": words, "packages": packages}

    def _run(
        self, command: list[str], told: dict[str, str] | None = None, *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        kept |= {name: os.environ[name] for name in ("PIP_CERT", "PIP_INDEX_URL") if name in os.environ}
        kept |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(told or {})}
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
        return done


def hold_to(platform: Platform, asked: dict[str, str], files: Sequence[str]) -> None:
    """Raise RuntimeError if pip evaluated markers for another platform, or chose a wheel of another machine."""
    others = {each.machine for each in PLATFORMS} - {platform.machine}
    wrong = [file for file in files if any(machine in file for machine in others)]
    if (asked["platform_machine"], asked["platform_release"]) != (platform.machine, platform.release) or wrong:
        raise RuntimeError(f"pip was not told that it is on {platform}: {asked}, {wrong}")


def refusal(errors: str) -> str:
    """Return pip's reason in short; raises RuntimeError if it did not refuse but failed."""
    said = [line for line in errors.splitlines() if any(words in line for words in _REFUSALS)]
    if not said:
        raise RuntimeError(f"pip failed:\n{errors[-4000:]}")
    return said[0].removeprefix("ERROR: ").partition(";")[0]


def named(extra: str, extras: dict[str, list[str]]) -> set[str]:
    """Return the packages that an extra names, by way of others too."""
    found: set[str] = set()
    for requirement in extras[extra]:
        name, inner = re.findall(r"^([\w.-]+)(?:\[([\w,-]+)\])?", requirement)[0]
        parts = inner.split(",") if name == "milnce" else []
        found = found.union(*(named(part, extras) for part in parts)) if parts else found | {canonical(name)}
    return found


def canonical(name: str) -> str:
    """Return a package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def expected(row: dict[str, Any]) -> dict[str, list[str]]:
    """Return what has to hold of a row, and for each what keeps it from that."""
    has: dict[str, str] = row["packages"]
    found: dict[str, list[str]] = {}
    extra, jetson, said = row["name"], row["platform"] == JETSON.name, [row.get("decides") or row["refused"]]
    # PyTorch, which the exporter takes, is of CUDA 13 on the index: export elsewhere.
    if jetson and extra not in ("convert", "train"):
        useless = [name for name in has if re.match("tensorrt|onnxruntime-gpu|pynvvideocodec", name)]
        useless += [name for name in ("cuda-python", "cuda-bindings") if int(has.get(name, "0").partition(".")[0]) > 12]
        words = "TensorRT, onnxruntime-gpu, PyNvVideoCodec or CUDA 13's Python"
        found[f"but for the exporter's, no extra brings {words} to a Jetson"] = [
            f"{name} {has[name]}" for name in useless
        ]
    if jetson and extra == "jetson":
        good = has.get("cuda-python", "").startswith("12.9.") and {"onnxruntime", "av", "pillow"} <= has.keys()
        found["`jetson` brings onnxruntime, av, pillow and cuda-python 12.9 to a Jetson"] = [] if good else said
    if not jetson and extra == "cuda":
        good = "refused" in row if row["python"] == "3.10" else "onnxruntime-gpu" in has
        found["`cuda` brings onnxruntime-gpu to a server; on Python 3.10 pip refuses it"] = [] if good else said
    if extra in ("onnxruntime", "openvino", "video"):
        found["`onnxruntime`, `openvino` and `video` are refused nowhere"] = said if "refused" in row else []
    return found


if __name__ == "__main__":
    sys.exit(main())
