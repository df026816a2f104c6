"""Each rewrite alone: the same outputs on random weights and awkward sizes, and no change where it does not apply.

Pools move values without arithmetic, so they must agree bit for bit. A convolution with other pads, or a mean taken
in another order, adds the same FP32 numbers in another order: 1e-5 of the largest value, where a wrong graph is off by
more than 1e-1.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from helpers.graphs import build, inferred, operators, relative_error, run, serialised
from milnce_convert import rewrite
from milnce_convert.fixtures import as_video, moving_clips
from milnce_convert.towers.s3d import space_to_depth

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from helpers.graphs import Traced

REORDERED = 1e-5
END = np.iinfo(np.int64).max
SIZES = [(2, 2, 2), (4, 6, 10), (10, 72, 88), (6, 34, 50), (16, 64, 96), (30, 40, 200)]
ALL = [rewrite.STEM_CUT, rewrite.FOLD_STEM, rewrite.POOL_PADS, *rewrite.GATES, rewrite.POOLED_MEAN]


def apply(model: ir.Model, *rules: Any) -> int:  # noqa: ANN401  the rewriter's own rule class, untyped
    """Apply rules in place and return how often they matched."""
    return sum(rule.apply_to_model(model) for rule in rules)


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def assert_unchanged(model: ir.Model, *rules: Any) -> None:  # noqa: ANN401  as above
    before = serialised(model)
    assert apply(model, *rules) == 0
    assert serialised(model) == before


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


# Zero Pad and MaxPool


def _pooled(
    *,
    before: str = "a = Relu(x)",
    pads: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1),
    value: float = 0.0,
    pad: str = "p = Pad(a, pads, value)",
    pool: str = "kernel_shape = [1, 3, 3], strides = [1, 2, 2], ceil_mode = 1",
) -> ir.Model:
    return build(
        f"""g (float[N, 2, T, H, W] x) => (float[N, 2, A, B, C] y) {{
            {before}
            {pad}
            y = MaxPool <{pool}> (p)
        }}""",
        pads=integers(*pads),
        value=np.array(value, np.float32),
        b=normal(2, 1, 1, 1),
        order=integers(0, 1, 4, 3, 2),
    )


_POOLS = [
    ((0, 0, 0, 0, 0, 0, 0, 0, 1, 1), "kernel_shape = [1, 3, 3], strides = [1, 2, 2], ceil_mode = 1"),
    ((0, 0, 0, 0, 0, 0, 0, 1, 1, 1), "kernel_shape = [3, 3, 3], strides = [2, 2, 2], ceil_mode = 1"),
    ((0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "kernel_shape = [2, 2, 2], strides = [2, 2, 2], ceil_mode = 1"),
    ((0, 0, 1, 1, 1, 0, 0, 1, 1, 1), "kernel_shape = [3, 3, 3], strides = [1, 1, 1]"),
    ((0, 0, 0, 1, 0, 0, 0, 1, 0, 1), "kernel_shape = [2, 4, 3], strides = [1, 2, 1], pads = [0, 1, 0, 0, 1, 1]"),
]


@pytest.mark.parametrize(("pads", "pool"), _POOLS)
def test_zero_pad_moves_into_the_pool_bit_for_bit_at_every_small_size(pads: tuple[int, ...], pool: str) -> None:
    plain = _pooled(pads=pads, pool=pool)
    rewritten = plain.clone()
    assert apply(rewritten, rewrite.POOL_PADS) == 1
    assert operators(rewritten) == {"Relu": 1, "MaxPool": 1}
    for frames, height, width in [(1, 1, 1), (1, 2, 3), (3, 5, 7), (5, 4, 9), (7, 8, 6), (2, 9, 25), (13, 15, 10)]:
        x = normal(1, 2, frames, height, width, seed=width)
        if min(frames, height, width) == 1 and "strides = [1" in pool and "ceil" not in pool:
            continue  # the pool without ceil mode has no window there
        np.testing.assert_array_equal(run(plain, x=x)["y"], run(rewritten, x=x)["y"])


@pytest.mark.parametrize(
    "changes",
    [
        {"before": "a = Add(x, b)"},  # may be negative
        {"before": "r = Relu(x)\n n = Neg(r)\n a = Concat <axis = 1> (n)"},
        {"before": "r = Relu(x)\n a = Mul(r, b)"},
        {"value": 0.5},
        {"value": -1.0},
        {"pads": (0, 0, 0, 0, 0, 0, 0, 0, -1, 0)},
        {"pads": (0, 0, 0, 0, 0, 0, 0, 0, 2, 2)},  # with ceil mode: as large as the kernel
        {"pad": 'p = Pad <mode = "edge"> (a, pads)'},
        {"pad": 'p = Pad <mode = "reflect"> (a, pads)'},
        {"pad": "p = Pad(a, pads, value, order)"},  # the amounts are for other axes than they seem
        {"pool": "kernel_shape = [1, 3, 3], strides = [1, 2, 2], dilations = [1, 2, 2]"},
        {"pool": 'kernel_shape = [1, 3, 3], strides = [1, 2, 2], auto_pad = "SAME_UPPER"'},
    ],
)
def test_other_pads_and_pools_stay(changes: dict[str, Any]) -> None:
    assert_unchanged(_pooled(**changes), rewrite.POOL_PADS)


def test_a_pad_of_channels_stays() -> None:
    model = build(
        """g (float[N, 2, T, H, W] x) => (float[N, 3, A, B, C] y) {
            a = Relu(x)
            p = Pad(a, pads)
            y = MaxPool <kernel_shape = [1, 3, 3]> (p)
        }""",
        pads=integers(0, 0, 0, 0, 0, 0, 1, 0, 1, 1),
    )
    assert_unchanged(model, rewrite.POOL_PADS)


def test_values_are_known_to_be_non_negative_only_from_operators_that_make_them_so() -> None:
    model = build(
        """g (float[1, 2, 3, 3, 3] x) => (float[1, 4, 3, 3, 3] y) {
            r = Relu(x)
            s = Sigmoid(x)
            good = Mul(r, s)
            pooled = MaxPool <kernel_shape = [1, 1, 1]> (good)
            joined = Concat <axis = 1> (pooled, r)
            bad = Mul(r, x)
            mixed = Concat <axis = 1> (r, bad)
            y = Add(joined, mixed)
        }"""
    )
    known = {value.name: rewrite.is_non_negative(value) for node in model.graph for value in node.outputs}
    expected = dict.fromkeys(("r", "s", "good", "pooled", "joined"), True)
    assert known == {**expected, "bad": False, "mixed": False, "y": False}
    assert not rewrite.is_non_negative(model.graph.inputs[0])
    assert not rewrite.is_non_negative(None)


# Gates and the last mean


def _gate(
    *,
    axes: tuple[int, ...] = (2, 3, 4),
    gemm: str = "transB = 1",
    product: str = "y = Mul(u, x)",
    unsqueezed: tuple[tuple[int, ...], tuple[int, ...]] = ((2, 3), (4,)),
) -> ir.Model:
    return build(
        f"""g (float[N, 4, T, H, W] x) => (float[N, 4, T, H, W] y) {{
            m = ReduceMean <keepdims = 0> (x, axes)
            p = Gemm <{gemm}> (m, w, b)
            s = Sigmoid(p)
            v = Unsqueeze(s, first)
            u = Unsqueeze(v, second)
            {product}
        }}""",
        axes=integers(*axes),
        w=normal(4, 4),
        b=normal(4),
        first=integers(*unsqueezed[0]),
        second=integers(*unsqueezed[1]),
    )


@pytest.mark.parametrize("product", ["y = Mul(u, x)", "y = Mul(x, u)"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (2, 9, 4)])
def test_gate_keeps_its_axes_and_uses_a_convolution(product: str, sizes: tuple[int, int, int]) -> None:
    model, x = _gate(product=product), normal(3, 4, *sizes)
    expected = run(model, x=x)["y"]
    assert apply(model, *rewrite.GATES) == 1
    after = operators(model)
    assert not {"Gemm", "Unsqueeze"} & set(after)
    assert (after["Conv"], after["Sigmoid"], after["Mul"]) == (1, 1, 1)
    assert relative_error(expected, run(model, x=x)["y"]) <= REORDERED


def test_the_same_gate_written_with_axes_in_another_order_is_taken_too() -> None:
    model, x = _gate(axes=(4, 2, 3)), normal(2, 4, 3, 4, 5)
    expected = run(model, x=x)["y"]
    assert apply(model, *rewrite.GATES) == 1
    assert relative_error(expected, run(model, x=x)["y"]) <= REORDERED


@pytest.mark.parametrize(
    "changes",
    [
        {"gemm": "transB = 0"},
        {"gemm": "transB = 1, alpha = 2.0"},
        {"gemm": "transB = 1, beta = 0.5"},
        {"unsqueezed": ((0, 1), (2,))},  # broadcast over other axes: the channels' gates lie along the width
    ],
)
def test_other_gates_stay(changes: dict[str, Any]) -> None:
    if "unsqueezed" in changes:
        model = build(
            """g (float[4, 4, 2, 4, 4] x) => (float[4, 4, 2, 4, 4] y) {
                m = ReduceMean <keepdims = 0> (x, axes)
                p = Gemm <transB = 1> (m, w, b)
                s = Sigmoid(p)
                v = Unsqueeze(s, first)
                u = Unsqueeze(v, second)
                y = Mul(x, u)
            }""",
            axes=integers(2, 3, 4),
            w=normal(4, 4),
            b=normal(4),
            first=integers(0, 1),
            second=integers(2),
        )
    else:
        model = _gate(**changes)
    assert_unchanged(model, *rewrite.GATES)


def test_a_gate_over_other_axes_stays() -> None:
    model = build(
        """g (float[N, 2, 3, 4, 5] x) => (float[N, 2, 3, 4, 5] y) {
            m = ReduceMean <keepdims = 0> (x, axes)
            p = Gemm <transB = 1> (m, w, b)
            s = Sigmoid(p)
            v = Unsqueeze(s, first)
            u = Unsqueeze(v, second)
            y = Mul(x, u)
        }""",
        axes=integers(1, 3, 4),
        w=normal(3, 3),
        b=normal(3),
        first=integers(1, 3),
        second=integers(4),
    )
    assert_unchanged(model, *rewrite.GATES, rewrite.POOLED_MEAN)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (4, 14, 14)])
def test_mean_over_time_and_space_becomes_a_global_pool(sizes: tuple[int, int, int]) -> None:
    model = build(
        "g (float[N, 4, T, H, W] x) => (float[N, 4] y) { y = ReduceMean <keepdims = 0> (x, axes) }",
        axes=integers(2, 3, 4),
    )
    x = normal(2, 4, *sizes)
    expected = run(model, x=x)["y"]
    assert apply(model, rewrite.POOLED_MEAN) == 1
    assert relative_error(expected, run(model, x=x)["y"]) <= REORDERED


@pytest.mark.parametrize(
    ("signature", "attributes", "axes"),
    [
        ("(float[N, 4, T, H, W] x) => (float[N, 4, 1, 1, 1] y)", "keepdims = 1", (2, 3, 4)),
        ("(float[N, 4, T, H, W] x) => (float[N, 4, T] y)", "keepdims = 0", (3, 4)),
        ("(float[N, 4, T, H, W] x) => (float[4, H] y)", "keepdims = 0", (0, 2, 4)),
        ("(float[N, 4, T, H, W, D] x) => (float[N, 4, D] y)", "keepdims = 0", (2, 3, 4)),  # rank 6
    ],
)
def test_other_means_stay(signature: str, attributes: str, axes: tuple[int, ...]) -> None:
    model = build(f"g {signature} {{ y = ReduceMean <{attributes}> (x, axes) }}", axes=integers(*axes))
    assert_unchanged(model, rewrite.POOLED_MEAN)


# On the traced tower


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
    assert norm.running_var is not None
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
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
