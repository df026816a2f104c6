"""What is said to clips that do not fit: each mistake is named, with its cure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

import milnce
from milnce.clips import input_form
from milnce.errors import InputError

if TYPE_CHECKING:
    from helpers.tiny_bundle import Tiny

UINT8 = np.zeros((2, 4, 16, 16, 3), np.uint8)
FLOAT32 = np.zeros((2, 3, 4, 16, 16), np.float32)
WRONG_CLIPS: dict[str, tuple[object, str]] = {
    "list": ([UINT8], "clips: list given; a numpy.ndarray expected: uint8 (N, T, H, W, 3) RGB, or float32"),
    "float64": (FLOAT32.astype(np.float64), "dtype float64 given, shape (2, 3, 4, 16, 16); expected uint8"),
    "float64 cure": (FLOAT32.astype(np.float64), "use clips.astype(numpy.float32)"),
    "int64": (UINT8.astype(np.int64), "dtype int64 given"),
    "objects": (np.array([None]), "dtype object given"),
    "one clip": (UINT8[0], "rank 4 given, shape (4, 16, 16, 3); expected uint8 (N, T, H, W, 3)"),
    "one clip cure": (UINT8[0], "add a batch axis to one clip: clip[None]"),
    "rank 6": (UINT8[None], "fold windows into the batch: clips.reshape(-1, *clips.shape[2:])"),
    "rank 0": (np.zeros((), np.uint8), "rank 0 given, shape ()"),
    "empty": (UINT8[:0], "no clips given, shape (0, 4, 16, 16, 3); at least one is needed"),
    "uint8 channels first": (
        UINT8.transpose(0, 4, 1, 2, 3),
        (
            "channels first (N, 3, T, H, W), shape (2, 3, 4, 16, 16); uint8 clips are channels last (N, T, H, W, 3); "
            "transpose to that order: clips.transpose(0, 2, 3, 4, 1)"
        ),
    ),
    "uint8 channels second": (UINT8.transpose(0, 1, 4, 2, 3), "clips.transpose(0, 1, 3, 4, 2)"),
    "float32 channels last": (
        FLOAT32.transpose(0, 2, 3, 4, 1),
        "transpose to that order: clips.transpose(0, 4, 1, 2, 3) and scale to [0, 1], or give uint8 as it is",
    ),
    "float32 channels second": (FLOAT32.transpose(0, 2, 1, 3, 4), "clips.transpose(0, 2, 1, 3, 4)"),
    "grey": (UINT8[..., :1], "1 channels given, shape (2, 4, 16, 16, 1); uint8 clips are (N, T, H, W, 3) RGB"),
    "alpha": (np.zeros((2, 4, 16, 16, 4), np.uint8), "4 channels given"),
    "odd height": (UINT8[:, :, :-1], "height is 15, shape (2, 4, 15, 16, 3); it must be a multiple of 2: resize, crop"),
    "odd frames": (
        np.zeros((1, 5, 16, 16, 3), np.uint8),
        "frames is 5, shape (1, 5, 16, 16, 3); it must be a multiple",
    ),
    "small": (UINT8[:, :, :, :14], "width is 14, shape (2, 4, 16, 14, 3); resize, crop or pad to width=16.. step 2"),
    "no frames": (UINT8[:, :0], "frames is 0"),
    "odd float": (FLOAT32[:, :, :, :, :15], "width is 15, shape (2, 3, 4, 16, 15); it must be a multiple of 2"),
    "bytes as floats": (FLOAT32 + 255, "values from 255 to 255 given; float clips must lie in [0, 1]: divide by 255"),
    "normalised": (FLOAT32 - 2, "values from -2 to -2 given; float clips must lie in [0, 1]: undo any mean"),
    "infinite": (FLOAT32 + np.inf, "values from inf to inf given"),
}


@pytest.mark.parametrize("case", WRONG_CLIPS)
def test_wrong_clips_are_named_with_a_cure(tiny: Tiny, case: str) -> None:
    clips, text = WRONG_CLIPS[case]
    with milnce.load(tiny.path) as model, pytest.raises(InputError, match=re.escape(text)):
        model.encode_video(clips)


def test_nan_is_found_and_its_place_named(tiny: Tiny) -> None:
    clips = FLOAT32.copy()
    clips[1, 2, 3, 4, 5] = np.nan
    text = re.escape("NaN at (1, 2, 3, 4, 5), shape (2, 3, 4, 16, 16)")
    with milnce.load(tiny.path) as model, pytest.raises(InputError, match=text):
        model.encode_video(clips)


def test_rounding_just_over_one_is_let_through_and_no_more(tiny: Tiny) -> None:
    clips = np.nextafter(FLOAT32 + 1, np.float32(2))
    assert clips.max() > 1
    with milnce.load(tiny.path) as model:
        assert np.isfinite(model.encode_video(clips).embedding).all()
        with pytest.raises(InputError, match=r"values from 0 to 1\.005 given; float clips must lie in \[0, 1\]"):
            model.encode_video(np.where(np.arange(16) == 3, np.float32(1.005), FLOAT32))


class OnGpu:
    """An array on a GPU, of which no more than its dtype is looked at."""

    def __init__(self, typestr: str) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": typestr,
            "shape": (1, 4, 16, 16, 3),
            "data": (1, False),
        }


def test_the_form_of_an_array_on_a_gpu_is_read_from_whatever_says_it() -> None:
    assert input_form(OnGpu("|u1")) == "uint8"
    assert input_form(OnGpu("<f4")) == "float32"
    tensor = OnGpu("<f4")
    tensor.dtype = "torch.uint8"  # type: ignore[attr-defined] # as PyTorch's prints
    assert input_form(tensor) == "uint8"
    with pytest.raises(InputError, match=r"OnGpu given; a numpy\.ndarray expected"):
        input_form(OnGpu("<f8"))
