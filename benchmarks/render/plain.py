"""Renders a report that has no renderer of its own: every row's plain values, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(report: dict[str, Any]) -> str:
    """Return the settings and the rows."""
    rows = [row for row in report.get("rows", []) if isinstance(row, dict)]
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict)))
    settings = ", ".join(f"{name} {value}" for name, value in report.get("settings", {}).items())
    parts = [f"{report.get('report', 'Report')}: {settings}" if settings else str(report.get("report", "Report"))]
    if columns:
        parts.append(common.table(columns, [[_shown(row.get(column)) for column in columns] for row in rows]))
    return "\n\n".join(parts)


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: what the figures are is not known here."""
    return None


def _shown(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else common.number(value, ".4g")
