"""The drawn clips show what their captions say, also after encoding and the runtime's own decoding."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milnce.errors import InputError, OutputError
from milnce.video import iter_windows, probe_video
from milnce_convert.demo.clips import SAMPLING, encode, write_clip
from milnce_convert.demo.concepts import ACTIONS, COLOURS, SHAPES, Combination
from milnce_convert.demo.drawing import draw

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HUE_DEGREES = {"red": 0, "orange": 27, "yellow": 57, "green": 124, "blue": 221, "purple": 288}


def clip_of(folder: Path, combination: Combination, seed: int, suffix: str = ".mp4") -> NDArray[np.uint8]:
    path = folder / f"clip{suffix}"
    write_clip(path, combination, np.random.default_rng(seed))
    return next(iter_windows(path, SAMPLING)).clip


def shape_mask(clip: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels of strong colour: backgrounds are muted."""
    pixels = clip.astype(np.float32)
    strongest, weakest = pixels.max(axis=-1), pixels.min(axis=-1)
    saturated: NDArray[np.bool_] = (strongest > 70) & (strongest - weakest > 0.6 * strongest)
    return saturated


def track(clip: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Centre (x, y) and area of the shape in each frame; NaN where it is not seen."""
    mask = shape_mask(clip)
    area = mask.sum(axis=(1, 2))
    rows, columns = np.mgrid[: clip.shape[1], : clip.shape[2]]
    with np.errstate(invalid="ignore"):
        x, y = (((mask * axis).sum(axis=(1, 2)) / area) for axis in (columns, rows))
    return x, y, area


def strength(picture: NDArray[np.uint8]) -> float:
    """How colourful the most colourful pixels are."""
    return float(np.percentile(np.ptp(picture.astype(np.float32), axis=-1), 99.5))


def action_of(clip: NDArray[np.uint8]) -> str:  # noqa: PLR0911  # one return for each action is the point
    """Tell the action from the pixels, by rules that know nothing of the drawing code."""
    x, y, area = track(clip)
    seen = area > 12
    if np.count_nonzero(np.diff(seen.astype(int))) >= 3:
        return "blinks"
    if area[-1] < 0.4 * area[0]:
        return "fades" if strength(clip[-1]) < 0.5 * strength(clip[0]) else "shrinks"
    if area[-1] > 2.5 * area[0]:
        return "grows"
    if np.ptp(x) > 15 and np.ptp(y) > 15:
        # As y points down, a growing angle is clockwise for the viewer.
        turned = np.diff(np.unwrap(np.arctan2(y - 31.5, x - 31.5))).sum()
        return "clockwise" if turned > 0 else "counterclockwise"
    if np.abs(np.diff(y)).sum() > 1.6 * np.ptp(y) > 16:
        return "bounces"
    across, down = x[-1] - x[0], y[-1] - y[0]
    if max(abs(across), abs(down)) > 20:
        return ("right" if across > 0 else "left") if abs(across) > abs(down) else ("down" if down > 0 else "up")
    changed = np.abs(np.diff(clip.astype(int), axis=0)).sum(axis=-1).max(axis=(1, 2))
    return "spins" if np.median(changed) > 60 else "nothing"


@pytest.mark.parametrize("action", ACTIONS)
def test_a_clip_does_what_it_says(action: str, tmp_path: Path) -> None:
    clips = {shape: clip_of(tmp_path, Combination(shape, "green", action), seed) for seed, shape in enumerate(SHAPES)}
    assert {shape: action_of(clip) for shape, clip in clips.items()} == dict.fromkeys(SHAPES, action)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_clip_has_the_colour_it_says(colour: str, suffix: str, tmp_path: Path) -> None:
    for seed in range(4):
        clip = clip_of(tmp_path, Combination("square", colour, "left"), seed, suffix)
        red, green, blue = np.median(clip[shape_mask(clip)], axis=0) / 255
        hue = 360 * colorsys.rgb_to_hsv(red, green, blue)[0]
        distance = {name: abs((hue - degrees + 180) % 360 - 180) for name, degrees in HUE_DEGREES.items()}
        assert min(distance, key=lambda name: distance[name]) == colour, hue


def test_shapes_differ_in_outline() -> None:
    areas = {}
    for shape in SHAPES:
        pictures, _ = draw(Combination(shape, "green", "left"), np.random.default_rng(5))
        areas[shape] = int(shape_mask(pictures)[0].sum())
    assert len(set(areas.values())) == len(SHAPES), areas
    assert areas["bar"] < areas["cross"] < areas["circle"] < areas["square"]


def test_the_seed_decides_everything() -> None:
    combination = Combination("star", "red", "spins")
    first, again, other = (draw(combination, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()


def test_clips_fill_one_window_and_no_more(tmp_path: Path) -> None:
    for seed in range(8):
        path = tmp_path / f"{seed}.{'gif' if seed % 2 else 'mp4'}"
        write_clip(path, Combination("bar", "blue", "left"), np.random.default_rng(seed))
        windows = list(iter_windows(path, SAMPLING))
        assert {(window.start_s, window.end_s) for window in windows} == {(0.0, 3.2)}
        assert windows[0].clip[-1].any(), "no black frames at the end"
        assert 3.1 < (probe_video(path).duration_s or 0) < 3.6


def test_a_clip_of_another_kind_or_in_no_folder_is_refused(tmp_path: Path) -> None:
    pictures, rate = draw(Combination("bar", "blue", "left"), np.random.default_rng(0))
    with pytest.raises(InputError, match=r"clip\.avi: suffix '\.avi' given; \.mp4 or \.gif expected"):
        encode(tmp_path / "clip.avi", pictures, rate)
    with pytest.raises(OutputError, match=r"clip\.mp4: cannot write .*is the folder there and the disk not full\?"):
        encode(tmp_path / "none" / "clip.mp4", pictures, rate)
