"""When a series of memory or of counts is a leak.

The statistic is that of the memory growth test of NVIDIA's Triton Inference Server (qa/L0_memory_growth): the first
part of the run is warm-up, and of the second half, less its 5% largest values, the maximum must not pass the mean by
more than a limit. That finds what grows fast. Slow leaks of a short run hide below such a limit, so there is a line of
least squares too: what it gains is a leak if it is more than noise and goes on through all of that half, however little
that is a request.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 2**20

# Samples of the run's beginning that are left out: first uses, caches that fill, arenas that find their size.
WARM_UP = 0.1
# As Triton does: a sample taken while something else of the machine was at work.
_OUTLIERS = 0.05
# A line that rises by less than this many of its standard errors may be level.
_ERRORS = 3
# Fewer samples in a third of the second half have no median worth the name.
LEAST_SAMPLES = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What memory may do in the second half of a run.

    Attributes:
        growth_bytes: How far the maximum may lie above the mean. 32 MiB is a third of Triton's own 100 MB.
        floor_bytes: What a line of least squares may gain in all. The heaps that glibc keeps for threads find their
            size over some ten thousand requests, and gained up to 2.5 MiB in the second half of runs of less than a
            minute.
        request_bytes: What the line may gain a request, where that is more than the floor in all: half of glibc's least
            allocation, 32 bytes. In half an hour of 626,000 requests heaps moved by 13 bytes a request.
    """

    growth_bytes: float = 32 * MIB
    floor_bytes: float = 4 * MIB
    request_bytes: float = 16.0

    def gain_bytes(self, requests: float) -> float:
        """Return what the line may gain over so many requests."""
        return max(self.floor_bytes, self.request_bytes * requests)


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Growth:
    """What memory did in the second half of a run.

    Attributes:
        samples: How many samples that half has.
        requests: How many requests lie between its first and its last sample.
        growth_bytes: The maximum less the mean, without the largest 5%.
        request_bytes: What the line of least squares gains a request.
        fitted_bytes: What it gains from the first to the last sample.
        thirds_bytes: Medians of its thirds.
        problem: Why this is a leak; empty if it is none.
    """

    samples: int
    requests: int
    growth_bytes: float
    request_bytes: float
    fitted_bytes: float
    thirds_bytes: tuple[float, float, float]
    problem: str

    def to_json(self) -> dict[str, Any]:
        """Return the figures, as plain values."""
        return asdict(self)


def second_half(count: int) -> slice:
    """Return the samples that are judged: the second half of what the warm-up leaves."""
    warm = round(count * WARM_UP)
    return slice(warm + (count - warm) // 2, count)


def memory_growth(requests: Sequence[int], values: Sequence[float], limits: Limits = LIMITS) -> Growth:
    """Judge a series of memory.

    Args:
        requests: How many requests had been answered at each sample, rising.
        values: Bytes at each sample.
        limits: What is allowed.

    Raises:
        ValueError: if the series differ in length, requests do not rise, or there are fewer than 20 samples: too few to
            tell a leak from noise, so the run must be longer.
    """
    if len(requests) != len(values) or len(values) < LEAST_SAMPLES:
        raise ValueError(
            f"{len(values)} samples of memory and {len(requests)} of requests; as many of both expected, and at least "
            f"{LEAST_SAMPLES}: let the soak run longer"
        )
    window = second_half(len(values))
    done, held = np.asarray(requests[window], np.float64), np.asarray(values[window], np.float64)
    if not (np.diff(done) > 0).all():
        raise ValueError("requests must rise from sample to sample; a round answered none")
    kept = np.sort(held)[: max(1, len(held) - round(len(held) * _OUTLIERS))]
    growth = float(kept[-1] - kept.mean())
    (slope, _), ((variance, _), _) = np.polyfit(done - done[0], held, 1, cov=True)
    span = float(done[-1] - done[0])
    fitted = float(slope) * span
    first, second, third = (float(np.median(part)) for part in np.array_split(held, 3))
    # A line through one step, or through the teeth of a saw, rises too; a leak rises in each part of its run.
    goes_on = min(second - first, third - second) > fitted / 6
    allowed = limits.gain_bytes(span)
    problem = ""
    if growth > limits.growth_bytes:
        problem = f"grew by {growth / MIB:.1f} MiB over its mean; at most {limits.growth_bytes / MIB:.1f} MiB allowed"
    elif slope > _ERRORS * variance**0.5 and fitted > allowed and goes_on:
        problem = (
            f"gains {slope:,.0f} bytes a request, {fitted / MIB:.1f} MiB in {span:,.0f} requests, and goes on; at most "
            f"{allowed / MIB:.1f} MiB allowed"
        )
    return Growth(len(held), int(span), growth, float(slope), fitted, (first, second, third), problem)


@dataclass(frozen=True, slots=True)
class Counts:
    """What a count did after the warm-up.

    Attributes:
        before: The least of the first third.
        after: The least of the last third.
        problem: Why this is a leak; empty if it is none.
    """

    before: int
    after: int
    problem: str

    def to_json(self) -> dict[str, Any]:
        """Return the figures, as plain values."""
        return asdict(self)


def count_growth(values: Sequence[int]) -> Counts:
    """Judge a series of counts, such as of open files, taken while nothing was at work.

    What comes and goes may be there at one sample or another, as a process that has not quite ended. So the least of
    many samples is looked at, and that must not have risen at all.

    Raises:
        ValueError: if there are fewer than 20 samples.
    """
    if len(values) < LEAST_SAMPLES:
        raise ValueError(f"{len(values)} samples; at least {LEAST_SAMPLES} expected: let the soak run longer")
    settled = values[round(len(values) * WARM_UP) :]
    third = len(settled) // 3
    before, after = min(settled[:third]), min(settled[-third:])
    return Counts(before, after, f"rose from {before} to {after}, and nothing was at work" if after > before else "")
