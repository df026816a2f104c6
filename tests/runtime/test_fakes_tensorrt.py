"""The stand-in for TensorRT computes, refuses what TensorRT refuses, and finds misuse of contexts and memory."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto

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
def test_a_context_computes(monkeypatch: pytest.MonkeyPatch, flavour: Flavour, policy: Policy, seed: int) -> None:
    rig = Rig(monkeypatch, flavour, policy=policy, seed=seed)
    context = rig.context()
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    rig.array(context, "x")[:] = x
    assert context.execute_async_v3(rig.a) is True
    ok(rig.fake.cudaStreamSynchronize(rig.a))
    np.testing.assert_array_equal(rig.array(context, "y"), x + 1)
    np.testing.assert_array_equal(rig.array(context, "s")[:, 0], (x + 1).sum(axis=1))
    assert not rig.log.messages
    rig.fake.check(leaks=False)


def test_an_engine_tells_its_tensors_and_profiles(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour, dtype=TensorProto.INT64)
    trt, engine = rig.trt, rig.engine
    assert [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)] == ["x", "y", "s"]
    assert engine.get_tensor_mode("x") is trt.TensorIOMode.INPUT
    assert engine.get_tensor_mode("s") is trt.TensorIOMode.OUTPUT
    assert engine.get_tensor_mode("z") is trt.TensorIOMode.NONE
    assert engine.get_tensor_shape("x") == (-1, 3)
    assert trt.nptype(engine.get_tensor_dtype("x")) is (np.int32 if flavour == "8.5" else np.int64)
    assert engine.num_optimization_profiles == 2
    assert engine.get_tensor_profile_shape("x", 1) == [(4, 3)] * 3
    context = rig.context()
    assert context.get_tensor_shape("y") == (4, 3)
    assert context.get_tensor_shape("s") == [4]
    assert "ReduceSum" in engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)


def test_tensorrt_8_5_takes_int64_as_int32(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "8.5", dtype=TensorProto.INT64)
    assert not hasattr(rig.trt.DataType, "INT64")
    context = rig.context()
    rig.array(context, "x", "int32")[:] = 3
    assert context.execute_async_v3(rig.a)
    ok(rig.fake.cudaStreamSynchronize(rig.a))
    assert set(rig.array(context, "y").flat) == {4.0}


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
            assert context.execute_async_v3(stream)
        rig.fake.finish()
        seen = "activation memory was overwritten while an execution was using it" in rig.fake.violations
        assert seen == any(set(rig.array(context, "y").flat) != {2.0} for context in contexts)
        spoilt += seen
    assert 0 < spoilt < 20


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


def test_a_plan_that_allocates_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "rtx", capturable=False)
    context = rig.context()
    assert not context.is_stream_capturable(rig.a)
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


def test_tensorrt_8_5_gives_a_profile_to_one_context(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "8.5")
    first = rig.engine.create_execution_context_without_device_memory()
    second = rig.engine.create_execution_context_without_device_memory()
    assert (first.active_optimization_profile, second.active_optimization_profile) == (0, -1)
    assert second.set_input_shape("x", (1, 3)) is False
    assert second.execute_async_v3(rig.a) is False
    with pytest.raises(RuntimeError, match=r"Error in set optimization profile async\."):
        second.set_optimization_profile_async(0, rig.a)
    assert "Profile 0 has been chosen by another IExecutionContext." in rig.log.messages[-1]
    del first
    gc.collect()
    assert second.set_optimization_profile_async(0, rig.a)
    assert second.active_optimization_profile == 0


@pytest.mark.parametrize("later", ["10", "rtx"])
def test_later_versions_share_a_profile(monkeypatch: pytest.MonkeyPatch, later: Flavour) -> None:
    rig = Rig(monkeypatch, later)
    contexts = [rig.context(), rig.context()]
    assert [context.active_optimization_profile for context in contexts] == [1, 1]


def test_a_profile_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    with pytest.raises(RuntimeError, match=r"Error in set optimization profile async\."):
        rig.context(profile=2)
    assert rig.log.messages == ["Profile index 2 is out of range [0, 2)"]


@pytest.mark.parametrize("shape", [(1, 3), (4, 2), (4,), (4, 3, 1)])
def test_shapes_outside_the_profile_are_refused(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    rig = Rig(monkeypatch, "10")
    context = rig.context()
    assert context.set_input_shape("x", shape) is False
    assert (
        "does not satisfy any optimization profiles. Valid range for profile 1: [4, 3]..[4, 3]" in rig.log.messages[0]
    )
    assert context.set_input_shape("y", (4, 3)) is False
    with pytest.raises(TypeError, match="incompatible function arguments: ndarray"):
        context.set_input_shape("x", np.array([4, 3]))


def test_what_is_missing_is_said_and_nothing_is_enqueued(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    launches = rig.fake.counts["cudaLaunchKernel"]

    def refused() -> str:
        assert context.execute_async_v3(rig.a) is False
        return str(rig.log.messages[-1])

    address = context.get_tensor_address("s")
    assert context.set_tensor_address("s", 0)
    assert "Address is not set for output tensor s." in refused()
    assert context.set_tensor_address("s", address)
    assert not context.set_tensor_address("z", address)
    rig.arena = 0
    rig.give(context)
    assert "1024 bytes of device memory are needed and 1024 given" in refused()
    assert rig.fake.counts["cudaLaunchKernel"] == launches
    assert context.set_optimization_profile_async(0, rig.a)
    assert context.infer_shapes() == ["x"]
    assert "shapes of inputs are not set: x" in refused()


def test_too_little_activation_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "10", memory_bytes=[64, 512])
    context = rig.context()
    assert rig.engine.device_memory_size_v2 == 512
    assert [rig.engine.get_device_memory_size_for_profile_v2(index) for index in (0, 1)] == [64, 512]
    context.set_device_memory(rig.arena, 511)
    assert context.execute_async_v3(rig.a) is False
    assert "512 bytes of device memory are needed and 511 given" in rig.log.messages[0]


def test_tensorrt_8_5_uses_the_memory_of_its_largest_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "8.5", memory_bytes=[64, 2 * ARENA])
    context = rig.context(profile=0, rows=1)
    assert rig.engine.device_memory_size == 2 * ARENA
    assert context.execute_async_v3(rig.a)
    assert rig.fake.cudaStreamSynchronize(rig.a) == (Error.cudaErrorIllegalAddress,)
    assert "activation memory: 2048 bytes" in rig.fake.violations[0]


def test_addresses_have_to_be_aligned(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    context.set_tensor_address("x", context.get_tensor_address("x") + 4)
    rig.arena += 16
    rig.give(context)
    assert ["is not aligned to 256 bytes" in violation for violation in rig.fake.violations] == [True, True]
