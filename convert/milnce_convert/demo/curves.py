"""The picture of a training run: loss and recall over steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from milnce_convert.demo.training import History

_SMOOTHED_STEPS = 50


def draw_curves(history: History, destination: Path, title: str) -> None:
    """Write a PNG with the loss (mean of 50 steps) on the left and the recall of both splits on the right."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, recall_axes = figure.subplots(1, 2)
    window = min(_SMOOTHED_STEPS, len(history.loss))
    smoothed = np.convolve(history.loss, np.full(window, 1 / window), mode="valid")
    loss_axes.plot(np.arange(window, len(history.loss) + 1), smoothed, color="C0", linewidth=1)
    loss_axes.set(xlabel="step", ylabel="MIL-NCE loss", title="loss", yscale="log")
    steps = [row["step"] for row in history.recall]
    for colour, split in (("C0", "trained"), ("C1", "unseen")):
        for style, measure in (("-", "R@1"), ("--", "R@5")):
            name = f"{split} {measure}"
            recall_axes.plot(steps, [row[name] for row in history.recall], style, color=colour, label=name)
    recall_axes.set(xlabel="step", ylabel="%", title="text to video, all combinations as candidates", ylim=(0, 101))
    recall_axes.legend(loc="lower right")
    for axes in (loss_axes, recall_axes):
        axes.grid(visible=True, alpha=0.3)
    figure.suptitle(title)
    figure.savefig(destination, dpi=100, metadata={"Software": None})
