"""The stand-in for TensorRT has the names of the real modules, loads the plans it should, and gives memory back."""

from __future__ import annotations

import gc
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("cuda.bindings.runtime")

from helpers import fake_tensorrt
from helpers.fake_cuda import FakeCuda, FakeGpu
from helpers.fake_tensorrt import VERSIONS, make_fake_plan
from helpers.rtx import require_rtx
from helpers.tensorrt_rig import ARENA, FIXED, FLAVOURS, Log, Rig, graph

if TYPE_CHECKING:
    from helpers.fake_tensorrt import Flavour
    from helpers.tensorrt_rig import Name

# What the Python bindings of TensorRT define: python/src/infer/pyCore.cpp of https://github.com/NVIDIA/TensorRT, tag
# 8.5.3, and what tag v10.13.3 and 11.1 (a892d22) have in common; of each class what a runtime may ask for.
_BOTH = {
    "ICudaEngine": (
        "create_engine_inspector create_execution_context get_tensor_dtype get_tensor_format get_tensor_location "
        "get_tensor_mode get_tensor_name get_tensor_profile_shape get_tensor_shape name num_io_tensors num_layers "
        "num_optimization_profiles"
    ),
    "IExecutionContext": (
        "active_optimization_profile all_binding_shapes_specified device_memory engine execute_async_v3 "
        "get_tensor_address get_tensor_shape infer_shapes name set_input_shape set_optimization_profile_async "
        "set_tensor_address"
    ),
    "Runtime": "deserialize_cuda_engine logger max_threads",
    "EngineInspector": "execution_context get_engine_information get_layer_information",
    "Logger": "log min_severity Severity INTERNAL_ERROR ERROR WARNING INFO VERBOSE",
    "IHostMemory": "dtype nbytes",
    "Dims": "MAX_DIMS",
}
_ONLY_8_5 = {"ICudaEngine": "device_memory_size create_execution_context_without_device_memory"}
_ONLY_10 = {
    "ICudaEngine": "device_memory_size_v2 get_device_memory_size_for_profile_v2 create_runtime_config",
    "IExecutionContext": "set_device_memory update_device_memory_size_for_shapes get_runtime_config",
    "Runtime": "engine_host_code_allowed load_runtime",
    "IRuntimeConfig": "get_execution_context_allocation_strategy set_execution_context_allocation_strategy",
}


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param  # type: ignore[no-any-return]  # pytest does not type it


def offered(trt: Any, rig: Rig) -> dict[str, set[str]]:  # noqa: ANN401  a stand-in of an untyped module
    """Return the public names of one object of each class that a runtime meets."""
    objects = {
        "Runtime": rig.runtime,
        "ICudaEngine": rig.engine,
        "IExecutionContext": rig.context(),
        "EngineInspector": rig.engine.create_engine_inspector(),
        "Logger": trt.Logger(),
        "Dims": trt.Dims(()),
    }
    if rig.flavour != "8.5":
        objects["IRuntimeConfig"] = rig.engine.create_runtime_config()
    if rig.flavour == "rtx":
        objects["IRuntimeCache"] = objects["IRuntimeConfig"].create_runtime_cache()
        objects["IHostMemory"] = objects["IRuntimeCache"].serialize()
    return {name: {one for one in dir(value) if not one.startswith("_")} for name, value in objects.items()}


def test_tensorrt_rtx_has_every_name_of_the_stand_in_and_the_same_enums(monkeypatch: pytest.MonkeyPatch) -> None:
    real = require_rtx()
    rig = Rig(monkeypatch, "rtx")
    trt = rig.trt
    assert trt is not real
    assert import_module("tensorrt_rtx") is trt
    assert find_spec("tensorrt_rtx") is not None
    for name, names in offered(trt, rig).items():
        assert names <= set(dir(getattr(real, name))), name
    module = {name: value for name, value in vars(trt).items() if not name.startswith("_")}
    assert set(module) <= set(dir(real))
    enums = {name: value for name, value in module.items() if hasattr(value, "__members__")}
    assert {"DataType", "TensorIOMode", "EngineValidity", "CudaGraphStrategy"} <= set(enums)
    for name, enum in [*enums.items(), ("Severity", trt.ILogger.Severity)]:
        real_enum = real.ILogger.Severity if name == "Severity" else getattr(real, name)
        values = {member: int(value) for member, value in real_enum.__members__.items()}
        assert {member: int(value) for member, value in enum.__members__.items()}.items() <= values.items(), name


@pytest.mark.parametrize(("flavour", "more", "never"), [("8.5", _ONLY_8_5, _ONLY_10), ("10", _ONLY_10, _ONLY_8_5)])
def test_tensorrt_has_every_name_of_the_stand_in_in_its_version(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, more: dict[str, str], never: dict[str, str]
) -> None:
    rig = Rig(monkeypatch, flavour)
    for name, names in offered(rig.trt, rig).items():
        assert names <= set(f"{_BOTH.get(name, '')} {more.get(name, '')}".split()), name
        assert not names & set(never.get(name, "").split()), name
    for name, values in more.items():
        assert hasattr(rig.trt, name)
        assert set(values.split()) & offered(rig.trt, rig)[name], name
    for missing in ("CudaGraphStrategy", "EngineValidity", "IRuntimeCache"):
        assert not hasattr(rig.trt, missing)
    assert hasattr(rig.trt, "ExecutionContextAllocationStrategy") == (flavour != "8.5")


def test_device_memory_of_engines_and_contexts_goes_with_the_last_of_them(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour
) -> None:
    rig = Rig(monkeypatch, flavour)
    context = rig.engine.create_execution_context()
    assert rig.fake.leaks()["device"] == 3  # weights, the rig's arena, the context's own
    if flavour != "8.5":
        context.set_device_memory(rig.arena, ARENA)
        assert "Context not created with user managed device memory" in rig.log.messages[0]
    rig.engine = None
    gc.collect()
    assert rig.fake.leaks()["device"] == 3
    del context
    gc.collect()
    assert rig.fake.leaks()["device"] == 1


def test_exhausted_memory_gives_no_context_and_no_engine(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    rig.fake.fail("cudaMalloc", times=2)
    assert rig.engine.create_execution_context() is None
    assert rig.runtime.deserialize_cuda_engine(make_fake_plan(graph(), FIXED, version=VERSIONS[flavour])) is None
    assert all("cudaErrorMemoryAllocation" in message for message in rig.log.messages)


def test_damaged_plans_are_refused(monkeypatch: pytest.MonkeyPatch, flavour: Flavour) -> None:
    rig = Rig(monkeypatch, flavour)
    plan = make_fake_plan(graph(), FIXED, version=VERSIONS[flavour])
    cuts = [plan[: len(plan) * place // 16] for place in range(16)]
    flips = [bytearray(plan) for _ in range(16)]
    for place, flipped in enumerate(flips):
        flipped[len(plan) * place // 16] ^= 1
    for damaged in [*cuts, *flips]:
        rig.log.messages.clear()
        assert rig.runtime.deserialize_cuda_engine(damaged) is None
        assert len(rig.log.messages) == 1
    with pytest.raises(TypeError):
        rig.runtime.deserialize_cuda_engine("a path")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tensorrt", {"version": "10.3.0"}, "expecting library version 11.1.0.1 got 10.3.0, please rebuild"),
        ("tensorrt", {"compute_capabilities": ["8.6"]}, "expecting compute 9.0 got compute 8.6, please rebuild"),
        ("tensorrt_lean", {}, "Unexpected call to stub loadRunner for ReformatRunner."),
        ("tensorrt_lean", {"version_compatible": True}, "engine_host_code_allowed is False"),
    ],
)
def test_plans_of_another_version_gpu_or_kind_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: Name, options: dict[str, Any], message: str
) -> None:
    fake = FakeCuda()
    trt: Any = fake_tensorrt.install(monkeypatch, fake, name)
    log = Log(trt)
    loader = trt.Runtime(log.logger)
    assert loader.deserialize_cuda_engine(make_fake_plan(graph(), FIXED, **options)) is None
    assert message in log.messages[0]


def test_the_lean_runtime_loads_compatible_plans_once_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    trt: Any = fake_tensorrt.install(monkeypatch, fake, "tensorrt_lean")
    loader = trt.Runtime(Log(trt).logger)
    loader.engine_host_code_allowed = True
    plan = make_fake_plan(graph(), FIXED, version="10.3.0", version_compatible=True)
    assert loader.deserialize_cuda_engine(plan) is not None


def test_rtx_says_whether_a_plan_can_run_from_its_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(gpus=[FakeGpu(compute_capability=(8, 9))])
    trt: Any = fake_tensorrt.install(monkeypatch, fake, "tensorrt_rtx")
    loader = trt.Runtime(Log(trt).logger)

    def validity(**options: Any) -> tuple[Any, int]:  # noqa: ANN401
        header = make_fake_plan(graph(), FIXED, **options)[: loader.engine_header_size]
        return loader.get_engine_validity(header)  # type: ignore[no-any-return]  # untyped module

    right = VERSIONS["rtx"]
    assert validity(version=right, compute_capabilities=["8.9", "12.0"]) == (trt.EngineValidity.VALID, 0)
    assert validity(version=right, compute_capabilities=["12.0"]) == (trt.EngineValidity.INVALID, 2)
    assert validity(version="1.6.0") == (trt.EngineValidity.INVALID, 1)
    assert validity(version="1.6.0", compute_capabilities=["12.0"]) == (trt.EngineValidity.INVALID, 3)
    assert loader.get_engine_validity(b"x" * 64) == (trt.EngineValidity.INVALID, 32)
    fake.driver = "absent"
    assert validity(version=right) == (trt.EngineValidity.INVALID, 0)


def test_a_runtime_cache_is_taken_back_on_the_same_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(gpu: FakeGpu, blob: bytes | None) -> tuple[bool | None, bytes]:
        fake = FakeCuda(gpus=[gpu])
        trt: Any = fake_tensorrt.install(monkeypatch, fake, "tensorrt_rtx")
        engine = trt.Runtime(Log(trt).logger).deserialize_cuda_engine(
            make_fake_plan(graph(), FIXED, version=VERSIONS["rtx"])
        )
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        cache = config.create_runtime_cache()
        taken = None if blob is None else cache.deserialize(blob)
        assert config.set_runtime_cache(cache)
        empty = bytes(config.get_runtime_cache().serialize())
        assert engine.create_execution_context(config) is not None
        full = bytes(config.get_runtime_cache().serialize())
        assert (empty == full) == bool(taken)
        assert cache.reset()
        assert len(bytes(cache.serialize())) < len(full)
        return taken, full

    first = kept(FakeGpu("A"), None)[1]
    assert kept(FakeGpu("A"), first) == (True, first)
    assert kept(FakeGpu("B"), first)[0] is False
    assert kept(FakeGpu("A"), b"damaged")[0] is False
