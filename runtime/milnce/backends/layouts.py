"""What a batch looks like in memory: where its tensors lie, and the fixed shapes that it is padded to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

# cudaMalloc aligns to 256 bytes, and TensorRT wants its tensors so.
_ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tensors of one batch lie in a slot's buffers.

    Attributes:
        shapes: Shape of each tensor.
        dtypes: NumPy's name of each tensor's dtype.
        offsets: Bytes from the start of the buffer.
        nbytes: Size of them all.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    offsets: Mapping[str, int]
    nbytes: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> Layout:
        """Lay tensors out one after the other."""
        offsets, end = {}, 0
        for name, shape in shapes.items():
            offsets[name] = end
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtypes[name]).itemsize
            end += -(-size // _ALIGNMENT) * _ALIGNMENT
        return cls(dict(shapes), dict(dtypes), offsets, end)

    def row_bytes(self, name: str) -> int:
        """Return the bytes of one row, that is of one clip or sentence, of tensor `name`."""
        return int(np.prod(self.shapes[name][1:], dtype=np.int64)) * np.dtype(self.dtypes[name]).itemsize


@dataclass(frozen=True, slots=True)
class Bucket:
    """A batch of fixed shapes that the backend is ready to run: what smaller batches are padded to.

    Attributes:
        rows: Clips or sentences.
        profile: Index of the plan's profile; 0 where there are none.
        inputs: The inputs in a slot's input buffers.
        outputs: The outputs in a slot's output buffers.
        scratch_bytes: Device memory for what lies between them, used by one batch at a time.
    """

    rows: int
    profile: int
    inputs: Layout
    outputs: Layout
    scratch_bytes: int

    @property
    def key(self) -> tuple[object, ...]:
        """What tells two buckets apart."""
        return (self.profile, *self.inputs.shapes.items())


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes a ring holds for each slot's inputs and outputs, and once for all as scratch."""

    inputs: int = 0
    outputs: int = 0
    scratch: int = 0

    def holds(self, bucket: Bucket) -> bool:
        """Whether `bucket` fits."""
        return self.grown(bucket) == self

    def grown(self, bucket: Bucket) -> Capacity:
        """Return the smallest capacity that holds `bucket` and what this one holds."""
        return Capacity(
            max(self.inputs, bucket.inputs.nbytes),
            max(self.outputs, bucket.outputs.nbytes),
            max(self.scratch, bucket.scratch_bytes),
        )
