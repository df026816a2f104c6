"""The stand-in for TensorRT computes, and refuses what TensorRT refuses."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto

pytest.importorskip("cuda.bindings.runtime")

from helpers.cuda_bench import SCHEDULES, Error, ok
from helpers.tensorrt_rig import ARENA, FLAVOURS, Rig

if TYPE_CHECKING:
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
    context = rig.engine.create_execution_context()
    assert context.get_tensor_shape("y") == (-1, 3)
    assert not context.all_binding_shapes_specified
    del context
    context = rig.context()
    assert context.all_binding_shapes_specified
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


def test_a_stream_that_is_gone_is_refused(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.context()
    ok(rig.fake.cudaStreamDestroy(rig.b))
    assert context.execute_async_v3(rig.b) is False
    with pytest.raises(RuntimeError, match=r"Error in set optimization profile async\."):
        context.set_optimization_profile_async(0, rig.b)
    assert all("cudaErrorInvalidResourceHandle" in message for message in rig.log.messages)
    assert len(rig.log.messages) == 2


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
    third = rig.engine.create_execution_context_without_device_memory()
    assert second.set_optimization_profile_async(1, rig.a)
    assert third.set_optimization_profile_async(0, rig.a)


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


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (4, 2), (4,), (4, 3, 1)])
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


def test_shapes_and_loggers_behave_as_the_bindings_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trt: Any = Rig(monkeypatch, "10").trt
    shape = trt.Dims((4, 3))
    assert (len(shape), shape[-1], shape[:1], str(shape), tuple(shape)) == (2, 3, (4,), "(4, 3)", (4, 3))
    assert shape == [4, 3]
    assert not isinstance(shape, tuple)
    with pytest.raises(TypeError, match="unhashable"):
        hash(shape)
    with pytest.raises(ValueError, match=r"Input length 9\. Max expected length is 8"):
        trt.Dims(range(9))

    class Forgetful(trt.ILogger):  # type: ignore[misc]  # untyped module
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match=r"ILogger\.__init__\(\) must be called when overriding __init__"):
        trt.Runtime(Forgetful())
    logger = trt.Logger(trt.Logger.ERROR)
    logger.log(trt.Logger.WARNING, "quiet")
    logger.log(trt.Logger.ERROR, "loud")
    assert capsys.readouterr().err == "[TRT] [E] loud\n"
