"""`milnce info`: what a bundle holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce.cli.common import JsonOption, print_json, print_table, printable, reported, size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from milnce.bundle import Bundle, GraphFile

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, made by `milnce export`.")]
VerifyOption = Annotated[bool, typer.Option("--verify", help="Read every file and compare it with its sha256.")]


@reported
def info(bundle: BundleArgument, *, verify: VerifyOption = False, json_output: JsonOption = False) -> None:
    """Show what a bundle holds: graphs, shapes, precisions, sizes, parity, vocabulary, sampling, how it was made."""
    from milnce.bundle import Bundle  # noqa: PLC0415  # commands import what they need when they run

    opened = Bundle.open(bundle)
    if verify:
        opened.verify()
    if json_output:
        print_json({"path": str(opened.path), "verified": verify, "manifest": opened.manifest.to_json()})
        return
    _print(opened, verified=verify)


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
    if manifest.made:
        print_table([("made", "left"), ("", "left")], [[name, text] for name, text in flatten(manifest.made)])


def _tensors(graph: GraphFile) -> str:
    return "\n".join([*(f"takes {spec}" for spec in graph.inputs), *(f"gives {spec}" for spec in graph.outputs)])


def print_parity(bundle: Bundle) -> None:
    """Print the figures that `milnce export` measured for each graph against the PyTorch towers."""
    rows = []
    for graph in bundle.manifest.graphs:
        for number, (name, text) in enumerate(flatten(graph.parity)):
            rows.append([graph.file if number == 0 else "", name, text])
    if rows:
        print_table([("parity with PyTorch", "left"), ("figure", "left"), ("value", "right")], rows)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Turn nested figures into dotted names and readable values."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, float):
            yield name, f"{value:.8g}"
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)
