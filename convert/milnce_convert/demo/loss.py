"""The MIL-NCE loss (Miech et al., arXiv:1912.06430, equation 1), where captions may fit several clips of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def mil_nce(video: Tensor, text: Tensor, same: Tensor) -> Tensor:
    """Return the mean over clips of -log(sum of exp of its own captions / the same plus all its negatives).

    Scores are plain dot products. A clip's negatives are the other clips' captions, and the other clips for its own
    captions. Captions that fit the clip although they are another's are neither its positives nor its negatives.

    Args:
        video: float32 (clips, width).
        text: float32 (clips, captions, width): several captions of each clip.
        same: bool (clips, clips), symmetric: whether two clips show the same, so that their captions fit both. True on
            the diagonal.

    Returns:
        float32 (), at least 0.
    """
    scores = torch.einsum("id,jkd->ijk", video, text)
    own = torch.diagonal(scores, dim1=0, dim2=1).T  # (clips, captions)
    others = scores.masked_fill(same[:, :, None], -torch.inf)
    clips = len(video)
    negatives = torch.cat([others.reshape(clips, -1), others.transpose(0, 1).reshape(clips, -1)], dim=1)
    total = torch.logsumexp(torch.cat([own, negatives], dim=1), dim=1)
    return (total - torch.logsumexp(own, dim=1)).mean()
