"""A bundle's FP32 graphs back into PyTorch towers, to measure against: the weights are the bundle's own.

An export folds BatchNorm into the convolutions and may fold the stem. Here the folded convolutions are loaded into the
tower, the stem's fold is undone, and every BatchNorm is left in place as the identity, but for its bias: exact, and as
much work as the tower's users have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from milnce.errors import BundleError, ParityError
from milnce_convert.fixtures import as_video, moving_clips, random_tokens
from milnce_convert.measure import run_graph
from milnce_convert.parity import FP32_GATE, compare, require
from milnce_convert.towers import S3D, TextTower
from milnce_convert.towers.config import InceptionChannels, TextConfig, VideoConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from milnce.bundle import Bundle, GraphFile
    from milnce.specs import Dimension

    Weights = dict[str, NDArray[np.float32]]

_PREFIX = "tower."
# What the rewrites of an export append to the name of a weight that they change.
_WEIGHT = re.compile(r"(?P<name>.+\.weight)(?P<change>\.folded|\.kernel)?")
_SPACE_TO_DEPTH_CHANNELS = 24
_CHECKED = (16, 64, 64)  # frames, height and width of the clips that a tower is checked on, where the graph takes them
_CLIPS, _SENTENCES = 4, 16
# What a graph of another form leads to: a name that is not there, a shape that does not fit.
_UNREADABLE = (AttributeError, KeyError, ValueError, RuntimeError, StopIteration)


def rebuild_video_tower(bundle: Bundle) -> S3D:
    """Return the video tower of a bundle, in eval mode, checked against the bundle's own FP32 graph.

    Args:
        bundle: Any bundle with an FP32 video graph of the form that `milnce export` writes.

    Raises:
        BundleError: if it has no such graph, the graph is of another form, or it gives other numbers than the tower
            rebuilt from it, on ONNX Runtime.
    """
    graph = bundle.graph("video")
    data = bundle.read(graph)
    try:
        weights, biases = _read_layers(data)
        tower = S3D(_video_config(weights))
        _load(tower, weights, biases)
    except _UNREADABLE as error:
        raise _other_form(bundle, graph, error) from error
    clips = moving_clips(_CLIPS, *_checked_size(graph), seed=7)
    feeds = clips if graph.input_form == "uint8" else as_video(clips).contiguous().numpy()
    _check(bundle, graph, tower, as_video(clips), run_graph(data, {"video": feeds}))
    return tower


def rebuild_text_tower(bundle: Bundle) -> TextTower:
    """Return the text tower of a bundle, in eval mode, checked against the bundle's own FP32 graph.

    Raises:
        BundleError: as `rebuild_video_tower`.
    """
    graph = bundle.graph("text")
    data = bundle.read(graph)
    try:
        tower = _text_tower(onnx.load_from_string(data).graph)
    except _UNREADABLE as error:
        raise _other_form(bundle, graph, error) from error
    words = graph.inputs[0].shape[1].size or bundle.manifest.vocabulary.max_words
    tokens = random_tokens(_SENTENCES, tower.config.rows, words=words, seed=7)
    _check(bundle, graph, tower, torch.from_numpy(tokens), run_graph(data, {"tokens": tokens}))
    return tower


def _read_layers(data: bytes) -> tuple[Weights, Weights]:
    """Return the weights of the graph's convolutions and linear layers by their names in the tower, and their biases.

    A bias goes by the name of its layer's weight, since BatchNorm's is folded into it under a name of its own.
    """
    graph = onnx.load_from_string(data).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    weights: Weights = {}
    biases: Weights = {}
    for node in graph.node:
        if node.op_type not in {"Conv", "Gemm"}:
            continue
        found = _WEIGHT.fullmatch(node.input[1].removeprefix(_PREFIX))
        if found is None or node.input[1] not in held or found["name"] in weights:
            raise ValueError(f"node {node.name or node.output[0]} takes the weight {node.input[1]}")
        array = numpy_helper.to_array(held[node.input[1]])
        if found["change"] == ".folded":
            array = unfold_stem(array)
        weights[found["name"]] = array
        if len(node.input) > 2 and node.input[2]:  # noqa: PLR2004  the third is the bias
            biases[found["name"]] = numpy_helper.to_array(held[node.input[2]])
    return weights, biases


def unfold_stem(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the stride-1 kernel over 8C channels of 2x2x2 cells that a stride-2 kernel over C channels was made of.

    The inverse of `milnce_convert.rewrite.FoldSpaceToDepth`: (outputs, C, 2t, 2h, 2w) -> (outputs, 8C, t, h, w).
    """
    outputs, channels, time, height, width = kernel.shape
    cells = kernel.reshape(outputs, channels, time // 2, 2, height // 2, 2, width // 2, 2)
    cells = cells.transpose(0, 3, 5, 7, 1, 2, 4, 6)
    return np.ascontiguousarray(cells.reshape(outputs, 8 * channels, time // 2, height // 2, width // 2))


def _video_config(weights: Weights) -> VideoConfig:
    """Return the tower's sizes, as its weights have them."""

    def outputs(unit: str) -> int:
        return int(weights[f"{unit}.conv1.weight"].shape[0])

    blocks = dict.fromkeys(name.partition(".")[0] for name in weights if name.startswith("mixed_"))  # in their order
    units = ("conv_b0", "conv_b1_a", "conv_b1_b", "conv_b2_a", "conv_b2_b", "conv_b3_b")
    return VideoConfig(
        space_to_depth=weights["conv1.conv1.weight"].shape[1] == _SPACE_TO_DEPTH_CHANNELS,
        stem=outputs("conv1"),
        conv_2c=outputs("conv_2c"),
        blocks={name: InceptionChannels(*(outputs(f"{name}.{unit}") for unit in units)) for name in blocks},
        embedding=int(weights["fc.weight"].shape[0]),
    )


def _load(tower: S3D, weights: Weights, biases: Weights) -> None:
    """Put the layers' weights into the tower, and each convolution's bias into the BatchNorm after it.

    Raises:
        ValueError: if one is missing, left over, or of another shape.
    """
    state: dict[str, Any] = {}
    for name, array in weights.items():
        shape = tower.get_parameter(name).shape
        state[name] = torch.from_numpy(np.array(array).reshape(shape))  # a gate's kernel has three axes of 1 more
        layer = name.removesuffix(".weight")
        bias = f"{layer[: -len('conv1')]}bn{layer[-1]}.bias" if ".conv" in layer else f"{layer}.bias"
        state[bias] = torch.from_numpy(np.array(biases.get(name, np.zeros(shape[0], np.float32))))
    for name, module in tower.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            # The variance 1 plus an eps of 0 under the root is 1 in any precision; plus 1e-5 it is not.
            module.eps = 0.0
            count = module.num_features
            state |= {f"{name}.weight": torch.ones(count), f"{name}.running_var": torch.ones(count)}
            state |= {f"{name}.running_mean": torch.zeros(count), f"{name}.num_batches_tracked": torch.tensor(0)}
    tower.load_state_dict(state)  # strict: each of them, and nothing else
    tower.eval().requires_grad_(requires_grad=False)


def _text_tower(graph: onnx.GraphProto) -> TextTower:
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    operators = [node.op_type for node in graph.node]
    expected = ["Gather", "MatMul", "Add", "Relu", "ReduceMax", "Gemm"]
    if operators != expected:
        raise ValueError(f"its operators are {', '.join(operators)}; {', '.join(expected)} expected")
    gather, matmul, add, _, _, gemm = graph.node
    table, first = held[gather.input[0]], held[matmul.input[1]]
    first_bias = next(held[name] for name in add.input if name in held)
    last, last_bias = held[gemm.input[1]], held[gemm.input[2]]
    rows, word = table.shape
    tower = TextTower(TextConfig(rows, word, hidden=first.shape[1], embedding=last.shape[0]))
    arrays = {"word_embd.weight": table, "fc1.weight": first.T, "fc1.bias": first_bias}
    arrays |= {"fc2.weight": last, "fc2.bias": last_bias}
    tower.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    return tower.eval().requires_grad_(requires_grad=False)


def _checked_size(graph: GraphFile) -> tuple[int, int, int]:
    """Return frames, height and width of clips that the graph takes, as near as may be to what tells most."""
    axes = graph.inputs[0].shape
    sized = axes[1:4] if graph.input_form == "uint8" else axes[2:5]
    frames, height, width = (_nearest(axis, wanted) for axis, wanted in zip(sized, _CHECKED, strict=True))
    return frames, height, width


def _nearest(axis: Dimension, wanted: int) -> int:
    if axis.accepts(wanted):
        return wanted
    return axis.minimum if wanted < axis.minimum or axis.maximum is None else axis.maximum


def _check(
    bundle: Bundle, graph: GraphFile, tower: nn.Module, inputs: torch.Tensor, expected: Mapping[str, NDArray[Any]]
) -> None:
    try:
        with torch.no_grad():
            found = tower(inputs)
        for name, rows in expected.items():
            require(compare(rows, found[name].numpy()), FP32_GATE, f"output {name} of the tower rebuilt from it")
    except (ParityError, RuntimeError) as error:
        raise _other_form(bundle, graph, error) from error


def _other_form(bundle: Bundle, graph: GraphFile, error: Exception) -> BundleError:
    words = " ".join(str(error).split())
    return BundleError(
        f"{bundle.path}: no PyTorch tower can be made of {graph}, as it is not of the form that this release exports "
        f"({words}); export the weights again to compare them with PyTorch"
    )
