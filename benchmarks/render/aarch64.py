"""The page of tests/platforms/aarch64.py: an emulated ARM processor beside this one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(report: dict[str, Any]) -> str:
    """Return what both sides gave, and how the tests ended."""
    settings, arm = report["settings"], report["settings"]["aarch64"]
    head = ["", "processor", "1 - centred cosine", "relative", "spread", ""]
    lines = [
        [
            row["name"],
            row["machine"],
            f"{1 - row['centred_cosine']:.1e}",
            f"{row['relative_error']:.1e}",
            f"{row['spread_error']:.1e}",
            "; ".join(row["failures"]) or f"passes the {row['gate']} gate",
        ]
        for row in report["rows"]
    ]
    pictures, tests = report["pictures"], report["tests"]
    differ = f", different: {', '.join(pictures['different'])}" if pictures["different"] else ", all equal"
    kernels = ", ".join(f"{count} {kind}" for kind, count in arm["kernels"].items())
    compared = (
        "FP32 is compared with the same on x86-64, FP16 with FP32 there. ONNX Runtime's FP16 on ARM is shown and not "
        "offered."
    )
    ranks = f"Rankings of the videos by sentence: {'equal' if report['rankings_equal'] else 'different'}."
    parts = [
        f"Emulated: {settings['emulator']}, {settings['cpu']} ({', '.join(arm['features'])}); nothing here is a speed.",
        f"Chosen there: {arm['chosen']}.",
        f"OpenVINO's convolutions there: {kernels}.",
        common.table(head, lines, left=2, last=True),
        compared,
        f"Pictures of {pictures['compared']} pairs of preset and video{differ}. {ranks}",
    ]
    if tests is not None:
        counts = ", ".join(f"{tests.get(name, 0)} {name}" for name in ("passed", "failed", "skipped"))
        parts.append(f"Tests of videos, backends, the text tower, search and metrics: {counts}.")
        parts += [f"- {name}" for name in tests["failures"]]
    return "\n\n".join(parts)


def figure(_: dict[str, Any]) -> Figure | None:
    """Draw nothing: the rows are few."""
    return None
