"""Refuses ONNX models that read other files, without needing the onnx package.

An ONNX tensor may name a file to read its numbers from ("external data"). OpenVINO follows such a name, absolute
paths too, even when the model is given as bytes (seen with 2026.4.1), so a foreign bundle could pull any file of the
machine into its weights. milnce's own graphs are single files; anything else is refused here, before a backend sees it.

The walk follows onnx.proto3: only the fields that lead to a TensorProto are opened, all else is skipped by its length.
"""

from __future__ import annotations

from milnce.errors import BundleError

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

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


def refuse_external_data(model: bytes, file: str) -> None:
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
            message, position, end = todo.pop()
            while position < end:
                key, position = _varint(model, position)
                number, wire = key >> 3, key & 7
                if message == "Tensor" and _is_external(model, position, number):
                    raise BundleError(
                        f"{file} keeps a tensor in another file (ONNX external data), which is refused; "
                        "export the bundle again as single-file graphs"
                    )
                start, position = _skip(model, position, wire)
                child = _CHILDREN[message].get(number)
                if child is not None and wire == _LENGTH:
                    todo.append((child, start, position))
            _require(position == end)
    except IndexError:
        raise BundleError(f"{file} is not an ONNX model, or is cut; export the bundle again") from None


def _is_external(model: bytes, position: int, number: int) -> bool:
    if number == _TENSOR_EXTERNAL_DATA:
        return True
    return number == _TENSOR_DATA_LOCATION and _varint(model, position)[0] != 0


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the top bit says that more follows
            return value, position
    raise IndexError


def _require(sound: bool) -> None:
    if not sound:
        raise IndexError


def _skip(data: bytes, position: int, wire: int) -> tuple[int, int]:
    """Return where the content of a field starts and where it ends."""
    if wire == _VARINT:
        return position, _varint(data, position)[1]
    if wire == _LENGTH:
        length, start = _varint(data, position)
        end = start + length
    elif wire in (_FIXED64, _FIXED32):
        start, end = position, position + (8 if wire == _FIXED64 else 4)
    else:
        raise IndexError
    _require(end <= len(data))
    return start, end
