"""The page of benchmarks/search.py: seconds and memory of searching a large index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("queries", "read, check and score, s", "rank and merge, s", "peak MiB", "of which before, MiB")


def markdown(report: dict[str, Any]) -> str:
    """Return a row for each number of queries."""
    what = f"{report['windows']:,} windows of {report['width']} float32 ({report['index_mb']:,.0f} MB)"
    forms = (("queries", "d"), ("score_s", ".2f"), ("rank_s", ".2f"), ("peak_mib", ".0f"), ("before_mib", ".0f"))
    rows = [[common.number(row.get(key), form) for key, form in forms] for row in report["rows"]]
    return f"The best 10 moments of an index of {what}, exactly.\n\n{common.table(_COLUMNS, rows, left=0)}"


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: there are two rows."""
    return None
