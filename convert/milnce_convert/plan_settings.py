"""What the builder is told beside graph and sizes, held against what the library can do before anything is built."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from milnce.errors import InputError
from milnce.plans import HARDWARE_COMPATIBILITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce_convert.plan_module import Toolkit

_LEVELS = range(6)
_MEGABYTE = 10**6
# More memory than any GPU has, and within what the library's own type holds.
_LARGEST_WORKSPACE_BYTES = 10**12


@dataclass(frozen=True, slots=True)
class BuilderSettings:
    """What the builder is told, beside graph and profiles. None leaves the library its own default.

    Names that are given twice count once, and their order is of no matter.

    Attributes:
        workspace_bytes: Most scratch memory a layer may take, 10**6 to 10**12; TensorRT's default is all of the GPU's.
        optimization_level: Effort, 0 to 5; TensorRT's default is 3.
        hardware_compatibility: "none", "same-compute-capability" or "ampere-plus".
        version_compatible: Build for newer versions and tensorrt_lean too; the plan then brings its lean runtime.
        tf32: Let FP32 convolutions round their factors to 10 bits of mantissa.
        compute_capabilities: GPUs to build for ahead of time, such as ("8.9",).
        tactic_sources: Names of `trt.TacticSource`.
    """

    workspace_bytes: int | None = None
    optimization_level: int | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    tf32: bool = False
    compute_capabilities: tuple[str, ...] | None = None
    tactic_sources: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Put names into one order, as plans built with the same ones are the same."""
        if self.compute_capabilities is not None:
            ordered = sorted(set(self.compute_capabilities), key=lambda name: [*map(int, re.findall(r"\d+", name))])
            object.__setattr__(self, "compute_capabilities", tuple(ordered))
        if self.tactic_sources is not None:
            object.__setattr__(self, "tactic_sources", tuple(sorted(set(self.tactic_sources))))

    def to_json(self) -> dict[str, Any]:
        """Return the sidecar's form."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def check_settings(toolkit: Toolkit, settings: BuilderSettings) -> None:
    """Hold settings against what the library can do.

    Raises:
        InputError: naming the setting, what was given and what this library takes.
    """
    able, library = toolkit.capabilities, toolkit.library
    if settings.optimization_level is not None:
        if not able.optimization_level:
            raise InputError(f"an optimisation level was given; {library} has none: leave it out")
        if settings.optimization_level not in _LEVELS:
            raise InputError(f"optimisation level {settings.optimization_level} given; levels are 0 to {_LEVELS[-1]}")
    workspace_bytes = settings.workspace_bytes
    if workspace_bytes is not None and not _MEGABYTE <= workspace_bytes <= _LARGEST_WORKSPACE_BYTES:
        raise InputError(
            f"a workspace of {workspace_bytes} bytes given; {_MEGABYTE} to {_LARGEST_WORKSPACE_BYTES} expected"
        )
    if settings.hardware_compatibility not in able.hardware_compatibilities:
        known = settings.hardware_compatibility in HARDWARE_COMPATIBILITIES and able.compute_capabilities
        why = "; its plans name the GPUs they are for: --compute-capability" if known else ""
        levels = ", ".join(able.hardware_compatibilities)
        raise InputError(
            f"hardware compatibility {settings.hardware_compatibility!r} given; {library} has: {levels}{why}"
        )
    if settings.version_compatible and not able.version_compatible:
        raise InputError(
            f"a version-compatible plan was asked for; {library} builds none: every version of it runs its own plans "
            "only. Leave it out, and build again after an upgrade"
        )
    _check_targets(toolkit, settings.compute_capabilities)
    if settings.tactic_sources is not None:
        check_names("tactic source", settings.tactic_sources, able.tactic_sources)


def _check_targets(toolkit: Toolkit, targets: tuple[str, ...] | None) -> None:
    able, library = toolkit.capabilities, toolkit.library
    if targets is None:
        return
    if not able.compute_capabilities:
        raise InputError(
            f"compute capability {', '.join(targets)} given; {library} builds for the GPU it runs on. To let a plan "
            "run on others: --hardware-compatibility"
        )
    wrong = [target for target in targets if target not in able.compute_capabilities]
    if wrong or not targets:
        raise InputError(
            f"compute capability {', '.join(wrong) or 'none'} given; {library} builds for "
            f"{', '.join(able.compute_capabilities)}. GPUs of data centres, such as H100 and H200 (9.0), run plans of "
            "tensorrt, built on them"
        )


def check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        InputError: naming it, and those that are known.
    """
    for name in given:
        if name not in known:
            raise InputError(f"{what} {name!r} given; there are: {', '.join(known)}")
