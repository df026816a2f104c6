"""The commands and the options they share. One module a command, each a thin caller of the library."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from milnce.cli import bench, build, doctor, embed, export, info, quantize, search
from milnce.cli import eval as evaluation

app = typer.Typer(
    name="milnce",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("export")(export.export)
app.command("build")(build.build)
app.command("quantize")(quantize.quantize)
app.command("info")(info.info)
app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("eval")(evaluation.evaluate)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        import milnce  # noqa: PLC0415  # for its version only

        typer.echo(f"milnce {milnce.__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, as MILNCE_DEBUG=1 does.")] = False,
) -> None:
    """Find moments in videos by a sentence, with the MIL-NCE text-video model and no PyTorch."""
    if debug:
        os.environ["MILNCE_DEBUG"] = "1"
