"""The page and the figure of benchmarks/pipeline.py: decoding, the model, both together, and memory."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

_COLUMNS = (
    *(
        "",
        "s",
        "clips/s",
        "spread",
        "CPU s",
        "over the larger part",
        "over the cores' bound",
        "gain over the plain loop",
    ),
    *("over the lean loop", "1 - centred cosine"),
)
_PARTS = {"decode": 5, "model": 2, "pipeline": 0, "plain loop": 1, "lean loop": 4}


def markdown(report: dict[str, Any]) -> str:
    """Return a row for each way from files to features, and the memory of long videos beside short ones."""
    settings = report["settings"]
    rounds = max((len(row["timing"]["seconds"]) for row in report["rows"] if "timing" in row), default=0)
    about = (
        f"{settings['clips']} clips by {settings['preset']} from {settings.get('copies', 1)} videos each of "
        f"{', '.join(settings.get('videos', []))}; {settings['cores']} cores, batches of {settings['batch_size']}. "
        f"Medians of {rounds} interleaved rounds; those of quotients are of the quotients round by round."
    )
    parts = [about, common.table(_COLUMNS, [_line(row) for row in report["rows"]])]
    bounds = [
        f"- {row['name']}: most of all bounded by {row['bounded_by']}; the CPU time of decoding and of the model over "
        f"the cores is {row['bound_s']:.2f} s."
        for row in report["rows"]
        if "bound_s" in row
    ]
    parts.append("\n".join(bounds))
    missing = "; ".join(f"{name}: {reason}" for name, reason in report.get("left_out", {}).items())
    parts += [f"Left out: {missing}"] if missing else []
    return "\n\n".join([*parts, _memory(report["memory"])] if "memory" in report else parts)


def _line(row: Mapping[str, Any]) -> list[str]:
    if row.get("failures"):
        return [row["name"], f"fails the {row['gate']} gate", *[""] * 7, common.parity(dict(row))]
    timing = row["timing"]
    return [
        row["name"],
        common.number(timing["median_s"], ".2f"),
        common.number(row["clips_per_s"], ".2f"),
        common.number(timing["spread"], ".0%"),
        common.number(statistics.median(row["cpu_s"]), ".2f"),
        *(common.number(row.get(key, {}).get("median"), ".2f") for key in ("parts", "of_bound", "gain", "lean_gain")),
        common.parity(dict(row)),
    ]


def _memory(memory: Mapping[str, Any]) -> str:
    lines = [
        [
            f"{memory['files']} of {length} min",
            str(memory[kind]["windows"]),
            f"{memory[kind]['took_s']:.0f}",
            f"{memory[kind]['peak_mib']:.0f}",
            f"{memory[kind]['tree_peak_mib']:.0f}",
        ]
        for kind, length in zip(("short", "long"), memory["minutes"], strict=True)
    ]
    columns = ("videos", "windows", "s", "resident, MiB", "own with decoders, MiB")
    about = (
        f"`milnce embed` on {memory['video']}, looped, {memory['clips']}: the largest resident "
        "memory of the command, with the libraries that it shares with others, and the largest sum of its own memory "
        "and that of the processes that decode; "
        f"{memory['features_mib']:.0f} MiB of the last are features."
    )
    return f"{about}\n\n{common.table(columns, lines)}"


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw clips a second of every row, those of one backend together, with the bound that the cores set."""
    rows = [row for row in report["rows"] if "timing" in row]
    if not rows:
        return None
    found, (plot,) = common.new_figure(height=1.0 + 0.32 * len(rows))
    for index, row in enumerate(rows):
        colour = common.COLOURS[_PARTS.get(row["part"], 6)]
        plot.barh(index, row["clips_per_s"], color=colour, height=0.7)
        plot.annotate(
            f"{row['clips_per_s']:.2f}",
            (max(_reach([row])), index),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
        if "bound_s" in row:
            most = row["clips_per_s"] * row["of_bound"]["median"]
            plot.plot([most, most], [index - 0.4, index + 0.4], color="#000000", lw=2)
    plot.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    plot.invert_yaxis()
    # Decoding alone is often many times as fast as the rest, which is what the picture is about.
    widest = max(_reach(rows), default=1.0)
    plot.set_xlim(0, 1.25 * widest)
    plot.set_xlabel("clips a second; black: the bound that the cores set")
    return found


def _reach(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    found = []
    for row in rows:
        found.append(float(row["clips_per_s"]))
        if "of_bound" in row:
            found.append(row["clips_per_s"] * row["of_bound"]["median"])
    return found
