"""A bundle as a model repository of Triton Inference Server: both towers, in ONNX Runtime or as TensorRT plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milnce.errors import BundleError, PlanError
from milnce.plan_rank import largest_batch, own_item_shapes, takes_items
from milnce.plans import HARDWARE_COMPATIBILITIES, Plan, build_command, read_plan, sidecars
from milnce_convert.host_folder import RECORD_FILE, folder_record, new_folder, vocabulary_bytes, write_file
from milnce_convert.triton_config import (
    batch_sizes,
    onnx_config,
    plan_config,
    same_profiles,
    takes_every_batch,
    to_pbtxt,
)
from milnce_convert.triton_readme import readme

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from milnce.bundle import Bundle
    from milnce.manifest import GraphFile, Manifest
    from milnce.plans import Shape

KIND = "triton"
VOCABULARY_FILE = "vocabulary.txt"

_MODULES = ("video", "text")


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository.

    Attributes:
        name: Its name, such as "milnce_video".
        graph: The graph of the bundle that it runs.
        config: Its configuration, as `triton_config.to_pbtxt` takes it.
        plans: The plans that it runs; empty for ONNX Runtime.
        passed_over: Why plans were not taken, one sentence each.
    """

    name: str
    graph: GraphFile
    config: dict[str, Any]
    plans: tuple[Plan, ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def every_batch(self) -> bool:
        """Whether a request may hold any number of items up to `max_batch_size`."""
        profiles = [profile for plan in self.plans for profile in plan.profiles]
        return not profiles or takes_every_batch(batch_sizes(profiles))

    def __str__(self) -> str:
        runner = "ONNX Runtime"
        if self.plans:
            targets = ", ".join(sorted({capability for plan in self.plans for capability in plan.compute_capabilities}))
            runner = f"TensorRT {self.plans[0].library_version} plans for compute capability {targets}"
        return f"{self.name}: {self.graph} on {runner}, batches up to {self.config['max_batch_size']}"


def write_triton_repository(  # noqa: PLR0913 - each one is a choice of the user's
    bundle: Bundle,
    destination: Path,
    *,
    precision: str | None = None,
    input_form: str | None = None,
    plans: Path | None = None,
    require_plans: bool = False,
    max_batch: int | None = None,
    overwrite: bool = False,
) -> tuple[TritonModel, ...]:
    """Write a Triton model repository with the towers of a bundle.

    Args:
        bundle: The bundle.
        destination: Folder of the repository, to be given to `tritonserver --model-repository`.
        precision: "fp32" or "fp16"; if None fp16 where the bundle has it, as `milnce build` takes it.
        input_form: Of the video input, "uint8" or "float32"; if None uint8 where the bundle has it.
        plans: Folder of plans; None for ONNX Runtime alone. Only plans of these very graphs whose sidecar and hash
            check are taken, and all that fit are: one for each compute capability.
        require_plans: Raise an error where no plan fits, instead of taking ONNX Runtime.
        max_batch: Largest batch of a model in ONNX Runtime; 8 clips and 64 sentences if None.
        overwrite: Replace a repository that milnce wrote.

    Returns:
        The models as they were written.

    Raises:
        InputError: if `max_batch` is out of range.
        BundleError: if the bundle lacks a tower in that precision and form, or a file is damaged.
        PlanError: if the plans contradict each other, cannot be trusted, or none fits and `require_plans`.
        OutputError: if the destination exists, or cannot be written.
    """
    chosen = precision or _first(bundle, "precision", ("fp16", "fp32"))
    form = input_form or _first(bundle, "input_form", ("uint8", "float32"))
    models = []
    for module in _MODULES:
        graph = bundle.graph(module, precision=chosen, input_form=form if module == "video" else None)
        models.append(_model(bundle, graph, plans, require_plans=require_plans, max_batch=max_batch))
    _check_versions([plan for model in models for plan in model.plans])
    with new_folder(destination, KIND, overwrite=overwrite) as folder:
        for model in models:
            _write_model(bundle, model, folder / model.name, plans)
        write_file(folder / "milnce_text" / VOCABULARY_FILE, vocabulary_bytes(bundle))
        write_file(folder / "README.md", readme(bundle.manifest, models).encode())
        write_file(folder / RECORD_FILE, folder_record(bundle, KIND, models=[_record(model) for model in models]))
    return tuple(models)


def _first(bundle: Bundle, attribute: str, order: tuple[str, ...]) -> str:
    held = {getattr(graph, attribute) for graph in bundle.manifest.graphs if graph.module == "video"}
    for value in order:
        if value in held:
            return value
    raise BundleError(f"bundle {str(bundle.path)!r} has no video graph; export it again")


def _model(
    bundle: Bundle, graph: GraphFile, folder: Path | None, *, require_plans: bool, max_batch: int | None
) -> TritonModel:
    name = f"milnce_{graph.module}"
    fitting, problems = select_plans(folder, graph, bundle.manifest) if folder is not None else ([], [])
    if fitting:
        files = {_capability(plan): plan_file(plan) for plan in fitting}
        config = plan_config(graph, bundle.manifest, fitting[0], files, name=name)
        return TritonModel(name, graph, config, tuple(fitting), tuple(problems))
    if require_plans and folder is not None:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise PlanError(
            f"no plan in {folder} can serve {graph} in Triton. Build one inside the container that will run it: "
            f"{build_command(folder, graph, bundle=bundle.path)}{listed}"
        )
    config = onnx_config(graph, bundle.manifest, name=name, max_batch=max_batch)
    return TritonModel(name, graph, config, (), tuple(problems))


def select_plans(folder: Path, graph: GraphFile, manifest: Manifest) -> tuple[list[Plan], list[str]]:
    """Return the plans in `folder` that Triton can run for `graph`, and why others are not taken, one sentence each.

    Of several for one compute capability one in TF32 is taken only if no other is there, then one that takes the
    bundle's own sizes, then the most portable, as which GPU model a server has is not known here, then the one with the
    largest batch, then the newest.

    Raises:
        PlanError: if the folder is missing or not to be trusted, or the plans contradict each other.
    """
    found, problems = sidecars(folder)
    candidates = []
    for plan in sorted(found, key=lambda plan: plan.date):
        if (plan.module, plan.input_form, plan.precision) != (graph.module, graph.input_form, graph.precision):
            continue
        if plan.library != "tensorrt":
            problems.append(f"{plan.file}: Triton's TensorRT backend does not run plans of {plan.library}")
        elif plan.onnx_sha256 != graph.sha256:
            problems.append(f"{plan.file}: it was built from another {graph.file}; build it again")
        else:
            candidates.append(plan)
    _check_versions(candidates)
    fitting: dict[str, Plan] = {}
    sizes = own_item_shapes(graph, manifest)
    for plan in candidates:
        rival = fitting.get(_capability(plan))
        if rival is None:
            fitting[_capability(plan)] = plan
            continue
        taken, lost, why = _one_of(rival, plan, sizes)
        fitting[_capability(plan)] = taken
        problems.append(f"{lost.file}: {taken.file} is taken for the same GPUs, {why}")
    chosen = list(fitting.values())
    if not same_profiles(chosen):
        raise PlanError(
            f"the plans {', '.join(plan.file for plan in chosen)} have different profiles, and a Triton model has one "
            "list of them; build them again with the same batches and sizes"
        )
    return chosen, problems


def plan_file(plan: Plan) -> str:
    """Return the name of a plan in the version's folder."""
    capability = _capability(plan)
    return f"model_sm{capability.replace('.', '')}.plan" if capability else "model_sm80plus.plan"


def _capability(plan: Plan) -> str:
    """Return the key of `cc_model_filenames`; "" for a plan that any GPU since Ampere runs."""
    return "" if plan.hardware_compatibility == "ampere-plus" else plan.compute_capabilities[0]


def _one_of(older: Plan, newer: Plan, item_shapes: Mapping[str, Shape]) -> tuple[Plan, Plan, str]:
    """Return which of two plans for one compute capability to serve, the other one, and what is better about the first.

    Raises:
        PlanError: if they are for two GPU models, so that it cannot be known which one the server has.
    """
    if older.hardware_compatibility == newer.hardware_compatibility == "none" and older.gpu != newer.gpu:
        raise PlanError(
            f"{older.file} is for {older.gpu} and {newer.file} for {newer.gpu}, both of compute capability "
            f"{_capability(newer)}; Triton chooses by compute capability alone. Give a folder with one of them "
            "(--plans FOLDER), or build one for both: milnce build --hardware-compatibility same-compute-capability"
        )
    merits: tuple[tuple[Callable[[Plan], int], str], ...] = (
        (lambda plan: not plan.tf32, "which is exact and not in TF32"),
        (lambda plan: takes_items(plan, item_shapes), "which takes the bundle's own sizes"),
        (lambda plan: HARDWARE_COMPATIBILITIES.index(plan.hardware_compatibility), "which runs on more GPU models"),
        (largest_batch, "which takes larger batches"),
    )
    for merit, why in merits:
        if merit(older) > merit(newer):
            return older, newer, why
        if merit(older) < merit(newer):
            return newer, older, why
    return newer, older, "which is newer"


def _check_versions(plans: list[Plan]) -> None:
    files = {plan.library_version: plan.file for plan in plans}
    if len(files) > 1:
        versions = " and ".join(f"{version} ({file})" for version, file in sorted(files.items()))
        raise PlanError(
            f"there are plans of TensorRT {versions}; a Triton container has one version. Give a folder with the "
            "plans of that version alone (--plans FOLDER), for both towers"
        )


def _write_model(bundle: Bundle, model: TritonModel, folder: Path, plans: Path | None) -> None:
    write_file(folder / "config.pbtxt", to_pbtxt(model.config).encode())
    if not model.plans or plans is None:
        write_file(folder / "1" / "model.onnx", bundle.read(model.graph))
    else:
        for plan in model.plans:
            write_file(folder / "1" / plan_file(plan), read_plan(plans, plan))


def _record(model: TritonModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "module": model.graph.module,
        "input_form": model.graph.input_form,
        "precision": model.graph.precision,
        "onnx_sha256": model.graph.sha256,
        "plans": [{**plan.to_json(), "file": plan_file(plan)} for plan in model.plans],
        "passed_over": list(model.passed_over),
    }
