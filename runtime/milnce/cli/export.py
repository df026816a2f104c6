"""`milnce export`: weights and vocabulary to a bundle, and a bundle to other systems.

To make a bundle is the one command that needs PyTorch; to write one that is there (--bundle) for Triton or DeepStream
needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce.cli.common import JsonOption, OverwriteOption, print_json, printable, reported, size
from milnce.cli.export_hosts import (
    DeepstreamOption,
    Hosts,
    MaxBatchOption,
    PlansOption,
    StreamFpsOption,
    StreamSizeOption,
    StreamsOption,
    TritonOption,
)
from milnce.cli.info import print_parity
from milnce.errors import InputError, MissingDependencyError
from milnce.platforms import install

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from milnce.bundle import Bundle

WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Official weights, such as s3d_howto100m.pth (or .safetensors).")
]
VocabularyOption = Annotated[Path | None, typer.Option("--vocab", help="The weights' word list, such as s3d_dict.npy.")]
SeededOption = Annotated[
    int | None,
    typer.Option(
        "--seeded",
        metavar="SEED",
        help="Instead of weights: seeded random ones, to try the machinery out. They retrieve nothing.",
    ),
]
WidthOption = Annotated[
    float | None,
    typer.Option("--width", min=0.01, max=4.0, help="With --seeded: channels, as a part of the full model's."),
]
ExistingOption = Annotated[
    Path | None,
    typer.Option("--bundle", "-b", help="Instead of weights: a bundle that is there, for --triton or --deepstream."),
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Bundle folder to make.")]
PrecisionsOption = Annotated[
    list[str] | None, typer.Option("--precision", help="fp32, fp16; once for each; both when left out.")
]
FormsOption = Annotated[
    list[str] | None,
    typer.Option("--input-form", help="Video input, uint8 or float32; once for each; both when left out."),
]
MaxWordsOption = Annotated[
    int | None, typer.Option(min=1, help="Words a sentence; longer ones are cut; 16 when left out.")
]
StemOption = Annotated[
    str | None,
    typer.Option(
        help="folded (when left out): one 4x8x8 convolution, fastest on CPUs. "
        "space-to-depth: the published 24 channels."
    ),
]
FixedSizeOption = Annotated[
    tuple[int, int, int] | None,
    typer.Option(metavar="T H W", help="Fix frames, height and width instead of leaving them dynamic."),
]
PresetNameOption = Annotated[
    str | None,
    typer.Option("--preset", help="Sampling that embed and search use by default; milnce-native when left out."),
]

_STEMS = ("folded", "space-to-depth")
_OPTIONS = {"vocabulary": "vocab"}  # where the parameter is called otherwise


@reported
def export(  # noqa: PLR0913  # a command's options are its parameters
    *,
    out: OutOption = None,
    weights: WeightsOption = None,
    vocabulary: VocabularyOption = None,
    seeded: SeededOption = None,
    width: WidthOption = None,
    bundle: ExistingOption = None,
    precision: PrecisionsOption = None,
    input_form: FormsOption = None,
    max_words: MaxWordsOption = None,
    stem: StemOption = None,
    fixed_size: FixedSizeOption = None,
    preset: PresetNameOption = None,
    triton: TritonOption = None,
    plans: PlansOption = None,
    max_batch: MaxBatchOption = None,
    deepstream: DeepstreamOption = None,
    streams: StreamsOption = None,
    stream_size: StreamSizeOption = None,
    stream_fps: StreamFpsOption = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Turn weights into a bundle of ONNX graphs, and measure that they give PyTorch's numbers.

    Give --weights and --vocab, or --seeded; that needs PyTorch and ONNX: the extra "convert". Or give --bundle, to
    write a Triton repository or a DeepStream configuration from a bundle that is there.
    """
    hosts = Hosts(triton, plans, max_batch, deepstream, streams, stream_size, stream_fps)
    hosts.check(input_forms=input_form, overwrite=overwrite)
    source = Source(weights, vocabulary, seeded, width)
    options = {"max_words": max_words, "stem": stem, "fixed_size": fixed_size, "preset": preset}
    if bundle is not None:
        given = {"out": out, **vars(source), **options}
        opened = _open(bundle, hosts, given, precision, input_form)
        served = {"precision": _one(precision), "input_form": _one(input_form)}
    else:
        named = {"precisions": precision, "input_forms": input_form, **options}
        opened = _make(source, out, named, overwrite=overwrite)
        served = {"precision": None, "input_form": None}
    written = hosts.write(opened, **served, overwrite=overwrite)
    if json_output:
        document = {system: described for system, (described, _) in written.items()}
        print_json({"path": str(opened.path), "manifest": opened.manifest.to_json(), **document})
        return
    if bundle is None:
        total = sum(graph.bytes for graph in opened.manifest.graphs)
        typer.echo(printable(f"{opened.path}: {len(opened.manifest.graphs)} graphs, {size(total)}"))
        print_parity(opened)
    for _, lines in written.values():
        for line in lines:
            typer.echo(printable(line))


@dataclass(frozen=True)
class Source:
    """Where the weights of a new bundle are from; fields as the options of the command."""

    weights: Path | None
    vocabulary: Path | None
    seeded: int | None
    width: float | None


def _make(source: Source, out: Path | None, given: Mapping[str, Any], *, overwrite: bool) -> Bundle:
    """Export weights to a new bundle."""
    _check_source(source)
    if out is None:
        raise InputError("--out is missing; name the bundle folder to make")
    options = {name: value for name, value in given.items() if value is not None}
    stem = options.pop("stem", _STEMS[0])
    if stem not in _STEMS:
        raise InputError(f"--stem {stem} given; one of {', '.join(_STEMS)} expected")
    require_converter()
    from milnce.cli.progress import Stages  # noqa: PLC0415
    from milnce_convert.convert import ExportOptions, export_bundle, export_seeded_bundle  # noqa: PLC0415

    options |= {name: tuple(options[name]) for name in ("precisions", "input_forms") if name in options}
    export_options = ExportOptions(**options, fold_stem=stem == _STEMS[0], overwrite=overwrite)
    with Stages() as stages:
        if source.seeded is not None:
            width = source.width or 1.0
            return export_seeded_bundle(source.seeded, out, export_options, width=width, progress=stages)
        assert source.weights is not None  # noqa: S101 - for the type checker: _check_source has looked
        assert source.vocabulary is not None  # noqa: S101 - likewise
        return export_bundle(source.weights, source.vocabulary, out, export_options, stages)


def _check_source(source: Source) -> None:
    weights, vocabulary = source.weights, source.vocabulary
    if source.seeded is None and (weights is None or vocabulary is None):
        given = "--weights without --vocab" if weights else "--vocab without --weights" if vocabulary else "no weights"
        raise InputError(
            f"{given} given; --weights and --vocab are needed together, or --seeded SEED instead, or --bundle"
        )
    if source.seeded is not None and (weights is not None or vocabulary is not None):
        raise InputError("--seeded given with --weights or --vocab; seeded weights take the place of both")
    if source.width is not None and source.seeded is None:
        raise InputError("--width given without --seeded; the width of real weights is their own")


def _open(
    bundle: Path,
    hosts: Hosts,
    given: Mapping[str, object],
    precision: Sequence[str] | None,
    input_form: Sequence[str] | None,
) -> Bundle:
    """Open a bundle that is there, after refusing what has no meaning with it."""
    from milnce.bundle import Bundle  # noqa: PLC0415  # commands import what they need when they run

    names = [f"--{_OPTIONS.get(name, name.replace('_', '-'))}" for name, value in given.items() if value is not None]
    if names:
        raise InputError(
            f"--bundle given with {', '.join(names)}; a bundle that is there is not exported again: leave one out"
        )
    if not hosts:
        raise InputError("--bundle given, and nothing to write from it; add --triton DIR or --deepstream DIR")
    for name, values in (("--precision", precision), ("--input-form", input_form)):
        if values and len(values) > 1:
            raise InputError(f"--bundle given with {name} {', '.join(values)}; one is served, so give one")
    return Bundle.open(bundle)


def _one(values: Sequence[str] | None) -> str | None:
    return values[0] if values else None


def require_converter() -> None:
    """Make sure that what the converter needs is installed.

    Raises:
        MissingDependencyError: naming what is missing and how to get it.
    """
    from importlib.util import find_spec  # noqa: PLC0415

    missing = [
        name for name in ("torch", "onnx", "onnxscript", "onnxruntime", "milnce_convert") if find_spec(name) is None
    ]
    if missing:
        raise MissingDependencyError(f"export needs {', '.join(missing)}; run: {install('convert')}")
