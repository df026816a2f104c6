"""The rewrites of pools, gates and means on small graphs: the same outputs, and no change where it does not apply.

Pools move values without arithmetic, so they must agree bit for bit. A convolution with other pads, or a mean taken
in another order, adds the same FP32 numbers in another order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

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


def test_the_mean_over_time_comes_after_the_convolution() -> None:
    """Side by side, OpenVINO would merge the two means into the one long sum again."""
    model = _gate()
    apply(model, *rewrite.GATES)
    chain = [(node.op_type, _axes(node)) for node in model.graph]
    assert chain == [("ReduceMean", [3, 4]), ("Conv", []), ("ReduceMean", [2]), ("Sigmoid", []), ("Mul", [])]


def _axes(node: ir.Node) -> list[int]:
    if node.op_type != "ReduceMean":
        return []
    assert node.inputs[1] is not None, "no axes"
    axes = ir.convenience.get_const_tensor(node.inputs[1])
    assert axes is not None, "computed axes"
    return [int(axis) for axis in axes.numpy()]


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
