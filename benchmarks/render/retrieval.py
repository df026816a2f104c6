"""The page of benchmarks/retrieval.py: what precisions and backends do to retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    *("backend", "precision", "direction", "R@1", "R@5", "R@10", "MdR", "MnR"),
    *("R@1 of each set", "largest score change"),
)
_FORMS = (("r1", ".1f"), ("r5", ".1f"), ("r10", ".1f"), ("median_rank", "g"), ("mean_rank", ".2f"))
TOLERANCE_POINTS = 0.5


def markdown(report: dict[str, Any]) -> str:
    """Return a row for each run and direction, and how far the exact ones are apart."""
    found = report["rows"]
    sets = len(found[0]["r1_of_each_set"])
    what = (
        f"Combinations that were never trained on: {found[0]['queries']} captions, {found[0]['candidates']} candidates "
        f"each, over {sets} sets of new clips; collaborative-experts' definitions."
    )
    rows = []
    for row in found:
        cells = [row["backend"], row["precision"], row["direction"]]
        cells += [common.number(row.get(key), form) for key, form in _FORMS]
        cells += [", ".join(common.number(value, ".1f") for value in row["r1_of_each_set"])]
        rows.append([*cells, common.number(row.get("largest_score_change"), ".0e")])
    spread = report["spread_points"].items()
    apart = ", ".join(f"{name.replace('r', 'R@')} {common.number(value, '.2f')}" for name, value in spread)
    ending = f"FP32 and FP16 runs are apart by at most (points): {apart}; {TOLERANCE_POINTS} are allowed."
    return f"{what}\n\n{common.table(_COLUMNS, rows, left=3)}\n\n{ending}"


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: the rows are meant to be the same."""
    return None
