"""What a tensor of a graph looks like: name, dtype, and for each axis its size or its range.

The manifest stores these, backends report them, and `check` holds a batch against them, once, before any backend
sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milnce.errors import BundleError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from milnce.device_arrays import DeviceArray


@dataclass(frozen=True, slots=True)
class Dimension:
    """One axis: a fixed size (`minimum == maximum`), or a named range in steps of `multiple_of`.

    Attributes:
        name: The axis' symbolic name in the graph, or None for a fixed size.
        minimum: Smallest size, at least 1.
        maximum: Largest size, or None where only memory bounds it.
        multiple_of: Sizes must be divisible by this (2 for the axes that space-to-depth halves).
    """

    name: str | None
    minimum: int
    maximum: int | None
    multiple_of: int = 1

    @classmethod
    def fixed(cls, size: int) -> Dimension:
        """Return an axis of exactly `size`."""
        return cls(None, size, size)

    @property
    def size(self) -> int | None:
        """The fixed size, or None when the axis may vary."""
        return self.minimum if self.minimum == self.maximum else None

    def accepts(self, size: int) -> bool:
        """Whether `size` lies in the range and on the step."""
        upper = size if self.maximum is None else self.maximum
        return self.minimum <= size <= upper and size % self.multiple_of == 0

    def __str__(self) -> str:
        if self.size is not None:
            return str(self.size)
        span = f"{self.minimum}.." if self.maximum is None else f"{self.minimum}..{self.maximum}"
        step = "" if self.multiple_of == 1 else f" step {self.multiple_of}"
        return f"{self.name}={span}{step}"

    def to_json(self) -> int | dict[str, Any]:
        """Return the manifest's form: an integer for a fixed size, an object for a range."""
        if self.size is not None:
            return self.size
        return {"name": self.name, "min": self.minimum, "max": self.maximum, "multiple_of": self.multiple_of}

    @classmethod
    def from_json(cls, value: object) -> Dimension:
        """Read the manifest's form.

        Raises:
            BundleError: if the value is neither a positive integer nor a complete range.
        """
        # `type`, since True is an int to isinstance.
        if type(value) is int and value > 0:
            return cls.fixed(value)
        if isinstance(value, dict) and set(value) == {"name", "min", "max", "multiple_of"}:
            name, low, high, step = value["name"], value["min"], value["max"], value["multiple_of"]
            numbers = type(low) is int and type(step) is int and low > 0 and step > 0
            bounded = high is None or (type(high) is int and numbers and high > low)
            if isinstance(name, str) and numbers and bounded:
                return cls(name, low, high, step)
        raise BundleError(f"a tensor's axis must be a positive integer or a range with name, min, max; got {value!r}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy's name of the element type, such as "uint8" or "float32".
        shape: One `Dimension` an axis.
    """

    name: str
    dtype: str
    shape: tuple[Dimension, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        return {"name": self.name, "dtype": self.dtype, "shape": [axis.to_json() for axis in self.shape]}

    @classmethod
    def from_json(cls, value: object) -> TensorSpec:
        """Read the manifest's form.

        Raises:
            BundleError: if a field is missing or of the wrong kind.
        """
        if not isinstance(value, dict) or set(value) != {"name", "dtype", "shape"}:
            raise BundleError(f"a tensor needs exactly name, dtype and shape; got {value!r}")
        name, dtype, shape = value["name"], value["dtype"], value["shape"]
        if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(shape, list)):
            raise BundleError(f"a tensor needs a name, a dtype and a list of axes; got {value!r}")
        return cls(name, dtype, tuple(Dimension.from_json(axis) for axis in shape))

    def check(self, array: NDArray[Any] | DeviceArray) -> None:
        """Hold `array` against this spec.

        Raises:
            InputError: naming the tensor, what was given and what is accepted.
        """
        if array.dtype.name != self.dtype:
            raise InputError(f"{self.name}: dtype {array.dtype.name} given, {self.dtype} expected ({self})")
        if len(array.shape) != len(self.shape):
            raise InputError(f"{self.name}: rank {len(array.shape)} given, shape {array.shape}; expected {self}")
        for index, (size, axis) in enumerate(zip(array.shape, self.shape, strict=True)):
            if not axis.accepts(size):
                label = axis.name or f"axis {index}"
                raise InputError(f"{self.name}: {label} is {size}, shape {array.shape}; expected {axis} in {self}")


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any] | DeviceArray]) -> None:
    """Hold a batch's arrays against a graph's inputs: names, dtypes, shapes.

    Raises:
        InputError: for the first array that does not fit, or for missing or surplus names.
    """
    expected = [spec.name for spec in specs]
    if sorted(feeds) != sorted(expected):
        raise InputError(f"inputs {sorted(feeds)} given; the graph takes {expected}")
    for spec in specs:
        spec.check(feeds[spec.name])
