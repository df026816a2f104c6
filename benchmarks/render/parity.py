"""The page of benchmarks/parity.py: how far exports lie from the PyTorch towers, beside what is allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from milnce_convert.parity import FP16_GATE, FP32_GATE
from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(report: dict[str, Any]) -> str:
    """Return the worst figure of each kind beside its bound."""
    worst = report["worst"]
    sizes = ", ".join("x".join(map(str, size)) for size in report["sizes"])
    rows = []
    for figure_name in worst["fp32"]:
        bounds = [getattr(gate, figure_name) for gate in (FP32_GATE, FP16_GATE)]
        name = figure_name.replace("_", " ")
        if "cosine" in figure_name:
            name, bounds = f"1 - {name}", [1 - bound for bound in bounds]
        cells = [common.number(worst["fp32"][figure_name], ".1e"), f"{bounds[0]:.0e}"]
        cells += [common.number(worst["fp16"][figure_name], ".1e"), f"{bounds[1]:.0e}"]
        rows.append([name, *cells])
    what = f"Worst over {report['seeds']} seeds, both outputs and clips of {sizes}."
    return f"{what}\n\n{common.table(['', 'FP32', 'allowed', 'FP16', 'allowed'], rows)}"


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: two columns of numbers say it."""
    return None
