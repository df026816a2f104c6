"""Refuses ONNX models that read other files, without needing the onnx package.

An ONNX tensor may name a file to read its numbers from ("external data"). OpenVINO follows such a name, absolute
paths too, even when the model is given as bytes (seen with 2026.4.1), so a foreign bundle could pull any file of the
machine into its weights. milnce's own graphs are single files; anything else is refused here, before a backend sees it.

The walk follows onnx.proto3: only the fields that lead to a TensorProto are opened, all else is skipped by its length.
"""

from __future__ import annotations

from milnce.errors import BundleError
from milnce.protobuf import LENGTH, VARINT, Field, WireFormatError, fields, varint

# message -> {field number: message it holds}
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14


def refuse_external_data(model: bytes | memoryview, file: str) -> None:
    """Check that the ONNX model needs no other file.

    Args:
        model: The serialised ModelProto.
        file: Its name, for messages.

    Raises:
        BundleError: if a tensor lies in another file, or `model` is not a protocol buffer at all.
    """
    # A list, not recursion: a hostile model may nest graphs deeper than Python's stack.
    todo: list[tuple[str, int, int]] = [("Model", 0, len(model))]
    try:
        while todo:
            message, start, end = todo.pop()
            for field in fields(model, start, end):
                if message == "Tensor" and _is_external(model, field):
                    raise BundleError(
                        f"{file} keeps a tensor in another file (ONNX external data), which is refused; "
                        "export the bundle again as single-file graphs"
                    )
                child = _CHILDREN[message].get(field.number)
                if child is not None and field.wire == LENGTH:
                    todo.append((child, field.start, field.end))
    except WireFormatError:
        raise BundleError(f"{file} is not an ONNX model, or is cut; export the bundle again") from None


def _is_external(model: bytes | memoryview, field: Field) -> bool:
    if field.number == _TENSOR_DATA_LOCATION:
        return field.wire != VARINT or varint(model, field.start, field.end)[0] != 0
    return field.number == _TENSOR_EXTERNAL_DATA
