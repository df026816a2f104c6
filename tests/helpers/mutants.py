"""Defects a converter could have, each planted in the PyTorch towers or in what is fed to them.

The parity gate is worth something only if it fails every one of them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from milnce_convert.fixtures import as_video

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from milnce_convert.checkpoint import Towers
    from milnce_convert.towers import S3D, TextTower

    VideoMutant = Callable[[S3D, Tensor], Tensor]
    TextMutant = Callable[[TextTower, Tensor], Tensor]


def video_embedding(tower: S3D, video: Tensor) -> Tensor:
    """Run the honest tower: (N, 3, T, H, W) -> (N, embedding)."""
    return cast("Tensor", tower(video)["video_embedding"])


def text_embedding(tower: TextTower, tokens: Tensor) -> Tensor:
    """Run the honest tower: (N, words) -> (N, embedding)."""
    return cast("Tensor", tower(tokens)["text_embedding"])


def _changed(change: Callable[[S3D], None]) -> VideoMutant:
    """Make a mutant of a change to a copy of the tower's weights or modules."""

    def run(tower: S3D, video: Tensor) -> Tensor:
        mutant = copy.deepcopy(tower)
        change(mutant)
        return video_embedding(mutant, video)

    return run


def _scale_weights(tower: S3D) -> None:
    for module in tower.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.mul_(1.01)


def _scale_last_layer(tower: S3D) -> None:
    tower.fc.weight.mul_(1.01)
    tower.fc.bias.mul_(1.01)


def _swap_channels(tower: S3D) -> None:
    weight = cast("Tensor", tower.get_submodule("mixed_4d.conv_b1_b.conv1").weight)
    weight[[3, 17]] = weight[[17, 3]].clone()


def _drop_weights(tower: S3D) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in tower.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.mul_(torch.rand(module.weight.shape, generator=generator) > 0.01)


def _other_epsilon(tower: S3D) -> None:
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3


def _remove_one_gate(tower: S3D) -> None:
    cast("nn.Module", tower.mixed_4c).gating_b2 = nn.Identity()


def _remove_stem_gate(tower: S3D) -> None:
    tower.gating = nn.Identity()  # type: ignore[assignment]


def _gate_without_bias(tower: S3D) -> None:
    tower.gating.fc.bias.zero_()


def _swap_gates(tower: S3D) -> None:
    block = cast("nn.Module", tower.mixed_5b)  # both gates have 128 channels
    block.gating_b2, block.gating_b3 = block.gating_b3, block.gating_b2


def _without_cut(tower: S3D, video: Tensor) -> Tensor:
    """Forget to cut the stem's first indices: a map one larger on each axis."""
    mutant = copy.deepcopy(tower)
    whole = mutant.conv1

    class Uncut(nn.Module):
        def forward(self, cells: Tensor) -> Tensor:
            return nn.functional.pad(whole(cells), (1, 0, 1, 0, 1, 0))  # the tower's cut now takes only the padding

    mutant.conv1 = Uncut()  # type: ignore[assignment]
    return video_embedding(mutant, video)


def _without_pool_padding(tower: S3D) -> None:
    """Pad on both sides, as TensorFlow does for odd sizes, instead of at the end only."""
    for name in ("maxpool_2a", "maxpool_3a", "maxpool_4a"):
        pooling = tower.get_submodule(name)
        pooling.pad = nn.Identity()
        pool = cast("nn.MaxPool3d", pooling.pool)
        pool.padding = (1, 1, 1) if name == "maxpool_4a" else (0, 1, 1)


VIDEO_MUTANTS: dict[str, VideoMutant] = {
    "convolution weights x1.01": _changed(_scale_weights),
    "last layer x1.01": _changed(_scale_last_layer),
    "two channels swapped": _changed(_swap_channels),
    "1% of the weights dropped": _changed(_drop_weights),
    "BatchNorm eps 1e-3": _changed(_other_epsilon),
    "one gate removed": _changed(_remove_one_gate),
    "stem gate removed": _changed(_remove_stem_gate),
    "stem gate without bias": _changed(_gate_without_bias),
    "two gates swapped": _changed(_swap_gates),
    "stem cut forgotten": _without_cut,
    "pools padded before and after": _changed(_without_pool_padding),
    "BGR": lambda tower, video: video_embedding(tower, video.flip(1)),
    "[0, 255] input": lambda tower, video: video_embedding(tower, video * 255),
    "[-1, 1] input": lambda tower, video: video_embedding(tower, video * 2 - 1),
    "frames reversed": lambda tower, video: video_embedding(tower, video.flip(2)),
    "one frame late": lambda tower, video: video_embedding(tower, video.roll(1, dims=2)),
    "height and width swapped": lambda tower, video: video_embedding(tower, video.transpose(3, 4)),
    "wrong clip": lambda tower, video: video_embedding(tower, video.roll(1, dims=0)),
}


def _mean_over_words(tower: TextTower, tokens: Tensor) -> Tensor:
    return cast("Tensor", tower.fc2(torch.relu(tower.fc1(tower.word_embd(tokens))).mean(dim=1)))


def _pads_masked(tower: TextTower, tokens: Tensor) -> Tensor:
    hidden = torch.relu(tower.fc1(tower.word_embd(tokens)))
    return cast("Tensor", tower.fc2(hidden.masked_fill((tokens == 0)[..., None], -1.0).amax(dim=1)))


def _one_id_shifted(tower: TextTower, tokens: Tensor) -> Tensor:
    shifted = tokens.clone()
    shifted[:, 0] = (shifted[:, 0] + 1) % tower.config.rows
    return text_embedding(tower, shifted)


def _without_relu(tower: TextTower, tokens: Tensor) -> Tensor:
    return cast("Tensor", tower.fc2(tower.fc1(tower.word_embd(tokens)).amax(dim=1)))


def _zero_pad_row(tower: TextTower, tokens: Tensor) -> Tensor:
    mutant = copy.deepcopy(tower)
    mutant.word_embd.weight[0] = 0.0
    return text_embedding(mutant, tokens)


TEXT_MUTANTS: dict[str, TextMutant] = {
    "mean instead of max": _mean_over_words,
    "pads masked out": _pads_masked,
    "one word id shifted": _one_id_shifted,
    "no ReLU": _without_relu,
    "pad row zeroed": _zero_pad_row,
    "last layer x1.01": lambda tower, tokens: text_embedding(tower, tokens) * 1.01,
    "wrong sentence": lambda tower, tokens: text_embedding(tower, tokens.roll(1, dims=0)),
}


def video_outputs(
    towers: Towers, clips: NDArray[np.uint8], mutant: VideoMutant = video_embedding
) -> NDArray[np.float32]:
    """Run a mutant (or the honest tower) on (N, T, H, W, 3) uint8 clips; returns (N, embedding)."""
    with torch.no_grad():
        return cast("NDArray[np.float32]", mutant(towers.video, as_video(clips)).numpy())


def text_outputs(towers: Towers, tokens: NDArray[np.int64], mutant: TextMutant = text_embedding) -> NDArray[np.float32]:
    """Run a mutant (or the honest tower) on (N, words) ids; returns (N, embedding)."""
    with torch.no_grad():
        return cast("NDArray[np.float32]", mutant(towers.text, torch.from_numpy(tokens)).numpy())
