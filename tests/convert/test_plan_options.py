"""What `build_plans` is asked for: graphs that a bundle has, and settings that the library takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers import fake_builder, fake_cuda, fake_tensorrt
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.errors import BundleError, InputError
from milnce_convert.plan import PlanOptions, build_plans, chosen_graphs
from milnce_convert.plan_profiles import PlanSizes, Span
from milnce_convert.plan_settings import BuilderSettings

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.fake_builder import FakeBuilder
    from helpers.fake_cuda import FakeCuda
    from milnce_convert.plan_module import Toolkit


def test_by_default_every_module_is_built_in_fp16_and_the_projection_in_fp32(bundle: Bundle) -> None:
    assert [graph.file for graph in chosen_graphs(bundle, PlanOptions())] == [
        "video-uint8-fp16.onnx",
        "text-fp16.onnx",
        "projection-fp32.onnx",
    ]


def test_the_form_that_is_opened_first_and_the_one_that_decoding_gives_are_built(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", input_forms=("float32", "uint8"), modules=("video",))
    files = [graph.file for graph in chosen_graphs(Bundle.open(tmp_path / "b"), PlanOptions())]
    assert files == ["video-float32-fp16.onnx", "video-uint8-fp16.onnx"]


def test_a_bundle_without_fp16_says_how_to_get_it(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", precisions=("fp32",))
    bundle = Bundle.open(tmp_path / "b")
    with pytest.raises(BundleError) as caught:
        chosen_graphs(bundle, PlanOptions())
    assert str(caught.value) == (
        f"bundle '{tmp_path}/b' has no FP16 graphs, which plans are built from. Export it again with --precision fp16, "
        "cast its graphs (milnce_convert.half.add_half_precision), or build slower FP32 plans: --precision fp32"
    )
    assert [graph.precision for graph in chosen_graphs(bundle, PlanOptions(("projection",)))] == ["fp32"]
    assert len(chosen_graphs(bundle, PlanOptions(precisions=("fp32",)))) == 3


def test_what_is_asked_for_twice_is_built_once_in_the_order_of_the_modules(bundle: Bundle) -> None:
    options = PlanOptions(("text", "video", "text", "video"), ("fp16", "fp32", "fp16"), ("float32", "float32"))
    assert [graph.file for graph in chosen_graphs(bundle, options)] == [
        "video-float32-fp32.onnx",
        "video-float32-fp16.onnx",
        "text-fp32.onnx",
        "text-fp16.onnx",
    ]


def test_settings_with_the_same_names_are_the_same() -> None:
    settings = BuilderSettings(
        compute_capabilities=("12.0", "8.9", "12.0", "8.6"),
        tactic_sources=("JIT_CONVOLUTIONS", "CUDNN", "CUDNN"),
    )
    assert settings.compute_capabilities == ("8.6", "8.9", "12.0")
    assert settings == BuilderSettings(
        compute_capabilities=("8.9", "8.6", "12.0"), tactic_sources=("CUDNN", "JIT_CONVOLUTIONS")
    )


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (PlanOptions(("audio",)), InputError, "module 'audio' given; there are: video, text, projection"),
        (PlanOptions(precisions=("int8",)), InputError, "precision 'int8' given; there are: fp32, fp16"),
        (PlanOptions(input_forms=("nv12",)), BundleError, "has no graph video nv12 fp16; it has: video uint8 fp32"),
    ],
)
def test_what_the_bundle_lacks_is_named(
    options: PlanOptions, error: type[Exception], said: str, bundle: Bundle
) -> None:
    with pytest.raises(error, match=said):
        chosen_graphs(bundle, options)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (BuilderSettings(version_compatible=True), "builds none: every version of it runs its own plans only"),
        (
            BuilderSettings(hardware_compatibility="ampere-plus"),
            "hardware compatibility 'ampere-plus' given; tensorrt_rtx .* has: none; its plans name the GPUs",
        ),
        (BuilderSettings(hardware_compatibility="all"), "hardware compatibility 'all' given; .* has: none$"),
        (BuilderSettings(optimization_level=6), "optimisation level 6 given; levels are 0 to 5"),
        (BuilderSettings(workspace_bytes=1000), "a workspace of 1000 bytes given; 1000000 to 1000000000000 expected"),
        (BuilderSettings(workspace_bytes=2**80), f"a workspace of {2**80} bytes given; 1000000 to 1000000000000 exp"),
        (
            BuilderSettings(compute_capabilities=("9.0", "8.9")),
            r"compute capability 9\.0 given; .* builds for 7\.5, .*, 12\.1\. .* H100 and H200 \(9\.0\), run plans of",
        ),
        (BuilderSettings(compute_capabilities=()), "compute capability none given"),
        (
            BuilderSettings(tactic_sources=("CUDNN",)),
            "tactic source 'CUDNN' given; there are: EDGE_MASK_CONV",
        ),
    ],
)
def test_settings_that_tensorrt_rtx_lacks_are_refused_before_anything_is_made(
    settings: BuilderSettings,
    said: str,
    bundle: Bundle,
    rtx: Toolkit,
) -> None:
    with pytest.raises(InputError, match=said):
        build_plans(bundle, options=PlanOptions(settings=settings), toolkit=rtx)
    assert not (bundle.path / "plans").exists()


@pytest.mark.usefixtures("tensorrt")
def test_tensorrt_builds_for_its_own_gpu_alone(bundle: Bundle) -> None:
    settings = BuilderSettings(compute_capabilities=("8.9",))
    with pytest.raises(InputError, match=r"tensorrt 11\.1\.0\.1 builds for the GPU it runs on\. .*--hardware-compat"):
        build_plans(bundle, options=PlanOptions(settings=settings))


def test_an_old_tensorrt_has_no_effort_level(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
    fake_builder.add(fake_tensorrt.install(monkeypatch, cuda, "tensorrt", flavour="8.5"), "8.5")
    settings = BuilderSettings(optimization_level=3)
    with pytest.raises(InputError, match=r"an optimisation level was given; tensorrt 8\.5\.3\.1 has none: leave"):
        build_plans(bundle, options=PlanOptions(settings=settings))


def test_a_wrong_size_of_a_later_graph_is_refused_before_the_first_is_built(
    bundle: Bundle, tensorrt: tuple[FakeBuilder, FakeCuda]
) -> None:
    sizes = PlanSizes(frames=(Span.fixed(5),))
    with pytest.raises(InputError, match="frames 5 asked for"):
        build_plans(bundle, options=PlanOptions(("text", "video"), sizes=sizes))
    assert tensorrt[0].configs == []
    assert not (bundle.path / "plans").exists()
