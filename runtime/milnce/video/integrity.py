"""Whether a file ends before its own container says it does.

FFmpeg decodes what is there and may end in silence, so a half-downloaded video would look like a shorter one. The
outermost structure of each container gives the length: no decoding, a few reads whatever the size.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_BOX = struct.Struct(">I4s")
_CHUNK = struct.Struct("<4sI")
_MAX_BOXES = 1_000_000  # a fragmented MP4 has two a fragment


def truncation(file: BinaryIO, on_progress: Callable[[], None]) -> str | None:
    """Say how `file` is cut short, or return None if it is whole, or does not tell, or is of another format.

    Reads from the start and leaves the position anywhere.

    Args:
        file: The file.
        on_progress: Called for each part of the file that was looked at: a long recording in fragments has thousands.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return _boxes(file, size, on_progress)
    if head[:4] == b"RIFF":
        return _riff(file, size, on_progress)
    if head[:4] == _EBML:
        return _matroska(file, size)
    if head[:4] == b"GIF8":
        return _gif(file, size)
    return None


def _boxes(file: BinaryIO, size: int, on_progress: Callable[[], None]) -> str | None:
    """Walk the boxes of an ISO base media file (MP4, MOV)."""
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(_BOX.size)
        on_progress()
        if len(header) < _BOX.size or not header[4:].isalnum():
            return None  # the end, or bytes after the last box that belong to nobody
        length, kind = _BOX.unpack(header)
        if length == 1:  # the real length follows, in eight bytes
            length = int.from_bytes(file.read(8), "big")
        if length < _BOX.size:
            return None  # 0: the box lasts until the end of the file, however long that is
        if position + length > size:
            return f"its {kind.decode('ascii')!r} part should end at byte {position + length} and the file at {size}"
        position += length
    return None


def _riff(file: BinaryIO, size: int, on_progress: Callable[[], None]) -> str | None:
    """Walk the RIFF chunks of an AVI file (one, or several in OpenDML)."""
    position = 0
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(_CHUNK.size)
        on_progress()
        if len(header) < _CHUNK.size or not header.startswith(b"RIFF"):
            return None
        length = _CHUNK.unpack(header)[1]
        if length in {0, 0xFFFFFFFF}:
            return None  # never finished by its writer, or not told
        if position + 8 + length > size:
            return f"its RIFF part should end at byte {position + 8 + length} and the file at {size}"
        position += 8 + length + length % 2
    return None


def _matroska(file: BinaryIO, size: int) -> str | None:
    """Compare the Segment's size with the file's (MKV, WebM)."""
    file.seek(4)
    head = _ebml_size(file)
    if head is None:
        return None
    file.seek(head, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    length = _ebml_size(file)
    if length is None:
        return None  # a live recording does not know its own
    end = file.tell() + length
    return f"its segment should end at byte {end} and the file at {size}" if end > size else None


def _ebml_size(file: BinaryIO) -> int | None:
    """Read EBML's variable-length size; None for the reserved value "unknown", or none."""
    first = file.read(1)
    if not first or first == b"\x00":
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    bits = 7 * width
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < width - 1 or value == (1 << bits) - 1 else value


def _gif(file: BinaryIO, size: int) -> str | None:
    """Look for the trailer, ';', that ends every GIF (some writers add a few zeros)."""
    file.seek(max(0, size - 64))
    end = file.read(64).rstrip(b"\x00")
    return None if end.endswith(b";") else "its end mark is missing"
