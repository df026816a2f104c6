"""Times callables in interleaved rounds, so that ratios survive a machine whose speed changes while it measures."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.arguments import positive
from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each round of one action took.

    Attributes:
        seconds: One value a round, in the order of the rounds.

    Raises:
        InputError: if there is no round, or one is negative or not a number.
    """

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds or not all(0 <= value < math.inf for value in self.seconds):
            raise InputError(f"seconds of rounds are {self.seconds}; one or more, none negative or NaN, expected")

    @property
    def median_s(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def p95_s(self) -> float:
        """The 95th percentile by nearest rank, in seconds; with fewer than 20 rounds, the slowest."""
        return percentile(self.seconds, 95)

    @property
    def p99_s(self) -> float:
        """The 99th percentile by nearest rank, in seconds; with fewer than 100 rounds, the slowest."""
        return percentile(self.seconds, 99)

    @property
    def minimum_s(self) -> float:
        """The fastest round, in seconds."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """The distance between the quartiles over the median: 0.1 where half of the rounds lie within 10% of it."""
        lower, upper = np.percentile(self.seconds, (25, 75))
        return float(upper - lower) / self.median_s if self.median_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the figures and the rounds, as plain values."""
        return {
            "median_s": self.median_s,
            "p95_s": self.p95_s,
            "p99_s": self.p99_s,
            "minimum_s": self.minimum_s,
            "spread": self.spread,
            "rounds": len(self.seconds),
            "seconds": list(self.seconds),
        }


@dataclass(frozen=True, slots=True)
class Ratios:
    """Quotients of two actions' times, round by round.

    Attributes:
        values: One a round.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def minimum(self) -> float:
        """The least of the rounds."""
        return min(self.values)

    @property
    def maximum(self) -> float:
        """The largest of the rounds."""
        return max(self.values)

    def to_json(self) -> dict[str, float]:
        """Return the figures as plain values."""
        return {"median": self.median, "minimum": self.minimum, "maximum": self.maximum}


def ratios(of: Timing, over: Timing) -> Ratios:
    """Return the seconds of `of` divided by those of `over`, round by round.

    How many times as fast B is as A is `ratios(A, B)`: the longer A takes, the larger it is.

    Raises:
        InputError: if the rounds are not the same number, so were not interleaved, or one of `over` took no time.
    """
    if len(of.seconds) != len(over.seconds):
        raise InputError(f"{len(of.seconds)} rounds over {len(over.seconds)} given; rounds of one run expected")
    if not over.minimum_s > 0:
        raise InputError("a round took no time, so nothing can be divided by it; time more work a round")
    return Ratios(tuple(own / other for own, other in zip(of.seconds, over.seconds, strict=True)))


def percentile(values: tuple[float, ...] | list[float], percent: float) -> float:
    """Return the smallest value that at least `percent` per cent of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def interleaved(
    actions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    seconds: float | None = None,
    least: int = 1,
    synchronize: Mapping[str, Callable[[], object]] | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Run every action once a round, A B A B, and time each run.

    An action that raises is left out from there on; the others go on.

    Args:
        actions: What to time, by name.
        rounds: Rounds that count, at most.
        warmup: Rounds before them that do not count.
        seconds: Time after which no further round begins, counted from the end of the warm-up; None for no limit.
        least: Rounds that count, at least, however long they take.
        synchronize: For actions that only enqueue work on a device: what waits for it, by the action's name. Called
            before the clock starts, so that nothing earlier is counted, and before it stops.
        clock_ns: The clock, in nanoseconds.

    Returns:
        The times of each action that never raised, and the error of each that did.

    Raises:
        InputError: if `rounds` or `least` is less than 1, `warmup` is negative, or `seconds` is not a number >= 0.
    """
    rounds, least = positive("rounds", rounds), positive("least", least)
    if warmup < 0 or not (seconds is None or seconds >= 0):
        raise InputError(f"warmup {warmup} and seconds {seconds} given; 0 or more expected of both")
    wait = synchronize or {}
    times: dict[str, list[float]] = {name: [] for name in actions}
    errors: dict[str, str] = {}
    ends_ns: float = math.inf
    for number in range(-warmup, rounds):
        if number == 0 and seconds is not None:
            ends_ns = clock_ns() + seconds * 1e9
        if number >= least and clock_ns() >= ends_ns:
            break
        for name, action in actions.items():
            if name in errors:
                continue
            try:
                taken_ns = _timed_ns(action, wait.get(name), clock_ns)
            except Exception as error:  # noqa: BLE001 - one that fails must not lose the others' figures
                errors[name] = f"{type(error).__name__}: {error}"
                continue
            if number >= 0:
                times[name].append(taken_ns / 1e9)
    return {name: Timing(tuple(values)) for name, values in times.items() if name not in errors}, errors


def _timed_ns(action: Callable[[], object], wait: Callable[[], object] | None, clock_ns: Callable[[], int]) -> int:
    if wait is not None:
        wait()
    began = clock_ns()
    action()
    if wait is not None:
        wait()
    return clock_ns() - began
