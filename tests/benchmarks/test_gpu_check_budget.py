"""The budget of the GPU check: what each part gets of it, and that what has nothing to do on a host gets nothing."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck import runner, throughput
from gpucheck.part import MODULES
from gpucheck.record import ABSENT, PASSED
from gpucheck.runner import NOT_RUN, PARTS, Part, run_parts
from helpers import gpu_parts
from helpers.gpu_events import events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpucheck.settings import Settings

    Limits = Callable[..., dict[str, float]]


@pytest.fixture
def limits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Return what runs parts on a clock of its own, and says how many seconds each was given, with 0 for not run."""

    def run(
        parts: Sequence[Part],
        budget_s: float,
        *,
        present: tuple[str, ...] = (),
        takes: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        clock, given = [0.0], dict.fromkeys((part.name for part in parts), 0.0)

        def take(name: str, _: Settings, *, limit_s: float) -> dict[str, Any]:
            given[name] = limit_s
            clock[0] += min(limit_s, (takes or {}).get(name, limit_s))  # all it may, if nothing is said of it
            found = [{"kind": "part", "check": part, "outcome": PASSED} for part in present]
            return {"name": name, "outcome": PASSED, "checks": found if name == "environment" else []}

        monkeypatch.setattr(runner, "run_part", take)
        monkeypatch.setattr("gpucheck.runner.time.monotonic", lambda: clock[0])
        results = list(run_parts(parts, settings, budget_s=budget_s))
        assert {result["name"] for result in results if result["outcome"] == NOT_RUN} == {
            name for name, seconds in given.items() if not seconds
        }
        return given

    return run


def test_each_part_leaves_time_for_those_after_it(limits: Limits) -> None:
    parts = [Part("first", 300, 5, 10), Part("second", 50, 5, 40), Part("third", 400, 10, 60)]
    assert limits(parts, 200) == {"first": 100, "second": 40, "third": 60}
    # Twice the usual one stretches the limits.
    assert limits(parts, 1080) == {"first": 600, "second": 100, "third": 380}


def test_a_small_budget_goes_to_the_first_parts(limits: Limits) -> None:
    parts = [Part("first", 300, 5, 10), Part("second", 50, 5, 40), Part("third", 400, 10, 60)]
    assert limits(parts, 65) == {"first": 25, "second": 40, "third": 0}
    assert limits(parts, 55) == {"first": 15, "second": 40, "third": 0}
    assert limits(parts, 44) == {"first": 44, "second": 0, "third": 0}
    assert limits(parts, 12) == {"first": 12, "second": 0, "third": 0}


@pytest.mark.parametrize("present", [("cuda", "onnxruntime", "torch"), ("cuda", "tensorrt", "tensorrt_rtx")])
def test_ninety_seconds_are_enough_for_the_bundles(limits: Limits, present: tuple[str, ...]) -> None:
    # The tests take all that they may.
    given = limits(PARTS, 90, present=present, takes={"environment": 10, "rtx": 0})
    assert given["tests"] >= 30
    assert given["bundles"] >= 40
    assert given["memory"] == 0


@pytest.mark.parametrize(
    ("present", "first"), [((), 170), (("torch",), 130), (("onnxruntime",), 110), (("tensorrt", "torch"), 70)]
)
def test_nothing_is_left_for_a_part_that_has_nothing_to_do(
    limits: Limits, present: tuple[str, ...], first: float
) -> None:
    third = Part("third", 400, 10, 60, uses=("tensorrt", "onnxruntime"))
    parts = [
        Part("environment", 20, 1, 20),
        Part("first", 300, 5, 10),
        Part("second", 50, 5, 40, uses=("torch",)),
        third,
    ]
    given = limits(parts, 180, present=present, takes={"environment": 10, "first": 50})
    assert given["first"] == first
    assert all(given.values())  # it is run all the same, and says what is absent


@pytest.mark.parametrize(
    ("part", "budget_s", "left_for_tests"),
    [
        ("onnx", 150, 140 - 40),
        ("tensorrt_rtx", 200, 190 - 50),
        ("torch", 300, 290 - 145),  # the bundles, the peaks, and the speed of PyTorch alone
        ("onnxruntime", 350, 340 - 250),
        ("tensorrt_lean", 350, 340 - 250),
        ("tensorrt", 400, 390 - 310),
    ],
)
def test_a_part_that_one_of_its_libraries_is_there_for_has_its_reserve(
    limits: Limits, part: str, budget_s: float, left_for_tests: float
) -> None:
    assert limits(PARTS, budget_s, present=("cuda", part), takes={"environment": 10})["tests"] == left_for_tests


def test_parts_that_have_nothing_to_do_end_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peaks.gpu_peaks", list)
    monkeypatch.setattr(throughput, "make_videos", lambda *_: pytest.fail("made videos for nothing"))
    for part in PARTS:
        if part.uses:
            others = replace(settings, present=tuple(set(gpu_parts.PARTS) - set(part.uses)))
            assert not part.has_work(others.present)
            (event,) = events_of(import_module(f"gpucheck.{MODULES[part.name]}").run, others)
            assert event["outcome"] == ABSENT
