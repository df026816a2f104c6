"""What renderers share: tables, numbers that may be missing, the footer, and a plain style of figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that people with any colour vision tell apart (Okabe and Ito, 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_INCHES_WIDE = 8.0


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1, last: bool = False) -> str:
    """Return a Markdown table.

    Args:
        columns: Headings.
        rows: Cells; what is not text should have been formatted.
        left: Columns from the left that hold words and not numbers.
        last: Whether the last column holds words too.
    """
    words = [index < left or (last and index == len(columns) - 1) for index in range(len(columns))]
    sides = ["---" if wordy else "---:" for wordy in words]
    lines = [columns, sides, *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: object) -> str:
    """Return text as a cell of a table can hold it."""
    return " ".join(str(text).split()).replace("|", "\\|")


def number(value: object, form: str = ".3g", *, scale: float = 1.0) -> str:
    """Return a figure as text: "" for a missing one, "not a number" for NaN, which JSON keeps as a word."""
    if value is None or value == "":
        return ""
    if isinstance(value, str):
        return "not a number" if value == "nan" else value
    if not isinstance(value, int | float):
        return str(value)
    return "not a number" if math.isnan(value) else format(value if scale == 1 else value * scale, form)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a figure can be drawn or divided."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def parity(row: dict[str, Any]) -> str:
    """Return the row's distance from the reference: 1 - centred cosine, or what keeps it from being a number."""
    value = (row.get("parity") or {}).get("centred_cosine")
    return number(1 - value, ".1e") if is_number(value) else number(value)


def targets(found: Sequence[dict[str, Any]]) -> str:
    """Return the table of targets, those of several reports with their names; empty if there is none."""
    if not found:
        return ""
    named = any("report" in target for target in found)
    columns = ["target", *(["report"] if named else []), "wanted", "measured", "reached", "what bounds it"]
    rows = []
    for target in found:
        sign = {"higher": ">=", "lower": "<="}.get(target.get("better", ""), "")
        measured = number(target.get("measured"), ".3g") or "not measured"
        link = [f"[{target['report']}]({target['report']}.md)"] if named else []
        reached = "yes" if target.get("reached") else "no"
        bound = "" if target.get("reached") else target.get("bound", "")
        rows.append([target["name"], *link, f"{sign} {number(target.get('wanted'))}", measured, reached, bound])
    return table(columns, rows, left=2 if named else 1, last=True)


def footer(machine: dict[str, Any]) -> str:
    """Return a line about the machine of a report."""
    if not machine:
        return ""
    versions = [f"{package} {number}" for package, number in machine.get("versions", {}).items() if number]
    limit = f" ({machine['cpu_limit']:g} by its control group)" if machine.get("cpu_limit") else ""
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB" if machine.get("memory_bytes") else ""
    gpus = [f"{gpu['name']}, driver {gpu['driver']}" for gpu in machine.get("gpu", [])]
    threads = [f"{name}={value}" for name, value in machine.get("threads", {}).items()]
    parts = [f"{machine.get('cpu')}, {machine.get('cores')} cores{limit}", memory, *gpus, *threads]
    parts += [f"Python {machine.get('python')}", *versions]
    about = f"{', '.join(part for part in parts if part)}; commit {machine.get('commit')}, {machine.get('date')}"
    return f"{about}, `{machine['command']}`" if machine.get("command") else about


def new_figure(
    rows: int = 1, columns: int = 1, *, height: float = 4.0, heights: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure, drawn to a file and never to a screen, and its axes from left to right, top to bottom.

    Args:
        rows: Rows of plots.
        columns: Plots in a row.
        height: Of the whole, in inches; the width is always the same.
        heights: Of the rows, relative to each other; the same for all if None.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - only where figures are drawn
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(_INCHES_WIDE, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns, height_ratios=heights)
    axes = [figure.add_subplot(grid[index // columns, index % columns]) for index in range(rows * columns)]
    for plot in axes:
        plot.spines[["top", "right"]].set_visible(False)
        plot.tick_params(labelsize=9)
    return figure, axes


def bars(plot: Axes, names: Sequence[str], values: Sequence[float], *, form: str = ".2f", unit: str = "") -> None:
    """Draw horizontal bars from top to bottom, each with its value beside it."""
    plot.barh(range(len(names)), values, color=COLOURS[0], height=0.65)
    plot.set_yticks(range(len(names)), names, fontsize=9)
    plot.invert_yaxis()
    for index, value in enumerate(values):
        plot.annotate(
            f"{value:{form}}{unit}", (value, index), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )
    plot.margins(x=0.16)
