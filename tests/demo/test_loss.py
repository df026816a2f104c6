"""The MIL-NCE loss against its definition, written out as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from milnce_convert.demo.loss import mil_nce


def by_definition(video: torch.Tensor, text: torch.Tensor, same: torch.Tensor) -> float:
    losses = []
    clips, captions = text.shape[:2]
    for i in range(clips):
        own = sum(math.exp(float(video[i] @ text[i, k])) for k in range(captions))
        negatives = 0.0
        for j in range(clips):
            if same[i, j]:
                continue
            for k in range(captions):
                negatives += math.exp(float(video[i] @ text[j, k])) + math.exp(float(video[j] @ text[i, k]))
        losses.append(-math.log(own / (own + negatives)))
    return float(np.mean(losses))


def batch(names: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(len(names), 5, generator=generator)
    text = torch.randn(len(names), 3, 5, generator=generator)
    labels = torch.tensor(names)
    return video, text, labels[:, None] == labels[None, :]


@pytest.mark.parametrize("names", [[0, 1, 2, 3], [0, 1, 0, 2, 1], [7]])
def test_it_is_the_published_formula(names: list[int]) -> None:
    video, text, same = batch(names)
    assert float(mil_nce(video, text, same)) == pytest.approx(by_definition(video, text, same), abs=1e-5)


def test_captions_that_fit_two_clips_are_not_each_others_negatives() -> None:
    # Two clips alike and one other, each as near to its captions as can be: as negatives the two would cost ln 2 each.
    video = 10 * torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    text = video[:, None, :]
    labels = torch.tensor([0, 0, 1])
    assert float(mil_nce(video, text, labels[:, None] == labels)) < 1e-6
    assert float(mil_nce(video, text, torch.eye(3, dtype=torch.bool))) > 0.6
    video_alike, text_alike, everything = batch([0, 0, 0])
    assert float(mil_nce(video_alike, text_alike, everything)) == 0


def test_a_hundred_large_scores_stay_finite() -> None:
    video, text, same = batch(list(range(10)))
    assert math.isfinite(float(mil_nce(100 * video, text, same)))
