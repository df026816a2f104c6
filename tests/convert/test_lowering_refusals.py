"""What cannot be lowered for TensorRT 8.5 is refused by its node's name, before its parser would misread it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto

from helpers.graphs import build, integers, serialised
from milnce.errors import ExportError
from milnce_convert.lowering import lower_to_opset_17

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.graphs import Traced


def _refused(model: bytes) -> str:
    with pytest.raises(ExportError) as caught:
        lower_to_opset_17(model)
    return str(caught.value)


def test_the_unfolded_stem_is_refused_with_the_cure(short_traced: Traced) -> None:
    message = _refused(short_traced.graphs(fold_stem=False)["uint8"].model)
    assert message.startswith("TensorRT 8.5 cannot take node node_Shape_0 (Shape): it is none of Add, Cast, Concat, ")
    assert message.endswith(
        "export the bundle again with the folded stem, which is the default, or build with TensorRT 10 or newer"
    )


def test_an_operator_that_opset_17_lacks_is_refused_by_node() -> None:
    graph = build("g (float[n, 4] x) => (float[n, 4] y) { y = Gelu(x) }")
    assert "cannot take node y (Gelu): it is none of" in _refused(serialised(graph))


def test_an_operator_of_another_domain_is_refused() -> None:
    # The parser goes by the name alone, and would take this for ONNX's own Relu.
    proto = onnx.ModelProto.FromString(serialised(build("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")))
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    proto.graph.node[0].domain, proto.graph.node[0].name = "com.example", "mine"
    message = _refused(proto.SerializeToString())
    assert "cannot take node mine (com.example.Relu): it is none of Add, " in message
    assert ", all of ONNX's own domain; " in message


def test_uint8_goes_into_a_cast_and_nowhere_else() -> None:
    graph = build("""g (uint8[n, 4, 3] x) => (float[n, 3, 4] y) {
        moved = Transpose <perm = [0, 2, 1]> (x)
        y = Cast <to = 1> (moved)
    }""")
    message = _refused(serialised(graph))
    assert "cannot take node moved (Transpose): its tensor x is UINT8, which is not a dtype it takes there" in message


def test_inner_dtypes_are_inferred_where_the_file_does_not_say() -> None:
    graph = build("""g (float[n, 4, 3] x) => (float[n, 3, 4] y) {
        pixels = Cast <to = 2> (x)
        moved = Transpose <perm = [0, 2, 1]> (pixels)
        y = Cast <to = 1> (moved)
    }""")
    proto = onnx.ModelProto.FromString(serialised(graph))
    del proto.graph.value_info[:]
    assert "(Transpose): its tensor pixels is UINT8" in _refused(proto.SerializeToString())


def test_float64_is_refused() -> None:
    graph = build("g (double[n, 4] x) => (double[n, 4] y) { y = Relu(x) }")
    assert "(Relu): its tensor x is DOUBLE" in _refused(serialised(graph))


def test_computed_axes_are_refused_by_node() -> None:
    graph = build("g (float[n, 4, 5] x, int64[1] axes) => (float[p, q, r] y) { y = ReduceMean(x, axes) }")
    message = _refused(serialised(graph))
    assert "cannot take node y (ReduceMean): its axes are computed, and an attribute holds constants only" in message


def test_an_empty_list_of_axes_is_refused() -> None:
    text = "g (float[n, 4] x) => (float y) { y = ReduceMax <keepdims = 0> (x, axes) }"
    assert "(ReduceMax): its list of axes is empty" in _refused(serialised(build(text, axes=integers())))
    old = "g (float[n, 4] x) => (float y) { y = ReduceMax <keepdims = 0, axes: ints = []> (x) }"
    assert "(ReduceMax): its list of axes is empty" in _refused(serialised(build(old, opset=17)))


def test_an_attribute_without_a_form_in_opset_17_is_refused() -> None:
    graph = build("g (float[n, 4] x) => (float[n, 4] y) { y = ReduceMean <noop_with_empty_axes = 1> (x) }")
    message = _refused(serialised(graph))
    assert message.startswith("the graph cannot be lowered to opset 17 for TensorRT 8.5: ")
    assert "noop_with_empty_axes" in message


def test_a_dtype_without_a_form_in_opset_17_is_refused() -> None:
    graph = build("g (bool[n, 4] x) => (bool[n, 1] y) { y = ReduceMax(x, axes) }", axes=integers(1))
    message = _refused(serialised(graph))
    assert message.startswith("the graph cannot be lowered to opset 17 for TensorRT 8.5: ")
    assert "'ReduceMax' is unallowed" in message


def _another_size(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5


def _another_dtype(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _no_such_input(graph: onnx.GraphProto) -> None:
    graph.node[0].input[0] = "lost"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_another_size, "differ in dimension 1: (4) vs (5)"),
        (_another_dtype, "differs from existing elem type: (1) vs (10)"),
        (_no_such_input, "lost is undefined"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused(change: Callable[[onnx.GraphProto], None], words: str) -> None:
    proto = onnx.ModelProto.FromString(serialised(build("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")))
    change(proto.graph)
    message = _refused(proto.SerializeToString())
    assert message.startswith("the graph cannot be lowered to opset 17 for TensorRT 8.5: ")
    assert words in message


@pytest.mark.parametrize("pool", ["y, indices = MaxPool <kernel_shape = [2, 2]> (x)", "y = MaxPool <{}> (x)"])
def test_pools_that_the_parser_lacks_are_refused(pool: str) -> None:
    pool = pool.format("kernel_shape = [2, 2], dilations = [2, 2]")
    graph = build(f"g (float[n, 2, 8, 8] x) => (float[n, 2, p, q] y) {{ {pool} }}")
    message = _refused(serialised(graph))
    assert "cannot take node y (MaxPool): its parser takes neither the indices output nor dilations" in message


def test_what_the_converter_adds_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = onnx.version_converter.convert_version

    def with_a_copy(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        lowered = convert(proto, opset)
        lowered.graph.node[0].output[0] = "inner"
        lowered.graph.node.append(onnx.helper.make_node("Identity", ["inner"], ["y"], name="added"))
        return lowered

    monkeypatch.setattr(onnx.version_converter, "convert_version", with_a_copy)
    graph = build("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    assert "cannot take node added (Identity): it is none of" in _refused(serialised(graph))
