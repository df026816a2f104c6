"""Reads the graph of an ONNX file without the onnx package: operators, attributes, weights.

It reads what milnce's own graphs are made of, and leaves the rest out: of attributes numbers and lists of whole
numbers, of weights float32 and int64 in `raw_data`. What is left out is missing from the result, so that who looks for
it does not find it. Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import BundleError
from milnce.protobuf import FIXED32, LENGTH, VARINT, Field, WireFormatError, fields, varint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

# What a file may ask for. The largest graph of milnce has some 400 operators, its tensors 5 axes; a file of two-byte
# operators would otherwise take a hundred times its size as Python objects.
_MOST_PARTS = 20_000
_MOST_NUMBERS = 16
_LONGEST_NAME_BYTES = 1024

# TensorProto.data_type -> how NumPy reads its raw_data, which is little-endian on every machine.
_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 7: np.dtype("<i8")}
_FLOAT, _INT, _INTS = 1, 2, 7  # AttributeProto.type


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        kind: Its type, such as "Gemm"; with its domain in front, as in "com.example.Gemm", if it is not ONNX's own.
        inputs: Names of the tensors it takes; "" for one that is left out.
        outputs: Names of the tensors it gives.
        attributes: Those that are a number or a list of whole numbers; others are None.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, float | tuple[int, ...] | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class OnnxGraph:
    """A graph.

    Attributes:
        nodes: Its operators, in their order.
        weights: Its initializers in float32 and int64, read-only views into the file; they need not be aligned.
        inputs: Names of its inputs; without those that are initializers too, as in old files.
        outputs: Names of its outputs.
    """

    nodes: tuple[Node, ...]
    weights: Mapping[str, NDArray[Any]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_graph(model: bytes | memoryview, file: str) -> OnnxGraph:
    """Read the graph of an ONNX model.

    Args:
        model: The serialised ModelProto. It must not change while the weights are in use.
        file: Its name, for messages.

    Raises:
        BundleError: if it is not a model, is cut, or holds something that no exporter writes: a tensor whose bytes do
            not fit its shape, two tensors of one name, a name that is no text, tens of thousands of operators.
    """
    try:
        return _Reader(model).graph(_only_graph(model))
    except (WireFormatError, UnicodeDecodeError) as error:
        reason = f" ({error})" if str(error) else ""
        raise BundleError(f"{file} is not an ONNX model, or is cut{reason}; export the bundle again") from None


def _only_graph(model: bytes | memoryview) -> Field:
    graphs = [part for part in fields(model, 0, len(model)) if part.number == 7]  # noqa: PLR2004 - Model.graph
    if len(graphs) != 1:
        raise WireFormatError(f"it has {len(graphs)} graphs")
    return graphs[0]


class _Reader:
    """Reads the messages of one file, and counts them."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._parts = 0

    def graph(self, message: Field) -> OnnxGraph:
        nodes: list[Node] = []
        weights: dict[str, NDArray[Any] | None] = {}
        inputs, outputs = [], []
        for part in self._children(message):
            if part.number == 1:
                nodes.append(self._node(part))
            elif part.number == 5:  # noqa: PLR2004 - Graph.initializer
                name, values = self._tensor(part)
                if name in weights:
                    raise WireFormatError(f"two tensors are named {name!r}")
                weights[name] = values
            elif part.number == 11:  # noqa: PLR2004 - Graph.input
                inputs.append(self._name_of(part))
            elif part.number == 12:  # noqa: PLR2004 - Graph.output
                outputs.append(self._name_of(part))
            elif part.number == 15:  # noqa: PLR2004 - Graph.sparse_initializer, whose name lies too deep to be of use
                nodes.append(Node("sparse_initializer", (), ()))
        given = tuple(name for name in inputs if name not in weights)
        read = {name: values for name, values in weights.items() if values is not None}
        return OnnxGraph(tuple(nodes), read, given, tuple(outputs))

    def _node(self, message: Field) -> Node:
        kind = domain = ""
        inputs, outputs = [], []
        attributes: dict[str, float | tuple[int, ...] | None] = {}
        for part in self._children(message):
            if part.number == 1:
                inputs.append(self._text(part))
            elif part.number == 2:  # noqa: PLR2004 - Node.output
                outputs.append(self._text(part))
            elif part.number == 4:  # noqa: PLR2004 - Node.op_type
                kind = self._text(part)
            elif part.number == 5:  # noqa: PLR2004 - Node.attribute
                name, value = self._attribute(part)
                attributes[name] = value
            elif part.number == 7:  # noqa: PLR2004 - Node.domain
                domain = self._text(part)
        own = domain in {"", "ai.onnx"}
        return Node(kind if own else f"{domain}.{kind}", tuple(inputs), tuple(outputs), attributes)

    def _attribute(self, message: Field) -> tuple[str, float | tuple[int, ...] | None]:
        name, kind, whole, real = "", 0, 0, 0.0
        numbers: list[int] = []
        for part in self._children(message):
            if part.number == 1:
                name = self._text(part)
            elif part.number == 2 and part.wire == FIXED32:  # noqa: PLR2004 - Attribute.f
                (real,) = struct.unpack_from("<f", self._data, part.start)
            elif part.number == 3:  # noqa: PLR2004 - Attribute.i
                whole = self._number(part)
            elif part.number == 8:  # noqa: PLR2004 - Attribute.ints
                self._append_numbers(numbers, part)
            elif part.number == 20:  # noqa: PLR2004 - Attribute.type
                kind = self._number(part)
        values: dict[int, float | tuple[int, ...]] = {_FLOAT: real, _INT: whole, _INTS: tuple(numbers)}
        return name, values.get(kind)

    def _tensor(self, message: Field) -> tuple[str, NDArray[Any] | None]:
        """Return a tensor's name and values; None for values of other kinds, or written in another way."""
        name, kind, raw = "", 0, None
        sizes: list[int] = []
        for part in self._children(message):
            if part.number == 1:
                self._append_numbers(sizes, part)
            elif part.number == 2:  # noqa: PLR2004 - Tensor.data_type
                kind = self._number(part)
            elif part.number == 8:  # noqa: PLR2004 - Tensor.name
                name = self._text(part)
            elif part.number == 9 and part.wire == LENGTH:  # noqa: PLR2004 - Tensor.raw_data
                raw = part
        dtype = _DTYPES.get(kind)
        if dtype is None or raw is None or 0 in sizes:
            return name, None
        # In Python's numbers, which do not overflow, and before NumPy sees the shape.
        if min(sizes, default=1) < 0 or math.prod(sizes) * dtype.itemsize != raw.end - raw.start:
            raise WireFormatError(f"the shape {tuple(sizes)} of {name!r} does not fit its {raw.end - raw.start} bytes")
        return name, np.ndarray(tuple(sizes), dtype, buffer=self._data, offset=raw.start)

    def _name_of(self, message: Field) -> str:
        """Return field 1 of a ValueInfoProto."""
        return next((self._text(part) for part in self._children(message) if part.number == 1), "")

    def _children(self, message: Field) -> Iterator[Field]:
        if message.wire != LENGTH:
            raise WireFormatError
        for part in fields(self._data, message.start, message.end):
            self._parts += 1
            if self._parts > _MOST_PARTS:
                raise WireFormatError(f"it has more than {_MOST_PARTS} parts")
            yield part

    def _text(self, part: Field) -> str:
        if part.wire != LENGTH or part.end - part.start > _LONGEST_NAME_BYTES:
            raise WireFormatError
        return str(self._data[part.start : part.end], "utf-8")

    def _number(self, part: Field) -> int:
        if part.wire != VARINT:
            raise WireFormatError
        return _signed(varint(self._data, part.start, part.end)[0])

    def _append_numbers(self, numbers: list[int], part: Field) -> None:
        """Read one number, or a packed row of them."""
        if part.wire == LENGTH:
            position = part.start
            while position < part.end and len(numbers) <= _MOST_NUMBERS:
                number, position = varint(self._data, position, part.end)
                numbers.append(_signed(number))
        else:
            numbers.append(self._number(part))
        if len(numbers) > _MOST_NUMBERS:
            raise WireFormatError(f"it has a list of more than {_MOST_NUMBERS} numbers")


def _signed(number: int) -> int:
    """Return the int64 that a varint stands for."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number
