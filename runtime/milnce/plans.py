"""TensorRT plans: which libraries are installed here, and which plan of a folder fits this GPU, version and graph.

`milnce build BUNDLE` makes plans. One that does not fit is stale: it is named, with what differs and the command that
builds one that does.
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import TYPE_CHECKING

from milnce.errors import PlanError
from milnce.manifest import MANIFEST_FILE
from milnce.plan_file import FORMAT_VERSION, HARDWARE_COMPATIBILITIES, Plan, PlanProfile, Shape, plan_name
from milnce.plan_folder import read_plan, sidecars, write_plan
from milnce.plan_rank import largest_batch, own_item_shapes, takes_items
from milnce.platforms import install, jetpack, jetson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from milnce.cuda import GpuInfo
    from milnce.manifest import GraphFile

__all__ = [
    "FORMAT_VERSION",
    "HARDWARE_COMPATIBILITIES",
    "LIBRARIES",
    "PLANS_FOLDER",
    "Library",
    "Plan",
    "PlanProfile",
    "Shape",
    "build_command",
    "find_plan",
    "install_command",
    "installed_libraries",
    "library_problems",
    "obstacle",
    "own_item_shapes",
    "plan_name",
    "read_plan",
    "sidecars",
    "write_plan",
]

PLANS_FOLDER = "plans"
# In the order in which plans are looked for: the one that tunes for this GPU first.
LIBRARIES = ("tensorrt", "tensorrt_lean", "tensorrt_rtx")

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
# TensorRT from the package index is in parts that name their CUDA, JetPack has one package. Those of the index run on a
# Jetson from JetPack 7 on:
# https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html
_FROM_INDEX = re.compile(r"tensorrt[-_](cu\d+|lean[-_]cu\d+|rtx).*")
_FIRST_JETPACK = 7
# Version-compatible plans run across these majors, and never on an older version: NVIDIA's support matrix of 11.4.1.
_COMPATIBLE_MAJORS = {(8, 10), (10, 11)}
_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class Library:
    """An installed TensorRT.

    Attributes:
        name: The module: "tensorrt", "tensorrt_lean" or "tensorrt_rtx".
        version: Its exact version.
    """

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed_libraries() -> tuple[Library, ...]:
    """Import every TensorRT module that is here, and return those that load, in the order of `LIBRARIES`."""
    found, _ = _import_libraries()
    return found


def library_problems() -> tuple[str, ...]:
    """Return one sentence, with the cure, for each TensorRT module that is installed and does not load."""
    _, problems = _import_libraries()
    return problems


def find_plan(
    folder: Path,
    graph: GraphFile,
    gpu: GpuInfo,
    libraries: Sequence[Library],
    *,
    bundle: Path | None = None,
    item_shapes: Mapping[str, Shape] | None = None,
) -> tuple[Plan, Library]:
    """Return the plan in `folder` to run `graph` with on `gpu`, and the library to run it.

    Of several that fit, one in TF32 is taken only if no other is there. Then a plan wins that takes the bundle's own
    sizes, then the library that comes first in `libraries`, then a plan for this very GPU and version over a portable
    one, then the one with the largest batch, then the one that was built last.

    Args:
        folder: The folder of plans.
        graph: The graph's entry in the bundle's manifest.
        gpu: The GPU to run on.
        libraries: Installed libraries, preferred ones first.
        bundle: Path of the bundle, for the command in messages; None if it is not known.
        item_shapes: Shape of one item of each input, see `own_item_shapes`; None if any size will do.

    Raises:
        PlanError: if none fits; the message names every candidate, why it does not fit, and the command that builds
            one.
    """
    command = build_command(folder, graph, bundle=bundle, gpu=gpu.index)
    if not libraries:
        raise PlanError(f"no TensorRT library is installed: {install_command('tensorrt')}; then: {command}")
    if not folder.exists():
        raise PlanError(f"there are no plans at {folder}; build them: {command}")
    plans, problems = sidecars(folder)
    same = [plan for plan in plans if _graph_key(plan) == _graph_key(graph)]
    fitting: list[tuple[Plan, Library]] = []
    for plan in same:
        reasons = {library: obstacle(plan, graph, gpu, library) for library in _runners(plan, libraries)}
        fitting += [(plan, library) for library, reason in reasons.items() if reason is None]
        if not reasons:
            problems.append(f"{plan.file}: {_lacks_library(plan, libraries)}")
        elif None not in reasons.values():
            problems += [f"{plan.file}: {reason}" for reason in dict.fromkeys(reasons.values())]
    if fitting:
        newest_first = sorted(fitting, key=lambda found: found[0].date, reverse=True)
        return min(
            newest_first,
            key=lambda found: (
                found[0].tf32,
                not takes_items(found[0], item_shapes or {}),
                libraries.index(found[1]),
                _portability(found[0]),
                -largest_batch(found[0]),
            ),
        )
    held = ", ".join(sorted({" ".join(_graph_key(plan)) for plan in plans})) or "none"
    installed = ", ".join(map(str, libraries))
    listed = "".join(f"\n  - {problem}" for problem in problems)
    raise PlanError(
        f"no plan in {folder} runs {graph} on {_describe(gpu)} with {installed}; it holds plans of: {held}. "
        f"Build one: {command}{listed}"
    )


def obstacle(plan: Plan, graph: GraphFile, gpu: GpuInfo, library: Library) -> str | None:
    """Return why `library` cannot run `plan` for `graph` on `gpu`, or None if it can.

    Args:
        plan: A plan's sidecar, of this graph's module, input form and precision.
        graph: The graph's entry in the bundle's manifest.
        gpu: The GPU to run on.
        library: An installed library that runs plans of the plan's kind.
    """
    if plan.onnx_sha256 != graph.sha256:
        return (
            f"it was built from another {graph.file} (sha256 {plan.onnx_sha256[:12]}..., "
            f"the bundle's is {graph.sha256[:12]}...)"
        )
    return _version_obstacle(plan, library) or _hardware_obstacle(plan, gpu)


def build_command(folder: Path, graph: GraphFile, *, bundle: Path | None = None, gpu: int = 0) -> str:
    """Return the command that builds a plan of `graph` into `folder`.

    Args:
        folder: The folder of plans.
        graph: The graph's entry in the bundle's manifest.
        bundle: Path of the bundle; None if it is not known: then "BUNDLE", unless `folder` lies in a bundle.
        gpu: Index of the GPU.
    """
    if bundle is None and folder.name == PLANS_FOLDER and (folder.parent / MANIFEST_FILE).is_file():
        bundle = folder.parent
    words = ["milnce build", "BUNDLE" if bundle is None else shlex.quote(str(bundle))]
    if bundle is None or folder != bundle / PLANS_FOLDER:
        words += ["--plans", shlex.quote(str(folder))]
    if gpu:
        words += ["--gpu", str(gpu)]
    if graph.input_form == "float32":
        words += ["--input-form", graph.input_form]
    if graph.precision == "fp32" and graph.module != "projection":
        words += ["--precision", graph.precision]
    return " ".join(words)


def _import_libraries() -> tuple[tuple[Library, ...], tuple[str, ...]]:
    found, problems = [], []
    for name in LIBRARIES:
        if not _is_installed(name):
            continue
        try:
            library = Library(name, str(import_module(name).__version__))
        except Exception as error:
            if _comes_from_ctrl_c(error):
                raise KeyboardInterrupt from error
            problems.append(f"{name} is installed but does not load ({error}); reinstall it: {install_command(name)}")
            continue
        problem = _jetson_problem(library)
        if problem is None:
            found.append(library)
        else:
            problems.append(problem)
    return tuple(found), tuple(problems)


def install_command(library: str) -> str:
    """Return what installs a library of `LIBRARIES`, or what to do where pip has none that works."""
    if library == "tensorrt_lean" and jetson() is None:
        return "pip install tensorrt-lean"
    return install(_EXTRAS.get(library, "tensorrt"))


def _jetson_problem(library: Library) -> str | None:
    """Return why a TensorRT cannot run here if this is a Jetson and it came from the index, else None."""
    if jetson() is None or (library.name != "tensorrt_rtx" and (jetpack() or _FIRST_JETPACK) >= _FIRST_JETPACK):
        return None
    every = {found.name or "" for found in distributions()}  # one that was damaged has no name
    parts = sorted(name for name in every if name.startswith(library.name) and _FROM_INDEX.fullmatch(name))
    if library.name == "tensorrt":
        parts = [name for name in parts if not re.match(r"tensorrt[-_](lean|rtx)", name)]
    if not parts:
        return None
    names = " ".join(dict.fromkeys([library.name, *parts]))
    return (
        f"{library} is not JetPack's and does not run on this Jetson: pip uninstall -y {names}; {install('tensorrt')}"
    )


def _comes_from_ctrl_c(error: BaseException) -> bool:
    """Whether a failed import was an interrupted one: pybind11 makes an ImportError of anything raised meanwhile."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if found is None or found in seen:
            continue
        if isinstance(found, KeyboardInterrupt):
            return True
        seen.append(found)
        left += [found.__cause__, found.__context__]
    return False


def _is_installed(name: str) -> bool:
    # None in sys.modules is how an import is refused.
    return sys.modules[name] is not None if name in sys.modules else find_spec(name) is not None


def _graph_key(value: Plan | GraphFile) -> tuple[str, str, str]:
    return value.module, value.input_form, value.precision


def _runners(plan: Plan, libraries: Sequence[Library]) -> list[Library]:
    """Return the libraries that run plans of this kind."""
    names = ("tensorrt", "tensorrt_lean") if plan.library == "tensorrt" else (plan.library,)
    return [library for library in libraries if library.name in names]


def _lacks_library(plan: Plan, libraries: Sequence[Library]) -> str:
    installed = ", ".join(map(str, libraries))
    return f"{plan.library} {plan.library_version} built it, and {installed} cannot run it"


def _version_obstacle(plan: Plan, library: Library) -> str | None:
    built = f"{plan.library} {plan.library_version} built it, and {library} is installed"
    if library.name == "tensorrt_lean" and not plan.version_compatible:
        return f"{built}, which runs version-compatible plans only (milnce build --version-compatible)"
    if not plan.version_compatible:
        return None if plan.library_version == library.version else f"{built}; a plan runs on its exact version"
    old, new = _numbers(plan.library_version), _numbers(library.version)
    if old > new:
        return f"{built}; a version-compatible plan runs on the same version or a newer one"
    if old[0] != new[0] and (old[0], new[0]) not in _COMPATIBLE_MAJORS:
        return f"{built}; a version-compatible plan of version {old[0]} does not run on version {new[0]}"
    return None


def _hardware_obstacle(plan: Plan, gpu: GpuInfo) -> str | None:
    capability = _capability(gpu)
    targets = ", ".join(plan.compute_capabilities)
    here = f"this is {_describe(gpu)}"
    if plan.hardware_compatibility == "ampere-plus":
        fits = gpu.compute_capability >= _AMPERE
        return None if fits else f"it is for GPUs of compute capability 8.0 and newer; {here}"
    if capability not in plan.compute_capabilities:
        return f"it is for compute capability {targets}; {here}"
    # TensorRT-RTX makes its kernels on the GPU it runs on, so its plans know no models.
    if plan.library == "tensorrt" and plan.hardware_compatibility == "none" and plan.gpu != gpu.name:
        return f"it is for {plan.gpu}; {here}"
    return None


def _portability(plan: Plan) -> tuple[bool, int]:
    """Return a key that sorts plans for one GPU and version first: they were tuned with everything allowed."""
    return plan.version_compatible, HARDWARE_COMPATIBILITIES.index(plan.hardware_compatibility)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _capability(gpu: GpuInfo) -> str:
    return ".".join(map(str, gpu.compute_capability))


def _describe(gpu: GpuInfo) -> str:
    return f"{gpu.name} (compute capability {_capability(gpu)})"
