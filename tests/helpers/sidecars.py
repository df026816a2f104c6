"""Sidecars of made-up plans of the tiny bundle, and GPUs and libraries for them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from milnce.cuda import GpuInfo
from milnce.plans import Library, Plan, PlanProfile

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.manifest import GraphFile

DATA = bytes(range(256)) * 40

H200 = GpuInfo(0, "NVIDIA H200", (9, 0), 150 * 10**9, (13, 0), 132)
H100 = replace(H200, name="NVIDIA H100 80GB HBM3")
L4 = replace(H200, name="NVIDIA L4", compute_capability=(8, 9))
T4 = replace(H200, name="Tesla T4", compute_capability=(7, 5))
B200 = replace(H200, name="NVIDIA B200", compute_capability=(10, 0))

TENSORRT = Library("tensorrt", "11.1.0.106")
RTX = Library("tensorrt_rtx", "1.7.1.116")
RTX_FIELDS: dict[str, Any] = {
    "library": "tensorrt_rtx",
    "library_version": RTX.version,
    "compute_capabilities": ("8.0", "8.6", "8.9", "12.0", "12.1"),
    "gpu": None,
    "driver": None,
}


def video_profiles(*batches: int) -> tuple[PlanProfile, ...]:
    """Return a profile of fixed shape for each batch size."""
    return tuple(PlanProfile({"video": ((batch, 4, 32, 32, 3),) * 3}) for batch in batches)


def make_sidecar(graph: GraphFile, **changes: Any) -> Plan:  # noqa: ANN401 - fields of Plan
    """Return the sidecar of a plan of `graph` that `TENSORRT` built on `H200`, with other fields where given."""
    values: dict[str, Any] = {
        "format_version": 1,
        "file": "x.plan",
        "sha256": "0" * 64,
        "bytes": 1,
        "module": graph.module,
        "input_form": graph.input_form,
        "precision": graph.precision,
        "onnx_sha256": graph.sha256,
        "library": "tensorrt",
        "library_version": TENSORRT.version,
        "compute_capabilities": ("9.0",),
        "gpu": H200.name,
        "driver": "13.0",
        "hardware_compatibility": "none",
        "version_compatible": False,
        "profiles": video_profiles(1, 8),
        "build_s": 1.5,
        "date": "2026-11-21T10:00:00+00:00",
        "options": {"settings": {"tf32": False}},
    }
    return Plan(**{**values, **changes})


def names_in(folder: Path) -> list[str]:
    """Return the names of a folder's files, sorted."""
    return sorted(path.name for path in folder.iterdir())
