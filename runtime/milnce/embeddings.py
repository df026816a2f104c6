"""What the towers say, and how the sentences' side is scored against the clips'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class VideoEmbeddings:
    """What the video tower says about N clips.

    Attributes:
        embedding: float32 (N, 512), in the space of the sentences. Not normalised.
        mixed_5c: float32 (N, 1024), the mean of the last block, the feature that classifiers are trained on.
    """

    embedding: Float32Array
    mixed_5c: Float32Array

    def __len__(self) -> int:
        """Return N."""
        return len(self.embedding)

    def __repr__(self) -> str:
        return f"VideoEmbeddings(embedding={self.embedding.shape}, mixed_5c={self.mixed_5c.shape})"


def similarity(text: NDArray[Any], video: NDArray[Any]) -> Float32Array:
    """Score sentences against clips: the plain dot product that MIL-NCE was trained with, without normalising.

    Args:
        text: float (Q, D) from `Model.encode_text`.
        video: float (N, D), the `embedding` of `Model.encode_video`.

    Returns:
        float32 (Q, N); larger is closer. Scores have no fixed range, and compare within one sentence.

    Raises:
        InputError: if either is not a matrix of numbers or their widths differ.
    """
    pair: tuple[tuple[str, object], ...] = (("text", text), ("video", video))
    for name, array in pair:
        if not isinstance(array, np.ndarray):
            cure = "; pass its .embedding" if isinstance(array, VideoEmbeddings) else ""
            raise InputError(f"{name}: a numpy.ndarray expected, {type(array).__name__} given{cure}")
        if array.ndim != 2 or array.dtype.kind != "f":  # noqa: PLR2004 - a matrix
            cure = f"; for one embedding pass {name}[None]" if array.ndim == 1 else ""
            raise InputError(
                f"{name}: {array.dtype.name} of shape {array.shape} given; floats (rows, D) expected{cure}"
            )
    if text.shape[1] != video.shape[1]:
        cure = "pass the embedding of encode_video, not its mixed_5c"
        raise InputError(f"text is {text.shape[1]} wide, video {video.shape[1]}; both must be the same: {cure}")
    return np.asarray(text.astype(np.float32, copy=False) @ video.astype(np.float32, copy=False).T)
