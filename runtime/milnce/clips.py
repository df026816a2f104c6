"""Looks at a batch of clips before the model does, and says what is wrong with it and how to cure it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milnce.specs import TensorSpec

_RANK = 5
_CHANNELS = 3
_FORMS = "uint8 (N, T, H, W, 3) RGB, or float32 (N, 3, T, H, W) RGB in [0, 1]"
# Resizing in float32 may step this far over 1 by rounding alone.
_ROUNDING = 1e-6


def input_form(clips: object) -> str:
    """Return the input form of a batch of clips, "uint8" or "float32", by its dtype.

    Args:
        clips: A numpy.ndarray, of which dtype, rank and channels are looked at; or an array on a GPU, of which the
            dtype is.

    Raises:
        InputError: if `clips` is no array, has another dtype, no clips, another rank, or its channels elsewhere.
    """
    if not isinstance(clips, np.ndarray):
        form = _dtype_on_device(clips)
        if form in ("uint8", "float32"):
            return form  # its sizes are checked where it is taken in
        hint = "; call .numpy() on it" if hasattr(clips, "numpy") else "; stack clips with numpy.stack"
        raise InputError(f"clips: {type(clips).__name__} given; a numpy.ndarray expected: {_FORMS}{hint}")
    form = str(clips.dtype.name)
    if form not in ("uint8", "float32"):
        cure = "; use clips.astype(numpy.float32)" if clips.dtype.kind == "f" else ""
        raise InputError(f"clips: dtype {form} given, shape {clips.shape}; expected {_FORMS}{cure}")
    _check_rank(clips, form)
    if len(clips) == 0:
        raise InputError(f"clips: no clips given, shape {clips.shape}; at least one is needed")
    _check_channels(clips, form)
    return form


def check_clips(clips: NDArray[Any], spec: TensorSpec) -> None:
    """Hold a batch that `input_form` has passed against the sizes and the range that the graph takes.

    Args:
        clips: The batch, N of any size.
        spec: The video input of the graph.

    Raises:
        InputError: if T, H or W is too small, too large or odd, or a float is NaN or outside [0, 1].
    """
    for size, axis in list(zip(clips.shape, spec.shape, strict=True))[1:]:
        if axis.accepts(size):
            continue
        name = axis.name or "size"
        cure = f"resize, crop or pad to {axis}"
        if size % axis.multiple_of:
            cure = f"it must be a multiple of {axis.multiple_of}: {cure}"
        raise InputError(f"clips: {name} is {size}, shape {clips.shape}; {cure}. The graph takes {spec}")
    if clips.dtype.kind == "f":
        _check_range(clips)


def _dtype_on_device(clips: object) -> str | None:
    """Return NumPy's name of the dtype of an array on a GPU, whichever library's; None for anything else."""
    from milnce.device_arrays import is_device_array  # noqa: PLC0415 - few have arrays on a GPU

    if not is_device_array(clips):
        return None
    described = getattr(clips, "dtype", None)
    if described is None:  # nothing but the interface, which says it
        return str(np.dtype(getattr(clips, "__cuda_array_interface__", {}).get("typestr", "V")).name)
    # PyTorch says "torch.uint8", the others have NumPy's dtypes.
    return str(described).rpartition(".")[2]


def _check_rank(clips: NDArray[Any], form: str) -> None:
    if clips.ndim == _RANK:
        return
    cure = "give a batch of clips"
    if clips.ndim == _RANK - 1:
        cure = "add a batch axis to one clip: clip[None]"
        if clips.shape[0 if form == "float32" else -1] != _CHANNELS:
            cure += ", and put the channels where they belong"
    elif clips.ndim == _RANK + 1:
        cure = "fold windows into the batch: clips.reshape(-1, *clips.shape[2:])"
    raise InputError(f"clips: rank {clips.ndim} given, shape {clips.shape}; expected {_FORMS}; {cure}")


def _check_channels(clips: NDArray[Any], form: str) -> None:
    found = "channels last" if form == "uint8" else "channels first"
    expected, transposes = _ORDERS[form]
    axis = 4 if form == "uint8" else 1
    if clips.shape[axis] == _CHANNELS:
        return
    for other, (label, order) in transposes.items():
        if clips.shape[other] == _CHANNELS:
            extra = " and scale to [0, 1], or give uint8 as it is" if form == "float32" and other == 4 else ""  # noqa: PLR2004
            raise InputError(
                f"clips: {label}, shape {clips.shape}; {form} clips are {found} {expected}; "
                f"transpose to that order: clips.transpose{order}{extra}"
            )
    raise InputError(
        f"clips: {clips.shape[axis]} channels given, shape {clips.shape}; {form} clips are {expected} RGB with 3 "
        "channels; drop alpha, or repeat a grey channel three times"
    )


# For each form its order, and for each other axis of 3 the order that has it there and the transpose that cures it.
_ORDERS: dict[str, tuple[str, dict[int, tuple[str, tuple[int, ...]]]]] = {
    "uint8": (
        "(N, T, H, W, 3)",
        {
            1: ("channels first (N, 3, T, H, W)", (0, 2, 3, 4, 1)),
            2: ("channels second (N, T, 3, H, W)", (0, 1, 3, 4, 2)),
        },
    ),
    "float32": (
        "(N, 3, T, H, W)",
        {
            4: ("channels last (N, T, H, W, 3)", (0, 4, 1, 2, 3)),
            2: ("channels second (N, T, 3, H, W)", (0, 2, 1, 3, 4)),
        },
    ),
}


def _check_range(clips: NDArray[Any]) -> None:
    low, high = float(clips.min()), float(clips.max())  # both are NaN if any value is
    if np.isnan(low):
        index = tuple(int(i) for i in np.argwhere(np.isnan(clips))[0])
        raise InputError(f"clips: NaN at {index}, shape {clips.shape}; float clips must be numbers in [0, 1]")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        cure = "divide by 255" if low >= 0 and high <= 255 else "undo any mean and deviation, the model wants none"  # noqa: PLR2004
        raise InputError(f"clips: values from {low:g} to {high:g} given; float clips must lie in [0, 1]: {cure}")
