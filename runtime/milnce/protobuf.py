"""The wire format of protocol buffers: enough to walk a message of a file that nobody vouches for.

https://protobuf.dev/programming-guides/encoding: a message is a row of fields, each a key (number and wire type) and
its content. Nothing here knows what a field means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_MORE = 0x80  # the top bit of a byte says that another one follows
_LONGEST_VARINT_BITS = 70
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


class WireFormatError(Exception):
    """The bytes are not a message. Callers turn it into an error that names the file."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: Its number in the message's definition.
        wire: `VARINT`, `FIXED64`, `LENGTH` or `FIXED32`.
        start: Where its content begins; after the length, if it has one.
        end: Where its content ends.
    """

    number: int
    wire: int
    start: int
    end: int


def fields(data: bytes | memoryview, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message that lies in `data` from `start` to `end`.

    Raises:
        WireFormatError: in the place of a field that does not fit into the message, or of a wire type that
            protocol buffers of today do not have.
    """
    position = start
    while position < end:
        key, begin = varint(data, position, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            position = varint(data, begin, end)[1]
        elif wire == LENGTH:
            length, begin = varint(data, begin, end)
            position = begin + length
        elif wire in _FIXED_BYTES:
            position = begin + _FIXED_BYTES[wire]
        else:
            raise WireFormatError
        if position > end:
            raise WireFormatError
        yield Field(number, wire, begin, position)


def varint(data: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """Return the number at `position`, and where it ends.

    Raises:
        WireFormatError: if it does not end before `end`, or is longer than any number is.
    """
    value = 0
    for shift in range(0, _LONGEST_VARINT_BITS, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & ~_MORE) << shift
        if byte < _MORE:
            return value, position
    raise WireFormatError
