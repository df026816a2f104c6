"""Weights and clips that make the parity question hard.

Freshly initialised towers answer it too easily: activations shrink by 1e-10 on the way through 31 layers, and the
output is the bias of `fc`, the same for every clip, so that any defect passes. Here BatchNorm's statistics are measured
on structured clips, its biases are positive, the gates have biases of their own, and `fc` is centred, so that clips
differ and a defect shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from milnce_convert.checkpoint import Towers
from milnce_convert.sample_inputs import moving_clips, random_tokens
from milnce_convert.towers import S3D, TextTower, TowersConfig
from milnce_convert.towers.s3d import ConvolutionUnit, SelfGating

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["WORDS", "as_video", "moving_clips", "random_tokens", "seeded_towers"]

# What a person would type at a first try; enough for the README's and the tests' sentences.
WORDS = tuple(
    dict.fromkeys(
        """a an and the of in on at to with his her their is are i you he she it they we
    man woman person people child boy girl dog cat rabbit bird horse squirrel bear animal animals
    rides riding ride rode runs running run walks walking walk sits sitting talks talking talk speaks speaking
    drives driving drive cuts cutting cut cooks cooking cook plays playing play dances dancing jumps jumping
    opens open closes close door car bike bikes bicycle bicycles road street city town train bus boat
    tomato onion knife food kitchen table water fire tree trees grass meadow forest river mountain snow beach sky
    phone window face hat hand head ball guitar piano music drums fast slow big small
    red green blue yellow black white orange colorful cartoon animated sleeps sleeping wakes hole burrow
    looking looks through someone something sunny day night down up left right over under""".split()  # noqa: SIM905
    )
)


def as_video(clips: NDArray[np.uint8]) -> torch.Tensor:
    """Turn (N, T, H, W, 3) uint8 into what the PyTorch tower takes: (N, 3, T, H, W) float32 in [0, 1]."""
    return (torch.from_numpy(clips).to(torch.float32) / 255.0).permute(0, 4, 1, 2, 3)


def seeded_towers(
    seed: int,
    config: TowersConfig | None = None,
    *,
    words: tuple[str, ...] = WORDS,
    calibration_size: tuple[int, int, int] = (16, 64, 64),
) -> Towers:
    """Return towers with seeded weights whose activations keep their scale and whose embeddings tell clips apart.

    Args:
        seed: Seeds the weights and the calibration clips.
        config: Sizes; the published ones with the vocabulary's rows by default.
        words: The vocabulary, each word once; the table gets one row more.
        calibration_size: Frames, height and width of the clips BatchNorm's statistics are measured on.
    """
    config = config or TowersConfig.scaled(rows=len(words) + 1)
    generator = torch.Generator().manual_seed(seed)
    video, text = S3D(config.video), TextTower(config.text)
    with torch.no_grad():
        for module in video.modules():
            _seed_module(module, generator)
        for linear in (text.fc1, text.fc2):
            _seed_linear(linear, generator, bias=0.2)
        text.word_embd.weight.normal_(0.0, 1.0, generator=generator)
        _calibrate(video, moving_clips(12, *calibration_size, seed=seed + 1000))
    return Towers(video.eval(), text.eval(), words, config)


def _seed_module(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        module.weight.mul_(0.3)  # small variances before BatchNorm, so that a wrong eps shows
    elif isinstance(module, ConvolutionUnit):
        for norm in (module.bn1, module.bn2) if module.separable else (module.bn1,):
            norm.weight.uniform_(0.7, 1.3, generator=generator)
            norm.bias.uniform_(0.3, 1.3, generator=generator)
    elif isinstance(module, SelfGating):
        module.fc.weight.normal_(0.0, 1.5 / module.fc.in_features**0.5, generator=generator)
        module.fc.bias.normal_(0.5, 0.5, generator=generator)


def _seed_linear(linear: nn.Linear, generator: torch.Generator, *, bias: float) -> None:
    linear.weight.normal_(0.0, 1.0 / linear.in_features**0.5, generator=generator)
    linear.bias.normal_(0.0, bias, generator=generator)


def _calibrate(video: S3D, clips: NDArray[np.uint8]) -> None:
    """Set BatchNorm's statistics to those of `clips`, layer by layer, and centre and scale `fc` on their features."""
    norms = [module for module in video.modules() if isinstance(module, nn.BatchNorm3d)]
    video.train()
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the one batch below
    video.features(as_video(clips))
    for norm in norms:
        norm.momentum = 0.1
    video.eval()
    pooled = video.features(as_video(clips)).mean(dim=[2, 3, 4])
    generator = torch.Generator().manual_seed(pooled.shape[1])
    spread = (pooled - pooled.mean(dim=0)).norm(dim=1).mean()
    video.fc.weight.normal_(0.0, 1.0, generator=generator).div_(spread)
    video.fc.bias.normal_(0.0, 0.05, generator=generator)
    video.fc.bias.sub_(video.fc.weight @ pooled.mean(dim=0))
