"""Whether a deserialised plan is what its sidecar and the bundle's manifest say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milnce.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from milnce.backends.tensorrt_engine import Engine
    from milnce.manifest import GraphFile
    from milnce.plans import Plan
    from milnce.specs import TensorSpec


def check_engine(plan: Plan, graph: GraphFile, engine: Engine) -> None:
    """Compare names, dtypes, sizes and profiles, on which the addresses and sizes of every copy rest.

    Raises:
        PlanError: naming everything that differs, and the command that builds the plan again.
    """
    problems = [*_name_problems(graph, engine)]
    if not problems:
        for spec in (*graph.inputs, *graph.outputs):
            problems += _tensor_problems(spec, engine)
        problems += _profile_problems(plan, engine)
    if problems:
        raise PlanError(
            f"the plan {plan.file} is not what its sidecar and the bundle say: {'; '.join(problems)}; "
            "build it again: milnce build BUNDLE --force"
        )


def _name_problems(graph: GraphFile, engine: Engine) -> Iterator[str]:
    outputs = [name for name in engine.tensors if name not in engine.inputs]
    for kind, found, specs in (("inputs", engine.inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        expected = sorted(spec.name for spec in specs)
        if sorted(found) != expected:
            yield f"its {kind} are {', '.join(sorted(found))}, those of {graph} are {', '.join(expected)}"


def _tensor_problems(spec: TensorSpec, engine: Engine) -> Iterator[str]:
    found, shape = engine.tensors[spec.name], engine.shapes[spec.name]
    # TensorRT 8.5 has no int64: ids are int32 there.
    if found != spec.dtype and (spec.dtype, found) != ("int64", "int32"):
        yield f"{spec.name} is {found} in it, {spec.dtype} in the graph"
    sizes = zip(shape, spec.shape, strict=False)
    if len(shape) != len(spec.shape) or any(size != -1 and not axis.accepts(size) for size, axis in sizes):
        yield f"{spec.name} is {shape} in it, {spec} in the graph"


def _profile_problems(plan: Plan, engine: Engine) -> Iterator[str]:
    said = [dict(profile.shapes) for profile in plan.profiles]
    if len(said) != len(engine.profiles):
        yield f"it has {len(engine.profiles)} profiles, its sidecar {len(said)}"
        return
    for index, (held, sidecar) in enumerate(zip(engine.profiles, said, strict=True)):
        if held != sidecar:
            yield f"its profile {index} is {_shown(held)}, that of its sidecar {_shown(sidecar)}"


def _shown(profile: Mapping[str, tuple[tuple[int, ...], ...]]) -> str:
    return ", ".join(f"{name} {' to '.join(map(str, dict.fromkeys(shapes)))}" for name, shapes in profile.items())
