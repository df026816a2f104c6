"""PyTorch towers rebuilt from bundles: the same numbers as the bundle's graph, or a refusal in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from helpers.graphs import Traced, short_towers, trace
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.bundle_writer import BundleWriter
from milnce.errors import BundleError
from milnce_convert import from_bundle
from milnce_convert.convert import add_exported
from milnce_convert.export import ExportedGraph, export_text, half_precision
from milnce_convert.fixtures import as_video, moving_clips, random_tokens
from milnce_convert.from_bundle import rebuild_text_tower, rebuild_video_tower, unfold_stem
from milnce_convert.measure import run_graph
from milnce_convert.parity import FP32_GATE, compare, require

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = Path(__file__).parents[2] / "engines" / "demo"


def bundle_of(folder: Path, towers: Any, *graphs: ExportedGraph) -> Bundle:  # noqa: ANN401 - Towers
    """Write graphs as a bundle."""
    with BundleWriter(folder) as writer:
        for graph in graphs:
            add_exported(writer, graph, {})
        writer.add_vocabulary(towers.words, max_words=16)
        sampling = {"preset": "milnce-native", "size": 64, "frames": 16}
        writer.commit(name="made", model_digest=towers.digest(), sampling=sampling, made={})
    return Bundle.open(folder)


def changed(graph: ExportedGraph, change: Callable[[onnx.GraphProto], None]) -> ExportedGraph:
    """Return a graph of which something was changed."""
    model = onnx.load_from_string(graph.model)
    change(model.graph)
    kinds = (graph.module, graph.input_form, graph.precision, graph.opset, graph.inputs, graph.outputs)
    return ExportedGraph(*kinds, model.SerializeToString())


def norms_of(tower: nn.Module) -> list[nn.BatchNorm3d]:
    return [module for module in tower.modules() if isinstance(module, nn.BatchNorm3d)]


def assert_same_numbers(bundle: Bundle, *, frames: int = 8, size: int = 48) -> None:
    clips = moving_clips(4, frames, size, size, seed=11)  # another size than the tower was checked on
    with torch.no_grad():
        found = rebuild_video_tower(bundle)(as_video(clips))
    expected = run_graph(bundle.read(bundle.graph("video", input_form="uint8")), {"video": clips})
    for name in ("video_embedding", "mixed_5c"):
        require(compare(expected[name], found[name].numpy()), FP32_GATE, name)


def test_the_quarter_width_tower_comes_back(quarter: Traced, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", quarter.towers, quarter.graphs()["uint8"])
    assert_same_numbers(bundle)
    tower = rebuild_video_tower(bundle)
    assert tower.config == quarter.towers.config.video
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    # The layers that users of the PyTorch tower pay for are all there.
    kinds = [type(module) for module in quarter.towers.video.modules()]
    assert [type(module) for module in tower.modules()] == kinds


def test_the_trained_demo_comes_back_with_its_text_tower() -> None:
    bundle = Bundle.open(DEMO)
    assert_same_numbers(bundle, frames=16, size=64)
    tower = rebuild_text_tower(bundle)
    tokens = random_tokens(9, tower.config.rows, words=5, seed=2)
    with torch.no_grad():
        found = tower(torch.from_numpy(tokens))["text_embedding"].numpy()
    expected = run_graph(bundle.read(bundle.graph("text")), {"tokens": tokens})["text_embedding"]
    require(compare(expected, found), FP32_GATE, "text")


def test_every_form_of_stem_and_input_comes_back(short_traced: Traced, tmp_path: Path) -> None:
    towers = short_traced.towers
    kept = short_traced.graphs(fold_stem=False)
    assert_same_numbers(bundle_of(tmp_path / "kept", towers, kept["uint8"]))
    both = short_traced.graphs()
    assert_same_numbers(bundle_of(tmp_path / "float32-first", towers, both["float32"], both["uint8"]))
    plain = trace(short_towers(space_to_depth=False))
    bundle = bundle_of(tmp_path / "plain", plain.towers, plain.graphs()["uint8"])
    assert_same_numbers(bundle)
    assert rebuild_video_tower(bundle).config.space_to_depth is False


def test_batch_norms_are_identities_to_the_last_bit_in_every_precision(short_traced: Traced, tmp_path: Path) -> None:
    tower = rebuild_video_tower(bundle_of(tmp_path / "b", short_traced.towers, short_traced.graphs()["uint8"]))
    for norm in norms_of(tower):
        shift = norm.bias.view(1, -1, 1, 1, 1)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            values = torch.randn(2, norm.num_features, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
            cast = nn.BatchNorm3d(norm.num_features, eps=norm.eps).eval()
            cast.load_state_dict({**norm.state_dict(), "bias": torch.zeros(norm.num_features)})
            assert torch.equal(cast.to(dtype)(values), values)
        values = torch.randn(2, norm.num_features, 2, 3, 3)
        assert torch.equal(norm(values), values + shift)


def test_the_stem_is_unfolded_as_it_was_folded(short_traced: Traced) -> None:
    folded = short_traced.graphs()["uint8"].model
    (kernel,) = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(folded).graph.initializer
        if tensor.name.endswith(".folded")
    ]
    kept = short_traced.graphs(fold_stem=False)["uint8"].model
    (expected,) = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_from_string(kept).graph.initializer
        if tensor.name == "tower.conv1.conv1.weight"
    ]
    assert np.array_equal(unfold_stem(kernel), expected)


def refused(bundle: Bundle, text: str) -> None:
    with pytest.raises(BundleError, match=text) as caught:
        rebuild_video_tower(bundle)
    assert "no PyTorch tower can be made of video" in str(caught.value)
    assert "export the weights again" in str(caught.value)


def test_graphs_of_another_form_are_refused(short_traced: Traced, tmp_path: Path) -> None:
    graph, towers = short_traced.graphs()["uint8"], short_traced.towers

    def rename(proto: onnx.GraphProto) -> None:
        for node in proto.node:
            for index, name in enumerate(node.input):
                node.input[index] = name.replace("conv_2b", "conv_2x")
        for tensor in proto.initializer:
            tensor.name = tensor.name.replace("conv_2b", "conv_2x")

    def stride(proto: onnx.GraphProto) -> None:
        (node,) = [node for node in proto.node if "tower.conv_2b.conv1.weight" in node.input]
        (strides,) = [attribute for attribute in node.attribute if attribute.name == "strides"]
        strides.ints[:] = [2, 1, 1]

    def anonymous(proto: onnx.GraphProto) -> None:
        proto.node[3].input[1] = "x"
        (tensor,) = [tensor for tensor in proto.initializer if tensor.name.endswith(".folded")]
        tensor.name = "x"

    refused(bundle_of(tmp_path / "a", towers, changed(graph, rename)), "conv_2x")
    refused(bundle_of(tmp_path / "b", towers, changed(graph, stride)), "fails the fp32 parity gate")
    refused(bundle_of(tmp_path / "c", towers, changed(graph, anonymous)), "takes the weight x")
    tiny = tmp_path / "tiny"
    write_tiny_bundle(tiny)
    refused(Bundle.open(tiny), "takes the weight constant_")
    with pytest.raises(BundleError, match=r"no PyTorch tower can be made of text .*its operators are"):
        rebuild_text_tower(Bundle.open(tiny))


def test_a_bundle_without_fp32_graphs_is_refused(short_traced: Traced, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", short_traced.towers, half_precision(short_traced.graphs()["uint8"]))
    with pytest.raises(BundleError, match="fp32"):
        rebuild_video_tower(bundle)


@pytest.mark.parametrize("defect", ["eps", "bias", "fold"])
def test_a_tower_that_is_rebuilt_wrong_is_not_handed_out(
    short_traced: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    bundle = bundle_of(tmp_path / "b", short_traced.towers, short_traced.graphs()["uint8"])
    load = from_bundle._load  # noqa: SLF001 - the step that a defect is planted in

    def spoil(tower: Any, weights: Any, biases: Any) -> None:  # noqa: ANN401
        load(tower, weights, biases)
        if defect == "eps":
            for norm in norms_of(tower):
                norm.eps = 1e-2
        elif defect == "bias":
            tower.mixed_4b.conv_b0.bn1.bias.zero_()

    monkeypatch.setattr(from_bundle, "_load", spoil)
    if defect == "fold":
        monkeypatch.setattr(from_bundle, "unfold_stem", lambda kernel: unfold_stem(kernel)[:, ::-1].copy())
    refused(bundle, "fails the fp32 parity gate")


def test_a_size_that_is_fixed_is_the_size_that_is_checked(short_traced: Traced, tmp_path: Path) -> None:
    text = export_text(short_traced.towers.text)
    with pytest.MonkeyPatch.context() as patch:
        short_traced.patch(patch)
        graphs = from_bundle_export(short_traced)
    bundle = bundle_of(tmp_path / "b", short_traced.towers, graphs, text)
    assert rebuild_video_tower(bundle).config == short_traced.towers.config.video
    assert rebuild_text_tower(bundle).config == short_traced.towers.config.text


def from_bundle_export(traced: Traced) -> ExportedGraph:
    from milnce_convert.export import export_video  # noqa: PLC0415 - patched by the caller

    return export_video(traced.towers.video, fixed_size=(8, 48, 32))["uint8"]
