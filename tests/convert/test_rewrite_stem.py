"""The stem's rewrites on small graphs: the same outputs, and no change where it does not apply.

Pools move values without arithmetic, so they must agree bit for bit. A convolution with other pads, or a mean taken
in another order, adds the same FP32 numbers in another order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers.graphs import (
    REORDERED,
    apply,
    assert_unchanged,
    build,
    integers,
    normal,
    operators,
    relative_error,
    run,
)
from milnce_convert import rewrite
from milnce_convert.towers.s3d import space_to_depth

if TYPE_CHECKING:
    import onnx_ir as ir


END = np.iinfo(np.int64).max


# The stem's cut


def _stem(
    *,
    start: int = 1,
    end: int = END,
    axis: int = 2,
    step: int = 1,
    attributes: str = "pads = [1, 2, 2, 1, 2, 2]",
    between: str = "a = Relu(c)",
) -> ir.Model:
    return build(
        f"""g (float[N, 4, T, H, W] x) => (float[N, 5, A, B, C] y) {{
            c = Conv <{attributes}> (x, w, b)
            {between}
            y = Slice(a, starts, ends, axes, steps)
        }}""",
        w=normal(5, 4, 2, 4, 4),
        b=normal(5),
        starts=integers(start),
        ends=integers(end),
        axes=integers(axis),
        steps=integers(step),
    )


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize("sizes", [(1, 3, 3), (2, 4, 5), (5, 7, 6)])
def test_stem_cut_becomes_less_padding(axis: int, sizes: tuple[int, int, int]) -> None:
    model, x = _stem(axis=axis), normal(2, 4, *sizes)
    expected = run(model, x=x)["y"]
    assert apply(model, rewrite.STEM_CUT) == 1
    assert operators(model) == {"Conv": 1, "Relu": 1}
    assert relative_error(expected, run(model, x=x)["y"]) <= REORDERED


def test_a_cut_of_a_strided_convolution_moves_by_the_stride() -> None:
    model = _stem(axis=3, attributes="pads = [1, 2, 2, 1, 2, 2], strides = [1, 2, 2]")
    for sizes in ((2, 5, 5), (3, 8, 9)):
        x, fresh = normal(1, 4, *sizes), model.clone()
        assert apply(fresh, rewrite.STEM_CUT) == 1
        assert relative_error(run(model, x=x)["y"], run(fresh, x=x)["y"]) <= REORDERED


@pytest.mark.parametrize(
    "changes",
    [
        {"end": 3},  # cuts the end too
        {"end": -1},
        {"step": 2},
        {"start": -1},
        {"start": 3, "axis": 3},  # more than the padding
        {"start": 2, "axis": 3, "attributes": "pads = [1, 2, 2, 1, 2, 2], strides = [1, 2, 2]"},
        {"axis": 0},
        {"attributes": 'auto_pad = "SAME_UPPER"'},
        {"between": "a = Sigmoid(c)"},  # not wrong, but not the stem
    ],
)
def test_other_slices_stay(changes: dict[str, Any]) -> None:
    assert_unchanged(_stem(**changes), rewrite.STEM_CUT)


def test_a_stem_used_elsewhere_stays() -> None:
    model = build(
        """g (float[N, 4, T, H, W] x) => (float[N, 5, A, B, C] y, float[N, 5, D, E, F] a) {
            c = Conv <pads = [1, 1, 1, 1, 1, 1]> (x, w)
            a = Relu(c)
            y = Slice(a, starts, ends, axes, steps)
        }""",
        w=normal(5, 4, 2, 4, 4),
        starts=integers(1),
        ends=integers(END),
        axes=integers(2),
        steps=integers(1),
    )
    before = run(model, x=normal(1, 4, 3, 4, 4))
    apply(model, rewrite.STEM_CUT)
    for name, value in run(model, x=normal(1, 4, 3, 4, 4)).items():
        assert relative_error(before[name], value) <= REORDERED


# Space-to-depth


def _cells(
    *,
    perm: str = "0, 3, 5, 7, 1, 2, 4, 6",
    attributes: str = "pads = [0, 1, 1, 1, 2, 2]",
    split: tuple[int, ...] = (),
    inputs: int = 24,
) -> ir.Model:
    return build(
        f"""g (float[2, 3, 4, 6, 8] x) => (float[2, 6, A, B, C] y) {{
            s = Reshape(x, split)
            t = Transpose <perm = [{perm}]> (s)
            m = Reshape(t, merge)
            y = Conv <{attributes}> (m, w, b)
        }}""",
        split=integers(*(split or (2, 3, 2, 2, 3, 2, 4, 2))),
        merge=integers(2, 24, 2, 3, 4),
        w=normal(6, inputs, 2, 4, 4),
        b=normal(6),
    )


def test_space_to_depth_folds_into_one_strided_convolution() -> None:
    model, x = _cells(), normal(2, 3, 4, 6, 8)
    expected = run(model, x=x)["y"]
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    by_torch = torch.nn.functional.conv3d(
        torch.nn.functional.pad(space_to_depth(torch.from_numpy(x)), (1, 2, 1, 2, 0, 1)),
        torch.from_numpy(weight.numpy().copy()),
        torch.from_numpy(normal(6)),
    ).numpy()
    assert apply(model, rewrite.FOLD_STEM) == 1
    assert operators(model) == {"Conv": 1}
    found = run(model, x=x)["y"]
    assert relative_error(expected, found) <= REORDERED
    assert relative_error(by_torch, found) <= REORDERED


@pytest.mark.parametrize(
    "changes",
    [
        {"perm": "0, 3, 5, 7, 1, 2, 6, 4"},
        {"perm": "0, 1, 3, 5, 7, 2, 4, 6"},  # colour before the offsets
        {"attributes": "pads = [0, 1, 1, 1, 2, 2], strides = [1, 2, 2]"},
        {"attributes": "pads = [0, 2, 2, 1, 2, 2], dilations = [1, 1, 2]"},
        {"attributes": 'auto_pad = "SAME_UPPER"'},
        {"attributes": "pads = [0, 1, 1, 1, 2, 2], group = 2", "inputs": 12},
        {"split": (2, 3, 1, 4, 3, 2, 8, 1)},  # cells of 4x2x1
    ],
)
def test_other_reshapes_stay(changes: dict[str, Any]) -> None:
    assert_unchanged(_cells(**changes), rewrite.FOLD_STEM)
