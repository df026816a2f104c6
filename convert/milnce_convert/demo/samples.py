"""The handful of videos that `make demo` searches: combinations that the demo model was never trained on.

    python -m milnce_convert.demo.samples --out build/demo/videos

writes twelve short clips (MP4 and GIF), each named after what it shows, and one video of several scenes. Needs NumPy
and PyAV, no PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from milnce.errors import MilnceError
from milnce_convert.demo.clips import encode, write_clip
from milnce_convert.demo.concepts import Combination
from milnce_convert.demo.drawing import draw

OutOption = Annotated[Path, typer.Option(help="Folder to write to.")]

# In pairs that differ in one respect only, so that no sentence is answered by the colour alone.
CLIPS = (
    Combination("star", "red", "blinks"),
    Combination("star", "red", "up"),
    Combination("square", "purple", "clockwise"),
    Combination("square", "purple", "grows"),
    Combination("triangle", "green", "left"),
    Combination("triangle", "green", "shrinks"),
    Combination("circle", "blue", "fades"),
    Combination("circle", "blue", "spins"),
    Combination("cross", "yellow", "grows"),
    Combination("cross", "orange", "left"),
    Combination("bar", "red", "left"),
    Combination("bar", "orange", "clockwise"),
)
SCENES = (
    Combination("bar", "blue", "spins"),
    Combination("circle", "yellow", "bounces"),
    Combination("square", "orange", "down"),
    Combination("triangle", "red", "down"),
)
# What to ask, in other words than the plainest, and what is right: a clip's name, or a scene's number.
QUESTIONS: dict[str, Combination] = {
    "a red star that goes on and off": CLIPS[0],
    "see how the violet box circles clockwise": CLIPS[2],
    "a green triangle drifts left": CLIPS[4],
    "the blue disc slowly vanishes": CLIPS[6],
    "a yellow plus sign gets bigger": CLIPS[8],
    "the red triangle sinks": SCENES[3],
}
SCENES_FILE = "four-scenes.mp4"
_SCENE_SIZE, _SCENE_RATE = (96, 72), 10
_SEED = 7
_GIF_EVERY = 3


def name_of(combination: Combination) -> str:
    """Return a sample's file name, such as "red-star-blinks.gif"."""
    suffix = ".gif" if CLIPS.index(combination) % _GIF_EVERY == 0 else ".mp4"
    return f"{combination.colour}-{combination.shape}-{combination.action}{suffix}"


def write_samples(folder: Path) -> None:
    """Write the clips and the video of several scenes; files of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, combination in enumerate(CLIPS):
        write_clip(folder / name_of(combination), combination, np.random.default_rng([_SEED, number]))
    scenes = [
        draw(combination, np.random.default_rng([_SEED, 100 + number]), size=_SCENE_SIZE, rate=_SCENE_RATE)[0]
        for number, combination in enumerate(SCENES)
    ]
    encode(folder / SCENES_FILE, np.concatenate(scenes), _SCENE_RATE)


def main(*, out: OutOption) -> None:
    """Write the sample videos of `make demo`."""
    try:
        write_samples(out)
    except (MilnceError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{out}: {len(CLIPS)} clips that the model was never trained on, and a video of {len(SCENES)} scenes")


if __name__ == "__main__":
    typer.run(main)
