"""Train the demo model: `python -m milnce_convert.demo.train --seed 0`.

Ctrl-C stops, the same command goes on. Needs the extras `convert`, `video` and `train`.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from milnce.errors import MilnceError, OutputError
from milnce_convert.convert import ExportOptions, export_bundle
from milnce_convert.demo.clips import SAMPLING
from milnce_convert.demo.concepts import combinations, describe
from milnce_convert.demo.curves import draw_curves
from milnce_convert.demo.pool import ClipPool, make_pool
from milnce_convert.demo.training import MAX_WORDS, Settings, Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from rich.progress import TaskID

    from milnce.bundle import Bundle

# Seeds of the clips that the curve is measured on: none that a run trains on, none that `demo.clips` uses by default.
_VALIDATION_SEED = 10**6
_PAUSE_STEPS = 250
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


# On stderr, as with the commands: nothing here is a result.
_console = Console(stderr=True, highlight=False)


def main(
    *,
    seed: Annotated[int, typer.Option(min=0, max=_VALIDATION_SEED - 1, help="Of weights, clips and batches.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder of clips, checkpoint and curves.")] = None,
    out: Annotated[Path | None, typer.Option(help="Bundle to write; `<work>/bundle` when left out.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches in all.")] = Settings.steps,
    clips: Annotated[int, typer.Option(min=1, help="Training clips of each combination.")] = Settings.clips,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; PyTorch's choice when left out.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle if it is there.")] = False,
) -> None:
    """Train the demo model on drawn clips, and export it."""
    if threads is not None:
        torch.set_num_threads(threads)
    work = work or Path("build", f"demo-training-{seed}")
    settings = Settings(seed=seed, steps=steps, clips=clips)
    try:
        if out is not None and os.path.lexists(out) and not overwrite:
            raise OutputError(f"{out} exists already; choose another folder, or overwrite it (--overwrite)")
        work.mkdir(parents=True, exist_ok=True)
        with _progress() as progress:
            training, validation = _pools(work, settings, torch.get_num_threads(), progress)
            trainer = Trainer(settings, training)
            _train(trainer, validation, work, progress)
        bundle = _export(trainer, work, out or work / "bundle", overwrite=overwrite)
    except KeyboardInterrupt:
        _console.print(f"Stopped; the same command goes on from what is in {work}.")
        raise typer.Exit(_INTERRUPTED) from None
    except (MilnceError, OSError, ArithmeticError) as error:
        _console.print(f"Error: {error}", markup=False)
        raise typer.Exit(1) from error
    _console.print(f"{bundle.path}: trained for {trainer.history.seconds / 60:.0f} minutes; see {work / 'curves.png'}")


def _export(trainer: Trainer, work: Path, destination: Path, *, overwrite: bool) -> Bundle:
    """Write the weights as a checkpoint in the official layout, and export that as any other."""
    weights, words = work / "weights.pth", work / "vocabulary.txt"
    trainer.save_weights(weights, words)
    options = ExportOptions(
        # One precision and one form keep it small enough to commit; `milnce_convert.half` adds FP16.
        precisions=("fp32",),
        input_forms=("uint8",),
        max_words=MAX_WORDS,
        overwrite=overwrite,
        preset=SAMPLING.name.partition(",")[0],
        sampling_size=SAMPLING.size,
        parity_sizes=((SAMPLING.frames, SAMPLING.size, SAMPLING.size),),
    )
    training = {
        "settings": asdict(trainer.settings),
        "minutes": round(trainer.history.seconds / 60, 1),
        "threads": torch.get_num_threads(),
        "last_recall": trainer.history.recall[-1],
    }
    return export_bundle(
        weights, words, destination, options, _console.print, config=trainer.settings.towers, training=training
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
        console=_console,
    )


def _pools(work: Path, settings: Settings, workers: int, progress: Progress) -> tuple[ClipPool, ClipPool]:
    """Make the clips to train on, of seen combinations only, and one clip of every combination for the curve."""
    everything = combinations()
    trained = [combination for combination in everything if not combination.held_out for _ in range(settings.clips)]
    pools = []
    for name, shown, seed in (("training", trained, settings.seed), ("validation", everything, _VALIDATION_SEED)):
        task = progress.add_task(f"{name} clips", total=len(shown), state="")
        on_clips = partial(progress.advance, task)
        pools.append(make_pool(work, name, shown, seed=seed, workers=workers, on_clips=on_clips))
    return pools[0], pools[1]


def _train(trainer: Trainer, validation: ClipPool, work: Path, progress: Progress) -> None:
    """Train to the end, from the checkpoint if there is one; save at every pause and when interrupted."""
    checkpoint = work / "checkpoint.pt"
    if checkpoint.is_file():
        trainer.restore(checkpoint)
        progress.console.print(f"going on from step {len(trainer.history.loss)}")
    generator = np.random.default_rng(_VALIDATION_SEED)
    sentences = [describe(combination, generator, 1)[0] for combination in validation.shown]
    done = len(trainer.history.loss)
    task = progress.add_task("steps", total=trainer.settings.steps, completed=done, state="")
    before, since = trainer.history.seconds, time.monotonic()

    def save() -> None:
        trainer.history.seconds = before + time.monotonic() - since
        trainer.save(checkpoint)

    def pause() -> None:
        row = trainer.measure(validation, sentences)
        save()
        draw_curves(trainer.history, work / "curves.png", f"seed {trainer.settings.seed}")
        progress.console.print(
            f"step {row['step']:>6}  loss {np.mean(trainer.history.loss[-_PAUSE_STEPS:]):.3f}  "
            + "  ".join(f"{name} {value:.1f}" for name, value in row.items() if name != "step")
        )

    progress.console.print(f"step {done} of {trainer.settings.steps}")
    with _interrupt_noted() as interrupted:
        trainer.run(
            lambda loss: _advance(progress, task, loss), pause, pause_steps=_PAUSE_STEPS, stop=lambda: bool(interrupted)
        )
    if interrupted:
        save()
        raise KeyboardInterrupt


@contextmanager
def _interrupt_noted() -> Iterator[list[int]]:
    """Note a Ctrl-C in the list and go on, so that a step is not torn in two; a second one is raised at once."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            signal.default_int_handler(number, frame)
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _advance(progress: Progress, task: TaskID, loss: float) -> None:
    progress.update(task, advance=1, state=f"loss {loss:.3f}")


if __name__ == "__main__":
    typer.run(main)
