"""Plans with their sidecars, and the configurations of a Triton repository, for tests of hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.triton_proto import check_config, parse_config
from milnce.plans import Plan, PlanProfile, write_plan

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.bundle import Bundle

BUCKETS = (1, 2, 4)
UINT8, INT32, INT64, FP32 = 2, 8, 9, 11  # DataType of model_config.proto


def fixed(*batches: int) -> tuple[PlanProfile, ...]:
    return tuple(PlanProfile({"video": ((batch, 4, 32, 32, 3),) * 3}) for batch in batches)


def add_plan(
    folder: Path,
    bundle: Bundle,
    *,
    module: str = "video",
    data: bytes = b"a plan",
    precision: str = "fp16",
    **changes: Any,  # noqa: ANN401 - fields of several types
) -> Plan:
    """Write a plan and its sidecar, as `milnce build` does; the plan itself is only bytes."""
    graph = bundle.graph(module, precision=precision)
    text = tuple(PlanProfile({"tokens": ((batch, 16),) * 3}) for batch in BUCKETS)
    values: dict[str, Any] = {
        "format_version": 1,
        "file": "",
        "sha256": "",
        "bytes": 0,
        "module": module,
        "input_form": graph.input_form,
        "precision": precision,
        "onnx_sha256": graph.sha256,
        "library": "tensorrt",
        "library_version": "11.4.0.106",
        "compute_capabilities": ("9.0",),
        "gpu": "NVIDIA H200",
        "driver": "13.0",
        "hardware_compatibility": "none",
        "version_compatible": False,
        "profiles": fixed(*BUCKETS) if module == "video" else text,
        "build_s": 60.0,
        "date": "2026-11-21T12:00:00+00:00",
    }
    return write_plan(folder, data, Plan(**{**values, **changes}))


def read_config(destination: Path, model: str) -> Any:  # noqa: ANN401 - a ModelConfig
    """Read a model's configuration, and hold it against what Triton refuses to load."""
    folder = destination / model
    config = parse_config((folder / "config.pbtxt").read_text(encoding="ascii"))
    check_config(config, folder)
    return config


def shape_of(tensors: Any) -> dict[str, tuple[int, list[int]]]:  # noqa: ANN401 - a list of ModelInput
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}
