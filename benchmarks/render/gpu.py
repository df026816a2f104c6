"""The page of a GPU check's report (benchmarks/gpu_check.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpucheck.markdown import render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(report: dict[str, Any]) -> str:
    """Return the page as the check itself writes it."""
    return render(report)


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: which rows there are depends on the host."""
    return None
