"""Presets: their published numbers, what is refused, and a digest that says whether pixels may differ."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milnce.errors import InputError
from milnce.video import PRESETS, Preset, get_preset

PUBLISHED: dict[str, tuple[float | None, int, int | None, int | None, str, str]] = {
    "milnce-eval": (5.0, 16, 10, None, "bicubic", "black"),
    "milnce-native": (10.0, 32, 10, None, "bicubic", "black"),
    "sliding": (10.0, 32, None, 16, "bicubic", "black"),
    "tfhub-colab": (None, 32, 1, None, "bilinear", "repeat"),
}
OTHER: dict[str, Any] = {
    "fps": 7.0,
    "frames": 24,
    "windows": 3,
    "size": 256,
    "interpolation": "bilinear",
    "padding": "repeat",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_numbers(name: str) -> None:
    preset = get_preset(name)
    fields = (preset.fps, preset.frames, preset.windows, preset.stride_frames, preset.interpolation, preset.padding)
    assert fields == PUBLISHED[name]
    assert preset.size == 224
    assert preset.description
    assert preset.source
    assert set(PRESETS) == set(PUBLISHED)


def test_windows_span_3_2_seconds() -> None:
    assert get_preset("milnce-eval").duration_s == get_preset("milnce-native").duration_s == 3.2
    assert get_preset("tfhub-colab").duration_s is None


@pytest.mark.parametrize("field", OTHER)
def test_the_digest_changes_with_every_field_that_changes_pixels(field: str) -> None:
    preset = get_preset("milnce-native")
    assert get_preset(preset, **{field: OTHER[field]}).digest != preset.digest


def test_the_digest_changes_with_the_stride_and_the_sampling_version(monkeypatch: pytest.MonkeyPatch) -> None:
    sliding = get_preset("sliding")
    digest = sliding.digest
    assert get_preset("sliding", stride_frames=8).digest != digest
    monkeypatch.setattr("milnce.video.presets.SAMPLING_VERSION", 999)
    assert sliding.digest != digest


def test_the_digest_ignores_names_and_number_types_and_is_the_same_in_every_process() -> None:
    preset = get_preset("sliding")
    renamed = dataclasses.replace(preset, name="mine", description="", source="", fps=10)
    assert renamed.digest == preset.digest
    assert len({each.digest for each in PRESETS.values()}) == len(PRESETS)
    code = "from milnce.video import get_preset; print(get_preset('sliding').digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == preset.digest


def test_every_field_is_either_in_the_digest_or_only_for_people() -> None:
    covered = {*OTHER, "stride_frames"} | {"name", "description", "source"}
    assert {field.name for field in dataclasses.fields(Preset)} == covered


def test_a_changed_preset_no_longer_passes_for_the_published_one() -> None:
    closer = get_preset("milnce-eval", windows=None, stride_frames=8)
    assert closer.name == "milnce-eval, customised"
    assert closer.description == ("As milnce-eval, with windows None instead of 10, stride_frames 8 instead of None.")
    assert str(closer) == "milnce-eval, customised (16 frames, 5 fps, stride 8 frames, 224 px)"
    larger = get_preset(closer, size=256)
    assert larger.name == "milnce-eval, customised"
    assert "stride_frames 8 instead of None, size 256 instead of 224" in larger.description
    assert get_preset(larger, size=224, windows=10, stride_frames=None) == get_preset("milnce-eval")
    mine = Preset("mine", 5.0, 16, 10, None, description="My own.")
    twice = get_preset(get_preset(mine, size=64), size=32)
    assert twice.name == "mine, customised"


def test_overrides_that_change_no_pixel_change_no_label() -> None:
    assert get_preset("milnce-native", size=224, frames=32, fps=10) == get_preset("milnce-native")
    named = get_preset("milnce-native", size=64, name="small", description="Small ones.")
    assert (named.name, named.description) == ("small", "Small ones.")
    labelled = get_preset("milnce-native", size=64)
    assert labelled.digest == named.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 0}, r"preset 'milnce-native': fps must be None or a number in \(0, 1000\]; got 0"),
        ({"fps": float("nan")}, r"fps must be None or a number in \(0, 1000\]; got nan"),
        ({"fps": "10"}, r"fps must be None or a number in \(0, 1000\]; got '10'"),
        ({"fps": True}, r"fps must be None or a number"),
        ({"frames": 0}, r"frames must be a whole number from 1 to 4096; got 0"),
        ({"frames": 3.5}, r"frames must be a whole number from 1 to 4096; got 3.5"),
        ({"size": 225}, r"size must be even, as the model halves it; got 225"),
        ({"size": 0}, r"size must be a whole number from 2 to 4096; got 0"),
        ({"windows": 0}, r"windows must be a whole number from 1 to 100000; got 0"),
        ({"windows": None}, r"set either windows or stride_frames and leave the other None; got windows=None"),
        ({"stride_frames": 4}, r"set either windows or stride_frames .* got windows=10, stride_frames=4"),
        ({"fps": None}, r"fps=None \(frames as they come\) needs windows=1; got windows=10.* Give fps a number"),
        ({"interpolation": "area"}, r"interpolation must be one of bicubic, bilinear; got 'area'"),
        ({"padding": "wrap"}, r"padding must be one of black, repeat; got 'wrap'"),
        ({"name": ""}, r"a preset needs a name; got ''"),
        ({"stride": 4}, r"a preset has no field stride; there are .*stride_frames"),
    ],
)
def test_wrong_values_are_refused_with_what_is_right(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_preset("milnce-native", **changes)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no preset 'nativ'; there are milnce-eval, milnce-native, sliding, tfhub"):
        get_preset("nativ")


@given(
    fps=st.one_of(st.none(), st.floats(0.01, 1000)),
    frames=st.integers(1, 4096),
    windows=st.one_of(st.none(), st.integers(1, 100_000)),
    stride=st.one_of(st.none(), st.integers(1, 1_000_000)),
    size=st.integers(1, 2048).map(lambda half: half * 2),
)
def test_a_preset_is_either_valid_and_round_trips_or_refused(
    fps: float | None, frames: int, windows: int | None, stride: int | None, size: int
) -> None:
    valid = (windows is None) != (stride is None) and (fps is not None or windows == 1)
    if not valid:
        with pytest.raises(InputError, match="preset 'any'"):
            Preset("any", fps, frames, windows, stride, size=size)
        return
    preset = Preset("any", fps, frames, windows, stride, size=size)
    assert Preset(**preset.to_json()) == preset
    assert Preset(**preset.to_json()).digest == preset.digest
    assert str(frames) in str(preset)


def test_presets_need_no_pyav() -> None:
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from milnce.video import get_preset, find_videos, iter_windows, read_frame, probe_video\n"
        "print(get_preset('milnce-eval'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "milnce-eval (16 frames, 5 fps, 10 windows, 224 px)"
