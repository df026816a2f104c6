"""The sidecar of a TensorRT plan: what the plan is, where it runs, and its hash; and the strict reader of it.

The reader trusts nothing: every field is checked, and everything that is wrong is reported in one error.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from milnce.errors import PlanError
from milnce.json_fields import Fields, brief, strict_json
from milnce.manifest import SIGNATURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT_VERSION = 1
LIBRARIES = ("tensorrt", "tensorrt_rtx")
# A bundle's INT8 graphs are quantised for CPUs; no plan is built of them.
PRECISIONS = ("fp32", "fp16")
HARDWARE_COMPATIBILITIES = ("none", "same-compute-capability", "ampere-plus")

Shape = tuple[int, ...]

_FORMAT = "milnce-plan"
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,2}")
_VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z_+-]+)*")
# Plans of these towers take 20 MB to 300 MB, of the largest sizes 1.5 GB each (TensorRT-RTX). The bound keeps a wrong
# file out of memory.
_BYTES = range(1, 2**34 + 1)
_NAME_LIMIT = 180  # with room for the suffixes, below the 255 bytes that file systems take


@dataclass(frozen=True, slots=True)
class PlanProfile:
    """One optimisation profile.

    Attributes:
        shapes: Input name -> (minimum, optimum, maximum) shape. Equal where the profile takes one shape only.
    """

    shapes: Mapping[str, tuple[Shape, Shape, Shape]]

    def to_json(self) -> dict[str, dict[str, list[int]]]:
        """Return the sidecar's form."""
        return {
            name: {key: list(shape) for key, shape in zip(("min", "opt", "max"), shapes, strict=True)}
            for name, shapes in self.shapes.items()
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What the sidecar says of a plan.

    Attributes:
        format_version: Version of the sidecar's format, 1 here.
        file: Name of the plan in its folder; the sidecar is `file` + ".json".
        sha256: Hex digest of the plan.
        bytes: Its size, at most 16 GiB.
        module: Tower: "video", "text" or "projection".
        input_form: As in the bundle's manifest.
        precision: "fp32" or "fp16", the dtype inside the graph.
        onnx_sha256: Hex digest of the ONNX file that it was built from.
        library: What built it: "tensorrt" or "tensorrt_rtx".
        library_version: Its exact version.
        compute_capabilities: GPUs it was built for, such as ("9.0",).
        gpu: Name of the GPU it was built on, or None on a machine without one (TensorRT-RTX).
        driver: The newest CUDA that machine's driver runs, such as "13.0", or None.
        hardware_compatibility: "none", "same-compute-capability" or "ampere-plus".
        version_compatible: Whether newer TensorRT, and tensorrt_lean, can run it.
        profiles: Its optimisation profiles, in the plan's own order.
        build_s: Seconds the build took.
        date: When it was built, ISO 8601 in UTC.
        options: What else the builder was told, and what inspecting the result showed. Free-form.
    """

    format_version: int
    file: str
    sha256: str
    bytes: int
    module: str
    input_form: str
    precision: str
    onnx_sha256: str
    library: str
    library_version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    driver: str | None
    hardware_compatibility: str
    version_compatible: bool
    profiles: tuple[PlanProfile, ...]
    build_s: float
    date: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tf32(self) -> bool:
        """Whether its FP32 layers may round their factors to 10 bits of mantissa, as the builder was told."""
        told = self.options.get("settings")
        return isinstance(told, dict) and told.get("tf32") is True

    def to_json(self) -> dict[str, Any]:
        """Return the content of the sidecar."""
        values = {**asdict(self), "profiles": [profile.to_json() for profile in self.profiles]}
        return {"format": _FORMAT, **values, "compute_capabilities": list(self.compute_capabilities)}

    @classmethod
    def from_json(cls, value: object, *, source: str) -> Plan:
        """Read the content of a sidecar.

        Args:
            value: The decoded JSON.
            source: The sidecar's name, for messages.

        Raises:
            PlanError: naming `source` and everything that is wrong with it.
        """
        _check_format(value, source)
        problems: list[str] = []
        root = Fields(value, "the sidecar", problems)
        root.get("format", str)
        plan = cls(
            format_version=root.get("format_version", int),
            file=root.file(),
            sha256=root.sha256("sha256"),
            bytes=root.get("bytes", int, _BYTES.__contains__, f"must be from 1 to {_BYTES[-1]}"),
            module=root.get("module", str),
            input_form=root.get("input_form", str),
            precision=root.get("precision", str, PRECISIONS.__contains__, f"must be one of {', '.join(PRECISIONS)}"),
            onnx_sha256=root.sha256("onnx_sha256"),
            library=root.get("library", str, LIBRARIES.__contains__, f"must be one of {', '.join(LIBRARIES)}"),
            library_version=root.get("library_version", str, _VERSION.fullmatch, "must be a version"),
            compute_capabilities=_capabilities(root),
            gpu=root.text_or_none("gpu"),
            driver=root.text_or_none("driver"),
            hardware_compatibility=root.get(
                "hardware_compatibility",
                str,
                HARDWARE_COMPATIBILITIES.__contains__,
                f"must be one of {', '.join(HARDWARE_COMPATIBILITIES)}",
            ),
            version_compatible=root.flag("version_compatible"),
            profiles=_profiles(root),
            build_s=root.seconds("build_s"),
            date=root.get("date", str, bool, "must not be empty"),
            options=root.get("options", dict),
        )
        root.close()
        problems += _conflicts(plan)
        if problems:
            listed = "\n  - ".join(problems)
            raise PlanError(f"{source} is not a valid sidecar of a plan; build the plan again:\n  - {listed}")
        return plan


def plan_name(plan: Plan) -> str:
    """Return the file name of a plan: <library>-<version>-sm<cc>-<precision>-<profile>.plan.

    A plan for one GPU model carries its name, so that machines with different GPUs can share a folder. One in TF32
    says so, and is not written over the exact one.
    """
    version = f"{plan.library_version}_vc" if plan.version_compatible else plan.library_version
    target = "sm" + "_".join(capability.replace(".", "") for capability in plan.compute_capabilities)
    if plan.hardware_compatibility == "ampere-plus":
        target = "sm80plus"
    elif plan.hardware_compatibility == "same-compute-capability":
        target += "_all"
    elif plan.library == "tensorrt" and plan.gpu:
        target += f"_{plan.gpu}"
    precision = f"{plan.precision}_tf32" if plan.tf32 else plan.precision
    parts = [plan.library, version, target, precision, plan.module, plan.input_form, *profile_sizes(plan.profiles)]
    name = "-".join(map(_plain, parts))
    if len(name) > _NAME_LIMIT:
        name = f"{name[: _NAME_LIMIT - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return f"{name}.plan"


def profile_sizes(profiles: Iterable[PlanProfile]) -> list[str]:
    """Return one text an input: for each axis its sizes over the profiles, such as "1_8x32x200to256x224x3"."""
    columns: dict[str, list[dict[str, None]]] = {}
    for profile in profiles:
        for name, (low, _, high) in profile.shapes.items():
            axes = columns.setdefault(name, [{} for _ in low])
            for axis, smallest, largest in zip(axes, low, high, strict=True):
                axis[str(smallest) if smallest == largest else f"{smallest}to{largest}"] = None
    return ["x".join("_".join(axis) for axis in axes) for axes in columns.values()]


def decode(data: bytes, *, source: str) -> Plan:
    """Read the bytes of a sidecar.

    Raises:
        PlanError: if it is not JSON, or as `Plan.from_json`.
    """
    try:
        value = strict_json(data)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{source} cannot be read as JSON ({error}); build the plan again") from error
    return Plan.from_json(value, source=source)


def encode(plan: Plan) -> bytes:
    """Return the bytes of a sidecar, after reading them back, so that nothing unreadable is ever written.

    Raises:
        PlanError: if the reader would refuse it.
    """
    source = f"the sidecar of {plan.file}"
    try:
        data = json.dumps(plan.to_json(), indent=1, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise PlanError(f"{source} cannot be written as JSON: {error}") from error
    decode(data, source=source)
    return data


def _check_format(value: object, source: str) -> None:
    """Refuse what is no sidecar, and what a newer release wrote, before looking at fields it may have changed."""
    name = value.get("format") if isinstance(value, dict) else None
    if not isinstance(value, dict) or name != _FORMAT:
        raise PlanError(f"{source}: format is {brief(name)}; {_FORMAT!r} expected, so this is no sidecar of a plan")
    version = value.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise PlanError(f"{source}: format_version is {brief(version)}; a whole number of at least 1 expected")
    if version > FORMAT_VERSION:
        raise PlanError(
            f"{source} is of format {version}; this release reads up to {FORMAT_VERSION}. "
            "Upgrade milnce (pip install --upgrade milnce) or build the plan with this release"
        )


def _conflicts(plan: Plan) -> list[str]:
    signature = SIGNATURES.get((plan.module, plan.input_form))
    if signature is None:
        known = ", ".join(f"{module}/{form}" for module, form in SIGNATURES)
        given = f"{brief(plan.module)}/{brief(plan.input_form)}"
        return [f"the sidecar: module and input_form are {given}; known are {known}"]
    inputs = sorted(name for name, _, _ in signature[0])
    return [
        f"profile {index}: the inputs are {', '.join(map(brief, sorted(profile.shapes)))}, not {', '.join(inputs)}"
        for index, profile in enumerate(plan.profiles)
        if sorted(profile.shapes) != inputs
    ]


def _capabilities(root: Fields) -> tuple[str, ...]:
    values = root.get("compute_capabilities", list, bool, "must not be empty")
    wrong = [value for value in values if not (isinstance(value, str) and _CAPABILITY.fullmatch(value))]
    root.problems += [f'the sidecar: {brief(value)} is no compute capability, such as "8.9"' for value in wrong]
    return () if wrong else tuple(values)


def _profiles(root: Fields) -> tuple[PlanProfile, ...]:
    values = root.get("profiles", list, bool, "must not be empty")
    return tuple(_profile(value, f"profile {index}", root.problems) for index, value in enumerate(values))


def _profile(value: object, where: str, problems: list[str]) -> PlanProfile:
    if not isinstance(value, dict) or not value:
        problems.append(f"{where} must be an object with an entry for each input, not {brief(value)}")
        return PlanProfile({})
    return PlanProfile({name: _shapes(item, f"{where}, input {brief(name)}", problems) for name, item in value.items()})


def _shapes(value: object, where: str, problems: list[str]) -> tuple[Shape, Shape, Shape]:
    fields = Fields(value, where, problems)
    low, best, high = (tuple(fields.get(key, list)) for key in ("min", "opt", "max"))
    fields.close()
    if not fields.sound:
        return (), (), ()
    sizes = [*low, *best, *high]
    ordered = all(type(size) is int for size in sizes) and len(low) == len(best) == len(high) > 0
    if not ordered or not all(1 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        problems.append(f"{where}: min, opt and max must be shapes of one rank with 1 <= min <= opt <= max")
        return (), (), ()
    return low, best, high


def _plain(text: str) -> str:
    """Return `text` as a part of a file name: letters, digits, dots and underscores."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("._") or "unnamed"
