"""The page of benchmarks/memory.py: peak memory of embedding a short and a long video."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(report: dict[str, Any]) -> str:
    """Return a row a video."""
    video = report.get("video", "a video")
    what = f"`milnce embed --preset sliding --stride-frames 32`, {video} looped, width {report['width']:g}."
    forms = (("minutes", "d"), ("windows", "d"), ("peak_mib", ".0f"), ("seconds", ".0f"))
    rows = [[common.number(row.get(key), form) for key, form in forms] for row in report["rows"]]
    return f"{what}\n\n{common.table(['minutes of video', 'windows', 'peak MiB', 's'], rows, left=0)}"


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: there are two rows."""
    return None
