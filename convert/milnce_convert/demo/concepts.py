"""What the demo's clips show and how it is said: shapes, colours and actions, and several phrasings of each."""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

# The first phrase of each is its plain name. Actions are things that one picture does not show.
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "bar": ("bar", "stick"),
}
COLOURS: dict[str, tuple[str, ...]] = {
    "red": ("red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
}
ACTIONS: dict[str, tuple[str, ...]] = {
    "left": ("moves to the left", "drifts left", "goes left"),
    "right": ("moves to the right", "drifts right", "goes right"),
    "up": ("moves up", "rises", "goes upwards"),
    "down": ("moves down", "sinks", "goes downwards"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "spins": ("spins", "rotates", "turns on the spot"),
    "blinks": ("blinks", "flashes", "goes on and off"),
    "bounces": ("bounces", "hops", "jumps again and again"),
    "clockwise": ("circles clockwise", "goes round clockwise", "moves round clockwise"),
    "counterclockwise": ("circles counterclockwise", "goes round anticlockwise", "moves round counterclockwise"),
    "fades": ("fades", "fades away", "slowly vanishes"),
}
TEMPLATES = (
    "a {colour} {shape} {action}",
    "the {colour} {shape} {action}",
    "{colour} {shape} {action}",
    "there is a {colour} {shape} and it {action}",
    "a {shape} that is {colour} {action}",
    "see how the {colour} {shape} {action}",
)

# One combination in this many is never trained on; which one moves with shape, colour and action as in a Latin square,
# so that every pair of shape and colour, shape and action, and colour and action is still seen.
_HELD_OUT_EVERY = 5
_HELD_OUT_RESIDUE = 0


class Combination(NamedTuple):
    """What a clip shows: keys of `SHAPES`, `COLOURS` and `ACTIONS`."""

    shape: str
    colour: str
    action: str

    @property
    def sentence(self) -> str:
        """The plainest caption."""
        return _fill(TEMPLATES[0], SHAPES[self.shape][0], COLOURS[self.colour][0], ACTIONS[self.action][0])

    @property
    def held_out(self) -> bool:
        """Whether the model never sees this combination in training."""
        places = (list(table).index(name) for table, name in zip((SHAPES, COLOURS, ACTIONS), self, strict=True))
        return sum(places) % _HELD_OUT_EVERY == _HELD_OUT_RESIDUE


def combinations() -> list[Combination]:
    """Return every combination, in a fixed order."""
    return [Combination(*names) for names in product(SHAPES, COLOURS, ACTIONS)]


def describe(combination: Combination, generator: np.random.Generator, count: int) -> list[str]:
    """Return `count` different captions of a combination.

    Every caption names shape, colour and action, so it fits the clips of this combination and no others.
    """
    phrasings = list(
        product(
            TEMPLATES,
            SHAPES[combination.shape],
            COLOURS[combination.colour],
            ACTIONS[combination.action],
        )
    )
    chosen = generator.choice(len(phrasings), size=count, replace=False)
    return [_fill(*phrasings[index]) for index in chosen]


def vocabulary() -> list[str]:
    """Return every word that a caption can hold, sorted."""
    phrases = [phrase for table in (SHAPES, COLOURS, ACTIONS) for row in table.values() for phrase in row]
    templates = [re.sub(r"\{\w+\}", " ", template) for template in TEMPLATES]
    return sorted({"an", *(word for text in (*phrases, *templates) for word in re.findall(r"\w+", text))})


def _fill(template: str, shape: str, colour: str, action: str) -> str:
    text = template.format(shape=shape, colour=colour, action=action)
    return re.sub(r"\ba (?=[aeiou])", "an ", text)
