"""What the pipeline's figures are held against: the larger of its parts, the cores' time, the plain loop."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from harness import Target
from milnce.timing import Ratios, Timing, ratios

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WANTED_OVERLAP, WANTED_GAIN, WANTED_MIB = 1.1, 1.6, 100.0


def add_bounds(rows: Sequence[dict[str, Any]], cores: int) -> None:
    """Give every row of the pipeline what bounds it, in place.

    - parts: its wall time over the larger of decode alone, with as many workers, and the model alone.
    - bound_s: CPU seconds of both over the cores; of_bound is its wall time over that.
    - gain, lean_gain: the wall time of the plain loop, and of the lean one, over its own.

    All are taken round by round, the rounds being interleaved, and are medians.

    Args:
        rows: The report's; those that were not timed, having failed their gate, are left alone.
        cores: Cores that decoding and the model share.
    """
    timed = {row["name"]: row for row in rows if "timing" in row}
    for row in timed.values():
        if row["part"] != "pipeline":
            continue
        decode = _find(timed.values(), "decode", "", max(row["workers"], 1))
        model = _find(timed.values(), "model", row["backend"])
        if decode is not None and model is not None:
            pairs = zip(_timing(decode).seconds, _timing(model).seconds, strict=True)
            row["parts"] = ratios(_timing(row), Timing(tuple(max(pair) for pair in pairs))).to_json()
            work = [sum(pair) / cores for pair in zip(decode["cpu_s"], model["cpu_s"], strict=True)]
            row["bound_s"] = statistics.median(work)
            row["of_bound"] = ratios(_timing(row), Timing(tuple(work))).to_json()
            row["bounded_by"] = _bounded_by(_timing(decode).median_s, _timing(model).median_s, row["bound_s"])
        for key, part in (("gain", "plain loop"), ("lean_gain", "lean loop")):
            other = _find(timed.values(), part, row["backend"])
            if other is not None:
                row[key] = gain(_timing(other), _timing(row)).to_json()


def gain(loop: Timing, pipeline: Timing) -> Ratios:
    """Return how many times as fast the pipeline is as a loop."""
    return ratios(loop, pipeline)


def _bounded_by(decode_s: float, model_s: float, cores_s: float) -> str:
    """Return which is the largest: what no pipeline on this machine can be faster than."""
    bounds = {"decoding": decode_s, "the model": model_s, "the cores": cores_s}
    return max(bounds, key=lambda name: bounds[name])


def targets(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Return the targets of the best exact backend, with the number of workers that was fastest."""
    exact = [row for row in rows if row["part"] == "pipeline" and row.get("gate") == "fp32" and "parts" in row]
    best = min(exact, key=lambda row: float(row["timing"]["median_s"]), default=None)
    names = (
        "pipeline: wall time over the larger of decode alone and model alone",
        "pipeline: gain over the plain loop",
    )
    if best is None:
        return [
            Target(names[0], WANTED_OVERLAP, None, "lower", "no exact row could be measured"),
            Target(names[1], WANTED_GAIN, None, bound="no exact row could be measured"),
        ]
    cores = (
        f"decoding and the model share the cores: their CPU time over the cores is {best['bound_s']:.2f} s, and the "
        f"pipeline takes {best['of_bound']['median']:.2f} times that; bounded most of all by {best['bounded_by']}"
    )
    plain = best.get("gain", {}).get("median")
    most = (
        f"; the plain loop takes {plain * best['of_bound']['median']:.2f} times the cores' bound"
        if plain is not None
        else ""
    )
    return [
        Target(f"{names[0]} ({best['name']})", WANTED_OVERLAP, best["parts"]["median"], "lower", cores),
        Target(f"{names[1]} ({best['name']})", WANTED_GAIN, plain, bound=cores + most),
    ]


def memory_target(memory: Mapping[str, Any]) -> Target:
    """Return the target of memory: long videos beside short ones, processes that decode counted in."""
    short, long = memory["short"], memory["long"]
    grown = long["tree_peak_mib"] - short["tree_peak_mib"]
    features = (
        f"features of {long['windows']} windows are held until they are written: {memory['features_mib']:.0f} MiB"
    )
    return Target("peak memory, ten long videos less ten short ones, MiB", WANTED_MIB, grown, "lower", features)


def _find(rows: Any, part: str, backend: str, workers: int | None = None) -> dict[str, Any] | None:  # noqa: ANN401
    found = (row for row in rows if (row["part"], row["backend"], row["workers"]) == (part, backend, workers))
    return next(found, None)


def _timing(row: Mapping[str, Any]) -> Timing:
    return Timing(tuple(row["timing"]["seconds"]))
