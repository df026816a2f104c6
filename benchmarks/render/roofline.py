"""The page and the figure of benchmarks/roofline.py: the peaks, the share reached, where the time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LARGEST_DOT = 500.0  # square points, of the layer that takes longest
_GIGA = 1e-9


def markdown(report: dict[str, Any]) -> str:
    """Return the peaks, a row for each way to run the graph, and a table of the kinds of layers for each."""
    clip = "x".join(map(str, report["settings"]["clip"]))
    work = report["work"]
    about = (
        f"One clip {clip} on {report['settings']['device']}, weights: {report['settings'].get('weights', '')}. "
        f"{work['layers']} layers, {work['flops'] * _GIGA:.1f} GFLOP by shapes "
        f"({work['inner_flops'] * _GIGA:.1f} without multiplications by padding), "
        f"{work['bytes'] / 2**20:.0f} MiB read and written if nothing stays in a cache between layers."
    )
    parts = [about, peaks_table(report), _rows(report["rows"])]
    parts += [_kinds(row) for row in report["rows"] if "kinds" in row]
    missing = "; ".join(f"{name}: {reason}" for name, reason in report.get("left_out", {}).items())
    return "\n\n".join([*parts, f"Left out: {missing}"] if missing else parts)


def peaks_table(report: Mapping[str, Any]) -> str:
    """Return what the machine can do at most, and what it says about its cores."""
    rows = [
        [
            f"{peak['name']} {peak['precision']}".strip(),
            common.number(peak["rate_per_s"], ".0f" if peak["kind"] in _COMPUTE else ".1f", scale=_GIGA),
            common.number(peak["rate_per_cpu_s"], ".0f" if peak["kind"] in _COMPUTE else ".1f", scale=_GIGA),
            "GFLOP" if peak["kind"] in _COMPUTE else "GB",
            common.number(peak["spread"], ".0%"),
        ]
        for peak in report["peaks"]
    ]
    table = common.table(("peak", "a second", "a CPU second", "of", "spread"), rows)
    kernels = report["settings"].get("blas_kernels")
    notes = [f"NumPy's OpenBLAS runs the kernels for {kernels} here."] if kernels else []
    scaling = _scaling(report)
    if scaling is not None:
        threads = report["settings"]["threads"]
        notes.append(
            f"{threads} threads do {scaling:.2f} times what one does: "
            + ("cores of their own." if scaling > 1 + 0.75 * (threads - 1) else "they share a core, or a busy machine.")
        )
    return "\n\n".join([table, " ".join(notes)] if notes else [table])


_COMPUTE = ("compute", "one thread")


def _scaling(report: Mapping[str, Any]) -> float | None:
    """Return how many times as fast all threads are as one, at the same convolution."""
    single = next((peak for peak in report["peaks"] if peak["kind"] == "one thread"), None)
    if single is None:
        return None
    name = single["name"].partition(",")[0]
    every = [peak for peak in report["peaks"] if peak["name"] == name and peak["precision"] == single["precision"]]
    same = [peak for peak in every if peak["kind"] == "compute"]
    return float(same[0]["rate_per_s"] / single["rate_per_s"]) if same else None


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = (
        *("", "s a clip", "GFLOP/s", "share of the peak", "least to largest", "by CPU time", "with padding"),
        *("share of the bound", "1 - centred cosine"),
    )
    lines = []
    for row in rows:
        if row["failures"]:
            lines.append([row["name"], f"fails the {row['gate']} gate", *[""] * 6, common.parity(dict(row))])
            continue
        share, cpu = row.get("share_of_peak") or {}, row.get("share_of_peak_by_cpu_time") or {}
        between = f"{share['minimum']:.0%} to {share['maximum']:.0%}" if share else ""
        lines.append(
            [
                row["name"],
                common.number(row.get("timing", {}).get("median_s"), ".3f"),
                common.number(row.get("flops_per_s"), ".0f", scale=_GIGA),
                common.number(share.get("median"), ".0%"),
                between,
                common.number(cpu.get("median"), ".0%"),
                common.number(row.get("share_with_padding"), ".0%"),
                common.number(row.get("share_of_bound"), ".0%"),
                common.parity(dict(row)),
            ]
        )
    return common.table(columns, lines)


def _kinds(row: Mapping[str, Any]) -> str:
    lines = [
        [
            kind["kind"],
            kind["count"] or "",
            f"{kind['took_s'] * 1e3:.1f}",
            f"{kind['took_s'] / row['took_s']:.1%}",
            f"{kind['work'] * _GIGA / kind['took_s']:.0f}" if kind["work"] and kind["took_s"] else "",
            f"{kind['bytes'] * _GIGA / kind['took_s']:.1f}" if kind["took_s"] else "",
            f"{kind['bound_s'] * 1e3:.1f}",
            f"{kind['bound_s'] / kind['took_s']:.0%}" if kind["took_s"] else "",
        ]
        for kind in row["kinds"]
    ]
    columns = ("layers", "number", "ms", "of the time", "GFLOP/s", "GB/s", "bound, ms", "of the bound")
    title = (
        f"{row['name']}, as it counts its own nodes, scaled to the time without counting; over 100% of the bound are "
        "layers that suit the caches better than what the peaks are measured on:"
    )
    return f"{title}\n\n{common.table(columns, lines)}"


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw the roofline of the first row that has layers, and bars of where the time goes for every such row."""
    rows = [row for row in report["rows"] if "layers" in row]
    if not rows:
        return None
    found, (roofline, bars) = common.new_figure(2, 1, height=9.0)
    colours = _colours(rows)
    _draw_roofline(roofline, report, rows[0], colours)
    _draw_bars(bars, rows, colours)
    return found


def _colours(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = dict.fromkeys(kind["kind"] for row in rows for kind in row["kinds"])
    spare = ("#7f7f7f", "#8c564b", "#bcbd22", "#17becf", "#aec7e8")
    palette = [*common.COLOURS, *spare]
    return {name: palette[index % len(palette)] for index, name in enumerate(names)}


def _draw_roofline(plot: Axes, report: Mapping[str, Any], row: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    layers = [layer for layer in row["layers"] if layer["work"] > 0 and layer["took_s"] > 0]
    slowest = max(layer["took_s"] for layer in layers)
    drawn = set()
    for layer in sorted(layers, key=lambda item: -item["took_s"]):
        kind = layer["kind"]
        plot.scatter(
            layer["work"] / layer["bytes"],
            layer["work"] * _GIGA / layer["took_s"],
            s=max(_LARGEST_DOT * layer["took_s"] / slowest, 4.0),
            color=colours[kind],
            alpha=0.7,
            linewidths=0,
            label=None if kind in drawn else kind,
        )
        drawn.add(kind)
    peak = row["peak_flops_per_s"] * _GIGA
    reach = [min(layer["work"] / layer["bytes"] for layer in layers) / 2, 2e3]
    rates = {
        rate["kind"]: rate["rate_per_s"] * _GIGA for rate in report["peaks"] if rate["kind"] in {"memory", "cache"}
    }
    for kind, style in (("memory", "-"), ("cache", "--")):
        if kind in rates:
            edge = peak / rates[kind]
            label = f"{kind}: {rates[kind]:.0f} GB/s"
            plot.plot([reach[0], edge], [reach[0] * rates[kind], peak], style, color="#444444", lw=1.2, label=label)
    plot.plot([peak / max(rates.values(), default=1.0), reach[1]], [peak, peak], "-", color="#444444", lw=1.2)
    plot.annotate(
        f"{row['peak']}: {peak:.0f} GFLOP/s", (reach[1], peak), (0, 12), textcoords="offset points", ha="right"
    )
    plot.margins(y=0.12)
    plot.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    plot.set_title(f"{row['name']}: layers under the roofline; the larger the dot, the more of the time", fontsize=10)
    legend = plot.legend(fontsize=8, loc="lower right", frameon=False)
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([40.0])


def _draw_bars(plot: Axes, rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    labels = []
    for index, row in enumerate(rows):
        labels += [f"{row['name']}\ntook", "its bound"]
        for key, place, alpha in (("took_s", 2.4 * index, 1.0), ("bound_s", 2.4 * index + 1, 0.5)):
            left = 0.0
            for kind in row["kinds"]:
                width = kind[key] * 1e3
                first = index == 0 and key == "took_s"
                plot.barh(
                    place,
                    width,
                    left=left,
                    color=colours[kind["kind"]],
                    alpha=alpha,
                    height=0.9,
                    label=kind["kind"] if first else None,
                )
                left += width
            plot.annotate(f"{left:.0f}", (left, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    places = [2.4 * index + part for index in range(len(rows)) for part in (0, 1)]
    plot.set_yticks(places, labels, fontsize=9)
    plot.invert_yaxis()
    plot.margins(x=0.1)
    plot.set_xlabel("ms a clip")
    plot.set_title("Where the time goes", fontsize=10)
    plot.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)
