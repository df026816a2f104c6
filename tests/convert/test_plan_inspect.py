"""What a network or an engine says of its precision, in the words of every TensorRT, and what is refused for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from milnce.errors import PlanBuildError
from milnce.manifest import GraphFile
from milnce.specs import Dimension, TensorSpec
from milnce_convert.plan_inspect import (
    CONVOLUTION,
    MULTIPLICATION,
    Inspection,
    Layer,
    check,
    check_size,
    engine_layers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

# The tensor of a layer, as each generation describes it.
HALF = {
    "8.5": {"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"},
    "10": {"Format/Datatype": "Half"},
    "11": {"Format": "Channel major half format (kDHWC8)", "DataType": "Half"},
}
FLOAT = {
    "8.5": {"Format/Datatype": "Row major linear FP32"},
    "10": {"Format/Datatype": "Float"},
    "11": {"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Float"},
}
GENERATIONS = tuple(HALF)

TENSORS = {"video": "uint8", "video_embedding": "float32"}
SHAPES = {"video": (-1, 3), "video_embedding": (-1, 512)}
GRAPH = GraphFile(
    "video",
    "uint8",
    "fp16",
    "v.onnx",
    "0" * 64,
    1000,
    20,
    (TensorSpec("video", "uint8", (Dimension("batch", 1, None), Dimension.fixed(3))),),
    (TensorSpec("video_embedding", "float32", (Dimension("batch", 1, 64), Dimension.fixed(512))),),
)


def document(layers: Sequence[object], **others: object) -> str:
    return json.dumps({"Layers": layers, **others})


def convolution(dtype: dict[str, str], shape: Sequence[int] = (8, 64, 16, 56, 56), **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    tensor = {"Name": "in", "Location": "Device", "Dimensions": list(shape), **dtype}
    return {
        "Name": "node_Conv_6 + node_Relu_5",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor],
        "Outputs": [{**tensor, "Name": "out"}],
        "ParameterType": "Convolution",
        "Kernel": [1, 3, 3],
        "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32",
        **fields,
    }


def inspection(*layers: Layer, source: str = "engine") -> Inspection:
    return Inspection(source, TENSORS, SHAPES, layers)


def layer(dtype: str | None, *, kind: str = CONVOLUTION, on_maps: bool | None = True, name: str = "c") -> Layer:
    return Layer(name, kind, dtype, on_maps)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_convolutions_are_read_in_the_words_of_each_version(generation: str) -> None:
    reformat = {
        "Name": "Reformatting CopyNode",
        "LayerType": "Reformat",
        "Inputs": [{"Name": "x", **FLOAT[generation]}],
    }
    gate = convolution(FLOAT[generation], (8, 64, 16, 1, 1), Name="node_Conv_8")
    matrix = {"Name": "fc", "LayerType": "gemm", "Inputs": [{"Name": "x", "Dimensions": [8, 1024], **HALF[generation]}]}
    text = document([reformat, convolution(HALF[generation]), gate, matrix], Bindings=["video", "video_embedding"])
    assert engine_layers(text) == [
        Layer("node_Conv_6 + node_Relu_5", CONVOLUTION, "float16", on_maps=True),
        Layer("node_Conv_8", CONVOLUTION, "float32", on_maps=False),
        Layer("fc", MULTIPLICATION, "float16", on_maps=False),
    ]


@pytest.mark.parametrize(
    ("said", "dtype"),
    [
        ("Row major linear FP32", "float32"),
        ("Row major linear FP16 format", "float16"),
        ("Two wide channel vectorized row major FP16 format", "float16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear INT8 format", "int8"),
        ("Row major linear UInt8 format", "uint8"),
        ("Float", "float32"),
        ("Half", "float16"),
        ("BFloat16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("Int64", "int64"),
        ("Int32", "int32"),
        ("Bool", "bool"),
        ("FP8", None),
        ("Float8", None),
        ("N/A due to dynamic shapes", None),
        ("", None),
    ],
)
def test_dtypes_are_read_from_words(said: str, dtype: str | None) -> None:
    (found,) = engine_layers(document([convolution({"Format/Datatype": said})]))
    assert found.dtype == dtype


def test_version_11_says_the_dtype_beside_the_format_and_the_dtype_counts() -> None:
    tensor = {"Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Half"}
    assert engine_layers(document([convolution(tensor)]))[0].dtype == "float16"


@pytest.mark.parametrize(
    ("shape", "on_maps"),
    [
        ([8, 64, 16, 56, 56], True),
        ([1, 64, 1, 7, 7], True),
        ([8, 64, -1, -1, -1], True),
        ([8, 64, 16, 1, 1], False),
        ([1, 64, 16, 1, 1], False),
        ([8, 16, 1, 1, 64], False),  # the axes of a gate, permuted
        ([8, 1024], False),
        ([], None),
    ],
)
def test_gates_are_told_from_convolutions_over_pictures(shape: list[int], on_maps: bool | None) -> None:
    (found,) = engine_layers(document([convolution(HALF["10"], shape)]))
    assert found.on_maps is on_maps


def test_layers_that_say_nothing_are_passed_over_and_prove_nothing() -> None:
    entries = ["node_Conv_6 + node_Relu_5", {"Name": "x"}, convolution(HALF["10"], Inputs=[]), {"LayerType": None}]
    assert engine_layers(document(entries)) == []
    fused = {"Name": "{ForeignNode[video_cast...node_linear_37_6]}", "LayerType": "Myelin", "Inputs": [], "Outputs": []}
    assert engine_layers(document([fused])) == []
    with pytest.raises(PlanBuildError, match="could not be verified: it shows 0 convolutions, and none that is known"):
        check(inspection(*engine_layers(document([*entries, fused]))), GRAPH, int64=True, proves=True)


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "{}", '{"Layers": 5}', '{"Layers": [{"Inputs": [5], "LayerType": "conv"}]}']
)
def test_a_description_that_cannot_be_read_is_no_proof_of_precision(text: str) -> None:
    with pytest.raises(PlanBuildError, match=r"description of the engine cannot be read \(.*precision is not known"):
        engine_layers(text)


def test_an_fp16_plan_may_keep_its_gates_and_projections_in_fp32() -> None:
    gate, fc = layer("float32", on_maps=False), layer("float32", kind=MULTIPLICATION, on_maps=False)
    check(inspection(layer("float16"), gate, fc), GRAPH, int64=True, proves=True)
    text = replace(GRAPH, module="text", input_form="tokens")
    check(inspection(layer("float16", kind=MULTIPLICATION, on_maps=False), fc), text, int64=True, proves=True)


@pytest.mark.parametrize("source", ["network", "engine"])
def test_an_fp16_plan_with_fp32_convolutions_is_refused(source: str) -> None:
    wrong = [layer("float32", name=f"conv_{index}") for index in range(4)]
    with pytest.raises(PlanBuildError) as caught:
        check(inspection(layer("float16"), *wrong, layer(None), source=source), GRAPH, int64=True, proves=True)
    assert str(caught.value) == (
        f"the {source} built from video uint8 fp16 (v.onnx) does not compute in float16: of 5 layers it has "
        "4 convolutions in float32 (conv_0, conv_1, conv_2, ...). Nothing was kept; export the bundle again, or ask "
        "for the precision it has"
    )


def test_an_fp16_plan_without_a_layer_in_fp16_is_refused() -> None:
    only = layer("float32", kind=MULTIPLICATION, on_maps=False)
    with pytest.raises(PlanBuildError, match=r"computes nothing in float16: it has 1 layer in float32"):
        check(inspection(only), GRAPH, int64=True, proves=True)


@pytest.mark.parametrize("on_maps", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_fp32_plan_is_fp32_in_every_layer(dtype: str, on_maps: bool) -> None:
    graph = replace(GRAPH, precision="fp32")
    check(inspection(layer("float32"), layer("float32", on_maps=False)), graph, int64=True, proves=True)
    with pytest.raises(
        PlanBuildError, match=f"does not compute in float32: of 2 layers it has 1 convolution in {dtype}"
    ):
        check(inspection(layer("float32"), layer(dtype, on_maps=on_maps)), graph, int64=True, proves=True)


@pytest.mark.parametrize("source", ["network", "engine"])
@pytest.mark.parametrize(
    ("layers", "shown"),
    [
        ([], "0 convolutions"),
        ([layer(None)], "1 convolution"),
        ([layer(None), layer("float16", on_maps=False)], "2 convolutions"),
        ([layer("float16", on_maps=None)], "1 convolution"),
        ([layer("float16", kind=MULTIPLICATION, on_maps=False)], "0 convolutions"),
    ],
)
def test_an_fp16_video_tower_that_shows_no_fp16_convolution_is_not_verified(
    layers: list[Layer], shown: str, source: str
) -> None:
    with pytest.raises(PlanBuildError) as caught:
        check(inspection(*layers, source=source), GRAPH, int64=True, proves=True)
    assert str(caught.value) == (
        f"the precision of the {source} built from video uint8 fp16 (v.onnx) could not be verified: it shows {shown}, "
        "and none that is known to run over pictures in float16. Nothing was kept; report this with the version of "
        "TensorRT, or build without FP16: --precision fp32"
    )
    # Where the network has proved it, TensorRT-RTX shows an engine as one layer.
    check(inspection(*layers, source=source), GRAPH, int64=True, proves=False)
    check(inspection(*layers, source=source), replace(GRAPH, module="text"), int64=True, proves=True)


def test_fp32_convolutions_of_unknown_sizes_are_excused_where_the_network_proved_the_precision() -> None:
    entries = [convolution(HALF["8.5"]), convolution(FLOAT["8.5"], ())]
    found = inspection(*engine_layers(document(entries)))
    check(found, GRAPH, int64=True, proves=False)
    with pytest.raises(PlanBuildError, match="not compute in float16: of 2 layers it has 1 convolution in float32"):
        check(found, GRAPH, int64=True, proves=True)
    multiplication = layer("float32", kind=MULTIPLICATION, on_maps=None)
    check(inspection(layer("float16"), multiplication), GRAPH, int64=True, proves=True)
    contradiction = inspection(layer("float16"), layer("float32"))
    with pytest.raises(PlanBuildError, match="not compute in float16: of 2 layers it has 1 convolution in float32"):
        check(contradiction, GRAPH, int64=True, proves=False)


def test_an_fp32_plan_needs_no_proof() -> None:
    check(inspection(), replace(GRAPH, precision="fp32"), int64=True, proves=True)


@pytest.mark.parametrize(
    ("tensors", "listed"),
    [
        ({}, "none"),
        ({"video": "uint8"}, "video uint8"),
        ({"video": "float32", "video_embedding": "float32"}, "video float32, video_embedding float32"),
        ({"video": "uint8", "video_embedding": "float16"}, "video uint8, video_embedding float16"),
        ({**TENSORS, "more": "float32"}, "video uint8, video_embedding float32, more float32"),
    ],
)
def test_inputs_and_outputs_are_those_of_the_graph(tensors: dict[str, str], listed: str) -> None:
    with pytest.raises(PlanBuildError) as caught:
        check(Inspection("engine", tensors, SHAPES, [layer("float16")]), GRAPH, int64=True, proves=True)
    assert str(caught.value) == (
        f"the engine built from video uint8 fp16 (v.onnx) has the inputs and outputs {listed}; "
        "video uint8, video_embedding float32 expected. Export the bundle again"
    )


@pytest.mark.parametrize("shape", [(-1, 511), (-1,), (-1, 512, 1), (65, 512), (0, 512)])
def test_shapes_are_those_of_the_graph(shape: tuple[int, ...]) -> None:
    shapes = {**SHAPES, "video_embedding": shape}
    with pytest.raises(PlanBuildError) as caught:
        check(Inspection("network", TENSORS, shapes, [layer("float16")]), GRAPH, int64=True, proves=True)
    assert str(caught.value) == (
        f"the network built from video uint8 fp16 (v.onnx) has video_embedding of shape {shape}; "
        "video_embedding float32 (batch=1..64, 512) expected. Export the bundle again"
    )
    for fitting in ((64, 512), (-1, -1)):
        check(
            Inspection("network", TENSORS, {**SHAPES, "video_embedding": fitting}, [layer("float16")]),
            GRAPH,
            int64=True,
            proves=True,
        )


def test_ids_are_int32_where_there_is_no_int64() -> None:
    tokens = replace(GRAPH, inputs=(TensorSpec("tokens", "int64", (Dimension.fixed(1),)),))
    shapes = {"tokens": (1,), "video_embedding": (-1, 512)}
    old = Inspection("engine", {"tokens": "int32", "video_embedding": "float32"}, shapes, [layer("float16")])
    check(old, tokens, int64=False, proves=True)
    with pytest.raises(PlanBuildError, match="tokens int32, video_embedding float32; tokens int64, "):
        check(old, tokens, int64=True, proves=True)


def test_a_plan_without_its_weights_is_refused() -> None:
    check_size(500, GRAPH)
    with pytest.raises(PlanBuildError, match=r"has 499 bytes and the graph 1000, so its weights are not in it"):
        check_size(499, GRAPH)


def test_the_record_counts_layers_by_kind_and_dtype() -> None:
    found = inspection(
        layer("float16"), layer("float16"), layer("float32", on_maps=False), layer(None, kind=MULTIPLICATION)
    )
    assert found.to_json() == {
        "source": "engine",
        "tensors": TENSORS,
        "shapes": {"video": [-1, 3], "video_embedding": [-1, 512]},
        "layers": {
            "convolution": {"float16": 2},
            "gate": {"float32": 1},
            "matrix multiplication": {"None": 1},
        },
    }
