"""The page of tests/platforms/extras.py: what pip would install for each extra."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure


def markdown(report: dict[str, Any]) -> str:
    """Return what has to hold, and the tables; Pythons and platforms with the same answers share them."""
    rows = report["rows"]
    pips = ", ".join(sorted({row["pip"] for row in rows}))
    date = report.get("machine", {}).get("date", "")[:10]
    about = (
        f"What pip {pips} would install for `milnce[extra]`: dry runs, by the package index of {date}. Shown are the "
        "packages that the extra names, and every source distribution, marked sdist: of those pip is given the "
        "requirements that they publish, nothing of them is run, and what they fetch when they are installed is not "
        "known here. All other files are wheels for the platform."
    )
    held = []
    for name, broken in report["expectations"].items():
        held += [f"- {'does not hold' if broken else 'holds'}: {name}", *(f"  - {where}" for where in broken)]
    parts = [about, "\n".join(held)]
    tables: dict[str, list[dict[str, str]]] = {}
    for told in report["settings"]["platforms"]:
        lines = list(_lines([row for row in rows if row["platform"] == told["name"]]))
        tables.setdefault(common.table(["extra", "Python", "pip takes"], lines, left=3), []).append(told)
    for table, same in tables.items():
        told_of = [f"{each['machine']}, kernel {each['release']}, glibc {each['glibc']}" for each in same]
        parts += [f"## {', '.join(each['name'] for each in same)}", f"{'; '.join(told_of)}.", table]
    return "\n\n".join(parts)


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: the rows are words."""
    return None


def _lines(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    for extra in dict.fromkeys(row["name"] for row in rows):
        for words, same in groupby([row for row in rows if row["name"] == extra], key=_words):
            pythons = [row["python"] for row in same]
            yield [extra, pythons[0] if len(pythons) == 1 else f"{pythons[0]} to {pythons[-1]}", words]


def _words(row: dict[str, Any]) -> str:
    return str(row["decides"]) if "decides" in row else f"refused: {row['refused']}"
