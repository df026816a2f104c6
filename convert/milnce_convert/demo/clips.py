"""The demo's clips as real files: drawn, encoded to MP4 and GIF, and listed with their captions.

    python -m milnce_convert.demo.clips --out clips --seed 1000

writes one clip of each combination and `captions.csv`, for `milnce eval`. Needs NumPy and PyAV, no PyTorch.
"""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import av
import numpy as np
import typer

from milnce.errors import InputError, MilnceError, OutputError
from milnce.video import get_preset
from milnce_convert.demo.concepts import Combination, combinations, describe
from milnce_convert.demo.drawing import draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# What the demo model is trained on and searched with: the reference evaluation's sampling, at 64 pixels.
SAMPLING = get_preset("milnce-eval", size=64)

CAPTIONS_FILE = "captions.csv"
COLUMNS = ("video", "caption", "split", "shape", "colour", "action")
GIF_SHARE = 0.25
OutOption = Annotated[Path, typer.Option(help="Folder to write to.")]

# From hardly visible to clearly visible damage; x264's own default is 23.
_QUALITY = (18, 33)


def write_clip(path: Path, combination: Combination, generator: np.random.Generator) -> None:
    """Draw a clip and encode it: H.264 for .mp4 and .gif by the suffix."""
    pictures, rate = draw(combination, generator)
    encode(path, pictures, rate, quality=int(generator.integers(*_QUALITY)))


def encode(path: Path, pictures: NDArray[np.uint8], rate: int, *, quality: int = 23) -> None:
    """Write pictures as a video file.

    Args:
        path: Ends in .mp4 (H.264) or .gif (256 fixed colours, dithered).
        pictures: uint8 (frames, height, width, 3) RGB; even height and width.
        rate: Frames a second.
        quality: x264's constant rate factor, 0 (best) to 51; GIF has none.

    Raises:
        InputError: if the suffix is another.
        OutputError: if the file cannot be written.
    """
    codecs = {".mp4": ("libx264", "yuv420p", {"preset": "ultrafast", "crf": str(quality)}), ".gif": ("gif", "rgb8", {})}
    if path.suffix not in codecs:
        raise InputError(f"{path}: suffix {path.suffix!r} given; {' or '.join(codecs)} expected")
    codec, pixel_format, options = codecs[path.suffix]
    try:
        with av.open(str(path), "w") as container:
            # One thread: files this small gain nothing from more, and the bytes do not depend on the machine.
            stream: Any = container.add_stream(codec, rate=Fraction(rate), options=options)
            stream.height, stream.width = pictures.shape[1:3]
            stream.pix_fmt, stream.thread_count = pixel_format, 1
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    except (OSError, av.error.FFmpegError) as error:
        path.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot write ({error}); is the folder there and the disk not full?") from error


def write_set(
    folder: Path, chosen: Sequence[Combination], *, seed: int, per_combination: int = 1, captions: int = 3
) -> None:
    """Write clips and `captions.csv`: columns video, caption, split (trained or unseen), shape, colour, action.

    Args:
        folder: Is made if it is missing.
        chosen: Which combinations.
        seed: Decides everything that is not the combination; the same seed gives the same pictures.
        per_combination: Clips of each.
        captions: Different sentences for each clip, one row each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CAPTIONS_FILE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for number, combination in enumerate(combination for combination in chosen for _ in range(per_combination)):
            generator = np.random.default_rng([seed, number])
            suffix = ".gif" if generator.random() < GIF_SHARE else ".mp4"
            name = f"{number:05d}{suffix}"
            write_clip(folder / name, combination, generator)
            split = "unseen" if combination.held_out else "trained"
            table.writerows([name, text, split, *combination] for text in describe(combination, generator, captions))


def main(
    *,
    out: OutOption,
    seed: Annotated[int, typer.Option(min=0, help="Decides everything but the combinations.")] = 1000,
    per_combination: Annotated[int, typer.Option(min=1, help="Clips of each combination.")] = 1,
    captions: Annotated[int, typer.Option(min=1, max=12, help="Captions of each clip.")] = 3,
) -> None:
    """Write clips of every combination and captions.csv, for `milnce eval`."""
    chosen = combinations()
    try:
        write_set(out, chosen, seed=seed, per_combination=per_combination, captions=captions)
    except (MilnceError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{out}: {len(chosen) * per_combination} clips and {CAPTIONS_FILE}")


if __name__ == "__main__":
    typer.run(main)
