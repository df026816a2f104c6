"""Holds outputs to the gate of a precision, by its name: what is told beside every speed. Needs NumPy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from milnce.errors import InputError
from milnce_convert import parity

if TYPE_CHECKING:
    from numpy.typing import NDArray


def gates() -> dict[str, parity.Gate]:
    """Return every gate of `milnce_convert.parity` by its name, such as "fp32"."""
    found = [value for value in vars(parity).values() if isinstance(value, parity.Gate)]
    return {gate.name: gate for gate in found}


def judge(gate: str | parity.Gate, expected: NDArray[Any], found: NDArray[Any]) -> tuple[dict[str, Any], list[str]]:
    """Return how far outputs lie from those expected, and what of it a gate refuses.

    Args:
        gate: A gate, or the name of one.
        expected: (N, D) floats, N >= 2.
        found: The same shape.

    Returns:
        The figures of `milnce_convert.parity.Agreement`, and its failures in words; none if the gate is passed.

    Raises:
        InputError: if there is no such gate.
        ParityError: if nothing can be compared; see `milnce_convert.parity.compare`.
    """
    if isinstance(gate, str):
        known = gates()
        if gate not in known:
            raise InputError(f"gate {gate!r} given; gates are {', '.join(known)}")
        gate = known[gate]
    agreement = parity.compare(expected, found)
    return agreement.to_json(), gate.failures(agreement)
