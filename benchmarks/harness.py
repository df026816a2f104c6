"""What the benchmarks share: reports on disk, targets, and the rule that wrong outputs get no speed.

A report is one JSON document: {"report": name, "format_version": 1, "machine": ..., "settings": ..., "rows": [...],
"targets": [...]}. Its Markdown page and its figure are made from the JSON alone (report.py), so that they can be made
again. A row names what it measured. One with a speed says how exact its outputs were, in "parity", or "gate": None and
"why" where there are no outputs to compare; one with "failures" has no speed: `write` refuses it otherwise.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from milnce.machine import describe

FORMAT_VERSION = 1
RESULTS = Path(__file__).parent / "results"

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Figures of a row that say how fast something is; see `write`.
_SPEEDS = frozenset(
    {
        *("median_s", "p95_s", "p99_s", "minimum_s", "seconds", "timing", "latency", "first_s"),
        *("speed", "share", "times_as_fast_as", "ms_an_item", "mean_ms"),
    }
)


@dataclass(frozen=True)
class Target:
    """A figure that was to be reached, beside what was measured.

    Attributes:
        name: What it is of, as the table says it.
        wanted: The value to reach.
        measured: What was measured, or None if it was not.
        better: "higher" if larger values are better, "lower" otherwise.
        bound: What bounds the figure where it is not reached, and by how much, in words.
    """

    name: str
    wanted: float
    measured: float | None
    better: Literal["higher", "lower"] = "higher"
    bound: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure was measured and is as good as wanted."""
        if self.measured is None:
            return False
        return self.measured >= self.wanted if self.better == "higher" else self.measured <= self.wanted

    def to_json(self) -> dict[str, Any]:
        """Return it as a report has it."""
        return {**asdict(self), "reached": self.reached}


def write(name: str, report: dict[str, Any], *, results: Path = RESULTS) -> None:
    """Write a report with the machine it was made on, its page and its figure, and print the page.

    Args:
        name: The report's name, that of its files. Up to the first "-" it is the name of the renderer in render/.
        report: "settings", "rows", "targets"; see the head of this module.
        results: The folder.

    Raises:
        ValueError: if a row that failed its gate has a speed all the same, or one has a speed and no parity.
    """
    from report import render_file, write_index  # noqa: PLC0415 - which imports this module

    for row in report.get("rows", ()):
        _refuse_unproved(row)
    _warn_of_bounds()
    document = {"report": name, "format_version": FORMAT_VERSION, "machine": describe(), **report}
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    path.write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n", "utf-8")
    print(render_file(path))
    write_index(results)


def _refuse_unproved(row: dict[str, Any]) -> None:
    speeds = ", ".join(sorted(key for key in row if key in _SPEEDS or key.endswith("_per_s")))
    if not speeds:
        return
    if row.get("failures"):
        raise ValueError(f"{row.get('name')} fails its gate ({row['failures'][0]}) and has {speeds}")
    without_outputs = "gate" in row and row["gate"] is None and row.get("why")
    if not row.get("parity") and not without_outputs:
        raise ValueError(f'{row.get("name")} has {speeds} and no "parity", nor "gate": None and "why"')


def environment() -> dict[str, str]:
    """Return this process' environment for a child that is measured, without what bounds the threads of a part.

    OMP_NUM_THREADS bounds PyTorch and OpenBLAS, but not OpenVINO: rows would be measured on different cores.
    """
    return {name: value for name, value in os.environ.items() if name not in _THREAD_VARIABLES}


def _warn_of_bounds() -> None:
    if bounds := [f"{name}={os.environ[name]}" for name in _THREAD_VARIABLES if name in os.environ]:
        words = f"{', '.join(bounds)} bounds some libraries' threads and not others': unset it and measure again"
        print(f"  warning: {words}", file=sys.stderr)


def plain(value: Any) -> Any:  # noqa: ANN401 - anything that JSON can hold in some form
    """Return `value` as JSON can hold it: no NaN, no NumPy scalars, no paths."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
