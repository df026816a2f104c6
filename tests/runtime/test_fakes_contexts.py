"""The stand-in for TensorRT finds contexts used twice at a time, arenas shared without order, and stale graphs."""

from __future__ import annotations

from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("cuda.bindings.runtime")

from helpers.cuda_bench import SCHEDULES, Error, ok
from helpers.tensorrt_rig import ARENA, FLAVOURS, LOCAL, Rig, capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.fake_cuda_streams import Policy
    from helpers.fake_tensorrt import Flavour


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param  # type: ignore[no-any-return]  # pytest does not type it


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES)
def test_two_contexts_on_one_arena_race_unless_ordered(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, policy: Policy, seed: int
) -> None:
    rig = Rig(monkeypatch, flavour, policy=policy, seed=seed)
    first, second = rig.context(profile=0, rows=1), rig.context()
    assert first.execute_async_v3(rig.a)
    rig.order()
    assert second.execute_async_v3(rig.b)
    ok(rig.fake.cudaStreamSynchronize(rig.b))
    rig.fake.check(leaks=False)
    assert first.execute_async_v3(rig.a)
    assert second.execute_async_v3(rig.b)
    assert any("race on memory" in violation for violation in rig.fake.violations)


def test_some_schedule_shows_a_shared_arena_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = 0
    for seed in range(20):
        rig = Rig(monkeypatch, "10", policy="random", seed=seed)
        contexts = [rig.context(), rig.context()]
        for context, stream in zip(contexts, (rig.a, rig.b), strict=True):
            rig.array(context, "x")[:] = 1
            rig.array(context, "y")[:] = 2  # as if left by a run before
            assert context.execute_async_v3(stream)
        rig.fake.finish()
        seen = "activation memory was overwritten while an execution was using it" in rig.fake.violations
        assert seen == any(set(rig.array(context, "y").flat) != {2.0} for context in contexts)
        spoilt += seen
    assert 0 < spoilt < 20


def test_two_contexts_that_write_one_output_race(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "10")
    first, second = rig.context(), rig.context()
    second.set_device_memory(ok(rig.fake.cudaMalloc(ARENA)), ARENA)
    assert first.execute_async_v3(rig.a)
    assert second.execute_async_v3(rig.b)
    rig.fake.check(leaks=False)
    assert second.set_tensor_address("y", first.get_tensor_address("y"))
    assert first.execute_async_v3(rig.a)
    assert second.execute_async_v3(rig.b)
    assert f"race on memory {first.get_tensor_address('y'):#x}" in rig.fake.violations[0]


def test_a_graph_of_a_context_that_was_told_the_same_again_still_runs(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour
) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    executable = capture(rig, context)
    assert context.set_optimization_profile_async(1, rig.a)
    assert context.set_input_shape("x", [4, 3])
    rig.give(context)
    ok(rig.fake.cudaGraphLaunch(executable, rig.a))
    rig.fake.check(leaks=False)


def test_two_threads_in_one_context_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "10")
    context = rig.context()
    other = Thread(target=context.set_tensor_address, args=("x", 0))

    class Slow(list[str]):
        def append(self, _: str) -> None:  # called in the middle of a call of the context
            other.start()
            while not rig.fake.violations:
                sleep(0.001)

    rig.log.messages = Slow()
    assert not context.set_input_shape("x", (9, 9))
    other.join()
    assert rig.fake.violations == ["two threads used one execution context at the same time"]


def test_one_context_on_two_streams_is_found(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    assert context.execute_async_v3(rig.a)
    assert context.execute_async_v3(rig.b)
    assert any("race on execution context" in violation for violation in rig.fake.violations)


def test_a_profile_switched_on_a_stream_nobody_waited_for_is_found(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour
) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    assert context.set_optimization_profile_async(0, rig.b)
    assert context.set_input_shape("x", (1, 3))
    assert context.execute_async_v3(rig.a)
    assert "after profile switch" in rig.fake.violations[0]


def test_an_input_overwritten_during_an_execution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = 0
    for seed in range(10):
        rig = Rig(monkeypatch, "10", policy="random", seed=seed)
        context = rig.context()
        assert context.execute_async_v3(rig.a)
        ok(rig.fake.cudaMemsetAsync(context.get_tensor_address("x"), 1, 48, rig.b))
        rig.fake.finish()
        assert "race on memory" in rig.fake.violations[0]
        found += "input x was overwritten while an execution was reading it" in rig.fake.violations
    assert found


def test_a_context_dropped_under_queued_work_is_found(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    assert context.execute_async_v3(rig.a)
    del context
    rig.fake.finish()
    assert rig.fake.violations == ["an execution context was destroyed before what was enqueued with it had run"]


def test_a_captured_execution_computes_again_and_again(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    executable = capture(rig, context)
    for value in (1.0, 2.0):
        rig.array(context, "x")[:] = value
        ok(rig.fake.cudaGraphLaunch(executable, rig.b))
        ok(rig.fake.cudaStreamSynchronize(rig.b))
        assert set(rig.array(context, "y").flat) == {value + 1}
    rig.fake.check(leaks=False)


def test_a_context_has_to_run_once_before_it_is_captured(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    ok(rig.fake.cudaStreamBeginCapture(rig.a, LOCAL))
    assert context.execute_async_v3(rig.a) is False
    assert "has not run since its shapes were set" in rig.log.messages[0]
    assert rig.fake.cudaStreamEndCapture(rig.a)[0] == Error.cudaErrorStreamCaptureInvalidated


def test_a_context_has_to_run_again_after_its_shapes_were_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "10", profiles=[{"x": ((1, 3), (2, 3), (4, 3))}])
    context = rig.context(profile=0)
    capture(rig, context)
    assert context.set_input_shape("x", (4, 3))
    capture(rig, context)
    assert context.set_input_shape("x", (3, 3))
    ok(rig.fake.cudaStreamBeginCapture(rig.a, LOCAL))
    assert context.execute_async_v3(rig.a) is False


def test_a_plan_that_allocates_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "rtx", capturable=False)
    context = rig.context()
    assert not context.is_stream_capturable(rig.a)
    assert not Rig(monkeypatch, "rtx").context().is_stream_capturable(0)
    assert Rig(monkeypatch, "rtx").context().is_stream_capturable(rig.a)
    assert context.execute_async_v3(rig.a)
    ok(rig.fake.cudaStreamSynchronize(rig.a))
    ok(rig.fake.cudaStreamBeginCapture(rig.a, LOCAL))
    assert context.execute_async_v3(rig.a) is False


def switch_profile(_: Rig, context: Any) -> None:  # noqa: ANN401  a stand-in of an untyped module
    context.set_optimization_profile_async(0, 0)


def move_arena(rig: Rig, context: Any) -> None:  # noqa: ANN401
    rig.arena = ok(rig.fake.cudaMalloc(ARENA))
    rig.give(context)


@pytest.mark.parametrize("change", [switch_profile, move_arena])
def test_a_graph_of_a_context_that_was_changed_is_found(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, change: Callable[[Rig, Any], None]
) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    executable = capture(rig, context)
    change(rig, context)
    rig.fake.finish()
    ok(rig.fake.cudaGraphLaunch(executable, rig.a))
    rig.fake.finish()
    assert rig.fake.violations == ["a CUDA graph was launched after the context it was captured from was changed"]
