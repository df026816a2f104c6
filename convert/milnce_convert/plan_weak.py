"""Precision for TensorRT without strong typing (8.5 and 8.6): asks for the graph's dtypes layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def float_dtypes(model: bytes) -> dict[str, str]:
    """Return "float16" or "float32" for each tensor of a graph that is one of them.

    Args:
        model: A serialised ONNX model with every shape inferred, as `lower_to_opset_17` gives it.
    """
    import onnx  # noqa: PLC0415 - only these old releases need it

    graph = onnx.ModelProto.FromString(model).graph
    found = {weight.name: weight.data_type for weight in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    names = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.FLOAT: "float32"}
    return {tensor: names[dtype] for tensor, dtype in found.items() if dtype in names}


def constrain(trt: Any, network: Any, config: Any, dtypes: Mapping[str, str]) -> None:  # noqa: ANN401 - not typed
    """Allow FP16, and make each layer compute and give what the graph says, so that its FP32 islands stay FP32.

    A layer that the parser adds by itself (a broadcast, half of a Gemm) has no tensor of the graph's; it computes in
    what it is given.

    Args:
        trt: The module.
        network: The parsed network.
        config: The builder's configuration.
        dtypes: What `float_dtypes` gave.
    """
    config.set_flag(trt.BuilderFlag.FP16)
    # Obeyed and not preferred: a layer that cannot compute so is an error, never silently another precision.
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    floats = {"float16": trt.DataType.HALF, "float32": trt.DataType.FLOAT}
    known = {name: floats[dtype] for name, dtype in dtypes.items()}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        inputs = [tensor for number in range(layer.num_inputs) if (tensor := layer.get_input(number)) is not None]
        wanted = next((known[tensor.name] for tensor in (*outputs, *inputs) if tensor.name in known), None)
        if wanted is None or any(tensor.dtype not in floats.values() for tensor in outputs):
            continue  # shapes and ids
        for tensor in outputs:
            known.setdefault(tensor.name, wanted)
        if layer.type == trt.LayerType.CONSTANT:
            continue  # computes nothing
        # A cast computes in neither of its dtypes.
        if all(known.get(tensor.name, wanted) == wanted and tensor.dtype in floats.values() for tensor in inputs):
            layer.precision = wanted
        for number, tensor in enumerate(outputs):
            layer.set_output_type(number, known[tensor.name])
