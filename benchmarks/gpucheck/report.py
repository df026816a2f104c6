"""The report of a GPU check: one JSON document, and a Markdown page made from it alone."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from gpucheck.markdown import render
from gpucheck.record import ABSENT, BAD, MEASURED, PASSED
from harness import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

FORMAT_VERSION = 1


class Report:
    """Writes the two files into each folder, anew after each part, so that what was seen is never lost.

    Attributes:
        paths: The files.
    """

    def __init__(self, host: dict[str, Any], gpu: str, folders: Sequence[Path], began: datetime) -> None:
        self._host, self._gpu, self._began = host, gpu, began
        self.paths: list[Path] = []
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            self.paths.append(_unused(folder, f"gpu-check-{_slug(gpu)}-{began:%Y-%m-%d}"))

    def write(
        self, results: Sequence[dict[str, Any]], waiting: Sequence[str], *, code: int | None = None
    ) -> dict[str, Any]:
        """Write what is known by now and return it.

        Args:
            results: What the parts found that have ended.
            waiting: Names of the parts that have not begun.
            code: The exit code, once all have ended.
        """
        document = plain(
            {
                "report": "milnce GPU check",
                "format_version": FORMAT_VERSION,
                "gpu": self._gpu,
                "began": self._began.isoformat(timespec="seconds"),
                "host": self._host,
                "complete": code is not None,
                "exit_code": code,
                "counts": counts(results),
                "waiting": list(waiting),
                "parts": list(results),
            }
        )
        for path in self.paths:
            path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            path.with_suffix(".md").write_text(render(document), "utf-8")
        return dict(document)


def counts(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many checks passed, failed, raised, were measured, and found what they need absent."""
    outcomes = [check["outcome"] for result in results for check in result["checks"]]
    return {outcome: outcomes.count(outcome) for outcome in (PASSED, *BAD, MEASURED, ABSENT)}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _unused(folder: Path, stem: str) -> Path:
    """Return a path that no earlier report has."""
    path, number = folder / f"{stem}.json", 1
    while path.exists() or path.with_suffix(".md").exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path
