"""`milnce doctor`: what this machine can run, and what is missing."""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce import machine, platforms
from milnce.cli.common import (
    EXIT_FAILED,
    JsonOption,
    describe_backend,
    print_json,
    print_table,
    printable,
    reported,
    size,
)
from milnce.errors import MilnceError

if TYPE_CHECKING:
    from milnce.backends import Availability

BundleToTryOption = Annotated[
    Path | None, typer.Option("--bundle", "-b", help="Also open this bundle, and run one small clip and a sentence.")
]

_CPU_INFO = Path("/proc/cpuinfo")
# Instruction sets of x86 that change how fast the towers run; bf16 needs one of those that name it.
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")

# First releases of each FFmpeg line with the fix of CVE-2026-8461.
_FFMPEG_FIXED = ((8, 0, 3), (8, 1, 2))
_FFMPEG_FIXED_LINE = (9, 0, 0)


@reported
def doctor(*, bundle: BundleToTryOption = None, json_output: JsonOption = False) -> None:
    """Say what this machine can run, and for what it cannot, how to install it.

    Exits with 0 if at least one backend that runs videos works and, with --bundle, the bundle runs; what is wrong is in
    the report.
    """
    import milnce  # noqa: PLC0415  # commands import what they need when they run
    from milnce.backends import available  # noqa: PLC0415

    backends = available()
    report: dict[str, Any] = {
        "milnce": milnce.__version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "cpu": cpu(),
        "board": board(),
        "gpu": gpu_driver(),
        "backends": [_backend(item) for item in backends],
        "packages": [video_package(), gpu_decoder(), *map(_package, _PACKAGES)],
        "bundle": None if bundle is None else try_bundle(bundle),
    }
    if json_output:
        print_json(report)
    else:
        _print(report)
    broken = report["bundle"] is not None and report["bundle"]["problem"] is not None
    if broken or all(item.problem is not None for item in backends if "video" in item.modules):
        raise typer.Exit(EXIT_FAILED)


# What else milnce can use: distribution, what for, the extra that brings it.
_PACKAGES = (
    ("pillow", "contact sheets", "video"),
    ("pyarrow", "Parquet features", "parquet"),
    ("cuda-bindings", "running on an NVIDIA GPU", None),  # which one, the board decides
    ("tensorrt", "building and running plans for this GPU", "tensorrt"),
    ("tensorrt-rtx", "building plans for RTX GPUs, on any machine", "rtx"),
    ("nncf", "quantising to INT8", "int8"),
    ("torch", "export only", "convert"),
    ("onnx", "export only", "convert"),
)


def board() -> dict[str, str] | None:
    """Return what the Jetson is that this runs on, and what installs milnce there; None on any other machine."""
    name = platforms.jetson()
    return None if name is None else {"name": name, "install": platforms.install("tensorrt")}


def cpu() -> dict[str, Any]:
    """Return the CPU's name, the cores this process may use, and the instruction sets that matter."""
    features = platforms.arm_features()
    if not platforms.is_arm() and _CPU_INFO.is_file():
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
        features = tuple(flag for flag in _CPU_FLAGS if flag in flags)
    return {"name": machine.cpu_name(), "cores": machine.cores(), "flags": list(features)}


def gpu_driver() -> dict[str, Any]:
    """Return whether NVIDIA's driver is there, the newest CUDA it runs, and the GPUs that this process can use."""
    entry: dict[str, Any] = {"driver": False, "cuda": None, "devices": [], "problem": None}
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        number = ctypes.c_int()
        status = driver.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return entry
    entry["driver"] = True
    if status == 0:
        entry["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    from milnce.cuda import gpus  # noqa: PLC0415  # commands import what they need when they run

    try:
        entry["devices"] = [
            {
                "index": gpu.index,
                "name": gpu.name,
                "compute_capability": ".".join(map(str, gpu.compute_capability)),
                "memory_bytes": gpu.total_bytes,
            }
            for gpu in gpus()
        ]
    except MilnceError as error:
        entry["problem"] = str(error)
    return entry


def video_package() -> dict[str, Any]:
    """Return PyAV's and its FFmpeg's version, and what they mean for files from strangers."""
    found = _version("av")
    entry: dict[str, Any] = {"name": "av", "version": found, "for": "reading videos", "problem": None, "note": None}
    if found is None:
        entry["problem"] = f"not installed: {platforms.install('video')}"
        return entry
    try:
        import av  # noqa: PLC0415  # optional
    except ImportError as error:
        entry["problem"] = f'does not load ({error}); run: pip install --force-reinstall "milnce[video]"'
        return entry
    ffmpeg = str(av.ffmpeg_version_info)
    entry["ffmpeg"] = ffmpeg
    entry["note"] = ffmpeg_note(ffmpeg)
    return entry


def gpu_decoder() -> dict[str, Any]:
    """Return the version of what NVIDIA's decoder is used through, and why it cannot be used."""
    entry = _package(("PyNvVideoCodec", "reading videos on an NVIDIA GPU", "nvdec"))
    if entry["version"] is not None:
        from milnce.video import nvdec  # noqa: PLC0415  # commands import what they need when they run

        entry["problem"] = nvdec.problem()
    return entry


def ffmpeg_note(ffmpeg: str) -> str | None:
    """Say what an FFmpeg without the fix of CVE-2026-8461 means; None when it has the fix.

    The hole is in the MagicYUV decoder; fixed in 8.0.3, 8.1.2 and 9.0 (JFrog's advisory "PixelSmash").
    """
    digits = ffmpeg.lstrip("n").split("-")[0].split(".")
    if not all(part.isdigit() for part in digits) or len(digits) < 2:  # noqa: PLR2004  # major.minor
        return f"FFmpeg {ffmpeg}: whether CVE-2026-8461 is fixed cannot be told from its version"
    numbers = tuple(map(int, (*digits, "0")[:3]))
    if numbers >= _FFMPEG_FIXED_LINE or any(numbers[:2] == fixed[:2] and numbers >= fixed for fixed in _FFMPEG_FIXED):
        return None
    note = (
        f"FFmpeg {ffmpeg} is older than the fix of CVE-2026-8461 (8.0.3, 8.1.2, 9.0), a hole in the MagicYUV decoder. "
        "milnce's list of allowed codecs leaves that decoder out, so milnce does not reach it; other programs may"
    )
    newer = sys.version_info >= (3, 11)
    return f"{note}. Cure: {'pip install --upgrade av' if newer else 'Python 3.11 or newer, and PyAV 18 or newer'}"


def try_bundle(bundle: Path) -> dict[str, Any]:
    """Open a bundle and run the smallest clip of a video graph that it has, and a sentence; say what went wrong."""
    entry: dict[str, Any] = {"path": str(bundle), "problem": None}
    try:
        entry.update(_run_bundle(bundle))
    except MilnceError as error:
        entry["problem"] = str(error)
    return entry


def _run_bundle(bundle: Path) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    import milnce  # noqa: PLC0415

    held = milnce.Bundle.open(bundle).manifest.graphs
    # FP16 only where the bundle has nothing else: it is never taken unasked.
    exact = any((graph.module, graph.precision) == ("video", "fp32") for graph in held)
    with milnce.load(bundle, precision=None if exact else "fp16") as model:  # None also takes plans, if there are any
        spec = model.open("video").inputs[0]
        clip = np.zeros([axis.minimum for axis in spec.shape], spec.dtype)
        model.encode_video(clip)
        model.encode_text("open the door")
        modules = {module: describe_backend(choice) for module, choice in sorted(model.running.items())}
        about = {"clip": list(clip.shape), "dtype": spec.dtype, **describe_backend(model.backend)}
        return {**about, "modules": modules}


def _backend(item: Availability) -> dict[str, Any]:
    return {
        "name": item.name,
        "version": item.version,
        "devices": list(item.devices),
        "precisions": list(item.precisions),
        "modules": list(item.modules),
        "cpu_problems": dict(item.cpu_problems),
        "problem": item.problem,
    }


def _package(entry: tuple[str, str, str | None]) -> dict[str, Any]:
    name, purpose, extra = entry
    found = _version(name)
    problem = None if found else f"not installed: {platforms.install(extra or platforms.bindings_extra())}"
    return {"name": name, "version": found, "for": purpose, "problem": problem, "note": None}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _abilities(item: dict[str, Any]) -> str:
    alone = "" if "video" in item["modules"] else f"; {', '.join(item['modules'])} alone"
    refused = "".join(f"\nnot {precision} on the CPU: {why}" for precision, why in item["cpu_problems"].items())
    return f"{', '.join(item['devices'])}; {', '.join(item['precisions'])}{alone}{refused}"


def _print(report: dict[str, Any]) -> None:
    processor, gpu = report["cpu"], report["gpu"]
    typer.echo(f"milnce {report['milnce']}, Python {report['python']['version']}, {report['platform']}")
    typer.echo(f"CPU: {processor['name']}, {processor['cores']} cores, {' '.join(processor['flags'])}")
    if report["board"] is not None:
        typer.echo(f"Board: {report['board']['name']}; {report['board']['install']}")
    driver = "NVIDIA driver not found" if not gpu["driver"] else f"NVIDIA driver present, CUDA up to {gpu['cuda']}"
    typer.echo(f"GPU: {driver}")
    for device in gpu["devices"]:
        about = f"compute capability {device['compute_capability']}, {size(device['memory_bytes'])}"
        typer.echo(f"GPU {device['index']}: {device['name']}, {about}")
    if gpu["problem"] is not None:
        typer.echo(f"GPU: {gpu['problem']}")
    rows = [
        [
            item["name"],
            item["version"] or "-",
            # Not "missing": two packages that overwrite each other are there, and too many.
            "ok" if item["problem"] is None else "unusable",
            item["problem"] or _abilities(item),
        ]
        for item in report["backends"]
    ]
    print_table([("backend", "left"), ("version", "left"), ("", "left"), ("devices; precisions", "left")], rows)
    packages = [
        [
            item["name"],
            item["version"] or "-",
            "ok" if item["problem"] is None else "missing" if item["version"] is None else "broken",
            f"{item['for']}{', FFmpeg ' + item['ffmpeg'] if 'ffmpeg' in item else ''}"
            + "".join(f"\n{text}" for text in (item["problem"], item["note"]) if text),
        ]
        for item in report["packages"]
    ]
    print_table([("package", "left"), ("version", "left"), ("", "left"), ("for", "left")], packages)
    tried = report["bundle"]
    if tried is not None:
        outcome = (
            tried["problem"] or f"ran a {tried['dtype']} clip of {tried['clip']} and a sentence; {tried['reason']}"
        )
        typer.echo(printable(f"bundle {tried['path']}: {outcome}", lines=True))
