"""`milnce bench`: how fast a bundle runs on this machine, and how exact, against PyTorch where that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from milnce.cli.common import (
    EXIT_FAILED,
    JsonOption,
    ThreadsOption,
    print_json,
    print_table,
    printable,
    reported,
    say,
)
from milnce.errors import InputError

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder, made by `milnce export`.")]
BackendsOption = Annotated[str, typer.Option("--backend", help="Only this one; auto for all that run here.")]
DevicesOption = Annotated[str, typer.Option("--device", help="Only cpu or cuda; auto for all.")]
PrecisionsOption = Annotated[
    str | None, typer.Option("--precision", metavar="fp32,bf16", help="Only these; all when left out.")
]
BatchesOption = Annotated[str, typer.Option("--batch", metavar="1,8", help="Clips in a batch.")]
FramesOption = Annotated[
    str | None, typer.Option("--frames", metavar="16,32", help="Frames a clip; the bundle's own when left out.")
]
SizesOption = Annotated[
    str | None, typer.Option("--size", metavar="200,224", help="Pixels a side; the bundle's own when left out.")
]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Rounds, after one that warms up.")]
PyTorchOption = Annotated[bool, typer.Option("--pytorch/--no-pytorch", help="Measure PyTorch too where it is there.")]
CompileOption = Annotated[bool, typer.Option("--compile", help="PyTorch with torch.compile too; takes a minute more.")]


@reported
def bench(  # noqa: PLR0913  # one option each
    bundle: BundleArgument,
    *,
    backend: BackendsOption = "auto",
    device: DevicesOption = "auto",
    precision: PrecisionsOption = None,
    batch: BatchesOption = "1",
    frames: FramesOption = None,
    size: SizesOption = None,
    rounds: RoundsOption = 7,
    threads: ThreadsOption = None,
    pytorch: PyTorchOption = True,
    compiled: CompileOption = False,
    json_output: JsonOption = False,
) -> None:
    """Measure how fast this machine runs a bundle, in every backend and precision, and how exact each is.

    The first row is what the others are compared with: PyTorch, made of the bundle's own weights, where PyTorch is
    installed (pip install "milnce[convert]"). Rows take turns, so that a change of the machine's speed meets all of
    them. Outputs that fail the parity gate of their precision get no speed, and the exit code is 1; so is it if a row
    does not run.
    """
    from milnce_convert.bench_bundle import Cases, bench_bundle  # noqa: PLC0415  # commands import when they run

    cases = Cases(
        batches=_numbers("--batch", batch),
        frames=() if frames is None else _numbers("--frames", frames),
        sizes=() if size is None else _numbers("--size", size),
    )
    document = bench_bundle(
        bundle,
        cases,
        backend=backend,
        device=device,
        precisions=tuple(part.strip() for part in precision.split(",")) if precision else (),
        rounds=rounds,
        threads=threads,
        pytorch=pytorch,
        compiled=compiled,
        progress=say,
    )
    if json_output:
        print_json(document)
    else:
        _print(document)
    if any(row["failures"] or row["error"] for row in [*document["video"], *document["text"]]):
        raise typer.Exit(EXIT_FAILED)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} {text} given; whole numbers of at least 1 with commas between expected")
    return tuple(dict.fromkeys(map(int, parts)))


_COLUMNS = (
    *(("clip", "left"), ("batch", "right"), ("what", "left"), ("ms a clip", "right"), ("clips/s", "right")),
    *(("speed", "right"), ("spread", "right"), ("1 - centred cosine", "right")),
)


def _print(document: dict[str, Any]) -> None:
    reference = document["reference"]
    note = "" if reference.startswith("PyTorch") else "; without PyTorch"
    title = f"{document['name']}: medians of {document['settings']['rounds']} rounds; {reference} is 1{note}"
    rows = [(f"{row['frames']}x{row['size']}x{row['size']}", row) for row in document["video"]]
    print_table(_COLUMNS, [_cells(clip, row, reference) for clip, row in rows], title=title)
    if document["text"]:
        first = document["text"][0]["name"]
        columns = [*_COLUMNS[1:3], ("ms a sentence", "right"), ("sentences/s", "right"), *_COLUMNS[5:]]
        print_table(columns, [_cells("", row, first)[1:] for row in document["text"]], title="Sentences")
    for row in [*document["video"], *document["text"]]:
        if row["failures"] or row["error"]:
            say(printable(f"{row['name']}: {row['error'] or '; '.join(row['failures'])}"))
    for name, reason in document["left_out"].items():
        say(printable(f"not here: {name}: {reason}"))


def _cells(clip: str, row: dict[str, Any], reference: str) -> list[str]:
    parity = row["parity"] or {}
    cosine = parity.get("centred_cosine")
    error = "" if cosine is None else f"{1 - cosine:.1e}"
    if row["name"] == reference and parity.get("identical"):
        error = "reference"
    head = [clip, str(row["batch"]), row["name"]]
    if row["error"]:
        return [*head, "does not run", "", "", "", error]
    if row["failures"]:
        return [*head, f"fails the {row['gate']} gate", "", "", "", error]
    speed = f"{row['speed']['median']:.2f}x" if row["speed"] else ""
    rate = f"{row['items_per_s']:.0f}" if row["items_per_s"] >= 100 else f"{row['items_per_s']:.2f}"  # noqa: PLR2004
    return [*head, f"{row['ms_an_item']:.3g}", rate, speed, f"{row['spread']:.0%}", error]
