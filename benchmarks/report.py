"""Makes the page and the figure of every report again from its JSON, and the index of all.

    python benchmarks/report.py [--results DIR]

Each results/<name>.json gets <name>.md and, where its renderer draws one, <name>.png; README.md lists them, with every
target beside what was measured. Renderers are in render/, one file a benchmark. Exits with 1 if a report cannot be
rendered; the others are all the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # from a checkout whose Python has nothing installed but matplotlib
    sys.path[:0] = [str(ROOT / name) for name in ("benchmarks", "runtime", "convert", "tests")]

from harness import RESULTS  # noqa: E402 - after the lines above
from render import common  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

_DOTS_PER_INCH = 110


class Renderer(Protocol):
    """A module of render/."""

    def markdown(self, report: dict[str, Any]) -> str:
        """Return the report's text and tables."""

    def figure(self, report: dict[str, Any]) -> Figure | None:
        """Return its figure, or None if there is nothing to draw."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Render all reports; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    results: Path = parser.parse_args(arguments).results
    done = [_attempt(path) for path in sorted(results.glob("*.json"))]
    write_index(results)
    return 0 if all(done) else 1


def _attempt(path: Path) -> bool:
    """Render one report and say so; False if it cannot be, which keeps no other from being made."""
    try:
        render_file(path)
    except Exception as error:  # noqa: BLE001 - whatever a broken report leads to
        print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    print(path.with_suffix(".md"))
    return True


def render_file(path: Path) -> str:
    """Write the page and the figure of one report; returns the page."""
    report = json.loads(path.read_text("utf-8"))
    renderer = renderer_of(path.stem)
    figure = renderer.figure(report) if find_spec("matplotlib") is not None else None
    picture = path.with_suffix(".png")
    if figure is not None:
        # Nothing in the file but the picture: no date, no version, so that the same report gives the same file.
        figure.savefig(picture, dpi=_DOTS_PER_INCH, metadata={"Software": None})
    parts = [renderer.markdown(report), common.targets(report.get("targets", []))]
    parts.append(f"![{path.stem}]({picture.name})" if figure is not None else "")
    parts.append(common.footer(report.get("machine", {})))
    page = "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
    path.with_suffix(".md").write_text(page, "utf-8")
    return page


def renderer_of(name: str) -> Renderer:
    """Return the renderer of a report by its name: render/<name up to the first "-">.py, or one that fits all."""
    module = f"render.{name.partition('-')[0]}"
    found: Any = importlib.import_module(module if find_spec(module) is not None else "render.plain")
    return cast("Renderer", found)


def write_index(results: Path) -> None:
    """Write README.md: the reports, and all targets with what was measured and what bounds those not reached."""
    pages, rows = [], []
    for path in sorted(results.glob("*.json")):
        try:
            report = json.loads(path.read_text("utf-8"))
            machine = report.get("machine") or report.get("host") or {}
        except (ValueError, AttributeError):
            pages.append(f"| {path.name}, which cannot be read | | | |")
            continue
        date = str(machine.get("date", ""))[:10]
        command = common.cell(f"`{machine['command']}`") if machine.get("command") else ""
        pages.append(f"| [{path.stem}]({path.stem}.md) | {date} | {common.cell(machine.get('cpu', ''))} | {command} |")
        rows += [{**target, "report": path.stem} for target in report.get("targets", [])]
    lines = ["# Results", "", "Each page is made from the JSON beside it (`benchmarks/report.py`).", ""]
    lines += ["| report | date | CPU | command |", "| --- | --- | --- | --- |", *pages]
    if rows:
        reached = sum(bool(row.get("reached")) for row in rows)
        lines += ["", "## Targets", "", f"{reached} of {len(rows)} are reached.", "", common.targets(rows)]
    (results / "README.md").write_text("\n".join(lines).rstrip() + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
