"""The page and the figure of benchmarks/cost.py: start-up, memory, imports, installed sizes, the wheel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PROCESSES = ("a fresh process", "s to the first embedding", "of which imports", "against the first", "peak MiB")


def markdown(report: dict[str, Any]) -> str:
    """Return a table each: processes that embed, imports, installed sizes; then the wheel and what was left out."""
    settings = report.get("settings", {})
    what = f"Fresh processes, in turns, medians of {settings.get('runs')}; bundle {settings.get('bundle')}."
    parts = [what, common.table([*_PROCESSES, "1 - centred cosine"], [_process(row) for row in report.get("rows", [])])]
    imports = [
        [row["name"], *(common.number(row.get(key), ".0f", scale=1e3) for key in ("median_s", "import_s"))]
        for row in report.get("imports", [])
    ]
    if imports:
        parts.append(common.table(["Python that imports", "ms", "of which import"], imports))
    installed = [
        [row["name"], common.number(row.get("packages")), common.number(row.get("mb"), ".0f"), _largest(row)]
        for row in report.get("installed", [])
    ]
    if installed:
        parts.append(common.table(["installed, milnce itself left out", "packages", "MB", "the largest"], installed))
    if wheel := report.get("wheel"):
        packed, unpacked = (common.number(wheel.get(key), ".0f") for key in ("packed_kb", "unpacked_kb"))
        parts.append(f"The wheel has {packed} kB, {unpacked} kB unpacked.")
    lines = [f"- not measured: {name}: {reason}" for name, reason in report.get("left_out", {}).items()]
    return "\n\n".join([*parts, "\n".join(lines)])


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw seconds to the first embedding, peak memory and installed sizes."""
    rows = [row for row in report.get("rows", []) if common.is_number(row.get("median_s"))]
    installed = [row for row in report.get("installed", []) if common.is_number(row.get("mb"))]
    if not rows:
        return None
    heights = [len(rows) + 1.0, len(rows) + 1.0, len(installed) + 1.0]
    drawn, (time, memory, size) = common.new_figure(
        3, 1, height=2.4 + 0.6 * len(rows) + 0.3 * len(installed), heights=heights
    )
    names = [row["name"] for row in rows]
    _draw(time, names, [row["median_s"] for row in rows], "seconds from the start of Python to the first embedding")
    imported = [row["import_s"] if common.is_number(row.get("import_s")) else 0.0 for row in rows]
    time.barh(range(len(rows)), imported, color=common.COLOURS[4], height=0.65, label="of which imports")
    time.legend(fontsize=8, frameon=False, loc="lower right")
    _draw(memory, names, [row["peak_mib"] for row in rows], "peak resident memory of embedding one clip, MiB", ".0f")
    title = "installed with all that it requires, MB"
    _draw(size, [row["name"] for row in installed], [row["mb"] for row in installed], title, ".0f")
    return drawn


def _draw(plot: Axes, names: list[str], values: list[float], title: str, form: str = ".2f") -> None:
    common.bars(plot, names, values, form=form)
    plot.set_title(title, fontsize=10, loc="left")


def _process(row: dict[str, Any]) -> list[str]:
    peak = common.number(row.get("peak_mib"), ".0f")
    if row.get("failures"):
        return [row["name"], f"fails the {row.get('gate')} gate", "", "", peak, common.parity(row)]
    speed = row.get("speed") or {}
    ratio = f"{speed['median']:.2f}x" if speed else ""
    figures = [common.number(row.get(key), ".2f") for key in ("median_s", "import_s")]
    return [row["name"], *figures, ratio, peak, common.parity(row)]


def _largest(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {common.number(size, '.0f')}" for name, size in row.get("largest", {}).items())
