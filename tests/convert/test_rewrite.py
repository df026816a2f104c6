"""Each rewrite alone, and all together, on the traced tower.

Pools move values without arithmetic, so they must agree bit for bit. A convolution with other pads, or a mean taken
in another order, adds the same FP32 numbers in another order.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers.graphs import (
    REORDERED,
    apply,
    assert_unchanged,
    inferred,
    operators,
    relative_error,
    run,
)
from milnce_convert import rewrite
from milnce_convert.fixtures import as_video, moving_clips

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from helpers.graphs import Traced

SIZES = [(2, 2, 2), (4, 6, 10), (10, 72, 88), (6, 34, 50), (16, 64, 96), (30, 40, 200)]
ALL = [rewrite.STEM_CUT, rewrite.FOLD_STEM, rewrite.POOL_PADS, *rewrite.GATES, rewrite.POOLED_MEAN]


def _outputs(model: ir.Model | bytes, size: tuple[int, int, int]) -> dict[str, NDArray[Any]]:
    return run(model, video=as_video(moving_clips(2, *size, seed=sum(size))).contiguous().numpy())


@pytest.mark.parametrize(
    ("name", "matches"),
    [("STEM_CUT", 3), ("POOL_PADS", 4), ("GATES", 37), ("POOLED_MEAN", 38), ("FOLD_STEM", 0)],
)
def test_each_rewrite_alone_keeps_the_tower(quarter: Traced, name: str, matches: int) -> None:
    model = quarter.trace.clone()
    rules = getattr(rewrite, name)
    assert apply(model, *(rules if isinstance(rules, tuple) else (rules,))) == (matches or 1)
    for size in SIZES[:3]:
        expected, found = _outputs(quarter.trace, size), _outputs(model, size)
        for output, value in expected.items():
            # 31 layers carry a reordered sum on: 10 times what one of them costs.
            assert relative_error(value, found[output]) <= 10 * REORDERED, (size, output)


@pytest.mark.parametrize("fold_stem", [True, False])
def test_all_rewrites_together_keep_the_tower(quarter: Traced, *, fold_stem: bool) -> None:
    model = rewrite.simplify(quarter.trace.clone(), fold_stem=fold_stem)
    for size in SIZES:
        expected, found = _outputs(quarter.trace, size), _outputs(model, size)
        for output, value in expected.items():
            assert relative_error(value, found[output]) <= 10 * REORDERED, (size, output)


def test_a_second_pass_changes_nothing(quarter: Traced) -> None:
    model = rewrite.simplify(quarter.trace.clone())
    rules = [rule for rule in ALL if rule is not rewrite.POOLED_MEAN]
    assert_unchanged(model, *rules)


def test_the_simplified_tower_has_exactly_these_operators(quarter: Traced) -> None:
    folded = operators(rewrite.simplify(quarter.trace.clone()))
    assert folded["Conv"] == 76 + 37  # the tower's and one a gate
    assert (folded["Relu"], folded["Sigmoid"], folded["Mul"]) == (76, 37, 37)
    assert (folded["MaxPool"], folded["Concat"], folded["Gemm"]) == (4 + 9, 9, 1)
    forbidden = {"Pad", "Slice", "BatchNormalization", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Shape"}
    assert not forbidden & set(folded)
    assert not set(folded) - {
        *("Conv", "Relu", "Sigmoid", "Mul", "MaxPool", "Concat", "Gemm"),
        *("GlobalAveragePool", "ReduceMean", "Flatten"),
    }
    kept = operators(rewrite.simplify(quarter.trace.clone(), fold_stem=False))
    assert not {"Pad", "Slice", "BatchNormalization", "Unsqueeze"} & set(kept)
    assert kept["Transpose"] == 1
    assert kept["Conv"] == folded["Conv"]


def test_the_folded_tower_has_no_rank_above_5_and_one_permute(quarter: Traced) -> None:
    for form, graph in quarter.graphs().items():
        tensors = inferred(graph.model)
        nodes = tensors.proto.graph.node
        assert all(name in tensors.shapes for node in nodes for name in node.output), "every rank must be known"
        assert max(len(shape) for shape in tensors.shapes.values()) == 5
        assert operators(graph.model)["Transpose"] == (1 if form == "uint8" else 0)
        assert "Reshape" not in operators(graph.model)


def test_every_pool_is_in_floor_mode_with_explicit_pads(quarter: Traced) -> None:
    tensors = inferred(quarter.graphs()["float32"].model)
    pools = [node for node in tensors.proto.graph.node if node.op_type == "MaxPool"]
    found = []
    for node in pools:
        attributes = {item.name: list(item.ints) or item.i for item in node.attribute}
        assert not attributes.get("ceil_mode", 0)
        if attributes["strides"] != [1, 1, 1]:
            found.append((attributes["kernel_shape"], attributes["strides"], attributes["pads"]))
    assert found == [
        ([1, 3, 3], [1, 2, 2], [0, 0, 0, 0, 2, 2]),
        ([1, 3, 3], [1, 2, 2], [0, 0, 0, 0, 2, 2]),
        ([3, 3, 3], [2, 2, 2], [0, 0, 0, 2, 2, 2]),
        ([2, 2, 2], [2, 2, 2], [0, 0, 0, 1, 1, 1]),
    ]


def test_the_folded_stem_equals_the_24_channel_one_tap_by_tap(quarter: Traced) -> None:
    weight = quarter.towers.video.conv1.conv1.weight.detach()
    norm = quarter.towers.video.conv1.bn1
    scale = (norm.weight / torch.sqrt(norm.get_buffer("running_var") + norm.eps)).detach()
    model = rewrite.simplify(quarter.trace.clone())
    (stem,) = [node for node in model.graph if node.inputs[0] is model.graph.inputs[0]]
    assert stem.inputs[1] is not None
    assert stem.inputs[1].const_value is not None
    kernel = stem.inputs[1].const_value.numpy()
    assert kernel.shape[1:] == (3, 4, 8, 8)
    for t, y, x, colour in itertools.product(range(4), range(8), range(8), range(3)):
        channel = (((t % 2) * 2 + y % 2) * 2 + x % 2) * 3 + colour
        expected = (weight[:, channel, t // 2, y // 2, x // 2] * scale).numpy()
        np.testing.assert_allclose(kernel[:, colour, t, y, x], expected, rtol=1e-5, atol=1e-7)
