"""Sizes of the towers: channel plan, stem, widths. The defaults are the published model's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class InceptionChannels(NamedTuple):
    """Output channels of one Inception block's convolutions, in the order of the published plan."""

    b0: int
    b1_a: int
    b1_b: int
    b2_a: int
    b2_b: int
    b3_b: int

    @property
    def output(self) -> int:
        """Channels after the four branches are concatenated."""
        return self.b0 + self.b1_b + self.b2_b + self.b3_b


# S3D's plan (Xie et al., arXiv:1712.04851; the same in the released MIL-NCE weights), block by block.
PUBLISHED_BLOCKS: dict[str, InceptionChannels] = {
    "mixed_3b": InceptionChannels(64, 96, 128, 16, 32, 32),
    "mixed_3c": InceptionChannels(128, 128, 192, 32, 96, 64),
    "mixed_4b": InceptionChannels(192, 96, 208, 16, 48, 64),
    "mixed_4c": InceptionChannels(160, 112, 224, 24, 64, 64),
    "mixed_4d": InceptionChannels(128, 128, 256, 24, 64, 64),
    "mixed_4e": InceptionChannels(112, 144, 288, 32, 64, 64),
    "mixed_4f": InceptionChannels(256, 160, 320, 32, 128, 128),
    "mixed_5b": InceptionChannels(256, 160, 320, 32, 128, 128),
    "mixed_5c": InceptionChannels(384, 192, 384, 48, 128, 128),
}


def _scaled(channels: int, width: float) -> int:
    """Scale a channel count, kept a multiple of 8 (what tensor cores and vector units want) and at least 8."""
    return channels if width == 1.0 else max(8, round(channels * width / 8) * 8)


@dataclass(frozen=True)
class VideoConfig:
    """Sizes of the S3D video tower.

    Attributes:
        space_to_depth: True for the released weights (24-channel 2x4x4 stem); False for a checkpoint trained with
            the plain 3x7x7 stride-2 stem.
        stem: Channels after `conv1` and `conv_2b`.
        conv_2c: Channels after `conv_2c`.
        blocks: Channel plan of each Inception block, by name, in order.
        embedding: Width of the joint text-video space.
    """

    space_to_depth: bool = True
    stem: int = 64
    conv_2c: int = 192
    blocks: dict[str, InceptionChannels] = field(default_factory=lambda: dict(PUBLISHED_BLOCKS))
    embedding: int = 512

    @property
    def mixed_5c(self) -> int:
        """Width of the pooled feature before `fc`: 1024 in the published model."""
        return self.blocks["mixed_5c"].output

    @property
    def size_multiple(self) -> int:
        """What frames, height and width must be divisible by: 2 with space-to-depth, else 1."""
        return 2 if self.space_to_depth else 1


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the bag-of-words text tower.

    Attributes:
        rows: Rows of the word table: the vocabulary's words + 1, row 0 being the pad row.
        word: Width of a word vector.
        hidden: Width after `fc1`.
        embedding: Width of the joint text-video space.
    """

    rows: int = 66250
    word: int = 300
    hidden: int = 2048
    embedding: int = 512


@dataclass(frozen=True)
class TowersConfig:
    """Sizes of both towers. `TowersConfig.scaled(width=0.25, rows=...)` is a quarter-width model."""

    video: VideoConfig = field(default_factory=VideoConfig)
    text: TextConfig = field(default_factory=TextConfig)

    @classmethod
    def scaled(
        cls, width: float = 1.0, *, rows: int = 66250, embedding: int = 512, space_to_depth: bool = True
    ) -> TowersConfig:
        """Return the published plan with every internal width multiplied by `width`.

        Args:
            width: Factor on the published channel counts, rounded to multiples of 8.
            rows: Rows of the word table (words + 1).
            embedding: Width of the joint space; not scaled.
            space_to_depth: Which stem the video tower has.
        """
        blocks = {
            name: InceptionChannels(*(_scaled(channels, width) for channels in plan))
            for name, plan in PUBLISHED_BLOCKS.items()
        }
        video = VideoConfig(
            space_to_depth=space_to_depth,
            stem=_scaled(64, width),
            conv_2c=_scaled(192, width),
            blocks=blocks,
            embedding=embedding,
        )
        text = TextConfig(rows=rows, word=_scaled(300, width), hidden=_scaled(2048, width), embedding=embedding)
        return cls(video, text)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, as the manifest records them."""
        return asdict(self)
