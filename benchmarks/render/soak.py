"""The page of benchmarks/soak.py: what was asked, what was held over time, and whether that is a leak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MIB = 2**20
_MEMORY = {
    "rss_bytes": "resident memory",
    "private_bytes": "private memory",
    "children_bytes": "private memory of children",
}
_COUNTS = {
    "fds": "open files",
    "threads": "threads",
    "children": "processes",
    "shared_memory": "entries in shared memory",
    "temporary_files": "temporary files",
}


def markdown(report: dict[str, Any]) -> str:
    """Return what came of it, then the tables of what was asked and of what was held."""
    settings, verdicts, problems = report["settings"], report["verdicts"], report["problems"]
    requests, seconds = (report["left"][key] for key in ("requests", "seconds"))
    planted = settings["planted"]
    said = (
        f"{requests:,} requests of {len(report['rows'])} kinds by {settings['callers']} callers in "
        f"{seconds / 60:.1f} minutes, one process; bundle {settings['bundle']}, {settings['backend']}."
    )
    lines = [said]
    if planted["request_bytes"] or planted["kinds"]:
        what = [f"{planted['request_bytes']} bytes a request"] if planted["request_bytes"] else []
        lines.append(f"A control: {', '.join([*what, *planted['kinds']])} planted, so this must fail.")
    lines += [f"- **{name}**: {problem}" for name, problem in problems.items()] or ["No error, and nothing grew."]
    tally = report["tally"]
    lines.append(
        f"On the way {tally.get('killed', 0)} decoding processes were killed, which cost "
        f"{tally.get('decoder_errors', 0)} files; {tally.get('refused', 0):,} requests were refused by a full queue, "
        f"{tally.get('cancelled', 0):,} were cancelled, {tally.get('late', 0):,} were past their deadline, and "
        f"{tally.get('dropped', 0):,} were dropped by a batcher that was closed."
    )
    memory: list[list[object]] = [
        [
            name,
            *(common.number(value, ".1f", scale=1 / _MIB) for value in verdicts[key]["thirds_bytes"]),
            common.number(verdicts[key]["growth_bytes"], ".1f", scale=1 / _MIB),
            common.number(verdicts[key]["request_bytes"], ".1f"),
        ]
        for key, name in _MEMORY.items()
        if key in verdicts
    ]
    columns = [
        "second half",
        "first third, MiB",
        "middle, MiB",
        "last, MiB",
        "maximum less mean, MiB",
        "bytes a request",
    ]
    counts = [
        [name, verdicts[key]["before"], verdicts[key]["after"]] for key, name in _COUNTS.items() if key in verdicts
    ]
    asked = [
        [row["name"], f"{row['calls']:,}", f"{row['requests']:,}", common.number(row["mean_ms"], ".1f")]
        for row in report["rows"]
    ]
    return "\n\n".join(
        [
            *lines,
            common.table(columns, memory),
            common.table(["nothing at work", "first third of the run", "last third"], counts),
            common.table(["what was asked", "calls", "requests", "ms a call"], asked),
        ]
    )


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw memory, and the counts, over time."""
    samples = report["samples"]
    if not samples:
        return None
    minutes = [sample["seconds"] / 60 for sample in samples]
    drawn, (memory, counts) = common.new_figure(2, height=5.5)
    for index, (key, name) in enumerate(_MEMORY.items()):
        memory.plot(minutes, [sample[key] / _MIB for sample in samples], color=common.COLOURS[index], label=name)
    memory.set_ylabel("MiB, nothing at work")
    memory.set_ylim(bottom=0)
    for index, (key, name) in enumerate(_COUNTS.items()):
        counts.plot(minutes, [sample[key] for sample in samples], color=common.COLOURS[index], label=name)
    counts.set_xlabel("minutes")
    counts.set_ylim(bottom=0)
    for plot in (memory, counts):
        _finish(plot, minutes)
    return drawn


def _finish(plot: Axes, minutes: list[float]) -> None:
    plot.axvspan(minutes[0] + (minutes[-1] - minutes[0]) * 0.55, minutes[-1], color="#000000", alpha=0.05)
    plot.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
