"""What the commands share: options, errors as one message, JSON, tables and progress."""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TextIO, TypedDict, TypeVar

import typer

from milnce.cli import INTERRUPTED
from milnce.errors import InputError, MilnceError, MilnceWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console

    from milnce.backends import BackendChoice
    from milnce.model import Model
    from milnce.video import Preset

P = ParamSpec("P")
R = TypeVar("R")

EXIT_FAILED, EXIT_USAGE = 1, 2

BundleOption = Annotated[Path, typer.Option("--bundle", "-b", help="Bundle folder, made by `milnce export`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and no table.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there already.")]
BackendOption = Annotated[str, typer.Option(help="auto, or one that `milnce doctor` lists.", rich_help_panel="Model")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1, ...", rich_help_panel="Model")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="fp32, fp16, bf16 or int8; that of the TensorRT plans, or fp32, when left out.", rich_help_panel="Model"
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; the backend's choice when left out.", rich_help_panel="Model")
]
PlansOption = Annotated[
    Path | None,
    typer.Option(
        "--plans", help="Folder with TensorRT plans; the bundle's own when left out.", rich_help_panel="Model"
    ),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Clips a batch.", rich_help_panel="Model")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode; 0 decodes in this one. Chosen from the cores when left out.",
        rich_help_panel="Model",
    ),
]
StallOption = Annotated[
    float,
    typer.Option(
        "--stall-s",
        help="Give a file up when its decoding makes no progress for this many seconds.",
        rich_help_panel="Model",
    ),
]
DecoderOption = Annotated[
    str,
    typer.Option(
        "--decoder",
        help="cpu, or nvdec: NVIDIA's decoder, for a model on a GPU. auto is cpu for now.",
        rich_help_panel="Model",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="milnce-eval, milnce-native, sliding or tfhub-colab; the bundle's own when left out.",
        rich_help_panel="Sampling",
    ),
]
StrideOption = Annotated[
    int | None,
    typer.Option("--stride-frames", min=1, help="Slide windows by this many frames.", rich_help_panel="Sampling"),
]
StartOption = Annotated[
    float | None, typer.Option("--start-s", min=0, help="Start in each file, seconds.", rich_help_panel="Sampling")
]
EndOption = Annotated[
    float | None, typer.Option("--end-s", min=0, help="End in each file, seconds.", rich_help_panel="Sampling")
]


class PipelineOptions(TypedDict):
    """Options of `milnce.pipeline.embed_files` that say how it works, not on what."""

    batch_size: int
    workers: int | None
    stall_s: float
    decoder: str


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a command's errors into one message and an exit code; MILNCE_DEBUG=1 or `milnce --debug` keeps tracebacks.

    Wrong arguments exit with 2, other failures with 1, Ctrl-C with 130. With --json the error is also the one document
    on stdout. What the system refuses and nobody foresaw is a failure too: a full disk under stdout, a closed folder.
    A pipe whose reader has gone stays the business of click, which ends in silence.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _plain_warnings():
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None  # `main` says so, as it does before a command begins
        except (MilnceError, OSError) as error:
            if debugging() or isinstance(error, BrokenPipeError):
                raise
            message = str(error) if isinstance(error, MilnceError) else _system_message(error)
            if kwargs.get("json_output"):
                with suppress(OSError):  # when stdout is what failed
                    print_json({"error": {"type": type(error).__name__, "message": message}})
            say(f"Error: {printable(message, lines=True)}")
            _drop_unwritable_output()
            raise typer.Exit(EXIT_USAGE if isinstance(error, InputError) else EXIT_FAILED) from error

    return run


def _system_message(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is None:
        return f"{reason}; can the output be written, and the input be read?"
    return f"{os.fsdecode(error.filename)}: {reason}"


def _drop_unwritable_output() -> None:
    """Throw away what stdout holds and cannot write: Python would try again at exit, and report that at length."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def debugging() -> bool:
    """Whether tracebacks were asked for."""
    return os.environ.get("MILNCE_DEBUG", "") not in {"", "0"}


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show milnce's own warnings as one line, without the source line Python prints."""
    with warnings.catch_warnings():
        # "always": a warning issued once by the library must not be hidden by an earlier run in the same process.
        warnings.simplefilter("always", MilnceWarning)
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, MilnceWarning):
                say(f"Warning: {printable(str(message))}")
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def say(line: str) -> None:
    """Print a line for people on stderr, which results never share."""
    typer.echo(line, err=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Print the command's one JSON document on stdout. ASCII only, so that any terminal and any locale takes it."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False))


def printable(text: str, *, lines: bool = False) -> str:
    """Escape what a file name may hold but a terminal must not get: control characters, undecodable bytes."""
    keep = "\n" if lines else ""
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


def clock(seconds: float) -> str:
    """Return a time as m:ss.s, or h:mm:ss.s from one hour on."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes_left:02}:{rest / 10:04.1f}"
    return f"{minutes}:{rest / 10:04.1f}"


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def make_console(*, stderr: bool = False) -> Console:
    """Return a console; wide when nobody looks at a screen, so that no cell is cut in a pipe."""
    from rich.console import Console  # noqa: PLC0415  # typer brings it; only needed once something is printed

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200, highlight=False, markup=False, emoji=False)


def print_table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table on stdout; a column is its heading and "left" or "right". A cell too wide for the screen folds."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell, lines=True) for cell in row))
    make_console().print(table)


def open_model(  # noqa: PLR0913  # the model options of the command line, one each
    bundle: Path,
    *,
    backend: str,
    device: str,
    precision: str | None,
    threads: int | None,
    plans: Path | None,
    video: bool,
    text: bool,
) -> Model:
    """Load the towers that a command needs, and tell people which backend was taken and why."""
    import milnce  # noqa: PLC0415  # commands import what they need when they run

    model = milnce.load(
        bundle, backend=backend, device=device, precision=precision, threads=threads, plans=plans, modules=()
    )
    try:
        if video:
            # Decoded clips are uint8, whichever form the bundle lists first.
            model.open("video", input_form="uint8")
        if text:
            model.open("text")
    except BaseException:
        model.close()
        raise
    # Each once; the video tower's first, whichever was opened first. Nothing is said while nothing has to run.
    for choice in dict.fromkeys((model.chosen, *model.running.values())):
        if choice is not None:
            say(printable(str(choice)))
    return model


def open_video(model: Model) -> None:
    """Open the video tower of a model that had no use for it so far, and tell people what runs it."""
    known = {model.chosen, *model.running.values()}
    model.open("video", input_form="uint8")
    choice = model.choice_of("video")
    if choice not in known:
        say(printable(str(choice)))


def choose_preset(model: Model, name: str | None, stride_frames: int | None) -> Preset:
    """Return the preset that --preset and --stride-frames ask for."""
    from milnce.pipeline import resolve_preset  # noqa: PLC0415
    from milnce.video.presets import get_preset  # noqa: PLC0415

    preset = resolve_preset(model, name)
    return preset if stride_frames is None else get_preset(preset, windows=None, stride_frames=stride_frames)


def describe_model(model: Model) -> dict[str, Any]:
    """Return what JSON output says about the model."""
    return {
        "bundle": str(model.bundle.path),
        "name": model.bundle.manifest.name,
        "digest": model.bundle.manifest.model_digest,
        **describe_backend(model.chosen),
        "modules": {module: describe_backend(choice) for module, choice in sorted(model.running.items())},
    }


def describe_backend(choice: BackendChoice | None) -> dict[str, Any]:
    """Return what JSON output says about the backend; None where nothing had to run."""
    if choice is None:
        return {"backend": "none", "device": "none", "precision": "none", "reason": "nothing had to run"}
    return {
        "backend": choice.name,
        "device": choice.device,
        "precision": choice.precision,
        "reason": choice.reason,
    }


def describe_preset(preset: Preset) -> dict[str, Any]:
    """Return what JSON output says about the preset."""
    return {**preset.to_json(), "digest": preset.digest}


def report_failures(failed: Sequence[tuple[Path | str, MilnceError]], total: int) -> None:
    """List on stderr the files that were not done."""
    if not failed:
        return
    for path, error in failed:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        say(f"Failed: {printable(message)}")
    say(f"{len(failed)} of {total} files failed.")


def failures_json(failed: Sequence[tuple[Path | str, MilnceError]]) -> list[dict[str, str]]:
    """Return the files that were not done, for JSON output."""
    return [{"path": str(path), "error": str(error), "type": type(error).__name__} for path, error in failed]
