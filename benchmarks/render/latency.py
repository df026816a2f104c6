"""The page and the figure of benchmarks/latency.py: every row's speed beside its parity, and what was left out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    *("clip", "batch", "what", "ms a clip", "p95", "clips/s", "speed", "least to most", "spread"),
    *("1 - centred cosine", "gate"),
)
_HEAP = {
    True: "What is freed between rounds is kept, so that no row pays for memory that is mapped anew.",
    False: "The C library gives back what is freed, so that rows pay for memory that is mapped anew, PyTorch's most.",
}
_UPRIGHT = 8  # labels from which on they would lie over each other
_KEPT_COLOURS = len(common.COLOURS)


def markdown(report: dict[str, Any]) -> str:
    """Return a row for each source and case, then what was left out and what failed."""
    settings, rows = report.get("settings", {}), report.get("rows", [])
    what = (
        f"Bundle {settings.get('bundle')}; medians of up to {settings.get('rounds')} interleaved rounds; "
        f"{settings.get('reference')} is 1, round by round. Parity is with the PyTorch tower in FP32 on the CPU where "
        "PyTorch is installed, else with the first row. No speed without passing the gate. "
        f"{_HEAP[bool(settings.get('heap_kept'))]}"
    )
    parts = [what, common.table(_COLUMNS, [_cells(row) for row in rows], left=3)]
    broken = [row for row in rows if row.get("failures") or row.get("error")]
    lines = [f"- no speed: {_case(row)}, {row.get('name')}: {_problem(row)}" for row in broken]
    lines += [f"- not measured: {name}: {reason}" for name, reason in report.get("left_out", {}).items()]
    return "\n\n".join([*parts, "\n".join(lines)])


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw the speeds of the first case, and clips a second over all cases."""
    rows = [row for row in report.get("rows", []) if common.is_number(row.get("items_per_s"))]
    if not rows:
        return None
    cases = list(dict.fromkeys(map(_case, rows)))
    first = [row for row in rows if _case(row) == cases[0]]
    heights = [0.34 * len(first) + 0.7, *([3.6] if len(cases) > 1 else [])]
    drawn, plots = common.new_figure(len(heights), height=sum(heights), heights=heights)
    compared = all(row.get("speed") for row in first)
    values = [row["speed"]["median"] if compared else row["items_per_s"] for row in first]
    common.bars(plots[0], [row["name"] for row in first], values, unit="x" if compared else "/s")
    reference = report.get("settings", {}).get("reference", first[0]["name"])
    title = f"{cases[0]}: times as fast as {reference}" if compared else f"{cases[0]}: clips a second"
    plots[0].set_title(title, fontsize=10, loc="left")
    if len(cases) > 1:
        for index, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
            own = {_case(row): row["items_per_s"] for row in rows if row["name"] == name}
            points = [(place, own[case]) for place, case in enumerate(cases) if case in own]
            style = "-o" if index < _KEPT_COLOURS else "--s"
            colour = common.COLOURS[index % _KEPT_COLOURS]
            plots[1].plot(*zip(*points, strict=True), style, color=colour, label=name, markersize=4, linewidth=1.4)
        labels = [case.replace(" of ", " of\n") for case in cases]
        plots[1].set_xticks(range(len(cases)), labels, fontsize=8, rotation=0 if len(cases) < _UPRIGHT else 60)
        plots[1].set_yscale("log")
        plots[1].set_ylabel("clips/s", fontsize=9)
        ticks = _round_values(plots[1].get_ylim())
        plots[1].set_yticks(ticks, [f"{value:g}" for value in ticks])
        plots[1].minorticks_off()
        plots[1].grid(axis="y", alpha=0.3)
        plots[1].legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    return drawn


def _round_values(limits: tuple[float, float]) -> list[float]:
    """Return 1, 2, 5, 10, 20 and so on within limits: a logarithmic axis' own labels lie over each other."""
    low, high = limits
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def _case(row: dict[str, Any]) -> str:
    clip = f"{row.get('frames')}x{row.get('size')}x{row.get('size')}"
    return clip if row.get("batch") in (1, None) else f"{row['batch']} of {clip}"


def _problem(row: dict[str, Any]) -> str:
    return row.get("error") or f"fails the {row.get('gate')} gate: {'; '.join(row.get('failures', []))}"


def _cells(row: dict[str, Any]) -> list[str]:
    clip = f"{row.get('frames')}x{row.get('size')}x{row.get('size')}"
    head = [clip, str(row.get("batch", "")), str(row.get("name", ""))]
    tail = [common.parity(row), str(row.get("gate", ""))]
    if row.get("failures") or row.get("error"):
        return [*head, "does not run" if row.get("error") else "fails the gate", *[""] * 5, *tail]
    items = row.get("batch") or 1
    figures = [common.number(row.get("ms_an_item"), ".4g"), common.number(row.get("p95_s"), ".4g", scale=1e3 / items)]
    figures.append(common.number(row.get("items_per_s"), ".2f"))
    speed = row["speed"] if isinstance(row.get("speed"), dict) else {}
    figures.append(f"{speed['median']:.2f}x" if speed else "")
    figures.append(f"{speed['minimum']:.2f} to {speed['maximum']:.2f}" if speed else "")
    return [*head, *figures, common.number(row.get("spread"), ".0%"), *tail]
