"""A bundle into plans, for real: the builder of TensorRT-RTX needs no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers import fake_cuda
from helpers.fake_cuda import FakeGpu
from milnce.bundle import Bundle
from milnce.bundle_writer import BundleWriter
from milnce.errors import BundleError, PlanBuildError
from milnce.plans import read_plan, sidecars
from milnce_convert.plan import PlanOptions, build_plans
from milnce_convert.plan_module import choose_toolkit
from milnce_convert.plan_profiles import PlanSizes, Span
from milnce_convert.plan_settings import BuilderSettings

if TYPE_CHECKING:
    from pathlib import Path

    from milnce_convert.plan_module import Toolkit

ONE = PlanSizes(batch=(Span.fixed(1),), text_batch=(Span.fixed(1),))
AMPERE_AND_NEWER = ("8.0", "8.6", "8.9", "12.0", "12.1")


def test_both_towers_in_every_form_and_precision_are_built_and_recorded(bundle: Bundle, rtx: Toolkit) -> None:
    options = PlanOptions(precisions=("fp32", "fp16"), input_forms=("uint8", "float32"), sizes=ONE)
    built = build_plans(bundle, options=options, toolkit=rtx)
    kinds = [(item.plan.module, item.plan.input_form, item.plan.precision) for item in built]
    assert kinds == [
        ("video", "uint8", "fp32"),
        ("video", "float32", "fp32"),
        ("video", "uint8", "fp16"),
        ("video", "float32", "fp16"),
        ("text", "tokens", "fp32"),
        ("text", "tokens", "fp16"),
        ("projection", "mixed_5c", "fp32"),
    ]
    folder = bundle.path / "plans"
    assert sidecars(folder) == (sorted((item.plan for item in built), key=lambda plan: plan.file), [])
    for item in built:
        plan, graph = (
            item.plan,
            bundle.graph(item.plan.module, precision=item.plan.precision, input_form=item.plan.input_form),
        )
        assert not item.kept
        assert plan.onnx_sha256 == graph.sha256
        assert (plan.library, plan.library_version) == ("tensorrt_rtx", rtx.trt.__version__)
        assert (plan.compute_capabilities, plan.gpu, plan.driver) == (AMPERE_AND_NEWER, None, None)
        assert read_plan(folder, plan)[:4] == b"vtrt"
        assert plan.build_s > 0
        (inspected,) = plan.options["inspected"]
        dtypes = {spec.name: spec.dtype for spec in (*graph.inputs, *graph.outputs)}
        assert (inspected["source"], inspected["tensors"]) == ("network", dtypes)
        assert inspected["shapes"] == {
            spec.name: [axis.size or -1 for axis in spec.shape] for spec in (*graph.inputs, *graph.outputs)
        }
        layers = inspected["layers"]
        if plan.module == "video":
            assert layers["convolution"] == {"float32" if plan.precision == "fp32" else "float16": 1}
        if plan.precision == "fp16" and plan.module == "text":
            assert layers["matrix multiplication"] == {"float16": 1, "float32": 1}


def test_ranges_of_every_axis_are_built(bundle: Bundle, rtx: Toolkit) -> None:
    sizes = PlanSizes(
        batch=(Span(1, 4),),
        frames=(Span(4, 8),),
        pictures=((Span(16, 64), Span(32, 32)),),
        text_batch=(Span(1, 8),),
        words=(Span(1, 20),),
    )
    video, text = build_plans(bundle, options=PlanOptions(("video", "text"), sizes=sizes), toolkit=rtx)
    assert video.plan.profiles[0].shapes["video"] == ((1, 4, 16, 32, 3), (4, 4, 32, 32, 3), (4, 8, 64, 32, 3))
    assert text.plan.profiles[0].shapes["tokens"] == ((1, 1), (8, 16), (8, 20))
    assert "-1to4x4to8x16to64x32x3.plan" in video.plan.file


def test_chosen_gpus_are_built_for_and_recorded(bundle: Bundle, rtx: Toolkit) -> None:
    settings = BuilderSettings(compute_capabilities=("8.9", "12.0"), optimization_level=0)
    options = PlanOptions(("text",), sizes=ONE, settings=settings)
    (built,) = build_plans(bundle, options=options, toolkit=rtx)
    assert built.plan.compute_capabilities == ("8.9", "12.0")
    assert built.plan.file.startswith(f"tensorrt_rtx-{rtx.trt.__version__}-sm89_120-fp16-text-tokens-1x16")
    assert built.plan.options["settings"] == {
        "workspace_bytes": None,
        "optimization_level": 0,
        "hardware_compatibility": "none",
        "version_compatible": False,
        "tf32": False,
        "compute_capabilities": ["8.9", "12.0"],
        "tactic_sources": None,
    }


def write_bundle_of(folder: Path, model: onnx.ModelProto) -> Bundle:
    """Write a bundle whose FP16 video graph is `model`, as no exporter of ours would make it."""
    good = Bundle.open(folder / "tiny").graph("video", precision="fp16")
    with BundleWriter(folder / "bad") as writer:
        writer.add_graph(
            module="video",
            input_form="uint8",
            precision="fp16",
            model=model.SerializeToString(),
            opset=20,
            inputs=good.inputs,
            outputs=good.outputs,
            parity={},
        )
        writer.add_vocabulary(["a"], max_words=16)
        writer.commit(
            name="bad", model_digest="0" * 64, sampling={"preset": "milnce-native", "size": 32, "frames": 4}, made={}
        )
    return Bundle.open(folder / "bad")


def bad_graph(kind: str) -> onnx.ModelProto:
    """Return a graph that a strongly typed parser refuses: uint8 transposed, or one FP32 scalar among halves."""
    nodes = {
        "transpose": [
            helper.make_node("Transpose", ["video"], ["moved"], name="permute", perm=[0, 4, 1, 2, 3]),
            helper.make_node("Cast", ["moved"], ["mixed"], to=TensorProto.FLOAT16),
        ],
        "scalar": [
            helper.make_node("Cast", ["video"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Mul", ["half", "scalar"], ["mixed"], name="scale"),
        ],
    }[kind]
    nodes += [
        helper.make_node("GlobalAveragePool", ["mixed"], ["mean"]),
        helper.make_node("Cast", ["mean"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["single"], ["mixed_5c"]),
        helper.make_node("Identity", ["mixed_5c"], ["video_embedding"]),
    ]
    video = helper.make_tensor_value_info("video", TensorProto.UINT8, ["n", "t", "h", "w", 3])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c"]) for name in ("video_embedding", "mixed_5c")
    ]
    graph = helper.make_graph(
        nodes, "bad", [video], outputs, [numpy_helper.from_array(np.array(0.5, np.float32), "scalar")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("transpose", "node permute (Transpose): "),
        ("scalar", "node scale (Mul): "),
    ],
)
@pytest.mark.usefixtures("bundle")
def test_a_bad_graph_is_refused_by_node_and_nothing_is_left(kind: str, said: str, tmp_path: Path, rtx: Toolkit) -> None:
    bad = write_bundle_of(tmp_path, bad_graph(kind))
    with pytest.raises(PlanBuildError) as caught:
        build_plans(bad, toolkit=rtx)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{rtx.library} cannot parse video uint8 fp16 (video-uint8-fp16.onnx):"
    assert lines[1].startswith(f"  - {said}")
    assert {"transpose": "type UInt8", "scalar": "of types Half and Float"}[kind] in lines[1]
    assert lines[2:] == ["TensorRT takes what `milnce export` writes: export the bundle again with this release"]
    assert "cudaError" not in str(caught.value)  # what it says for want of a driver is not what is wrong
    assert not (bad.path / "plans").exists()


def test_a_graph_of_another_precision_than_the_manifest_says_is_refused(
    bundle: Bundle,
    tmp_path: Path,
    rtx: Toolkit,
) -> None:
    wrong = write_bundle_of(tmp_path, onnx.ModelProto.FromString(bundle.read(bundle.graph("video"))))
    with pytest.raises(PlanBuildError, match=r"not compute in float16: of 3 layers it has 1 convolution in float32"):
        build_plans(wrong, toolkit=rtx)
    assert not (wrong.path / "plans").exists()


@pytest.mark.usefixtures("bundle")
def test_bytes_that_are_no_graph_are_refused(tmp_path: Path, rtx: Toolkit) -> None:
    empty = write_bundle_of(tmp_path, onnx.ModelProto(ir_version=10))
    with pytest.raises(PlanBuildError, match="has the inputs and outputs none; video uint8, video_embedding float32"):
        build_plans(empty, toolkit=rtx)


def test_turing_is_refused_in_the_builders_words(bundle: Bundle, rtx: Toolkit) -> None:
    options = PlanOptions(("video",), ("fp32",), sizes=ONE, settings=BuilderSettings(compute_capabilities=("7.5",)))
    with pytest.raises(PlanBuildError, match=r"cannot build video .*\n  - .*FP32 3D convolution is not supported"):
        build_plans(bundle, options=options, toolkit=rtx)


def test_external_data_is_refused_before_a_parser_could_follow_it(bundle: Bundle, tmp_path: Path, rtx: Toolkit) -> None:
    model = onnx.ModelProto.FromString(bundle.read(bundle.graph("video", precision="fp16")))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd")
    with pytest.raises(BundleError, match=r"keeps a tensor in another file \(ONNX external data\), which is refused"):
        build_plans(write_bundle_of(tmp_path, model), toolkit=rtx)


def test_on_a_gpu_that_cannot_run_it_a_plan_is_not_loaded(
    bundle: Bundle, rtx: Toolkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cuda.install(monkeypatch, gpus=[FakeGpu(name="NVIDIA H200")])
    toolkit = choose_toolkit("tensorrt_rtx")
    assert toolkit.gpu is not None
    assert rtx.gpu is None
    (built,) = build_plans(bundle, options=PlanOptions(("text",), sizes=ONE), toolkit=toolkit)
    assert [inspected["source"] for inspected in built.plan.options["inspected"]] == ["network"]
    assert built.plan.gpu == "NVIDIA H200"


def test_progress_names_each_graph(bundle: Bundle, rtx: Toolkit) -> None:
    seen: dict[str, list[float | None]] = {}
    options = PlanOptions(("text", "projection"), sizes=ONE)

    def note(what: str, done: float | None) -> None:
        seen.setdefault(what, []).append(done)

    build_plans(bundle, options=options, toolkit=rtx, progress=note)
    assert list(seen) == ["text tokens fp16 (text-fp16.onnx)", "projection mixed_5c fp32 (projection-fp32.onnx)"]
    for numbers in seen.values():
        assert numbers[0] == 0.0
        assert numbers[-1] == 1.0
        assert numbers == sorted(numbers, key=lambda number: number or 0.0)
