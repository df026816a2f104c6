"""`milnce export`: weights and vocabulary to a bundle. The one command that needs PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milnce.cli.common import JsonOption, OverwriteOption, print_json, printable, reported, size
from milnce.cli.info import print_parity
from milnce.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
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
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Bundle folder to make.")]
PrecisionsOption = Annotated[
    list[str] | None, typer.Option("--precision", help="fp32, fp16; once for each; both when left out.")
]
FormsOption = Annotated[
    list[str] | None,
    typer.Option("--input-form", help="Video input, uint8 or float32; once for each; both when left out."),
]
MaxWordsOption = Annotated[int, typer.Option(min=1, help="Words a sentence; longer ones are cut.")]
StemOption = Annotated[
    str,
    typer.Option(help="folded: one 4x8x8 convolution, fastest on CPUs. space-to-depth: the published 24 channels."),
]
FixedSizeOption = Annotated[
    tuple[int, int, int] | None,
    typer.Option(metavar="T H W", help="Fix frames, height and width instead of leaving them dynamic."),
]
PresetNameOption = Annotated[str, typer.Option("--preset", help="Sampling that embed and search use by default.")]

_STEMS = ("folded", "space-to-depth")


@reported
def export(  # noqa: PLR0913  # a command's options are its parameters
    *,
    out: OutOption,
    weights: WeightsOption = None,
    vocabulary: VocabularyOption = None,
    seeded: SeededOption = None,
    width: WidthOption = None,
    precision: PrecisionsOption = None,
    input_form: FormsOption = None,
    max_words: MaxWordsOption = 16,
    stem: StemOption = "folded",
    fixed_size: FixedSizeOption = None,
    preset: PresetNameOption = "milnce-native",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Turn weights into a bundle of ONNX graphs, and measure that they give PyTorch's numbers.

    Give --weights and --vocab, or --seeded. Needs PyTorch and ONNX: the extra "convert".
    """
    _check_source(weights, vocabulary, seeded, width)
    if stem not in _STEMS:
        raise InputError(f"--stem {stem} given; one of {', '.join(_STEMS)} expected")
    require_converter()
    from milnce.cli.progress import Stages  # noqa: PLC0415
    from milnce_convert.convert import ExportOptions, export_bundle, export_seeded_bundle  # noqa: PLC0415

    export_options = ExportOptions(
        precisions=tuple(precision or ("fp32", "fp16")),
        input_forms=tuple(input_form or ("uint8", "float32")),
        max_words=max_words,
        fold_stem=stem == "folded",
        fixed_size=fixed_size,
        overwrite=overwrite,
        preset=preset,
    )
    with Stages() as stages:
        if weights is not None and vocabulary is not None:
            bundle = export_bundle(weights, vocabulary, out, export_options, stages)
        elif seeded is not None:
            bundle = export_seeded_bundle(seeded, out, export_options, width=width or 1.0, progress=stages)
    _print(bundle, json_output=json_output)


def _check_source(weights: Path | None, vocabulary: Path | None, seeded: int | None, width: float | None) -> None:
    if seeded is None and (weights is None or vocabulary is None):
        given = "--weights without --vocab" if weights else "--vocab without --weights" if vocabulary else "no weights"
        raise InputError(f"{given} given; --weights and --vocab are needed together, or --seeded SEED instead")
    if seeded is not None and (weights is not None or vocabulary is not None):
        raise InputError("--seeded given with --weights or --vocab; seeded weights take the place of both")
    if width is not None and seeded is None:
        raise InputError("--width given without --seeded; the width of real weights is their own")


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
        raise MissingDependencyError(f'export needs {", ".join(missing)}; run: pip install "milnce[convert]"')


def _print(bundle: Bundle, *, json_output: bool) -> None:
    if json_output:
        print_json({"path": str(bundle.path), "manifest": bundle.manifest.to_json()})
        return
    total = sum(graph.bytes for graph in bundle.manifest.graphs)
    typer.echo(printable(f"{bundle.path}: {len(bundle.manifest.graphs)} graphs, {size(total)}"))
    print_parity(bundle)
