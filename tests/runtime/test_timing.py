"""Timing by a clock of the test's own: what counts, what does not, and what the figures are."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import pytest

from milnce.errors import InputError
from milnce.timing import Ratios, Timing, interleaved, percentile, ratios

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """A clock that only actions move."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000

    def __call__(self) -> int:
        """Return the time, in nanoseconds."""
        return self.now_ns

    def passes(self, *seconds: float) -> Callable[[], None]:
        """Return an action that takes these seconds, run by run, the last again and again."""
        left = list(seconds)

        def act() -> None:
            self.now_ns += round((left.pop(0) if len(left) > 1 else left[0]) * 1e9)

        return act


def test_figures_by_hand() -> None:
    timing = Timing((0.4, 0.1, 0.2, 0.3))
    assert timing.median_s == pytest.approx(0.25)
    assert timing.minimum_s == 0.1
    assert timing.p95_s == timing.p99_s == 0.4
    assert timing.spread == pytest.approx((0.325 - 0.175) / 0.25)
    assert timing.to_json() == {
        "median_s": pytest.approx(0.25),
        "p95_s": 0.4,
        "p99_s": 0.4,
        "minimum_s": 0.1,
        "spread": pytest.approx(0.6),
        "rounds": 4,
        "seconds": [0.4, 0.1, 0.2, 0.3],
    }
    hundred = Timing(tuple(float(value) for value in range(1, 101)))
    assert (hundred.p95_s, hundred.p99_s) == (95, 99)
    assert Timing((0.0, 0.0)).spread == 0
    assert [percentile([3.0, 1.0, 2.0], percent) for percent in (0, 33, 34, 100)] == [1, 1, 2, 3]


@pytest.mark.parametrize("seconds", [(), (0.1, math.nan), (-0.1,), (math.inf,)])
def test_times_that_are_none_are_refused(seconds: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="one or more, none negative or NaN, expected"):
        Timing(seconds)


def test_rounds_are_interleaved_and_the_warm_up_does_not_count() -> None:
    clock, order = Clock(), []
    waits = {"a": clock.passes(9, 1, 2, 3), "b": clock.passes(90, 10, 20, 30)}

    def act(name: str) -> None:
        order.append(name)
        waits[name]()

    actions = {name: partial(act, name) for name in waits}
    times, errors = interleaved(actions, rounds=3, clock_ns=clock)
    assert order == ["a", "b"] * 4
    assert times == {"a": Timing((1, 2, 3)), "b": Timing((10, 20, 30))}
    assert errors == {}
    again, _ = interleaved({"a": clock.passes(5, 6, 7)}, rounds=1, warmup=2, clock_ns=clock)
    assert again == {"a": Timing((7,))}
    cold, _ = interleaved({"a": clock.passes(5, 6)}, rounds=2, warmup=0, clock_ns=clock)
    assert cold == {"a": Timing((5, 6))}


def test_no_round_begins_when_the_time_is_over_but_the_least_are_done() -> None:
    clock = Clock()
    times, _ = interleaved({"a": clock.passes(100, 1)}, rounds=50, seconds=3.5, clock_ns=clock)
    assert len(times["a"].seconds) == 4  # the warm-up's 100 seconds are not of the limit
    times, _ = interleaved({"a": clock.passes(1)}, rounds=50, seconds=0, least=3, clock_ns=clock)
    assert len(times["a"].seconds) == 3
    times, _ = interleaved({"a": clock.passes(1)}, rounds=5, seconds=60, clock_ns=clock)
    assert len(times["a"].seconds) == 5


def test_an_action_that_raises_is_left_out_and_the_others_go_on() -> None:
    clock, turns = Clock(), iter(range(100))

    def fail() -> None:
        if next(turns) == 2:
            raise RuntimeError("lost the context")

    times, errors = interleaved({"good": clock.passes(1), "bad": fail}, rounds=4, clock_ns=clock)
    assert errors == {"bad": "RuntimeError: lost the context"}
    assert times == {"good": Timing((1, 1, 1, 1))}
    assert next(turns) == 3  # it was not run again


def test_ctrl_c_ends_the_rounds() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleaved({"a": stop}, rounds=3)


def test_queued_work_is_waited_for_before_and_within_the_time() -> None:
    clock, queued = Clock(), []

    def enqueue() -> None:
        queued.append(2)
        clock.now_ns += 500_000_000

    def wait() -> None:
        clock.now_ns += sum(queued) * 1_000_000_000
        queued.clear()

    def leave_work() -> None:  # of another row, which nobody waits for
        queued.append(7)

    actions = {"gpu": enqueue, "other": leave_work}
    times, _ = interleaved(actions, rounds=2, synchronize={"gpu": wait}, clock_ns=clock)
    assert times["gpu"] == Timing((2.5, 2.5))
    assert times["other"] == Timing((0, 0))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rounds": 0}, "rounds is 0; a whole number of at least 1 expected"),
        ({"rounds": 3, "least": 0}, "least is 0"),
        ({"rounds": 3, "warmup": -1}, "warmup -1 and seconds None given; 0 or more expected of both"),
        ({"rounds": 3, "seconds": math.nan}, "seconds nan given"),
    ],
)
def test_wrong_numbers_are_refused(arguments: dict[str, float], text: str) -> None:
    with pytest.raises(InputError, match=text):
        interleaved({}, **arguments)  # type: ignore[arg-type] # wrong on purpose


def test_ratios_are_of_rounds_and_not_of_medians() -> None:
    slow, fast = Timing((2.0, 9.0, 4.0)), Timing((1.0, 3.0, 1.0))
    found = ratios(slow, fast)
    assert found == Ratios((2.0, 3.0, 4.0))
    assert found.to_json() == {"median": 3.0, "minimum": 2.0, "maximum": 4.0}
    with pytest.raises(InputError, match="3 rounds over 1 given"):
        ratios(slow, Timing((1.0,)))
    with pytest.raises(InputError, match="took no time"):
        ratios(slow, Timing((1.0, 0.0, 1.0)))
