"""The PyTorch video tower with seeded weights, eager and compiled: what the backends are measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from milnce_convert.torch_modes import TorchVideo

_SEED = 0


def torch_towers(width: float, device: str = "cuda", *, compiled: bool = False) -> TorchVideo:
    """Return the tower in every precision that PyTorch runs eagerly there, or in what torch.compile makes of it.

    Args:
        width: Factor on the published channel counts.
        device: "cuda", or "cpu" to try this out without a GPU.
        compiled: Whether it is compiled.
    """
    from milnce_convert.fixtures import WORDS, seeded_towers  # noqa: PLC0415 - where PyTorch is installed
    from milnce_convert.torch_modes import COMPILED, EAGER, TorchVideo  # noqa: PLC0415
    from milnce_convert.towers import TowersConfig  # noqa: PLC0415

    tower = seeded_towers(_SEED, TowersConfig.scaled(width, rows=len(WORDS) + 1)).video
    return TorchVideo(tower, device, (COMPILED if compiled else EAGER)["cuda"])
