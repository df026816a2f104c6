"""One graph into one plan with stand-ins for TensorRT 8.5, 10 and 11: what the builder is told, and what it made."""

from __future__ import annotations

import enum
import gc
import sys
import threading
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from helpers import fake_builder
from helpers.fake_builder_network import HardwareCompatibilityLevel, ProfilingVerbosity
from helpers.plan_bench import GENERATIONS, VIDEO
from milnce.errors import MissingDependencyError, PlanBuildError
from milnce_convert.plan_engine import build_engine
from milnce_convert.plan_module import choose_toolkit
from milnce_convert.plan_profiles import PlanSizes, make_profiles
from milnce_convert.plan_settings import BuilderSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.plan_bench import PlanBench

    Make = Callable[..., PlanBench]


# What the builder is told.


@pytest.mark.parametrize(("generation", "flags"), [("10", 0b11), ("11", 0b1)])
def test_strong_typing_is_asked_for_and_no_precision_flag(generation: str, flags: int, make: Make) -> None:
    bench = make(generation)
    built = bench.build()
    (network,), (config,) = bench.fake.networks, bench.fake.configs
    assert network.flags == flags
    assert config.flags == set()
    assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
    assert config.profiles == [{"video": ((n, 4, 32, 32, 3),) * 3} for n in (1, 4)]
    assert {layer.precision for layer in network.layers} == {None}
    assert [inspection.source for inspection in built.inspections] == ["network", "engine"]
    for inspection in built.inspections:
        assert inspection.to_json()["layers"] == {
            "convolution": {"float16": 1},
            "matrix multiplication": {"float32": 2},
        }
    assert built.build_s > 0


def test_8_5_gets_opset_17_and_the_dtypes_of_the_graph_layer_by_layer(make: Make) -> None:
    bench = make("8.5")
    built = bench.build()
    (network,), (config,) = bench.fake.networks, bench.fake.configs
    assert [entry.version for entry in onnx.ModelProto.FromString(network.onnx).opset_import] == [17]
    assert network.flags == 1
    assert config.flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    half, single = bench.fake.trt.DataType.HALF, bench.fake.trt.DataType.FLOAT
    told = {layer.outputs[0].name: (layer.precision, layer.output_types.get(0)) for layer in network.layers}
    assert told["stem"] == (half, half)
    assert told["stem_relu"] == (half, half)
    assert told["mean"] == (single, single)
    assert told["mixed_5c"] == told["video_embedding"] == (single, single)
    assert told["float"] == (None, single)  # from uint8
    assert told["pixels_cast"] == (None, half)
    assert told["stem_relu_cast"] == (None, single)
    # The layers that the parser adds for a Gemm compute in what they are given; its constants compute nothing.
    unnamed = {name: value for name, value in told.items() if name.startswith("(Unnamed")}
    assert list(unnamed.values()) == [(single, single)] * 2
    constants = [layer for layer in network.layers if layer.type.name == "CONSTANT"]
    assert [(layer.precision, layer.output_types) for layer in constants] == [(None, {})] * 2
    assert [inspection.source for inspection in built.inspections] == ["engine"]
    assert built.inspections[0].to_json()["layers"]["convolution"] == {"float16": 1}


def test_8_5_names_the_package_that_lowering_needs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make("8.5")
    monkeypatch.delitem(sys.modules, "milnce_convert.lowering", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt 8.5.3.1 reads graphs of opset 17 .* pip install onnx"):
        bench.build()


def test_8_5_builds_fp32_without_the_flag_and_ids_in_int32(make: Make) -> None:
    bench = make("8.5")
    bench.build(precision="fp32")
    assert bench.fake.configs[0].flags == set()
    assert {layer.precision for layer in bench.fake.networks[0].layers} == {None}
    text = bench.build(module="text")
    assert text.inspections[0].tensors == {"tokens": "int32", "text_embedding": "float32"}


@pytest.mark.parametrize("generation", ["10", "11"])
def test_ids_stay_int64_where_there_is_int64(generation: str, make: Make) -> None:
    built = make(generation).build(module="text")
    assert [inspection.tensors["tokens"] for inspection in built.inspections] == ["int64", "int64"]


def test_settings_reach_the_builder(make: Make) -> None:
    bench = make("10")
    bench.build(
        settings=BuilderSettings(
            workspace_bytes=10**9,
            optimization_level=5,
            hardware_compatibility="same-compute-capability",
            version_compatible=True,
            tf32=True,
            tactic_sources=("CUDNN", "JIT_CONVOLUTIONS", "CUDNN"),
        )
    )
    (config,) = bench.fake.configs
    assert config.pools == {"WORKSPACE": 10**9}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level is HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    # The lean runtime stays in the plan: without it no other version could run it.
    assert config.flags == {"TF32", "VERSION_COMPATIBLE"}
    assert config.tactics == 0b10100


def test_settings_left_out_leave_the_library_its_own(make: Make) -> None:
    bench = make("10")
    bench.build()
    (config,) = bench.fake.configs
    assert (config.pools, config.tactics, config.builder_optimization_level) == ({}, None, 3)
    assert config.hardware_compatibility_level is HardwareCompatibilityLevel.NONE


def test_a_plan_promises_to_take_no_memory_of_its_own_where_it_can(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make("11")

    class BuilderFlag(enum.IntEnum):
        TF32 = 0
        REQUIRE_USER_ALLOCATION = 1

    monkeypatch.setattr(bench.fake.trt, "BuilderFlag", BuilderFlag)
    bench.toolkit = choose_toolkit()
    bench.build()
    assert bench.fake.configs[0].flags == {"REQUIRE_USER_ALLOCATION"}


def test_the_build_runs_on_the_chosen_gpu(make: Make) -> None:
    bench = make("11", device=1)
    seen: list[tuple[int, str]] = []
    bench.fake.before_build = lambda _: seen.append((bench.cuda.device, threading.current_thread().name))
    bench.build()
    assert seen == [(1, "milnce-build")]


def test_the_weights_of_the_network_live_while_it_is_built(make: Make) -> None:
    bench = make()
    alive: list[bool] = []

    def look(_: object) -> None:
        gc.collect()
        alive.append(bench.fake.parser is not None and bench.fake.parser() is not None)

    bench.fake.before_build = look
    bench.build()
    assert alive == [True]


# What was built is not believed.


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_plan_that_says_fp16_and_holds_fp32_convolutions_is_refused(generation: str, make: Make) -> None:
    bench = make(generation)
    bench.fake.ignores_precision = True
    with pytest.raises(PlanBuildError, match=rf"^the engine built from {VIDEO[:16]}.* does not compute in float16: "):
        bench.build()


def test_an_engine_that_does_not_describe_itself_is_refused(make: Make) -> None:
    bench = make()
    bench.fake.describes = "unknown"
    with pytest.raises(PlanBuildError, match="description of the engine cannot be read"):
        bench.build()


def test_without_strong_typing_an_engine_that_shows_no_layers_is_refused(make: Make) -> None:
    bench = make("8.5")
    bench.fake.describes = '{"Layers": []}'
    with pytest.raises(PlanBuildError, match=r"^the precision of the engine built from .* could not be verified"):
        bench.build()
    # There is nothing to take FP32 for, and nothing but FP32 was allowed.
    bench.build(precision="fp32")
    bench.build(module="text")


@pytest.mark.parametrize("generation", ["10", "11"])
def test_with_strong_typing_the_network_has_proved_the_precision(generation: str, make: Make) -> None:
    bench = make(generation)
    bench.fake.describes = '{"Layers": []}'
    assert [len(inspection.layers) for inspection in bench.build().inspections] == [3, 0]


def test_an_engine_with_too_few_profiles_is_refused(make: Make) -> None:
    bench = make()
    bench.fake.before_build = lambda config: config.profiles.pop()
    with pytest.raises(PlanBuildError, match=r"^tensorrt 11\.1\.0\.106 built 1 of 2 profiles for video uint8 fp16"):
        bench.build()


def test_a_plan_that_does_not_load_again_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()

    def refuse(runtime: Any, data: bytes) -> None:  # noqa: ANN401, ARG001 - the binding's
        runtime.logger.log(bench.fake.trt.ILogger.ERROR, "Magic tag does not match")

    monkeypatch.setattr(bench.fake.trt.Runtime, "deserialize_cuda_engine", refuse)
    with pytest.raises(PlanBuildError, match=r"and then cannot load, video uint8 .*\n  - Magic tag does not match$"):
        bench.build()


def test_a_plan_without_weights_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_builder, "make_fake_plan", lambda *_, **__: b"stripped")
    with pytest.raises(PlanBuildError, match=r"has 8 bytes and the graph \d+, so its weights are not in it"):
        make().build()


def test_a_version_compatible_plan_may_bring_its_runtime_when_it_is_inspected(make: Make) -> None:
    built = make("11").build(settings=BuilderSettings(version_compatible=True))
    assert len(built.inspections) == 2


def test_the_network_is_checked_before_minutes_of_building(make: Make) -> None:
    bench = make()
    graph = bench.bundle.graph("video", precision="fp16")
    bench.fake.before_build = lambda _: pytest.fail("it was built")
    profiles = make_profiles(graph, bench.bundle.manifest, PlanSizes())
    with pytest.raises(PlanBuildError, match=r"^the network built from .* does not compute in float16"):
        build_engine(bench.toolkit, graph, bench.bundle.read(bench.bundle.graph("video")), profiles, BuilderSettings())
