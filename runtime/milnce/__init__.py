"""milnce: the MIL-NCE text-video model outside a research notebook.

    model = milnce.load("engines/s3d")
    video = model.encode_video(clips)
    scores = milnce.similarity(model.encode_text("open the door"), video.embedding)

Importing this package loads NumPy and nothing else that is heavy: no backend, no decoder, no command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from milnce.backends import CudaOptions
from milnce.batcher import Batcher
from milnce.bundle import Bundle
from milnce.embeddings import VideoEmbeddings, similarity
from milnce.model import Model, load
from milnce.tokenizer import Tokenizer

if TYPE_CHECKING:
    from milnce.video import Preset, get_preset

__version__ = "0.1.0"

__all__ = [
    "Batcher",
    "Bundle",
    "CudaOptions",
    "Model",
    "Preset",
    "Tokenizer",
    "VideoEmbeddings",
    "__version__",
    "get_preset",
    "load",
    "similarity",
]

_FROM_VIDEO = ("Preset", "get_preset")


def __getattr__(name: str) -> object:
    if name not in _FROM_VIDEO:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from milnce import video  # noqa: PLC0415 - not everyone who imports milnce decodes video

    return getattr(video, name)


def __dir__() -> list[str]:
    return sorted(__all__)
