"""The S3D video tower of MIL-NCE, with the released checkpoint's parameter names.

Written after the published architecture (S3D: arXiv:1712.04851; MIL-NCE: arXiv:1912.06430) and the semantics of the
PyTorch port that carries the released weights: zero-padded ceil-mode pooling, self-gating with a bias, BatchNorm
eps 1e-5, a space-to-depth stem whose first output index on each axis is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from milnce_convert.towers.config import VideoConfig

if TYPE_CHECKING:
    from milnce_convert.towers.config import InceptionChannels

Triple = tuple[int, int, int]


class SelfGating(nn.Module):
    """Scale each channel by a sigmoid of a linear map of all channels' means over time and space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, T, H, W) -> the same shape."""
        weights = torch.sigmoid(self.fc(features.mean(dim=[2, 3, 4])))
        return weights[:, :, None, None, None] * features


class ConvolutionUnit(nn.Module):
    """Convolution, BatchNorm, ReLU; or a separable pair of them: 1 x k x k in space, then k x 1 x 1 in time."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple,
        *,
        stride: int = 1,
        padding: Triple = (0, 0, 0),
        separable: bool = False,
    ) -> None:
        super().__init__()
        if separable and stride != 1:
            raise ValueError(
                f"a separable unit of stride {stride}: no tower has one, so where it strides is not defined"
            )
        time, height, width = kernel
        pad_time, pad_height, pad_width = padding
        first_kernel, first_padding = kernel, padding
        if separable:
            first_kernel, first_padding = (1, height, width), (0, pad_height, pad_width)
        self.conv1 = nn.Conv3d(inputs, outputs, first_kernel, stride=stride, padding=first_padding, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.separable = separable
        if separable:
            self.conv2 = nn.Conv3d(outputs, outputs, (time, 1, 1), padding=(pad_time, 0, 0), bias=False)
            self.bn2 = nn.BatchNorm3d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, T, H, W) -> (N, outputs, T', H', W')."""
        features = torch.relu(self.bn1(self.conv1(features)))
        if self.separable:
            features = torch.relu(self.bn2(self.conv2(features)))
        return features


class InceptionBlock(nn.Module):
    """Four gated branches, concatenated: 1x1x1; 1x1x1 then 3x3x3; the same, narrower; max pool then 1x1x1."""

    def __init__(self, inputs: int, channels: InceptionChannels) -> None:
        super().__init__()
        one, three, around = (1, 1, 1), (3, 3, 3), (1, 1, 1)
        self.conv_b0 = ConvolutionUnit(inputs, channels.b0, one)
        self.conv_b1_a = ConvolutionUnit(inputs, channels.b1_a, one)
        self.conv_b1_b = ConvolutionUnit(channels.b1_a, channels.b1_b, three, padding=around, separable=True)
        self.conv_b2_a = ConvolutionUnit(inputs, channels.b2_a, one)
        self.conv_b2_b = ConvolutionUnit(channels.b2_a, channels.b2_b, three, padding=around, separable=True)
        self.maxpool_b3 = nn.MaxPool3d(3, stride=1, padding=1)
        self.conv_b3_b = ConvolutionUnit(inputs, channels.b3_b, one)
        self.gating_b0 = SelfGating(channels.b0)
        self.gating_b1 = SelfGating(channels.b1_b)
        self.gating_b2 = SelfGating(channels.b2_b)
        self.gating_b3 = SelfGating(channels.b3_b)

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, T, H, W) -> (N, channels.output, T, H, W)."""
        branches = (
            self.gating_b0(self.conv_b0(features)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(features))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(features))),
            self.gating_b3(self.conv_b3_b(self.maxpool_b3(features))),
        )
        return torch.cat(branches, dim=1)


class ZeroPaddedMaxPool(nn.Module):
    """The port's max pool: zeros appended by max(kernel - stride, 0) whatever the size, then ceil mode.

    This is not TensorFlow's SAME for odd sizes, where TensorFlow pads one before and one after; the released PyTorch
    weights are run with the port's rule, so it is the reference here.
    """

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        totals = [max(size - step, 0) for size, step in zip(kernel, stride, strict=True)]
        (front, back), (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
        self.pad = nn.ConstantPad3d((left, right, top, bottom, front, back), 0.0)
        self.pool = nn.MaxPool3d(kernel, stride, ceil_mode=True)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, C, ceil(T / stride), ...)."""
        return cast("Tensor", self.pool(self.pad(features)))


def space_to_depth(video: Tensor) -> Tensor:
    """Move each 2x2x2 cell's pixels to channels: (N, C, T, H, W) -> (N, 8C, T/2, H/2, W/2).

    The channel order is the released weights': time offset, height offset, width offset, then colour.
    """
    batch, channels, frames, height, width = video.shape
    cells = video.reshape(batch, channels, frames // 2, 2, height // 2, 2, width // 2, 2)
    cells = cells.permute(0, 3, 5, 7, 1, 2, 4, 6)
    return cells.reshape(batch, 8 * channels, frames // 2, height // 2, width // 2)


class S3D(nn.Module):
    """The video tower.

    `forward` takes (N, 3, T, H, W) float RGB in [0, 1] and gives `video_embedding` (N, embedding) and `mixed_5c`
    (N, mixed_5c), the mean over time and space before `fc`. T, H and W must be even with space-to-depth.
    """

    def __init__(self, config: VideoConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VideoConfig()
        if config.space_to_depth:
            self.conv1 = ConvolutionUnit(24, config.stem, (2, 4, 4), padding=(1, 2, 2))
        else:
            self.conv1 = ConvolutionUnit(3, config.stem, (3, 7, 7), stride=2, padding=(1, 3, 3))
        self.maxpool_2a = ZeroPaddedMaxPool((1, 3, 3), (1, 2, 2))
        self.conv_2b = ConvolutionUnit(config.stem, config.stem, (1, 1, 1))
        self.conv_2c = ConvolutionUnit(config.stem, config.conv_2c, (3, 3, 3), padding=(1, 1, 1), separable=True)
        self.gating = SelfGating(config.conv_2c)
        self.maxpool_3a = ZeroPaddedMaxPool((1, 3, 3), (1, 2, 2))
        self.maxpool_4a = ZeroPaddedMaxPool((3, 3, 3), (2, 2, 2))
        self.maxpool_5a = ZeroPaddedMaxPool((2, 2, 2), (2, 2, 2))
        channels = config.conv_2c
        for name, plan in config.blocks.items():
            self.add_module(name, InceptionBlock(channels, plan))
            channels = plan.output
        self.fc = nn.Linear(config.mixed_5c, config.embedding)

    def features(self, video: Tensor) -> Tensor:
        """(N, 3, T, H, W) in [0, 1] -> the Mixed_5c map (N, mixed_5c, T', H', W')."""
        if self.config.space_to_depth:
            # The cut of each axis' first index gives the TensorFlow SAME alignment the weights were trained with.
            features = self.conv1(space_to_depth(video))[:, :, 1:, 1:, 1:]
        else:
            features = self.conv1(video)
        features = self.maxpool_2a(features)
        features = self.gating(self.conv_2c(self.conv_2b(features)))
        features = self.maxpool_3a(features)
        for name in self.config.blocks:
            if name == "mixed_4b":
                features = self.maxpool_4a(features)
            elif name == "mixed_5b":
                features = self.maxpool_5a(features)
            features = self.get_submodule(name)(features)
        return cast("Tensor", features)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """(N, 3, T, H, W) in [0, 1] -> {"video_embedding": (N, embedding), "mixed_5c": (N, mixed_5c)}."""
        pooled = self.features(video).mean(dim=[2, 3, 4])
        return {"video_embedding": self.fc(pooled), "mixed_5c": pooled}
