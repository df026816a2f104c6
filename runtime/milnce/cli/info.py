"""`milnce info`: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce.cli.common import JsonOption, print_json, print_table, printable, reported, size
from milnce.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from milnce.bundle import Bundle, GraphFile
    from milnce.plans import Plan, PlanProfile

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, made by `milnce export`.")]
VerifyOption = Annotated[bool, typer.Option("--verify", help="Read every file and compare it with its sha256.")]

_SHOWN = ("cosine", "centred_cosine", "relative_error")
_RETRIEVAL = "retrieval"
_LISTED = 8  # items of a list, in a table


@reported
def info(bundle: BundleArgument, *, verify: VerifyOption = False, json_output: JsonOption = False) -> None:
    """Show what a bundle holds: graphs, shapes, precisions, sizes, parity, plans, vocabulary, how it was made."""
    from milnce.bundle import Bundle  # noqa: PLC0415  # commands import what they need when they run

    opened = Bundle.open(bundle)
    if verify:
        opened.verify()
    plans, problems = held_plans(opened, verify=verify)
    if json_output:
        document = {"path": str(opened.path), "verified": verify, "manifest": opened.manifest.to_json()}
        document["plans"] = {"held": [plan.to_json() for plan in plans], "problems": problems}
        print_json(document)
        return
    _print(opened, verified=verify)
    _print_plans(opened, plans, problems)


def held_plans(bundle: Bundle, *, verify: bool) -> tuple[list[Plan], list[str]]:
    """Return the TensorRT plans in the bundle's folder of them, and what is wrong with the others.

    Args:
        bundle: The bundle.
        verify: Whether to read the plans themselves and compare them with their sidecars.
    """
    from milnce.plans import PLANS_FOLDER, sidecars  # noqa: PLC0415

    folder = bundle.path / PLANS_FOLDER
    if not folder.exists():
        return [], []
    try:
        plans, problems = sidecars(folder)
    except PlanError as error:
        return [], [str(error)]
    damaged = {plan.file: problem for plan in plans if verify and (problem := _damage(folder, plan))}
    return [plan for plan in plans if plan.file not in damaged], [*problems, *damaged.values()]


def _damage(folder: Path, plan: Plan) -> str | None:
    from milnce.plans import read_plan  # noqa: PLC0415

    try:
        read_plan(folder, plan)
    except PlanError as error:
        return str(error)
    return None


def _print_plans(bundle: Bundle, plans: Sequence[Plan], problems: Sequence[str]) -> None:
    current = {graph.sha256 for graph in bundle.manifest.graphs}
    rows = [
        [
            f"{plan.module} {plan.input_form} {plan.precision}{' (TF32)' if plan.tf32 else ''}",
            f"{plan.library} {plan.library_version}",
            f"{plan.gpu or 'any'} ({', '.join(plan.compute_capabilities)})",
            ", ".join(map(_batches, plan.profiles)),
            size(plan.bytes),
            "of this bundle" if plan.onnx_sha256 in current else "of another export: build it again",
        ]
        for plan in plans
    ]
    if rows:
        headings = (("plan", "left"), ("built by", "left"), ("for", "left"), ("batches", "left"), ("size", "right"))
        print_table([*headings, ("", "left")], rows)
    for problem in problems:
        typer.echo(printable(f"plan: {problem}", lines=True))


def _batches(profile: PlanProfile) -> str:
    low, _, high = next(iter(profile.shapes.values()))
    return str(low[0]) if low[0] == high[0] else f"{low[0]}..{high[0]}"


def _print(bundle: Bundle, *, verified: bool) -> None:
    manifest = bundle.manifest
    total = sum(graph.bytes for graph in manifest.graphs)
    state = "all files verified" if verified else "files not verified (--verify)"
    typer.echo(printable(f"{manifest.name}  {bundle.path}"))
    typer.echo(f"format {manifest.format_version}, {len(manifest.graphs)} graphs, {size(total)}, {state}")
    typer.echo(f"model digest {manifest.model_digest}")
    typer.echo(f"vocabulary   {manifest.vocabulary.words} words, {manifest.vocabulary.max_words} a sentence")
    typer.echo(printable("sampling     " + ", ".join(f"{key} {value}" for key, value in manifest.sampling.items())))
    graphs = sorted(manifest.graphs, key=lambda graph: (graph.module, graph.input_form, graph.precision))
    rows = [[graph.file, graph.precision, size(graph.bytes), _tensors(graph)] for graph in graphs]
    print_table([("graph", "left"), ("precision", "left"), ("size", "right"), ("takes and gives", "left")], rows)
    print_parity(bundle)
    print_retrieval(bundle)
    if manifest.made:
        print_table([("made", "left"), ("", "left")], [[name, text] for name, text in flatten(manifest.made)])


def _tensors(graph: GraphFile) -> str:
    return "\n".join([*(f"takes {spec}" for spec in graph.inputs), *(f"gives {spec}" for spec in graph.outputs)])


def print_parity(bundle: Bundle, *, precision: str | None = None) -> None:
    """Print how far graphs were from what they were made from: a line for each output, one for all blocks.

    `milnce export` measures against the PyTorch towers; graphs made of others name what they were compared with.

    Args:
        bundle: The bundle.
        precision: Only graphs of this one; None for all.
    """
    graphs = [graph for graph in bundle.manifest.graphs if precision in (None, graph.precision)]
    lines = [(graph, *line) for graph in graphs for line in _measurements(graph.parity)]
    measured = list(dict.fromkeys(name for _, _, record in lines for name in record))
    if not measured:
        return
    # A screen holds a few; --json has them all.
    figures = [name for name in _SHOWN if name in measured] or measured
    rows = []
    for index, (graph, what, record) in enumerate(lines):
        if what and (index == 0 or lines[index - 1][0] is not graph):
            rows.append([f"{graph.file}{_compared_with(graph)}", *[""] * len(figures)])
        cells = [_figure(name, record[name]) if name in record else "" for name in figures]
        rows.append([f"  {what}" if what else graph.file, *cells])
    headings = [(f"{'1 - ' if 'cosine' in name else ''}{name.replace('_', ' ')}", "right") for name in figures]
    print_table([("parity with PyTorch", "left"), *headings], rows)


def _compared_with(graph: GraphFile) -> str:
    reference = graph.parity.get("reference")
    return "" if not isinstance(reference, str) or reference.startswith("PyTorch") else f" (with: {reference})"


def print_retrieval(bundle: Bundle) -> None:
    """Print how quantised graphs retrieve beside the FP32 ones that they were made from."""
    rows = []
    for graph in bundle.manifest.graphs:
        found = graph.parity.get(_RETRIEVAL)
        for kind, record in found.items() if isinstance(found, dict) else ():
            cells = [_recall(record, precision, name) for name in ("r1", "r5") for precision in ("fp32", "int8")]
            rows.append([kind, *cells, str(record.get("queries", ""))])
    if rows:
        figures = ("R@1 FP32", "R@1 INT8", "R@5 FP32", "R@5 INT8", "queries")
        print_table([("retrieval, held out", "left"), *((name, "right") for name in figures)], rows)


def _recall(record: Mapping[str, Any], precision: str, name: str) -> str:
    values = record.get(precision)
    value = values.get(name) if isinstance(values, dict) else None
    return f"{value:.1f}" if isinstance(value, float) else ""


def _measurements(parity: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what was compared and its figures; the many blocks become one line with the worst of each figure."""
    groups = ((key, value) for key, value in parity.items() if isinstance(value, dict) and key != _RETRIEVAL)
    for name, group in (("", parity), *groups):
        records = dict(_records(group)) if name else {"": _figures(parity)}
        if name == "blocks" and records:
            names = dict.fromkeys(key for record in records.values() for key in record)
            worst = {key: _worst(key, [record[key] for record in records.values() if key in record]) for key in names}
            records = {f"worst of {len(records)} blocks": worst}
        yield from ((what, record) for what, record in records.items() if record)


def _records(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    for key, value in values.items():
        if isinstance(value, dict):
            name = f"{prefix}{key}"
            if _figures(value):
                yield name, _figures(value)
            yield from _records(value, f"{name}, ")


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in values.items() if isinstance(value, float)}


def _worst(name: str, values: list[float]) -> float:
    return min(values) if "cosine" in name else max(values)


def _figure(name: str, value: float) -> str:
    # What a cosine lacks to 1 is what tells two of them apart.
    return f"{1 - value:.1e}" if "cosine" in name else f"{value:.1e}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Turn nested figures into dotted names and readable values."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, float):
            yield name, f"{value:.8g}"
        elif isinstance(value, list):
            more = f", ... ({len(value)})" if len(value) > _LISTED else ""
            yield name, ", ".join(map(str, value[:_LISTED])) + more
        else:
            yield name, str(value)
