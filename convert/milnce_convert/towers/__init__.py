"""The PyTorch towers: the numerical reference every exported graph is held against."""

from milnce_convert.towers.config import InceptionChannels, TextConfig, TowersConfig, VideoConfig
from milnce_convert.towers.s3d import S3D
from milnce_convert.towers.text import TextTower

__all__ = ["S3D", "InceptionChannels", "TextConfig", "TextTower", "TowersConfig", "VideoConfig"]
