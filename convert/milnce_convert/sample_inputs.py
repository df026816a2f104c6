"""Structured clips and sentences of ids that make the parity question hard. Needs no PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def moving_clips(count: int, frames: int, height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Return clips of shapes that move over textured backgrounds.

    Args:
        count: Number of clips; each differs in colours, sizes, directions, speeds and background.
        frames: Frames a clip.
        height: Pixels.
        width: Pixels.
        seed: The same seed gives the same clips.

    Returns:
        (count, frames, height, width, 3) uint8 RGB.
    """
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    clips = np.empty((count, frames, height, width, 3), np.uint8)
    for clip in clips:
        waves = generator.uniform(2, 12, (3, 2))
        phase = generator.uniform(0, 6.28, 3)
        texture = [np.sin(waves[c, 0] * rows + waves[c, 1] * columns + phase[c]) for c in range(3)]
        background = generator.uniform(30, 190, 3) + generator.uniform(10, 60) * np.stack(texture, axis=-1)
        shapes = [_Shape(generator) for _ in range(generator.integers(2, 5))]
        for index in range(frames):
            picture = background.copy()
            for shape in shapes:
                shape.draw(picture, rows, columns, index / max(frames - 1, 1))
            clip[index] = np.clip(picture, 0, 255).astype(np.uint8)
    return clips


class _Shape:
    """A disc or a box with a colour, a path and a growth."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.round = bool(generator.integers(2))
        self.colour = generator.uniform(0, 255, 3)
        self.start = generator.uniform(0.15, 0.85, 2)
        self.travel = generator.uniform(-0.6, 0.6, 2)
        self.radius = generator.uniform(0.08, 0.28)
        self.growth = generator.uniform(-0.6, 0.8)

    def draw(
        self, picture: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64], time: float
    ) -> None:
        row, column = self.start + self.travel * time
        radius = self.radius * (1 + self.growth * time)
        across, along = rows - row, columns - column
        inside = np.hypot(across, along) if self.round else np.maximum(np.abs(across), np.abs(along))
        picture[inside < radius] = self.colour


def random_tokens(count: int, rows: int, *, words: int = 16, seed: int = 0) -> NDArray[np.int64]:
    """Return (count, words) int64 ids of sentences, zero-padded; the first fills every place, the others leave some."""
    generator = np.random.default_rng(seed)
    tokens = np.zeros((count, words), np.int64)
    for index, row in enumerate(tokens):
        length = words if index == 0 else int(generator.integers(1, max(words, 2)))
        row[:length] = generator.integers(1, rows, length)
    return tokens
