"""The part of `milnce export` that writes a bundle for other systems: a Triton repository, a DeepStream folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milnce.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.bundle import Bundle

_TRITON, _DEEPSTREAM = "Triton", "DeepStream"

TritonOption = Annotated[
    Path | None,
    typer.Option("--triton", metavar="DIR", help="Write a Triton model repository too.", rich_help_panel=_TRITON),
]
PlansOption = Annotated[
    Path | None,
    typer.Option(
        "--plans",
        metavar="FOLDER",
        help="Serve the TensorRT plans of this folder; those of the bundle, where it has some, when left out.",
        rich_help_panel=_TRITON,
    ),
]
MaxBatchOption = Annotated[
    int | None,
    typer.Option(
        "--max-batch",
        min=1,
        help="Largest batch of a model without a plan; 8 clips and 64 sentences when left out.",
        rich_help_panel=_TRITON,
    ),
]
DeepstreamOption = Annotated[
    Path | None,
    typer.Option(
        "--deepstream",
        metavar="DIR",
        help="Write a DeepStream configuration too (the float32 video graph).",
        rich_help_panel=_DEEPSTREAM,
    ),
]
StreamsOption = Annotated[
    int | None, typer.Option("--streams", min=1, help="Streams at once; 1 when left out.", rich_help_panel=_DEEPSTREAM)
]
StreamSizeOption = Annotated[
    tuple[int, int] | None,
    typer.Option(
        "--stream-size",
        metavar="W H",
        help="Width and height of the streams; 1280 720 when left out.",
        rich_help_panel=_DEEPSTREAM,
    ),
]
StreamFpsOption = Annotated[
    float | None,
    typer.Option("--stream-fps", help="Their frames a second; 30 when left out.", rich_help_panel=_DEEPSTREAM),
]


@dataclass(frozen=True)
class Hosts:
    """What to write for which system; fields as the options of the command.

    Raises:
        InputError: if options contradict each other.
    """

    triton: Path | None
    plans: Path | None
    max_batch: int | None
    deepstream: Path | None
    streams: int | None
    stream_size: tuple[int, int] | None
    stream_fps: float | None

    def __post_init__(self) -> None:
        for system, chosen, options in (
            ("--triton", self.triton, {"--plans": self.plans, "--max-batch": self.max_batch}),
            (
                "--deepstream",
                self.deepstream,
                {"--streams": self.streams, "--stream-size": self.stream_size, "--stream-fps": self.stream_fps},
            ),
        ):
            given = [name for name, value in options.items() if value is not None]
            if chosen is None and given:
                raise InputError(f"{', '.join(given)} given without {system}, which takes it; give that too")
        if self.triton is not None and self.deepstream is not None:
            first, second = self.triton.absolute(), self.deepstream.absolute()
            if first == second or first in second.parents or second in first.parents:
                raise InputError("--triton and --deepstream name one folder, or one inside the other; give two")

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return self.triton is not None or self.deepstream is not None

    def check(self, *, input_forms: Sequence[str] | None, overwrite: bool) -> None:
        """Find out before a long export whether what comes after it can be done.

        Args:
            input_forms: Forms of the video graph that were asked for, or None for all.
            overwrite: Whether folders that milnce wrote may be replaced.

        Raises:
            InputError: if DeepStream is wanted without the float32 graph, or with impossible streams.
            MissingDependencyError: if the converter's modules are not installed.
            OutputError: if a destination exists already.
        """
        if not self:
            return
        if self.deepstream is not None and input_forms is not None and "float32" not in input_forms:
            raise InputError(
                f"--deepstream given with --input-form {', '.join(input_forms)}; DeepStream takes the float32 graph: "
                "add --input-form float32, or leave the option out"
            )
        require_hosts()
        from milnce_convert import deepstream, triton  # noqa: PLC0415 - of the other package
        from milnce_convert.host_folder import check_destination  # noqa: PLC0415

        if self.triton is not None:
            check_destination(self.triton, triton.KIND, overwrite=overwrite)
        if self.deepstream is not None:
            self._streams()
            check_destination(self.deepstream, deepstream.KIND, overwrite=overwrite)

    def write(
        self, bundle: Bundle, *, precision: str | None, input_form: str | None, overwrite: bool
    ) -> dict[str, tuple[dict[str, Any], list[str]]]:
        """Write the folders.

        Returns:
            For each system what JSON output says, and the lines for people.
        """
        written = {}
        if self.triton is not None:
            written["triton"] = self._write_triton(bundle, self.triton, precision, input_form, overwrite=overwrite)
        if self.deepstream is not None:
            from milnce_convert.deepstream import write_deepstream  # noqa: PLC0415

            done = write_deepstream(
                bundle, self.deepstream, precision=precision, streams=self._streams(), overwrite=overwrite
            )
            described = {
                "path": str(self.deepstream),
                "graph": done.graph.file,
                "sizes": list(done.sizes),
                "fps": done.fps,
                "stride_s": done.stride / done.fps,
            }
            written["deepstream"] = (described, [f"{self.deepstream}: {done}"])
        return written

    def _write_triton(
        self, bundle: Bundle, destination: Path, precision: str | None, input_form: str | None, *, overwrite: bool
    ) -> tuple[dict[str, Any], list[str]]:
        from milnce.plans import PLANS_FOLDER  # noqa: PLC0415
        from milnce_convert.triton import write_triton_repository  # noqa: PLC0415

        own = bundle.path / PLANS_FOLDER
        models = write_triton_repository(
            bundle,
            destination,
            precision=precision,
            input_form=input_form,
            plans=self.plans or (own if own.exists() else None),
            require_plans=self.plans is not None,
            max_batch=self.max_batch,
            overwrite=overwrite,
        )
        lines = []
        for model in models:
            lines += [f"{destination}: {model}", *(f"  passed over: {reason}" for reason in model.passed_over)]
        described = [
            {
                "name": model.name,
                "graph": model.graph.file,
                "plans": [plan.file for plan in model.plans],
                "passed_over": list(model.passed_over),
                "max_batch_size": model.config["max_batch_size"],
            }
            for model in models
        ]
        return {"path": str(destination), "models": described}, lines

    def _streams(self) -> Any:  # noqa: ANN401 - a `Streams` of the other package
        from milnce_convert.deepstream import Streams  # noqa: PLC0415

        default = Streams()
        width, height = self.stream_size or (default.width, default.height)
        fps = default.fps if self.stream_fps is None else self.stream_fps
        return Streams(self.streams or default.count, width, height, fps)


def require_hosts() -> None:
    """Make sure that the package that writes the folders is there; it needs neither PyTorch nor ONNX.

    Raises:
        MissingDependencyError: if it is not.
    """
    from importlib.util import find_spec  # noqa: PLC0415

    if find_spec("milnce_convert") is None:
        raise MissingDependencyError(
            "milnce_convert is missing, which writes --triton and --deepstream; install milnce again"
        )
