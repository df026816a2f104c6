"""The PyTorch video tower as its users run it, eager or compiled, in several precisions: what others are held to.

FP16 and bf16 have the channels last, which tensor cores and vector units want. On a GPU cuDNN tries its algorithms out
on each new shape, which costs time before a measurement and favours PyTorch in it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from milnce.bench import Source
from milnce_convert.fixtures import as_video
from milnce_convert.parity import BF16_GATE, FP16_GATE, FP32_GATE, Gate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from milnce.tokenizer import Tokenizer
    from milnce_convert.towers import S3D, TextTower


@dataclass(frozen=True)
class Mode:
    """One way to run the tower.

    Attributes:
        gate: What its embeddings are held to.
        dtype: Of weights and activations.
        channels_last: Whether the channels are last in memory.
        tf32: Whether a GPU may round the factors of FP32 products to TF32.
        compiled: Whether it goes through torch.compile, once for each shape of clips.
    """

    gate: Gate
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    tf32: bool = False
    compiled: bool = False


# TF32 keeps as many bits of a factor as FP16; a GPU without it computes in FP32.
_TF32_GATE = replace(FP16_GATE, name="tf32", may_be_identical=True)
MODES: dict[str, Mode] = {
    "eager FP32": Mode(FP32_GATE),
    "eager TF32": Mode(_TF32_GATE, tf32=True),
    "eager FP16": Mode(FP16_GATE, torch.float16, channels_last=True),
    "eager bf16": Mode(BF16_GATE, torch.bfloat16, channels_last=True),
    "compiled FP32": Mode(FP32_GATE, compiled=True),
    "compiled FP16": Mode(FP16_GATE, torch.float16, channels_last=True, compiled=True),
}
EAGER = {"cpu": ("eager FP32", "eager bf16"), "cuda": ("eager FP32", "eager TF32", "eager FP16", "eager bf16")}
COMPILED = {"cpu": ("compiled FP32",), "cuda": ("compiled FP16",)}


class TorchVideo:
    """The video tower on a device, once for each mode.

    Args:
        tower: The tower, FP32 on the CPU, in eval mode. It is not changed.
        device: "cuda" or "cpu".
        modes: Of `MODES`.
    """

    def __init__(self, tower: S3D, device: str, modes: Sequence[str]) -> None:
        if device == "cuda":
            torch.backends.cudnn.benchmark = True
        self._exact, self._device = tower, device
        self._towers = {name: self._prepare(MODES[name]) for name in modes}

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes it was made for."""
        return tuple(self._towers)

    @staticmethod
    def gate(name: str) -> Gate:
        """Return what a mode's embeddings are held to."""
        return MODES[name].gate

    def reference(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings (N, D) of uint8 clips (N, T, H, W, 3), in FP32 on the CPU."""
        with torch.no_grad():
            rows = [self._exact(as_video(clip[None]).contiguous())["video_embedding"].numpy() for clip in clips]
        return np.concatenate(rows)

    def upload(self, clips: NDArray[np.uint8]) -> torch.Tensor:
        """Return the clips on the device."""
        return torch.from_numpy(clips).to(self._device)

    def embed(self, name: str, clips: torch.Tensor) -> torch.Tensor:
        """Embed uint8 clips that are on the device; on a GPU this enqueues the work and returns a tensor there."""
        mode = MODES[name]
        torch.backends.cudnn.allow_tf32 = mode.tf32
        torch.backends.cuda.matmul.allow_tf32 = mode.tf32
        with torch.no_grad():
            # (N, T, H, W, 3) seen as (N, 3, T, H, W) has its channels last already.
            video = (clips.to(mode.dtype) / 255).permute(0, 4, 1, 2, 3)
            found: torch.Tensor = self._towers[name](video if mode.channels_last else video.contiguous())[
                "video_embedding"
            ]
        return found

    def to_host(self, embeddings: torch.Tensor) -> NDArray[np.float32]:
        """Wait for embeddings and return them as float32."""
        return np.asarray(embeddings.float().cpu().numpy())

    def run(self, name: str, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings of clips from host to host, as a caller of the tower has them."""
        return self.to_host(self.embed(name, self.upload(clips)))

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _prepare(self, mode: Mode) -> Any:  # noqa: ANN401 - a module, or what torch.compile makes of one
        tower: Any = copy.deepcopy(self._exact).to(mode.dtype)
        if mode.channels_last:
            tower = tower.to(memory_format=torch.channels_last_3d)
        tower = tower.to(self._device)
        return torch.compile(tower, dynamic=False) if mode.compiled else tower


def sources(video: TorchVideo, device: str) -> list[Source]:
    """Return each mode of the tower as something to measure, in their order."""
    return [
        Source(
            f"PyTorch {name}" + ("" if device == "cpu" else f" on {device}"),
            MODES[name].gate.name,
            partial(video.run, name),
            {"backend": "pytorch", "device": device, "precision": name},
        )
        for name in video.modes
    ]


def text_source(tower: TextTower, tokenizer: Tokenizer) -> Source:
    """Return the text tower as something to measure, tokenising and all."""

    def run(sentences: Sequence[str]) -> NDArray[np.float32]:
        with torch.no_grad():
            return np.asarray(tower(torch.from_numpy(tokenizer(sentences)))["text_embedding"].numpy())

    return Source("PyTorch eager FP32", "fp32", run, {"backend": "pytorch", "device": "cpu", "precision": "eager FP32"})


def usable_devices(wanted: Iterable[str]) -> list[str]:
    """Return those of "cuda" and "cpu" that are wanted and that PyTorch can use, in this order."""
    usable = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    return sorted(usable & set(wanted), reverse=True)
