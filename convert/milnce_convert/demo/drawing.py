"""The demo's clips, drawn with NumPy: one coloured shape that does one thing, and everything else at random.

Lengths are in units of the picture's shorter side, times run from 0 to 1 over the clip, y points down, and the origin
is the picture's centre. Size, speed, place, background, light, camera shake, picture size and frame rate vary.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from milnce_convert.demo.concepts import Combination

    Track = NDArray[np.float32]

# Hues of the colour circle in turns, and how far a clip's may lie beside them.
_HUES = {"red": -0.01, "orange": 0.075, "yellow": 0.16, "green": 0.345, "blue": 0.615, "purple": 0.80}
_HUE_SPREAD = 0.012
_SIZES = ((96, 72), (72, 96), (80, 80), (112, 84))
_RATES = (10, 12, 15)
# A little longer than a window of 16 frames at 5 a second, so that no window ends in black frames.
DURATION_S = (3.3, 3.5)
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Motion:
    """Where the shape is at each time: five arrays (frames,) of centre, radius, angle (radians) and opacity."""

    x: Track
    y: Track
    radius: Track
    angle: Track
    opacity: Track


def draw(
    combination: Combination,
    generator: np.random.Generator,
    *,
    size: tuple[int, int] | None = None,
    rate: int | None = None,
) -> tuple[NDArray[np.uint8], int]:
    """Draw one clip.

    Args:
        combination: What it shows.
        generator: Decides everything else.
        size: Width and height in pixels; one of four at random when None.
        rate: Frames a second; one of three at random when None.

    Returns:
        uint8 (frames, height, width, 3) RGB, and its frames a second.
    """
    # Drawn whether they are used or not, so that what follows does not depend on it.
    any_size, any_rate = _SIZES[generator.integers(len(_SIZES))], int(generator.choice(_RATES))
    (width, height), rate = size or any_size, rate or any_rate
    frames = round(rate * generator.uniform(*DURATION_S))
    motion = _motion(combination.action, np.linspace(0, 1, frames, dtype=np.float32), generator)
    shake = _shake(frames, generator)
    background = _background(height, width, shake, generator)
    motion = replace(motion, x=motion.x + shake[:, 0], y=motion.y + shake[:, 1])
    coverage, shade = _rasterise(combination.shape, motion, height, width)
    light = 1 - np.float32(generator.uniform(0.2, 0.5)) * shade
    colour = _colour(combination.colour, generator)
    alpha = coverage[..., None]
    pictures = background * (1 - alpha) + alpha * light[..., None] * colour
    pictures *= np.float32(generator.uniform(0.85, 1.1))
    noise = generator.standard_normal(pictures.shape[:3], dtype=np.float32)[..., None]
    pictures += np.float32(generator.uniform(0, 0.02)) * noise
    return np.clip(np.rint(pictures * 255), 0, 255).astype(np.uint8), rate


def _colour(name: str, generator: np.random.Generator) -> NDArray[np.float32]:
    hue = _HUES[name] + generator.uniform(-_HUE_SPREAD, _HUE_SPREAD)
    rgb = colorsys.hsv_to_rgb(hue % 1, generator.uniform(0.85, 1), generator.uniform(0.88, 1))
    return np.array(rgb, np.float32)


def _motion(action: str, time: Track, generator: np.random.Generator) -> Motion:
    """Return a shape that does `action`; it is still in every respect that the action does not name."""
    uniform = generator.uniform
    flat = np.ones_like(time)
    still = Motion(
        x=flat * uniform(-0.12, 0.12),
        y=flat * uniform(-0.12, 0.12),
        radius=flat * uniform(0.19, 0.26),
        angle=flat * uniform(-0.2, 0.2),
        opacity=flat,
    )
    if action in _DIRECTIONS:
        right, down = _DIRECTIONS[action]
        travel = uniform(0.38, 0.52) * (_eased(time, generator) - 0.5)
        return replace(still, x=still.x * abs(down) + right * travel, y=still.y * abs(right) + down * travel)
    if action in {"grows", "shrinks"}:
        small, large = uniform(0.06, 0.10), uniform(0.28, 0.36)
        progress = _eased(time if action == "grows" else 1 - time, generator)
        return replace(still, radius=small + (large - small) * progress)
    if action in {"clockwise", "counterclockwise"}:
        # With y pointing down, a growing angle goes clockwise for the viewer.
        sign = 1 if action == "clockwise" else -1
        angle = uniform(0, 2 * np.pi) + sign * 2 * np.pi * uniform(0.8, 1.4) * time
        orbit = uniform(0.18, 0.24)
        return replace(still, x=orbit * np.cos(angle), y=orbit * np.sin(angle))
    return replace(still, **_IN_PLACE[action](time, generator, still))


def _eased(time: Track, generator: np.random.Generator) -> Track:
    """Return progress from 0 to 1: steady, or slow at both ends."""
    return time if generator.random() < 0.5 else time**2 * (3 - 2 * time)  # noqa: PLR2004  # an even chance


def _spins(time: Track, generator: np.random.Generator, still: Motion) -> dict[str, Track]:
    turns = generator.uniform(0.8, 1.5) * generator.choice([-1, 1])
    return {"angle": still.angle + 2 * np.pi * turns * time}


def _blinks(time: Track, generator: np.random.Generator, still: Motion) -> dict[str, Track]:
    cycles = time * generator.uniform(3, 5.5) + generator.random()
    return {"opacity": still.opacity * (cycles % 1 < generator.uniform(0.45, 0.6))}


def _bounces(time: Track, generator: np.random.Generator, still: Motion) -> dict[str, Track]:
    floor, height = generator.uniform(0.12, 0.2), generator.uniform(0.28, 0.4)
    hops = np.abs(np.sin(np.pi * (generator.uniform(2, 3.5) * time + generator.random())))
    return {"y": still.opacity * floor - height * hops}


def _fades(time: Track, generator: np.random.Generator, still: Motion) -> dict[str, Track]:
    return {"opacity": still.opacity - (1 - generator.uniform(0, 0.1)) * _eased(time, generator)}


_IN_PLACE: dict[str, Callable[[Track, np.random.Generator, Motion], dict[str, Track]]] = {
    "spins": _spins,
    "blinks": _blinks,
    "bounces": _bounces,
    "fades": _fades,
}


def _shake(frames: int, generator: np.random.Generator) -> Track:
    """Return the camera's wander, (frames, 2): two slow sines a direction."""
    time = np.linspace(0, 2 * np.pi, frames)[:, None]
    rate, phase = generator.uniform(1, 6, (2, 2)), generator.uniform(0, 2 * np.pi, (2, 2))
    waves = np.sin(rate[0] * time + phase[0]) + np.sin(rate[1] * time + phase[1])
    wander: Track = (waves * generator.uniform(0, 0.012)).astype(np.float32)
    return wander


def _background(height: int, width: int, shake: Track, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return muted pictures (frames, height, width, 3) that move with the camera."""
    x, y = _grid(height, width, shake[:, 0], shake[:, 1])
    across = generator.uniform(0, 2 * np.pi)
    along = x * np.cos(across) + y * np.sin(across)
    kind = generator.integers(4)
    pattern = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    if kind == 1:
        pattern = pattern + along
    elif kind == 2:  # noqa: PLR2004  # the third of four kinds
        pattern = pattern + 0.5 * np.sin(along * generator.uniform(8, 30))
    elif kind == 3:  # noqa: PLR2004  # the fourth
        rate = generator.uniform(6, 18, 2)
        pattern = 0.5 * np.sin(x * rate[0] + across) * np.sin(y * rate[1])
    colours = [
        colorsys.hsv_to_rgb(generator.random(), generator.uniform(0, 0.25), generator.uniform(0.08, 0.6))
        for _ in range(2)
    ]
    first, second = (np.array(colour, np.float32) for colour in colours)
    mix = np.clip(pattern + 0.5, 0, 1)[..., None].astype(np.float32)
    blended: NDArray[np.float32] = first * (1 - mix) + second * mix
    return blended


def _rasterise(shape: str, motion: Motion, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the shape's coverage in [0, 1] and its shading in [0, 1], each (frames, height, width).

    The shading darkens one side, so that a circle can be seen to spin.
    """
    side = min(height, width)
    column, row = _grid(height, width, motion.x, motion.y)
    radius = motion.radius[:, None, None]
    distance = np.hypot(column, row)
    angle = np.arctan2(row, column) - motion.angle[:, None, None]
    table = _OUTLINES[shape]
    outline = table[np.floor(angle / (2 * np.pi) * len(table)).astype(np.intp) % len(table)] * radius
    coverage = np.clip((outline - distance) * side + 0.5, 0, 1) * motion.opacity[:, None, None]
    shade = np.clip(0.5 + 0.5 * distance * np.sin(angle) / radius, 0, 1)
    return coverage.astype(np.float32), shade.astype(np.float32)


def _grid(height: int, width: int, x: Track, y: Track) -> tuple[Track, Track]:
    """Return how far each column (frames, 1, width) and row (frames, height, 1) is from the points (x, y)."""
    side = min(height, width)
    columns, rows = (((np.arange(count) + 0.5 - count / 2) / side).astype(np.float32) for count in (width, height))
    return columns[None, None, :] - x[:, None, None], rows[None, :, None] - y[:, None, None]


def _outline(corners: list[tuple[float, float]], steps: int = 720) -> Track:
    """Return how far a polygon around the origin reaches in each direction, (steps,)."""
    ends = np.roll(np.array(corners), -1, axis=0)
    starts = np.array(corners)
    directions = (np.arange(steps) + 0.5) / steps * 2 * np.pi
    rays = np.stack([np.cos(directions), np.sin(directions)], axis=1)
    edges = ends - starts
    # Where ray t * r meets edge s + u * e: Cramer's rule for every ray and edge at once.
    cross = rays[:, None, 0] * edges[None, :, 1] - rays[:, None, 1] * edges[None, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = (starts[:, 0] * edges[:, 1] - starts[:, 1] * edges[:, 0])[None] / cross
        place = (starts[None, :, 0] * rays[:, None, 1] - starts[None, :, 1] * rays[:, None, 0]) / cross
    meets = (reach > 0) & (place >= 0) & (place <= 1)
    nearest: Track = np.where(meets, reach, np.inf).min(axis=1).astype(np.float32)
    return nearest


def _spokes(radii: list[float], *, first: float = 0.0) -> list[tuple[float, float]]:
    """Return corners at even angles around the origin, at the given distances in turn."""
    angles = first + np.arange(len(radii)) / len(radii) * 2 * np.pi
    return [(float(r * np.cos(a)), float(r * np.sin(a))) for r, a in zip(radii, angles, strict=True)]


_ARM = 0.3
_OUTLINES = {
    "circle": np.full(720, 0.95, np.float32),
    "square": _outline(_spokes([1.2] * 4, first=np.pi / 4)),
    "triangle": _outline(_spokes([1.4] * 3, first=-np.pi / 2)),
    "star": _outline(_spokes([1.4, 0.5] * 5, first=-np.pi / 2)),
    "cross": _outline(
        [
            (x * a, y * b)
            for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1))
            for a, b in (
                ((1.15, _ARM), (_ARM, _ARM), (_ARM, 1.15)) if x * y > 0 else ((_ARM, 1.15), (_ARM, _ARM), (1.15, _ARM))
            )
        ]
    ),
    "bar": _outline([(1.35, 0.3), (-1.35, 0.3), (-1.35, -0.3), (1.35, -0.3)]),
}
