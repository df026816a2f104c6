"""The page and the figure of benchmarks/quantization.py: what bfloat16 and INT8 do to retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURES = (("r1", ".1f"), ("r5", ".1f"), ("r10", ".1f"), ("median_rank", "g"), ("mean_rank", ".2f"))


def markdown(report: dict[str, Any]) -> str:
    """Return a row a precision and direction."""
    first = report["rows"][0]
    what = (
        f"{first['queries']} captions of combinations that were never trained on, {first['candidates']} clips, in "
        "OpenVINO; collaborative-experts' definitions. Parity is with the FP32 embeddings of the clips."
    )
    columns = ["precision", "direction", "R@1", "R@5", "R@10", "MdR", "MnR"]
    columns += ["1 - centred cosine", "relative error", "scale error", "gate"]
    rows = []
    for row in report["rows"]:
        parity = row["parity"]
        figures = [
            common.parity(row),
            *(common.number(parity.get(key), ".1e") for key in ("relative_error", "scale_error")),
        ]
        gate = "" if not row.get("gate") else "fails" if row["failures"] else "passed"
        rows += [
            [row["name"], direction, *(common.number(values[key], form) for key, form in _MEASURES), *figures, gate]
            for direction, values in row["recall"].items()
        ]
    return f"{what}\n\n{common.table(columns, rows, left=2)}"


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw R@1 of each precision, text to video."""
    drawn, (plot,) = common.new_figure(height=0.9 + 0.45 * len(report["rows"]))
    names = [row["name"] for row in report["rows"]]
    common.bars(plot, names, [row["recall"]["t2v"]["r1"] for row in report["rows"]], form=".1f", unit=" %")
    plot.set_title("R@1 of unseen combinations, text to video", fontsize=10, loc="left")
    return drawn
