"""Times callables in interleaved rounds, so that a clock that slows down slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def interleaved(
    actions: Mapping[str, Callable[[], object]], *, seconds: float, least: int, most: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Run every action once a round, after a round that warms up and is not counted.

    Args:
        actions: What to time, by name. Each must end with what waits for the GPU.
        seconds: Time after which no further round begins, once there were enough.
        least: Rounds at least.
        most: Rounds at most.

    Returns:
        The seconds of each action's rounds, and the error of each that raised, which is then left out.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    errors: dict[str, str] = {}
    ends = None
    for round_number in range(most + 1):
        if ends is not None and round_number > least and time.perf_counter_ns() > ends:
            break
        for name, action in actions.items():
            if name in errors:
                continue
            began = time.perf_counter_ns()
            try:
                action()
            except Exception as error:  # noqa: BLE001 - one that fails must not lose the others' figures
                errors[name] = f"{type(error).__name__}: {error}"
                continue
            if round_number:
                times[name].append((time.perf_counter_ns() - began) / 1e9)
        if ends is None:
            ends = time.perf_counter_ns() + int(seconds * 1e9)
    return {name: values for name, values in times.items() if name not in errors}, errors


def summary(seconds: list[float]) -> dict[str, float | int]:
    """Return the median, the 95th percentile (nearest rank) and the number of rounds."""
    ordered = sorted(seconds)
    return {
        "median_s": statistics.median(ordered),
        "p95_s": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "least_s": ordered[0],
        "rounds": len(ordered),
    }
