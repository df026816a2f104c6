"""Reads docs/engine-abi.md: its sections and its tables."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "engine-abi.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """Return the text of a section, up to the next heading."""
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    return str(found)


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table whose heading begins with these cells; code marks are taken off whole cells."""
    lines = PAGE.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        rows.append([cell[1:-1] if re.fullmatch("`[^`]*`", cell) else cell for cell in cells])
    assert rows
    return rows
