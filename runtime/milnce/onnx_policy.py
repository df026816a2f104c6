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

# What a file may ask for. protobuf's own readers stop at 100 messages in one another. milnce's largest graph has some
# ten thousand fields; a file of two-byte operators would otherwise keep the walk busy for minutes.
_DEEPEST = 100
_MOST_FIELDS = 200_000


def refuse_external_data(model: bytes | memoryview, file: str) -> None:
    """Check that the ONNX model needs no other file.

    Args:
        model: The serialised ModelProto.
        file: Its name, for messages.

    Raises:
        BundleError: if a tensor lies in another file, or `model` is not a protocol buffer at all, or is nested more
            than 100 messages deep, or has more than 200 000 fields where tensors can be.
    """
    try:
        _walk(model, file)
    except WireFormatError:
        raise BundleError(f"{file} is not an ONNX model, or is cut; export the bundle again") from None


def _walk(model: bytes | memoryview, file: str) -> None:
    # Depth first, with the messages that are open on a list: memory grows with the depth alone, and that is bounded.
    opened = [("Model", fields(model, 0, len(model)))]
    count = 0
    while opened:
        message, rest = opened[-1]
        children = _CHILDREN[message]
        for field in rest:
            count += 1
            if count > _MOST_FIELDS:
                raise BundleError(
                    f"{file} has more than {_MOST_FIELDS} fields, which no exporter of milnce writes; "
                    "export the bundle again"
                )
            if message == "Tensor" and _is_external(model, field):
                raise BundleError(
                    f"{file} keeps a tensor in another file (ONNX external data), which is refused; "
                    "export the bundle again as single-file graphs"
                )
            child = children.get(field.number)
            if child is not None and field.wire == LENGTH and field.start < field.end:
                if len(opened) == _DEEPEST:
                    raise BundleError(
                        f"{file} is nested more than {_DEEPEST} messages deep, which no ONNX reader takes; "
                        "export the bundle again"
                    )
                opened.append((child, fields(model, field.start, field.end)))
                break
        else:
            opened.pop()


def _is_external(model: bytes | memoryview, field: Field) -> bool:
    if field.number == _TENSOR_DATA_LOCATION:
        return field.wire != VARINT or varint(model, field.start, field.end)[0] != 0
    return field.number == _TENSOR_EXTERNAL_DATA
