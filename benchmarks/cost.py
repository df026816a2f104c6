"""What running milnce costs beside the speed: start-up, imports, installed size, wheel, memory; against PyTorch.

    python benchmarks/cost.py [--runs 7] [--bundle DIR]

Every figure is of fresh processes, which take turns: from the start of Python to the first embedding of one clip, the
time of imports, and the peak resident memory (VmHWM, which the process reads itself: what a parent is told,
ru_maxrss, begins at the parent's own). Installed sizes are those of pip's RECORD files, over everything that an extra
requires. Without --bundle a full-width one of seeded weights is made once in --work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import harness
from bundles import full_width_bundle
from harness import RESULTS, Target
from milnce.bundle import Bundle
from milnce.errors import MilnceError
from milnce.timing import Timing, interleaved, ratios
from milnce_convert.judge import judge
from milnce_convert.sample_inputs import moving_clips
from sizes import installed_sizes, wheel_size

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {"nothing": "pass", "numpy": "import numpy", "milnce": "import milnce", "torch": "import torch"}
TORCH = "PyTorch eager FP32"
EMBEDS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"))
LARGEST_WHEEL_KB = 540  # a test holds every wheel to it
_LIMIT_S = 300
_CLIPS = 3
_NOW = "now"  # in a command: the time at which it is started

# A child says when its first clip is embedded and what memory it has needed until then; then it embeds the other clips,
# so that the outputs can be compared. The parent passes the time at which it started the child, by the system's clock.
_BEGIN = """
import json, re, sys, time
from pathlib import Path
began_ns = int(sys.argv[1])
entered = time.monotonic_ns()
import numpy as np
"""
_END = """
rows = [embed(clips[:1])]
first_s = (time.monotonic_ns() - began_ns) / 1e9
status = Path("/proc/self/status").read_text()
peak_mib = int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024
rows += [embed(clips[index : index + 1]) for index in range(1, len(clips))]
print(json.dumps({"first_s": first_s, "import_s": (imported - entered) / 1e9, "peak_mib": peak_mib,
                  "rows": np.concatenate(rows).tolist()}))
"""
_MILNCE = f"""{_BEGIN}
import milnce
imported = time.monotonic_ns()
clips = np.load(sys.argv[2], mmap_mode="r")
model = milnce.load(sys.argv[3], backend=sys.argv[4], precision=sys.argv[5], modules=("video",))
def embed(batch):
    return model.encode_video(np.asarray(batch)).embedding
{_END}"""
_TORCH = f"""{_BEGIN}
import torch
from milnce_convert.towers import S3D
from milnce_convert.towers.config import InceptionChannels, VideoConfig
imported = time.monotonic_ns()
clips = np.load(sys.argv[2], mmap_mode="r")
saved = torch.load(sys.argv[3], weights_only=True)
config = json.loads(saved["config"])
blocks = {{name: InceptionChannels(*plan) for name, plan in config.pop("blocks").items()}}
tower = S3D(VideoConfig(**config, blocks=blocks)).eval()
tower.load_state_dict(saved["weights"])
for module in tower.modules():
    if isinstance(module, torch.nn.BatchNorm3d):
        module.eps = 0.0  # as the tower that was rebuilt from the bundle has it
def embed(batch):
    with torch.no_grad():
        video = (torch.from_numpy(np.array(batch)).float() / 255).permute(0, 4, 1, 2, 3).contiguous()
        return tower(video)["video_embedding"].numpy()
{_END}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="rounds, after one that fills the caches")
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks", help="where the bundle is kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    bundle = options.bundle or full_width_bundle(options.work)
    imports, without_imports = import_times(options.runs)
    rows, without_rows = first_embeddings(bundle, options.runs)
    installed, without_sizes = installed_sizes()
    wheel, without_wheel = wheel_size()
    packed = wheel["packed_kb"] if wheel else None
    target = Target(
        "wheel, kB, which a test holds it to", LARGEST_WHEEL_KB, packed, "lower", bound=without_wheel.get("wheel", "")
    )
    report: dict[str, Any] = {
        "settings": {"runs": options.runs, "bundle": Bundle.open(bundle).manifest.name},
        "rows": rows,
        "imports": imports,
        "installed": installed,
        "wheel": wheel,
        "left_out": {**without_imports, **without_rows, **without_sizes, **without_wheel},
        "targets": [target.to_json()],
    }
    harness.write("cost", report, results=options.results)


def import_times(runs: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the wall time of fresh interpreters that import one thing, and what cannot be imported here."""
    actions = {name: partial(_start, [sys.executable, "-c", code]) for name, code in IMPORTS.items()}
    found, errors = interleaved(actions, rounds=2 * runs)
    empty_s = found["nothing"].median_s
    rows = [{"name": name, **timing.to_json(), "import_s": timing.median_s - empty_s} for name, timing in found.items()]
    return rows, {f"import {name}": error for name, error in errors.items()}


def first_embeddings(bundle: Path, runs: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Embed a clip in fresh processes of PyTorch and of each backend, in turns; return rows and what does not run."""
    answers: dict[str, list[dict[str, Any]]] = {}
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands, errors = _commands(bundle, Path(folder))
        for number in range(runs + 1):
            for name in [name for name in commands if name not in errors]:
                try:
                    answer = _start(commands[name])
                except (OSError, subprocess.SubprocessError, ValueError, RuntimeError) as error:
                    errors[name] = str(error)
                    continue
                if number:  # the first round fills the caches
                    answers.setdefault(name, []).append(json.loads(answer))
    return _rows({name: found for name, found in answers.items() if name not in errors}), errors


def _rows(answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row a process, the first the reference; one whose outputs fail their gate has no time."""
    rows = []
    for name, found in answers.items():
        reference = next(iter(answers.values()))
        gate = name.split()[-1].lower()
        parity, failures = judge(gate, np.asarray(reference[0]["rows"]), np.asarray(found[-1]["rows"]))
        row: dict[str, Any] = {"name": name, "gate": gate, "parity": parity, "failures": failures}
        row["peak_mib"] = statistics.median(answer["peak_mib"] for answer in found)
        if not failures:
            timing = Timing(tuple(answer["first_s"] for answer in found))
            over = Timing(tuple(answer["first_s"] for answer in reference))
            row |= {**timing.to_json(), "import_s": statistics.median(answer["import_s"] for answer in found)}
            row["speed"] = ratios(over, timing).to_json()
        rows.append(row)
    return rows


def _commands(bundle: Path, folder: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the processes to start, without the time at which they are, and why others cannot be."""
    sampling = Bundle.open(bundle).manifest.sampling
    clips = folder / "clips.npy"
    np.save(clips, moving_clips(_CLIPS, sampling["frames"], sampling["size"], sampling["size"], seed=3))
    commands: dict[str, list[str]] = {}
    errors: dict[str, str] = {}
    try:
        weights = save_tower(bundle, folder / "weights.pth")
        commands[TORCH] = [sys.executable, "-c", _TORCH, _NOW, str(clips), str(weights)]
    except (ImportError, MilnceError) as error:
        errors[TORCH] = str(error)
    for backend, precision in EMBEDS:
        command = [sys.executable, "-c", _MILNCE, _NOW, str(clips), str(bundle), backend, precision]
        commands[f"{backend} {precision}"] = command
    return commands, errors


def save_tower(bundle: Path, path: Path) -> Path:
    """Write the bundle's video tower as its users would have it, a file of weights; returns the path."""
    import torch  # noqa: PLC0415 - where it is installed

    from milnce_convert.from_bundle import rebuild_video_tower  # noqa: PLC0415

    tower = rebuild_video_tower(Bundle.open(bundle))
    torch.save({"config": json.dumps(asdict(tower.config)), "weights": tower.state_dict()}, path)
    return path


def _start(command: Sequence[str]) -> str:
    """Run a process to its end and return what it prints.

    Raises:
        RuntimeError: with the last line of its errors, if it fails.
    """
    given = [str(time.monotonic_ns()) if word == _NOW else word for word in command]
    result = subprocess.run(given, capture_output=True, text=True, check=False, timeout=_LIMIT_S, env=_environment())  # noqa: S603
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise RuntimeError(lines[-1])
    return result.stdout


def _environment() -> dict[str, str]:
    paths = [str(ROOT / name) for name in ("runtime", "convert")]
    return {
        **harness.environment(),
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


if __name__ == "__main__":
    main()
