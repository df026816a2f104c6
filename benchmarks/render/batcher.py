"""The page and the figure of benchmarks/batcher.py: throughput and latency over the number of callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = (
    "callers",
    "share of full batches",
    "least to most",
    "clips/s",
    "full batches, clips/s",
    "clips in a batch",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "clips",
    "1 - centred cosine",
)
_PERCENTILES = ("p50_s", "p95_s", "p99_s")


def markdown(report: dict[str, Any]) -> str:
    """Return a table for each subject, what overload did, and the sentences."""
    settings = report["settings"]
    simulated = settings["simulated"]
    on_cpu = " on cpu " in settings["backend"]
    queued = " A CPU runs clips one by one, so here the batcher only queues them." if on_cpu else ""
    heads = {
        "model": f"{_clip(settings)} on {settings['backend']}; weights: {settings.get('weights', '')}.{queued}",
        "simulated": f"A simulated accelerator, a thread that sleeps: a batch takes {simulated['batch_s'] * 1e3:g} ms "
        f"and {simulated['clip_s'] * 1e3:g} ms a clip, {simulated['largest_batch']} clips at most. It shows what the "
        "batcher costs and gains where batches pay; it is no GPU.",
    }
    parts = ["Each caller sends its next clip when it has its answer."]
    for subject, head in heads.items():
        rows = [row for row in report["rows"] if row["subject"] == subject]
        parts += [head, common.table(_COLUMNS, [_row(row) for row in rows], left=0)]
    parts += [_overload(row) for row in report["rows"] if row["subject"] in ("burst", "overload")]
    return "\n\n".join([*parts, _text(report["text"])])


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw the share of full-batch throughput, and latencies, over callers."""
    rows = [row for row in report["rows"] if "share" in row]
    if not rows:
        return None
    drawing, (left, right) = common.new_figure(1, 2, height=3.6)
    for colour, subject in zip(common.COLOURS, ("model", "simulated"), strict=False):
        mine = [row for row in rows if row["subject"] == subject]
        if not mine:
            continue
        callers = [row["callers"] for row in mine]
        share = [row["share"] for row in mine]
        left.plot(callers, [one["median"] for one in share], "o-", color=colour, label=subject)
        left.fill_between(
            callers, [s["minimum"] for s in share], [s["maximum"] for s in share], color=colour, alpha=0.2
        )
        for style, name in zip(("o-", "^:"), ("p50_s", "p99_s"), strict=True):
            values = [row["latency"][name] * 1e3 for row in mine]
            right.plot(callers, values, style, color=colour, label=f"{subject}, {name[:-2]}")
    left.axhline(0.95, color="grey", linewidth=1, linestyle="--", label="target from 16 callers on")
    left.set_ylim(bottom=0)
    left.set_ylabel("throughput over that of full batches", fontsize=9)
    right.set_yscale("log")
    right.set_ylabel("latency of a clip, ms", fontsize=9)
    _label(left, rows)
    _label(right, rows)
    return drawing


def _label(plot: Axes, rows: Sequence[dict[str, Any]]) -> None:
    ticks = sorted({row["callers"] for row in rows})
    plot.set_xscale("log", base=2)
    plot.set_xticks(ticks, [str(tick) for tick in ticks])
    plot.set_xlabel("callers", fontsize=9)
    plot.legend(fontsize=8, frameon=False)


def _row(row: dict[str, Any]) -> list[str]:
    if row["failures"]:
        return [str(row["callers"]), "; ".join(row["failures"]), *[""] * (len(_COLUMNS) - 2)]
    share = row["share"]
    return [
        str(row["callers"]),
        common.number(share["median"], ".1%"),
        f"{common.number(share['minimum'], '.1%')} to {common.number(share['maximum'], '.1%')}",
        common.number(row["clips_per_s"], ".1f"),
        common.number(row["full_per_s"], ".1f"),
        common.number(row["mean_batch_size"], ".1f"),
        *(common.number(row["latency"][name], ".1f", scale=1e3) for name in _PERCENTILES),
        str(row["clips"] * row["rounds"]),
        common.parity(row),
    ]


def _overload(row: dict[str, Any]) -> str:
    if row["failures"]:
        return f"{row['name']}: {'; '.join(row['failures'])}"
    refused = f"{row['queue']} may wait: {row['refused']} are refused"
    if row["subject"] == "burst":
        return (
            f"A burst of {row['sent']} clips while nothing ends and {refused} "
            f"({row['expected']} have no room), {row['answered']} are answered."
        )
    latency, queue_s = row["latency"], (row["queue"] + 1) / row["full_per_s"]
    return (
        f"{row['sent']} clips that come four times as fast as full batches run, and {refused}, {row['answered']} "
        f"answered, {row['clips_per_s']:.1f} a second ({row['clips_per_s'] / row['full_per_s']:.0%} of full batches), "
        f"p50 {latency['p50_s'] * 1e3:.0f} ms, p99 {latency['p99_s'] * 1e3:.0f} ms; a full queue and the clip after it "
        f"take {queue_s * 1e3:.0f} ms at the speed of full batches."
    )


def _text(text: dict[str, Any]) -> str:
    rows = [
        [row["name"], *(common.number(row["latency"][name], ".2f", scale=1e3) for name in _PERCENTILES)]
        for row in text["rows"]
    ]
    head = (
        f"One sentence at a time ({text['count']} each), beside a direct call of the model; the answers differ by "
        f"{text['difference']:.1e} at most."
    )
    return f"{head}\n\n{common.table(('sentence', 'p50 ms', 'p95 ms', 'p99 ms'), rows)}"


def _clip(settings: dict[str, Any]) -> str:
    return f"Clips {'x'.join(map(str, settings['clip']))}"
