"""Building one graph when something goes wrong: errors and the log, timing caches, progress, and stopping."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest

from helpers.plan_bench import GENERATIONS, VERSIONS, VIDEO
from milnce.errors import MilnceWarning, PlanBuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.plan_bench import PlanBench

    Make = Callable[..., PlanBench]

pytestmark = pytest.mark.alone


def test_the_parsers_errors_name_node_and_operator(make: Make) -> None:
    bench = make("11")
    text = "Invalid Node - mul\nElementWiseOperation PROD must have same input types"
    bench.fake.parser_errors = (("mul", "Mul", text), ("", "Foo", "Plugin not found"))
    with pytest.raises(PlanBuildError) as caught:
        bench.build()
    assert str(caught.value) == (
        f"tensorrt 11.1.0.106 cannot parse {VIDEO}:\n"
        "  - node mul (Mul): ElementWiseOperation PROD must have same input types\n"
        "  - node 1 (Foo): Plugin not found\n"
        "TensorRT takes what `milnce export` writes: export the bundle again with this release"
    )


def test_8_5_knows_a_nodes_number_alone(make: Make) -> None:
    bench = make("8.5")
    bench.fake.parser_errors = (("mul", "Mul", "unsupported"),)
    with pytest.raises(PlanBuildError, match=r"cannot parse video uint8 .*\n  - node 0: unsupported\n"):
        bench.build()


def test_a_failed_build_has_the_error_lines_of_the_log(make: Make) -> None:
    bench = make()
    bench.fake.fails = "Error Code 10: Could not find any implementation for node {conv}"
    with pytest.raises(PlanBuildError) as caught:
        bench.build()
    assert str(caught.value) == (
        f"tensorrt 11.1.0.106 cannot build {VIDEO}:\n"
        "  - IBuilder::buildSerializedNetwork: Error Code 10: Could not find any implementation for node {conv}\n"
        "More is in its log: milnce --debug build, logger milnce.tensorrt"
    )
    # The lines of one build are not those of the next.
    bench.fake.fails = "Error Code 2: OutOfMemory"
    with pytest.raises(PlanBuildError) as again:
        bench.build()
    assert "Error Code 10" not in str(again.value)


def test_what_the_library_said_before_is_not_this_builds_error(make: Make) -> None:
    bench = make()
    bench.toolkit.logger.errors.append("of another engine")
    bench.fake.fails = "no luck"
    with pytest.raises(PlanBuildError) as caught:
        bench.build()
    assert "of another engine" not in str(caught.value)


def test_only_the_first_error_lines_are_kept(make: Make) -> None:
    bench = make()
    lines = [f"line {number}" for number in range(100)]
    for line in lines:
        bench.toolkit.logger.log(bench.fake.trt.ILogger.ERROR, line)
    assert bench.toolkit.logger.errors == lines[:10]


def test_a_profile_that_the_library_refuses_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    monkeypatch.setattr("helpers.fake_builder_network.Config.add_optimization_profile", lambda *_: -1)
    with pytest.raises(PlanBuildError, match=r"does not take the profile \{'video': .* of video uint8 .*: it gives no"):
        bench.build()


def test_tensorrts_messages_go_to_its_logger(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    bench = make()
    bench.fake.fails = "no luck"
    with caplog.at_level("DEBUG", logger="milnce.tensorrt"), pytest.raises(PlanBuildError):
        bench.build()
    assert ("milnce.tensorrt", "IBuilder::buildSerializedNetwork: no luck") in [
        (record.name, record.getMessage()) for record in caplog.records
    ]


# Timing caches.


@pytest.mark.parametrize("generation", GENERATIONS)
def test_timings_are_kept_and_used_again(generation: str, make: Make) -> None:
    bench = make(generation)
    first = bench.build().timing_cache
    assert first == f"timings of {VERSIONS[generation]} and one more build".encode()
    second = bench.build(timing_cache=first).timing_cache
    assert second == first + b" and one more build"


@pytest.mark.parametrize("foreign", [b"other version's timings", b"garbage"])
def test_timings_that_the_library_does_not_take_are_begun_anew(foreign: bytes, make: Make) -> None:
    bench = make()
    with pytest.warns(MilnceWarning, match=r"^tensorrt 11\.1\.0\.106 does not take the timing cache of earlier "):
        built = bench.build(timing_cache=foreign)
    assert built.timing_cache == b"timings of 11.1.0.106 and one more build"


# Progress, and stopping.


def test_progress_rises_to_the_end(make: Make) -> None:
    seen: list[tuple[str, float | None]] = []
    make().build(progress=lambda what, done: seen.append((what, done)))
    numbers = [done for _, done in seen if done is not None]
    assert {what for what, _ in seen} == {VIDEO}
    assert numbers == [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def test_without_a_monitor_progress_says_what_is_built(make: Make) -> None:
    seen: list[tuple[str, float | None]] = []
    make("8.5").build(progress=lambda what, done: seen.append((what, done)))
    assert seen == [(VIDEO, None)]


def test_a_progress_callback_that_fails_stops_the_build_and_is_raised(make: Make) -> None:
    def fail(_: str, done: float | None) -> None:
        if done and done > 0.3:
            raise BrokenPipeError("nobody reads")

    bench = make()
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        bench.build(progress=fail)
    assert bench.fake.descriptions == {}  # nothing was built to the end


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT, which a job in a shell's background inherits as ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_stops_the_build_at_its_next_step_and_waits_for_it(make: Make) -> None:
    bench = make()
    seen: list[float] = []

    def interrupt(_: str, done: float | None) -> None:
        seen.append(done or 0.0)
        if done == 0.25:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    with pytest.raises(KeyboardInterrupt):
        bench.build(progress=interrupt)
    assert seen == [0.0, 0.125, 0.25]
    assert not [thread for thread in threading.enumerate() if thread.name == "milnce-build"]


@pytest.mark.usefixtures("heeds_interrupts")
def test_ctrl_c_does_not_wait_for_a_build_that_cannot_be_stopped(make: Make) -> None:
    bench, release = make("8.5"), threading.Event()

    def hang(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(30)

    bench.fake.before_build = hang
    began_s = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            bench.build()
        assert time.monotonic() - began_s < 10
        (left,) = [thread for thread in threading.enumerate() if thread.name == "milnce-build"]
        assert left.daemon
    finally:
        release.set()
    left.join(10)
