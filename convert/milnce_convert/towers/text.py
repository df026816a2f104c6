"""The bag-of-words text tower of MIL-NCE. Tokenising is the runtime's; this takes word ids."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from milnce_convert.towers.config import TextConfig


class TextTower(nn.Module):
    """Word vectors, a linear layer, ReLU, the maximum over all positions (pads included), a linear layer.

    `forward` takes (N, words) int64 ids, 0 being the pad row, which takes part like any other word: that is how the
    released weights were trained.
    """

    def __init__(self, config: TextConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TextConfig()
        self.word_embd = nn.Embedding(config.rows, config.word)
        self.fc1 = nn.Linear(config.word, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.embedding)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """(N, words) int64 in [0, rows) -> {"text_embedding": (N, embedding)}."""
        hidden = torch.relu(self.fc1(self.word_embd(tokens)))
        return {"text_embedding": cast("Tensor", self.fc2(hidden.amax(dim=1)))}
