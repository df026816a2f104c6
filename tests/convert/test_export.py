"""Exported graphs: names, dtypes, axes, single files, and the same numbers on ONNX Runtime and OpenVINO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx import TensorProto

from helpers.graphs import inferred, operators, relative_error, run, short_towers
from milnce.errors import ExportError, InputError
from milnce.specs import check_feeds
from milnce_convert import export
from milnce_convert.export import (
    MINIMUM_SIZE,
    SUPPORTED_OPSETS,
    block_output,
    export_projection,
    export_text,
    export_video,
    half_precision,
)
from milnce_convert.fixtures import as_video, moving_clips, random_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from helpers.graphs import Traced
    from milnce_convert.checkpoint import Towers

    Arrays = dict[str, NDArray[Any]]

# The FP32 gate's own bound on max |d|; seen: 1e-5.
FP32_BOUND = 1e-4
SIZES = [(2, 2, 2), (2, 2, 64), (4, 6, 2), (6, 34, 50), (10, 72, 88), (16, 64, 64), (6, 40, 200)]


def on_openvino(model: bytes, **feeds: NDArray[Any]) -> Arrays:
    """Run a graph on OpenVINO's CPU plugin in FP32."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(feeds)
    return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}


def by_torch(towers: Towers, clips: NDArray[np.uint8]) -> Arrays:
    with torch.no_grad():
        return {name: value.numpy() for name, value in towers.video(as_video(clips)).items()}


def as_form(clips: NDArray[np.uint8], form: str) -> NDArray[Any]:
    return clips if form == "uint8" else as_video(clips).contiguous().numpy()


def assert_agree(expected: Arrays, found: Arrays, subject: object) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        assert relative_error(value, found[name]) <= FP32_BOUND, (subject, name)


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_video_signature(quarter: Traced, form: str) -> None:
    graph = quarter.graphs()[form]
    proto = onnx.ModelProto.FromString(graph.model)
    onnx.checker.check_model(proto, full_check=True)
    tensors = inferred(graph.model)
    assert [value.name for value in proto.graph.input] == ["video"]
    assert [value.name for value in proto.graph.output] == ["video_embedding", "mixed_5c"]
    axes = ["batch", "frames", "height", "width", 3] if form == "uint8" else ["batch", 3, "frames", "height", "width"]
    assert tensors.shapes["video"] == axes
    assert tensors.dtypes["video"] == (TensorProto.UINT8 if form == "uint8" else TensorProto.FLOAT)
    assert tensors.shapes["video_embedding"] == ["batch", 512]
    assert tensors.shapes["mixed_5c"] == ["batch", 256]
    (spec,) = graph.inputs
    assert [axis.size or axis.name for axis in spec.shape] == axes
    for axis in spec.shape:
        if axis.name in {"frames", "height", "width"}:
            assert (axis.minimum, axis.maximum, axis.multiple_of) == (2, None, 2)
    assert (graph.opset, graph.precision, graph.module, graph.input_form) == (20, "fp32", "video", form)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 20)]


def test_graphs_are_single_files_without_external_data_or_notes(quarter: Traced) -> None:
    graphs = [*quarter.graphs().values(), export_text(quarter.towers.text)]
    for graph in [*graphs, *map(half_precision, graphs)]:
        proto = onnx.ModelProto.FromString(graph.model)
        assert all(weight.data_location == TensorProto.DEFAULT for weight in proto.graph.initializer)
        assert not any(weight.external_data for weight in proto.graph.initializer)
        assert not proto.functions
        assert not proto.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
        assert {node.domain for node in proto.graph.node} == {""}
        assert str(Path(export.__file__).parents[2]).encode() not in graph.model, "no path of the exporting machine"
        assert b"site-packages" not in graph.model
        assert proto.graph.name == f"milnce_{graph.module}"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_uint8_is_cast_before_anything_else_touches_it(quarter: Traced, precision: str) -> None:
    graph = quarter.graphs()["uint8"]
    proto = onnx.ModelProto.FromString((half_precision(graph) if precision == "fp16" else graph).model)
    consumers = [node for node in proto.graph.node if "video" in node.input]
    assert [node.op_type for node in consumers] == ["Cast"]
    chain = []
    name = "video"
    for _ in range(4):
        (node,) = [node for node in proto.graph.node if name in node.input]
        chain.append(node.op_type)
        (name,) = node.output
    assert chain == ["Cast", "Div", "Transpose", "Conv"]


@pytest.mark.parametrize("form", ["uint8", "float32"])
@pytest.mark.parametrize("fold_stem", [True, False])
def test_both_runtimes_give_the_towers_numbers_at_every_size(quarter: Traced, form: str, *, fold_stem: bool) -> None:
    model = quarter.graphs(fold_stem=fold_stem)[form].model
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for index, size in enumerate(SIZES):
        clips = moving_clips(1 + index % 3, *size, seed=index)
        expected, video = by_torch(quarter.towers, clips), as_form(clips, form)
        assert_agree(expected, run(model, video=video), ("onnxruntime", size))
        results = compiled({"video": video})
        found = {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}
        assert_agree(expected, found, ("openvino", size))


def test_the_minimum_size_is_the_least_that_runs(quarter: Traced) -> None:
    assert MINIMUM_SIZE == 2
    for axis in range(3):
        least = [2, 2, 2]
        least[axis] = MINIMUM_SIZE - 1
        with torch.no_grad(), pytest.raises(RuntimeError, match="invalid for input of size"):
            quarter.towers.video(torch.rand(1, 3, *least))
    clips = moving_clips(2, 2, 2, 2)
    assert not np.array_equal(*by_torch(quarter.towers, clips)["video_embedding"])


@pytest.mark.parametrize("size", [(3, 4, 4), (4, 5, 4), (4, 4, 7), (1, 2, 2)])
def test_odd_sizes_fail_in_the_tower_and_are_refused_by_the_specs(quarter: Traced, size: tuple[int, int, int]) -> None:
    """The folded graph itself would take an odd size in silence, so the specs are what refuses it."""
    with torch.no_grad(), pytest.raises(RuntimeError, match="invalid for input of size"):
        quarter.towers.video(torch.rand(1, 3, *size))
    for form, graph in quarter.graphs().items():
        with pytest.raises(InputError, match=r"(frames|height|width) is [1357], shape .* expected .*=2\.\. step 2"):
            check_feeds(graph.inputs, {"video": as_form(moving_clips(1, *size), form)})


def test_batch_items_do_not_depend_on_each_other(quarter: Traced) -> None:
    model = quarter.graphs()["uint8"].model
    clips = moving_clips(3, 4, 32, 48)
    together = run(model, video=clips)["video_embedding"]
    for index in range(3):
        alone = run(model, video=clips[index : index + 1])["video_embedding"]
        assert relative_error(together[index : index + 1], alone) <= FP32_BOUND


def test_block_outputs_are_named_and_ranked(quarter: Traced) -> None:
    tensors = inferred(quarter.graphs()["uint8"].model)
    for name, plan in quarter.towers.config.video.blocks.items():
        shape = tensors.shapes[block_output(name)]
        assert shape[:2] == ["batch", plan.output]
        assert len(shape) == 5


def test_fixed_size(short: Towers) -> None:
    graphs = export_video(short.video, fixed_size=(4, 32, 48))
    clips = moving_clips(3, 4, 32, 48)
    for form, graph in graphs.items():
        sizes = ["batch", 4, 32, 48, 3] if form == "uint8" else ["batch", 3, 4, 32, 48]
        assert inferred(graph.model).shapes["video"] == sizes
        assert [axis.size or axis.name for axis in graph.inputs[0].shape] == sizes
        assert not {"Shape", "Reshape", "Slice", "Pad"} & set(operators(graph.model))
        assert_agree(by_torch(short, clips), run(graph.model, video=as_form(clips, form)), form)
        assert_agree(by_torch(short, clips), on_openvino(graph.model, video=as_form(clips, form)), form)
        assert run(half_precision(graph).model, video=as_form(clips, form))["mixed_5c"].dtype == np.float32


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((3, 32, 32), "fixed size: frames 3 given; it must be a multiple of 2, at least 2"),
        ((4, 33, 32), "fixed size: height 33 given"),
        ((4, 32, 0), "fixed size: width 0 given"),
        ((4, 32, -2), "fixed size: width -2 given"),
    ],
)
def test_impossible_fixed_sizes_are_refused_before_tracing(
    short: Towers, size: tuple[int, int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(export, "trace_video")
    with pytest.raises(ExportError) as caught:
        export_video(short.video, fixed_size=size)
    assert said in str(caught.value)


def test_opsets(short: Towers) -> None:
    clips = moving_clips(2, 4, 32, 32)
    graph = export_video(short.video, opset=18)["uint8"]
    assert graph.opset == 18
    assert_agree(by_torch(short, clips), run(graph.model, video=clips), 18)
    assert_agree(by_torch(short, clips), on_openvino(graph.model, video=clips), 18)
    assert half_precision(graph).opset == 18
    assert list(SUPPORTED_OPSETS) == [18, 19, 20]
    for opset in (17, 21):
        with pytest.raises(ExportError, match=f"opset {opset} asked for; 18 to 20 are supported"):
            export_video(short.video, opset=opset)
        with pytest.raises(ExportError, match=f"opset {opset} asked for"):
            export_text(short.text, opset=opset)


def test_the_same_towers_give_the_same_bytes(short: Towers, short_traced: Traced) -> None:
    with pytest.MonkeyPatch.context() as patch:
        short_traced.patch(patch)
        first = export_video(short.video)
    again = export_video(short.video)
    for form, graph in first.items():
        assert graph.model == again[form].model
        assert half_precision(graph).model == half_precision(again[form]).model
    assert export_text(short.text).model == export_text(short.text).model


def test_plain_stem(short: Towers) -> None:
    towers = short_towers(space_to_depth=False)
    graph = export_video(towers.video)["uint8"]
    assert not {"Pad", "Slice", "Reshape", "BatchNormalization", "Unsqueeze"} & set(operators(graph.model))
    assert [axis.multiple_of for axis in graph.inputs[0].shape] == [1, 1, 1, 1, 1]
    for size in ((2, 2, 2), (5, 33, 47), (4, 32, 32)):
        clips = moving_clips(2, *size)
        assert_agree(by_torch(towers, clips), run(graph.model, video=clips), size)
        assert_agree(by_torch(towers, clips), on_openvino(graph.model, video=clips), size)
    assert towers.digest() != short.digest()


def test_space_to_depth_option_keeps_the_24_channel_stem(quarter: Traced) -> None:
    stems = {}
    for fold_stem in (True, False):
        proto = onnx.ModelProto.FromString(quarter.graphs(fold_stem=fold_stem)["uint8"].model)
        shapes = {weight.name: list(weight.dims) for weight in proto.graph.initializer}
        first = next(node for node in proto.graph.node if node.op_type == "Conv")
        stems[fold_stem] = shapes[first.input[1]]
    assert stems == {True: [16, 3, 4, 8, 8], False: [16, 24, 2, 4, 4]}


def test_projection_equals_fc(quarter: Traced) -> None:
    graph = export_projection(quarter.towers.video)
    features = np.random.default_rng(0).normal(size=(5, 256)).astype(np.float32)
    fc = quarter.towers.video.fc
    with torch.no_grad():
        expected = {"video_embedding": fc(torch.from_numpy(features)).numpy()}
    assert_agree(expected, run(graph.model, mixed_5c=features), "onnxruntime")
    assert_agree(expected, on_openvino(graph.model, mixed_5c=features), "openvino")
    assert (graph.module, graph.input_form) == ("projection", "mixed_5c")
    assert operators(graph.model) == {"Gemm": 1}
    clips = moving_clips(2, 4, 32, 32)
    whole = run(quarter.graphs()["uint8"].model, video=clips)
    projected = run(graph.model, mixed_5c=whole["mixed_5c"])["video_embedding"]
    assert relative_error(whole["video_embedding"], projected) <= FP32_BOUND


@pytest.mark.parametrize("words", [1, 5, 16, 30])
@pytest.mark.parametrize("sentences", [1, 3])
def test_text_takes_any_number_of_sentences_and_words(quarter: Traced, words: int, sentences: int) -> None:
    tower = quarter.towers.text
    graph = export_text(tower)
    tokens = random_tokens(sentences, tower.config.rows, words=words) if words > 1 else np.array([[3]] * sentences)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in tower(torch.from_numpy(tokens)).items()}
    assert_agree(expected, run(graph.model, tokens=tokens), "onnxruntime")
    assert_agree(expected, on_openvino(graph.model, tokens=tokens), "openvino")
    assert inferred(graph.model).shapes["tokens"] == ["batch", "words"]
    assert inferred(graph.model).shapes["text_embedding"] == ["batch", 512]
    assert inferred(graph.model).dtypes["tokens"] == TensorProto.INT64


def test_pads_take_part_in_the_exported_text_tower(quarter: Traced) -> None:
    model = export_text(quarter.towers.text).model
    tokens = np.array([[4, 9, 2]])
    padded = np.pad(tokens, ((0, 0), (0, 5)))
    outputs = [run(model, tokens=item)["text_embedding"] for item in (tokens, padded)]
    assert relative_error(*outputs) > 0.05


def test_a_graph_that_is_not_what_the_manifest_would_say_is_refused(quarter: Traced) -> None:
    (spec,) = quarter.graphs()["float32"].inputs
    outputs = quarter.graphs()["float32"].outputs
    renamed = replace(spec, name="clip")
    blocks = tuple(quarter.towers.config.video.blocks)
    with pytest.raises(ExportError, match="tensor video found where clip belongs"):
        export._finish(quarter.trace.clone(), "video", "float32", (renamed,), outputs)  # noqa: SLF001  no public way
    with pytest.raises(ExportError, match="9 Inception blocks found in the graph, 8 expected"):
        export._name_blocks(quarter.trace.clone().graph, blocks[:8])  # noqa: SLF001  likewise
