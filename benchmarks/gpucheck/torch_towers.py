"""The PyTorch video tower as users run it, eager, in four precisions: what the backends are measured against."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce_convert.parity import BF16_GATE, FP16_GATE, FP32_GATE, Gate

if TYPE_CHECKING:
    from numpy.typing import NDArray

# TF32 keeps as many bits of a factor as FP16; a GPU without it computes in FP32.
_TF32_GATE = replace(FP16_GATE, name="tf32", may_be_identical=True)
MODES: dict[str, Gate] = {"FP32": FP32_GATE, "TF32": _TF32_GATE, "FP16": FP16_GATE, "bf16": BF16_GATE}
_HALF = {"FP16": "float16", "bf16": "bfloat16"}
_SEED = 0


class TorchTowers:
    """The video tower with seeded weights on a device, once a precision.

    FP16 and bf16 have the channels last, which tensor cores want. cuDNN tries its algorithms out on each new shape,
    which costs time before the measurement and favours PyTorch in it.

    Args:
        width: Factor on the published channel counts.
        device: "cuda", or "cpu" to try this out without a GPU.
    """

    def __init__(self, width: float, device: str = "cuda") -> None:
        import torch  # noqa: PLC0415 - where it is installed

        from milnce_convert.fixtures import WORDS, as_video, seeded_towers  # noqa: PLC0415
        from milnce_convert.towers import TowersConfig  # noqa: PLC0415

        torch.backends.cudnn.benchmark = True
        self._torch, self._as_video, self._device = torch, as_video, device
        self._exact = seeded_towers(_SEED, TowersConfig.scaled(width, rows=len(WORDS) + 1)).video
        self._towers = {mode: self._cast(mode).to(device) for mode in MODES}

    @staticmethod
    def gate(mode: str) -> Gate:
        """Return what a precision's embeddings are held to."""
        return MODES[mode]

    def reference(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings of FP32 on the CPU."""
        with self._torch.no_grad():
            rows = [self._exact(self._as_video(clip[None]))["video_embedding"].numpy() for clip in clips]
        return np.concatenate(rows)

    def upload(self, clips: NDArray[np.uint8]) -> Any:  # noqa: ANN401 - a tensor
        """Return the clips on the device."""
        return self._torch.from_numpy(clips).to(self._device)

    def embed(self, mode: str, clips: Any) -> Any:  # noqa: ANN401 - tensors
        """Enqueue the embedding of uint8 clips that are on the device; returns a tensor there."""
        torch = self._torch
        torch.backends.cudnn.allow_tf32 = mode == "TF32"
        torch.backends.cuda.matmul.allow_tf32 = mode == "TF32"
        with torch.no_grad():
            # (N, T, H, W, 3) seen as (N, 3, T, H, W) has its channels last already.
            video = (clips.to(getattr(torch, _HALF.get(mode, "float32"))) / 255).permute(0, 4, 1, 2, 3)
            return self._towers[mode](video if mode in _HALF else video.contiguous())["video_embedding"]

    def to_host(self, embeddings: Any) -> NDArray[np.float32]:  # noqa: ANN401 - a tensor
        """Wait for embeddings and return them as float32."""
        return np.asarray(embeddings.float().cpu().numpy())

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def _cast(self, mode: str) -> Any:  # noqa: ANN401 - a module
        tower: Any = copy.deepcopy(self._exact)
        if mode not in _HALF:
            return tower
        return tower.to(getattr(self._torch, _HALF[mode])).to(memory_format=self._torch.channels_last_3d)
