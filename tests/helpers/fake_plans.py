"""Plans of the simulated TensorRT for a bundle, with the sidecars that real ones have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.fake_tensorrt import VERSIONS, make_fake_plan
from milnce.plans import Plan, PlanProfile, write_plan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from helpers.fake_cuda import FakeCuda
    from helpers.fake_tensorrt import Flavour
    from milnce.bundle import Bundle
    from milnce.manifest import GraphFile

    Shape = tuple[int, ...]

ITEMS: dict[tuple[str, str], Shape] = {
    ("video", "uint8"): (4, 16, 16, 3),
    ("video", "float32"): (3, 4, 16, 16),
    ("text", "tokens"): (16,),
    ("projection", "mixed_5c"): (12,),
}
SIZES = (1, 2, 4, 8)


def fixed(graph: GraphFile, sizes: Sequence[int] = SIZES, item: Shape | None = None) -> list[PlanProfile]:
    """Return a profile for each batch size."""
    shape = item or ITEMS[graph.module, graph.input_form]
    return [PlanProfile({graph.inputs[0].name: ((size, *shape),) * 3}) for size in sizes]


def write_fake_plan(
    bundle: Bundle,
    graph: GraphFile,
    fake: FakeCuda,
    *,
    flavour: Flavour = "10",
    profiles: Sequence[PlanProfile] | None = None,
    folder: Path | None = None,
    sidecar: dict[str, Any] | None = None,
    **options: Any,  # noqa: ANN401  # make_fake_plan's own
) -> Plan:
    """Write a plan of `graph` for the first simulated GPU.

    Args:
        bundle: The bundle.
        graph: Which graph of it.
        fake: The simulated GPUs.
        flavour: Of the library that "built" it.
        profiles: Its profiles; by default a batch of each of `SIZES`.
        folder: Where; the bundle's own folder of plans if None.
        sidecar: Fields of the sidecar that are to differ.
        **options: Of `make_fake_plan`.
    """
    chosen = list(profiles or fixed(graph))
    version = options.pop("version", VERSIONS[flavour])
    data = make_fake_plan(
        bundle.read(graph),
        [profile.shapes for profile in chosen],
        version=version,
        **options,
    )
    gpu = fake.gpus[0]
    plan = Plan(
        format_version=1,
        file="",
        sha256="0" * 64,
        bytes=1,
        module=graph.module,
        input_form=graph.input_form,
        precision=graph.precision,
        onnx_sha256=graph.sha256,
        library="tensorrt_rtx" if flavour == "rtx" else "tensorrt",
        library_version=version,
        compute_capabilities=(".".join(map(str, gpu.compute_capability)),),
        gpu=None if flavour == "rtx" else gpu.name,
        driver="13.0",
        hardware_compatibility="none",
        version_compatible=bool(options.get("version_compatible", False)),
        profiles=tuple(chosen),
        build_s=1.0,
        date="2026-01-01T00:00:00+00:00",
    )
    fields = {name: getattr(plan, name) for name in plan.__slots__}
    return write_plan(folder or bundle.path / "plans", data, Plan(**{**fields, **(sidecar or {})}))


def write_fake_plans(bundle: Bundle, fake: FakeCuda, *, flavour: Flavour = "10", precision: str = "fp32") -> None:
    """Write a plan of every graph in a precision, and of the projection."""
    for graph in bundle.manifest.graphs:
        if graph.precision == precision or graph.module == "projection":
            write_fake_plan(bundle, graph, fake, flavour=flavour)
