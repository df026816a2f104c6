"""The roofline's arithmetic: what a machine's peaks allow for each layer, and what share of that was reached."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from layers import Layer
    from milnce.timing import Timing
    from peaks import Peak

_SMALL = 0.01  # kinds with less of the time are not named


@dataclass(frozen=True, slots=True)
class Roof:
    """What a machine can do at most in one precision.

    Attributes:
        name: The product or convolution that was fastest.
        flops_per_s: Its rate.
        memory_bytes_per_s: Of a copy beyond the caches.
        cache_bytes_per_s: Of a copy within the last-level cache.
        cache_bytes: Size of that cache.
    """

    name: str
    flops_per_s: float
    memory_bytes_per_s: float
    cache_bytes_per_s: float
    cache_bytes: int

    def bandwidth(self, layer: Layer) -> float:
        """Return the bytes/s that bound a layer: the cache's if all its tensors fit in it together."""
        within = layer.bytes <= self.cache_bytes
        return max(self.cache_bytes_per_s, self.memory_bytes_per_s) if within else self.memory_bytes_per_s

    def bound_s(self, layer: Layer) -> float:
        """Return the least seconds a layer can take."""
        return layer.bound_s(self.flops_per_s, self.bandwidth(layer))


def layer_rows(
    layers: Sequence[Layer], counted: tuple[Mapping[str, float], float], clip_s: float, roof: Roof
) -> dict[str, Any]:
    """Return the report's figures layer by layer, and by kind of layer, the slowest first.

    Args:
        layers: The graph's.
        counted: What each took in seconds, by name, and what belongs to no layer took, such as conversions of layouts.
        clip_s: What the whole took where nothing was counted. Layers are scaled to that: counting costs time of its
            own, and on a busy machine its rounds may be slower ones.
        roof: The machine's.
    """
    counted_s = sum(counted[0].values()) + counted[1]
    scale = clip_s / counted_s
    found = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "output": list(layer.output),
            "work": layer.work,
            "bytes": layer.bytes,
            "took_s": scale * counted[0].get(layer.name, 0.0),
            "bound_s": roof.bound_s(layer),
            "bounded_by": "memory" if layer.bytes / roof.bandwidth(layer) > layer.work / roof.flops_per_s else "peak",
        }
        for layer in layers
    ]
    kinds = by_kind(found)
    if counted[1] > 0:
        kinds.append({"kind": "other", "count": 0, "took_s": scale * counted[1], "bound_s": 0.0, "work": 0, "bytes": 0})
    bound_s = sum(kind["bound_s"] for kind in kinds)
    sums = {"took_s": clip_s, "counted_s": counted_s, "bound_s": bound_s, "share_of_bound": bound_s / clip_s}
    return {"layers": found, "kinds": kinds, **sums}


def by_kind(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sums of rows of the same kind, those that took longest first."""
    sums: dict[str, dict[str, Any]] = defaultdict(
        lambda: {"count": 0, "took_s": 0.0, "bound_s": 0.0, "work": 0, "bytes": 0}
    )
    for row in rows:
        kind = sums[row["kind"]]
        kind["count"] += 1
        for key in ("took_s", "bound_s", "work", "bytes"):
            kind[key] += row[key]
    return sorted(({"kind": name, **kind} for name, kind in sums.items()), key=lambda kind: -kind["took_s"])


@dataclass(frozen=True, slots=True)
class Rates:
    """What the rounds gave.

    Attributes:
        rounds: For each action its times, and the CPU seconds of all threads in the same rounds.
    """

    rounds: Mapping[str, tuple[Timing, Sequence[float]]]

    def of_peak(self, peak: Peak) -> dict[str, Any]:
        """Return the report's row of a peak: operations or bytes a second, by the clock and by CPU time."""
        timing, cpu_s = self.rounds[peak.key]
        return {
            "name": peak.name,
            "kind": peak.kind,
            "precision": peak.precision,
            "rate_per_s": peak.amount / timing.median_s,
            "rate_per_cpu_s": peak.amount / statistics.median(cpu_s) if min(cpu_s) > 0 else None,
            "spread": timing.spread,
        }

    def best(self, tops: Iterable[Peak], kind: str, precision: str = "", name: str = "") -> Peak | None:
        """Return the peak of a kind, with `name` in its own, of the largest median rate; None if none was measured."""
        asked = [peak for peak in tops if (peak.kind, peak.precision) == (kind, precision) and name in peak.name]
        found = [peak for peak in asked if peak.key in self.rounds]
        return max(found, key=lambda peak: peak.amount / self.rounds[peak.key][0].median_s, default=None)

    def roof(self, precision: str, tops: Sequence[Peak], cache_bytes: int) -> Roof | None:
        """Return the machine's roof in one precision, or None where a part of it was not measured."""
        compute, memory = self.best(tops, "compute", precision), self.best(tops, "memory")
        cache = self.best(tops, "cache") or memory
        if compute is None or memory is None or cache is None:
            return None
        flops, slow, fast = (peak.amount / self.rounds[peak.key][0].median_s for peak in (compute, memory, cache))
        return Roof(compute.key, flops, slow, fast, cache_bytes)

    def of_model(self, name: str, precision: str, layers: Iterable[Layer], tops: Sequence[Peak]) -> dict[str, Any]:
        """Return the figures of a row: its times, and its share of the peak if that was measured."""
        timing, cpu_s = self.rounds[name]
        work, shape_work = (sum(getattr(layer, key) for layer in layers) for key in ("inner_flops", "flops"))
        figures = {"timing": timing.to_json(), "cpu_s": statistics.median(cpu_s), "flops_per_s": work / timing.median_s}
        best = self.best(tops, "compute", precision)
        if best is None:
            return figures
        best_timing, best_cpu_s = self.rounds[best.key]
        product = self.best(tops, "compute", precision, "product")
        product_s = self.rounds[product.key][0].seconds if product is not None else ()
        return {
            **figures,
            "peak": best.key,
            "peak_flops_per_s": best.amount / best_timing.median_s,
            "share_of_peak": shares(work, timing.seconds, best.amount, best_timing.seconds),
            "share_of_product": shares(work, timing.seconds, product.amount, product_s)
            if product is not None
            else None,
            "share_of_peak_by_cpu_time": shares(work, cpu_s, best.amount, best_cpu_s) if min(cpu_s) > 0 else None,
            "share_with_padding": shares(shape_work, timing.seconds, best.amount, best_timing.seconds)["median"],
        }


def shares(work: float, seconds: Sequence[float], amount: float, peak_s: Sequence[float]) -> dict[str, float]:
    """Return the share of the peak in each of several interleaved rounds: their median, least and largest.

    Args:
        work: Operations of the model.
        seconds: What the model took, a value a round.
        amount: Operations of the peak's action.
        peak_s: What that took, in the same rounds.
    """
    values = [(work / own) / (amount / best) for own, best in zip(seconds, peak_s, strict=True)]
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}


def total_work(layers: Sequence[Layer]) -> dict[str, int]:
    """Return the sums over a graph's layers."""
    keys = ("flops", "inner_flops", "operations", "bytes")
    return {"layers": len(layers), **{key: sum(getattr(layer, key) for layer in layers) for key in keys}}


def what_bounds(kinds: Sequence[Mapping[str, Any]], flops_per_s: float) -> str:
    """Say in words what keeps a graph from the peak: how near convolutions come to it, and what else takes time."""
    total_s = sum(kind["took_s"] for kind in kinds)
    convolutions = [kind for kind in kinds if "convolution" in kind["kind"]]
    took_s = sum(kind["took_s"] for kind in convolutions)
    if not total_s or not took_s:
        return ""
    rate = sum(kind["work"] for kind in convolutions) / took_s / flops_per_s
    parts = [
        f"{kind['kind']} {kind['took_s'] / total_s:.1%}"
        for kind in kinds
        if kind not in convolutions and kind["took_s"] / total_s >= _SMALL
    ]
    return (
        f"convolutions take {took_s / total_s:.0%} of the time, at {rate:.0%} of the peak; the rest of the time has no "
        f"multiply-adds: {', '.join(parts) or 'nothing of 1% or more'}"
    )
