"""Whether OpenVINO computes a quantised graph in INT8: layers that it has no such kernel for it leaves in FP32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from milnce.errors import BackendError, BackendUnavailableError

if TYPE_CHECKING:
    from milnce.manifest import GraphFile

_EIGHT_BITS = frozenset({"i8", "u8"})
# What lies between a convolution and the 8-bit numbers that its weights are kept as.
_DEQUANTISING = frozenset({"Convert", "Subtract", "Multiply", "Reshape"})


def require_int8(model: Any, compiled: Any, graph: GraphFile) -> None:  # noqa: ANN401 - the library is not typed
    """Raise unless every convolution with 8-bit weights is computed in 8 bits.

    Args:
        model: The `openvino.Model` that was compiled.
        compiled: What it was compiled to.
        graph: Its entry in the manifest, for messages.

    Raises:
        BackendError: if no convolution has 8-bit weights, so the graph is not what the manifest says.
        BackendUnavailableError: if OpenVINO would compute some of them in floating point on this CPU.
    """
    operators = model.get_ops()
    wanted = sum(node.get_type_name() == "Convolution" and _has_8_bit_weights(node) for node in operators)
    if not wanted:
        raise BackendError(
            f"openvino: {graph} has no convolution with 8-bit weights, so it is not quantised; "
            "quantise the bundle again: milnce quantize"
        )
    run_in = [_runtime(node) for node in compiled.get_runtime_model().get_ops()]
    found = sum(layer == "Convolution" and precision in _EIGHT_BITS for layer, precision in run_in)
    if found < wanted:
        others = sorted({precision for layer, precision in run_in if layer == "Convolution"} - _EIGHT_BITS)
        raise BackendUnavailableError(
            f"openvino was asked to compute {graph} in int8, but on this CPU it would compute {wanted - found} of its "
            f"{wanted} quantised convolutions in {' and '.join(others) or 'another way'}; ask for precision='fp32'"
        )


def _has_8_bit_weights(convolution: Any) -> bool:  # noqa: ANN401 - the library is not typed
    node = convolution.input_value(1).get_node()
    while node.get_type_name() in _DEQUANTISING:
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and node.get_element_type().get_type_name() in _EIGHT_BITS


def _runtime(node: Any) -> tuple[str, str]:  # noqa: ANN401 - the library is not typed
    """Return the kind of a layer that runs, and the type it is computed in."""
    info = node.get_rt_info()
    layer, precision = (str(info[key].value) if key in info else "" for key in ("layerType", "runtimePrecision"))
    return layer, precision
