"""Which clips make a batch, and how they are varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from milnce_convert.demo.concepts import ACTIONS, COLOURS, SHAPES, Combination, describe

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce.tokenizer import Tokenizer
    from milnce_convert.demo.pool import ClipPool

# How many (shapes, colours, actions) a batch is made of: few of each, so that a clip's negatives differ from it in one
# or two respects only. What batches do not hold side by side is learnt last, or not at all: in trials with few shapes a
# batch half of the errors were shapes, with one or two colours all were colours; and with few actions, which are learnt
# first, learning began late. So each of the three has its turn.
_GRIDS = ((2, 2, 8), (2, 1, 12), (4, 2, 4), (6, 1, 4), (6, 2, 3), (6, 3, 2), (3, 3, 3), (2, 4, 4), (1, 6, 4))
_SHIFT_PIXELS = 3
_LIGHT = (0.85, 1.1)


@dataclass(frozen=True)
class Batch:
    """Clips, their captions and which of them show the same.

    Attributes:
        clips: uint8 (batch, frames, size, size, 3) RGB.
        light: float32 (batch,), what each clip's pixels are to be multiplied by to lie in about [0, 1].
        tokens: int64 (batch, captions, words).
        same: bool (batch, batch).
    """

    clips: NDArray[np.uint8]
    light: NDArray[np.float32]
    tokens: NDArray[np.int64]
    same: NDArray[np.bool_]


class BatchMaker:
    """Makes batch number `step` of a run, the same one however often the run was stopped before."""

    def __init__(self, pool: ClipPool, tokenizer: Tokenizer, *, seed: int, size: int, captions: int) -> None:
        self._pool, self._tokenizer = pool, tokenizer
        self._seed, self._size, self._captions = seed, size, captions
        self._clips_of: dict[Combination, list[int]] = {}
        for index, combination in enumerate(pool.shown):
            self._clips_of.setdefault(combination, []).append(index)
        self._combinations = list(self._clips_of)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        generator = np.random.default_rng([self._seed, step])
        chosen = self._choose(generator)
        rows = [int(generator.choice(self._clips_of[combination])) for combination in chosen]
        clips = np.stack([_shifted(self._pool.clips[row], generator) for row in rows])
        light = (generator.uniform(*_LIGHT, len(rows)) / 255).astype(np.float32)
        sentences = [text for combination in chosen for text in describe(combination, generator, self._captions)]
        tokens = self._tokenizer(sentences).reshape(len(rows), self._captions, -1)
        names = np.array([self._combinations.index(combination) for combination in chosen])
        return Batch(clips, light, tokens, names[:, None] == names[None, :])

    def _choose(self, generator: np.random.Generator) -> list[Combination]:
        """Return combinations for a batch: a small grid of few shapes, colours and actions, filled up at random."""
        counts = _GRIDS[generator.integers(len(_GRIDS))]
        tables = [
            {str(name) for name in generator.choice(list(table), size=count, replace=False)}
            for table, count in zip((SHAPES, COLOURS, ACTIONS), counts, strict=True)
        ]
        grid = [
            combination
            for combination in self._combinations
            if all(name in table for name, table in zip(combination, tables, strict=True))
        ]
        generator.shuffle(grid)
        chosen = grid[: self._size]
        rest = generator.integers(len(self._combinations), size=self._size - len(chosen))
        return chosen + [self._combinations[index] for index in rest]


def _shifted(clip: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return the clip moved by a few pixels, its edges repeated."""
    size = clip.shape[1]
    rows, columns = (
        np.clip(np.arange(size) + shift, 0, size - 1)
        for shift in generator.integers(-_SHIFT_PIXELS, _SHIFT_PIXELS + 1, 2)
    )
    shifted: NDArray[np.uint8] = clip.take(rows, axis=1).take(columns, axis=2)
    return shifted
